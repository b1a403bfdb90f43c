"""Error bars of predicted changes, learnt from subsets that were retrained.

A prediction misses by more where more is removed, and on queries that the data reach more. How much
is measured where both are known, and holds where the same kind of subset is asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddm_jax.checks import check_number

LEVEL = 0.9
LEAST = 1e-3  # of the median reach: nothing is certain


class Intervals(NamedTuple):
    """How far a retraining is from what is predicted; see `fit_intervals`."""

    slopes: np.ndarray  # [3] of log |residual|: one, log reach, log of the predicted change
    floor: float  # below which reach and change count as this
    sizes: np.ndarray  # [B] log of the removed share, rising: where residuals were measured
    widths: np.ndarray  # [B] the LEVEL quantile of |residual| over its scale


def fit_intervals(predicted: np.ndarray, retrained: np.ndarray, removed: np.ndarray, reach):
    """Learn how far single retrainings are from predicted changes.

    The scale of a residual is `exp(a + b log reach_q + c log |predicted|)`, by least squares on
    log residuals; for each size of what was removed the width is the quantile of |residual| over
    its scale that LEVEL of them stay below (split conformal prediction, Lei et al.,
    "Distribution-free predictive inference for regression", 2018, arXiv 1604.04173; residuals of
    one subset are no independent draws, so that it holds on average over subsets alone). Between
    two sizes widths are interpolated in the logarithm.

    Args:
        predicted: [R, Q] changes of the output against nothing removed.
        retrained: [S, R, Q] the same of S retrainings, each against its own seed's.
        removed: [R] the share of the training set that is gone, in (0, 1).
        reach: [Q] how far groups move each query, `reach(scores)`.

    Raises:
        ValueError: for shapes that do not fit, no subset, or a share outside (0, 1).
    """
    predicted, removed, reach = (np.asarray(each, float) for each in (predicted, removed, reach))
    retrained = np.asarray(retrained, float)
    shape = predicted.shape
    fits = retrained.ndim == 3 and retrained.shape[1:] == shape
    if not (fits and removed.shape == shape[:1] and reach.shape == shape[1:] and retrained.size):
        raise ValueError(
            f"changes {shape}, retrained {retrained.shape}, removed {removed.shape} and reach "
            f"{reach.shape} must be [R, Q], [S, R, Q], [R] and [Q], with one of each at least"
        )
    if not all(np.isfinite(each).all() for each in (predicted, retrained, reach)):
        raise ValueError("changes and reach must be finite: a prediction or a retraining diverged")
    for share in removed:
        check_number("removed", float(share), above=0, below=1)
    floor = LEAST * float(np.median(reach)) + 1e-12
    residual = np.abs(retrained - predicted)
    features = _features(predicted, reach, floor)
    target = np.log(np.maximum(residual, floor)).mean(0)
    slopes = np.linalg.lstsq(features.reshape(-1, 3), target.ravel(), rcond=None)[0]
    slopes[1:] = np.clip(slopes[1:], 0, 1)  # a query that moves more is not more certain
    scale = np.exp(features @ slopes)
    bins = np.round(np.log(removed), 1)
    sizes = np.unique(bins)
    widths = [np.quantile((residual / scale)[:, bins == size], LEVEL) for size in sizes]
    centres = [np.log(removed[bins == size]).mean() for size in sizes]
    return Intervals(slopes, floor, np.asarray(centres), np.asarray(widths))


def half_widths(intervals: Intervals, predicted, removed, reach) -> np.ndarray:
    """Half of the LEVEL interval of each predicted change, [R, Q]: `predicted +- half_width`.

    Of that many single retrainings, a new seed each, the change lies inside. Args as of
    `fit_intervals`.
    """
    predicted, reach = np.asarray(predicted, float), np.asarray(reach, float)
    removed = np.maximum(np.asarray(removed, float), 1e-9)
    width = np.exp(np.interp(np.log(removed), intervals.sizes, np.log(intervals.widths + 1e-12)))
    if removed.shape != predicted.shape[:1]:
        raise ValueError(
            f"removed {removed.shape} must have a share for each row of {predicted.shape}"
        )
    return width[:, None] * np.exp(_features(predicted, reach, intervals.floor) @ intervals.slopes)


def reach(scores: np.ndarray) -> np.ndarray:
    """How far groups move each query, [Q]: the root mean square of its scores [K, Q]."""
    return np.sqrt((np.asarray(scores) ** 2).mean(0))


def coverage(predicted, half_width, retrained) -> float:
    """The part of retrained changes `[S, R, Q]` inside of `predicted +- half_width` [R, Q]."""
    return float((np.abs(np.asarray(retrained) - predicted) <= half_width).mean())


def _features(predicted: np.ndarray, reach: np.ndarray, floor: float) -> np.ndarray:
    """[R, Q, 3]."""
    of_query = np.broadcast_to(np.log(np.maximum(reach, floor)), predicted.shape)
    moved = np.log(np.maximum(np.abs(predicted), floor))
    return np.stack([np.ones_like(moved), of_query, moved], -1)
