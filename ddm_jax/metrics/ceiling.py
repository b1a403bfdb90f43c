"""How well a truth can be predicted at all, given its own noise."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ddm_jax.checks import check_choice, check_number
from ddm_jax.metrics.correlation import (
    KINDS,
    correlate,
    jackknife_interval,
    nan_mean,
    per_query_correlation,
    pooled_correlation,
    profile,
    query_slices,
    rows_left,
)


class Ceiling(NamedTuple):
    """The noise of a truth of S runs, as correlations."""

    reliability: float  # of one run: two runs against each other
    one_run: float  # one run against the mean of the others: an exact retraining as a predictor
    perfect: float  # the most that a predictor can be expected to score against the mean of S
    interval: tuple[float, float]  # 95 %, of `perfect`, over rows
    runs: int  # S
    undefined: int  # queries without a correlation between runs


def noise_ceiling(
    truth: Any, kind: str = "spearman", *, pooled: bool = False, rows: Any = None
) -> Ceiling:
    """Measure the ceiling of a truth of S runs, `[S, R, Q]`.

    The reliability r is the mean correlation of two runs. The mean of S runs has the reliability
    `S r / (1 + (S - 1) r)` (Spearman 1910, Brown 1910), and a predictor that knew the expected
    truth would score its square root, `perfect`; 0 where r is not positive. The interval is that
    of r over rows (jackknife, as in `agreement`), carried through.

    Args:
        kind: "spearman", "pearson" or "kendall". The formula is exact for Pearson, and close for
            ranks.
        pooled: one correlation over all pairs of row and query, as in `pooled_correlation`.
        rows: [R, Q] booleans, as in `agreement`; not with `pooled`.

    Raises:
        ValueError: for fewer than two runs or rows, or an unknown kind.
    """
    truth = np.asarray(truth, np.float64)
    if truth.ndim != 3 or len(truth) < 2 or truth.shape[1] < 2 or truth.size == 0:
        raise ValueError(
            f"truth has shape {truth.shape}; it must be [S, R, Q] with S >= 2 runs, R >= 2 rows "
            "and Q >= 1 queries"
        )
    check_choice("kind", kind, KINDS)
    if pooled and rows is not None:
        raise ValueError("rows and pooled exclude each other")
    runs, count, width = truth.shape
    rows = np.ones((count, width), bool) if rows is None else np.array(rows, bool)
    if rows.shape != (count, width):
        raise ValueError(f"rows have shape {rows.shape}; they must be {(count, width)}")
    if not np.isfinite(truth).all():
        raise ValueError(f"{(~np.isfinite(truth)).sum()} values of the truth are not finite")

    def between(left: np.ndarray) -> np.ndarray:
        """The correlation of two runs, averaged over pairs of them, `[Q]` or `[1]`."""
        two = [(a, b) for a in range(runs) for b in range(a)]
        if pooled:
            kept = truth[:, left.any(1)]
            if kept[0].size < 2:
                return np.full(1, np.nan)
            return np.mean([[pooled_correlation(kept[a], kept[b], kind)] for a, b in two], 0)
        found = []
        for q in query_slices(left.shape, kind):
            vectors = [profile(one[:, q], left[:, q], kind) for one in truth]
            found.append(np.mean([correlate(vectors[a], vectors[b]) for a, b in two], 0))
        return np.concatenate(found)

    each = between(rows)
    reliability = nan_mean(each)
    without = [nan_mean(between(left)) for left in rows_left(rows)]
    low, high = jackknife_interval(reliability, np.asarray(without))
    others = [np.delete(truth, run, 0).mean(0) for run in range(runs)]
    against = zip(truth, others, strict=True)
    if pooled:
        one_run = [pooled_correlation(one, rest, kind) for one, rest in against]
    else:
        one_run = [nan_mean(per_query_correlation(one, rest, kind, rows)) for one, rest in against]
    return Ceiling(
        reliability=reliability,
        one_run=nan_mean(one_run),
        perfect=ceiling_of(reliability, runs),
        interval=(ceiling_of(low, runs), ceiling_of(high, runs)),
        runs=runs,
        undefined=int(np.isnan(each).sum()),
    )


def spearman_brown(reliability: float, runs: int) -> float:
    """The reliability of the mean of `runs` runs: `S r / (1 + (S - 1) r)`; 0 for r <= 0.

    Below zero the formula has a pole: a truth whose runs disagree is simply not reliable.
    """
    if np.isnan(reliability):
        return float("nan")
    reliability = max(reliability, 0.0)
    return runs * reliability / (1 + (runs - 1) * reliability)


def ceiling_of(reliability: float, runs: int) -> float:
    """What a perfect predictor scores against the mean of `runs` runs: a square root."""
    return float(np.sqrt(spearman_brown(reliability, runs)))


def runs_needed(reliability: float, ceiling: float) -> int | None:
    """The fewest runs whose mean has at least this ceiling; None where no number has.

    Args:
        reliability: of one run, as in `Ceiling`.
        ceiling: wanted, in [0, 1).

    Raises:
        ValueError: for a ceiling out of range.
    """
    check_number("ceiling", ceiling, least=0, below=1)
    if not reliability > 0:
        return None
    if reliability >= 1:
        return 1
    wanted = ceiling**2
    # The formula above, solved for the runs; a hair less, for rounding.
    exact = wanted * (1 - reliability) / (reliability * (1 - wanted))
    return max(int(np.ceil(exact - 1e-9)), 1)
