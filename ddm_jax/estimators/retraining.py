"""Exact retraining behind the functions of an estimator: the ground truth, at full cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.loo import Response, check_masks, leave_one_out_masks
from ddm_jax.objectives import Output
from ddm_jax.parallel import device_vmap
from ddm_jax.types import Array, Batch, Estimator, Task, TrainRun, take

Train = Callable[[Array, Batch, Array], TrainRun]


class RetrainingState(NamedTuple):
    keys: Array  # [seeds]
    data: Batch
    groups: Array  # [N]
    num_groups: int


class Retraining(NamedTuple):
    """One network to train: which groups it keeps, and its key."""

    keep: Array  # [K]
    key: Array


def retraining_response(train: Train, output: Output) -> Response:
    """Make `response(keep [K], key, data, groups [N], query) -> [Q]` of exact retraining.

    What is left out gets weight zero: the run takes the same number of steps, over the same
    order of the points, and each batch is the mean over what is kept of it.
    """

    def response(keep: Array, key: Array, data: Batch, groups: Array, query: Batch) -> Array:
        return output(train(key, data, keep[groups]).params, query)

    return response


def subset_retraining_response(train: Train, output: Output, size: int) -> Response:
    """Make a retraining response that trains on the `size` kept points alone.

    The subset is a training set of its own, with its own batches and number of steps, as in
    the protocols of TRAK and dattri. Every mask must keep exactly `size` points.
    """

    def response(keep: Array, key: Array, data: Batch, groups: Array, query: Batch) -> Array:
        rows = jnp.flatnonzero(keep[groups] > 0, size=size)
        return output(train(key, take(data, rows), jnp.ones(size)).params, query)

    return response


def retrained_outputs(response: Response, **placement: Any) -> Callable[..., Array]:
    """Make `outputs(masks [B, K], keys [B], data, groups, query) -> [B, Q]`.

    B networks, each with a mask and a key of its own, in one compiled step; `placement` goes to
    `parallel.device_vmap`. Rows with the same key share initialisation and batch order, so the
    difference of a full run and one without a group is a paired effect.
    """

    def one(item: Retraining, data: Batch, groups: Array, query: Batch) -> Array:
        return response(item.keep, item.key, data, groups, query)

    mapped = device_vmap(one, **placement)

    def outputs(masks: Any, keys: Array, data: Batch, groups: Array, query: Batch) -> Array:
        masks = check_masks(masks, masks.shape[-1])
        return mapped(Retraining(masks, keys), data, groups, query)

    return outputs


def make_retraining(
    task: Task,
    train: Train,
    *,
    seeds: int = 1,
    output: Output | None = None,
    response: Response | None = None,
    **placement: Any,
) -> Estimator:
    """Make the estimator that trains `seeds * (K + 1)` networks anew when it is asked.

    `score[k, q]` is the mean over seeds of the paired change `output(train on all) -
    output(train without group k)`, and `outputs(state, masks, query)` the mean over seeds for any
    masks. Seeds and masks run side by side in one compiled step.

    Args:
        seeds: networks a mask, at least 1.
        output: what is explained; default `task.output`.
        response: default `retraining_response(train, output)`.
        placement: for `parallel.device_vmap`: `devices`, `chunk`.

    Raises:
        ValueError: for fewer than one seed.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}; it must be at least 1")
    explained = task.output if output is None else output
    retrain = retrained_outputs(response or retraining_response(train, explained), **placement)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> RetrainingState:
        groups = check_groups(groups, len(data.x))
        count = int(groups.max()) + 1
        return RetrainingState(jax.random.split(key, seeds), data, jnp.asarray(groups), count)

    def outputs(state: RetrainingState, masks: Any, query: Batch) -> Array:
        masks = check_masks(masks, state.num_groups)
        every_mask = jnp.tile(masks, (seeds, 1))
        every_key = jnp.repeat(state.keys, len(masks))
        each = retrain(every_mask, every_key, state.data, state.groups, query)
        return each.reshape(seeds, len(masks), -1).mean(0)

    def score(state: RetrainingState, query: Batch) -> Array:
        kept = outputs(state, leave_one_out_masks(state.num_groups), query)
        return kept[0] - kept[1:]

    return Estimator(fit, score, outputs)
