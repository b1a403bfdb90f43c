"""Modular training and merging: a network for each group, any ablation an average of parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ddm_jax.checks import check_integer, check_number
from ddm_jax.cluster import with_background
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import chunked_vmap, device_vmap
from ddm_jax.estimators._shared import member_rows
from ddm_jax.estimators.contract import joint_estimator
from ddm_jax.masks import check_masks
from ddm_jax.matching import at_least_float32
from ddm_jax.online import trajectory_point
from ddm_jax.train import TrainState, make_step
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun, length


class MergingState(NamedTuple):
    params: Params  # leaves [K, ...], or [K + 1, ...] where there is a background, the last
    share: Array  # [K], |D_k| / N


def make_merging(
    task: Task, *, rewind: float = 0.75, steps: int = 50, learning_rate: float = 0.05
) -> Estimator:
    """Make the estimator that trains a network on each group and averages their parameters.

    All start from a seed network that saw everything for the first part of the training, and
    follow full-batch SGD (Nesterov .9, the run's weight decay) on their own group; the network
    without some groups is the average of the others' parameters, weighted with their sizes. A
    background has a network of its own, which is in every average. Na et
    al., "Scalable data ablation approximations for language models through modular training and
    merging", 2024, arXiv 2410.15661.

    Args:
        rewind: the seed network is the checkpoint this part of the training before its end, in
            [0, 1).
        steps: on each group, at least 1.
        learning_rate: positive.

    Raises:
        ValueError: for a setting out of range.
    """
    check_number("rewind", rewind, least=0, below=1)
    check_integer("steps", steps)
    check_number("learning_rate", learning_rate, above=0)

    def train_on(rows: Array, key: Array, seed: Params, decay: Array, data: Batch) -> Params:
        optimizer = optax.chain(
            optax.add_decayed_weights(decay),
            optax.sgd(learning_rate, momentum=0.9, nesterov=True),
        )
        step, ones = make_step(task, optimizer), jnp.ones(length(data))
        start = TrainState(seed, optimizer.init(seed), jnp.zeros((), jnp.int32), key)
        advance = lambda state, _: step(state, rows, data, ones)  # noqa: E731
        return lax.scan(advance, start, length=steps)[0].params

    train_each = device_vmap(train_on)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> MergingState:
        seed = at_least_float32(trajectory_point(run.checkpoints, rewind))
        rows = jnp.asarray(member_rows(with_background(groups)))
        params = train_each(rows, key, seed, run.weight_decay, data)
        share = groups.shares()
        return MergingState(params, jnp.asarray(share, jnp.float32))

    @compiled
    def merged(state: MergingState, masks: Array, query: Batch) -> Array:
        def one(mask: Array) -> Array:
            kept = jnp.append(mask * state.share, 1 - state.share.sum())[: length(state.params)]
            weights = kept / kept.sum()
            params = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), state.params)
            return task.output(params, query)

        return chunked_vmap(one)(masks)

    def outputs(state: MergingState, masks: Any, query: Batch) -> Array:
        count = len(state.share)
        masks = check_masks(masks, count, background=length(state.params) > count)
        return merged(state, masks, query)

    return joint_estimator(task, fit, outputs, lambda state: len(state.share), method="merging")
