"""How far retraining goes, and error bars, learnt from subsets that were retrained.

Few steps undo a part of what data did: their order is right where their size is not. And a
prediction misses by more where more is removed, and on queries that the data reach more. Both are
measured where predictions and retrainings are known, and hold where the same kind of subset is
asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddm_jax.checks import check_number

LEVEL = 0.9
LEAST = 1e-3  # of the median reach: nothing is certain
LEAST_TIMES = 0.1  # however little predictions say of sizes, their order stays
ALIKE = 2.0  # times another removed share, below which two are of one size
LEAST_SHARE = 1e-6  # of the training set; less is rounding


class Intervals(NamedTuple):
    """How far retraining goes, and may be from what is expected; see `fit_intervals`."""

    slopes: np.ndarray  # [3] of log |residual|: one, log reach, log of the predicted change
    floor: float  # below which reach and change count as this
    sizes: np.ndarray  # [B] log of the removed share, rising: where residuals were measured
    widths: np.ndarray  # [B] the LEVEL quantile of |residual| over its scale
    times: np.ndarray  # [B] how far retraining goes where a prediction goes one


def fit_intervals(predicted: np.ndarray, retrained: np.ndarray, removed: np.ndarray, reach):
    """Learn how far retraining goes beyond predicted changes, and single retrainings from that.

    For each size of what was removed (shares of which each is less than ALIKE times the next) a
    factor is fitted by least squares, `retrained ~ times predicted`, from a prior of one. The
    residual is of that, and its scale `exp(a + b log reach_q + c log |predicted|)`, by least
    squares on log residuals; the width of a size is the quantile of |residual| over its scale that
    LEVEL of them stay below (split conformal prediction, Lei et al., "Distribution-free predictive
    inference for regression", 2018, arXiv 1604.04173; residuals of one subset are no independent
    draws, so that it holds on average over subsets alone). Between two sizes factors are
    interpolated in the logarithm of the share, and widths in both logarithms.

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
    kinds = _kinds(np.log(removed))
    sizes = np.asarray([np.log(removed[kind]).mean() for kind in kinds])
    times = np.asarray([_times(predicted[kind], retrained[:, kind].mean(0)) for kind in kinds])
    residual = np.abs(retrained - predicted * _between(removed, sizes, times))
    features = _features(predicted, reach, floor)
    target = np.log(np.maximum(residual, floor)).mean(0)
    slopes = np.linalg.lstsq(features.reshape(-1, 3), target.ravel(), rcond=None)[0]
    slopes[1:] = np.clip(slopes[1:], 0, 1)  # a query that moves more is not more certain
    scale = np.exp(features @ slopes)
    widths = [np.quantile((residual / scale)[:, kind], LEVEL) for kind in kinds]
    return Intervals(slopes, floor, sizes, np.asarray(widths), times)


def expected(intervals: Intervals, predicted, removed) -> np.ndarray:
    """Predicted changes [R, Q] at the size that retraining would give them, the bars' middle.

    Args as of `fit_intervals`.
    """
    predicted = np.asarray(predicted, float)
    removed = _shares(predicted, removed)
    return predicted * _between(removed, intervals.sizes, intervals.times)


def half_widths(intervals: Intervals, predicted, removed, reach) -> np.ndarray:
    """Half of the LEVEL interval of each change, [R, Q]: `expected(...) +- half_width`.

    Of that many single retrainings, a new seed each, the change lies inside. Where nothing is
    removed there is none. Args as of `fit_intervals`.

    Raises:
        ValueError: for shapes that do not fit.
    """
    predicted, reach = np.asarray(predicted, float), np.asarray(reach, float)
    if reach.shape != predicted.shape[1:]:
        raise ValueError(f"reach {reach.shape} must be one of each column of {predicted.shape}")
    shares = _shares(predicted, removed)
    width = np.exp(_between(shares, intervals.sizes, np.log(intervals.widths + 1e-12)))
    width = np.where(np.asarray(removed)[:, None] > LEAST_SHARE, width, 0.0)
    return width * np.exp(_features(predicted, reach, intervals.floor) @ intervals.slopes)


def reach(scores: np.ndarray) -> np.ndarray:
    """How far groups move each query, [Q]: the root mean square of its scores [K, Q]."""
    return np.sqrt((np.asarray(scores, float) ** 2).mean(0))


def coverage(expected, half_width, retrained) -> float:
    """The part of retrained changes `[S, R, Q]` inside of `expected +- half_width` [R, Q]."""
    return float((np.abs(np.asarray(retrained) - expected) <= half_width).mean())


def _kinds(sizes: np.ndarray) -> list[np.ndarray]:
    """Places of removed shares [R] (their logarithms) of one size each, from small to large."""
    order = np.argsort(sizes, kind="stable")
    apart = np.flatnonzero(np.diff(sizes[order]) > np.log(ALIKE) - 1e-9) + 1
    return np.split(order, apart)


def _times(predicted: np.ndarray, retrained: np.ndarray) -> float:
    """The factor of least squares: large effects say most, and noise of small ones little.

    With a prior of one, give or take one: of few small effects no more is known.
    """
    whole, both = float((predicted**2).sum()), float((predicted * retrained).sum())
    best = both / whole if whole else 1.0
    noise = float(((retrained - best * predicted) ** 2).mean())
    return max((both + noise) / (whole + noise), LEAST_TIMES) if whole + noise else 1.0


def _shares(predicted: np.ndarray, removed) -> np.ndarray:
    removed = np.maximum(np.asarray(removed, float), 1e-9)
    if removed.shape != predicted.shape[:1]:
        raise ValueError(
            f"removed {removed.shape} must have a share for each row of {predicted.shape}"
        )
    return removed


def _between(removed: np.ndarray, sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What was measured at some sizes, at these shares: [R, 1]."""
    return np.interp(np.log(removed), sizes, values)[:, None]


def _features(predicted: np.ndarray, reach: np.ndarray, floor: float) -> np.ndarray:
    """[R, Q, 3]."""
    of_query = np.broadcast_to(np.log(np.maximum(reach, floor)), predicted.shape)
    moved = np.log(np.maximum(np.abs(predicted), floor))
    return np.stack([np.ones_like(moved), of_query, moved], -1)
