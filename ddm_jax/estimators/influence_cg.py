"""Influence functions by conjugate gradients, which never hold the Hessian."""

from __future__ import annotations

from ddm_jax.checks import check_integer
from ddm_jax.estimators._influence import conjugate_gradient, make_influence, mean_weights
from ddm_jax.gradients import curvature_diagonal, hessian_product, hessian_products, map_vectors
from ddm_jax.types import Array, Batch, Estimator, Params, Task


def make_influence_cg(task: Task, *, damping: float = 0.01, iterations: int = 20) -> Estimator:
    """Make the influence function that solves by conjugate gradients.

    `(H + (weight_decay + damping) I)^-1 v`, H the Hessian of the mean loss over all points and
    the weight decay the run's, after a fixed number of iterations from zero, each with one
    Hessian-vector product. The Hessian of a network is indefinite: a solve stops where it meets
    negative curvature (Martens, "Deep learning via Hessian-free optimization", 2010).

    Koh & Liang, "Understanding black-box predictions via influence functions", 2017, arXiv
    1703.04730, section 3. A group is the sum of its points.

    Args:
        damping: at least 0.
        iterations: at least 1.

    Raises:
        ValueError: for a setting out of range, or (in `fit`) neither damping nor weight decay.

    Warns:
        UserWarning: where a solve diverged.
    """
    check_integer("iterations", iterations)

    def factor(key: Array, params: Params, data: Batch, weight_decay: Array) -> Array:
        return curvature_diagonal(damping, weight_decay)

    def solve(params: Params, data: Batch, diagonal: Array, vectors: Array) -> Array:
        weights = mean_weights(data)

        def product(vector: Array) -> Array:
            return hessian_product(task, params, data, weights, vector)

        return map_vectors(
            lambda v: conjugate_gradient(product, diagonal, v, iterations), params, vectors
        )

    def image(params: Params, data: Batch, diagonal: Array, solved: Array) -> Array:
        curved = hessian_products(task, params, data, mean_weights(data), solved)
        return curved + diagonal * solved

    return make_influence(task, factor, solve, damping=damping, image=image, method="influence_cg")
