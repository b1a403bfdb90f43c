"""Gradients of single examples as rows of a matrix, and products with them: what estimators share.

Parameters are flat vectors here, `[P]` in the order of `jax.flatten_util.ravel_pytree`, so that
an estimator is linear algebra and holds for any network. Nothing needs forward mode or a hook into
a layer. N x P numbers are never held: rows come in pieces.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from ddm_jax.matching import GroupBatches, make_group_gradients
from ddm_jax.objectives import Output
from ddm_jax.pieces import map_pieces, value_and_gradient
from ddm_jax.types import Array, Batch, Params, Task

ROWS = 2**26  # bytes of the gradients that are held at once


def flatten(params: Params) -> Array:
    """Parameters as one vector [P]."""
    return ravel_pytree(params)[0]


def example_gradients(objective: Output, params: Params, batch: Batch) -> Array:
    """The gradient of `objective(params, batch) -> [B]` for each example apart, `[B, P]`.

    For a `task.loss` or an output; each example alone decides its own value.
    """

    def one(example: Batch) -> Array:
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        return flatten(jax.grad(lambda p: objective(p, alone)[0])(params))

    return jax.vmap(one)(batch)


def map_gradients(
    fn: Callable[[Array], Array], objective: Output, params: Params, data: Batch
) -> Array:
    """`fn(gradients [B, P]) -> [B, ...]` over the gradients of all examples, in pieces."""
    size = max(ROWS // (4 * flatten(params).size), 1)
    return map_pieces(lambda piece: fn(example_gradients(objective, params, piece)), data, size)


def gradient_products(objective: Output, params: Params, data: Batch, vectors: Array) -> Array:
    """`<grad objective_i, v>` for all N examples and V vectors `[V, P]`: `[N, V]`."""
    return map_gradients(lambda rows: rows @ vectors.T, objective, params, data)


def group_gradient_rows(
    task: Task, params: Params, data: Batch, batches: GroupBatches, num_groups: int
) -> Array:
    """`g_k = (1/N) sum_{i in D_k} grad loss_i` as rows, `[K, P]`."""
    gradients = make_group_gradients(task, num_groups)(params, data, batches)
    return jax.vmap(flatten)(gradients)


def group_sums(values: Array, groups: Array, num_groups: int) -> Array:
    """`(1/N) sum_{i in D_k} values_i`: from a value an example, `[N, ...]`, to `[K, ...]`."""
    return jax.ops.segment_sum(values, groups, num_groups) / len(values)


def hessian_products(
    task: Task, params: Params, data: Batch, weights: Array, vectors: Array
) -> Array:
    """`H v` for V vectors `[V, P]`, with `H = sum_i weights_i * Hessian of loss_i`: `[V, P]`.

    The gradient of `<grad, v>`, reverse mode twice, over the data in pieces.
    """
    _, unravel = ravel_pytree(params)

    def one(vector: Array) -> Array:
        direction = unravel(vector)

        def along(params: Params, batch: Batch, weights: Array) -> Array:
            slope = jax.grad(lambda p: weights @ task.loss(p, batch))(params)
            return _inner(slope, direction)

        return flatten(value_and_gradient(along)(params, data, weights)[1])

    return lax.map(one, vectors)


def _inner(a: Params, b: Params) -> Array:
    return jnp.sum(
        jnp.stack(
            [jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
        )
    )
