"""Estimators judged on the same truth: settings chosen on one part of it, scores on the other.

    tuning part:    a quarter of the random subsets, a quarter of the queries
    reporting part: the others of both

Leave-one-group-out has no subsets to split; its queries are split. Every estimator may try
BUDGET candidates at most, and is scored with the one that did best on the tuning part, for each
score apart.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax import metrics
from ddm_jax.candidates import BUDGET, CANDIDATES, Candidates, Settings
from ddm_jax.flops import count_flops
from ddm_jax.metrics import Ceiling
from ddm_jax.plan import Plan, check_distillation_fits
from ddm_jax.truth import Truth, truth_key
from ddm_jax.types import Estimator, TrainRun, take

TUNING = 0.25  # of the subsets and of the queries
ENOUGH = 3  # subsets, at least, to tune on and to report on
REPEAT_SECONDS = 30.0  # what took longer is not run twice to tell compilation apart
LEAVE_ONE_OUT = "leave-one-out"  # the name of that score; the others are "LDS, keep <fraction>"


class Part(NamedTuple):
    """A part of the truth."""

    subsets: np.ndarray  # rows
    queries: np.ndarray


class Timed(NamedTuple):
    """A result and how long it took."""

    value: np.ndarray
    seconds: float
    compile_seconds: float | None  # None: not told apart from `seconds`


class Fitted(NamedTuple):
    """A candidate that is ready to be asked."""

    settings: Settings
    estimator: Estimator
    state: Any
    seconds: float  # of its fit


def check_estimators(names: Sequence[str], plan: Plan) -> None:
    """Check names, settings and budgets before any work.

    Raises:
        ValueError: for an unknown name, one that is named twice, none, groups that cannot be
            distilled, or an objective without an output a query.
    """
    if not names:
        raise ValueError(f"no estimators are named; choose from {', '.join(CANDIDATES)}")
    for name in names:
        if name not in CANDIDATES:
            raise ValueError(f"unknown estimator {name!r}; choose from {', '.join(CANDIDATES)}")
        if list(names).count(name) > 1:
            raise ValueError(f"estimator {name!r} is named twice")
        every = _product(CANDIDATES[name].offline | CANDIDATES[name].online)
        if len(every) > BUDGET:
            raise ValueError(f"{name} has {len(every)} candidates; the budget is {BUDGET}")
        for settings in every:
            CANDIDATES[name].make(plan, settings)  # a wrong setting fails here
    if "ddm" in names:
        check_distillation_fits(plan)
    if plan.config.truth.objective == "accuracy":
        raise ValueError("truth.objective=accuracy has no output a query; use loss or margin")


def split_parts(keep: np.ndarray, num_queries: int, seed: int) -> tuple[Part, Part]:
    """Cut the truth into a tuning and a reporting part that share no subset and no query.

    Args:
        keep: [R], the keep fraction of each random subset; each fraction is split alike.

    Raises:
        ValueError: when there is too little of either.
    """
    draw = np.random.default_rng(seed)
    tuning: list[int] = []
    for fraction in np.unique(keep):
        rows = draw.permutation(np.flatnonzero(keep == fraction))
        count = max(round(TUNING * len(rows)), ENOUGH)
        if len(rows) - count < ENOUGH:
            raise ValueError(
                f"truth.subsets={len(rows)} cannot be split into a part to choose settings on and "
                f"one to report on; use at least {2 * ENOUGH}"
            )
        tuning += rows[:count].tolist()
    if num_queries < 2:
        raise ValueError(f"{num_queries} queries cannot be split in two; use at least 2")
    queries = draw.permutation(num_queries)
    cut = min(max(round(TUNING * num_queries), 1), num_queries - 1)
    return (
        Part(np.sort(np.asarray(tuning, int)), np.sort(queries[:cut])),
        Part(np.setdiff1d(np.arange(len(keep)), tuning), np.sort(queries[cut:])),
    )


def judge(
    name: str,
    plan: Plan,
    truth: Truth,
    run: TrainRun,
    groups: np.ndarray,
    say: Callable[[str], None] = lambda text: None,
    parts: tuple[Part, Part] | None = None,
    candidates: Candidates | None = None,
) -> list[dict[str, Any]]:
    """Fit an estimator, choose its settings, and score it; a row for each score, JSON values.

    `parts` are those to tune and to report on, default `split_parts`; `candidates` default to
    those of CANDIDATES.

    Raises:
        ValueError: when it gives values that are not finite.
    """
    if parts is None:
        parts = split_parts(truth.keep, len(plan.split.test.x), plan.config.seed)
    tuning, reporting = parts
    fitted = _fit(CANDIDATES[name] if candidates is None else candidates, plan, run, groups)
    offline_seconds = float(np.mean([each.seconds for each in fitted]))
    rows = []
    for score in score_names(truth):
        tried: list[float] = []
        for each in fitted if len(fitted) > 1 else []:
            predicted = _ask(each, plan, truth, score, tuning)()
            true = true_runs(truth, score, tuning).mean(0)
            diverged = not np.isfinite(predicted).all()
            each_query: Any = [] if diverged else metrics.per_query_correlation(predicted, true)
            tried.append(metrics.nan_mean(each_query))
            say(f"  {name}, {score}, {each.settings}: {tried[-1]:.3f} on the tuning part")
        best = fitted[int(np.nanargmax(tried)) if np.isfinite(tried).any() else 0]
        found = _timed(_ask(best, plan, truth, score, reporting))
        if not np.isfinite(found.value).all():
            raise ValueError(f"its values for {score} are not finite (settings {best.settings})")
        row: dict[str, Any] = {"estimator": name, "score": score}
        row |= score_row(found.value, true_runs(truth, score, reporting))
        if score == LEAVE_ONE_OUT:
            row |= _class_rows(plan, truth, groups, reporting, found.value)
        flops = _online_flops(best, plan, truth, score, reporting)
        row |= {
            "settings": best.settings,
            "candidates": len(fitted),
            "tuning_values": tried,
            "offline_seconds": offline_seconds,
            "online_seconds": found.seconds,
            "compile_seconds": found.compile_seconds,
            "online_gflop": None if flops is None else flops / 1e9,
        }
        rows.append(row)
        say(f"  {name}, {score}: {row['value']:.3f}, ceiling {row['ceiling']:.3f}")
    return rows


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


def _class_rows(
    plan: Plan, truth: Truth, groups: np.ndarray, part: Part, scores: np.ndarray
) -> dict[str, Any]:
    """Leave-one-out over the groups of the query's own class, and over the others."""
    labels = plan.split.train.y.argmax(1)
    counts = np.zeros((len(scores), labels.max() + 1), int)
    np.add.at(counts, (groups, labels), 1)
    group_class = counts.argmax(1)  # the most frequent one
    own = group_class[:, None] == plan.split.test.y.argmax(1)[part.queries]
    runs = true_runs(truth, LEAVE_ONE_OUT, part)
    told: dict[str, Any] = {}
    for name, rows in (("own_class", own), ("other_class", ~own)):
        each = metrics.per_query_correlation(scores, runs.mean(0), rows=rows)
        told[name] = metrics.nan_mean(each)
        told[f"{name}_ceiling"] = metrics.noise_ceiling(runs, rows=rows).perfect
    return told


