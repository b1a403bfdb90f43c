"""Data values: what a training point is worth as such, whatever is asked.

For every query the same; higher is better data. A group is worth the sum of what its points are
worth more, or less, than the mean point: otherwise its size would decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.gradients import group_sums
from ddm_jax.types import Array, Batch, Estimator, TrainRun


class DataValueState(NamedTuple):
    values: Array  # [K]


def make_data_value(value_points: Callable[[Array, TrainRun, Batch], Array]) -> Estimator:
    """Make an estimator of `value_points(key, run, data) -> [N]`."""

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> DataValueState:
        groups = check_groups(groups, len(data.x))
        values = value_points(key, run, data)
        values = values - jnp.mean(values)
        return DataValueState(group_sums(values, jnp.asarray(groups), int(groups.max()) + 1))

    return Estimator(fit, same_for_every_query)


def check_classes(data: Batch, method: str) -> None:
    """Raise a ValueError where the targets are not a column for each class."""
    if data.y.ndim != 2 or data.y.shape[1] < 2:
        raise ValueError(
            f"{method} compares classes, and these targets have the shape {data.y.shape}, not [N, "
            "C] for C >= 2 classes; for other targets use an estimator of gradients, or triage"
        )


def same_for_every_query(state: DataValueState, query: Batch) -> Array:
    """The `score` of a value: `[K, Q]` with equal columns."""
    return jnp.broadcast_to(state.values[:, None], (len(state.values), len(query.x)))
