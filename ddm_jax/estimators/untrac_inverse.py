"""UnTrac-Inv: unlearn the query, and read the groups."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.untrac import make_ascent
from ddm_jax.gradients import group_sums
from ddm_jax.objectives import Output
from ddm_jax.parallel import chunked_vmap
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun


class QueryUpdateState(NamedTuple):
    params: Params
    data: Batch
    groups: Array  # [N]
    like: Array  # [K], for its size


def make_untrac_inverse(
    task: Task,
    *,
    steps: int = 10,
    learning_rate: float = 1e-4,
    optimizer: str = "adam",
    output: Output | None = None,
) -> Estimator:
    """Make the inverse estimator of Isonuma & Titov, 2024, arXiv 2401.15241, eq. 8.

    From the trained network, *descend* on the output of each query, which unlearns it; the
    score is the rise of the group's training loss, `(1/N) sum_{i in D_k} loss_i(theta without q)
    - loss_i(theta)`. One update a query, however many groups there are.

    Args:
        steps: at least 1.
        learning_rate: positive.
        optimizer: "adam" or "sgd".

    Raises:
        ValueError: for a setting out of range.
    """
    return make_query_update(
        task, steps=steps, learning_rate=learning_rate, optimizer=optimizer, output=output, sign=-1
    )


def make_query_update(
    task: Task,
    *,
    steps: int,
    learning_rate: float,
    optimizer: str,
    output: Output | None,
    sign: int,
) -> Estimator:
    """Make an estimator that moves along a query's output, and reads the losses of the points.

    `sign` is 1 to raise the output, which lowers the losses of what helps it, or -1.
    """
    ascend = make_ascent(steps, learning_rate, optimizer)
    explained = task.output if output is None else output

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> QueryUpdateState:
        groups = check_groups(groups, len(data.x))
        like = jnp.zeros(int(groups.max()) + 1)
        return QueryUpdateState(run.params, data, jnp.asarray(groups), like)

    @jax.jit
    def score(state: QueryUpdateState, query: Batch) -> Array:
        before = task.loss(state.params, state.data)

        def one(example: Batch) -> Array:
            alone = jax.tree.map(lambda leaf: leaf[None], example)
            moved = ascend(lambda params, t: sign * explained(params, alone)[0], state.params)
            change = task.loss(moved, state.data) - before
            return group_sums(-sign * change, state.groups, len(state.like))

        return chunked_vmap(one)(query).T

    return Estimator(fit, score)
