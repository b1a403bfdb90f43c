"""Exact retraining behind the functions of an estimator: the ground truth, at full cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.checks import check_integer
from ddm_jax.compute.placement import device_vmap
from ddm_jax.estimators.contract import joint_estimator
from ddm_jax.masks import check_masks, point_weights
from ddm_jax.objectives import Output
from ddm_jax.online import Response
from ddm_jax.train import Train
from ddm_jax.types import Array, Batch, Estimator, Groups, Task, TrainRun, take


class RetrainingState(NamedTuple):
    keys: Array  # [seeds]
    data: Batch
    groups: Groups


class Retraining(NamedTuple):
    """One network to train: which groups it keeps, and its key."""

    keep: Array  # [K]
    key: Array


def retraining_response(train: Train, output: Output) -> Response:
    """Make `response(keep [K], key, data, groups, query) -> [Q]` of exact retraining.

    What is left out gets weight zero: the run takes the same number of steps, over the same
    order of the points, and each batch is the mean over what is kept of it.
    """

    def response(keep: Array, key: Array, data: Batch, groups: Groups, query: Batch) -> Array:
        return output(train(key, data, point_weights(keep, groups)).params, query)

    return response


def subset_retraining_response(train: Train, output: Output, size: int) -> Response:
    """Make a retraining response that trains on the `size` kept points alone.

    The subset is a training set of its own, with its own batches and number of steps, as in
    the protocols of TRAK and dattri. Where a mask keeps fewer points the rest have weight zero;
    where it keeps more, the outputs are NaN.
    """

    def response(keep: Array, key: Array, data: Batch, groups: Groups, query: Batch) -> Array:
        kept = point_weights(keep, groups) > 0
        rows = jnp.flatnonzero(kept, size=size, fill_value=-1)
        params = train(key, take(data, rows), (rows >= 0).astype(jnp.float32)).params
        return jnp.where(kept.sum() > size, jnp.nan, output(params, query))

    return response


def retrained_outputs(response: Response, **placement: Any) -> Callable[..., Array]:
    """Make `outputs(masks [B, K], keys [B], data, groups, query) -> [B, Q]`.

    B networks, each with a mask and a key of its own, in one compiled step; `placement` goes to
    `parallel.device_vmap`. Rows with the same key share initialisation and batch order, so the
    difference of a full run and one without a group is a paired effect.
    """

    def one(item: Retraining, data: Batch, groups: Groups, query: Batch) -> Array:
        return response(item.keep, item.key, data, groups, query)

    mapped = device_vmap(one, **placement)

    def outputs(masks: Any, keys: Array, data: Batch, groups: Groups, query: Batch) -> Array:
        masks = check_masks(masks, groups.count)
        return mapped(Retraining(masks, keys), data, groups, query)

    return outputs


def make_retraining(
    task: Task,
    train: Train,
    *,
    seeds: int = 1,
    response: Response | None = None,
    **placement: Any,
) -> Estimator:
    """Make the estimator that trains `seeds * (K + 1)` networks anew when it is asked.

    `score[k, q]` is the mean over seeds of the paired change `output(train on all) -
    output(train without group k)`, and `outputs(state, masks, query)` the mean over seeds for any
    masks. Seeds and masks run side by side in one compiled step.

    Args:
        seeds: networks a mask, at least 1.
        response: default `retraining_response(train, task.output)`.
        placement: for `compute.placement.device_vmap`: `devices`, `chunk`.

    Raises:
        ValueError: for fewer than one seed.
    """
    check_integer("seeds", seeds)
    retrain = retrained_outputs(response or retraining_response(train, task.output), **placement)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> RetrainingState:
        return RetrainingState(jax.random.split(key, seeds), data, groups)

    def outputs(state: RetrainingState, masks: Any, query: Batch) -> Array:
        masks = check_masks(masks, state.groups.count)
        every_mask = jnp.tile(masks, (seeds, 1))
        every_key = jnp.repeat(state.keys, len(masks))
        each = retrain(every_mask, every_key, state.data, state.groups, query)
        return each.reshape(seeds, len(masks), -1).mean(0)

    return joint_estimator(task, fit, outputs, lambda state: state.groups.count)
