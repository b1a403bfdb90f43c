"""UnTrac: unlearn each group on its real data, and read the queries."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.checks import check_integer
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import device_vmap
from ddm_jax.estimators._ascent import make_ascent
from ddm_jax.estimators._shared import member_rows
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun, take


class UnTracState(NamedTuple):
    params: Params
    unlearned: Params  # leaves [K, ...]


class _Group(NamedTuple):
    batches: Array  # [steps, B]
    weights: Array  # [B], zero where a batch is filled up
    share: Array  # |D_k| / N


def make_untrac(
    task: Task,
    *,
    steps: int = 10,
    learning_rate: float = 1e-4,
    optimizer: str = "adam",
    batch_size: int = 20,
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
    check_integer("batch_size", batch_size)

    def unlearn(group: _Group, params: Params, data: Batch) -> Params:
        def loss(params: Params, t: Array) -> Array:
            losses = task.loss(params, take(data, group.batches[t]))
            return group.share * (group.weights @ losses / group.weights.sum())

        return ascend(loss, params)

    unlearn_each = device_vmap(unlearn)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> UnTracState:
        sizes = groups.sizes()[:, None]
        place = np.arange(steps * batch_size) % sizes
        batches = np.take_along_axis(member_rows(groups), place, 1)
        # A group of fewer points than a batch is in it once.
        weights = (np.arange(batch_size) < sizes).astype(np.float32)
        each = _Group(
            jnp.asarray(batches.reshape(groups.count, steps, batch_size)),
            jnp.asarray(weights),
            jnp.asarray(sizes[:, 0] / len(groups.ids), jnp.float32),
        )
        params = at_least_float32(run.params)
        return UnTracState(params, unlearn_each(each, params, data))

    @compiled
    def score(state: UnTracState, query: Batch) -> Array:
        before = task.output(state.params, query)
        return before - lax.map(lambda params: task.output(params, query), state.unlearned)

    return make_estimator(task, fit, score, method="untrac")
