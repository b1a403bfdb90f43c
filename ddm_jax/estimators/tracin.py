"""TracIn: grad-dot along the training trajectory."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.checks import check_integer
from ddm_jax.compute.compiled import compiled
from ddm_jax.estimators._shared import holds_groups, require, require_plain_sgd, sum_over
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.gradients import (
    GroupBatches,
    as_params,
    gradient_products,
    group_batches,
    group_gradient_rows,
    group_sums,
    output_changes,
    output_gradients,
)
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun, length, take


class TracInState(NamedTuple):
    checkpoints: Params  # leaves [T, ...], those that are used
    learning_rates: Array  # [T]
    data: Batch
    groups: Groups
    gradients: Array | None  # [T, K, P]; None where they are not held


def checkpoint_rates(run: TrainRun, method: str = "tracin") -> Array:
    """The learning rate of the step that led to each kept checkpoint, `[T]`.

    Of parameters that no step led to, those of the start, the first step's.

    Raises:
        ValueError: for a run that does not know its rates or steps, or whose steps are not SGD's.
    """
    require_plain_sgd(run, method)
    rates, steps = require(run, "learning_rates", method), require(run, "steps", method)
    return jnp.asarray(rates)[jnp.maximum(jnp.asarray(steps) - 1, 0)]


def make_tracin(task: Task, *, checkpoints: int = 10) -> Estimator:
    """Make the estimator `-sum_t eta_t <g_k(theta_t), grad output_q(theta_t)>` (TracInCP).

    Over kept checkpoints, evenly from the whole trajectory to the trained network, with the
    learning rate of the step that led to each. Pruthi et al., 2020, arXiv 2002.08484, section 3.2.

    Args:
        checkpoints: T, at least 1; all where fewer are kept.

    It holds for SGD, whose steps are gradients times a rate.

    Raises:
        ValueError: for fewer than one checkpoint, or (in `fit`) a run by another optimiser, or
            without its steps and learning rates.
    """
    check_integer("checkpoints", checkpoints)

    @compiled
    def group_gradients(kept: Params, data: Batch, batches: GroupBatches) -> Array:
        return lax.map(lambda params: group_gradient_rows(task, params, data, batches), kept)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> TracInState:
        there = length(run.checkpoints)
        number = min(checkpoints, there)
        chosen = there - 1 - np.arange(number)[::-1] * (there // number)
        kept = at_least_float32(take(run.checkpoints, chosen))
        rates = checkpoint_rates(run)[chosen]
        gradients = None
        if holds_groups(groups, length(data), run.params, number):
            gradients = group_gradients(kept, data, group_batches(groups))
        return TracInState(kept, rates, data, groups, gradients)

    @compiled
    def score(state: TracInState, query: Batch) -> Array:
        def at(point: tuple[Params, Array, Array | None]) -> Array:
            params, rate, gradients = point
            if gradients is not None:
                directions = as_params(gradients, params)
                return rate * output_changes(task, params, query, directions)
            vectors = output_gradients(task, params, query)
            products = gradient_products(task.loss, params, state.data, vectors)
            return rate * group_sums(products, state.groups)

        return -sum_over(at, (state.checkpoints, state.learning_rates, state.gradients))

    return make_estimator(task, fit, score, method="tracin")
