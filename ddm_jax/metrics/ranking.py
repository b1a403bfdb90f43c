"""How well scores find what is known to be there: bad labels, duplicates, points of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ddm_jax.checks import check_integer, check_number
from ddm_jax.metrics.correlation import nan_mean


class Detection(NamedTuple):
    """How well a score finds the bad points."""

    auc: float  # area under the ROC curve: a bad point scores above a good one
    average_precision: float
    found: np.ndarray  # the part of the bad points found after inspecting each fraction


class Retrieval(NamedTuple):
    """How well scores put what is relevant to a query first; means over queries."""

    precision: float  # the relevant part of the top k
    average_precision: float
    precision_per_query: np.ndarray  # [Q], NaN where undefined
    average_precision_per_query: np.ndarray  # [Q]
    undefined: int  # queries with constant scores, or to which nothing or everything is relevant


def detection(suspicion: Any, bad: Any, inspect: Sequence[float] = (0.05, 0.1, 0.2)) -> Detection:
    """Score a suspicion `[N]` (larger = worse) against which points are bad, `[N]` booleans.

    `found[i]` is the part of all bad points among the `inspect[i]` most suspect ones; points of
    equal suspicion count as if inspected in a random order (in the average precision, as one
    block).

    Raises:
        ValueError: for lengths that differ, a suspicion that is not finite, bad points that are
            none or all, or a fraction outside [0, 1].
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    suspicion, bad = np.asarray(suspicion, np.float64), np.asarray(bad, bool)
    if suspicion.ndim != 1 or suspicion.shape != bad.shape:
        raise ValueError(f"suspicion {suspicion.shape} and bad {bad.shape} must both be [N]")
    if not np.isfinite(suspicion).all():
        raise ValueError("the suspicion of some points is not finite")
    if bad.all() or not bad.any():
        raise ValueError(f"{bad.sum()} of {len(bad)} points are bad; some must be, and not all")
    for fraction in inspect:
        check_number("inspect", fraction, least=0, most=1)
    return Detection(
        auc=float(roc_auc_score(bad, suspicion)),
        average_precision=float(average_precision_score(bad, suspicion)),
        found=np.asarray([_found(suspicion, bad, fraction) for fraction in inspect]),
    )


def retrieval(scores: Any, relevant: Any, k: int) -> Retrieval:
    """Score a ranking of training points or groups for each query: `[K, Q]`, `[K, Q]` booleans.

    For example `relevant[i, q]`: point i is a duplicate of query q, or has its class.

    Raises:
        ValueError: for shapes that differ or a k outside 1..K.
    """
    from sklearn.metrics import average_precision_score

    scores, relevant = np.asarray(scores, np.float64), np.asarray(relevant, bool)
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise ValueError(f"scores {scores.shape} and relevant {relevant.shape} must both be [K, Q]")
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} scores are not finite")
    check_integer("k", k, 1, len(scores))
    width = scores.shape[1]
    precision, average = np.full(width, np.nan), np.full(width, np.nan)
    told = (np.ptp(scores, axis=0) > 0) & relevant.any(0) & ~relevant.all(0)
    for query in np.flatnonzero(told):
        one, good = scores[:, query], relevant[:, query]
        precision[query] = _found(one, good, k / len(one)) * good.sum() / k
        average[query] = average_precision_score(good, one)
    return Retrieval(nan_mean(precision), nan_mean(average), precision, average, int((~told).sum()))


def _found(score: np.ndarray, wanted: np.ndarray, fraction: float) -> float:
    """The part of the wanted points in the top, ties as if in a random order."""
    top = fraction * len(score)
    last = stats.rankdata(-score, "max")  # how many points score at least as much
    first = stats.rankdata(-score, "min") - 1
    inside = np.clip((top - first) / (last - first), 0.0, 1.0)
    return float(inside[wanted].sum() / wanted.sum())
