"""Group size: larger groups matter more, whatever is in them."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ddm_jax.checks import count_outputs
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.types import Array, Batch, Estimator, Groups, Task, TrainRun


class GroupSizeState(NamedTuple):
    share: Array  # [K]


def make_group_size(task: Task) -> Estimator:
    """Make the estimator `score[k, q] = |D_k| / N`, the same for every query.

    With its sign turned where `task.lower_is_better`: data help.
    """
    sign = -1 if task.lower_is_better else 1

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> GroupSizeState:
        share = groups.shares()
        return GroupSizeState(jnp.asarray(sign * share, jnp.float32))

    def score(state: GroupSizeState, query: Batch) -> Array:
        return jnp.broadcast_to(
            state.share[:, None], (len(state.share), count_outputs(task, query))
        )

    return make_estimator(task, fit, score, method="group_size")
