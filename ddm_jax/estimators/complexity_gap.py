"""Complexity gap: what a point adds to how hard the labels are to fit, with no training at all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from ddm_jax.estimators.data_values import make_data_value
from ddm_jax.types import Array, Batch, Estimator


def make_complexity_gap(*, damping: float = 1e-4) -> Estimator:
    """Make the data value `-((H^-1 y)_i)^2 / (H^-1)_ii`, summed over the classes.

    H is `wide_network_kernel`; the score is by how much leaving out point i lowers the complexity
    `y^T H^-1 y` of the labels. Nohyun, Choi & Chung, "Data valuation without training of a model",
    2023, arXiv 2301.00930. Takes an N x N matrix.

    Args:
        damping: added to the diagonal of H, in units of its mean; duplicates need it.

    Raises:
        ValueError: for a damping that is not positive.
    """
    if not damping > 0:
        raise ValueError(f"damping={damping}; it must be positive")

    @jax.jit
    def values(data: Batch) -> Array:
        kernel = wide_network_kernel(data.x)
        kernel += 0.5 * damping * jnp.eye(len(kernel))
        inverse = cho_solve(cho_factor(kernel), jnp.eye(len(kernel)))
        centred = data.y - jnp.mean(data.y, 0)
        return -jnp.sum((inverse @ centred) ** 2, 1) / jnp.diag(inverse)

    return make_data_value(lambda key, run, data: values(data))


def wide_network_kernel(x: Array) -> Array:
    """The kernel of an infinitely wide two-layer ReLU network on inputs of length one, [N, N].

    `H_ij = <x_i, x_j> (pi - arccos <x_i, x_j>) / (2 pi)`, from 0 to 1/2, which the diagonal has.
    """
    flat = x.reshape(len(x), -1)
    flat = flat / jnp.maximum(jnp.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    cosine = jnp.clip(flat @ flat.T, -1.0, 1.0)
    kernel = cosine * (jnp.pi - jnp.arccos(cosine)) / (2 * jnp.pi)
    index = jnp.arange(len(flat))
    # Not from the arccos, whose rounding near one is as large as any damping.
    return kernel.at[index, index].set(0.5)
