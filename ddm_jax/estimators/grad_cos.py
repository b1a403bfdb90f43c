"""Grad-cos: the angle between gradients, blind to their size."""

from __future__ import annotations

from typing import NamedTuple

from ddm_jax.compute.compiled import compiled
from ddm_jax.estimators._shared import unit
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.gradients import group_sums, map_gradients, output_gradients
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun


class GradCosState(NamedTuple):
    params: Params
    data: Batch
    groups: Groups


def make_grad_cos(task: Task) -> Estimator:
    """Make the estimator `-(1/N) sum_{i in D_k} cos(grad loss_i, grad output_q)`.

    Hanawa et al., "Evaluation of similarity-based explanations", 2021, arXiv 2006.04528.
    """

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> GradCosState:
        return GradCosState(at_least_float32(run.params), data, groups)

    @compiled
    def score(state: GradCosState, query: Batch) -> Array:
        of_queries = output_gradients(task, state.params, query, unit)
        cosines = map_gradients(
            lambda rows: unit(rows) @ of_queries.T, task.loss, state.params, state.data
        )
        return -group_sums(cosines, state.groups)

    return make_estimator(task, fit, score, method="grad_cos")
