"""Masks: which groups are kept, and how much of each.

A mask `[K]` is a weight a group: 1 kept, 0 gone, 2 counted double. Everything that asks "what if?"
takes a stack of them, `[R, K]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.checks import check_choice, check_integer, check_number, is_concrete
from ddm_jax.types import Array, Groups

LARGEST = 1e6  # weight, so that sums of them are exact enough


def leave_one_out_masks(num_groups: int) -> Array:
    """The K + 1 masks of leave-one-out: everything kept, then each group left out in turn.

    Raises:
        ValueError: for fewer than two groups: without the only one nothing would be kept.
    """
    check_integer("num_groups", num_groups, 2)
    return jnp.concatenate([jnp.ones((1, num_groups)), 1.0 - jnp.eye(num_groups)])


def leave_one_out(outputs: Callable[..., Array], num_groups: int) -> Callable[..., Array]:
    """Make `scores(*args) -> [K, Q]`, `scores[k] = response(1) - response(1 - e_k)`.

    The transformation that everything here is about: from how a model answers without any subset
    of the groups to the effect of each. Positive where having group k raises the output.

    Args:
        outputs: `(masks [R, K], *args) -> [R, Q]`, the response to each mask: exact retraining,
            or `online.subset_outputs(response)` of a distilled datamodel.
        num_groups: K, at least 2.
    """
    masks = leave_one_out_masks(num_groups)

    def scores(*args: Any) -> Array:
        kept = outputs(masks, *args)
        return kept[:1] - kept[1:]

    return scores


def subset_size(num_groups: int, keep: float) -> int:
    """Groups that a random subset keeps: `round(keep * K)`, at least 1 and at most K - 1."""
    return min(max(round(keep * num_groups), 1), max(num_groups - 1, 1))


def random_masks(key: Array, num_masks: int, num_groups: int, keep: float = 0.5) -> Array:
    """R masks that each keep `round(keep * K)` random groups, at least 1 and at most K - 1.

    Raises:
        ValueError: for a `keep` outside (0, 1), or numbers below zero or two.
    """
    check_integer("num_masks", num_masks, 0)
    check_integer("num_groups", num_groups, 2)
    check_number("keep", keep, above=0, below=1)
    size = subset_size(num_groups, keep)
    order = jax.vmap(lambda k: jax.random.permutation(k, num_groups))(
        jax.random.split(key, num_masks)
    )
    return (order < size).astype(jnp.float32)


def random_weights(
    key: Array, num_masks: int, num_groups: int, levels: Sequence[float] = (0.0, 0.5, 1.0, 2.0)
) -> Array:
    """R masks whose K weights are drawn from `levels`, each as often as the others, at random.

    Each mask has every level in as many groups, up to one, and keeps at least one group.

    Raises:
        ValueError: for fewer than two groups, or levels that are negative, not finite or all zero.
    """
    check_integer("num_masks", num_masks, 0)
    check_integer("num_groups", num_groups, 2)
    for level in levels:
        check_number("levels", level, least=0, most=LARGEST)
    if not any(levels):
        raise ValueError(f"levels={tuple(levels)}; one of them must be positive")
    deal_keys, order_keys = jax.random.split(key, (2, num_masks))
    rounds = -(-num_groups // len(levels))

    def one(deal_key: Array, order_key: Array) -> Array:
        # The last round has a random part of the levels, a positive one among a few at least.
        dealt = jax.random.permutation(deal_key, jnp.asarray(levels, jnp.float32))
        every = jnp.tile(dealt, rounds)[:num_groups]
        every = jnp.where(every.max() > 0, every, jnp.max(dealt))
        return jax.random.permutation(order_key, every)

    return jax.vmap(one)(deal_keys, order_keys)


def check_masks(masks: Any, num_groups: int, *, background: bool = False) -> Array:
    """Check subset masks `[R, K]` and return them as float32; traced ones by their shape alone.

    Args:
        background: whether there are points of no group, which are left when no group is kept.

    Raises:
        ValueError: for a wrong shape, weights that are negative or not finite, or a mask that keeps
            nothing.
    """
    shape = np.shape(masks)
    if len(shape) != 2 or shape[1] != num_groups or shape[0] == 0:
        raise ValueError(f"masks have shape {shape}; they must be [R, {num_groups}], R >= 1")
    if not is_concrete(masks):
        return masks
    with np.errstate(over="ignore"):  # what is infinite then is refused
        values = np.asarray(masks, np.float32)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            "masks must be weights of at least 0: 1 where a group is kept, 0 where it is left out"
        )
    empty = np.flatnonzero(values.sum(1) == 0)
    if empty.size and not background:
        raise ValueError(f"mask {empty[0]} keeps no group; keep at least one in every mask")
    largest = np.maximum(values.max(1), float(background))
    if largest.max() > LARGEST or largest.min() < 1 / LARGEST:
        raise ValueError(
            f"the weights of a mask must be of {1 / LARGEST:g} to {LARGEST:g}: the objective is a "
            "mean, in which their ratios alone count"
        )
    return jnp.asarray(values)


def point_weights(keep: Array, groups: Groups) -> Array:
    """The weight of each training point, [N], from that of its group, [K]; 1 of the background."""
    keep = jnp.asarray(keep)
    if not groups.background:
        return keep[jnp.asarray(groups.ids)]
    # The background's id, -1, is the place of the last weight, which is its own.
    return jnp.append(keep, jnp.ones((), keep.dtype))[jnp.asarray(groups.ids)]


def moved_share(masks: Any, shares: Any) -> np.ndarray:
    """How much of what counts masks [R, K] move to other data, [R]: of 0 and 1, what is left out.

    Half of the sum of `|weight - share|` over groups and background, with weights that sum to one:
    the objective is a mean, and ratios of weights alone count.

    Args:
        shares: [K], of the training set that each group is: `Groups.shares()`, `Synset.share`.
    """
    masks, shares = np.asarray(masks, np.float64), np.asarray(shares, np.float64)
    rest = max(1 - float(shares.sum()), 0.0)  # of the background, which always counts once
    whole = masks @ shares + rest
    moved = np.abs(masks / whole[:, None] - 1) @ shares + np.abs(1 / whole - 1) * rest
    return moved / 2


def pair_masks(num_groups: int, count: int, seed: int = 0) -> np.ndarray:
    """Masks [1 + R, K]: everything, and without each of R random pairs of groups.

    All pairs where there are fewer than `count`.

    Raises:
        ValueError: for fewer than three groups, of which two could not go.
    """
    check_integer("num_groups", num_groups, 3)
    first, second = np.triu_indices(num_groups, 1)
    chosen = np.random.default_rng(seed).permutation(len(first))[:count]
    masks = np.ones((1 + len(chosen), num_groups), np.float32)
    rows = 1 + np.arange(len(chosen))
    masks[rows, first[chosen]] = 0
    masks[rows, second[chosen]] = 0
    return masks


def top_masks(scores: Any, k: int) -> np.ndarray:
    """Keep masks `[Q, K]` without the k groups that help each query most.

    `scores [K, Q]` are effects on an output that is larger when the query is more right, for
    example the margin. Ilyas et al., "Datamodels", 2022, arXiv 2202.00622, section 4.1
    (brittleness). Ties go to the lower group.

    Raises:
        ValueError: for a k outside 1..K-1.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2:
        raise ValueError(f"scores have shape {scores.shape}; they must be [K, Q]")
    check_integer("k", k, 1, len(scores) - 1)  # a group is left
    order = np.argsort(-scores, axis=0, kind="stable")[:k]
    masks = np.ones(scores.shape[::-1], np.float32)
    np.put_along_axis(masks, order.T, 0.0, axis=1)
    return masks


