"""Complexity gap: what a point adds to how hard the labels are to fit, with no training at all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from ddm_jax.estimators.data_values import make_data_value
from ddm_jax.types import Array, Batch, Estimator


def make_complexity_gap(*, damping: float = 1e-4) -> Estimator:
    """Make the data value `-((H^-1 y)_i)^2 / (H^-1)_ii`, summed over the classes.

    H is the kernel of an infinitely wide two-layer ReLU network on inputs of length one,
    `H_ij = <x_i, x_j> (pi - arccos <x_i, x_j>) / (2 pi)`; the score is by how much leaving out
    point i lowers the complexity `y^T H^-1 y` of the labels. Nohyun, Choi & Chung, "Data
    valuation without training of a model", 2023, arXiv 2301.00930. Takes an N x N matrix.

    Args:
        damping: added to the diagonal of H, in units of its mean; duplicates need it.

    Raises:
        ValueError: for a damping that is not positive.
    """
    if not damping > 0:
        raise ValueError(f"damping={damping}; it must be positive")

    @jax.jit
    def values(data: Batch) -> Array:
        x = data.x.reshape(len(data.x), -1)
        x = x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        cosine = jnp.clip(x @ x.T, -1.0, 1.0)
        kernel = cosine * (jnp.pi - jnp.arccos(cosine)) / (2 * jnp.pi)
        index = jnp.arange(len(x))
        # Not from the arccos, whose rounding near one is as large as the damping.
        kernel = kernel.at[index, index].set(0.5 * (1 + damping))
        inverse = cho_solve(cho_factor(kernel), jnp.eye(len(x)))
        centred = data.y - jnp.mean(data.y, 0)
        return -jnp.sum((inverse @ centred) ** 2, 1) / jnp.diag(inverse)

    return make_data_value(lambda key, run, data: values(data))
