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
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from ddm_jax.parallel import chunked_vmap
from ddm_jax.pieces import value_and_gradient
from ddm_jax.types import Array, Batch, Leaf, Params, Synset, Task, take

Distance = Callable[[Params, Params], Array]  # g_k, h_k of one group -> scalar


class MatchPoints(NamedTuple):
    """Where gradients are matched: T points of the reversed trajectory.

    `gradients[t]` is `g_k(theta_t)`, and `params[t]` is the point `theta_{t+s}` at which the
    synset must reproduce it.
    """

    params: Params  # leaves [T, ...]
    gradients: Params  # leaves [T, K, ...]
    directions: Params  # leaves [T, r, ...], see `leading_directions`
    shrinkage: Array  # [T, r] in [0, 1)


class GroupBatches(NamedTuple):
    """The training rows cut into pieces that belong to one group each."""

    rows: Leaf  # [J, c] int32
    valid: Leaf  # [J, c] float32, 0 where a piece is padded
    owner: Leaf  # [J] int32, the group of each piece
    total: Leaf  # int32, N


def group_batches(groups: np.ndarray, num_groups: int, size: int = 64) -> GroupBatches:
    """Cut the training set into pieces of at most `size` rows of one group.

    Padding adds less than `size` rows a group, so one pass over the pieces costs at most
    `N + K * size` example gradients. Runs on the host: the cut depends on the values of `groups`.
    """
    groups = np.asarray(groups)
    size = int(min(size, np.bincount(groups, minlength=num_groups).max()))
    rows, valid, owner = [], [], []
    order = np.argsort(groups, kind="stable")
    for group, members in enumerate(
        np.split(order, np.cumsum(np.bincount(groups, minlength=num_groups))[:-1])
    ):
        for start in range(0, len(members), size):
            piece = members[start : start + size]
            fill = size - len(piece)
            rows.append(np.concatenate([piece, np.repeat(piece[:1], fill)]))
            valid.append(np.concatenate([np.ones(len(piece)), np.zeros(fill)]))
            owner.append(group)
    return GroupBatches(
        jnp.asarray(np.stack(rows), jnp.int32),
        jnp.asarray(np.stack(valid), jnp.float32),
        jnp.asarray(owner, jnp.int32),
        jnp.asarray(len(groups), jnp.int32),
    )


def make_group_gradients(task: Task, num_groups: int) -> Callable[..., Params]:
    """Make `group_gradients(params, data, batches) -> g`, leaves `[K, ...]`.

    `g_k = (1/N) sum_{i in D_k} grad loss_i(params)`; the K gradients add up to the gradient of
    the mean loss. One pass over the pieces of `group_batches`, accumulated in place.
    """

    of_losses = value_and_gradient(lambda params, batch, valid: valid @ task.loss(params, batch))

    def group_gradients(params: Params, data: Batch, batches: GroupBatches) -> Params:
        def add(sums, piece):
            rows, valid, owner = piece
            _, gradient = of_losses(params, take(data, rows), valid)
            return jax.tree.map(lambda s, g: s.at[owner].add(g), sums, gradient), None

        zeros = jax.tree.map(lambda leaf: jnp.zeros((num_groups, *leaf.shape), leaf.dtype), params)
        sums, _ = lax.scan(add, zeros, (batches.rows, batches.valid, batches.owner))
        return jax.tree.map(lambda leaf: leaf / batches.total, sums)

    return group_gradients


def synset_batch(x: Array, y: Array) -> Batch:
    """Turn synset items (label *logits* y) into a batch of label distributions."""
    return Batch(x, jax.nn.softmax(y))


def make_synset_gradient(task: Task) -> Callable[[Params, Synset], Params]:
    """Make `synset_gradient(params, synset) -> h_k` for ONE group (no leading K axis).

    `h_k = share_k * sum_m mass_km * grad loss(params; x_km, softmax(y_km))`. Map it over a synset
    with `jax.vmap(synset_gradient, (None, 0))` or `device_vmap`.
    """

    def synset_gradient(params: Params, synset: Synset) -> Params:
        def total(params):
            losses = task.loss(params, synset_batch(synset.x, synset.y))
            return synset.share * (synset.mass @ losses)

        return jax.grad(total)(params)

    return synset_gradient


def squared_distance(g: Params, h: Params) -> Array:
    """Squared error `|g - h|^2` over all parameters: keeps size and direction. One group."""
    return _total(jnp.sum((a - b) ** 2) for a, b in zip(*_leaves(g, h), strict=True))


