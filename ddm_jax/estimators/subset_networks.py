"""Networks trained on random subsets of the groups, kept to be asked any query."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ddm_jax.checks import check_integer
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import chunked_vmap, device_vmap
from ddm_jax.estimators.contract import Fit, make_estimator
from ddm_jax.masks import point_weights, random_masks
from ddm_jax.objectives import Output
from ddm_jax.train import Train, params_of
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun


class SubsetNetworks(NamedTuple):
    masks: Array  # [R, K]
    params: Params  # leaves [R, ...]


class _Item(NamedTuple):
    mask: Array
    key: Array


def make_subset_networks(train: Train, masks_of: Callable[[Array, int], Array]) -> Fit:
    """Make the `fit` of an estimator that trains a network on each mask of `masks_of(key, K)`.

    All of them side by side (`compute.placement.device_vmap`), each with a key of its own.
    """

    def one(item: _Item, data: Batch, groups: Groups) -> Params:
        return params_of(train(item.key, data, point_weights(item.mask, groups)))

    every = device_vmap(one)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> SubsetNetworks:
        mask_key, train_key = jax.random.split(key)
        # Groups are drawn in the order in which they first appear, whatever their numbers are.
        ids = np.asarray(groups.ids)
        order = np.argsort(np.unique(ids[ids >= 0], return_index=True)[1])
        masks = masks_of(mask_key, len(order))[:, np.argsort(order)]
        items = _Item(masks, jax.random.split(train_key, len(masks)))
        return SubsetNetworks(masks, every(items, data, groups))

    return fit


def make_subset_estimator(
    task: Task,
    train: Train,
    regress: Callable[[Array, Array], Array],
    *,
    subsets: int,
    method: str,
) -> Estimator:
    """Make an estimator from `regress(masks [R, K], outputs [R, Q]) -> scores [K, Q]`.

    Over networks trained on random halves of the groups.

    Raises:
        ValueError: for fewer than two subsets.
    """
    check_integer("subsets", subsets, 2)
    fit = make_subset_networks(train, lambda key, count: random_masks(key, subsets, count))

    @compiled
    def score(state: SubsetNetworks, query: Batch) -> Array:
        return regress(state.masks, network_outputs(task.output, state.params, query))

    return make_estimator(task, fit, score, method=method)


def network_outputs(explained: Output, params: Params, query: Batch) -> Array:
    """Outputs `[R, Q]` of R networks, leaves `[R, ...]`."""
    return chunked_vmap(lambda one: explained(one, query))(params)
