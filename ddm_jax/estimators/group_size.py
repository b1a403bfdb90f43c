"""Group size: larger groups matter more, whatever is in them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.data_values import DataValueState, same_for_every_query
from ddm_jax.gradients import group_sums
from ddm_jax.types import Array, Batch, Estimator, TrainRun


def make_group_size() -> Estimator:
    """Make the estimator `score[k, q] = |D_k| / N`, the same for every query."""

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> DataValueState:
        groups = check_groups(groups, len(data.x))
        ones = jnp.ones(len(groups))
        return DataValueState(group_sums(ones, jnp.asarray(groups), int(groups.max()) + 1))

    return Estimator(fit, same_for_every_query)
