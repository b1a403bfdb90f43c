"""UnTrac: unlearn each group on its real data, and read the queries."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.merging import member_rows
from ddm_jax.objectives import Output
from ddm_jax.parallel import device_vmap
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun, take


class UnTracState(NamedTuple):
    params: Params
    unlearned: Params  # leaves [K, ...]


class _Group(NamedTuple):
    batches: Array  # [steps, B]
    weights: Array  # [steps, B]
    share: Array  # |D_k| / N


OPTIMIZERS = ("adam", "sgd")


def make_untrac(
    task: Task,
    *,
    steps: int = 10,
    learning_rate: float = 1e-4,
    optimizer: str = "adam",
    batch_size: int = 20,
    output: Output | None = None,
) -> Estimator:
    """Make the estimator of Isonuma & Titov, "Unlearning traces the influential training data of
    language models", 2024, arXiv 2401.15241, eq. 6.

    From the trained network, ascend on the loss of each group; `score[k, q] = output_q(theta) -
    output_q(theta without k)`. Each step takes a batch of the group's points, in turn. A step of
    SGD is in proportion to the group's share of the data, as its part of the training gradient is;
    Adam's is not.

    Args:
        steps: at least 1.
        learning_rate: positive.
        optimizer: "adam", which the paper finds best, or "sgd".
        batch_size: points of the group a step, at least 1.

    Raises:
        ValueError: for a setting out of range.
    """
    ascend = make_ascent(steps, learning_rate, optimizer)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; it must be at least 1")
    explained = task.output if output is None else output

    def unlearn(group: _Group, params: Params, data: Batch) -> Params:
        def loss(params: Params, t: Array) -> Array:
            weights = group.weights[t]
            mean = weights @ task.loss(params, take(data, group.batches[t])) / weights.sum()
            return group.share * mean

        return ascend(loss, params)

    unlearn_each = device_vmap(unlearn)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> UnTracState:
        groups = check_groups(groups, len(data.x))
        rows, inside = member_rows(groups)
        counts = inside.sum(1).astype(jnp.int32)
        place = (jnp.arange(steps * batch_size) % counts[:, None]).reshape(
            len(counts), steps, batch_size
        )
        batches = jnp.take_along_axis(rows, place.reshape(len(rows), -1), 1).reshape(place.shape)
        # A group of fewer points than a batch is in it once.
        once = jnp.arange(batch_size) < counts[:, None, None]
        weights = jnp.broadcast_to(once, place.shape).astype(jnp.float32)
        each = _Group(batches, weights, counts / len(groups))
        return UnTracState(run.params, unlearn_each(each, run.params, data))

    @jax.jit
    def score(state: UnTracState, query: Batch) -> Array:
        before = explained(state.params, query)
        return before - lax.map(lambda params: explained(params, query), state.unlearned)

    return Estimator(fit, score)


def make_ascent(steps: int, learning_rate: float, optimizer: str):
    """Make `ascend(objective(params, t), params) -> params`.

    Raises:
        ValueError: for no steps, a rate that is not positive, or an unknown optimiser.
    """
    for name, value in (("steps", steps), ("learning_rate", learning_rate)):
        if not value > 0:
            raise ValueError(f"{name}={value}; it must be positive")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
    make = optax.adam if optimizer == "adam" else optax.sgd
    rule = make(learning_rate)

    def ascend(objective, params: Params) -> Params:
        def step(carry, t: Array):
            params, state = carry
            slope = jax.tree.map(jnp.negative, jax.grad(objective)(params, t))
            updates, state = rule.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (params, rule.init(params)), jnp.arange(steps))[0][0]

    return ascend
