"""Comparing networks by what they rely on: attribution profiles on the same groups and queries."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ddm_jax.checks import check_integer
from ddm_jax.metrics.correlation import nan_mean, per_query_correlation, pooled_correlation


class Likeness(NamedTuple):
    """How alike two networks' attribution matrices are."""

    per_query: float  # mean Spearman over the groups, query by query
    profile: float  # Spearman of the profiles: how much each group matters overall
    top: float  # mean part of the k groups that raise it most that they share, query by query
    chance: float  # `top` of unrelated matrices, k / K


def compare_profiles(first: Any, second: Any, k: int = 5) -> Likeness:
    """Compare two attribution matrices of the same groups and queries.

    Matrices of two networks that differ by their seed alone tell how much of a difference is
    chance: read `compare_profiles` of those first.

    Args:
        first, second: scores [K, Q].
        k: how many of the groups that raise each output most, in 1..K.

    Raises:
        ValueError: for shapes that do not fit or a k out of range.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"the matrices have shapes {first.shape} and {second.shape}; both must be [K, Q] for "
            "the same groups and queries"
        )
    check_integer("k", k, 1, len(first))
    own, other = (np.argsort(-each, 0, kind="stable")[:k] for each in (first, second))
    return Likeness(
        per_query=nan_mean(per_query_correlation(first, second)),
        profile=pooled_correlation(profile(first), profile(second), "spearman"),
        top=float((own[:, None] == other).any(1).mean()),
        chance=k / len(first),
    )


def profile(scores: Any) -> np.ndarray:
    """How much a network relies on each group: the mean absolute effect over the queries, [K].

    Relative to all groups: it sums to one.
    """
    size = np.abs(np.asarray(scores, np.float64)).mean(1)
    return size / max(float(size.sum()), 1e-30)
