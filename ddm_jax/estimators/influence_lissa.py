"""Influence functions by LiSSA: a Neumann series of Hessians of batches."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.checks import check_integer, check_number
from ddm_jax.estimators._influence import make_influence, mean_weights
from ddm_jax.gradients import (
    curvature_diagonal,
    flatten,
    hessian_product,
    hessian_products,
    map_vectors,
)
from ddm_jax.types import Array, Batch, Estimator, Params, Task, length, take

PROBES = 8  # batches whose largest eigenvalue is estimated
POWER_STEPS = 20


class LissaCurvature(NamedTuple):
    batches: Array  # [depth, batch], rows of the data
    scale: Array
    diagonal: Array  # damping and weight decay


def make_influence_lissa(
    task: Task,
    *,
    damping: float = 0.01,
    scale: float | None = None,
    depth: int = 500,
    batch: int = 50,
) -> Estimator:
    """Make the influence function that solves by LiSSA.

    `h_0 = v`, `h_j = v + h_{j-1} - (H_j + (weight_decay + damping) I) h_{j-1} / scale`, with H_j
    the Hessian of the mean loss over a batch and the run's weight decay, and
    `(H + ...)^-1 v ~ h_depth / scale`. Every vector meets the same batches. It converges where
    the eigenvalues of all batches are below twice the scale, in about `scale / eigenvalue` steps
    each: a short series leaves flat directions out, and one along which a Hessian curves down by
    more than the diagonal grows without bound.

    Agarwal, Bullins & Hazan, "Second-order stochastic optimization for machine learning in
    linear time", 2017, arXiv 1602.03943; for influence Koh & Liang, 2017, arXiv 1703.04730. The
    scale is left to the user there.

    Args:
        damping: at least 0.
        scale: positive; default the largest eigenvalue of a few batches, by the power method.
        depth: terms of the series, at least 1.
        batch: points a term, at least 1.

    Raises:
        ValueError: for a setting out of range, or (in `fit`) neither damping nor weight decay.

    Warns:
        UserWarning: where a series diverged.
    """
    check_integer("depth", depth)
    check_integer("batch", batch)
    if scale is not None:
        check_number("scale", scale, above=0)

    def product(params: Params, data: Batch, diagonal: Array, rows: Array, vector: Array) -> Array:
        points = take(data, rows)
        curved = hessian_product(task, params, points, mean_weights(points), vector)
        return curved + diagonal * vector

    def largest(key: Array, params: Params, data: Batch, diagonal: Array, batches: Array) -> Array:
        flat = flatten(params)
        start = jax.random.normal(key, flat.shape, jnp.float32).astype(flat.dtype)

        def of_batch(rows: Array) -> Array:
            def step(vector: Array, _):
                image = product(params, data, diagonal, rows, vector)
                size = jnp.linalg.norm(image)
                return image / size, size

            return lax.scan(step, start, length=POWER_STEPS)[1][-1]

        return jnp.max(lax.map(of_batch, batches))

    def factor(key: Array, params: Params, data: Batch, weight_decay: Array) -> LissaCurvature:
        batch_key, probe_key, start_key = jax.random.split(jax.random.fold_in(key, 1), 3)
        batches = jax.random.randint(batch_key, (depth, batch), 0, length(data), jnp.int32)
        probes = jax.random.randint(probe_key, (PROBES, batch), 0, length(data), jnp.int32)
        diagonal = curvature_diagonal(damping, weight_decay)
        if scale is None:
            return LissaCurvature(
                batches, largest(start_key, params, data, diagonal, probes), diagonal
            )
        return LissaCurvature(batches, jnp.asarray(scale, flatten(params).dtype), diagonal)

    def solve(params: Params, data: Batch, curvature: LissaCurvature, vectors: Array) -> Array:
        batches, scale, diagonal = curvature

        def of_vector(vector: Array) -> Array:
            def step(h: Array, rows: Array):
                return vector + h - product(params, data, diagonal, rows, h) / scale, None

            return lax.scan(step, vector, batches)[0] / scale

        return map_vectors(of_vector, params, vectors)

    def image(params: Params, data: Batch, curvature: LissaCurvature, solved: Array) -> Array:
        curved = hessian_products(task, params, data, mean_weights(data), solved)
        return curved + curvature.diagonal * solved

    return make_influence(
        task, factor, solve, damping=damping, image=image, method="influence_lissa"
    )
