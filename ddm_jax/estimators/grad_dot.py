"""Grad-dot: the first-order effect of one descent step on a group, the plainest baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ddm_jax.compute.compiled import compiled
from ddm_jax.estimators._shared import holds_groups
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.gradients import (
    gradient_products,
    group_batches,
    group_sums,
    make_group_gradients,
    output_changes,
    output_gradients,
)
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun, length


class GradDotState(NamedTuple):
    params: Params
    gradients: Params  # leaves [K, ...]


class PointsState(NamedTuple):
    """Where the groups' gradients are not held."""

    params: Params
    data: Batch
    groups: Groups


def make_along(task: Task) -> Callable[[GradDotState, Batch], Array]:
    """Make `score(state, query) -> [K, Q]`, `-<direction_k, grad output_q>` of any K directions."""

    @compiled
    def score(state: GradDotState, query: Batch) -> Array:
        return -output_changes(task, state.params, query, state.gradients)

    return score


def make_grad_dot(task: Task) -> Estimator:
    """Make the estimator `score[k, q] = -<g_k(theta), grad output_q(theta)>`.

    At the trained network a descent step on group k moves the parameters along `-g_k`; the score
    is the change of the output per unit of that step. Charpiat et al., "Input similarity from
    the neural network perspective", 2019. Computed as one directional derivative of all outputs
    a group, without any gradient of a query; where every point is a group, or K gradients do not
    fit, as products of the points' gradients with the queries', in pieces.
    """
    gradients_of = compiled(make_group_gradients(task))
    along = make_along(task)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> GradDotState | PointsState:
        params = at_least_float32(run.params)
        if not holds_groups(groups, length(data), params):
            return PointsState(params, data, groups)
        return GradDotState(params, gradients_of(params, data, group_batches(groups)))

    @compiled
    def score_points(state: PointsState, query: Batch) -> Array:
        wanted = output_gradients(task, state.params, query)
        products = gradient_products(task.loss, state.params, state.data, wanted)
        return -group_sums(products, state.groups)

    def score(state: GradDotState | PointsState, query: Batch) -> Array:
        return score_points(state, query) if isinstance(state, PointsState) else along(state, query)

    return make_estimator(task, fit, score, method="grad_dot")
