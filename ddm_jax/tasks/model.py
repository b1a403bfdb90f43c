"""A model of any framework as pure functions of a params pytree."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.types import Array, Params

# The arguments by which modules are told that they are trained, and what tells them so.
TRAINING = {"train": True, "training": True, "is_training": True, "deterministic": False}


class Model(NamedTuple):
    """What a task is made of."""

    init: Callable[[Array], Params]  # key -> params, all of which learn
    forward: Callable[[Params, Any], Array]  # params, x [B, ...] -> predictions, of no chance
    # params, x, key -> predictions, where training differs from that
    train_forward: Callable[[Params, Any, Array], Array] | None = None
    features: Callable[[Params, Any], Array] | None = None  # params, x -> [B, F]


def arguments_of(module: Any) -> Any:
    """What a module may be called with, by name."""
    return inspect.signature(type(module).__call__).parameters


def flags_of(module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """How a module is called in training, and how otherwise."""
    training = {name: on for name, on in TRAINING.items() if name in arguments_of(module)}
    return training, {name: not on for name, on in training.items()}


def as_example(input_shape: Any) -> Any:
    """Zeros for one example, leaves `[1, ...]`.

    Args:
        input_shape: a pytree of shapes of one example (of float32), or of their
            `jax.ShapeDtypeStruct`; or a batch of examples, arrays `[B, ...]`.

    Raises:
        ValueError: for anything else.
    """

    def is_shape(node: Any) -> bool:
        return isinstance(node, tuple | list) and all(
            isinstance(size, int | np.integer) for size in node
        )

    def one(node: Any) -> Array:
        if is_shape(node):
            return jnp.zeros((1, *node), jnp.float32)
        if isinstance(node, jax.ShapeDtypeStruct):
            return jnp.zeros((1, *node.shape), node.dtype)
        if isinstance(node, jax.Array | np.ndarray) and node.ndim:
            return jnp.zeros((1, *node.shape[1:]), node.dtype)
        raise ValueError(
            f"input_shape holds {node!r}; it must be the shape of one example such as (28, 28, 1), "
            "a jax.ShapeDtypeStruct of one, or a batch of examples, or a dict of these"
        )

    return jax.tree.map(one, input_shape, is_leaf=is_shape)
