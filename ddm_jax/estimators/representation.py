"""Representation similarity: points that look alike to the network."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ddm_jax.checks import require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import in_batches
from ddm_jax.estimators._shared import task_features, unit
from ddm_jax.estimators.contract import make_estimator, require_queries_alone
from ddm_jax.gradients import group_sums
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun


class RepresentationState(NamedTuple):
    params: Params
    features: Array  # [K, C, F], the unit features of each class of each group, added up, over N


def make_representation(task: Task) -> Estimator:
    """Make the estimator `(1/N) sum_{i in D_k} (2 <y_i, y_q> - 1) cos(f(x_i), f(x_q))`.

    f are the penultimate features. Plain similarity takes no side, so points of other classes
    count as harm. Hanawa et al., "Evaluation of similarity-based explanations", 2021, arXiv
    2006.04528. It explains being right, with its sign turned where `task.lower_is_better`.

    Raises:
        ValueError: for a task without features, or whose targets are no classes.
    """
    require_distributions(task, "representation")
    require_queries_alone(task, "representation")
    features = task_features(task, "representation")
    features_of = in_batches(features)
    sign = -1 if task.lower_is_better else 1

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> RepresentationState:
        params = at_least_float32(run.params)
        found = unit(features_of(params, data.x))
        of_class = data.y[:, :, None] * found[:, None, :]
        return RepresentationState(params, sign * group_sums(of_class, groups))

    @compiled
    def score(state: RepresentationState, query: Batch) -> Array:
        found = unit(features(state.params, query.x))
        return jnp.einsum("kcf,qf,qc->kq", state.features, found, 2 * query.y - 1)

    return make_estimator(task, fit, score, method="representation")
