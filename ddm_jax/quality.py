"""Data quality: which training points are mislabelled, odd, redundant or harmful. Scores [N].

Larger is worse everywhere, whatever the units: the scores rank points for a look at them. None of
them sees which points are really bad.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from scipy.stats import rankdata

from ddm_jax.estimators.complexity_gap import make_complexity_gap
from ddm_jax.estimators.training_dynamics import make_training_dynamics
from ddm_jax.types import Batch, Task, TrainRun

LARGEST = 12_000  # points of the complexity gap, which takes an N x N matrix


def mislabelled(task: Task, run: TrainRun, data: Batch) -> np.ndarray:
    """How suspect each label is, [N] in (0, 1]: the mean of two ranks.

    That of the area under the margin (`training_dynamics`: the network learnt the label late or
    never) and that of the complexity gap (`complexity_gap`: leaving the point out makes the labels
    easier to fit, to a kernel that has seen no training). The two err on different points. Beyond
    LARGEST points, where the kernel does not fit, the margin alone.

    Raises:
        ValueError: where the targets have no column for each class.
    """
    every = np.arange(len(data.x))
    suspicions = [make_training_dynamics(task, measure="margin")]
    if len(every) <= LARGEST:
        suspicions.append(make_complexity_gap())
    values = [
        np.asarray(each.fit(jax.random.key(0), run, data, every).values) for each in suspicions
    ]
    return np.mean([rankdata(-value) for value in values], 0) / len(every)


def low_quality(features: Any, labels: Any, neighbours: int = 10) -> np.ndarray:
    """How far each point is from the nearest ones with its label, [N], in units of the features.

    The mean distance to `neighbours` of them (fewer where the class is smaller): noise, occlusion
    and what belongs to no class are far from all. Blurred points are not: they lie near the mean.

    Args:
        features: [N, ...], pixels or a network's features.
        labels: [N] integers.

    Raises:
        ValueError: for lengths that differ or no neighbours.
    """
    flat, labels = _checked(features, labels)
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}; it must be at least 1")
    return _distances(flat, labels, neighbours).mean(1)


def redundant(features: Any, labels: Any) -> np.ndarray:
    """How near each point is to another with its label, [N]: minus the distance to the nearest.

    Zero for an exact duplicate, negative for all others.

    Raises:
        ValueError: for lengths that differ.
    """
    flat, labels = _checked(features, labels)
    return -_distances(flat, labels, 1)[:, 0]


def harmful(points: Any, lower_is_better: bool = False) -> np.ndarray:
    """How much each point lowers the mean output of the queries, [N].

    Args:
        points: [N, Q], as of `points.make_point_influence`; the queries should be others than
            those on which the result is judged.
        lower_is_better: where the output is a loss.
    """
    mean = np.asarray(points, np.float64).mean(1)
    return mean if lower_is_better else -mean


def _checked(features: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features), np.asarray(labels)
    if labels.ndim != 1 or len(features) != len(labels):
        raise ValueError(
            f"features have shape {features.shape} and labels {labels.shape}; they must be "
            "[N, ...] and [N]"
        )
    return features.reshape(len(features), -1), labels


def _distances(flat: np.ndarray, labels: np.ndarray, neighbours: int) -> np.ndarray:
    """Distances [N, neighbours] to the nearest other points of the same class; inf where none."""
    from sklearn.neighbors import NearestNeighbors

    found = np.full((len(flat), neighbours), np.inf)
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        count = min(neighbours, len(inside) - 1)
        if count:
            near = NearestNeighbors(n_neighbors=count).fit(flat[inside]).kneighbors()[0]
            found[inside, :count] = near
            found[inside, count:] = near[:, -1:]
    return found
