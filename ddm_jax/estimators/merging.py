"""Modular training and merging: a network for each group, any ablation an average of parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ddm_jax.cluster import check_groups
from ddm_jax.loo import check_masks, check_rewind, leave_one_out_masks, trajectory_point
from ddm_jax.objectives import Output
from ddm_jax.parallel import chunked_vmap, device_vmap
from ddm_jax.pieces import value_and_gradient
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun, take


class MergingState(NamedTuple):
    params: Params  # leaves [K, ...]
    share: Array  # [K], |D_k| / N


class _Group(NamedTuple):
    rows: Array  # [R], its points, filled up
    weights: Array  # [R], zero where filled up


def make_merging(
    task: Task,
    *,
    rewind: float = 0.75,
    steps: int = 50,
    learning_rate: float = 0.05,
    weight_decay: float = 0.0,
    output: Output | None = None,
) -> Estimator:
    """Make the estimator that trains a network on each group and averages their parameters.

    All start from a seed network that saw everything for the first part of the training, and
    follow full-batch SGD (Nesterov .9) on their own group; the network without some groups is the
    average of the others' parameters, weighted with their sizes. Na et al., "Scalable data
    ablation approximations for language models through modular training and merging", 2024,
    arXiv 2410.15661.

    Args:
        rewind: the seed network is the checkpoint this part of the training before its end.
        steps: on each group, at least 1.
        learning_rate: positive.
        weight_decay: of the training objective.

    Raises:
        ValueError: for a setting out of range.
    """
    check_rewind(rewind)
    for name, value in (("steps", steps), ("learning_rate", learning_rate)):
        if not value > 0:
            raise ValueError(f"{name}={value}; it must be positive")
    explained = task.output if output is None else output
    of_losses = value_and_gradient(
        lambda params, batch, weights: weights @ task.loss(params, batch)
    )
    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=0.9, nesterov=True),
    )

    def train_on(group: _Group, seed: Params, data: Batch) -> Params:
        batch = take(data, group.rows)

        def step(carry, _):
            params, state = carry
            _, slope = of_losses(params, batch, group.weights)
            updates, state = optimizer.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (seed, optimizer.init(seed)), length=steps)[0][0]

    train_each = device_vmap(train_on)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> MergingState:
        groups = check_groups(groups, len(data.x))
        rows, weights = member_rows(groups)
        each = _Group(rows, weights / weights.sum(1, keepdims=True))
        seed = trajectory_point(run.checkpoints, rewind)
        return MergingState(train_each(each, seed, data), weights.sum(1) / len(groups))

    @jax.jit
    def merged(state: MergingState, masks: Array, query: Batch) -> Array:
        def one(mask: Array) -> Array:
            weights = mask * state.share / (mask @ state.share)
            params = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), state.params)
            return explained(params, query)

        return chunked_vmap(one)(masks)

    def outputs(state: MergingState, masks: Any, query: Batch) -> Array:
        return merged(state, check_masks(masks, len(state.share)), query)

    def score(state: MergingState, query: Batch) -> Array:
        kept = merged(state, leave_one_out_masks(len(state.share)), query)
        return kept[0] - kept[1:]

    return Estimator(fit, score, outputs)


def member_rows(groups: Any) -> tuple[Array, Array]:
    """The rows of each group, `[K, R]` for the largest group's R, and 1 where they are its own.

    Smaller groups are filled up with their first row.
    """
    groups = jnp.asarray(groups)
    counts = jnp.bincount(groups)
    order = jnp.argsort(groups, stable=True)
    starts = jnp.cumsum(counts) - counts
    place = jnp.arange(int(counts.max()))
    inside = place < counts[:, None]
    return order[starts[:, None] + jnp.where(inside, place, 0)], inside.astype(jnp.float32)
