"""Small things that several methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.compute.memory import bytes_of, device_memory
from ddm_jax.types import Array, Groups, Leaf, Optimizer, Params, Task, TrainRun, take


def require(run: TrainRun, part: str, method: str) -> Any:
    """A part of a run that a method needs.

    Raises:
        ValueError: where the run has none, saying how it gets one.
    """
    found = getattr(run, part)
    if found is None:
        raise ValueError(
            f"{method} needs the run's {part}, which this run has not: pass {part}= to make_run, "
            "or train with make_train"
        )
    return found


def require_plain_sgd(run: TrainRun, method: str) -> None:
    """Refuse a run whose steps are not the gradients of its batches times a rate.

    Raises:
        ValueError: for another optimiser than SGD, clipping or accumulation.
    """
    spec = run.optimizer
    if spec.name != "sgd" or spec.own:
        others = "trak" if spec.own else "source, metagradient or trak"
        raise ValueError(
            f"{method} holds for SGD alone, and this run was trained by {spec.name}: use {others}"
        )
    if spec.clip is not None or spec.accumulate > 1:
        raise ValueError(
            f"{method} holds for plain SGD alone, and this run has {say_changes(spec)}: use "
            "metagradient or trak"
        )


def say_changes(spec: Optimizer) -> str:
    """How gradients are changed before an optimiser gets them: "clip=1 and accumulate=4"."""
    clip = [] if spec.clip is None else [f"clip={spec.clip:g}"]
    return " and ".join(clip + ([f"accumulate={spec.accumulate}"] if spec.accumulate > 1 else []))


def task_features(task: Task, method: str) -> Callable[[Params, Any], Array]:
    """The task's features, or a ValueError that says what needs them."""
    if task.features is None:
        raise ValueError(f"{method} needs task.features; this task has none")
    return task.features


def flat_inputs(x: Any, method: str) -> Leaf:
    """Inputs `[B, ...]` as rows `[B, F]`, for a method that compares the inputs themselves.

    Raises:
        ValueError: for inputs that are not one array.
    """
    if not isinstance(x, jax.Array | np.ndarray):
        raise ValueError(
            f"{method} compares inputs that are one array, and these are a {type(x).__name__} of "
            f"{len(jax.tree.leaves(x))}: use a method that asks the network, such as influence_cg"
        )
    return x.reshape(len(x), -1)


def holds_groups(groups: Groups, num_points: int, params: Params, each: int = 1) -> bool:
    """Whether a method holds the gradients of the groups, `each` times.

    Not where every point is a group, nor where they would take more than a quarter of a device:
    then the gradients of points are multiplied with the queries' as they come.
    """
    size = each * groups.count * bytes_of(params)
    return groups.count < num_points and size <= device_memory() // 4


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
    order = np.argsort(np.asarray(groups.ids), kind="stable")[len(groups.ids) - sizes.sum() :]
    rows = np.full((groups.count, sizes.max()), -1, np.int32)
    rows[np.arange(sizes.max()) < sizes[:, None]] = order
    return rows
