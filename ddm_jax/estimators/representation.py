"""Representation similarity: points that look alike to the network."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.data_values import check_classes
from ddm_jax.gradients import group_sums
from ddm_jax.parallel import in_batches
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun


class RepresentationState(NamedTuple):
    params: Params
    features: Array  # [K, C, F], the unit features of each class of each group, added up, over N


def make_representation(task: Task) -> Estimator:
    """Make the estimator `(1/N) sum_{i in D_k} (2 <y_i, y_q> - 1) cos(f(x_i), f(x_q))`.

    f are the penultimate features. Plain similarity takes no side, so points of other classes
    count as harm. Hanawa et al., "Evaluation of similarity-based explanations", 2021, arXiv
    2006.04528. For an output that is larger where the query is told better.

    Raises:
        ValueError: for a task without features.
    """
    features = task_features(task, "representation similarity")
    features_of = in_batches(features)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> RepresentationState:
        groups = check_groups(groups, len(data.x))
        check_classes(data, "representation similarity")
        found = _unit(features_of(run.params, data.x))
        of_class = data.y[:, :, None] * found[:, None, :]
        sums = group_sums(of_class, jnp.asarray(groups), int(groups.max()) + 1)
        return RepresentationState(run.params, sums)

    @jax.jit
    def score(state: RepresentationState, query: Batch) -> Array:
        found = _unit(features(state.params, query.x))
        return jnp.einsum("kcf,qf,qc->kq", state.features, found, 2 * query.y - 1)

    return Estimator(fit, score)


def task_features(task: Task, method: str):
    """The task's features, or a ValueError that says what needs them."""
    if task.features is None:
        raise ValueError(f"{method} needs task.features; this task has none")
    return task.features


def _unit(rows: Array) -> Array:
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
