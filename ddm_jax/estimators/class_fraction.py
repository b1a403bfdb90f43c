"""Class fraction: data of the query's class help, and all other data harm."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ddm_jax.checks import require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.estimators.contract import make_estimator, require_queries_alone
from ddm_jax.gradients import group_sums
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Task, TrainRun


class ClassFractionState(NamedTuple):
    fractions: Array  # [K, C] of the training set


def make_class_fraction(task: Task) -> Estimator:
    """Make the estimator `score[k, q] = (1/N) sum_{i in D_k} (2 <y_i, y_q> - 1)`.

    No network is asked: what it scores is how much of an effect is told by labels and sizes. It
    explains being right, with its sign turned where `task.lower_is_better`.

    Raises:
        ValueError: for a task whose targets are no classes.
    """
    require_distributions(task, "class_fraction")
    require_queries_alone(task, "class_fraction")
    sign = -1 if task.lower_is_better else 1

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> ClassFractionState:
        return ClassFractionState(group_sums(at_least_float32(data.y), groups))

    @compiled
    def score(state: ClassFractionState, query: Batch) -> Array:
        total = jnp.sum(state.fractions, 1, keepdims=True)
        return sign * (2 * state.fractions @ query.y.T - total)

    return make_estimator(task, fit, score, method="class_fraction")
