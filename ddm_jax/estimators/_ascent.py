"""What estimators that take a few steps from the trained network share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ddm_jax.checks import check_choice, check_integer, check_number
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import chunked_vmap
from ddm_jax.estimators.contract import make_estimator, require_queries_alone
from ddm_jax.gradients import group_sums
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun

OPTIMIZERS = ("adam", "sgd")

Ascend = Callable[[Callable[[Params, Array], Array], Params], Params]


def make_ascent(steps: int, learning_rate: float, optimizer: str) -> Ascend:
    """Make `ascend(objective(params, t), params) -> params`.

    Raises:
        ValueError: for no steps, a rate that is not positive, or an unknown optimiser.
    """
    check_integer("steps", steps)
    check_number("learning_rate", learning_rate, above=0)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    make = optax.adam if optimizer == "adam" else optax.sgd
    rule = make(learning_rate)

    def ascend(objective: Callable[[Params, Array], Array], params: Params) -> Params:
        def step(carry, t: Array):
            params, state = carry
            slope = jax.tree.map(jnp.negative, jax.grad(objective)(params, t))
            updates, state = rule.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (params, rule.init(params)), jnp.arange(steps))[0][0]

    return ascend


class QueryUpdateState(NamedTuple):
    params: Params
    data: Batch
    groups: Groups


def make_query_update(
    task: Task, *, steps: int, learning_rate: float, optimizer: str, sign: int, method: str
) -> Estimator:
    """Make an estimator that moves along a query's output, and reads the losses of the points.

    `sign` is 1 to raise the output, which lowers the losses of what helps it, or -1.

    Raises:
        ValueError: for a setting out of range, or a task of sets.
    """
    require_queries_alone(task, method)
    ascend = make_ascent(steps, learning_rate, optimizer)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> QueryUpdateState:
        return QueryUpdateState(at_least_float32(run.params), data, groups)

    @compiled
    def score(state: QueryUpdateState, query: Batch) -> Array:
        before = task.loss(state.params, state.data)

        def one(example: Batch) -> Array:
            alone = jax.tree.map(lambda leaf: leaf[None], example)
            moved = ascend(lambda params, t: sign * task.output(params, alone)[0], state.params)
            change = task.loss(moved, state.data) - before
            return group_sums(-sign * change, state.groups)

        return chunked_vmap(one)(query).T

    return make_estimator(task, fit, score, method=method)
