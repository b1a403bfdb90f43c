"""The matching loss: gradients of groups, gradients of synsets, and the distance between them.

Reverse gradient matching (Ye, Yu, Liu & Wang, CVPR 2024, arXiv 2404.14006) asks that descending
on the synset of group k, with its sign reversed, undoes what the group did to the network:

    min_S sum_k d(g_k(theta_t), -h_k(theta_{t+s}))

Masses here are signed, so the reversed synset is the same object with the sign of `mass`
flipped. It is kept unreversed, matched as `d(g_k, h_k)`, and reversed by the online stage where
that descends on it. With *fixed hard labels* and positive masses the literal form is infeasible:
the last layers of `g_k` and `-h_k` cannot have a positive inner product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.checks import check_choice, check_integer, check_number
from ddm_jax.compute.placement import chunked_vmap
from ddm_jax.gradients import GroupBatches, flatten, make_group_gradients, unflatten
from ddm_jax.items import items_of
from ddm_jax.types import Array, Batch, Params, Synset, Task, length, take


class MatchPoints(NamedTuple):
    """Where gradients are matched: T points of the reversed trajectory.

    `gradients[t]` is `g_k(theta_t)`, and `params[t]` is the point `theta_{t+s}` at which the
    synset must reproduce it.
    """

    params: Params  # leaves [T, ...]
    gradients: Params  # leaves [T, K, ...]
    directions: Params  # leaves [T, r, ...], see `leading_directions`
    shrinkage: Array  # [T, r] in [0, 1)


def make_synset_gradient(task: Task) -> Callable[[Params, Synset], Params]:
    """Make `synset_gradient(params, synset) -> h_k` for ONE group (no leading K axis).

    `h_k = share_k * sum_m mass_km * grad loss(params; item_km)`. Map it over a
    `synset.by_group` with `jax.vmap(synset_gradient, (None, 0))` or `device_vmap`.
    """

    as_batch = items_of(task).batch

    def synset_gradient(params: Params, synset: Synset) -> Params:
        def total(params):
            losses = task.loss(params, as_batch(synset.items))
            return synset.share * (synset.mass @ losses)

        return jax.grad(total)(params)

    return synset_gradient


def squared_distance(g: Params, h: Params) -> Array:
    """Squared error `|g - h|^2` over all parameters: keeps size and direction. One group."""
    return _total(jnp.sum((a - b) ** 2) for a, b in zip(*_leaves(g, h), strict=True))


def leading_directions(gradients: Params) -> tuple[Params, Array]:
    """The directions that all groups share most, and how much an error along them is shrunk.

    With `F = sum_k g_k g_k^T` over the groups' gradients `[K, ...]`, an error e costs
    `e^T (I + F / lambda)^-1 e` with `lambda = WHITENING * mean_k |g_k|^2`, written with the r
    leading eigenvectors u_j of F as `|e|^2 - sum_j shrinkage_j <u_j, e>^2`. The reason: a
    counterfactual moves the parameters by about `H^-1 e`, so an error counts most where the
    curvature is small, while plain squares are spent on the few directions in which every
    gradient is large; F stands in for the curvature at the cost of r inner products.

    Returns:
        directions, leaves [r, ...], orthonormal over all leaves together, and shrinkage [r].
    """
    flat = jax.vmap(flatten)(gradients)
    unravel = unflatten(take(gradients, 0))
    rank = min(DIRECTIONS, flat.shape[0])
    basis = jax.random.normal(jax.random.key(0), (flat.shape[0], rank), jnp.float32)
    for _ in range(8):  # subspace iteration, without the K x K matrix
        basis = jnp.linalg.qr(flat @ (flat.T @ basis))[0]
    spanned = basis.T @ flat
    values, vectors = jnp.linalg.eigh(spanned @ spanned.T)
    values = jnp.maximum(values, 1e-30)
    directions = (vectors / jnp.sqrt(values)).T @ spanned
    damping = WHITENING * jnp.mean(jnp.sum(flat**2, 1))
    return jax.vmap(unravel)(directions), values / (values + damping + 1e-30)


def shared_part(error: Params, directions: Params, shrinkage: Array) -> Array:
    """`sum_j shrinkage_j <u_j, e>^2`: what whitening takes off the squared error of one group."""
    along = sum(
        u.reshape(len(u), -1) @ e.ravel() for u, e in zip(*_leaves(directions, error), strict=True)
    )
    return shrinkage @ along**2


def _total(parts: Iterable[Array]) -> Array:
    return jnp.sum(jnp.stack(list(parts)), 0)


def _leaves(g: Params, h: Params) -> tuple[list[Array], list[Array]]:
    return jax.tree.leaves(g), jax.tree.leaves(h)


# Of matched gradients, and the bytes of a number.
PRECISIONS = {"float32": 4, "bfloat16": 2}
DIRECTIONS = 8  # leading directions a point
WHITENING = 0.5  # damping, in units of the mean squared gradient of a group

DISTANCES = ("squared", "whitened")


def make_matching_loss(task: Task, distance: str = "squared") -> Callable[..., Array]:
    """Make `matching_loss(synset, gradient, weight, point)`: a scalar, for ONE group.

    `weight * d(g, h(synset))` at one trajectory point. Differentiable in the synset (a gradient
    of a gradient), and run under `jit`, `vmap` and `pmap` over groups:
    `jax.vmap(matching_loss, (0, 0, 0, None))(synset, point.gradients, weights, point)`.

    Args:
        task: the learning problem.
        distance: a name in `DISTANCES`.

    The arguments of `matching_loss` are a synset without its K axis, the group's real gradient,
    its weight (a row of `balance_weights`), and one point, `take(points, t)`.

    Raises:
        ValueError: for an unknown distance.
    """
    check_choice("distance", distance, DISTANCES)
    synset_gradient = make_synset_gradient(task)

    def matching_loss(synset: Synset, gradient: Params, weight: Array, point: MatchPoints) -> Array:
        h = at_least_float32(synset_gradient(point.params, synset))
        gradient = at_least_float32(gradient)
        cost = squared_distance(gradient, h)
        if distance == "whitened":
            error = jax.tree.map(jnp.subtract, gradient, h)
            cost = cost - shared_part(error, point.directions, point.shrinkage)
        return weight * cost

    return matching_loss


def at_least_float32(gradients: Params) -> Params:
    """Gradients that were kept in fewer bits, to compute with."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), gradients
    )


