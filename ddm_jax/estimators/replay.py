"""The training run, step by step, as a function that can be differentiated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from ddm_jax.checks import is_concrete
from ddm_jax.estimators._shared import require
from ddm_jax.estimators.contract import Fit
from ddm_jax.matching import at_least_float32
from ddm_jax.optimizers import setting, transformation
from ddm_jax.train import TrainState, make_step, start_state
from ddm_jax.types import Array, Batch, Groups, Optimizer, Task, TrainRun, length

# Added to Adam's squares before their root is taken: its slope at zero is infinite, and a parameter
# whose gradients are all zero would have a derivative of NaN. Against `eps`, 1e-8, it is nothing.
ROOT = 1e-30


class ReplayState(NamedTuple):
    """What a replay needs, and whose points are whose."""

    run: TrainRun
    data: Batch
    groups: Groups


def make_replay_fit(method: str, holds: Callable[[TrainRun, str], None]) -> Fit:
    """Make the `fit` of an estimator that replays the run when it is asked.

    Args:
        holds: raises where the method does not hold for a run.
    """

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> ReplayState:
        if run.optimizer.own:
            raise ValueError(
                f"{method} takes the run's steps again, and the optimiser {run.optimizer.name!r} "
                "is its user's own: train with one by its name in optax, or use trak or ddm"
            )
        holds(run, method)
        for part in ("start", "rows", "learning_rates"):
            require(run, part, method)
        last = int(np.asarray(run.rows).max()) if is_concrete(run.rows) else 0
        if last >= length(data):
            raise ValueError(
                f"{method}: the run's rows go to {last}, and there are {length(data)} "
                "training points; give the data that it was trained on"
            )
        return ReplayState(run, data, groups)

    return fit


def replay_start(task: Task, run: TrainRun) -> TrainState:
    """Where the run began, in at least float32: a derivative through many steps must not round."""
    return start_state(task, _optimizer(run), run.key, at_least_float32(run.start))


def replay_step(task: Task, run: TrainRun) -> Callable[..., TrainState]:
    """Make `step(state, rows [B], data, weights [N]) -> state`: the run's own training step."""
    step = make_step(task, _optimizer(run))
    return lambda state, rows, data, weights: step(state, rows, data, weights)[0]


def _optimizer(run: TrainRun) -> optax.GradientTransformation:
    """The run's optimiser with the rates that were recorded, as a smooth function of gradients."""
    spec, rates = run.optimizer, jnp.asarray(run.learning_rates)

    def rate(update: Any) -> Array:
        return rates[update * spec.accumulate if spec.accumulate > 1 else update]

    return transformation(_smooth(spec), rate, run.weight_decay)


def _smooth(spec: Optimizer) -> Optimizer:
    if setting(spec, "eps_root") != 0:  # none, or what was chosen
        return spec
    chosen = dict(spec.settings) | {"eps_root": ROOT}
    return dataclasses.replace(spec, settings=tuple(sorted(chosen.items())))
