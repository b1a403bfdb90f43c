"""How fast the updates may go: what is stable on the synset, and what makes the rate higher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ddm_jax.gradients import flatten, hessian_products, unflatten
from ddm_jax.items import items_of
from ddm_jax.matching import at_least_float32
from ddm_jax.synset import (
    background_share,
    batch_size,
    batches_of,
    deal,
    item_weights,
    take_batch,
)
from ddm_jax.types import Array, Batch, Params, Synset, Task, length

RANK = 40  # directions of a deflation
LANCZOS = 80  # iterations that find them
MOST_BYTES = 2**30  # that they may take
CURVATURE_ITEMS = 1000  # whose curvature it is
MOST_BATCHES = 8  # whose sharpest curvature is looked for
ITERATIONS, LATER = 20, 10  # power iterations on the first of them, and on each other
FLOOR = 0.3  # of the root of the mean squared gradient, see `adaptive_scale`


def with_momentum(momentum: Array | float) -> Array | float:
    """By which the stable rate of Nesterov SGD is that without momentum, as of `stable_rate`."""
    return (1 + momentum) / (1 + 2 * momentum)


class Scale(NamedTuple):
    """A preconditioner: a scale for each parameter."""

    by: Params  # as the parameters


class Deflation(NamedTuple):
    """A preconditioner: gradients are shrunk along some directions."""

    directions: Array  # [r, P], orthonormal: where the curvature is largest
    left: Array  # [r], the part of the gradient that is left along each, in (0, 1]


Preconditioner = Scale | Deflation


def stable_rate(
    task: Task,
    params: Params,
    synset: Synset,
    *,
    momentum: Array | float = 0.9,
    weight_decay: Array | float = 0.0,
    batch: int | None = None,
    preconditioner: Preconditioner | None = None,
    decoupled: Array | float = 0.0,
    iterations: int = ITERATIONS,
) -> Array:
    """Half of the highest stable learning rate of Nesterov SGD on the whole synset.

    Where the sharpest curvature is `lambda`, the method is stable up to `(2 + 2 m) /
    ((1 + 2 m) lambda)` for the momentum m (Cohen et al., "Gradient descent on neural networks
    typically occurs at the edge of stability", 2021, arXiv 2103.00065, eq. 1). `lambda` is the
    largest eigenvalue of the Hessian of the synset's objective at `params`, by so many power
    `iterations`; where a step takes a `batch` of the items, that of the sharpest of MOST_BATCHES
    at most, LATER iterations on each but the first. Half leaves room for masks whose objective is
    sharper; a rate a few times lower leaves the answer unfinished after the same steps.

    With a `preconditioner` and a `decoupled` decay (`precondition`) it is the rate of the steps
    that are multiplied so.
    """
    own = 1 / (jnp.sum(synset.share) + background_share(synset))
    factor = jnp.full_like(synset.share, own)
    flat = flatten(params)
    start = jax.random.normal(jax.random.key(0), flat.shape, jnp.float32).astype(flat.dtype)
    root = None if preconditioner is None else _multiplier(preconditioner, flat.dtype, root=True)

    def curve(batch_and_mass: tuple[Batch, Array], vectors: Array) -> Array:
        if root is None:
            return hessian_products(task, params, *batch_and_mass, vectors)
        along = jax.vmap(root)(vectors)
        curved = hessian_products(task, params, *batch_and_mass, along) + weight_decay * along
        return jax.vmap(root)(curved)

    examples, weights = items_of(task).batch(synset.items), item_weights(synset, factor, own)
    turns = batches_of(length(examples), batch)
    rows = deal(synset, batch, min(turns, MOST_BATCHES))
    # The sharpest direction of one batch is nearly that of the next, which begins from it; and as
    # much from all directions, so that it finds one that the others are flat along.
    later = min(LATER, iterations)
    place = np.repeat(np.arange(len(rows)), [iterations] + [later] * (len(rows) - 1))
    start = start / jnp.linalg.norm(start)

    def step(vector: Array, each: tuple[Array, Array]) -> tuple[Array, Array]:
        row, fresh = each
        vector = vector + fresh * start
        vector = vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)
        (curved,) = curve(take_batch(examples, weights, row, turns), vector[None])
        size = jnp.linalg.norm(curved)
        return curved / jnp.maximum(size, 1e-12), size

    fresh = np.diff(place, prepend=-1) > 0
    ends = np.flatnonzero(np.diff(place, append=-1))
    begin = jnp.zeros_like(start)
    _, sizes = lax.scan(step, begin, (rows[place], jnp.asarray(fresh, start.dtype)))
    sharpest = jnp.max(sizes[ends])
    return with_momentum(momentum) / jnp.maximum(
        sharpest + (weight_decay if root is None else decoupled), 1e-3
    )


def products_of_rate(items: int, batch: int | None) -> int:
    """How many products of an item's Hessian `stable_rate` takes."""
    batches = min(batches_of(items, batch), MOST_BATCHES)
    return (ITERATIONS + LATER * (batches - 1)) * batch_size(items, batch)


def adaptive_scale(second_moments: Params) -> Scale:
    """The scale of each parameter's steps, `1 / (sqrt(v) + floor)`, leaves as the parameters.

    v are the running means of squared gradients by whose roots the training divided (Adam).
    `floor` is FLOOR of the root of their mean over all parameters: where the training saw no
    gradient, as at pixels that are always black, what little the synset has there is no reason for
    a step a thousand times as long.
    """
    moments = at_least_float32(second_moments)
    count = sum(leaf.size for leaf in jax.tree.leaves(moments))
    mean = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(moments)) / count
    floor = FLOOR * jnp.sqrt(mean) + 1e-12
    return Scale(jax.tree.map(lambda leaf: 1 / (jnp.sqrt(leaf) + floor), moments))


