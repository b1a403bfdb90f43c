"""Banzhaf values: with a group less without it, over retrained random halves."""

from __future__ import annotations

from ddm_jax.estimators.subset_networks import make_subset_estimator
from ddm_jax.train import Train
from ddm_jax.types import Array, Estimator, Task


def make_banzhaf(task: Task, train: Train, *, subsets: int = 100) -> Estimator:
    """Make the estimator of Wang & Jia, "Data Banzhaf", 2023, arXiv 2205.15466, eq. 5.

    The mean output of the networks that saw group k less the mean of those that did not: every
    network serves every group (their maximum sample reuse). Subsets keep half of the groups
    exactly, where the paper tosses a coin for each: where k is, one less of the others is, so
    effects s that add up come out as `s_k - (sum s - s_k) / (K - 1)`. Ranks are those of s; the
    zero is not.

    Raises:
        ValueError: for fewer than two subsets.
    """

    def regress(masks: Array, outputs: Array) -> Array:
        seen = masks.sum(0)[:, None]
        unseen = len(masks) - seen
        with_group = masks.T @ outputs / seen.clip(1)
        without = (1 - masks).T @ outputs / unseen.clip(1)
        # One that all subsets saw, or none, says nothing.
        return (with_group - without) * ((seen > 0) & (unseen > 0))

    return make_subset_estimator(task, train, regress, subsets=subsets, method="banzhaf")
