"""Influence functions with the Gauss-Newton matrix of a part of the data, by Woodbury."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from ddm_jax.checks import check_integer, require_distributions
from ddm_jax.compute.memory import refuse_larger
from ddm_jax.estimators._influence import make_influence
from ddm_jax.gradients import (
    curvature_diagonal,
    every_label,
    fisher_root,
    gradient_products,
    map_gradients,
    sum_gradients,
)
from ddm_jax.types import Array, Batch, Estimator, Params, Task, length, take


class GaussNewton(NamedTuple):
    factor: Array  # [m C, m C], the Cholesky factor of `J J^T + m d I`
    diagonal: Array  # d


def make_gauss_newton(task: Task, *, damping: float = 0.01, points: int = 500) -> Estimator:
    """Make the influence function with the Gauss-Newton matrix of m random points for H.

    `G = J^T J / m`, J the `[m C, P]` rows `sqrt(p_c(x_i)) grad loss(x_i, e_c)`: the Fisher
    matrix, which for softmax cross-entropy is the Gauss-Newton matrix
    `(1/m) sum_i (dz_i)^T (diag p - p p^T) dz_i` of the logits z. With `d = weight_decay +
    damping`, the weight decay the run's, by Woodbury,

        (G + d I)^-1 v = (v - J^T (J J^T + m d I)^-1 J v) / d

    a system of m C equations. It is positive definite for any network. J itself is never held.

    Martens, "New insights and perspectives on the natural gradient method", 2020, arXiv
    1412.1193; as an influence function Bae, Ng, Lo, Ghassemi & Grosse, "If influence functions
    are the answer, then what is the question?", 2022, arXiv 2209.05364, who use all points.

    Args:
        damping: at least 0.
        points: m, at least 1; all of them if that is less.

    Raises:
        ValueError: for a setting out of range or a task whose targets are no classes, or (in
            `fit`) neither damping nor weight decay, or more equations than fit into memory.
    """
    require_distributions(task, "gauss_newton")
    check_integer("points", points)
    root = fisher_root(task)

    def labelled(data: Batch) -> Batch:
        return every_label(take(data.x, slice(points)), data.y.shape[-1])

    def factor(key: Array, params: Params, data: Batch, weight_decay: Array) -> GaussNewton:
        classes = data.y.shape[-1]
        used = min(points, length(data))
        refuse_larger(
            f"points={points} with {classes} classes, a system of {used * classes} equations,",
            3 * 4 * (used * classes) ** 2,
            "lower points",
            part=8,
        )
        every = labelled(data)
        products = map_gradients(
            lambda some: gradient_products(root, params, every, some).T, root, params, every
        )
        diagonal = curvature_diagonal(damping, weight_decay)
        system = products + used * diagonal * jnp.eye(len(products), dtype=products.dtype)
        return GaussNewton(cho_factor(system, lower=True)[0], diagonal)

    def solve(params: Params, data: Batch, curvature: GaussNewton, vectors: Array) -> Array:
        every = labelled(data)
        along = gradient_products(root, params, every, vectors)
        amount = cho_solve((curvature.factor, True), along)
        back = sum_gradients(lambda rows, which: amount[which].T @ rows, root, params, every)
        return (vectors - back) / curvature.diagonal

    return make_influence(task, factor, solve, damping=damping, method="gauss_newton")
