"""Classification, regression and multi-label tasks of a model of any framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddm_jax import objectives
from ddm_jax.compute.memory import examples_a_piece
from ddm_jax.compute.pieces import bytes_an_example, map_pieces
from ddm_jax.items import SOFT_MULTI_HOT
from ddm_jax.tasks.frameworks import as_model
from ddm_jax.tasks.model import Model, as_example
from ddm_jax.types import Array, Batch, Items, Params, Task, length


def classification(
    model: Any,
    input_shape: Any = None,
    *,
    init: Callable[[Array], Params] | None = None,
    params: Params | None = None,
    frozen_state: dict[str, Any] | None = None,
    trainable: Any = None,
) -> Task:
    """Make a classification `Task` from a model that maps inputs to logits `[B, C]`.

    The loss is softmax cross-entropy against a label distribution; the output that is explained
    is the correct-class margin `log p_y - log(1 - p_y)`. All parameters learn (`ddm.freeze` keeps
    some as they are); what else a model holds is closed over.

    Args:
        model: one of
            - a flax.linen module, with `input_shape`;
            - a flax NNX module, whose values are where every training starts, or a function
              `rngs -> module` (a class too), which makes one anew for every key;
            - an equinox module, which maps one example, or a function `key -> module`;
            - a function `apply(params, x [B, ...])`, with `init` or `params`.
            In training a model is in its training mode: dropout has a key for each step, whether
            it is switched on by an attribute or by an argument `train`, `training`,
            `is_training` or `deterministic` of `__call__`. Elsewhere it is not random. With an
            argument `return_features` the task gets penultimate features too.
        input_shape: of one example, such as (28, 28, 1); or a `jax.ShapeDtypeStruct` of one, a
            batch of examples, or a dict of these. Needed for flax.linen; elsewhere it is what
            the model is checked with at once.
        init: key -> params, of a function.
        params: where every training of a function starts.
        frozen_state: of a flax.linen module, the collections beside "params", such as trained
            `batch_stats`, which stay as they are.
        trainable: of an NNX module, the filter of the variables that learn, such as
            `nnx.LoRAParam`; default `nnx.Param`.

    Returns:
        The task. Its params are those of flax.linen or of the function, and otherwise a plain
        dict of dicts with the paths of the model, into which `tasks.merge(model, params)` puts
        them.

    Raises:
        ValueError: for a model that is none of these or does not return `[B, C]`, a BatchNorm
            whose statistics are not frozen, or dropout that nothing switches on.
    """
    made = as_model(model, input_shape, init, params, frozen_state, trainable)
    return _make_task(made, input_shape, _cross_entropy, objectives.margin)


def regression(
    model: Any,
    input_shape: Any = None,
    *,
    init: Callable[[Array], Params] | None = None,
    params: Params | None = None,
    frozen_state: dict[str, Any] | None = None,
    trainable: Any = None,
) -> Task:
    """Make a regression `Task`: targets `batch.y [B, C]`, or `[B]` of one, are any real numbers.

    The loss is half the squared error, summed over the C targets, and the output that is
    explained is its negative: a positive score means that the group makes the prediction better.
    A model of one target may return `[B]` as well as `[B, 1]`; `task.apply` returns the latter.
    Inputs and targets of a synset may both be optimised.

    Args and Raises: as `classification`.
    """
    made = as_model(model, input_shape, init, params, frozen_state, trainable)
    task = _make_task(made, input_shape, _half_squared_error, None, scalars=True)
    return task._replace(targets="any", items=Items(free=("x", "y")))


def multilabel(
    model: Any,
    input_shape: Any = None,
    *,
    init: Callable[[Array], Params] | None = None,
    params: Params | None = None,
    frozen_state: dict[str, Any] | None = None,
    trainable: Any = None,
) -> Task:
    """Make a `Task` of several labels that each hold or not: `batch.y [B, C]` in [0, 1].

    The model returns a logit for each label. The loss is the binary cross-entropy of its sigmoid,
    summed over the labels, and the output that is explained is its negative, the log-likelihood
    of the labels. The labels of a synset are soft, and are optimised as logits.

    Args and Raises: as `classification`.
    """
    made = as_model(model, input_shape, init, params, frozen_state, trainable)
    task = _make_task(made, input_shape, _binary_cross_entropy, None)
    return task._replace(targets="labels", items=SOFT_MULTI_HOT)


def _cross_entropy(logits: Array, labels: Array) -> Array:
    _check_same(logits, labels, "labels")
    return optax.softmax_cross_entropy(logits, labels)


def _half_squared_error(predictions: Array, targets: Array) -> Array:
    if getattr(targets, "shape", None) == predictions.shape[:1] and predictions.shape[1:] == (1,):
        targets = targets[:, None]
    _check_same(predictions, targets, "targets")
    return jnp.sum(optax.l2_loss(predictions, targets), -1)


def _binary_cross_entropy(logits: Array, labels: Array) -> Array:
    _check_same(logits, labels, "labels")
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels), -1)


def _check_same(predictions: Array, targets: Any, what: str) -> None:
    """Nothing is broadcast: `[B]` and `[B, 1]` would become `[B, B]`."""
    shape = getattr(targets, "shape", None)
    if shape != predictions.shape:
        raise ValueError(
            f"the {what} have shape {shape} and the model returns "
            f"{predictions.shape}; they must have the same shape [B, C] (of classes, "
            "`data.make_batch` makes rows)"
        )


def _make_task(
    model: Model,
    input_shape: Any,
    loss_of: Callable[[Array, Array], Array],
    make_output: Callable[[objectives.Apply], objectives.Output] | None,
    scalars: bool = False,
) -> Task:
    """The task whose loss is `loss_of(predictions, y)`.

    Args:
        make_output: of `apply`, what is explained; None: minus the loss.
        scalars: whether a model may return `[B]` for `[B, 1]`.
    """

    def columns(predictions: Any, x: Any) -> Array:
        shape, count = getattr(predictions, "shape", None), length(x)
        if scalars and shape == (count,):
            return predictions[:, None]
        if shape is None or len(shape) != 2 or shape[0] != count:
            found = shape if shape is not None else f"a {type(predictions).__name__}"
            raise ValueError(
                f"the model returns {found} for {count} examples; it must be ({count}, C)"
            )
        return predictions

    def forward(params: Params, x: Any) -> Array:
        return columns(model.forward(params, x), x)

    def loss_with(predict: Callable[..., Array]) -> Callable[..., Array]:
        def loss(params: Params, batch: Batch, *key: Array) -> Array:
            return loss_of(columns(predict(params, batch.x, *key), batch.x), batch.y)

        return loss

    loss = loss_with(model.forward)

    def bytes_of_one(params: Params, x: Any) -> int:
        objective = lambda p, batch, weights: weights @ loss(p, batch)  # noqa: E731
        return bytes_an_example(objective, params, Batch(x, jax.eval_shape(forward, params, x)))

    example_bytes = None
    if input_shape is not None:
        like = jax.eval_shape(model.init, jax.random.key(0))
        example_bytes = bytes_of_one(like, as_example(input_shape))

    def apply(params: Params, x: Any) -> Array:
        each = bytes_of_one(params, x) if example_bytes is None else example_bytes
        size = examples_a_piece(length(x), each)
        return map_pieces(lambda piece: forward(params, piece), x, size)

    def minus_loss(params: Params, batch: Batch) -> Array:
        return -loss_of(apply(params, batch.x), batch.y)

    return Task(
        init=model.init,
        loss=loss,
        output=make_output(apply) if make_output else minus_loss,
        apply=apply,
        features=model.features,
        training_loss=loss_with(model.train_forward) if model.train_forward else None,
    )
