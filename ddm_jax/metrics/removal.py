"""What came of removing groups: predictions that flip, curves, and whether effects add up.

The masks that say what to remove are made by `masks`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Flips(NamedTuple):
    """Brittleness: how many right predictions a removal turns wrong."""

    rate: np.ndarray  # [J], among the queries that were right before
    queries: int  # how many of those there are
    left_out: int  # queries that were wrong before


class Additivity(NamedTuple):
    """How well joint effects are the sums of single ones, over all subsets and queries.

    NaN where either is the same everywhere.
    """

    correlation: float  # Pearson, joint against summed effects
    slope: float  # of the joint effects on the summed: below one where effects overlap
    error: float  # |joint - summed|^2 / |joint|^2: 0 where they add up, 1 as bad as no effect


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


def additivity(masks: Any, outputs: Any, single: Any) -> Additivity:
    """Compare the joint effect of what each mask leaves out with the sum of single effects.

    The joint effect of mask r on query q is `outputs[0, q] - outputs[r, q]`, where mask 0 keeps
    everything; the sum is `(1 - masks_r) @ single`.

    Args:
        masks: [R, K], the first one all ones.
        outputs: [R, Q].
        single: [K, Q], the effect of having each group.

    Raises:
        ValueError: for shapes that do not fit, or a first mask that leaves something out.
    """
    masks, outputs, single = (np.asarray(each, np.float64) for each in (masks, outputs, single))
    if masks.ndim != 2 or len(masks) < 2 or not (masks[0] == 1).all():
        raise ValueError("masks must be [R, K] with R >= 2, the first one all ones")
    if outputs.shape != (len(masks), single.shape[1]) or len(single) != masks.shape[1]:
        raise ValueError(
            f"masks {masks.shape}, outputs {outputs.shape} and single {single.shape} do not fit; "
            "they must be [R, K], [R, Q] and [K, Q]"
        )
    joint = (outputs[:1] - outputs[1:]).ravel()
    summed = ((1 - masks[1:]) @ single).ravel()
    if not np.ptp(joint) or not np.ptp(summed):
        return Additivity(float("nan"), float("nan"), float("nan"))
    return Additivity(
        correlation=float(np.corrcoef(joint, summed)[0, 1]),
        slope=float(joint @ summed / (summed @ summed)),
        error=float(((joint - summed) ** 2).sum() / (joint @ joint)),
    )
