"""Points beside the others of their class: typical or odd, new or a duplicate; and their influence.

Values by inputs and labels alone. The data may have any inputs, as a network's features.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddm_jax.checks import check_integer, require_distributions
from ddm_jax.gradients import wide
from ddm_jax.types import Array, Batch, Task, TrainRun
from ddm_jax.values._contract import Values, check_points

TINY = 1e-6


def typicality(task: Task, *, neighbours: int = 10) -> Values:
    """Make the value: how little odd each point is among those with its label, at most 0.

    `-hypot(max(z_far, 0), z_sharp)`, in units of the typical deviation from the class's median.
    z_far: the log of the mean distance to `neighbours` others of the class (fewer where it is
    smaller), high for what is noisy, occluded or of no class. z_sharp, for images `[N, H, W]` or
    `[N, H, W, D]`: the log of the mean squared difference of neighbouring pixels, low for what is
    blurred, high for noise. Minus infinity for a point that is alone with its label.

    Raises:
        ValueError: for no neighbours, a task whose targets are no classes, or (when called) inputs
            that are not finite.
    """
    check_integer("neighbours", neighbours)
    require_distributions(task, "typicality")

    def values(key: Array, run: TrainRun, data: Batch) -> np.ndarray:
        images, labels = _points(data, "typicality")
        far = _distances(images, labels, neighbours).mean(1)
        odd = np.maximum(_deviation(np.log(far + TINY), labels), 0.0)
        if images.ndim >= 3:
            steps = sum(np.square(np.diff(images, axis=axis)).mean((1, 2)) for axis in (1, 2))
            sharpness = np.log(steps.reshape(len(images), -1).mean(1) + TINY)
            odd = np.hypot(odd, _deviation(sharpness, labels))
        return -odd

    return values


def novelty(task: Task) -> Values:
    """Make the value: the distance to the nearest other point with the same label.

    Zero for an exact duplicate, infinite for a point that is alone with its label.

    Raises:
        ValueError: for a task whose targets are no classes, or (when called) inputs that are not
            finite.
    """
    require_distributions(task, "novelty")
    return lambda key, run, data: _distances(*_points(data, "novelty"), 1)[:, 0]


def usefulness(points: Any, lower_is_better: bool = False) -> np.ndarray:
    """How much good each point does to the mean output of the queries, [N].

    Args:
        points: [N, Q], as of `points.make_point_influence`; the queries should be others than
            those on which the result is judged.
        lower_is_better: as of the task: where the output is a loss, what lowers it is good.
    """
    mean = np.asarray(points, np.float64).mean(1)
    return -mean if lower_is_better else mean


def _points(data: Batch, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, ...] and labels [N], checked."""
    check_points(data, method)
    return np.asarray(data.x.astype(wide(data.x.dtype))), np.asarray(data.y).argmax(1)


def _deviation(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Deviation from the median of the class, in units of the typical one; inf where not finite."""
    away = np.full(len(values), np.inf)
    finite = np.isfinite(values)
    for label in np.unique(labels[finite]):
        inside = finite & (labels == label)
        away[inside] = values[inside] - np.median(values[inside])
    typical = np.median(np.abs(away[finite])) if finite.any() else 0.0
    return away / max(float(typical), TINY)


def _distances(inputs: np.ndarray, labels: np.ndarray, neighbours: int) -> np.ndarray:
    """Distances [N, neighbours] to the nearest other points of the same class; inf where none."""
    from sklearn.neighbors import NearestNeighbors

    flat = inputs.reshape(len(inputs), -1)
    found = np.full((len(flat), neighbours), np.inf)
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        count = min(neighbours, len(inside) - 1)
        if count:
            near = NearestNeighbors(n_neighbors=count).fit(flat[inside]).kneighbors()[0]
            found[inside, :count] = near
            found[inside, count:] = near[:, -1:]
    return found