def curve_masks(value: Any, sizes: Any, fractions: Sequence[float], first: str) -> np.ndarray:
    """Keep masks `[J, K]` that remove a growing part of the training points, group by group.

    Groups go in the order of `value [K]`: first the "lowest" (does removing what harms help?) or
    the "highest" (does removing what helps hurt?). Groups go while the points removed do not
    exceed the fraction; at least one group stays. The complement `1 - masks` keeps what was
    removed: a keep curve.

    Args:
        value: [K], for example the mean score over queries.
        sizes: [K] training points in each group.
        fractions: of the groups' points to remove, each in [0, 1).
        first: "lowest" or "highest".

    Raises:
        ValueError: for a setting out of range.
    """
    value, sizes = np.asarray(value, np.float64), np.asarray(sizes)
    check_choice("first", first, ("lowest", "highest"))
    if value.ndim != 1 or value.shape != sizes.shape:
        raise ValueError(f"value {value.shape} and sizes {sizes.shape} must both be [K]")
    order = np.argsort(value if first == "lowest" else -value, kind="stable")
    removed = np.cumsum(sizes[order]) / sizes.sum()
    masks = np.ones((len(fractions), len(value)), np.float32)
    for row, fraction in enumerate(fractions):
        check_number("fractions", fraction, least=0, below=1)
        gone = order[removed <= fraction + 1e-9][: len(value) - 1]
        masks[row, gone] = 0.0
    return masks