def deflation_rank(params: Params) -> tuple[int, int]:
    """How many directions a deflation has, and iterations that find them; none where none fit."""
    flat = jax.eval_shape(flatten, params)
    count = min(LANCZOS, flat.size, MOST_BYTES // (flat.dtype.itemsize * flat.size))
    return min(RANK, count // 2), count


def deflation(
    task: Task, params: Params, synset: Synset, weight_decay: Array | float = 0.0
) -> Deflation:
    """Shrink the gradient along the sharpest directions to what it would be along a flat one.

    With the r = RANK largest eigenvalues of the Hessian of the synset's objective at `params`
    and their vectors V, gradients are multiplied by `I - V^T (I - lambda_{r+1} / Lambda) V`. The
    sharpest curvature is then `lambda_{r+1}`, the stable rate as much higher, and a few steps go
    where many did. By Lanczos iteration with full orthogonalisation on CURVATURE_ITEMS items at
    most (Golub & Van Loan, "Matrix Computations", 4th edition, section 10.1), about
    LANCZOS products with the Hessian; of large networks as many as MOST_BYTES hold. No direction
    counts as flatter than the weight decay alone makes it.

    Raises:
        ValueError: for networks of which not even two vectors fit.
    """
    flat = flatten(params)
    rank, count = deflation_rank(params)
    if not rank:
        raise ValueError(
            f"optimizer='deflated' shrinks directions of a network, and one of {flat.size:,} "
            "parameters is too small for that, or too large; use optimizer='sgd'"
        )
    own = 1 / (jnp.sum(synset.share) + background_share(synset))
    examples = items_of(task).batch(synset.items)
    weights = item_weights(synset, jnp.full_like(synset.share, own), own)
    turns = batches_of(length(examples), CURVATURE_ITEMS)
    some = take_batch(examples, weights, deal(synset, CURVATURE_ITEMS, 1)[0], turns)
    start = jax.random.normal(jax.random.key(0), flat.shape, jnp.float32).astype(flat.dtype)
    basis = jnp.zeros((count + 1, flat.size), flat.dtype).at[0].set(start / jnp.linalg.norm(start))

    def step(basis: Array, index: Array):
        vector = basis[index]
        (curved,) = hessian_products(task, params, *some, vector[None])
        curved = curved + weight_decay * vector
        along = basis @ curved
        curved = curved - along @ basis
        again = basis @ curved  # twice, for the rounding of the first time
        curved = curved - again @ basis
        # Where nothing new is left what comes next is rounding, which is made orthogonal once more.
        curved = curved / jnp.maximum(jnp.linalg.norm(curved), 1e-30)
        curved = curved - (basis @ curved) @ basis
        curved = curved / jnp.maximum(jnp.linalg.norm(curved), 1e-30)
        return basis.at[index + 1].set(curved), along + again

    basis, columns = lax.scan(step, basis, jnp.arange(count))
    small = columns[:, :count]  # a row knows the directions before it alone
    values, vectors = jnp.linalg.eigh(small + jnp.tril(small, -1).T)
    values, vectors = values[::-1][: rank + 1], vectors[:, ::-1][:, : rank + 1]
    flattest = jnp.maximum(values[rank], jnp.maximum(weight_decay, 1e-3 * values[0]) + 1e-12)
    left = jnp.minimum(flattest / jnp.maximum(values[:rank], flattest), 1.0)
    return Deflation(vectors.T[:rank] @ basis[:count], left)


def _multiplier(by: Preconditioner, dtype: Any, *, root: bool = False) -> Callable[[Array], Array]:
    """What multiplies a gradient [P], or its root."""
    if isinstance(by, Scale):
        scale = flatten(by.by).astype(dtype)
        scale = jnp.sqrt(scale) if root else scale
        return lambda vector: scale * vector
    gone = 1 - (jnp.sqrt(by.left) if root else by.left)
    return lambda vector: vector - (gone * (by.directions @ vector)) @ by.directions


def precondition(by: Preconditioner, decoupled: Array | float) -> optax.GradientTransformation:
    """Multiply gradients, and add a decoupled weight decay, as AdamW does."""

    def update(gradient: Params, params: Params) -> Params:
        flat = flatten(gradient)
        moved = _multiplier(by, flat.dtype)(flat) + decoupled * flatten(params)
        return unflatten(gradient)(moved)

    return optax.stateless(update)
