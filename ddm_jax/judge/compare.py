"""Estimators judged on the same truth: settings chosen on one part of it, scores on the other.

    tuning part:    a quarter of the random subsets, a quarter of the queries
    reporting part: the others of both

Leave-one-group-out has no subsets to split; its queries are split. Every estimator may try
BUDGET candidates at most, and is scored with the one that did best on the tuning part, for each
score apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax import metrics
from ddm_jax.judge.candidates import (
    BUDGET,
    CANDIDATES,
    Candidates,
    Settings,
    every_choice,
)
from ddm_jax.judge.flops import count_flops
from ddm_jax.judge.problem import Problem
from ddm_jax.judge.program import program_digest, source_digest, text_digest
from ddm_jax.judge.scoring import (
    LEAVE_ONE_OUT,
    Part,
    score_names,
    score_row,
    subset_rows,
    true_runs,
)
from ddm_jax.judge.truth import Truth, truth_key
from ddm_jax.types import Batch, Estimator, Groups, TrainRun, length, take

TUNING = 0.25  # of the subsets and of the queries
ENOUGH = 3  # subsets, at least, to tune on and to report on
REPEAT_SECONDS = 30.0  # what took longer is not run twice to tell compilation apart


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


class Question(NamedTuple):
    """What a fitted candidate is asked for a score."""

    ask: Callable[[Any, Batch], Any]
    state: Any
    query: Batch
    finish: Callable[[np.ndarray], np.ndarray]

    def answer(self) -> np.ndarray:
        """What it says."""
        return self.finish(np.asarray(self.ask(self.state, self.query)))

    def gflop(self) -> float | None:
        """The work of its matrix products; None where that cannot be traced."""
        try:
            flops = count_flops(self.ask, self.state, self.query)
        except TypeError:  # numpy on the host, say
            return None
        return None if flops is None else flops / 1e9


def check_estimators(names: Sequence[str], problem: Problem, query: Batch) -> None:
    """Check names, settings and budgets before any work.

    Raises:
        ValueError: for an unknown name, one that is named twice, none, or an objective without an
            output a query.
    """
    if not names:
        raise ValueError(f"no estimators are named; choose from {', '.join(CANDIDATES)}")
    for name in names:
        if name not in CANDIDATES:
            raise ValueError(f"unknown estimator {name!r}; choose from {', '.join(CANDIDATES)}")
        if list(names).count(name) > 1:
            raise ValueError(f"estimator {name!r} is named twice")
        every = every_choice(CANDIDATES[name].offline | CANDIDATES[name].online)
        if len(every) > BUDGET:
            raise ValueError(f"{name} has {len(every)} candidates; the budget is {BUDGET}")
        for settings in every:
            CANDIDATES[name].make(problem, settings)  # a wrong setting fails here
    params = jax.eval_shape(problem.task.init, jax.random.key(0))
    if jax.eval_shape(problem.task.output, params, query).shape != (length(query),):
        objective = problem.truth.objective
        raise ValueError(f"truth.objective={objective} has no output a query; use loss or margin")


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
    problem: Problem,
    truth: Truth,
    run: TrainRun,
    data: Batch,
    query: Batch,
    groups: Groups,
    *,
    say: Callable[[str], None] = lambda text: None,
    parts: tuple[Part, Part] | None = None,
    candidates: Candidates | None = None,
) -> list[dict[str, Any]]:
    """Fit an estimator, choose its settings, and score it; a row for each score, JSON values.

    `peak_gib` in it is the most memory that the process held meanwhile, None where nobody says;
    `program` is `program_of`.

    Args:
        parts: to tune and to report on; default `split_parts`.
        candidates: default those of CANDIDATES.

    Raises:
        ValueError: when it gives values that are not finite.
    """
    tuning, reporting = parts or split_parts(truth.keep, length(query), problem.seed)
    chosen = CANDIDATES[name] if candidates is None else candidates
    data, query = jax.device_put((data, query))
    measured = _reset_peak()
    fitted = _fit(chosen, problem, run, data, groups)
    rows = []
    for score in score_names(truth):
        tried: list[float] = []
        for each in fitted if len(fitted) > 1 else []:
            asked = _question(each, truth, score, tuning, query)
            predicted = asked.answer()
            true = true_runs(truth, score, tuning).mean(0)
            diverged = not np.isfinite(predicted).all()
            each_query: Any = [] if diverged else metrics.per_query_correlation(predicted, true)
            tried.append(metrics.nan_mean(each_query))
            say(f"  {name}, {score}, {each.settings}: {tried[-1]:.3f} on the tuning part")
        best = fitted[int(np.nanargmax(tried)) if np.isfinite(tried).any() else 0]
        asked = _question(best, truth, score, reporting, query)
        found = _timed(asked.answer)
        if not np.isfinite(found.value).all():
            raise ValueError(f"its values for {score} are not finite (settings {best.settings})")
        row: dict[str, Any] = {"estimator": name, "score": score}
        row |= score_row(found.value, true_runs(truth, score, reporting))
        if score == LEAVE_ONE_OUT and problem.task.targets == "distribution":
            row |= _class_rows(truth, data, query, groups, reporting, found.value)
        row |= {
            "settings": best.settings,
            "candidates": len(fitted),
            "tuning_values": tried,
            "offline_seconds": float(np.mean([each.seconds for each in fitted])),
            "online_seconds": found.seconds,
            "compile_seconds": found.compile_seconds,
            "online_gflop": asked.gflop(),
        }
        rows.append(row)
        say(f"  {name}, {score}: {row['value']:.3f}, ceiling {row['ceiling']:.3f}")
    told = {
        "peak_gib": _peak_gib() if measured else None,
        "program": program_of(name, problem, run, data, query, groups, candidates),
    }
    return [row | told for row in rows]


def _class_rows(
    truth: Truth, data: Batch, query: Batch, groups: Groups, part: Part, scores: np.ndarray
) -> dict[str, Any]:
    """Leave-one-out over the groups of the query's own class, and over the others."""
    labels, asked = (np.asarray(batch.y).argmax(1) for batch in (data, query))
    counts = np.zeros((groups.count, labels.max() + 1), int)
    ids = np.asarray(groups.ids)
    np.add.at(counts, (ids[ids >= 0], labels[ids >= 0]), 1)  # the background is in no group
    group_class = counts.argmax(1)[truth.groups]  # the most frequent one
    own = group_class[:, None] == asked[part.queries]
    runs = true_runs(truth, LEAVE_ONE_OUT, part)
    told: dict[str, Any] = {}
    for name, rows in (("own_class", own), ("other_class", ~own)):
        each = metrics.per_query_correlation(scores, runs.mean(0), rows=rows)
        told[name] = metrics.nan_mean(each)
        told[f"{name}_ceiling"] = metrics.noise_ceiling(runs, rows=rows).perfect
    return told