def layer_cosine_distance(g: Params, h: Params) -> Array:
    """`1 - cos` between the flattened gradients of each layer, summed over layers. One group.

    Blind to magnitude: two groups whose gradients differ by a factor match the same synset.
    """
    return _total(
        1 - _cosine(a.reshape(1, -1), b.reshape(1, -1))[0]
        for a, b in zip(*_leaves(g, h), strict=True)
    )


def row_cosine_distance(g: Params, h: Params) -> Array:
    """`1 - cos` for each output unit of each layer, summed, as in dataset condensation. One group.

    Zhao, Mopuri & Bilen, 2021, arXiv 2006.05929, section 3.2. Vectors (biases) are left out, as
    there. The last axis of a flax kernel is its output unit.
    """
    return _total(
        jnp.sum(1 - _cosine(a.reshape(-1, a.shape[-1]).T, b.reshape(-1, b.shape[-1]).T))
        for a, b in zip(*_leaves(g, h), strict=True)
        if a.ndim >= 2
    )


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
    flat = jax.vmap(lambda one: ravel_pytree(one)[0])(gradients)
    unravel = ravel_pytree(take(gradients, 0))[1]
    rank = min(DIRECTIONS, flat.shape[0])
    basis = jax.random.normal(jax.random.key(0), (flat.shape[0], rank))
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


def _cosine(a: Array, b: Array) -> Array:
    inner = jnp.sum(a * b, -1)
    return inner * lax.rsqrt(jnp.sum(a * a, -1) * jnp.sum(b * b, -1) + 1e-24)


DIRECTIONS = 8  # leading directions a point
WHITENING = 0.5  # damping, in units of the mean squared gradient of a group

DISTANCES: dict[str, Distance] = {
    "whitened": squared_distance,  # less `shared_part`
    "squared": squared_distance,
    "layer_cosine": layer_cosine_distance,
    "row_cosine": row_cosine_distance,
}


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
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; choose one of {', '.join(DISTANCES)}")
    synset_gradient = make_synset_gradient(task)
    measure = DISTANCES[distance]

    def matching_loss(synset: Synset, gradient: Params, weight: Array, point: MatchPoints) -> Array:
        h = synset_gradient(point.params, synset)
        gradient = at_least_float32(gradient)
        cost = measure(gradient, h)
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
    """The distance [T, K] between each group's gradient and nothing; 1 for the cosines."""
    gradients = at_least_float32(points.gradients)
    norms = jax.vmap(squared_norms)(gradients)
    if distance not in ("squared", "whitened"):
        return jnp.ones_like(norms)
    if distance == "whitened":
        every_group = jax.vmap(shared_part, (0, None, None))
        norms = norms - jax.vmap(every_group)(gradients, points.directions, points.shrinkage)
    return norms


def balance_weights(norms: Array, balance: float) -> Array:
    """Weights [T, K] of the groups' distances, from the `distance_norms` of all groups.

    With n_k the distance between g_k and nothing, `weight_k = n_k^-balance / sum_j
    n_j^(1 - balance)`, so that an empty synset costs one. `balance=1` averages relative errors
    group by group: easy groups, whose gradient is almost nothing, drown the rest. `balance=0`
    divides the summed error by the summed size, and small groups count for little. The cosines,
    relative by themselves, get 1/K.
    """
    norms = norms + 1e-6 * jnp.mean(norms, 1, keepdims=True) + 1e-30
    return norms**-balance / jnp.sum(norms ** (1 - balance), 1, keepdims=True)


def make_matching_error(task: Task, chunk: int | None = None) -> Callable[..., Array]:
    """Make `matching_error(synset, points) -> [T, K]`: `|g_k - h_k|^2 / |g_k|^2` at each point.

    0 is a perfect match, 1 is what an empty synset would have. Meant for points that the synset
    was not distilled at.
    """
    synset_gradient = make_synset_gradient(task)

    def matching_error(synset: Synset, points: MatchPoints) -> Array:
        def at_point(point: MatchPoints):
            g = at_least_float32(point.gradients)
            h = chunked_vmap(lambda one: synset_gradient(point.params, one), chunk)(synset)
            error = squared_norms(jax.tree.map(jnp.subtract, g, h))
            return error / (squared_norms(g) + 1e-30)

        return lax.map(at_point, points)

    return matching_error
