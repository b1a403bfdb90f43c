"""Data that are larger than a device: they stay on the host, which reads a part at a time.

Training and passes over all rows are here; `blocks` reads the rows of a block of groups. What
must have all data on each device is exact retraining, whose networks train side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.compute.memory import bytes_of, device_memory
from ddm_jax.compute.placement import device_vmap
from ddm_jax.types import Batch, length, take


def read_as_needed(
    advance: Callable[..., tuple[Any, Any]], data: Batch, batch_size: int
) -> Callable[..., tuple[Any, Any]]:
    """Make `(state, rows [s, B], weights) -> state, losses` of a `train.Trainer`'s `advance`.

    Data of at most a quarter of the device's memory are put there once. Larger ones stay on the
    host, which reads the rows of as many steps as fill a quarter. Both give the same bits.
    """
    room, size = device_memory() // 4, bytes_of(data)
    if size <= room:
        on_device = jax.device_put(data)
        return lambda state, rows, weights: advance(state, rows, on_device, weights)
    steps = max(room * length(data) // (size * batch_size), 1)

    def in_parts(state: Any, rows: Any, weights: Any) -> tuple[Any, Any]:
        losses = []
        for first in range(0, len(rows), steps):
            some = np.asarray(rows[first : first + steps])
            read = some.ravel()
            local = np.arange(some.size, dtype=some.dtype).reshape(some.shape)
            local = np.where(some < 0, -1, local)  # where a batch is not full
            state, new = advance(state, local, take(data, read), weights[read])
            losses.append(new)
        return state, jnp.concatenate(losses)

    return in_parts


def over_rows(fn: Callable[..., Any], rows: Any, *shared: Any) -> np.ndarray:
    """`fn(rows, *shared) -> [n, F]` over all rows of data, on every device, as numpy.

    Data that stay on the host are read a part at a time, at most an eighth of a device's memory.
    """
    count, devices = length(rows), jax.device_count()
    most = max(count * (device_memory() // 8) // max(bytes_of(rows), 1), 1)
    part = min(-(-count // devices), most)  # of one device
    mapped = device_vmap(fn, chunk=1)
    found = []
    for first in range(0, count, part * devices):
        index = np.minimum(first + np.arange(part * devices), count - 1).reshape(devices, part)
        results = np.asarray(mapped(take(rows, index), *shared))
        found.append(results.reshape(devices * part, -1))
    return np.concatenate(found)[:count]
