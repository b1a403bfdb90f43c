"""Comparing networks by what they rely on: attribution profiles on the same groups and queries."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata


class Likeness(NamedTuple):
    """How alike two networks' attribution matrices are."""

    per_query: float  # mean Spearman over the groups, query by query
    profile: float  # Spearman of the profiles: how much each group matters overall
    top: float  # mean part of the k most helpful groups that they share, query by query
    chance: float  # `top` of unrelated matrices, k / K


def compare_profiles(first: Any, second: Any, k: int = 5) -> Likeness:
    """Compare two attribution matrices of the same groups and queries.

    Matrices of two networks that differ by their seed alone tell how much of a difference is
    chance: read `compare_profiles` of those first.

    Args:
        first, second: scores [K, Q].
        k: how many of the most helpful groups, in 1..K.

    Raises:
        ValueError: for shapes that do not fit or a k out of range.
    """
    from ddm_jax.metrics import agreement

    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"the matrices have shapes {first.shape} and {second.shape}; both must be [K, Q] for "
            "the same groups and queries"
        )
    groups, queries = first.shape
    if not 1 <= k <= groups:
        raise ValueError(f"k={k}; it must be in 1..{groups}, the number of groups")
    own, other = (np.argsort(-each, 0, kind="stable")[:k] for each in (first, second))
    shared = [len(set(own[:, q]) & set(other[:, q])) / k for q in range(queries)]
    return Likeness(
        per_query=agreement(first, second).mean,
        profile=_spearman(profile(first), profile(second)),
        top=float(np.mean(shared)),
        chance=k / groups,
    )


def profile(scores: Any) -> np.ndarray:
    """How much a network relies on each group: the mean absolute effect over the queries, [K].

    Relative to all groups: it sums to one.
    """
    size = np.abs(np.asarray(scores, np.float64)).mean(1)
    return size / max(float(size.sum()), 1e-30)


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    a, b = rankdata(first), rankdata(second)
    if not np.ptp(a) or not np.ptp(b):
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
