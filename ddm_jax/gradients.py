"""Gradients of single examples as rows of a matrix, and products with them: what estimators share.

Parameters are flat vectors here, `[P]` in the order of `jax.flatten_util.ravel_pytree`, so that
an estimator is linear algebra and holds for any network. Nothing needs forward mode or a hook into
a layer. N x P numbers are never held: rows come in pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from ddm_jax.checks import check_number, is_concrete, require_distributions
from ddm_jax.compute.memory import at_once, bytes_of, examples_a_piece
from ddm_jax.compute.pieces import bytes_an_example, map_pieces, value_and_gradient
from ddm_jax.compute.placement import chunked_vmap
from ddm_jax.objectives import Output, output_change
from ddm_jax.types import Array, Batch, Groups, Leaf, Params, Task, length, take


def wide(dtype: Any) -> Any:
    """The type that sums are kept in: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def flatten(params: Params) -> Array:
    """Parameters as one vector [P], of at least float32."""
    flat = ravel_pytree(params)[0]
    return flat.astype(wide(flat.dtype))


def unflatten(like: Params) -> Callable[[Array], Params]:
    """Make the inverse of `flatten`, into the types of `like`."""
    flat, unravel = ravel_pytree(like)
    return lambda vector: unravel(vector.astype(flat.dtype))


def as_params(rows: Array, like: Params) -> Params:
    """Vectors `[V, P]` as parameters, leaves `[V, ...]`."""
    return jax.vmap(unflatten(like))(rows)


def example_gradients(objective: Output, params: Params, batch: Batch) -> Array:
    """The gradient of `objective(params, batch) -> [B]` for each example apart, `[B, P]`.

    For a `task.loss` or an output; each example alone decides its own value.
    """

    def one(example: Batch) -> Array:
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        return flatten(jax.grad(lambda p: objective(p, alone)[0])(params))

    return jax.vmap(one)(batch)


def rows_at_once(params: Params) -> int:
    """How many gradients of single examples are held at once, by the shapes of the parameters."""
    return at_once("rows", bytes_of(jax.eval_shape(flatten, params)))


def map_gradients(
    fn: Callable[[Array], Array], objective: Output, params: Params, data: Batch
) -> Array:
    """`fn(gradients [B, P]) -> [B, ...]` over the gradients of all examples, in pieces."""
    size = rows_at_once(params)
    return map_pieces(lambda piece: fn(example_gradients(objective, params, piece)), data, size)


def gradient_products(objective: Output, params: Params, data: Batch, vectors: Array) -> Array:
    """`<grad objective_i, v>` for all N examples and V vectors `[V, P]`: `[N, V]`."""
    return map_gradients(lambda rows: rows @ vectors.T, objective, params, data)


def output_gradients(
    task: Task, params: Params, query: Batch, fn: Callable[[Array], Array] = lambda rows: rows
) -> Array:
    """The gradient of each explained output, `[Q, P]`, or `[S, P]` of a task of sets.

    Args:
        fn: what is wanted of the gradients `[B, P]`, as `[B, ...]`; default they themselves.
    """
    if not task.of_sets:
        return map_gradients(fn, task.output, params, query)
    # A set's output may be any function of all queries, which are not cut in pieces.
    unravel = unflatten(params)
    return fn(jax.jacrev(lambda vector: task.output(unravel(vector), query))(flatten(params)))


def output_changes(task: Task, params: Params, query: Batch, directions: Params) -> Array:
    """The derivative of every explained output along V directions, leaves `[V, ...]`: `[V, Q]`.

    Of a task of sets `[V, S]`. Without any gradient of a query: for fewer directions than queries.
    """

    def of_queries(query: Batch) -> Array:
        change = output_change(lambda params: task.output(params, query), params)
        return chunked_vmap(change)(directions).T

    if task.of_sets:
        return of_queries(query).T
    kept = bytes_an_example(lambda p, batch, w: w @ task.output(p, batch), params, query)
    return map_pieces(of_queries, query, examples_a_piece(length(query), kept)).T


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "valid", "owner", "total"],
    meta_fields=["count"],
)
@dataclass(frozen=True, eq=False)
class GroupBatches:
    """The training rows cut into pieces that belong to one group each."""

    rows: Leaf  # [J, c] int32
    valid: Leaf  # [J, c] float32, 0 where a piece is padded
    owner: Leaf  # [J] int32, the group of each piece
    total: Leaf  # int32, N
    count: int  # K, static


def group_batches(groups: Groups, size: int = 64) -> GroupBatches:
    """Cut the training set into pieces of at most `size` rows of one group.

    The background is in none of them, and counts in N. Padding adds less than `size` rows a group,
    so one pass over the pieces costs at most `N + K * size` example gradients. Runs on the host:
    the cut depends on the values of the ids.
    """
    ids, counts = np.asarray(groups.ids), groups.sizes()
    size = int(min(size, counts.max()))
    rows, valid, owner = [], [], []
    order = np.argsort(ids, kind="stable")[len(ids) - counts.sum() :]  # the background comes first
    for group, members in enumerate(np.split(order, np.cumsum(counts)[:-1])):
        for start in range(0, len(members), size):
            piece = members[start : start + size]
            fill = size - len(piece)
            rows.append(np.concatenate([piece, np.repeat(piece[:1], fill)]))
            valid.append(np.concatenate([np.ones(len(piece)), np.zeros(fill)]))
            owner.append(group)
    return GroupBatches(
        rows=jnp.asarray(np.stack(rows), jnp.int32),
        valid=jnp.asarray(np.stack(valid), jnp.float32),
        owner=jnp.asarray(owner, jnp.int32),
        total=jnp.asarray(len(ids), jnp.int32),
        count=groups.count,
    )


