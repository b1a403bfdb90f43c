"""Metagradients: the exact derivative of outputs along the training weights, through all of SGD."""

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
from ddm_jax.objectives import Output
from ddm_jax.parallel import chunked_vmap
from ddm_jax.types import Array, Batch, Estimator, Task


def make_metagradient(
    task: Task,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    output: Output | None = None,
) -> Estimator:
    """Make the estimator `sum_{i in D_k} d output_q(theta_S) / d w_i` at all weights one.

    `theta_S` is the end of the run, replayed from its own start, batches and rates; the
    derivative is taken by a reverse sweep that recomputes each stretch of about sqrt(S) steps, for
    every query in turn. Engstrom et al., "Optimizing ML training with metagradient descent",
    2025, arXiv 2503.13751.

    It is exact, but of an infinitely small removal. It predicts retraining where training is
    smooth (little removed, a smooth network, a short run) and worse with ReLUs and over long
    runs, where the derivative through many steps explodes.

    Args:
        momentum, weight_decay: of the training run.

    Raises:
        ValueError: for a momentum outside [0, 1).
    """
    check_momentum(momentum)
    explained = task.output if output is None else output
    step = make_replay_step(task, momentum=momentum, weight_decay=weight_decay)

    def final_outputs(sizes: Array, state: ReplayState, query: Batch) -> Array:
        run, data = state.run, state.data
        weights = 1.0 + sizes[state.groups]
        steps = len(run.rows)
        stretch = max(round(steps**0.5), 1)
        first = steps % stretch

        def one(moment, item):
            t, rows = item
            return step(moment, t, rows, weights, run, data), None

        @jax.checkpoint
        def several(moment, items):
            return lax.scan(one, moment, items)[0], None

        times = jnp.arange(steps)
        moment = first_moment(task, run)
        moment, _ = lax.scan(one, moment, (times[:first], run.rows[:first]))
        rest = (
            times[first:].reshape(-1, stretch),
            run.rows[first:].reshape(-1, stretch, run.rows.shape[1]),
        )
        moment, _ = lax.scan(several, moment, rest)
        return explained(moment.params, query)

    @jax.jit
    def score(state: ReplayState, query: Batch) -> Array:
        # A group's weight moves the weights of its points together.
        values, pull = jax.vjp(lambda sizes: final_outputs(sizes, state, query), state.like)
        return chunked_vmap(lambda one: pull(one)[0])(jnp.eye(len(values))).T

    return Estimator(fit_replay, score)
