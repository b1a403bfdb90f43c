"""Influence functions in the leading eigenvectors of the Hessian, found by Arnoldi's method."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.checks import check_integer
from ddm_jax.estimators._influence import make_influence, mean_weights
from ddm_jax.gradients import curvature_diagonal, flatten, hessian_product
from ddm_jax.types import Array, Batch, Estimator, Params, Task


class LeadingPairs(NamedTuple):
    values: Array  # [r], the diagonal included
    directions: Array  # [r, P], orthonormal


def make_influence_arnoldi(
    task: Task, *, damping: float = 0.01, rank: int = 50, iterations: int = 100
) -> Estimator:
    """Make the influence function in the span of the r leading Ritz vectors of the Hessian.

    Arnoldi's method builds an orthonormal basis of the Krylov space of the Hessian H of the mean
    loss over all points, from a random start; the Ritz pairs `(l_j, u_j)` of the r largest |l_j|
    give `(H + (weight_decay + damping) I)^-1 ~ sum_j u_j u_j^T / (l_j + weight_decay + damping)`,
    with the run's weight decay. Everything outside their span is dropped.

    Schioppa, Zablotskaia, Vilar & Sokolov, "Scaling up influence functions", 2022, arXiv
    2112.03052. H is symmetric, so its projection is made symmetric too (Lanczos with full
    orthogonalisation), and weight decay and damping, absent there, are added to the diagonal.

    Args:
        damping: at least 0.
        rank: r, pairs that are kept, 1 to `iterations`.
        iterations: the dimension of the Krylov space (P if that is less).

    Raises:
        ValueError: for a setting out of range, or (in `fit`) neither damping nor weight decay.
    """
    check_integer("iterations", iterations)
    check_integer("rank", rank, 1, iterations)

    def factor(key: Array, params: Params, data: Batch, weight_decay: Array) -> LeadingPairs:
        flat = flatten(params)
        steps = min(iterations, flat.size)
        weights = mean_weights(data)
        start = jax.random.normal(jax.random.fold_in(key, 1), flat.shape, jnp.float32)
        basis = jnp.zeros((steps + 1, flat.size), flat.dtype)
        basis = basis.at[0].set(start / jnp.linalg.norm(start))

        def step(basis: Array, index: Array):
            image = hessian_product(task, params, data, weights, basis[index])
            along = basis @ image
            rest = image - along @ basis
            rest = rest - (basis @ rest) @ basis  # what rounding left
            length = jnp.linalg.norm(rest)
            # A space that is complete gets no more directions, and no noise for one.
            fresh = jnp.where(length > 1e-5 * jnp.linalg.norm(image), rest / length, 0.0)
            return basis.at[index + 1].set(fresh), along[:steps]

        basis, projected = lax.scan(step, basis, jnp.arange(steps))
        # Row j has <q_i, H q_j> for i <= j; the one beyond is its mirror image.
        lower = jnp.tril(projected)
        values, vectors = jnp.linalg.eigh(lower + jnp.tril(projected, -1).T)
        leading = jnp.argsort(-jnp.abs(values))[:rank]
        directions = vectors[:, leading].T @ basis[:steps]
        return LeadingPairs(values[leading] + curvature_diagonal(damping, weight_decay), directions)

    def solve(params: Params, data: Batch, pairs: LeadingPairs, vectors: Array) -> Array:
        return vectors @ pairs.directions.T / pairs.values @ pairs.directions

    return make_influence(task, factor, solve, damping=damping, method="influence_arnoldi")
