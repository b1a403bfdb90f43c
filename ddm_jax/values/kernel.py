"""Values by the kernel of a wide network, which no training is needed for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve

from ddm_jax.checks import check_number, require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.gradients import wide
from ddm_jax.types import Array, Batch, Task, TrainRun
from ddm_jax.values._contract import Values, check_points

BLOCK = 10_000  # points of one kernel: 400 MB a matrix
DAMPING = 0.03  # of the kernel, in units of its diagonal
LEFT_OUT = 0.2  # of the points at most, from the kernel's training, as suspects
ROUNDS = 3  # of leaving suspects out


def complexity_gap(task: Task, *, damping: float = 1e-4) -> Values:
    """Make the value `-((H^-1 y)_i)^2 / (H^-1)_ii`, summed over the classes.

    H is `wide_network_kernel`; the value is minus the complexity `y^T H^-1 y` of the labels that
    point i adds to that of the others. Nohyun, Choi & Chung, "Data valuation without training of a
    model", 2023, arXiv 2301.00930. Takes an N x N matrix.

    Args:
        damping: added to the diagonal of H, in units of its mean; duplicates need it.

    Raises:
        ValueError: for a damping that is not positive, or a task whose targets are no classes.
    """
    check_number("damping", damping, above=0)
    require_distributions(task, "complexity_gap")

    @compiled
    def values(data: Batch) -> Array:
        kernel = wide_network_kernel(data.x)
        eye = jnp.eye(len(kernel), dtype=kernel.dtype)
        inverse = cho_solve(cho_factor(kernel + 0.5 * damping * eye), eye)
        y = data.y.astype(kernel.dtype)
        return -jnp.sum((inverse @ (y - jnp.mean(y, 0))) ** 2, 1) / jnp.diag(inverse)

    def checked(key: Array, run: TrainRun, data: Batch) -> Array:
        check_points(data, "complexity_gap", 2)
        return values(data)

    return checked


def kernel_margins(task: Task) -> Values:
    """Make the value: by how much a kernel that has not seen point i prefers its label.

    Ridge regression of the labels with `wide_network_kernel`, predicting each point from the
    others, in closed form: `f_i = y_i - (A y)_i / A_ii` with `A = (H + damping)^-1`; the margin is
    the label's output less the largest other, about -1 to 1. Wrong labels also mislead the kernel
    about others, so ROUNDS times the points whose label it contradicts, LEFT_OUT of all at most,
    are left out of its training and all points are judged again. On points dealt into blocks of
    BLOCK at most, each with its own kernel: of 4,000 ten seconds on one core, of 10,000 two minutes
    and 2 GB. Where few labels are wrong, larger blocks find more of them. The data may have any
    inputs, as a network's features.

    Raises:
        ValueError: for a task whose targets are no classes, or (when called) fewer than ten points
            or inputs that are not finite.
    """
    require_distributions(task, "kernel_margins")

    def values(key: Array, run: TrainRun, data: Batch) -> np.ndarray:
        check_points(data, "kernel_margins", 10)
        x, y = np.asarray(data.x), np.asarray(data.y)
        blocks = np.arange(len(x)) % -(-len(x) // BLOCK)
        margins = np.empty(len(x))
        for block in range(blocks.max() + 1):
            inside = blocks == block
            margins[inside] = _margins(x[inside], y[inside])
        return margins

    return values


@compiled
def _margins(x: Array, y: Array) -> Array:
    kernel = wide_network_kernel(x)
    y = y.astype(kernel.dtype)
    size = len(x)
    index = jnp.arange(size)
    most = max(int(LEFT_OUT * size), 1)

    def margins(trained: Array) -> Array:
        # A point with a huge damping has no say in the others, and they predict it all the same.
        damped = kernel + jnp.diag(jnp.where(trained, 0.5 * DAMPING, 1e4)).astype(kernel.dtype)
        inverse = cho_solve(cho_factor(damped), jnp.eye(size, dtype=kernel.dtype))
        share = jnp.sum(y * trained[:, None], 0) / jnp.sum(trained)
        away = y - share
        predicted = y - (inverse @ away) / jnp.diag(inverse)[:, None]
        own = jnp.sum(jnp.where(y > 0, predicted, 0), 1)
        return own - jnp.max(jnp.where(y > 0, -jnp.inf, predicted), 1)

    def clean(_: int, found: Array) -> Array:
        bound = jnp.minimum(jnp.sort(found)[most], 0.0)
        return margins(found >= bound)

    return jax.lax.fori_loop(0, ROUNDS, clean, margins(index >= 0))


def wide_network_kernel(x: Any) -> Array:
    """The kernel of an infinitely wide two-layer ReLU network on inputs of length one, [N, N].

    `H_ij = <x_i, x_j> (pi - arccos <x_i, x_j>) / (2 pi)`, from 0 to 1/2, which the diagonal has.
    """
    flat = x.reshape(len(x), -1).astype(wide(x.dtype))
    flat = flat / jnp.maximum(jnp.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    cosine = jnp.clip(flat @ flat.T, -1.0, 1.0)
    kernel = cosine * (jnp.pi - jnp.arccos(cosine)) / (2 * jnp.pi)
    index = jnp.arange(len(flat))
    # Not from the arccos, whose rounding near one is as large as any damping.
    return kernel.at[index, index].set(0.5)
