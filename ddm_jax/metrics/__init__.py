"""Scores of an attribution against the truth: arrays in, arrays out.

Everywhere rows are what was removed (R subsets of the training set, or K groups) and columns are
queries: predictions and truths are `[R, Q]`, truths of several seeds `[S, R, Q]`.
"""

from ddm_jax.metrics.ceiling import (
    Ceiling,
    ceiling_of,
    noise_ceiling,
    runs_needed,
    spearman_brown,
)
from ddm_jax.metrics.correlation import (
    Agreement,
    additive_outputs,
    agreement,
    group_lds,
    leave_one_out_correlation,
    linear_datamodeling_score,
    mean_interval,
    nan_mean,
    per_query_correlation,
    pooled_correlation,
)
from ddm_jax.metrics.ranking import Detection, Retrieval, detection, retrieval
from ddm_jax.metrics.removal import Flips, curve_area, curve_masks, flips, top_masks

__all__ = [
    "Agreement",
    "Ceiling",
    "Detection",
    "Flips",
    "Retrieval",
    "additive_outputs",
    "agreement",
    "ceiling_of",
    "curve_area",
    "curve_masks",
    "detection",
    "flips",
    "group_lds",
    "leave_one_out_correlation",
    "linear_datamodeling_score",
    "mean_interval",
    "nan_mean",
    "noise_ceiling",
    "per_query_correlation",
    "pooled_correlation",
    "retrieval",
    "runs_needed",
    "spearman_brown",
    "top_masks",
]
