"""What every estimator checks, and how the joint ones score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddm_jax.checks import check_batch, check_run, is_concrete
from ddm_jax.cluster import as_groups
from ddm_jax.masks import leave_one_out
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, State, Task, TrainRun, length

Fit = Callable[[Array, TrainRun, Batch, Groups], State]
Score = Callable[[State, Batch], Array]
Outputs = Callable[[State, Any, Batch], Array]


def make_estimator(task: Task, fit: Fit, score: Score, outputs: Outputs | None = None) -> Estimator:
    """An estimator whose functions check what they are given, before anything compiles.

    `fit` gets `Groups`, and data and a run that fit the task; `score` and `outputs` get a query
    that does. What is being traced is checked by its shapes, and answers to a query that turns out
    not to be finite are NaN. What comes out is at least float32.

    Raises:
        ValueError: (when they are called) as `checks.check_batch`, `checks.check_run` and
            `cluster.as_groups`.
    """

    def checked_fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> State:
        check_batch(task, data, "data", need=2)
        check_run(task, run)
        return fit(key, run, data, as_groups(groups, length(data)))

    def checked_score(state: State, query: Batch) -> Array:
        check_batch(task, query, "the query")
        return _answer(score(state, query), query)

    if outputs is None:
        return Estimator(checked_fit, checked_score)

    def checked_outputs(state: State, masks: Any, query: Batch) -> Array:
        check_batch(task, query, "the query")
        return _answer(outputs(state, masks, query), query)

    return Estimator(checked_fit, checked_score, checked_outputs)


def _answer(found: Array, query: Batch) -> Array:
    """Answers `[..., Q]` in float32 at least, NaN where a traced query is not finite."""
    found = at_least_float32(found)
    if is_concrete(query) or found.shape[-1] != length(query):
        return found  # what is not finite has been refused, or has spoilt the one answer to all
    spoilt = jnp.zeros(length(query), bool)
    for leaf in jax.tree.leaves(query):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            spoilt |= ~jnp.isfinite(leaf).reshape(len(leaf), -1).all(1)
    return jnp.where(spoilt, jnp.nan, found)


def joint_estimator(
    task: Task, fit: Fit, outputs: Outputs, count: Callable[[State], int]
) -> Estimator:
    """An estimator of what subsets do together, whose score is their leave-one-out.

    Args:
        count: the number of groups K of a state.
    """

    def score(state: State, query: Batch) -> Array:
        def kept(masks: Array) -> Array:
            return at_least_float32(outputs(state, masks, query))

        return leave_one_out(kept, count(state))()

    return make_estimator(task, fit, score, outputs)
