"""What a truth says of predictions: the scores that it allows, and their ceilings."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ddm_jax import metrics
from ddm_jax.judge.truth import Truth
from ddm_jax.metrics import Ceiling

LEAVE_ONE_OUT = "leave-one-out"  # the name of that score; the others are "LDS, keep <fraction>"


class Part(NamedTuple):
    """A part of the truth."""

    subsets: np.ndarray  # rows
    queries: np.ndarray


def judge_outputs(truth: Truth, scores: Any, outputs: Any = None) -> dict[str, dict[str, Any]]:
    """Score what a method says against all of a truth: by the name of the score, JSON values.

    Args:
        scores: [K, Q], the effect of having each group.
        outputs: [R, Q] for the masks of the truth; default: the scores of what is kept, added up.
    """
    scores = np.asarray(scores)
    if outputs is None:
        outputs = metrics.additive_outputs(scores, truth.masks)
    outputs, every = np.asarray(outputs), _all_of(truth)
    rows = {}
    for score in score_names(truth):
        loo = score == LEAVE_ONE_OUT
        said = scores[truth.groups] if loo else outputs[subset_rows(truth, score, every)]
        rows[score] = score_row(said, true_runs(truth, score, every))
    return rows


def ceilings(truth: Truth) -> dict[str, dict[str, Any]]:
    """The ceiling of every score that a truth allows, over all its rows and queries."""
    every = _all_of(truth)
    return {
        score: ceiling_row(metrics.noise_ceiling(true_runs(truth, score, every)))
        for score in score_names(truth)
    }


def score_names(truth: Truth) -> list[str]:
    """The scores that a truth allows."""
    names = [LEAVE_ONE_OUT] if len(truth.single) else []
    return names + [f"LDS, keep {fraction:g}" for fraction in np.unique(truth.keep)]


def score_row(predicted: np.ndarray, runs: np.ndarray) -> dict[str, Any]:
    """Score predictions `[R, Q]` against the runs of a truth `[S, R, Q]`; JSON values.

    `value` is against the mean of all runs; `value_one_run` against a single one, averaged, as
    protocols with one run a subset have it. Ceilings beside both.
    """
    agreement = metrics.agreement(predicted, runs.mean(0))
    ceiling = metrics.noise_ceiling(runs)
    one = [metrics.nan_mean(metrics.per_query_correlation(predicted, run)) for run in runs]
    return {
        "value": agreement.mean,
        "over_queries": list(agreement.over_queries),
        "over_rows": list(agreement.over_rows),
        "undefined": agreement.undefined,
        "share_of_ceiling": agreement.mean / ceiling.perfect if ceiling.perfect else float("nan"),
        "value_one_run": float(np.mean(one)),
        "counterfactuals": len(predicted),
        "queries": predicted.shape[1],
    } | ceiling_row(ceiling)


def ceiling_row(ceiling: Ceiling) -> dict[str, Any]:
    """A ceiling as JSON values, with the runs that a ceiling of .8 would take."""
    return {
        "ceiling": ceiling.perfect,
        "ceiling_interval": list(ceiling.interval),
        "ceiling_one_run": metrics.ceiling_of(ceiling.reliability, 1),
        "one_retraining": ceiling.one_run,
        "reliability": ceiling.reliability,
        "runs": ceiling.runs,
        "runs_for_ceiling_0.8": metrics.runs_needed(ceiling.reliability, 0.8),
    }


def true_runs(truth: Truth, score: str, part: Part) -> np.ndarray:
    """The runs of the truth that a score is measured against, `[S, R, Q]` of a part."""
    if score == LEAVE_ONE_OUT:
        return truth.effects()[:, :, part.queries]
    return truth.subsets[:, subset_rows(truth, score, part)][:, :, part.queries]


def subset_rows(truth: Truth, score: str, part: Part) -> np.ndarray:
    """The rows of a part that a score of random subsets is of."""
    return part.subsets[[f"LDS, keep {truth.keep[row]:g}" == score for row in part.subsets]]


def _all_of(truth: Truth) -> Part:
    return Part(np.arange(len(truth.keep)), np.arange(truth.subsets.shape[-1]))
