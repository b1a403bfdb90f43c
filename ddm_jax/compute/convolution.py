"""Convolutions that stay fast when every model has its own weights, inside `scan` and `map`.

All training loops of this package live inside compiled loops, and map over networks. There XLA's
own derivatives of a convolution are an order of magnitude slower on a CPU than the convolution
itself, and `vmap` over kernels makes it a grouped one, slow as well. `benchmarks/convolutions.py`
measures the forms:

- "own": the convolution, its input gradient and its kernel gradient, each written as an ordinary
  forward convolution, whose derivatives are each other; the fastest on a CPU. Reverse mode of any
  order; forward mode (`jax.jvp`) is refused by JAX, take `vjp` twice for it.
- "patches": patches times a matrix, which becomes one batched product under `vmap`. Any stride.
- "direct": `lax.conv_general_dilated` with JAX's own derivatives.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from ddm_jax.types import Array

FORMS = ("own", "patches", "direct")


def convolve(x: Array, kernel: Array, stride: int = 1, form: str | None = None) -> Array:
    """Convolve `[B, H, W, D]` with `[size, size, D, width]`, zero padding `(size - 1) // 2`.

    Returns `[B, ceil(H / stride), ceil(W / stride), width]` for odd sizes.

    Args:
        form: one of `FORMS`; default by platform and shape: on a CPU "own" where it exists (odd
            size above 1, stride 1), else "patches".

    Raises:
        ValueError: for an unknown form, or "own" where it does not exist.
    """
    size = kernel.shape[0]
    has_own = stride == 1 and size % 2 == 1 and size > 1
    if form is None:
        form = "own" if has_own and jax.default_backend() == "cpu" else "patches"
    if form not in FORMS:
        raise ValueError(f"form={form!r}; choose one of {', '.join(FORMS)}")
    if form == "own" and not has_own:
        raise ValueError(
            f"form='own' has stride 1 and odd sizes above 1, not stride={stride}, size={size}"
        )
    dtype = jnp.result_type(x, kernel)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if form == "own":
        return _own_convolution(size)(x, kernel)
    return _patches(x, kernel, stride) if form == "patches" else _direct(x, kernel, stride)


def _direct(x: Array, kernel: Array, stride: int = 1) -> Array:
    border = (kernel.shape[0] - 1) // 2
    return _forward(x, kernel, border, stride)


def _forward(x: Array, kernel: Array, border: int, stride: int = 1) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(border, border)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _patches(x: Array, kernel: Array, stride: int) -> Array:
    size, width = kernel.shape[0], kernel.shape[-1]
    border = (size - 1) // 2
    height, breadth = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    patches = jnp.concatenate(
        [
            padded[:, i : i + height : stride, j : j + breadth : stride]
            for i in range(size)
            for j in range(size)
        ],
        axis=-1,
    )
    return patches @ kernel.reshape(-1, width)


def _own_convolution(size: int) -> Callable[[Array, Array], Array]:
    """The convolution of stride 1 as one of three bilinear maps whose derivatives are each other.

    With `y = x * w`: `x_bar = y_bar * flipped w^T`, and `w_bar = x * y_bar` with the batch as the
    depth that is summed over. Each is linear in both arguments, so the derivatives of the
    second and third are again two of the three.
    """
    border = (size - 1) // 2

    def kernel_gradient_of(x: Array, slope: Array) -> Array:
        swapped = _forward(x.transpose(3, 1, 2, 0), slope.transpose(1, 2, 0, 3), border)
        return swapped.transpose(1, 2, 0, 3)

    def back_of(slope: Array, kernel: Array) -> Array:
        return _forward(slope, kernel[::-1, ::-1].swapaxes(2, 3), border)

    forward = jax.custom_vjp(_serial(lambda x, kernel: _forward(x, kernel, border), merge=True))
    back = jax.custom_vjp(_serial(back_of, merge=True))
    kernel_gradient = jax.custom_vjp(_serial(kernel_gradient_of, merge=False))

    def keep(fn):
        return lambda a, b: (fn(a, b), (a, b))

    forward.defvjp(keep(forward), lambda r, y: (back(y, r[1]), kernel_gradient(r[0], y)))
    back.defvjp(keep(back), lambda r, x: (forward(x, r[1]), kernel_gradient(x, r[0])))
    kernel_gradient.defvjp(keep(kernel_gradient), lambda r, w: (back(r[1], w), forward(r[0], w)))
    return forward


def _serial(fn: Callable[[Array, Array], Array], merge: bool) -> Callable[[Array, Array], Array]:
    """`fn`, which `vmap` turns into a `lax.map`: a loop of convolutions beats a grouped one.

    With `merge`, images that share a kernel become one batch.
    """
    serial = custom_vmap(fn)

    @serial.def_vmap
    def rule(size: int, batched: list[bool], a: Array, b: Array) -> tuple[Array, bool]:
        if merge and not batched[1]:
            together = serial(a.reshape(-1, *a.shape[2:]), b)
            return together.reshape(*a.shape[:2], *together.shape[1:]), True
        if all(batched):
            return lax.map(lambda both: serial(*both), (a, b)), True
        if batched[0]:
            return lax.map(lambda one: serial(one, b), a), True
        return lax.map(lambda one: serial(a, one), b), True

    return serial
