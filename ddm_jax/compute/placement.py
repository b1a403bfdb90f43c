"""Placement: map a function over K things within one device and over several.

The only file that knows about meshes and processes. It stands near the bottom of the import
order, because the maths of every stage is written against `device_vmap` instead of `jax.vmap`
where K or R networks are trained or updated side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.memory import fits
from ddm_jax.compute.pieces import fill_up, map_pieces

ITEMS = "items"  # the one axis of every mesh here
ENGINES = ("shard_map", "pmap")
FIT = "fit"


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
    chunk: int | str | None = None,
    engine: str = "shard_map",
    donate: bool = False,
) -> Callable[..., Any]:
    """Map `fn(item, *shared)` over the leading axis of `item`, compiled, on every device.

    `mapped(items, *shared)` equals a Python loop `[fn(items[i], *shared) for i in range(K)]`
    with the results stacked. On each device the items go through `chunked_vmap`. Over several
    devices they are split; K is padded to a multiple of those that are used with repeats of the
    last item, which are dropped again.

    In several processes (`jax.distributed.initialize`) every process calls `mapped` with the same
    arguments, the items are split over the devices of all, and every process gets all results.

    The engine "shard_map" is the default, because it runs inside `jit` and over processes, takes
    arguments that lie where they are needed as they are (`replicate`), and is what `pmap` has
    become inside. "pmap" gives equal results on the devices of one process.

    Args:
        fn: pure function of one item (a pytree) and any shared arguments. Arrays that it closes
            over are passed beside them (`compute.compiled`), once for all items.
        devices: the devices to use; default all devices of the default backend, those of other
            processes too.
        chunk: items side by side on one device, at least 1; "fit" takes as many as the compiled
            program's own memory analysis says fit into the device's memory. Default: 1 on a CPU
            (see `chunked_vmap`), else "fit".
        engine: "shard_map" or "pmap".
        donate: give the buffers of `items` to the results; they may not be used again.

    Raises:
        ValueError: for a chunk below 1, no devices, an unknown engine, or (when called) items
            without a common, positive leading axis, or "pmap" over several processes.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices is empty; pass at least one device, or None for all of them")
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r}; choose one of {', '.join(ENGINES)}")
    if chunk is None:
        chunk = 1 if jax.default_backend() == "cpu" else FIT
    if isinstance(chunk, str) and chunk != FIT:
        raise ValueError(f"chunk={chunk!r}; it must be a number or {FIT!r}")
    many_processes = len({device.process_index for device in devices}) > 1
    if engine == "pmap" and many_processes:
        raise ValueError("engine='pmap' splits over one process; use 'shard_map' over several")

    def run(items: Any, shared: tuple[Any, ...], chunk: int | None, used: int) -> Any:
        def on_one_device(items, *shared):
            return chunked_vmap(lambda item: fn(item, *shared), chunk)(items)

        if used == 1:
            return on_one_device(items, *shared)
        size = _leading_axis(items)
        each = -(-size // used)
        padded = jax.tree.map(lambda leaf: fill_up(leaf, each * used - size), items)
        if engine == "pmap":
            axes = (0,) + (None,) * len(shared)
            split = jax.tree.map(lambda leaf: leaf.reshape(used, each, *leaf.shape[1:]), padded)
            results = jax.pmap(on_one_device, in_axes=axes, devices=devices[:used])(split, *shared)
            results = jax.tree.map(lambda leaf: lax.collapse(leaf, 0, 2), results)
        else:
            results = jax.shard_map(
                on_one_device,
                mesh=_mesh(devices[:used]),
                in_specs=(PartitionSpec(ITEMS),) + (PartitionSpec(),) * len(shared),
                out_specs=PartitionSpec(ITEMS),
                check_vma=False,
            )(padded, *shared)
        return jax.tree.map(lambda leaf: leaf[:size], results)

    # The results of several processes are gathered, those of one stay where they are.
    options: dict[str, Any] = {}
    if many_processes:
        options["out_shardings"] = NamedSharding(_mesh(devices), PartitionSpec())
        options["place"] = lambda tree: replicate(tree, devices)
    program = compiled(run, static_argnames=("chunk", "used"), donate_first=donate, **options)

    def mapped(items: Any, *shared: Any) -> Any:
        size = _leading_axis(items)
        used = len(devices) if many_processes else -(-size // -(-size // len(devices)))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((items, shared))):
            return run(items, shared, None if isinstance(chunk, str) else chunk, used)
        if used > 1:
            even = PartitionSpec(ITEMS) if size % used == 0 else PartitionSpec()
            mesh = _mesh(devices[:used])
            items, shared = _place(items, mesh, even), _place(shared, mesh, PartitionSpec())
        if chunk != FIT:
            return program(items, shared, chunk=chunk, used=used)
        together = -(-size // used)
        # The call that follows takes the same compiled program.
        while together > 1 and not fits(
            program.lower(items, shared, chunk=together, used=used).compile()
        ):
            together = -(-together // 2)
        return program(items, shared, chunk=together, used=used)

    return mapped


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Put arrays on every device (default: all), so that no call of `device_vmap` has to."""
    devices = jax.devices() if devices is None else list(devices)
    return _place(tree, _mesh(devices), PartitionSpec())


def _place(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    def one(leaf: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            # Keys do not travel between processes by themselves, their numbers do.
            numbers = jax.device_put(jax.random.key_data(leaf), NamedSharding(mesh, spec))
            return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(one, tree)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.asarray(devices), (ITEMS,), axis_types=(AxisType.Auto,))


def in_batches(fn: Callable[..., Any], size: int = 500) -> Callable[..., Any]:
    """Make `mapped(params, x)` equal to `fn(params, x [N, ...])`, compiled, in pieces of `size`.

    For a forward pass over a whole data set, whose activations would not fit in memory. Compiled
    once for a function and its shapes, however often `in_batches` is called for it.
    """
    return partial(_in_batches, fn, size)


@partial(jax.jit, static_argnums=(0, 1))
def _in_batches(fn: Callable[..., Any], size: int, params: Any, x: Any) -> Any:
    return map_pieces(partial(fn, params), x, size)


def _leading_axis(items: Any) -> int:
    sizes = {(np.shape(leaf) or (0,))[0] for leaf in jax.tree.leaves(items)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"the mapped items have leading axes {sorted(sizes)}; they need one common axis of "
            "at least 1"
        )
    return sizes.pop()
