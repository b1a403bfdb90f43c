"""What every estimator checks, and how the joint ones score."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.checks import check_batch, check_loss, check_run, count_outputs, is_concrete
from ddm_jax.cluster import as_groups
from ddm_jax.masks import leave_one_out
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, State, Task, TrainRun, length

Fit = Callable[[Array, TrainRun, Batch, Groups], State]
Score = Callable[[State, Batch], Array]
Outputs = Callable[[State, Any, Batch], Array]


def require_queries_alone(task: Task, method: str) -> None:
    """Refuse a task of sets, for a method that takes each query alone.

    Raises:
        ValueError: for `of_sets=True`.
    """
    if task.of_sets:
        raise ValueError(
            f"{method} takes each query alone, and this task explains sets of them (of_sets=True): "
            "use a method for any output, such as influence_cg, datamodel or retraining"
        )


def make_estimator(
    task: Task, fit: Fit, score: Score, outputs: Outputs | None = None, *, method: str = ""
) -> Estimator:
    """An estimator whose functions check what they are given, before anything compiles.

    `fit` gets `Groups`, and data and a run that fit the task; `score` and `outputs` get a query
    that does. What is being traced is checked by its shapes, and answers to a query that turns out
    not to be finite are NaN. What comes out is at least float32.

    Args:
        method: its name, for what is warned of.

    Raises:
        ValueError: (when they are called) as `checks.check_batch`, `checks.check_loss`,
            `checks.check_run`, `checks.count_outputs` and `cluster.as_groups`.

    Warns:
        UserWarning: of answers that are not finite, and of scores that are all zero.
    """

    def checked_fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> State:
        check_batch(task, data, "data", need=2)
        check_loss(task, data)
        check_run(task, run)
        return fit(key, run, data, as_groups(groups, length(data)))

    def checked_score(state: State, query: Batch) -> Array:
        check_batch(task, query, "the query")
        count_outputs(task, query)
        found = _answer(task, score(state, query), query)
        _look_at(method, found, scores=True)
        return found

    if outputs is None:
        return Estimator(checked_fit, checked_score)

    def checked_outputs(state: State, masks: Any, query: Batch) -> Array:
        check_batch(task, query, "the query")
        count_outputs(task, query)
        found = _answer(task, outputs(state, masks, query), query)
        _look_at(method, found, scores=False)
        return found

    return Estimator(checked_fit, checked_score, checked_outputs)


def _look_at(method: str, found: Array, scores: bool) -> None:
    """Warn of answers that say nothing, by the method's name; not while traced."""
    if not is_concrete(found) or not found.size:
        return
    method, largest = method or "the estimator", float(jnp.max(jnp.abs(found)))
    if not np.isfinite(largest):
        warnings.warn(
            f"{method}: some answers are not finite, since what it computes diverged on this task; "
            "lower its learning rate or its steps, or raise its damping",
            stacklevel=3,
        )
    elif scores and largest == 0:
        warnings.warn(
            f"{method}: all scores are zero: the output has no gradient (as an accuracy or a count "
            "has none), or the points' losses have none; explain a loss or a margin",
            stacklevel=3,
        )


def _answer(task: Task, found: Array, query: Batch) -> Array:
    """Answers `[..., Q]` in float32 at least, NaN where a traced query is not finite."""
    found = at_least_float32(found)
    if is_concrete(query) or task.of_sets:
        return found  # what is not finite has been refused, or has spoilt the sets that it is in
    spoilt = jnp.zeros(length(query), bool)
    for leaf in jax.tree.leaves(query):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            spoilt |= ~jnp.isfinite(leaf).reshape(len(leaf), -1).all(1)
    return jnp.where(spoilt, jnp.nan, found)


def joint_estimator(
    task: Task, fit: Fit, outputs: Outputs, count: Callable[[State], int], *, method: str = ""
) -> Estimator:
    """An estimator of what subsets do together, whose score is their leave-one-out.

    Args:
        count: the number of groups K of a state.
        method: as of `make_estimator`.
    """

    def score(state: State, query: Batch) -> Array:
        def kept(masks: Array) -> Array:
            return at_least_float32(outputs(state, masks, query))

        return leave_one_out(kept, count(state))()

    return make_estimator(task, fit, score, outputs, method=method)
