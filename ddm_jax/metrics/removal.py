"""Which groups to remove or to keep to put an attribution to the test, and what came of it.

The masks made here go to retraining; what it says comes back as outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Flips(NamedTuple):
    """Brittleness: how many right predictions a removal turns wrong."""

    rate: np.ndarray  # [J], among the queries that were right before
    queries: int  # how many of those there are
    left_out: int  # queries that were wrong before


def top_masks(scores: Any, k: int) -> np.ndarray:
    """Keep masks `[Q, K]` without the k groups that help each query most.

    `scores [K, Q]` are effects on an output that is larger when the query is more right, for
    example the margin. Ilyas et al., "Datamodels", 2022, arXiv 2202.00622, section 4.1
    (brittleness). Ties go to the lower group.

    Raises:
        ValueError: for a k outside 1..K-1.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2:
        raise ValueError(f"scores have shape {scores.shape}; they must be [K, Q]")
    if not 1 <= k < len(scores):
        raise ValueError(f"k={k}; it must be in 1..{len(scores) - 1}, so that a group is left")
    order = np.argsort(-scores, axis=0, kind="stable")[:k]
    masks = np.ones(scores.shape[::-1], np.float32)
    np.put_along_axis(masks, order.T, 0.0, axis=1)
    return masks


def flips(before: Any, after: Any) -> Flips:
    """Count predictions that flip: margins `[Q]` before and `[J, Q]` after each of J removals.

    A prediction is right where its margin is positive. Queries that were wrong before are left
    out, and counted.
    """
    before, after = np.asarray(before), np.asarray(after)
    if before.ndim != 1 or after.ndim != 2 or after.shape[1:] != before.shape:
        raise ValueError(f"margins {before.shape} and {after.shape} must be [Q] and [J, Q]")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("some margins are not finite: a network diverged")
    right = before > 0
    count = int(right.sum())
    rate = (after[:, right] <= 0).mean(1) if count else np.full(len(after), np.nan)
    return Flips(rate, count, len(before) - count)


def curve_masks(value: Any, sizes: Any, fractions: Sequence[float], first: str) -> np.ndarray:
    """Keep masks `[J, K]` that remove a growing part of the training points, group by group.

    Groups go in the order of `value [K]`: first the "lowest" (does removing what harms help?) or
    the "highest" (does removing what helps hurt?). Groups go while the points removed do not
    exceed the fraction; at least one group stays. The complement `1 - masks` keeps what was
    removed: a keep curve.

    Args:
        value: [K], for example the mean score over queries.
        sizes: [K] training points in each group.
        fractions: of the points to remove, each in [0, 1).
        first: "lowest" or "highest".

    Raises:
        ValueError: for a setting out of range.
    """
    value, sizes = np.asarray(value, np.float64), np.asarray(sizes)
    if first not in ("lowest", "highest"):
        raise ValueError(f"first={first!r}; choose 'lowest' or 'highest'")
    if value.ndim != 1 or value.shape != sizes.shape:
        raise ValueError(f"value {value.shape} and sizes {sizes.shape} must both be [K]")
    order = np.argsort(value if first == "lowest" else -value, kind="stable")
    removed = np.cumsum(sizes[order]) / sizes.sum()
    masks = np.ones((len(fractions), len(value)), np.float32)
    for row, fraction in enumerate(fractions):
        if not 0 <= fraction < 1:
            raise ValueError(f"fractions has {fraction}; each must be in [0, 1)")
        gone = order[removed <= fraction + 1e-9][: len(value) - 1]
        masks[row, gone] = 0.0
    return masks


def curve_area(fractions: Any, values: Any) -> float:
    """The mean height of a curve over its fractions (trapezoid rule)."""
    fractions, values = np.asarray(fractions, np.float64), np.asarray(values, np.float64)
    if fractions.shape != values.shape or fractions.ndim != 1 or len(fractions) < 2:
        raise ValueError(
            f"fractions {fractions.shape} and values {values.shape} must be one length, at least 2"
        )
    if not (np.diff(fractions) > 0).all():
        raise ValueError("fractions must increase")
    return float(np.trapezoid(values, fractions) / (fractions[-1] - fractions[0]))
