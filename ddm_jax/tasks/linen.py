"""A flax.linen module becomes a `Task`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ddm_jax import objectives
from ddm_jax.compute.memory import examples_a_piece
from ddm_jax.compute.pieces import bytes_an_example, map_pieces
from ddm_jax.types import Array, Batch, Params, Task

# The arguments by which modules are told that they are trained, and what tells them so.
TRAINING = {"train": True, "training": True, "is_training": True, "deterministic": False}


def classification(module: nn.Module, input_shape: Sequence[int]) -> Task:
    """Make a classification `Task` from a flax module.

    The loss is softmax cross-entropy against a label distribution; the output that is explained
    is the correct-class margin `log p_y - log(1 - p_y)`.

    Args:
        module: maps `[B, *input_shape]` to logits `[B, C]`; its parameters may hold no state
            beside "params" (no BatchNorm). With a `return_features` argument, as the networks of
            this file have, the task gets penultimate features too. With an argument
            `train`, `training` or `deterministic` it is trained with that switched to training,
            and a key for "dropout".
        input_shape: the shape of one example, for example `(28, 28, 1)`.

    Raises:
        ValueError: when the module has mutable state, does not return `[B, C]` or has dropout
            that none of these switches on.
    """
    return _module_task(module, input_shape, optax.softmax_cross_entropy, objectives.margin)


def regression(module: nn.Module, input_shape: Sequence[int]) -> Task:
    """Make a regression `Task` from a flax module: targets `batch.y [B, C]` are any real numbers.

    The loss is half the squared error, summed over the C targets, and the output that is
    explained is its negative: a positive score means that the group makes the prediction better.
    Methods that need classes, such as the DDM's synset, refuse it by name.

    Args and Raises: as `classification`.
    """

    def goodness(apply: objectives.Apply) -> objectives.Output:
        return lambda params, batch: -_half_squared_error(apply(params, batch.x), batch.y)

    task = _module_task(module, input_shape, _half_squared_error, goodness)
    return task._replace(targets="any")


def _half_squared_error(predictions: Array, targets: Array) -> Array:
    return jnp.sum(optax.l2_loss(predictions, targets), -1)


def _module_task(
    module: nn.Module,
    input_shape: Sequence[int],
    loss_of: Callable[[Array, Array], Array],
    make_output: Callable[[objectives.Apply], objectives.Output],
) -> Task:
    sample = jnp.zeros((1, *input_shape), jnp.float32)
    arguments = inspect.signature(type(module).__call__).parameters
    training: dict[str, Any] = {
        name: value for name, value in TRAINING.items() if name in arguments
    }
    still: dict[str, Any] = {name: not value for name, value in training.items()}

    def init(key: Array) -> Params:
        return module.init(key, sample, **still)["params"]

    def forward(params: Params, x: Array) -> Array:
        return module.apply({"params": params}, x, **still)  # type: ignore[return-value]

    def loss(params: Params, batch: Batch) -> Array:
        return loss_of(forward(params, batch.x), batch.y)

    def apply(params: Params, x: Array) -> Array:
        size = examples_a_piece(len(x), example_bytes)
        return map_pieces(lambda piece: forward(params, piece), x, size)

    def features(params: Params, x: Array) -> Array:
        return module.apply({"params": params}, x, return_features=True, **still)  # type: ignore

    def training_loss(params: Params, batch: Batch, key: Array) -> Array:
        logits = module.apply({"params": params}, batch.x, **training, rngs={"dropout": key})
        return loss_of(logits, batch.y)  # type: ignore

    rates: list[float] = []

    def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Dropout):
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        variables = jax.eval_shape(lambda key: module.init(key, sample, **still), jax.random.key(0))
    if any(rates) and not training:
        raise ValueError(
            f"the module has dropout ({max(rates):g}) and nothing to switch it on for training; "
            f"give its __call__ an argument of one of the names {', '.join(TRAINING)}"
        )
    if set(variables) != {"params"}:
        raise ValueError(
            f"the module has the collections {sorted(variables)}; only 'params' is allowed, as a "
            "per-example gradient must not depend on other examples (use GroupNorm, no BatchNorm)"
        )
    logits = jax.eval_shape(forward, variables["params"], sample)
    if len(logits.shape) != 2 or logits.shape[0] != 1:
        raise ValueError(f"the module returns {logits.shape} for one example; it must be (1, C)")
    example_bytes = bytes_an_example(
        lambda params, batch, weights: weights @ loss(params, batch),
        variables["params"],
        Batch(sample, logits),
    )
    # Our own MLP without dropout is not random.
    is_random = bool(training) and getattr(module, "dropout", None) != 0
    return Task(
        init=init,
        apply=apply,
        loss=loss,
        output=make_output(apply),
        features=features if "return_features" in arguments else None,
        training_loss=training_loss if is_random else None,
    )
