"""Small things that several methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.types import Array, Groups, Params, Task, take


def task_features(task: Task, method: str) -> Callable[[Params, Any], Array]:
    """The task's features, or a ValueError that says what needs them."""
    if task.features is None:
        raise ValueError(f"{method} needs task.features; this task has none")
    return task.features


def unit(rows: Array) -> Array:
    """Rows `[B, F]` of length one; a row of zeros stays."""
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def sum_over(fn: Callable[[Any], Array], items: Any) -> Array:
    """The sum of `fn(item)` over the leading axis of `items`, one after the other."""
    like = jax.eval_shape(fn, take(items, 0))
    zeros = jnp.zeros(like.shape, like.dtype)
    return lax.scan(lambda total, item: (total + fn(item), None), zeros, items)[0]


def member_rows(groups: Groups) -> np.ndarray:
    """The rows of each group, `[K, R]` for the largest group's R, filled up with -1."""
    sizes = groups.sizes()
    order = np.argsort(np.asarray(groups.ids), kind="stable")
    rows = np.full((groups.count, sizes.max()), -1, np.int32)
    rows[np.arange(sizes.max()) < sizes[:, None]] = order
    return rows
