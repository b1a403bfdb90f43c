"""Targets and predictions by their kind: classes, labels that each hold or not, numbers, anything.

Everything that a report says of a network's answers goes through here, so that no figure and no
sentence knows of classes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax.compute.placement import in_batches
from ddm_jax.data import Split
from ddm_jax.objectives import explain
from ddm_jax.types import Batch, Params, Task, length, take

SHOWN_LABELS = 4  # of one example


class Performance(NamedTuple):
    """How good a network is."""

    name: str
    train: float
    test: float
    sentence: str


def losses(task: Task, params: Params, batch: Batch) -> np.ndarray:
    """Of each example, [B]."""
    return np.asarray(in_batches(task.loss)(params, batch))


def label(split: Split, y: Any) -> str:
    """What a target is called: its class, its labels, or its numbers in the data's own units.

    Args:
        y: of one example: [C] of classes (soft ones count as their largest), labels or numbers.
    """
    if split.targets == "distribution":
        return split.classes[int(np.argmax(y))]
    if split.targets == "labels":
        return _joined([split.classes[place] for place in np.flatnonzero(np.asarray(y) > 0.5)])
    if not are_numbers(split):
        return ""
    return _joined([f"{each:.4g}" for each in split.target_numbers(np.asarray(y))])


def said(split: Split, prediction: Any) -> str:
    """What a prediction [C] is called, as `label` calls a target."""
    if split.targets == "labels":  # logits
        return label(split, np.asarray(prediction) > 0)
    return label(split, np.asarray(prediction))


def _joined(parts: Sequence[str]) -> str:
    shown = ", ".join(parts[:SHOWN_LABELS])
    return shown + (", ..." if len(parts) > SHOWN_LABELS else "") or "none"


def wrong(split: Split, found: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which predictions [B, C] of classes or labels are not right, [B]; of numbers none is."""
    if split.targets == "distribution":
        return found.argmax(1) != y.argmax(1)
    if split.targets == "labels":
        return ((found > 0) != (y > 0.5)).any(1)
    return np.zeros(len(found), bool)


def worst(split: Split, task: Task, params: Params, batch: Batch) -> np.ndarray:
    """Examples that the network answers worst, first: by margin of classes, else by loss."""
    if split.targets == "distribution" and task.apply is not None:
        margin = in_batches(explain(task, "margin").output)
        return np.argsort(np.asarray(margin(params, batch)), kind="stable")
    return np.argsort(-losses(task, params, batch), kind="stable")


def performance(split: Split, task: Task, params: Params) -> Performance:
    """How good a network is on what it was trained on, and on the queries."""
    parts = split.train, split.test
    queries, points = length(split.test), length(split.train)
    known = split.classes or are_numbers(split)
    if task.apply is None or not known or not _predicts(split, task, params):
        train, test = (float(losses(task, params, batch).mean()) for batch in parts)
        told = f"The mean loss is {test:.4g} on {queries} queries"
        return Performance("mean loss", train, test, f"{told} ({train:.4g} on {points} points).")
    apply = in_batches(task.apply)
    found = [np.asarray(apply(params, batch.x)) for batch in parts]
    if split.targets == "any":
        return _of_numbers(split, found)  # of y's shape, as `_predicts` has found
    pairs = list(zip(found, parts, strict=True))
    train, test = (float(1 - wrong(split, each, batch.y).mean()) for each, batch in pairs)
    if split.targets == "distribution":
        sentence = f"The network is right on {test:.1%} of {queries} queries ({train:.1%} of "
        return Performance("accuracy", train, test, f"{sentence}{points} training points).")
    each = [float(((said > 0) == (batch.y > 0.5)).mean()) for said, batch in pairs]
    common = np.asarray(split.train.y).mean(0) > 0.5
    guess = float((common == (np.asarray(split.test.y) > 0.5)).mean())
    sentence = (
        f"The network is right on {each[1]:.1%} of the {len(split.classes)} labels of {queries} "
        f"queries ({each[0]:.1%} of {points} training points; always saying what is commoner on "
        f"{guess:.1%}), and on all labels of {test:.1%} of the queries."
    )
    return Performance("accuracy of all labels", train, test, sentence)


def _predicts(split: Split, task: Task, params: Params) -> bool:
    """Whether a task predicts what y holds: one of one's own may return anything else.

    Nothing is broadcast: [B] beside [B, 1] would be [B, B].
    """
    if task.apply is None:
        return False
    found, y = jax.eval_shape(task.apply, params, split.test.x), split.test.y
    return getattr(found, "shape", None) == getattr(y, "shape", ())


def are_numbers(split: Split) -> bool:
    """Whether targets are rows of real numbers."""
    y = split.train.y
    return isinstance(y, np.ndarray | jax.Array) and y.ndim == 2 and y.dtype.kind == "f"


def _of_numbers(split: Split, found: Sequence[Any]) -> Performance:
    """Of real targets: the part of their variance that is explained, and the mean error."""
    explained = []
    mean = np.asarray(split.train.y, np.float64).mean(0)
    for predicted, batch in zip(found, (split.train, split.test), strict=True):
        y = np.asarray(batch.y, np.float64)  # squares of 1e-20 and of 1e20 are no float32
        rest, spread = ((predicted - y) ** 2).sum(), ((y - mean) ** 2).sum()
        explained.append(float(1 - rest / spread) if spread else float("nan"))
    train, test = explained
    away = np.abs(split.target_numbers(found[1]) - split.target_numbers(split.test.y)).mean()
    sentence = (
        f"The network explains {test:.1%} of the variance of {length(split.test)} queries "
        f"({train:.1%} of {length(split.train)} training points); it is {away:.4g} off in the mean."
    )
    return Performance("R²", train, test, sentence)


def order(split: Split, count: int) -> tuple[np.ndarray, list[tuple[float, str]], str]:
    """How to sort the queries of a figure: by class, or by their number.

    Returns:
        The order, ticks at the middle of each class with its name, and what they are sorted by.
    """
    y = split.test.y
    if split.targets == "distribution":
        ends = edges(split)
        middle = (ends[:-1] + ends[1:]) / 2
        ticks = list(zip(middle.tolist(), split.classes, strict=True))
        return np.argsort(np.asarray(y).argmax(1), kind="stable"), ticks, ", sorted by class"
    if split.targets == "labels":  # those with the commonest together
        often = np.argsort(np.asarray(split.train.y).sum(0), kind="stable")
        return np.lexsort((np.asarray(y)[:, often] < 0.5).T), [], ", sorted by their labels"
    if are_numbers(split):
        return np.argsort(np.asarray(y)[:, 0], kind="stable"), [], ", sorted by their target"
    return np.arange(count), [], ""


def edges(split: Split) -> np.ndarray:
    """Where each class begins among the queries in the order of classes, and their end, [C + 1]."""
    labels = np.sort(np.asarray(split.test.y).argmax(1))
    return np.searchsorted(labels, np.arange(len(split.classes) + 1))


def said_of(split: Split, task: Task, params: Params, queries: Any) -> dict[int, str]:
    """What the network says of some queries, in words; empty where it has no predictions."""
    if task.apply is None or not len(queries) or not _predicts(split, task, params):
        return {int(query): "" for query in queries}
    found = np.asarray(in_batches(task.apply)(params, take(split.test.x, np.asarray(queries))))
    return {int(query): said(split, row) for query, row in zip(queries, found, strict=True)}
