"""TracIn: grad-dot along the training trajectory."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.cluster import check_groups
from ddm_jax.gradients import (
    as_params,
    example_gradients,
    gradient_products,
    group_gradient_rows,
    group_sums,
    output_changes,
)
from ddm_jax.matching import GroupBatches, group_batches
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun, take


class TracInState(NamedTuple):
    checkpoints: Params  # leaves [T, ...], those that are used
    learning_rates: Array  # [T]
    data: Batch
    groups: Array  # [N]
    gradients: Array | None  # [T, K, P]; None where the groups are the points


def checkpoint_rates(run: TrainRun) -> Array:
    """The learning rate of the step that led to each kept checkpoint, `[T]`."""
    steps, there = len(run.learning_rates), len(jax.tree.leaves(run.checkpoints)[0])
    # Checkpoint t holds the parameters after step S - (T - 1 - t) e.
    return run.learning_rates[steps - 1 - np.arange(there)[::-1] * (steps // there)]


def make_tracin(task: Task, *, checkpoints: int = 10, output: Output | None = None) -> Estimator:
    """Make the estimator `-sum_t eta_t <g_k(theta_t), grad output_q(theta_t)>` (TracInCP).

    Over kept checkpoints, evenly from the whole trajectory to the trained network, with the
    learning rate at each. Pruthi et al., 2020, arXiv 2002.08484, section 3.2.

    Args:
        checkpoints: T, at least 1; all where fewer are kept.

    Raises:
        ValueError: for fewer than one checkpoint.
    """
    if checkpoints < 1:
        raise ValueError(f"checkpoints={checkpoints}; it must be at least 1")
    explained = task.output if output is None else output

    @jax.jit
    def group_gradients(kept: Params, data: Batch, batches: GroupBatches, like: Array) -> Array:
        return lax.map(
            lambda params: group_gradient_rows(task, params, data, batches, len(like)), kept
        )

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> TracInState:
        groups = check_groups(groups, len(data.x))
        count, there = int(groups.max()) + 1, len(jax.tree.leaves(run.checkpoints)[0])
        number = min(checkpoints, there)
        chosen = there - 1 - np.arange(number)[::-1] * (there // number)
        kept, rates = take(run.checkpoints, chosen), checkpoint_rates(run)[chosen]
        gradients = None
        if count < len(groups):
            batches = group_batches(groups, count)
            gradients = group_gradients(kept, data, batches, jnp.zeros(count))
        return TracInState(kept, rates, data, jnp.asarray(groups), gradients)

    @jax.jit
    def score(state: TracInState, query: Batch) -> Array:
        def at(params: Params, gradients: Array | None) -> Array:
            if gradients is not None:
                return output_changes(explained, params, query, as_params(gradients, params))
            vectors = example_gradients(explained, params, query)
            products = gradient_products(task.loss, params, state.data, vectors)
            return group_sums(products, state.groups, len(state.groups))

        def add(total: Array, point: tuple[Params, Array, Array | None]):
            params, rate, gradients = point
            return total - rate * at(params, gradients), None

        count = len(state.groups) if state.gradients is None else state.gradients.shape[1]
        start = jnp.zeros((count, len(query.x)))
        points = (state.checkpoints, state.learning_rates, state.gradients)
        return lax.scan(add, start, points)[0]

    return Estimator(fit, score)
