"""Exact retraining behind the functions of an estimator: the ground truth, at full cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax import checkpoints
from ddm_jax.checks import check_integer, is_concrete
from ddm_jax.compute.placement import device_vmap
from ddm_jax.estimators._kept import AnyTrain, Tell, make_kept_networks
from ddm_jax.estimators.contract import joint_estimator
from ddm_jax.masks import check_masks, point_weights
from ddm_jax.objectives import Output
from ddm_jax.online import Response
from ddm_jax.train import Train, params_of
from ddm_jax.types import Array, Batch, Estimator, Groups, Task, TrainRun, take

# What JAX raises where Python looks at the values of what is traced.
UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


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
        return output(params_of(train(key, data, point_weights(keep, groups))), query)

    return response


def subset_retraining_response(train: Train, output: Output, size: int) -> Response:
    """Make a retraining response that trains on the `size` kept points alone.

    The subset is a training set of its own, with its own batches and number of steps, as in
    the protocols of TRAK and dattri. Points have the weights of their groups. Where a mask keeps
    fewer points the rest have weight zero; where it keeps more, the outputs are NaN.
    """

    def response(keep: Array, key: Array, data: Batch, groups: Groups, query: Batch) -> Array:
        weights = point_weights(keep, groups)
        rows = jnp.flatnonzero(weights > 0, size=size, fill_value=-1)
        kept = jnp.where(rows >= 0, weights[rows], 0.0).astype(jnp.float32)
        params = params_of(train(key, take(data, rows), kept))
        return jnp.where(jnp.sum(weights > 0) > size, jnp.nan, output(params, query))

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
        masks = _checked(masks, groups)
        return mapped(Retraining(masks, keys), data, groups, query)

    return outputs


def _checked(masks: Any, groups: Groups) -> Array:
    return check_masks(masks, groups.count, background=bool(groups.background))


def make_retraining(
    task: Task,
    train: AnyTrain,
    *,
    seeds: int = 1,
    response: Response | None = None,
    folder: str | Path | None = None,
    name: str = "train",
    progress: Tell | None = None,
    **placement: Any,
) -> Estimator:
    """Make the estimator that trains `seeds * (K + 1)` networks anew when it is asked.

    `score[k, q]` is the mean over seeds of the paired change `output(train on all) -
    output(train without group k)`, and `outputs(state, masks, query)` the mean over seeds for any
    masks. Seeds and masks run side by side in one compiled step.

    With a `folder` the training may be any Python function, such as a loop over a data loader,
    that JAX cannot trace. It is called as `train(key, data, weights [N])` once a network, with
    weights as a numpy array: 1 for a point that is kept, 0 for one that is gone, and .5 or 2 where
    a mask says so; it returns the parameters, or a `TrainRun`. Each network is written into the
    folder when it is done: what was interrupted goes on where it was, and other queries or another
    output of the same networks cost no training.

    Args:
        train: as `make_train` makes it, or any function where there is a folder.
        seeds: networks a mask, at least 1.
        response: default `retraining_response(train, task.output)`; not with a folder.
        folder: where networks are kept, made where it is not there.
        name: of the training, in a folder: networks of another name are others. Change it when the
            training changes.
        progress: called in a folder as `progress(done, all)` after each network.
        placement: for `compute.placement.device_vmap`: `devices`, `chunk`; not with a folder.

    Raises:
        ValueError: for fewer than one seed, settings that do not go with a folder, or (when it is
            asked) a training that JAX cannot trace without one.
    """
    check_integer("seeds", seeds)
    if folder is not None:
        if response is not None or placement:
            given = ", ".join([*(["response"] if response is not None else []), *placement])
            raise ValueError(
                f"{given}: of networks trained side by side; with folder= they are trained in turn"
            )
        return _kept_retraining(task, train, seeds, Path(folder), name, progress)
    if progress is not None:
        raise ValueError("progress= is told of networks in a folder: pass folder=")
    retrain = retrained_outputs(response or retraining_response(train, task.output), **placement)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> RetrainingState:
        return RetrainingState(jax.random.split(key, seeds), data, groups)

    def outputs(state: RetrainingState, masks: Any, query: Batch) -> Array:
        masks = _checked(masks, state.groups)
        every_mask = jnp.tile(masks, (seeds, 1))
        every_key = jnp.repeat(state.keys, len(masks))
        try:
            each = retrain(every_mask, every_key, state.data, state.groups, query)
        except UNTRACEABLE as error:
            raise ValueError(
                "the training cannot be traced by JAX, as it looks at values in Python: pass "
                "folder=, and its networks are trained one after another and kept there"
            ) from error
        return each.reshape(seeds, len(masks), -1).mean(0)

    return joint_estimator(
        task, fit, outputs, lambda state: state.groups.count, method="retraining"
    )


def _kept_retraining(
    task: Task, train: AnyTrain, seeds: int, folder: Path, name: str, progress: Tell | None
) -> Estimator:
    """Retraining whose networks are trained in turn and kept."""
    checkpoints.check_folder(folder)
    ask = make_kept_networks(task, train, folder, name, *([progress] if progress else []))

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> RetrainingState:
        return RetrainingState(jax.random.split(key, seeds), data, groups)

    def outputs(state: RetrainingState, masks: Any, query: Batch) -> Array:
        masks = _checked(masks, state.groups)
        if not is_concrete((masks, state.data, query)):
            raise ValueError("networks that are kept in a folder cannot be trained under jax.jit")
        weights = np.stack([np.asarray(point_weights(mask, state.groups)) for mask in masks])
        return jnp.asarray(ask(state.keys, state.data, weights, query).mean(0))

    return joint_estimator(
        task, fit, outputs, lambda state: state.groups.count, method="retraining"
    )
