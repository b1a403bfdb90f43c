"""Objectives: what is explained, as `output(params, batch) -> [B]` (larger = more of it).

Each factory takes `apply(params, x) -> logits [B, C]` and returns an output function. Any
function of the same form serves as well. `over_sets` makes one of sets of queries of it, such as
the accuracy of a slice or the gap between two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ddm_jax.types import Array, Batch, Params, Task, length

Apply = Callable[[Params, Any], Array]
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
    """Logit of the class `class_index` in [0, C), whatever the label.

    Of a regression the prediction of that target, of several labels the logit of that label.
    """

    def output(params: Params, batch: Batch) -> Array:
        logits = apply(params, batch.x)
        if not 0 <= class_index < logits.shape[-1]:
            raise ValueError(
                f"class_index={class_index}; with {logits.shape[-1]} classes it must be "
                f"in 0..{logits.shape[-1] - 1}"
            )
        return logits[:, class_index]

    return output


def hit(apply: Apply) -> Output:
    """Whether the largest logit is that of the true class, 0 or 1.

    What `over_sets` makes accuracies of. It has no gradient: it is for methods that retrain.
    """

    def output(params: Params, batch: Batch) -> Array:
        hits = jnp.argmax(_logits(apply, params, batch), -1) == jnp.argmax(batch.y, -1)
        return hits.astype(jnp.float32)

    return output


def accuracy(apply: Apply) -> Output:
    """Accuracy over all queries, in [0, 1], as the output of one set: returns shape [1]."""
    hits = hit(apply)
    return lambda params, batch: jnp.mean(hits(params, batch), keepdims=True)


def over_sets(output: Output, sets: Any) -> Output:
    """Weighted sums of an output over S sets of queries: `sets @ output(params, batch)`, [S].

    A row of `sets [S, B]` says what each of the B queries counts in that set: 1/n for a mean over
    n of them, and + and - weights for a difference. The task has `of_sets=True` (`explain` sets
    it). The accuracies on two slices, and the gap between them:

        first, second = group == 0, group == 1                      # of each query, [B]
        means = np.stack([first / first.sum(), second / second.sum()])
        sets = np.stack([*means, means[0] - means[1]])              # [3, B]
        task = explain(task, "accuracy", sets)                      # or any other output:
        task = task._replace(output=over_sets(output, sets), of_sets=True)

    Raises:
        ValueError: for sets that are no finite numbers [S, B], or (when it is called) for a batch
            of another length than B, or an output that is not [B].
    """
    weights = np.asarray(sets)
    if weights.ndim != 2 or not weights.size or weights.dtype.kind not in "fiub":
        raise ValueError(
            f"sets have shape {weights.shape} and type {weights.dtype}; they must be numbers "
            "[S, B], a row of weights over the queries for each set"
        )
    if not np.isfinite(weights).all():
        raise ValueError("sets hold NaN or infinity; a set of no queries has no mean: leave it out")
    rows = jnp.asarray(weights)
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))

    def of_sets(params: Params, batch: Batch) -> Array:
        if length(batch) != rows.shape[1]:
            raise ValueError(
                f"the sets are of {rows.shape[1]} queries, and there are {length(batch)}: ask "
                "about all of them at once"
            )
        values = output(params, batch)
        if values.shape != rows.shape[1:]:
            raise ValueError(f"the output has shape {values.shape}; in sets it must be [B]")
        wide = jnp.promote_types(values.dtype, rows.dtype)
        # A gap is a small difference of sums, which fewer bits would not show.
        return jnp.matmul(rows, values.astype(wide), precision=lax.Precision.HIGHEST)

    return of_sets


def output_change(outputs: Callable[[Params], Array], params: Params) -> Callable[..., Array]:
    """Make `change(direction) -> [Q]`: the derivative of `outputs(params) [Q]` along a direction.

    As the derivative of the transposed derivative, which is linear: reverse mode alone, as
    networks with derivatives of their own need (`convolution`), and the network is run only once
    for all directions.
    """
    values, pull = jax.vjp(outputs, params)
    _, push = jax.vjp(lambda weights: pull(weights)[0], jnp.zeros_like(values))
    return lambda direction: push(direction)[0]


def explain(task: Task, name: str, sets: Any = None) -> Task:
    """The task with another question.

    Args:
        name: of a classification "margin", "loss", "probability", "hit", "accuracy" or
            "logit:<class>"; of other targets "loss", and where the task has `apply`
            "prediction:<target>" of real ones and "logit:<label>" of labels; and "output", what the
            task explains already.
        sets: weights [S, B] over the queries, for one answer a set of them and not a query, as
            `over_sets`; accuracies are then those of the sets.

    Raises:
        ValueError: for any other name, or sets that are no weights [S, B].
    """
    output = _output(task, name if sets is None or name != "accuracy" else "hit")
    whole, worse = name == "accuracy", name == "loss"
    if name == "output":
        whole, worse = task.of_sets, task.lower_is_better
    if sets is not None:
        output, whole = over_sets(output, sets), True
    return task._replace(output=output, lower_is_better=worse, of_sets=whole)


def _output(task: Task, name: str) -> Output:
    """What a name says of a task."""
    if name == "output":
        return task.output
    kind, _, index = name.partition(":")
    classes = task.targets == "distribution"
    if not classes and name == "loss":
        return task.loss
    if not classes and name in OBJECTIVES:
        raise ValueError(
            f"objective {name!r} needs classes; a task of other targets has: loss, "
            "prediction:<target> (real targets), logit:<label> (labels)"
        )
    known = name in OBJECTIVES or (
        index.isdecimal() and kind in (("logit",) if classes else ("logit", "prediction"))
    )
    if not known:
        allowed = (
            f"{', '.join(OBJECTIVES)} or logit:<class>, for example logit:3"
            if classes
            else "loss, prediction:<target> or logit:<label>, for example prediction:0"
        )
        raise ValueError(f"unknown objective {name!r}; choose one of {allowed}")
    if task.apply is None:
        raise ValueError(
            f"objective {name!r} needs predictions, and this task has none: make it with "
            "apply=(params, x) -> [B, C]"
        )
    return OBJECTIVES[name](task.apply) if name in OBJECTIVES else logit(task.apply, int(index))


OBJECTIVES = {
    "margin": margin,
    "loss": loss,
    "probability": probability,
    "hit": hit,
    "accuracy": accuracy,
}
