"""Influence functions with the Gauss-Newton matrix of a part of the data, by Woodbury."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from ddm_jax.estimators.influence import (
    check_at_least_one,
    check_labels,
    make_influence,
)
from ddm_jax.gradients import (
    check_diagonal,
    every_label,
    fisher_root,
    gradient_products,
    map_gradients,
    sum_gradients,
)
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun

LARGEST = 12_000  # rows of the system: three matrices of 600 MB


def make_gauss_newton(
    task: Task,
    *,
    damping: float = 0.01,
    points: int = 500,
    weight_decay: float = 0.0,
    output: Output | None = None,
) -> Estimator:
    """Make the influence function with the Gauss-Newton matrix of m random points for H.

    `G = J^T J / m`, J the `[m C, P]` rows `sqrt(p_c(x_i)) grad loss(x_i, e_c)`: the Fisher
    matrix, which for softmax cross-entropy is the Gauss-Newton matrix
    `(1/m) sum_i (dz_i)^T (diag p - p p^T) dz_i` of the logits z. With `d = weight_decay +
    damping`, by Woodbury,

        (G + d I)^-1 v = (v - J^T (J J^T + m d I)^-1 J v) / d

    a system of m C equations. It is positive definite for any network. J itself is never held.

    Martens, "New insights and perspectives on the natural gradient method", 2020, arXiv
    1412.1193; as an influence function Bae, Ng, Lo, Ghassemi & Grosse, "If influence functions
    are the answer, then what is the question?", 2022, arXiv 2209.05364, who use all points.

    Args:
        damping: at least 0.
        points: m, at least 1; all of them if that is less.
        weight_decay: of the training objective.
        output: what is explained; default `task.output`.

    Raises:
        ValueError: for a setting out of range, or (in `fit`) labels that are no distributions,
            or more than LARGEST equations.
    """
    diagonal = check_diagonal(damping, weight_decay)
    check_at_least_one(points=points)

    root = fisher_root(task)

    def labelled(data: Batch) -> Batch:
        return every_label(data.x[:points], data.y.shape[-1])

    def factor(key: Array, params: Params, data: Batch) -> Array:
        rows = min(points, len(data.x)) * data.y.shape[-1]
        if rows > LARGEST:
            raise ValueError(
                f"points={points} with {data.y.shape[-1]} classes make {rows} equations; "
                f"{LARGEST} at most: lower points"
            )
        every = labelled(data)
        products = map_gradients(
            lambda some: gradient_products(root, params, every, some).T, root, params, every
        )
        scale = rows // data.y.shape[-1] * diagonal
        return cho_factor(products + scale * jnp.eye(rows), lower=True)[0]

    def solve(params: Params, data: Batch, factor: Array, vectors: Array) -> Array:
        every = labelled(data)
        along = gradient_products(root, params, every, vectors)
        amount = cho_solve((factor, True), along)
        back = sum_gradients(lambda rows, which: amount[which].T @ rows, root, params, every)
        return (vectors - back) / diagonal

    estimator = make_influence(task, factor, solve, output)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> Any:
        check_labels(data)
        return estimator.fit(key, run, data, groups)

    return estimator._replace(fit=fit)
