"""Grad-cos: the angle between gradients, blind to their size."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.gradients import example_gradients, group_sums, map_gradients
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun


class GradCosState(NamedTuple):
    params: Params
    data: Batch
    groups: Array  # [N]
    like: Array  # [K], for its size


def make_grad_cos(task: Task, *, output: Output | None = None) -> Estimator:
    """Make the estimator `-(1/N) sum_{i in D_k} cos(grad loss_i, grad output_q)`.

    Hanawa et al., "Evaluation of similarity-based explanations", 2021, arXiv 2006.04528.
    """
    explained = task.output if output is None else output

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> GradCosState:
        groups = check_groups(groups, len(data.x))
        like = jnp.zeros(int(groups.max()) + 1)
        return GradCosState(run.params, data, jnp.asarray(groups), like)

    @jax.jit
    def score(state: GradCosState, query: Batch) -> Array:
        of_queries = _unit(example_gradients(explained, state.params, query))
        cosines = map_gradients(
            lambda rows: _unit(rows) @ of_queries.T, task.loss, state.params, state.data
        )
        return -group_sums(cosines, state.groups, len(state.like))

    return Estimator(fit, score)


def _unit(rows: Array) -> Array:
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
