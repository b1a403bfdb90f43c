"""Metagradients: the exact derivative of outputs along the weights of points, through training."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.checks import is_concrete
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import chunked_vmap
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.estimators.replay import ReplayState, make_replay_fit, replay_start, replay_step
from ddm_jax.masks import point_weights
from ddm_jax.train import TrainState
from ddm_jax.types import Array, Batch, Estimator, Task, TrainRun

SIGNS = ("lion", "sign_sgd", "signum", "rprop")  # whose steps have no slope

EXPLODED = 10.0  # times what the whole training changed in the outputs


def make_metagradient(task: Task) -> Estimator:
    """Make the estimator `sum_{i in D_k} d output_q(theta_S) / d w_i` at all weights one.

    `theta_S` is the end of the run, replayed by its own optimiser from its own start, batches and
    rates; the derivative is taken by a reverse sweep that recomputes each stretch of about sqrt(S)
    steps, for every query in turn. Engstrom et al., "Optimizing ML training with metagradient
    descent", 2025, arXiv 2503.13751.

    It is exact, but of an infinitely small removal. It predicts retraining where training is
    smooth (little removed, a smooth network, a short run) and worse with ReLUs and over long
    runs, where the derivative through many steps explodes.

    Raises:
        ValueError: (in `fit`) for a run without its start, batches or learning rates, or by an
            optimiser that cannot be made from its name, or that follows signs of gradients: their
            derivative is zero.

    Warns:
        UserWarning: of a derivative that has exploded.
    """

    def final_outputs(keep: Array, state: ReplayState, query: Batch) -> Array:
        rows = jnp.asarray(state.run.rows)
        weights = point_weights(keep, state.groups)
        step = replay_step(task, state.run)
        stretch = max(round(len(rows) ** 0.5), 1)
        first = len(rows) % stretch

        def one(moment: TrainState, batch: Array):
            return step(moment, batch, state.data, weights), None

        @jax.checkpoint
        def several(moment: TrainState, batches: Array):
            return lax.scan(one, moment, batches)[0], None

        moment, _ = lax.scan(one, replay_start(task, state.run), rows[:first])
        moment, _ = lax.scan(several, moment, rows[first:].reshape(-1, stretch, rows.shape[1]))
        return task.output(moment.params, query)

    @compiled
    def slopes(state: ReplayState, query: Batch) -> tuple[Array, Array]:
        # A group's weight moves the weights of its points together.
        every = jnp.ones(state.groups.count)
        values, pull = jax.vjp(lambda keep: final_outputs(keep, state, query), every)
        unit = jnp.eye(len(values), dtype=values.dtype)
        found = chunked_vmap(lambda one: pull(one)[0])(unit).T
        learnt = values - task.output(replay_start(task, state.run).params, query)
        return found, jnp.max(jnp.abs(found)) / jnp.maximum(jnp.max(jnp.abs(learnt)), 1e-30)

    def score(state: ReplayState, query: Batch) -> Array:
        found, size = slopes(state, query)
        if is_concrete(size) and float(size) > EXPLODED:
            warnings.warn(
                f"metagradient: the effect of a group is up to {float(size):.0f} times what the "
                "whole training changed, so the derivative through its steps has exploded (Adam's "
                "kind on full batches divides by roots that vanish); use ddm, trak or influence_cg",
                stacklevel=4,
            )
        return found

    fit = make_replay_fit("metagradient", _has_slopes)
    return make_estimator(task, fit, score, method="metagradient")


def _has_slopes(run: TrainRun, method: str) -> None:
    if run.optimizer.name in SIGNS:
        raise ValueError(
            f"{method}: {run.optimizer.name} follows signs of gradients, whose derivative is zero: "
            "use trak or ddm"
        )