def _fit(candidates: Candidates, plan: Plan, run: TrainRun, groups: np.ndarray) -> list[Fitted]:
    """Every candidate, those with the same offline settings sharing one fit."""
    data = jax.device_put(plan.split.train)
    key = jax.random.fold_in(truth_key(plan), 2)  # not the truth's
    fitted = []
    for offline in _product(candidates.offline):
        state, seconds = None, 0.0
        for online in _product(candidates.online):
            estimator = candidates.make(plan, offline | online)
            if state is None:
                begin = time.perf_counter()
                state = jax.block_until_ready(estimator.fit(key, run, data, groups))
                seconds = time.perf_counter() - begin
            fitted.append(Fitted(offline | online, estimator, state, seconds))
    return fitted


def _ask(
    fitted: Fitted, plan: Plan, truth: Truth, score: str, part: Part
) -> Callable[[], np.ndarray]:
    """What a fitted candidate has to do for a score."""
    estimator, state = fitted.estimator, fitted.state
    query = jax.device_put(take(plan.split.test, part.queries))
    if score == LEAVE_ONE_OUT:
        return lambda: np.asarray(estimator.score(state, query))
    masks = truth.masks[_subset_rows(truth, score, part)]
    if estimator.outputs is None:
        return lambda: metrics.additive_outputs(estimator.score(state, query), masks)
    predict = estimator.outputs
    return lambda: np.asarray(predict(state, masks, query))


def _online_flops(fitted: Fitted, plan: Plan, truth: Truth, score: str, part: Part) -> float | None:
    """What `_ask` does, by its matrix products; None where that cannot be traced."""
    estimator, state = fitted.estimator, fitted.state
    query = jax.device_put(take(plan.split.test, part.queries))
    try:
        if score == LEAVE_ONE_OUT or estimator.outputs is None:
            return count_flops(estimator.score, state, query)
        masks = truth.masks[_subset_rows(truth, score, part)]
        predict = estimator.outputs
        return count_flops(lambda state, query: predict(state, masks, query), state, query)
    except TypeError:  # numpy on the host, say
        return None


def true_runs(truth: Truth, score: str, part: Part) -> np.ndarray:
    """The runs of the truth that a score is measured against, `[S, R, Q]` of a part."""
    if score == LEAVE_ONE_OUT:
        return truth.effects()[:, :, part.queries]
    return truth.subsets[:, _subset_rows(truth, score, part)][:, :, part.queries]


def _subset_rows(truth: Truth, score: str, part: Part) -> np.ndarray:
    return part.subsets[[f"LDS, keep {truth.keep[row]:g}" == score for row in part.subsets]]


def _timed(work: Callable[[], np.ndarray]) -> Timed:
    begin = time.perf_counter()
    value = work()
    first = time.perf_counter() - begin
    if first > REPEAT_SECONDS:
        return Timed(value, first, None)
    begin = time.perf_counter()
    work()
    again = time.perf_counter() - begin
    return Timed(value, again, max(first - again, 0.0))


def _product(choices: dict[str, tuple[Any, ...]]) -> list[Settings]:
    every = itertools.product(*choices.values())
    return [dict(zip(choices, values, strict=True)) for values in every]
