"""The training run, step by step, as a function that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import optax

from ddm_jax.matching import at_least_float32
from ddm_jax.train import TrainState, make_step, sgd, start_state
from ddm_jax.types import Array, Batch, Groups, Task, TrainRun


class ReplayState(NamedTuple):
    """What a replay needs, and whose points are whose."""

    run: TrainRun
    data: Batch
    groups: Groups


def fit_replay(key: Array, run: TrainRun, data: Batch, groups: Groups) -> ReplayState:
    """The `fit` of an estimator that replays the run when it is asked."""
    return ReplayState(run, data, groups)


def replay_start(task: Task, run: TrainRun) -> TrainState:
    """Where the run began, in at least float32: a derivative through many steps must not round."""
    wide = task._replace(init=lambda key: at_least_float32(task.init(key)))
    return start_state(wide, _optimizer(run), run.key)


def replay_step(task: Task, run: TrainRun) -> Callable[..., TrainState]:
    """Make `step(state, rows [B], data, weights [N]) -> state`: the run's own training step."""
    step = make_step(task, _optimizer(run))
    return lambda state, rows, data, weights: step(state, rows, data, weights)[0]


def _optimizer(run: TrainRun) -> optax.GradientTransformation:
    return sgd(lambda count: run.learning_rates[count], run.momentum, run.weight_decay)
