"""In-Run Data Shapley: what each point's part of each step did to the outputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.checks import check_integer
from ddm_jax.compute.compiled import compiled
from ddm_jax.estimators._shared import require_plain_sgd
from ddm_jax.estimators.contract import make_estimator, require_queries_alone
from ddm_jax.estimators.replay import ReplayState, make_replay_fit, replay_start, replay_step
from ddm_jax.gradients import example_gradients, flatten, output_gradients
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Params, Task, length, take


def make_in_run_shapley(task: Task, *, order: int = 1, every: int = 1) -> Estimator:
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
        every: ask at every so many steps, at least 1; each stands for those in between.

    It holds for SGD, whose steps are gradients times a rate.

    Raises:
        ValueError: for a setting out of range, or (in `fit`) a run by another optimiser, or without
            its start, batches and learning rates.
    """
    check_integer("order", order, 1, 2)
    check_integer("every", every)
    if order == 2:
        require_queries_alone(task, "in_run_shapley of order 2")

    def of_step(params: Params, rows: Array, rate: Array, data: Batch, query: Batch) -> Array:
        """The part of each row of the batch, `[B, Q]`."""
        valid = rows >= 0
        slopes = example_gradients(task.loss, params, take(data, rows)) * valid[:, None]
        moves = -rate / jnp.maximum(jnp.sum(valid), 1) * slopes
        first = moves @ output_gradients(task, params, query).T
        if order == 1:
            return first
        return first + moves @ _curved(task.output, params, query, moves.sum(0)).T / 2

    @compiled
    def score(state: ReplayState, query: Batch) -> Array:
        run, data, groups = state
        step, ids = replay_step(task, run), jnp.asarray(groups.ids)
        ids = jnp.where(ids < 0, groups.count, ids)  # the background is out of range, and dropped
        steps, ones = length(run.rows), jnp.ones(length(data))
        rates = run.learning_rates / (1 - run.optimizer.get("momentum", 0.0))

        def one(carry, rows: Array):
            moment, total = carry

            def ask(total: Array) -> Array:
                parts = of_step(moment.params, rows, rates[moment.step], data, query)
                stands_for = jnp.minimum(every, steps - moment.step)  # the last for what is left
                return total.at[ids[rows]].add((stands_for * parts).astype(total.dtype))

            total = lax.cond(moment.step % every == 0, ask, lambda total: total, total)
            return (step(moment, rows, data, ones), total), None

        begin = replay_start(task, run)
        asked = jax.eval_shape(task.output, begin.params, query).shape[0]
        total = jnp.zeros((groups.count, asked), flatten(begin.params).dtype)
        return lax.scan(one, (begin, total), run.rows)[0][1]

    fit = make_replay_fit("in_run_shapley", require_plain_sgd)
    return make_estimator(task, fit, score, method="in_run_shapley")


def _curved(output: Output, params: Params, query: Batch, vector: Array) -> Array:
    """Each output's Hessian times a vector, `[Q, P]`: the gradient of its slope along it."""

    def slope(params: Params, batch: Batch) -> Array:
        def one(example: Batch) -> Array:
            alone = jax.tree.map(lambda leaf: leaf[None], example)
            gradient = jax.grad(lambda p: output(p, alone)[0])(params)
            return flatten(gradient) @ vector

        return jax.vmap(one)(batch)

    return example_gradients(slope, params, query)
