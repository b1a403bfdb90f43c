"""Class fraction: data of the query's class help, and all other data harm."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.data_values import check_classes
from ddm_jax.gradients import group_sums
from ddm_jax.types import Array, Batch, Estimator, TrainRun


class ClassFractionState(NamedTuple):
    fractions: Array  # [K, C] of the training set


def make_class_fraction() -> Estimator:
    """Make the estimator `score[k, q] = (1/N) sum_{i in D_k} (2 <y_i, y_q> - 1)`.

    No network is asked: what it scores is how much of an effect is told by labels and sizes.
    For an output that is larger where the query is told better.
    """

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> ClassFractionState:
        groups = check_groups(groups, len(data.x))
        check_classes(data, "the class fraction")
        return ClassFractionState(group_sums(data.y, jnp.asarray(groups), int(groups.max()) + 1))

    @jax.jit
    def score(state: ClassFractionState, query: Batch) -> Array:
        return 2 * state.fractions @ query.y.T - jnp.sum(state.fractions, 1, keepdims=True)

    return Estimator(fit, score)
