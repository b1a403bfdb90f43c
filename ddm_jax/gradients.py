"""Gradients of single examples as rows of a matrix, and products with them: what estimators share.

Parameters are flat vectors here, `[P]` in the order of `jax.flatten_util.ravel_pytree`, so that
an estimator is linear algebra and holds for any network. Nothing needs forward mode or a hook into
a layer. N x P numbers are never held: rows come in pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from ddm_jax.matching import GroupBatches, make_group_gradients
from ddm_jax.objectives import Output, output_change
from ddm_jax.parallel import chunked_vmap
from ddm_jax.pieces import bytes_an_example, map_pieces, piece_size, value_and_gradient
from ddm_jax.types import Array, Batch, Params, Task, take

ROWS = 2**26  # bytes of the gradients that are held at once
VECTORS = 2**21  # bytes of the vectors that a Hessian is multiplied with at once, on a CPU


def flatten(params: Params) -> Array:
    """Parameters as one vector [P]."""
    return ravel_pytree(params)[0]


def as_params(rows: Array, like: Params) -> Params:
    """Vectors `[V, P]` as parameters, leaves `[V, ...]`."""
    return jax.vmap(ravel_pytree(like)[1])(rows)


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


def output_gradients(output: Output, params: Params, query: Batch) -> Array:
    """The gradient of each output, `[Q, P]`, or `[1, P]` of one output of all queries.

    Raises:
        ValueError: for an output of another shape.
    """
    shape = jax.eval_shape(output, params, query).shape
    if shape == (len(query.x),):
        return map_gradients(lambda rows: rows, output, params, query)
    if len(shape) != 1:
        raise ValueError(f"the output has shape {shape}; it must be [Q], or [1] for all queries")
    flat, unravel = ravel_pytree(params)
    return jax.jacrev(lambda vector: output(unravel(vector), query))(flat)


def output_changes(output: Output, params: Params, query: Batch, directions: Params) -> Array:
    """The derivative of every query's output along V directions, leaves `[V, ...]`: `[V, Q]`.

    Without any gradient of a query: for fewer directions than queries.
    """

    def of_queries(query: Batch) -> Array:
        change = output_change(lambda params: output(params, query), params)
        return chunked_vmap(change)(directions).T

    count = len(query.x)
    if jax.eval_shape(output, params, query).shape != (count,):
        return of_queries(query).T  # one output of all queries, such as an accuracy
    kept = bytes_an_example(lambda p, batch, w: w @ output(p, batch), params, query)
    return map_pieces(of_queries, query, piece_size(count, kept)).T


def group_gradient_rows(
    task: Task, params: Params, data: Batch, batches: GroupBatches, num_groups: int
) -> Array:
    """`g_k = (1/N) sum_{i in D_k} grad loss_i` as rows, `[K, P]`."""
    gradients = make_group_gradients(task, num_groups)(params, data, batches)
    return jax.vmap(flatten)(gradients)


def group_sums(values: Array, groups: Array, num_groups: int) -> Array:
    """`(1/N) sum_{i in D_k} values_i`: from a value an example, `[N, ...]`, to `[K, ...]`."""
    return jax.ops.segment_sum(values, groups, num_groups) / len(values)


def sum_gradients(
    fn: Callable[[Array, Array], Any], objective: Output, params: Params, data: Batch
) -> Any:
    """The sum of `fn(gradients [B, P], rows [B])` over all examples, in pieces.

    `rows` are the examples of the piece; where it is filled up, their gradients are zero.
    """
    count = jax.tree.leaves(data)[0].shape[0]
    size = min(max(ROWS // (4 * flatten(params).size), 1), count)
    every = jnp.arange(-(-count // size) * size).reshape(-1, size)

    def of_piece(rows: Array) -> Any:
        inside = jnp.minimum(rows, count - 1)
        gradients = example_gradients(objective, params, take(data, inside))
        return fn(jnp.where(rows[:, None] < count, gradients, 0.0), inside)

    def add(total: Any, rows: Array):
        return jax.tree.map(jnp.add, total, of_piece(rows)), None

    like = jax.eval_shape(of_piece, every[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    return lax.scan(add, zeros, every)[0]


def hessian_product(
    task: Task, params: Params, data: Batch, weights: Array, vector: Array
) -> Array:
    """`H v` for one vector `[P]`, with `H = sum_i weights_i * Hessian of loss_i`: `[P]`.

    The gradient of `<grad, v>`, reverse mode twice, over the data in pieces.
    """
    direction = ravel_pytree(params)[1](vector)

    def along(params: Params, batch: Batch, weights: Array) -> Array:
        slope = jax.grad(lambda p: weights @ task.loss(p, batch))(params)
        return _inner(slope, direction)

    return flatten(value_and_gradient(along)(params, data, weights)[1])


def hessian_products(
    task: Task, params: Params, data: Batch, weights: Array, vectors: Array
) -> Array:
    """`H v` for V vectors `[V, P]`, with `H = sum_i weights_i * Hessian of loss_i`: `[V, P]`."""
    return map_vectors(lambda v: hessian_product(task, params, data, weights, v), params, vectors)


def gauss_newton_product(
    task: Task, params: Params, data: Batch, weights: Array, vector: Array
) -> Array:
    """`G v` for one vector `[P]`, `G = sum_i weights_i (dz_i)^T (diag p_i - p_i p_i^T) dz_i`.

    The Gauss-Newton matrix of softmax cross-entropy, z the logits and p their softmax; it is
    never indefinite. Labels do not matter. Reverse mode alone, over the data in pieces.
    """
    direction = ravel_pytree(params)[1](vector)

    def along(moved: Params, batch: Batch, weights: Array) -> Array:
        chances = jax.nn.softmax(task.apply(params, batch.x))
        change = output_change(lambda p: task.apply(p, batch.x), params)(direction)
        # An einsum, as of `sum(chances * change, -1)` XLA:CPU makes wrong numbers under vmap: its
        # YNNPACK fusion (jaxlib 0.10.2), from about 1,000 examples on.
        pull = chances * (change - jnp.einsum("bc,bc->b", chances, change)[:, None])
        return weights @ jnp.sum(pull * task.apply(moved, batch.x), -1)

    return flatten(value_and_gradient(along)(params, data, weights)[1])


def map_vectors(fn: Callable[[Array], Array], params: Params, vectors: Array) -> Array:
    """`fn(vector [P])` for V vectors `[V, P]`, as many side by side as is fast."""
    pieces = -(-len(vectors) // vectors_at_once(params))
    return map_pieces(jax.vmap(fn), vectors, -(-len(vectors) // pieces))


def vectors_at_once(params: Params) -> int:
    """How many Hessian-vector products go side by side, by the shapes of the parameters.

    Side by side the products of small dense layers become large ones: six times faster at
    P = 7,850 on a CPU, no faster at P = 110,000. Convolutions would become grouped ones, which
    are slow.
    """
    leaves = jax.tree.leaves(params)
    if jax.default_backend() != "cpu":
        return 16
    if any(leaf.ndim > 2 for leaf in leaves):
        return 1
    return min(max(VECTORS // (4 * sum(leaf.size for leaf in leaves)), 1), 64)


def fisher_root(task: Task) -> Output:
    """An objective whose gradients, over all labels of a point, are rows of its Fisher matrix.

    `sqrt(p_y(x)) loss(x, y)` with the chances p held fixed: summed over the labels (`every_label`)
    the squares of its gradients are `(dz)^T (diag p - p p^T) dz`, for softmax cross-entropy the
    Gauss-Newton matrix of the logits z.
    """

    def root(params: Params, example: Batch) -> Array:
        chances = jax.nn.softmax(task.apply(lax.stop_gradient(params), example.x))
        return jnp.sqrt(jnp.sum(chances * example.y, -1)) * task.loss(params, example)

    return root


def every_label(x: Array, classes: int) -> Batch:
    """Each of the inputs `[B, ...]` with each label in turn, `[B C, ...]`."""
    return Batch(jnp.repeat(x, classes, 0), jnp.tile(jnp.eye(classes), (len(x), 1)))


def check_diagonal(damping: float, weight_decay: float) -> float:
    """What is added to the curvature's diagonal: their sum.

    Raises:
        ValueError: for a negative one, or if both are zero: the curvature alone may be singular.
    """
    if not damping >= 0:
        raise ValueError(f"damping={damping}; it must be at least 0")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay}; it must be at least 0")
    if damping + weight_decay == 0:
        raise ValueError("damping=0 and weight_decay=0; one of them must be positive")
    return damping + weight_decay


def _inner(a: Params, b: Params) -> Array:
    return jnp.sum(
        jnp.stack(
            [jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
        )
    )
