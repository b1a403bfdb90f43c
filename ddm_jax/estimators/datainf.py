"""DataInf: influence functions whose inverse Hessian is a mean of rank-one inverses."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.estimators._influence import make_influence
from ddm_jax.gradients import map_gradients, sum_gradients
from ddm_jax.types import Array, Batch, Estimator, Params, Task


class RankOnes(NamedTuple):
    norms: Array  # [N, L], squared norms of the gradient of each point by layer
    damping: Array  # [L]


def make_datainf(task: Task, *, damping: float = 0.1) -> Estimator:
    """Make DataInf: `(G + d I)^-1`, G the mean of `g_i g_i^T`, as a mean of inverses, by layer.

    For each layer l, with `g_i` that part of the gradient of the loss of point i,

        (1/N) sum_i (g_i g_i^T + d_l I)^-1 v
            = (v - (1/N) sum_i g_i (g_i^T v) / (d_l + |g_i|^2)) / d_l

    by Sherman and Morrison, with `d_l = damping * mean_i |g_i|^2 / P_l + weight_decay`, the run's.
    Swapping the mean and the inverse is the method's approximation: exact for a single point, or
    where damping outweighs the gradients.

    Kwon, Wu, Wu & Zou, "DataInf: efficiently estimating data influence in LoRA-tuned LLMs and
    diffusion models", 2024, arXiv 2310.00902, with damping .1. A layer is a leaf of the
    parameters here; weight decay, absent there, is part of the curvature, as everywhere.

    Args:
        damping: in units of the mean squared gradient of a layer's parameter, at least 0.

    Raises:
        ValueError: for a setting out of range, or (in `fit`) neither damping nor weight decay.
    """

    def factor(key: Array, params: Params, data: Batch, weight_decay: Array) -> RankOnes:
        def squares(rows: Array) -> Array:
            return jnp.stack([jnp.sum(part**2, 1) for part in by_layer(params, rows)], 1)

        norms = map_gradients(squares, task.loss, params, data)
        sizes = jnp.asarray([leaf.size for leaf in jax.tree.leaves(params)], norms.dtype)
        # A layer that no point moves has no damping of its own.
        own = jnp.maximum(damping * norms.mean(0) / sizes, 1e-20)
        return RankOnes(norms, own + weight_decay)

    def solve(params: Params, data: Batch, curvature: RankOnes, vectors: Array) -> Array:
        norms, damping = curvature
        parts = by_layer(params, vectors)

        def inside(rows: Array, which: Array) -> list[Array]:
            return [
                ((row @ part.T) / (damping[layer] + norms[which, layer])[:, None]).T @ row
                for layer, (row, part) in enumerate(zip(by_layer(params, rows), parts, strict=True))
            ]

        sums = sum_gradients(inside, task.loss, params, data)
        return jnp.concatenate(
            [
                (part - total / len(norms)) / damping[layer]
                for layer, (part, total) in enumerate(zip(parts, sums, strict=True))
            ],
            1,
        )

    return make_influence(task, factor, solve, damping=damping, method="datainf")


def by_layer(params: Params, rows: Array) -> list[Array]:
    """Vectors [V, P] cut into the leaves of the parameters, each `[V, P_l]`."""
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(params)])[:-1]
    return jnp.split(rows, ends, axis=1)
