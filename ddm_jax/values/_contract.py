"""What every data value checks, and how values of points become scores of groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ddm_jax.checks import check_batch, check_loss, check_run, count_outputs, is_concrete
from ddm_jax.estimators._shared import flat_inputs
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.gradients import group_sums, wide
from ddm_jax.types import Array, Batch, Estimator, Groups, Leaf, Task, TrainRun

Values = Callable[[Array, TrainRun, Batch], Leaf]  # key, run, data -> [N]


class DataValueState(NamedTuple):
    values: Array  # [K]


def make_values(task: Task, values: Values, need: int = 1) -> Values:
    """Values that ask the network, with a run and at least `need` points that fit the task.

    Raises:
        ValueError: (when they are called) as `checks.check_batch`, `checks.check_loss` and
            `checks.check_run`.
    """

    def checked(key: Array, run: TrainRun, data: Batch) -> Leaf:
        check_batch(task, data, need=need)
        check_loss(task, data)
        check_run(task, run)
        return values(key, run, data)

    return checked


def check_points(data: Batch, method: str, need: int = 1) -> None:
    """Check points of classes for values that ask no network: any inputs that are numbers will do.

    Raises:
        ValueError: for inputs that are not one array, fewer than `need` points, targets that are
            not `[N, C]` for two classes or more, or inputs that are not finite.
    """
    flat_inputs(data.x, method)
    size, shape = len(data.x), np.shape(data.y)
    if size < need or len(shape) != 2 or shape[0] != size or shape[1] < 2:
        raise ValueError(
            f"{size} points with targets of shape {shape}; at least {need} are needed, with "
            "targets [N, C] of at least two classes"
        )
    if is_concrete(data.x):
        wrong = np.flatnonzero(~np.isfinite(np.asarray(data.x).reshape(size, -1)).all(1))
        if wrong.size:
            raise ValueError(f"{wrong.size} points hold NaN or infinity, the first is {wrong[0]}")


def make_value_estimator(task: Task, values: Values) -> Estimator:
    """Make an estimator of data values: what a training point is worth as such, whatever is asked.

    A group is worth the sum, over N, of what its points are worth more, or less, than the mean
    point (otherwise its size would decide): for every query the same, with the sign turned where
    `task.lower_is_better`.
    """
    sign = -1 if task.lower_is_better else 1

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> DataValueState:
        found = jnp.asarray(values(key, run, data))
        found = found.astype(wide(found.dtype))
        return DataValueState(sign * group_sums(found - jnp.mean(found), groups))

    def score(state: DataValueState, query: Batch) -> Array:
        return jnp.broadcast_to(
            state.values[:, None], (len(state.values), count_outputs(task, query))
        )

    return make_estimator(task, fit, score)