def make_group_gradients(task: Task) -> Callable[[Params, Batch, GroupBatches], Params]:
    """Make `group_gradients(params, data, batches) -> g`, leaves `[K, ...]`.

    `g_k = (1/N) sum_{i in D_k} grad loss_i(params)`; the K gradients and that of the background
    add up to the gradient of the mean loss. One pass over the pieces of `group_batches`,
    accumulated in place.
    """

    of_losses = value_and_gradient(lambda params, batch, valid: valid @ task.loss(params, batch))

    def group_gradients(params: Params, data: Batch, batches: GroupBatches) -> Params:
        def add(sums, piece):
            rows, valid, owner = piece
            _, gradient = of_losses(params, take(data, rows), valid)
            return jax.tree.map(lambda s, g: s.at[owner].add(g), sums, gradient), None

        zeros = jax.tree.map(
            lambda leaf: jnp.zeros((batches.count, *leaf.shape), wide(leaf.dtype)), params
        )
        sums, _ = lax.scan(add, zeros, (batches.rows, batches.valid, batches.owner))
        return jax.tree.map(lambda leaf: leaf / batches.total, sums)

    return group_gradients


def group_gradient_rows(task: Task, params: Params, data: Batch, batches: GroupBatches) -> Array:
    """`g_k = (1/N) sum_{i in D_k} grad loss_i` as rows, `[K, P]`."""
    gradients = make_group_gradients(task)(params, data, batches)
    return jax.vmap(flatten)(gradients)


def group_sums(values: Array, groups: Groups) -> Array:
    """`(1/N) sum_{i in D_k} values_i`: from a value an example, `[N, ...]`, to `[K, ...]`."""
    # The background's id, -1, is out of range there and dropped.
    return jax.ops.segment_sum(values, jnp.asarray(groups.ids), groups.count) / len(values)


def sum_gradients(
    fn: Callable[[Array, Array], Any], objective: Output, params: Params, data: Batch
) -> Any:
    """The sum of `fn(gradients [B, P], rows [B])` over all examples, in pieces.

    `rows` are the examples of the piece; where it is filled up, their gradients are zero.
    """
    count = length(data)
    size = min(rows_at_once(params), count)
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
    direction = unflatten(params)(vector)

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
    apply = require_distributions(task, "the Gauss-Newton matrix")
    direction = unflatten(params)(vector)

    def along(moved: Params, batch: Batch, weights: Array) -> Array:
        chances = jax.nn.softmax(apply(params, batch.x))
        change = output_change(lambda p: apply(p, batch.x), params)(direction)
        pull = chances * (change - jnp.sum(chances * change, -1, keepdims=True))
        return weights @ jnp.sum(pull * apply(moved, batch.x), -1)

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
    return at_once("vectors", bytes_of(params))


def fisher_root(task: Task) -> Output:
    """An objective whose gradients, over all labels of a point, are rows of its Fisher matrix.

    `sqrt(p_y(x)) loss(x, y)` with the chances p held fixed: summed over the labels (`every_label`)
    the squares of its gradients are `(dz)^T (diag p - p p^T) dz`, for softmax cross-entropy the
    Gauss-Newton matrix of the logits z.
    """

    apply = require_distributions(task, "the Fisher matrix")

    def root(params: Params, example: Batch) -> Array:
        chances = jax.nn.softmax(apply(lax.stop_gradient(params), example.x))
        return jnp.sqrt(jnp.sum(chances * example.y, -1)) * task.loss(params, example)

    return root


def every_label(x: Any, classes: int) -> Batch:
    """Each of the inputs, leaves `[B, ...]`, with each label in turn, `[B C, ...]`."""
    each = jax.tree.map(lambda leaf: jnp.repeat(leaf, classes, 0), x)
    return Batch(each, jnp.tile(jnp.eye(classes), (length(x), 1)))


def check_damping(damping: float) -> float:
    """A damping of at least 0, added to the diagonal of a curvature."""
    return check_number("damping", damping, least=0)


def curvature_diagonal(damping: float, weight_decay: Any) -> Array:
    """What is added to the curvature's diagonal: the damping and the run's weight decay.

    Raises:
        ValueError: if both are zero: the curvature alone may be singular.
    """
    if is_concrete(weight_decay) and not float(damping + weight_decay) > 0:
        raise ValueError("damping=0 and the run's weight_decay=0; one of them must be positive")
    return jnp.asarray(damping + weight_decay, jnp.float32)


def _inner(a: Params, b: Params) -> Array:
    return jnp.sum(
        jnp.stack(
            [jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
        )
    )
