"""Placement: map a function over K things within one device and over several.

The only file that knows about devices. It stands at the bottom of the import order (only
`types` is below), because the maths of every stage is written against `device_vmap` instead of
`jax.vmap` where K or R networks are trained or updated side by side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def chunked_vmap(fn: Callable[..., Any], chunk: int | None = None) -> Callable[..., Any]:
    """Map `fn(item)` over the leading axis of `item` on one device, traceable.

    Chunks of `chunk` items go through `vmap`, and the chunks follow one another under
    `lax.map`. The default depends on the platform: on a CPU it is 1, a plain `lax.map`, because
    a convolution under `vmap` over weights becomes a grouped one, three to ten times slower than
    the same work in turn, and needs memory in proportion to K, while dense networks do not mind.
    Elsewhere all items go through one `vmap`.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}; it must be at least 1")
    if chunk is None and jax.default_backend() == "cpu":
        chunk = 1

    def mapped(items):
        size = _leading_axis(items)
        if chunk == 1:
            return lax.map(fn, items) if size > 1 else _map_one(fn, items)
        if chunk is None or chunk >= size:
            return jax.vmap(fn)(items)
        return lax.map(fn, items, batch_size=chunk)

    return mapped


def _map_one(fn: Callable[..., Any], items: Any) -> Any:
    """`lax.map` over a single item, equal to the last bit to what it gives among others.

    XLA unrolls a loop of one turn, and from JAX 0.12 on compiles what was its body to other bits
    then. A branch that it cannot foresee keeps the body apart.
    """
    item = jax.tree.map(lambda leaf: leaf[0], items)

    def never(item: Any) -> Any:
        like = jax.eval_shape(fn, item)
        return jax.tree.map(lambda leaf: lax.full(leaf.shape, 0, leaf.dtype), like)

    result = lax.cond(lax.optimization_barrier(jnp.bool_(True)), fn, never, item)
    return jax.tree.map(lambda leaf: leaf[None], result)


def device_vmap(
    fn: Callable[..., Any],
    *,
    devices: Sequence[jax.Device] | None = None,
    chunk: int | None = None,
) -> Callable[..., Any]:
    """Map `fn(item, *shared)` over the leading axis of `item`, compiled, on every device.

    `mapped(items, *shared)` equals a Python loop `[fn(items[i], *shared) for i in range(K)]`
    with the results stacked. On each device the items go through `chunked_vmap`. Over several
    devices they are split by `pmap`; K is padded to a multiple of the devices with repeats of the
    last item, which are dropped again.

    Args:
        fn: pure function of one item (a pytree) and any shared arguments.
        devices: the devices to use; default all local devices of the default backend.
        chunk: items side by side on one device, at least 1; default as in `chunked_vmap`.

    Raises:
        ValueError: for a chunk below 1, no devices, or (when called) items without a common,
            positive leading axis.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices is empty; pass at least one device, or None for all of them")

    def on_one_device(items, *shared):
        return chunked_vmap(lambda item: fn(item, *shared), chunk)(items)

    if len(devices) == 1:
        return jax.jit(on_one_device)

    # Shared arguments get an explicit axis of None each, so their number must be known.
    compiled: dict[int, Callable[..., Any]] = {}

    def on_devices(items, *shared):
        size = _leading_axis(items)
        per_device = -(-size // len(devices))
        used = devices[: -(-size // per_device)]
        fill = per_device * len(used) - size

        def split(leaf):
            padded = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], fill, axis=0)]) if fill else leaf
            return padded.reshape(len(used), per_device, *leaf.shape[1:])

        if len(used) not in compiled:
            compiled[len(used)] = jax.pmap(
                on_one_device, in_axes=(0,) + (None,) * len(shared), devices=used
            )
        results = compiled[len(used)](jax.tree.map(split, items), *shared)
        return jax.tree.map(
            lambda leaf: leaf.reshape(per_device * len(used), *leaf.shape[2:])[:size], results
        )

    return on_devices


def in_batches(fn: Callable[..., Any], size: int = 500) -> Callable[..., Any]:
    """Make `mapped(params, x)` equal to `fn(params, x [N, ...])`, compiled, in pieces of `size`.

    For a forward pass over a whole data set, whose activations would not fit in memory.
    """

    @jax.jit
    def mapped(params: Any, x: Any) -> Any:
        return lax.map(lambda one: fn(params, one[None])[0], x, batch_size=min(size, len(x)))

    return mapped


def device_memory() -> int | None:
    """Bytes that the first device has: its own, or the machine's; None where nobody says."""
    told = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in told:
        return int(told["bytes_limit"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _leading_axis(items: Any) -> int:
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(items)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"the mapped items have leading axes {sorted(sizes)}; they need one common axis of "
            "at least 1"
        )
    return sizes.pop()
