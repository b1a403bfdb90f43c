"""Grad-dot: the first-order effect of one descent step on a group, the plainest baseline."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from ddm_jax.cluster import check_groups
from ddm_jax.gradients import output_changes
from ddm_jax.matching import group_batches, make_group_gradients
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun


class GradDotState(NamedTuple):
    params: Params
    gradients: Params  # leaves [K, ...]


def make_grad_dot(task: Task, output: Output | None = None) -> Estimator:
    """Make the estimator `score[k, q] = -<g_k(theta), grad output_q(theta)>`.

    At the trained network a descent step on group k moves the parameters along `-g_k`; the score
    is the change of the output per unit of that step. Charpiat et al., "Input similarity from
    the neural network perspective", 2019. Computed as one directional derivative of all outputs
    a group, without any gradient of a query.
    """
    explained = task.output if output is None else output

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> GradDotState:
        groups = check_groups(groups, len(data.x))
        count = int(groups.max()) + 1
        gradients = jax.jit(make_group_gradients(task, count))(
            run.params, data, group_batches(groups, count)
        )
        return GradDotState(run.params, gradients)

    @jax.jit
    def score(state: GradDotState, query: Batch) -> Array:
        return -output_changes(explained, state.params, query, state.gradients)

    return Estimator(fit, score)
