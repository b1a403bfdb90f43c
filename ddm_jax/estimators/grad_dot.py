"""Grad-dot: the first-order effect of one descent step on a group, the plainest baseline."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from ddm_jax.cluster import check_groups
from ddm_jax.matching import group_batches, make_group_gradients
from ddm_jax.objectives import Output, output_change
from ddm_jax.parallel import chunked_vmap
from ddm_jax.pieces import bytes_an_example, map_pieces, piece_size
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
        def of_queries(query: Batch) -> Array:
            change = output_change(lambda params: explained(params, query), state.params)
            return -chunked_vmap(change)(state.gradients).T

        count = len(query.x)
        if jax.eval_shape(explained, state.params, query).shape != (count,):
            return of_queries(query).T  # one output of all queries, such as an accuracy
        kept = bytes_an_example(lambda p, batch, w: w @ explained(p, batch), state.params, query)
        return map_pieces(of_queries, query, piece_size(count, kept)).T

    return Estimator(fit, score)
