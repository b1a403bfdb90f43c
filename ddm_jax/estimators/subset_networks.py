"""Networks trained on random subsets of the groups, kept to be asked any query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.retraining import Train
from ddm_jax.loo import random_masks
from ddm_jax.objectives import Output
from ddm_jax.parallel import chunked_vmap, device_vmap
from ddm_jax.types import Array, Batch, Estimator, Params, TrainRun


class SubsetNetworks(NamedTuple):
    masks: Array  # [R, K]
    params: Params  # leaves [R, ...]


class _Item(NamedTuple):
    mask: Array
    key: Array


def make_subset_networks(
    train: Train, masks_of: Callable[[Array, int], Array]
) -> Callable[..., SubsetNetworks]:
    """Make the `fit` of an estimator that trains a network on each mask of `masks_of(key, K)`.

    All of them side by side (`parallel.device_vmap`), each with a key of its own.
    """

    def one(item: _Item, data: Batch, groups: Array) -> Params:
        return train(item.key, data, item.mask[groups]).params

    every = device_vmap(one)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> SubsetNetworks:
        groups = check_groups(groups, len(data.x))
        mask_key, train_key = jax.random.split(key)
        # Groups are drawn in the order in which they first appear, whatever their numbers are.
        order = np.argsort(np.unique(groups, return_index=True)[1])
        masks = masks_of(mask_key, len(order))[:, np.argsort(order)]
        items = _Item(masks, jax.random.split(train_key, len(masks)))
        return SubsetNetworks(masks, every(items, data, jnp.asarray(groups)))

    return fit


def make_subset_estimator(
    train: Train,
    regress: Callable[[Array, Array], Array],
    *,
    subsets: int,
    explained: Output,
) -> Estimator:
    """Make an estimator from `regress(masks [R, K], outputs [R, Q]) -> scores [K, Q]`.

    Over networks trained on random halves of the groups.

    Raises:
        ValueError: for fewer than two subsets.
    """
    if subsets < 2:
        raise ValueError(f"subsets={subsets}; it must be at least 2")
    fit = make_subset_networks(train, lambda key, count: random_masks(key, subsets, count))

    @jax.jit
    def score(state: SubsetNetworks, query: Batch) -> Array:
        return regress(state.masks, network_outputs(explained, state.params, query))

    return Estimator(fit, score)


def network_outputs(explained: Output, params: Params, query: Batch) -> Array:
    """Outputs `[R, Q]` of R networks, leaves `[R, ...]`."""
    return chunked_vmap(lambda one: explained(one, query))(params)
