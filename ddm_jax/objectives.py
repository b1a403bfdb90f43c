"""Objectives: what is explained, as `output(params, batch) -> [B]` (larger = more of it).

Each factory takes `apply(params, x) -> logits [B, C]` and returns an output function. Any
function of the same form serves as well.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ddm_jax.types import Array, Batch, Params, Task

Apply = Callable[[Params, Array], Array]
Output = Callable[[Params, Batch], Array]


def _logits(apply: Apply, params: Params, batch: Batch) -> Array:
    """Logits [B, C] of at least float32 for label rows [B, C], refused by their shapes alone."""
    logits = apply(params, batch.x)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    shape = getattr(batch.y, "shape", None)
    if shape != logits.shape or logits.ndim != 2 or shape[1] < 2:
        raise ValueError(
            f"labels have shape {shape} and logits {logits.shape}; both must be [B, C], one-hot "
            "rows of at least two classes (`data.make_batch` makes them)"
        )
    return logits


def margin(apply: Apply) -> Output:
    """Correct-class margin `log p_y - log(1 - p_y)`: the logit of being right.

    Park et al., "TRAK", 2023, arXiv 2303.14186, eq. 3. Computed as
    `z_y - logsumexp_{c != y} z_c`, finite where `p_y` rounds to one. A soft label counts as its
    largest class.
    """

    def output(params: Params, batch: Batch) -> Array:
        logits = _logits(apply, params, batch)
        correct = jax.nn.one_hot(jnp.argmax(batch.y, -1), logits.shape[-1], dtype=bool)
        others = jnp.where(correct, -jnp.inf, logits)
        return jnp.sum(logits * correct, -1) - jax.nn.logsumexp(others, -1)

    return output


def loss(apply: Apply) -> Output:
    """Cross-entropy loss: here a positive score means that the group raises the loss (harms)."""

    def output(params: Params, batch: Batch) -> Array:
        return optax.softmax_cross_entropy(_logits(apply, params, batch), batch.y)

    return output


def probability(apply: Apply) -> Output:
    """Probability of the true class, in [0, 1]."""

    def output(params: Params, batch: Batch) -> Array:
        return jnp.sum(jax.nn.softmax(_logits(apply, params, batch)) * batch.y, -1)

    return output


def logit(apply: Apply, class_index: int) -> Output:
    """Logit of the class `class_index` in [0, C), whatever the label."""

    def output(params: Params, batch: Batch) -> Array:
        logits = apply(params, batch.x)
        if not 0 <= class_index < logits.shape[-1]:
            raise ValueError(
                f"class_index={class_index}; with {logits.shape[-1]} classes it must be "
                f"in 0..{logits.shape[-1] - 1}"
            )
        return logits[:, class_index]

    return output


def accuracy(apply: Apply) -> Output:
    """Accuracy over the whole query set, in [0, 1], as one output: returns shape [1]."""

    def output(params: Params, batch: Batch) -> Array:
        hits = jnp.argmax(_logits(apply, params, batch), -1) == jnp.argmax(batch.y, -1)
        return jnp.mean(hits.astype(jnp.float32), keepdims=True)

    return output


def output_change(outputs: Callable[[Params], Array], params: Params) -> Callable[..., Array]:
    """Make `change(direction) -> [Q]`: the derivative of `outputs(params) [Q]` along a direction.

    As the derivative of the transposed derivative, which is linear: reverse mode alone, as
    networks with derivatives of their own need (`convolution`), and the network is run only once
    for all directions.
    """
    values, pull = jax.vjp(outputs, params)
    _, push = jax.vjp(lambda weights: pull(weights)[0], jnp.zeros_like(values))
    return lambda direction: push(direction)[0]


def explain(task: Task, name: str) -> Task:
    """The task with another question: "margin", "loss", "probability", "accuracy", "logit:<class>".

    Raises:
        ValueError: for any other name.
    """
    kind, _, index = name.partition(":")
    if task.targets != "distribution" and name == "loss":
        output: Output = task.loss
    elif task.targets != "distribution" and name in OBJECTIVES:
        raise ValueError(f"objective {name!r} needs classes; a task of other targets has: loss")
    elif name in OBJECTIVES:
        output = OBJECTIVES[name](task.apply)
    elif kind == "logit" and index.isdigit():
        output = logit(task.apply, int(index))
    else:
        raise ValueError(
            f"unknown objective {name!r}; choose one of {', '.join(OBJECTIVES)} or logit:<class>, "
            "for example logit:3"
        )
    return task._replace(output=output, lower_is_better=name == "loss")


OBJECTIVES = {"margin": margin, "loss": loss, "probability": probability, "accuracy": accuracy}
