"""Correlations with the truth, a query at a time, and how sure they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ddm_jax.checks import check_choice

KINDS = ("spearman", "pearson", "kendall")
MOST_BLOCKS = 50  # of rows, that the jackknife deletes in turn
MOST_PAIRS = 20_000_000  # of rows, over the queries of one slice: Kendall compares them all


class Agreement(NamedTuple):
    """A correlation over rows for each query, its mean, and two 95 % intervals of the mean."""

    mean: float  # over the queries that have a correlation; NaN where none has
    over_queries: tuple[float, float]  # how far the mean would move with other queries
    over_rows: tuple[float, float]  # how far with other subsets (or groups)
    per_query: np.ndarray  # [Q], NaN where a query has no correlation
    undefined: int  # queries without one: their predictions or truths are constant


def agreement(predicted: Any, truth: Any, kind: str = "spearman", rows: Any = None) -> Agreement:
    """Score predictions `[R, Q]` against truths `[R, Q]`, query by query.

    The interval over queries is a bootstrap of the mean. That over rows deletes one row after the
    other (jackknife, Quenouille 1956, Tukey 1958; of more than 50 rows, one block after the other
    of at most 50), with Fisher's z and Student's t: the queries share their rows, so it is usually
    the wider one and the one to judge a difference by. With a dozen rows or fewer it is too
    narrow.

    Args:
        kind: "spearman", "pearson" or "kendall" (tau-b).
        rows: [R, Q] booleans, the rows that count for each query; default all. For example the
            groups of the query's own class.

    Raises:
        ValueError: for shapes that differ, fewer than 2 rows, no query, values that are not
            finite, or an unknown kind.
    """
    predicted, truth, rows = _checked(predicted, truth, kind, rows)
    each = _per_query(predicted, truth, rows, kind)
    mean = nan_mean(each)
    without = [nan_mean(_per_query(predicted, truth, left, kind)) for left in rows_left(rows)]
    return Agreement(
        mean=mean,
        over_queries=mean_interval(each),
        over_rows=jackknife_interval(mean, np.asarray(without)),
        per_query=each,
        undefined=int(np.isnan(each).sum()),
    )


def per_query_correlation(
    predicted: Any, truth: Any, kind: str = "spearman", rows: Any = None
) -> np.ndarray:
    """Correlation over the rows for each query: `[R, Q]`, `[R, Q]` -> [Q] in [-1, 1].

    A query whose predictions or truths are constant has no correlation: NaN. Arguments and errors
    as in `agreement`.
    """
    predicted, truth, rows = _checked(predicted, truth, kind, rows)
    return _per_query(predicted, truth, rows, kind)


def linear_datamodeling_score(predicted: Any, truth: Any) -> Agreement:
    """LDS: the Spearman correlation over random subsets, averaged over queries.

    Ilyas et al., 2022, arXiv 2202.00622; Park et al., 2023, arXiv 2303.14186. `predicted` and
    `truth` are outputs after training on each of R random subsets of one size, `[R, Q]`; an
    additive method predicts them by `additive_outputs`.
    """
    return agreement(predicted, truth)


def group_lds(predicted: Any, truth: Any, keep: Any) -> dict[float, Agreement]:
    """LDS within each keep fraction: `keep [R]` says which part of the groups a row keeps.

    Rows of several sizes together would mostly measure that more data is better.
    """
    keep = np.round(np.asarray(keep, np.float64), 6)  # .1 + .2 and .3 are one fraction
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if keep.shape != predicted.shape[:1]:
        raise ValueError(f"keep has shape {keep.shape}; {len(predicted)} rows need one each")
    for fraction, count in zip(*np.unique(keep, return_counts=True), strict=True):
        if count < 2:
            raise ValueError(f"keep fraction {fraction:g} has {count} row; it needs at least 2")
    return {
        float(fraction): linear_datamodeling_score(
            predicted[keep == fraction], truth[keep == fraction]
        )
        for fraction in np.unique(keep)
    }


def leave_one_out_correlation(
    scores: Any, truth: Any, kind: str = "spearman", rows: Any = None
) -> Agreement:
    """The correlation over the K left-out groups, averaged over queries.

    `scores` and `truth` are effects `[K, Q]`. With `rows = group_class[:, None] == query_class`
    over the groups of each query's own class alone, with its opposite over those of the others.
    """
    return agreement(scores, truth, kind, rows)


def pooled_correlation(predicted: Any, truth: Any, kind: str = "pearson") -> float:
    """One correlation over all pairs of row and query; NaN where either is constant."""
    predicted, truth, rows = _checked(
        np.reshape(predicted, (-1, 1)), np.reshape(truth, (-1, 1)), kind, None
    )
    if kind == "kendall":  # of the pairs of so many values there are too many to hold
        return float(stats.kendalltau(predicted[:, 0], truth[:, 0]).statistic)
    return float(_per_query(predicted, truth, rows, kind)[0])


def additive_outputs(scores: Any, masks: Any) -> np.ndarray:
    """Add up the effects of what is kept: scores `[K, Q]`, masks `[R, K]` -> `[R, Q]`.

    The outputs of a linear datamodel, up to a constant a query. Masks are weights: what counts
    double has its effect twice.
    """
    return np.asarray(masks, np.float64) @ np.asarray(scores, np.float64)


def mean_interval(values: Any, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `values` [Q], NaN left out."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    draw = np.random.default_rng(seed)
    found = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=draw)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def rows_left(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows that count `[R, Q]` without each block of them: what a jackknife goes through.

    A block is one row, or as many as leave at most 50 blocks, taken evenly over all rows.
    """
    counted = np.flatnonzero(rows.any(1))
    blocks = -(-len(counted) // -(-max(len(counted), 1) // MOST_BLOCKS))
    for block in range(blocks):
        left = rows.copy()
        left[counted[block::blocks]] = False
        yield left


def jackknife_interval(value: float, without: np.ndarray) -> tuple[float, float]:
    """95 % interval of a correlation from its values without each block of rows, `[B]`.

    On Fisher's scale `atanh`, so that it stays within [-1, 1], with B - 1 degrees of freedom.
    """
    without = without[np.isfinite(without)]
    count = len(without)
    if count < 3 or not np.isfinite(value):
        return float("nan"), float("nan")
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    if error < 1e-12 or abs(value) >= 1:
        return value, value
    reach = stats.t.ppf(0.975, count - 1) * error / (1 - value**2)
    return float(np.tanh(np.arctanh(value) - reach)), float(np.tanh(np.arctanh(value) + reach))


def nan_mean(values: Any) -> float:
    """The mean of what is not NaN; NaN, without a warning, where all is."""
    values = np.asarray(values, np.float64)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _checked(predicted: Any, truth: Any, kind: str, rows: Any):
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    one_shape = predicted.shape == truth.shape and predicted.ndim == 2
    if not one_shape or len(predicted) < 2 or predicted.size == 0:
        raise ValueError(
            f"predictions {predicted.shape} and truths {truth.shape} must have one shape [R, Q] "
            "with R >= 2 and Q >= 1"
        )
    check_choice("kind", kind, KINDS)
    for name, values in (("predictions", predicted), ("truths", truth)):
        if not np.isfinite(values).all():
            raise ValueError(f"{(~np.isfinite(values)).sum()} of the {name} are not finite")
    rows = np.ones(predicted.shape, bool) if rows is None else np.array(rows, bool)
    if rows.shape != predicted.shape:
        raise ValueError(f"rows have shape {rows.shape}; they must be {predicted.shape}")
    return predicted, truth, rows


def profile(values: np.ndarray, rows: np.ndarray, kind: str) -> np.ndarray:
    """Vectors `[D, Q]` of unit length whose inner product is the correlation; NaN if constant.

    Centred values (Pearson), centred ranks (Spearman), or the signs of all pairwise differences
    (Kendall's tau-b). What is outside `rows` is zero.
    """
    if kind == "kendall":
        pairs = rows[:, None] & rows[None]
        vectors = np.where(pairs, np.sign(values[:, None] - values[None]), 0.0)
        vectors = vectors.reshape(-1, values.shape[1])
    else:
        if kind == "spearman":
            # What does not count goes last, where it changes no other rank.
            values = stats.rankdata(np.where(rows, values, np.inf), axis=0)
        count = np.maximum(rows.sum(0), 1)
        vectors = np.where(rows, values - np.where(rows, values, 0.0).sum(0) / count, 0.0)
    high = np.where(rows, values, -np.inf).max(0)
    low = np.where(rows, values, np.inf).min(0)
    # Rounding gives a constant column a length, so length alone does not tell.
    constant = ~(high > low)
    length = np.sqrt((vectors**2).sum(0))
    return np.where(constant, np.nan, vectors / np.where(constant, 1.0, length))


def query_slices(shape: tuple[int, int], kind: str) -> list[slice]:
    """Cut the queries of `[R, Q]` into slices whose profiles fit in memory."""
    count, width = shape
    step = max(MOST_PAIRS // count**2, 1) if kind == "kendall" else max(width, 1)
    return [slice(begin, begin + step) for begin in range(0, width, step)]


def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The inner products of two profiles, `[D, Q]`, `[D, Q]` -> [Q]."""
    return np.clip((a * b).sum(0), -1.0, 1.0)


def _per_query(predicted: np.ndarray, truth: np.ndarray, rows: np.ndarray, kind: str) -> np.ndarray:
    each = []
    for q in query_slices(rows.shape, kind):
        vectors = [profile(values[:, q], rows[:, q], kind) for values in (predicted, truth)]
        each.append(correlate(*vectors))
    return np.concatenate(each)