def _fit(
    candidates: Candidates, problem: Problem, run: TrainRun, data: Batch, groups: Groups
) -> list[Fitted]:
    """Every candidate, those with the same offline settings sharing one fit."""
    fitted = []
    shared = candidates.shared(problem) if candidates.shared else {}
    for offline in every_choice(candidates.offline):
        state, seconds = None, 0.0
        for online in every_choice(candidates.online):
            estimator = candidates.make(problem, offline | online, **shared)
            if state is None:
                begin = time.perf_counter()
                fit = estimator.fit(_estimator_key(problem), run, data, groups)
                state = jax.block_until_ready(fit)
                seconds = time.perf_counter() - begin
            fitted.append(Fitted(offline | online, estimator, state, seconds))
    return fitted


def _estimator_key(problem: Problem) -> jax.Array:
    return jax.random.fold_in(truth_key(problem.seed), 2)  # not the truth's


def _question(fitted: Fitted, truth: Truth, score: str, part: Part, query: Batch) -> Question:
    """What a fitted candidate has to do for a score."""
    estimator, state, asked = fitted.estimator, fitted.state, take(query, part.queries)
    if score == LEAVE_ONE_OUT:
        return Question(estimator.score, state, asked, lambda scores: scores[truth.groups])
    masks = truth.masks[subset_rows(truth, score, part)]
    if estimator.outputs is None:
        add = lambda scores: metrics.additive_outputs(scores, masks)  # noqa: E731
        return Question(estimator.score, state, asked, add)
    predict = estimator.outputs
    return Question(lambda state, query: predict(state, masks, query), state, asked, np.asarray)


def program_of(
    name: str,
    problem: Problem,
    run: TrainRun,
    data: Batch,
    query: Batch,
    groups: Groups,
    candidates: Candidates | None = None,
) -> str:
    """A digest of what an estimator computes, and of the settings that it may choose from.

    Of one that works on the host, and so cannot be traced, of its code.
    """
    chosen = CANDIDATES[name] if candidates is None else candidates
    choices = chosen.offline | chosen.online
    estimator = chosen.make(problem, every_choice(choices)[0])
    masks = np.ones((1, groups.count), np.float32)

    def program(key: jax.Array, run: TrainRun, data: Batch, query: Batch) -> Any:
        state = estimator.fit(key, run, data, groups)
        outputs = estimator.outputs and estimator.outputs(state, masks, query)
        return estimator.score(state, query), outputs

    try:
        told = program_digest(program, _estimator_key(problem), run, data, query)
    except Exception:  # it works on the host, or fails, as judging it will say
        told = source_digest(estimator.fit, estimator.score)
    return text_digest(told, repr(choices))


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


def _reset_peak() -> bool:
    """Begin to measure the most memory that this process holds; False where that cannot be."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_gib() -> float:
    """The most memory that this process held since `_reset_peak`, GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
