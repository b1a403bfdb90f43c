"""Influence functions with the explicit Hessian."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.scipy.linalg import lu_factor, lu_solve

from ddm_jax.estimators.influence import make_influence, mean_weights
from ddm_jax.gradients import check_diagonal, flatten, hessian_products
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Params, Task

LARGEST = 12_000  # parameters: three matrices of 600 MB


def make_influence_exact(
    task: Task, *, damping: float = 0.01, weight_decay: float = 0.0, output: Output | None = None
) -> Estimator:
    """Make the influence function that solves with the whole Hessian.

    `score[k, q] = -g_k^T (H + (weight_decay + damping) I)^-1 grad output_q`, H the Hessian of the
    mean loss: its P rows are Hessian-vector products of the identity, many side by side, and
    the system is solved by LU with pivoting. The Hessian of a network is indefinite; as in the
    paper it is taken as it is, so damping below its most negative eigenvalue gives a saddle.

    Koh & Liang, "Understanding black-box predictions via influence functions", 2017, arXiv
    1703.04730. Points are upweighted there one at a time; a group is the sum of its points.

    Args:
        damping: at least 0.
        weight_decay: of the training objective.
        output: what is explained; default `task.output`.

    Raises:
        ValueError: for settings out of range, or (in `fit`) a network with too many parameters.
    """
    diagonal = check_diagonal(damping, weight_decay)

    def factor(key: Array, params: Params, data: Batch) -> tuple[Array, Array]:
        size = flatten(params).size
        if size > LARGEST:
            raise ValueError(
                f"the network has P={size} parameters; an explicit Hessian takes {LARGEST} at "
                "most: use influence_cg"
            )
        unit = jnp.eye(size)
        hessian = hessian_products(task, params, data, mean_weights(data), unit)
        return lu_factor((hessian + hessian.T) / 2 + diagonal * unit)

    def solve(params: Params, data: Batch, factors: Any, vectors: Array) -> Array:
        return lu_solve(factors, vectors.T).T

    return make_influence(task, factor, solve, output)
