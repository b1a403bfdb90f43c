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
from jax import lax

from ddm_jax.types import Array, Batch, Params

CACHE = 6 * 2**20  # bytes of one piece on a CPU: near what one core has of its last cache
MEMORY = 2**30  # elsewhere the cache is no matter, but memory is

Objective = Callable[[Params, Batch, Array], Array]


def bytes_an_example(objective: Objective, params: Params, batch: Batch) -> int:
    """Bytes that each example adds to what the gradient of `objective` keeps; traces only."""

    def kept(size: int) -> int:
        some = Batch(*(jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for a in batch))
        weights = jax.ShapeDtypeStruct((size,), jnp.float32)

        def pull(params: Params, some: Batch, weights: Array):
            return jax.vjp(lambda p: objective(p, some, weights), params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(pull, params, some, weights))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    return kept(2) - kept(1)


def piece_size(num_examples: int, example_bytes: int) -> int:
    """Examples a piece, 1 to `num_examples`: as few pieces as fit, and all of about one size.

    An even one, where there are several of more than one: odd ones are a fifth slower on a CPU.
    """
    budget = CACHE if jax.default_backend() == "cpu" else MEMORY
    most = budget // max(example_bytes, 1)
    if most >= num_examples:
        return num_examples
    most = max(most // 2 * 2, 1)
    pieces = -(-num_examples // most)
    size = -(-num_examples // pieces)
    return min(size + size % 2, most)


def value_and_gradient(objective: Objective) -> Callable[..., tuple[Array, Params]]:
    """Make `(params, batch, weights [B]) -> value, gradient`, in pieces where that is faster.

    `objective(params, batch, weights)` is a sum over examples, each times its weight: pieces are
    filled up with examples of weight zero.
    """
    whole = jax.value_and_grad(objective)

    def in_pieces(params: Params, batch: Batch, weights: Array) -> tuple[Array, Params]:
        count = weights.shape[0]
        size = piece_size(count, bytes_an_example(objective, params, batch))
        if size == count:
            return whole(params, batch, weights)

        def add(total, piece):
            return jax.tree.map(jnp.add, total, whole(params, *piece)), None

        first = jax.eval_shape(whole, params, batch, weights)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
        return lax.scan(add, zeros, (_cut(batch, size), _cut(weights, size, zero=True)))[0]

    return in_pieces


def map_pieces(fn: Callable[[Any], Any], x: Any, size: int) -> Any:
    """`fn(x)`, where leaves `[N, ...]` of x and of the result belong together, `size` at a time."""
    count = jax.tree.leaves(x)[0].shape[0]
    if size >= count:
        return fn(x)
    results = lax.map(fn, _cut(x, size))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], results)


def _cut(tree: Any, size: int, zero: bool = False) -> Any:
    """Leaves `[N, ...]` as `[ceil(N / size), size, ...]`, filled up with zeros or the last row."""

    def one(leaf: Array) -> Array:
        fill = -leaf.shape[0] % size
        last = jnp.repeat(leaf[-1:], fill, axis=0)
        filled = jnp.concatenate([leaf, last * 0 if zero else last]) if fill else leaf
        return filled.reshape(-1, size, *leaf.shape[1:])

    return jax.tree.map(one, tree)
