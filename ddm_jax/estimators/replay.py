"""The training run, step by step, as a function that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.types import Array, Batch, Params, Task, TrainRun, take


class ReplayState(NamedTuple):
    """What a replay needs, and whose points are whose."""

    run: TrainRun
    data: Batch
    groups: Array  # [N]
    like: Array  # [K], for its size


def fit_replay(key: Array, run: TrainRun, data: Batch, groups: Any) -> ReplayState:
    """The `fit` of an estimator that replays the run when it is asked."""
    groups = check_groups(groups, len(data.x))
    return ReplayState(run, data, jnp.asarray(groups), jnp.zeros(int(groups.max()) + 1))


class Moment(NamedTuple):
    """Parameters and momentum between two steps."""

    params: Params
    trace: Params


def check_momentum(momentum: float) -> None:
    """Raise a ValueError for a momentum outside [0, 1)."""
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum}; it must be in [0, 1)")


def first_moment(task: Task, run: TrainRun) -> Moment:
    """Where `train.Trainer` starts."""
    params = task.init(jax.random.fold_in(run.key, 0))
    return Moment(params, jax.tree.map(jnp.zeros_like, params))


def make_replay_step(
    task: Task, *, momentum: float, weight_decay: float
) -> Callable[[Moment, Array, Array, Array, TrainRun, Batch], Moment]:
    """Make `step(moment, t, rows [B], weights [N], run, data)`: step t as `train` takes it.

    The weighted mean of the batch's losses and the weight decay, heavy-ball momentum, and the
    keys of a random training loss.
    """

    def step(
        moment: Moment, t: Array, rows: Array, weights: Array, run: TrainRun, data: Batch
    ) -> Moment:
        weight = jnp.where(rows >= 0, weights[rows], 0.0)
        weight = weight / jnp.maximum(jnp.sum(weight), 1e-12)
        batch = take(data, rows)

        def objective(params: Params) -> Array:
            if task.training_loss is None:
                return weight @ task.loss(params, batch)
            key = jax.random.fold_in(jax.random.fold_in(run.key, 2), t)
            return weight @ task.training_loss(params, batch, key)

        slope = jax.grad(objective)(moment.params)

        def move(p: Any, g: Any, m: Any) -> Any:
            return g + weight_decay * p + momentum * m

        trace = jax.tree.map(move, moment.params, slope, moment.trace)
        rate = run.learning_rates[t]
        params = jax.tree.map(lambda p, m: p - rate * m, moment.params, trace)
        return Moment(params, trace)

    return step
