"""Grad-dot: the first-order effect of one descent step on a group, the plainest baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ddm_jax.compute.compiled import compiled
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.gradients import group_batches, make_group_gradients, output_changes
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun


class GradDotState(NamedTuple):
    params: Params
    gradients: Params  # leaves [K, ...]


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
    a group, without any gradient of a query.
    """
    gradients_of = compiled(make_group_gradients(task))

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> GradDotState:
        params = at_least_float32(run.params)
        return GradDotState(params, gradients_of(params, data, group_batches(groups)))

    return make_estimator(task, fit, make_along(task), method="grad_dot")
