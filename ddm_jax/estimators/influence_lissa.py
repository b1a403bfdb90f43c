"""Influence functions by LiSSA: a Neumann series of Hessians of batches."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.estimators.influence import check_at_least_one, make_influence
from ddm_jax.gradients import check_diagonal, flatten, hessian_product, map_vectors
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Params, Task, take

PROBES = 8  # batches whose largest eigenvalue is estimated
POWER_STEPS = 20


class LissaCurvature(NamedTuple):
    batches: Array  # [depth, batch], rows of the data
    scale: Array


def make_influence_lissa(
    task: Task,
    *,
    damping: float = 0.01,
    scale: float | None = None,
    depth: int = 500,
    batch: int = 50,
    weight_decay: float = 0.0,
    output: Output | None = None,
) -> Estimator:
    """Make the influence function that solves by LiSSA.

    `h_0 = v`, `h_j = v + h_{j-1} - (H_j + (weight_decay + damping) I) h_{j-1} / scale`, with H_j
    the Hessian of the mean loss over a batch, and `(H + ...)^-1 v ~ h_depth / scale`. Every vector
    meets the same batches. It converges where the eigenvalues of all batches are below twice the
    scale, in about `scale / eigenvalue` steps each: a short series leaves flat directions out.

    Agarwal, Bullins & Hazan, "Second-order stochastic optimization for machine learning in
    linear time", 2017, arXiv 1602.03943; for influence Koh & Liang, 2017, arXiv 1703.04730. The
    scale is left to the user there.

    Args:
        damping: at least 0.
        scale: positive; default the largest eigenvalue of a few batches, by the power method.
        depth: terms of the series, at least 1.
        batch: points a term, at least 1.
        weight_decay: of the training objective.
        output: what is explained; default `task.output`.

    Raises:
        ValueError: for a setting out of range.
    """
    diagonal = check_diagonal(damping, weight_decay)
    check_at_least_one(depth=depth, batch=batch)
    if scale is not None and not scale > 0:
        raise ValueError(f"scale={scale}; it must be positive")
    weights = jnp.full((batch,), 1 / batch)

    def product(params: Params, data: Batch, rows: Array, vector: Array) -> Array:
        points = take(data, rows)
        return hessian_product(task, params, points, weights, vector) + diagonal * vector

    def largest(key: Array, params: Params, data: Batch, batches: Array) -> Array:
        start = jax.random.normal(key, flatten(params).shape)

        def of_batch(rows: Array) -> Array:
            def step(vector: Array, _):
                image = product(params, data, rows, vector)
                size = jnp.linalg.norm(image)
                return image / size, size

            return lax.scan(step, start, length=POWER_STEPS)[1][-1]

        return jnp.max(lax.map(of_batch, batches))

    def factor(key: Array, params: Params, data: Batch) -> LissaCurvature:
        batch_key, probe_key, start_key = jax.random.split(jax.random.fold_in(key, 1), 3)
        batches = jax.random.randint(batch_key, (depth, batch), 0, len(data.x))
        probes = jax.random.randint(probe_key, (PROBES, batch), 0, len(data.x))
        if scale is not None:
            return LissaCurvature(batches, jnp.asarray(scale))
        return LissaCurvature(batches, largest(start_key, params, data, probes))

    def solve(params: Params, data: Batch, curvature: LissaCurvature, vectors: Array) -> Array:
        batches, scale = curvature

        def of_vector(vector: Array) -> Array:
            def step(h: Array, rows: Array):
                return vector + h - product(params, data, rows, h) / scale, None

            return lax.scan(step, vector, batches)[0] / scale

        return map_vectors(of_vector, params, vectors)

    return make_influence(task, factor, solve, output)
