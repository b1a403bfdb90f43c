"""EK-FAC influence functions: a Kronecker-factored eigenbasis with exact second moments in it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.estimators._influence import make_draw, make_influence
from ddm_jax.gradients import curvature_diagonal, example_gradients, sum_gradients
from ddm_jax.types import Array, Batch, Estimator, Params, Task, length, take

MOST = 8192  # rows or columns of a matrix that is turned; a table of tokens may have more
FEW = 8  # examples whose gradients tell whether they are outer products


class Block(NamedTuple):
    """Leaves that share a Kronecker factorisation: a kernel as a matrix, its bias as a last row."""

    kernel: int  # which leaf
    bias: int | None
    outer: bool  # the gradient of one example may be an outer product


class EkfacCurvature(NamedTuple):
    inputs: list[Array]  # of each block: eigenvectors [m, m] of the input factor
    outputs: list[Array]  # [n, n], of the output factor
    moments: list[Array]  # [m, n], `M + d`, M mean squares of pseudo-gradients in that basis
    others: Array  # [P'], those of the remaining leaves


def make_ekfac(task: Task, *, damping: float = 0.01) -> Estimator:
    """Make the influence function with the eigenvalue-corrected Kronecker factorisation for H.

    Pseudo-gradients are gradients of the loss with labels drawn from the model's own softmax;
    their second moments are the Fisher matrix. The gradient of a matrix-shaped leaf (a kernel
    `[..., n]` with its bias as one more row) of one example is `G [m, n]`. With U, V the
    eigenvectors of the input and output factors A and S,

        (H + d I)^-1 G ~ U [(U^T G V) / (M + d)] V^T,   M = mean of (U^T G V)^2,

    `d = weight_decay + damping` with the run's weight decay, block by block. No hooks into layers
    are needed: a dense layer has `G = a delta^T`, its bias's gradient is delta and `a = G delta /
    |delta|^2`, so `A = E[a a^T]` and `S = E[delta delta^T]` are the exact ones (of examples that
    reach the layer). Where gradients are no such products, as of convolutions, of kernels without a
    bias and of layers that are applied to each token, A and S are `E[G G^T]` and `E[G^T G]`, exact
    for a single Kronecker product. M is exact for any; the remaining leaves (scales, lone biases,
    tables of more than MOST rows) keep their diagonal. Of a language model the labels are tokens,
    one drawn at each place.

    George, Laurent, Bouthillier, Ballas & Vincent, "Fast approximate natural gradient descent in
    a Kronecker-factored eigenbasis", 2018, arXiv 1806.03884; for influence Grosse et al.,
    "Studying large language model generalization with influence functions", 2023, arXiv
    2308.03296, who set the damping of each layer to .1 of its mean M.

    Args:
        damping: at least 0.

    Raises:
        ValueError: for a setting out of range or a task whose targets are no classes, or (in
            `fit`) neither damping nor weight decay.
    """
    draw = make_draw(task, "ekfac")

    def factor(key: Array, params: Params, data: Batch, weight_decay: Array) -> EkfacCurvature:
        drawn = draw(params, data, jax.random.fold_in(key, 1))
        found = blocks(params)
        few = take(drawn, slice(FEW))
        some, _ = to_matrices(params, example_gradients(task.loss, params, few))
        outer = [block.outer and is_outer(g) for block, g in zip(found, some, strict=True)]

        def factors(rows: Array, which: Array) -> list[Array]:
            matrices, _ = to_matrices(params, rows)
            return [
                one for is_so, g in zip(outer, matrices, strict=True) for one in sides(is_so, g)
            ]

        sums = sum_gradients(factors, task.loss, params, drawn)
        bases = [jnp.linalg.eigh(one)[1] for one in sums]
        inputs, outputs = bases[::2], bases[1::2]

        def squares(rows: Array, which: Array) -> tuple[list[Array], Array]:
            matrices, others = to_matrices(params, rows)
            turned = turn(matrices, inputs, outputs)
            return [jnp.sum(g**2, 0) for g in turned], jnp.sum(others**2, 0)

        sums = sum_gradients(squares, task.loss, params, drawn)
        diagonal = curvature_diagonal(damping, weight_decay)
        moments, others = jax.tree.map(lambda leaf: leaf / length(data) + diagonal, sums)
        return EkfacCurvature(inputs, outputs, moments, others)

    def solve(params: Params, data: Batch, curvature: EkfacCurvature, vectors: Array) -> Array:
        inputs, outputs, moments, other_moments = curvature
        matrices, others = to_matrices(params, vectors)
        turned = turn(matrices, inputs, outputs)
        solved = [g / m for g, m in zip(turned, moments, strict=True)]
        back = turn(solved, [u.T for u in inputs], [v.T for v in outputs])
        return to_rows(params, back, others / other_moments)

    return make_influence(task, factor, solve, damping=damping, method="ekfac")


def blocks(params: Params) -> list[Block]:
    """The matrix-shaped leaves, each with the "bias" beside a "kernel" of as many columns."""
    named = {
        jax.tree_util.keystr(path): (index, leaf)
        for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params))
    }
    found = []
    for name, (index, leaf) in named.items():
        if leaf.ndim < 2 or max(leaf.size // leaf.shape[-1], leaf.shape[-1]) > MOST:
            continue
        beside, bias = named.get(name.removesuffix("['kernel']") + "['bias']", (None, None))
        if bias is not None and bias.shape != leaf.shape[-1:]:
            beside = None
        found.append(Block(index, beside, leaf.ndim == 2 and beside is not None))
    return found


def sides(outer: Array | bool, g: Array) -> tuple[Array, Array]:
    """The input and output factors, but for a constant, of gradients `[B, m, n]`.

    Args:
        outer: whether the gradients are outer products.
    """

    def of_products(g: Array) -> tuple[Array, Array]:
        a, delta = split_outer(g)
        return a.T @ a, delta.T @ delta

    def of_any(g: Array) -> tuple[Array, Array]:
        return jnp.einsum("bij,bkj->ik", g, g), jnp.einsum("bij,bik->jk", g, g)

    return of_any(g) if outer is False else lax.cond(outer, of_products, of_any, g)


def is_outer(g: Array) -> Array:
    """Whether gradients `[B, m, n]` are outer products, as of a layer that is applied once."""
    a, delta = split_outer(g)
    left = g - a[:, :, None] * delta[:, None]
    return jnp.sum(left**2) <= 1e-6 * jnp.sum(g**2)


def split_outer(g: Array) -> tuple[Array, Array]:
    """`a [B, m]` and `delta [B, n]` of outer products `[B, m, n]` whose last row is delta."""
    delta = g[:, -1]
    size = jnp.max(jnp.abs(delta), 1)[:, None]  # first, as squares of tiny numbers are zero
    unit = delta / jnp.where(size > 0, size, 1.0)
    scale = jnp.where(size > 0, size, 1.0) * jnp.maximum(jnp.sum(unit**2, 1, keepdims=True), 1.0)
    return jnp.einsum("bij,bj->bi", g, unit) / scale, delta


def turn(matrices: list[Array], left: list[Array], right: list[Array]) -> list[Array]:
    """`left^T G right` of each block's matrices `[V, m, n]`."""
    return [
        jnp.einsum("ik,vij,jl->vkl", u, g, v) for g, u, v in zip(matrices, left, right, strict=True)
    ]


def to_matrices(params: Params, rows: Array) -> tuple[list[Array], Array]:
    """Vectors [V, P] as matrices `[V, m, n]` a block, and what is in no block, `[V, P']`."""
    leaves = jax.tree.leaves(params)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = jnp.split(rows, ends, axis=1)
    matrices = []
    for block in blocks(params):
        columns = leaves[block.kernel].shape[-1]
        matrix = parts[block.kernel].reshape(len(rows), -1, columns)
        if block.bias is not None:
            matrix = jnp.concatenate([matrix, parts[block.bias][:, None]], 1)
        matrices.append(matrix)
    rest = [parts[index] for index in _others(params)]
    return matrices, jnp.concatenate(rest, 1) if rest else rows[:, :0]


def to_rows(params: Params, matrices: list[Array], others: Array) -> Array:
    """The inverse of `to_matrices`."""
    leaves = jax.tree.leaves(params)
    parts: dict[int, Array] = {}
    for block, matrix in zip(blocks(params), matrices, strict=True):
        if block.bias is not None:
            matrix, parts[block.bias] = matrix[:, :-1], matrix[:, -1]
        parts[block.kernel] = matrix.reshape(len(matrix), -1)
    start = 0
    for index in _others(params):
        parts[index] = others[:, start : start + leaves[index].size]
        start += leaves[index].size
    return jnp.concatenate([parts[index] for index in range(len(leaves))], 1)


def _others(params: Params) -> list[int]:
    taken = {index for block in blocks(params) for index in (block.kernel, block.bias)}
    return [index for index in range(len(jax.tree.leaves(params))) if index not in taken]