def squared_norms(gradients: Params) -> Array:
    """Squared norms over all parameters of gradients with leaves `[A, ...]`: [A]."""
    return _total(
        jnp.sum(leaf.reshape(leaf.shape[0], -1) ** 2, 1) for leaf in jax.tree.leaves(gradients)
    )


def distance_norms(points: MatchPoints, distance: str) -> Array:
    """The distance [T, K] between each group's gradient and nothing."""
    gradients = at_least_float32(points.gradients)
    norms = jax.vmap(squared_norms)(gradients)
    if distance == "whitened":
        every_group = jax.vmap(shared_part, (0, None, None))
        norms = norms - jax.vmap(every_group)(gradients, points.directions, points.shrinkage)
    return norms


def balance_weights(norms: Array, balance: float) -> Array:
    """Weights [T, K] of the groups' distances, from the `distance_norms` of all groups.

    With n_k the distance between g_k and nothing, `weight_k = n_k^-balance / sum_j
    n_j^(1 - balance)`, so that an empty synset costs one. `balance=1` averages relative errors
    group by group: easy groups, whose gradient is almost nothing, drown the rest. `balance=0`
    divides the summed error by the summed size, and small groups count for little.
    """
    norms = norms + 1e-6 * jnp.mean(norms, 1, keepdims=True) + 1e-30
    return norms**-balance / jnp.sum(norms ** (1 - balance), 1, keepdims=True)


def make_matching_error(task: Task, chunk: int | None = None) -> Callable[..., Array]:
    """Make `matching_error(synset, points) -> [T, K]`: `|g_k - h_k|^2 / |g_k|^2` at each point.

    The synset comes as `synset.by_group` has it. 0 is a perfect match, 1 is what an empty synset
    would have. Meant for points that the synset was not distilled at.
    """
    synset_gradient = make_synset_gradient(task)

    def matching_error(synset: Synset, points: MatchPoints) -> Array:
        def at_point(point: MatchPoints):
            g = at_least_float32(point.gradients)
            h = chunked_vmap(lambda one: synset_gradient(point.params, one), chunk)(synset)
            error = squared_norms(jax.tree.map(jnp.subtract, g, at_least_float32(h)))
            return error / (squared_norms(g) + 1e-30)

        return lax.map(at_point, points)

    return matching_error


def trajectory_indices(
    checkpoints: int, part: float, hold_out_every: int = 5
) -> tuple[list[int], list[int]]:
    """Which of T checkpoints to match at, and which to hold out to judge the match.

    The last `part` (0, 1] of the trajectory, at least two checkpoints where there are two. Every
    `hold_out_every`-th of them, counted from the end, is held out; the trained network never is.
    """
    check_number("part", part, above=0, most=1)
    late = list(
        range(checkpoints - min(checkpoints, max(2, round(part * checkpoints))), checkpoints)
    )
    held_out = [i for n, i in enumerate(reversed(late), 1) if n % hold_out_every == 0]
    if not held_out and len(late) > 1:
        held_out = [late[0]]
    return [i for i in late if i not in held_out], sorted(held_out)


def make_match_points(
    task: Task,
    offset: int = 0,
    *,
    directions: bool = True,
    precision: str = "float32",
) -> Callable[[Params, Batch, GroupBatches, Array], MatchPoints]:
    """Make `match_points(checkpoints, data, batches, indices [T']) -> MatchPoints`.

    The real gradients are taken at the checkpoints `indices` of a run and are to be reproduced
    `offset` checkpoints later (the s of the paper's objective), at most at the trained network.
    The `directions` that all groups share are for the distance "whitened" alone, and cost several
    passes over the gradients. With the `precision` "bfloat16" the gradients are computed and added
    up in float32, and kept in half the memory: each number is off by at most 0.4 %, far below the
    error at which distillation ends.

    Raises:
        ValueError: for a negative offset or an unknown precision.
    """
    check_integer("offset", offset, 0)
    check_choice("precision", precision, tuple(PRECISIONS))
    group_gradients = make_group_gradients(task)

    def match_points(checkpoints: Params, data: Batch, batches: GroupBatches, indices: Array):
        last = length(checkpoints) - 1
        check_integer("offset", offset, 0, last)  # checkpoints

        def at(index: Array):
            gradients = group_gradients(take(checkpoints, index), data, batches)
            kept = gradients
            if precision != "float32":
                kept = jax.tree.map(lambda leaf: leaf.astype(precision), gradients)
            if directions:
                return kept, *leading_directions(gradients)
            none = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape[1:])), gradients)
            return kept, none, jnp.zeros(0)

        later = jnp.minimum(indices + offset, last)
        return MatchPoints(take(checkpoints, later), *lax.map(at, indices))

    return match_points
