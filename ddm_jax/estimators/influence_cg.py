"""Influence functions by conjugate gradients, which never hold the Hessian."""

from __future__ import annotations

from typing import Any

from ddm_jax.estimators.influence import (
    check_at_least_one,
    conjugate_gradient,
    make_influence,
    mean_weights,
)
from ddm_jax.gradients import check_diagonal, hessian_product, map_vectors
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Params, Task


def make_influence_cg(
    task: Task,
    *,
    damping: float = 0.01,
    iterations: int = 20,
    weight_decay: float = 0.0,
    output: Output | None = None,
) -> Estimator:
    """Make the influence function that solves by conjugate gradients.

    `(H + (weight_decay + damping) I)^-1 v`, H the Hessian of the mean loss over all points,
    after a fixed number of iterations from zero, each with one Hessian-vector product. The
    Hessian of a network is indefinite: a solve stops where it meets negative curvature (Martens,
    "Deep learning via Hessian-free optimization", 2010).

    Koh & Liang, "Understanding black-box predictions via influence functions", 2017, arXiv
    1703.04730, section 3. A group is the sum of its points.

    Args:
        damping: at least 0.
        iterations: at least 1.
        weight_decay: of the training objective.
        output: what is explained; default `task.output`.

    Raises:
        ValueError: for a setting out of range.
    """
    diagonal = check_diagonal(damping, weight_decay)
    check_at_least_one(iterations=iterations)

    def factor(key: Array, params: Params, data: Batch) -> tuple[()]:
        return ()

    def solve(params: Params, data: Batch, nothing: Any, vectors: Array) -> Array:
        weights = mean_weights(data)

        def product(vector: Array) -> Array:
            return hessian_product(task, params, data, weights, vector)

        return map_vectors(
            lambda v: conjugate_gradient(product, diagonal, v, iterations), params, vectors
        )

    return make_influence(task, factor, solve, output)
