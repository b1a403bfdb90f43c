"""Influence functions with the explicit Hessian."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.scipy.linalg import lu_factor, lu_solve

from ddm_jax.compute.memory import bytes_of, refuse_larger
from ddm_jax.estimators._influence import make_influence, mean_weights
from ddm_jax.gradients import curvature_diagonal, flatten, hessian_products
from ddm_jax.types import Array, Batch, Estimator, Params, Task


def make_influence_exact(task: Task, *, damping: float = 0.01) -> Estimator:
    """Make the influence function that solves with the whole Hessian.

    `score[k, q] = -g_k^T (H + (weight_decay + damping) I)^-1 grad output_q`, H the Hessian of the
    mean loss and the weight decay the run's: its P rows are Hessian-vector products of the
    identity, many side by side, and the system is solved by LU with pivoting. The Hessian of a
    network is indefinite; as in the paper it is taken as it is, so damping below its most
    negative eigenvalue gives a saddle.

    Koh & Liang, "Understanding black-box predictions via influence functions", 2017, arXiv
    1703.04730. Points are upweighted there one at a time; a group is the sum of its points.

    Args:
        damping: at least 0.

    Raises:
        ValueError: for a setting out of range, or (in `fit`) neither damping nor weight decay, or
            a network with too many parameters.

    Warns:
        UserWarning: where the damping leaves a saddle.
    """

    def factor(key: Array, params: Params, data: Batch, weight_decay: Array) -> tuple[Array, Array]:
        flat = flatten(params)
        refuse_larger(
            f"an explicit Hessian of P={flat.size} parameters",
            3 * flat.size * bytes_of(flat),
            "use influence_cg",
            part=8,
        )
        unit = jnp.eye(flat.size, dtype=flat.dtype)
        hessian = hessian_products(task, params, data, mean_weights(data), unit)
        return lu_factor(
            (hessian + hessian.T) / 2 + curvature_diagonal(damping, weight_decay) * unit
        )

    def solve(params: Params, data: Batch, factors: Any, vectors: Array) -> Array:
        return lu_solve(factors, vectors.T).T

    return make_influence(task, factor, solve, damping=damping, method="influence_exact")
