"""Batches cut into pieces that stay in cache.

On a CPU, a batch whose intermediate results leave the cache costs twice the time of the same
examples in pieces (`benchmarks/convolutions.py`), and anywhere a forward pass over a whole data
set must fit in memory. How many examples a piece may have is read off the traced function: the
bytes that one more example adds to what its gradient keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.compute.memory import bytes_of, examples_a_piece
from ddm_jax.types import Array, Batch, Params, length

Objective = Callable[[Params, Batch, Array], Array]


def bytes_an_example(objective: Objective, params: Params, batch: Batch) -> int:
    """Bytes that each example adds to what the gradient of `objective` keeps; traces only."""

    def kept(size: int) -> int:
        shape = lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
        weights = jax.ShapeDtypeStruct((size,), jnp.float32)

        def pull(params: Params, some: Batch, weights: Array):
            return jax.vjp(lambda p: objective(p, some, weights), params)[1]

        return bytes_of(jax.eval_shape(pull, params, jax.tree.map(shape, batch), weights))

    return kept(2) - kept(1)


def value_and_gradient(objective: Objective) -> Callable[..., tuple[Array, Params]]:
    """Make `(params, batch, weights [B]) -> value, gradient`, in pieces where that is faster.

    `objective(params, batch, weights)` is a sum over examples, each times its weight: pieces are
    filled up with examples of weight zero. Sums over pieces are kept in float32 at least.
    """
    whole = jax.value_and_grad(objective)

    def in_pieces(params: Params, batch: Batch, weights: Array) -> tuple[Array, Params]:
        count = weights.shape[0]
        size = examples_a_piece(count, bytes_an_example(objective, params, batch))
        if size == count:
            return whole(params, batch, weights)

        def add(total, piece):
            return jax.tree.map(lambda sum, new: sum + new, total, whole(params, *piece)), None

        like = jax.eval_shape(whole, params, batch, weights)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), like
        )
        total = lax.scan(add, zeros, (cut(batch, size), cut(weights, size, zero=True)))[0]
        return jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), total, like)

    return in_pieces


def map_pieces(fn: Callable[[Any], Any], x: Any, size: int) -> Any:
    """`fn(x)`, where leaves `[N, ...]` of x and of the result belong together, `size` at a time."""
    count = length(x)
    if size >= count:
        return fn(x)
    results = lax.map(fn, cut(x, size))
    return jax.tree.map(lambda leaf: lax.collapse(leaf, 0, 2)[:count], results)


def cut(tree: Any, size: int, zero: bool = False) -> Any:
    """Leaves `[N, ...]` as `[ceil(N / size), size, ...]`, filled up with zeros or the last row."""

    def one(leaf: Any) -> Any:
        pieces = -(-leaf.shape[0] // size)
        filled = fill_up(leaf, pieces * size - leaf.shape[0], zero)
        return filled.reshape(pieces, size, *leaf.shape[1:])

    return jax.tree.map(one, tree)


def fill_up(leaf: Any, fill: int, zero: bool = False) -> Any:
    """A leaf `[N, ...]` with `fill` more rows: zeros, or the last one again."""
    if not fill:
        return leaf
    last = leaf[np.full(fill, -1)]
    return jnp.concatenate([leaf, jnp.zeros_like(last) if zero else last])
