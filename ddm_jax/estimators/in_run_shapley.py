"""In-Run Data Shapley: what each point's part of each step did to the outputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.estimators.replay import (
    ReplayState,
    check_momentum,
    first_moment,
    fit_replay,
    make_replay_step,
)
from ddm_jax.gradients import example_gradients, flatten
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Params, Task, take


def make_in_run_shapley(
    task: Task,
    *,
    order: int = 1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    every: int = 1,
    output: Output | None = None,
) -> Estimator:
    """Make the estimator of Wang, Mittal, Song & Jia, 2024, arXiv 2406.11011, theorems 3 and 4.

    The run is replayed. In step t a point of the batch moves the parameters by `-eta_t/B
    grad loss_i`, and the Shapley value of its part in the change of the output f is, to first and
    second order in that move,

        phi_i = -eta_t/B <grad f, grad loss_i> + eta_t^2/(2 B^2) grad loss_i^T H_f sum_j grad loss_j

    added up over the steps. At small rates, without momentum and weight decay, the values of
    all points add up to the change of the output over the whole run. With momentum m a step's
    gradients act again in those that follow, so `eta_t` counts 1 / (1 - m) times.

    The products of all examples' gradients with a query's are one matrix product of per-example
    gradients, which holds for any network and needs no forward mode.

    Args:
        order: 1 or 2.
        momentum, weight_decay: of the training run.
        every: ask at every so many steps, at least 1; each stands for those in between.

    Raises:
        ValueError: for a setting out of range.
    """
    check_momentum(momentum)
    if order not in (1, 2):
        raise ValueError(f"order={order}; choose 1 or 2")
    if every < 1:
        raise ValueError(f"every={every}; it must be at least 1")
    explained = task.output if output is None else output
    step = make_replay_step(task, momentum=momentum, weight_decay=weight_decay)

    def of_step(params: Params, rows: Array, rate: Array, data: Batch, query: Batch) -> Array:
        """The part of each row of the batch, `[B, Q]`."""
        valid = (rows >= 0).astype(jnp.float32)
        slopes = example_gradients(task.loss, params, take(data, rows)) * valid[:, None]
        moves = -rate / jnp.maximum(valid.sum(), 1.0) / (1 - momentum) * slopes
        first = moves @ example_gradients(explained, params, query).T
        if order == 1:
            return first
        return first + moves @ _curved(explained, params, query, moves.sum(0)).T / 2

    @jax.jit
    def score(state: ReplayState, query: Batch) -> Array:
        run, data = state.run, state.data
        size = len(data.x)

        def one(carry, item):
            moment, total = carry
            t, rows = item

            def ask(total: Array) -> Array:
                parts = of_step(moment.params, rows, run.learning_rates[t], data, query)
                stands_for = jnp.minimum(every, len(run.rows) - t)  # the last for what is left
                return total.at[state.groups[rows]].add(stands_for * parts)

            total = lax.cond(t % every == 0, ask, lambda total: total, total)
            return (step(moment, t, rows, jnp.ones(size), run, data), total), None

        start = (first_moment(task, run), jnp.zeros((len(state.like), len(query.x))))
        return lax.scan(one, start, (jnp.arange(len(run.rows)), run.rows))[0][1]

    return Estimator(fit_replay, score)


def _curved(explained: Output, params: Params, query: Batch, vector: Array) -> Array:
    """Each output's Hessian times a vector, `[Q, P]`: the gradient of its slope along it."""

    def slope(params: Params, batch: Batch) -> Array:
        def one(example: Batch) -> Array:
            alone = jax.tree.map(lambda leaf: leaf[None], example)
            gradient = jax.grad(lambda p: explained(p, alone)[0])(params)
            return flatten(gradient) @ vector

        return jax.vmap(one)(batch)

    return example_gradients(slope, params, query)
