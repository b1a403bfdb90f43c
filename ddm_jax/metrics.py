"""Scores of an attribution against the truth: arrays in, arrays out.

Everywhere rows are what was removed (R subsets of the training set, or K groups) and columns are
queries: predictions and truths are `[R, Q]`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats


def per_query_correlation(
    predicted: np.ndarray, truth: np.ndarray, kind: str = "spearman"
) -> np.ndarray:
    """Correlation over the rows for each query: `[R, Q]`, `[R, Q]` -> [Q] in [-1, 1].

    A query whose predictions or truths are constant has no correlation: NaN. Average with
    `numpy.nanmean` and say how many there are.

    Args:
        kind: "spearman" (ranks) or "pearson".

    Raises:
        ValueError: for shapes that differ, fewer than 2 rows, or an unknown kind.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if predicted.shape != truth.shape or predicted.ndim != 2 or len(predicted) < 2:
        raise ValueError(
            f"predictions {predicted.shape} and truths {truth.shape} must have one shape [R, Q] "
            "with R >= 2"
        )
    if kind not in ("spearman", "pearson"):
        raise ValueError(f"kind={kind!r}; choose 'spearman' or 'pearson'")
    if kind == "spearman":
        predicted, truth = stats.rankdata(predicted, axis=0), stats.rankdata(truth, axis=0)
    a, b = predicted - predicted.mean(0), truth - truth.mean(0)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    constant = (np.ptp(predicted, axis=0) == 0) | (np.ptp(truth, axis=0) == 0)
    return np.where(constant, np.nan, (a * b).sum(0) / np.where(constant, 1.0, size))


def linear_datamodeling_score(predicted: np.ndarray, truth: np.ndarray) -> float:
    """LDS: the Spearman correlation over subsets, averaged over queries.

    Ilyas et al., 2022, arXiv 2202.00622; Park et al., 2023, arXiv 2303.14186. `predicted` and
    `truth` are outputs after training on each of R random subsets, `[R, Q]`. Queries without a
    correlation are left out.
    """
    return _mean(per_query_correlation(predicted, truth))


def leave_one_out_correlation(scores: np.ndarray, truth: np.ndarray) -> float:
    """The Spearman correlation over the K left-out groups, averaged over queries.

    `scores` and `truth` are effects `[K, Q]`.
    """
    return _mean(per_query_correlation(scores, truth))


def pooled_correlation(predicted: np.ndarray, truth: np.ndarray, kind: str = "pearson") -> float:
    """One correlation over all pairs of row and query; NaN where either is constant."""
    flat = per_query_correlation(np.reshape(predicted, (-1, 1)), np.reshape(truth, (-1, 1)), kind)
    return float(flat[0])


class Ceiling(NamedTuple):
    """How well the truth can be predicted, given its own noise."""

    one_run: float  # one exact retraining against the mean of the others
    perfect: float  # the most that a perfect predictor can be expected to score on the mean


def noise_ceiling(truth: np.ndarray, score=linear_datamodeling_score) -> Ceiling:
    """Reliability of a truth from S seeds, `[S, R, Q]`, under a correlation `score`.

    `one_run` is the mean over seeds of `score(one seed, mean of the others)`. With r the mean of
    `score` over pairs of seeds, the mean of S seeds has the reliability `S r / (1 + (S - 1) r)`
    (Spearman 1910, Brown 1910), and a predictor that knew the expected truth would score its
    square root, `perfect`; 0 where r is not positive.

    Raises:
        ValueError: for fewer than two seeds.
    """
    truth = np.asarray(truth)
    seeds = len(truth)
    if truth.ndim != 3 or seeds < 2:
        raise ValueError(f"truth has shape {truth.shape}; it must be [S, R, Q] with S >= 2 seeds")
    one_run = _mean([score(truth[s], np.delete(truth, s, 0).mean(0)) for s in range(seeds)])
    pairs = _mean([score(truth[a], truth[b]) for a in range(seeds) for b in range(a)])
    # Below zero the formula has a pole: a truth whose seeds disagree is simply not reliable.
    pairs = pairs if np.isnan(pairs) else max(pairs, 0.0)
    return Ceiling(one_run, float(np.sqrt(seeds * pairs / (1 + (seeds - 1) * pairs))))


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `values` [Q], NaN left out.

    Over queries: it says how much the mean would move with other queries, not other seeds.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def _mean(values) -> float:
    values = np.asarray(values, np.float64)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
