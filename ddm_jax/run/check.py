"""The check of a run against exact retraining: a small truth, kept and judged as any other."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddm_jax import metrics
from ddm_jax.attribution import Attribution
from ddm_jax.judge import filling, scoring, store, truth
from ddm_jax.judge.problem import Problem
from ddm_jax.judge.store import Store
from ddm_jax.judge.truth import Truth
from ddm_jax.masks import moved_share
from ddm_jax.metrics.intervals import Intervals, expected, fit_intervals, half_widths, reach
from ddm_jax.run import settings
from ddm_jax.run.plan import Plan
from ddm_jax.run.workdir import SILENT, Progress
from ddm_jax.types import Groups

UNLIKE = 1.5  # times another size, from which on it is told


class Check(NamedTuple):
    """What exact retraining says of a few groups and halves, and what was predicted."""

    truth: Truth  # `truth.groups [G]` are the groups left out
    predicted: np.ndarray  # [1 + R, Q] by DDM: with everything, and of `truth.masks`
    scores: np.ndarray  # [K, Q] by DDM
    grad_dot: np.ndarray  # [K, Q]


def intervals_of(check: Check, groups: Groups) -> Intervals:
    """Error bars, by the groups and halves of a check."""
    truth = check.truth
    masks = np.concatenate([1 - np.eye(groups.count)[truth.groups], truth.masks])
    alone = -check.scores[truth.groups]
    changes = check.predicted[1:] - check.predicted[:1]
    seeds = min(len(truth.full), len(truth.subsets))
    full = truth.full[:seeds, None]
    retrained = np.concatenate([truth.single[:seeds] - full, truth.subsets[:seeds] - full], 1)
    predicted = np.concatenate([alone, changes])
    return fit_intervals(
        predicted, retrained, moved_share(masks, groups.shares()), reach(check.scores)
    )


def with_bars(attribution: Attribution, check: Check) -> Attribution:
    """The scores that a check was made of at retraining's size, with half of the interval of each.

    `check.scores` stay what the updates say: `metrics.expected` is these times a factor.
    """
    groups = attribution.groups
    intervals, alone = intervals_of(check, groups), groups.shares()
    scores = expected(intervals, check.scores, alone)
    wide = half_widths(intervals, check.scores, alone, reach(check.scores))
    return attribution._replace(
        scores=scores.astype(np.float32),
        half_widths=wide.astype(np.float32),
        metadata=attribution.metadata | {"times what the updates say": told_times(intervals)},
    )


def told_times(intervals: Intervals) -> dict[str, float]:
    """How far retraining goes where the updates go one, by the share that is gone; JSON values."""
    both = zip(np.exp(intervals.sizes), intervals.times, strict=True)
    return {f"{share:.2g}": float(f"{times:.3g}") for share, times in both}


def open_truth(
    plan: Plan,
    problem: Problem,
    folder: Path,
    groups: Groups,
    rows: truth.Declared | None = None,
) -> Store:
    """Make or open a truth store of a run, of other `rows` than its settings say where they come.

    Raises:
        ValueError: when `folder` holds the truth of something else, naming what differs.
    """
    described = settings.told(plan.config, ("data", "model"))
    # Where the data lie, and how they were read, does not matter: what they are does.
    for name in ("data_dir", *settings.OWN_DATA):
        del described[f"data.{name}"]
    described["data"] = plan.inputs["data"]
    train, test = plan.split.train, plan.split.test
    return truth.open_truth(problem, train, test, groups, folder, described, rows)


def filled(
    plan: Plan,
    problem: Problem,
    opened: Store,
    groups: Groups,
    progress: Progress,
    chunk: int | None = None,
) -> Truth:
    """Retrain every network that a store lacks, and read what all of them say."""
    before = filling.status(opened)
    if before.done < before.declared:
        what = f"retraining {before.declared - before.done} of {before.declared} networks"
        progress.say(what)
        show = progress.track(what, before.declared)
        begin = time.perf_counter()

        def tell(done: int, note: str) -> None:
            rate = (time.perf_counter() - begin) / max(done - before.done, 1)
            show(done, f"{note}, {rate * (before.declared - done):.0f} s left")

        truth.fill(problem, opened, plan.split.train, plan.split.test, groups, chunk, tell)
        progress.say(f"  {time.perf_counter() - begin:.1f} s")
    else:
        progress.say(f"{before.declared} retrained networks: done before")
    return truth.read_truth(problem, opened)


def retrained(
    plan: Plan, problem: Problem, folder: Path, groups: Groups, progress: Progress
) -> Truth:
    """The small truth of a stage; one of something else there is made anew."""
    return filled(
        plan, problem, opened_anew(plan, problem, folder, groups, progress), groups, progress
    )


def opened_anew(
    plan: Plan,
    problem: Problem,
    folder: Path,
    groups: Groups,
    progress: Progress = SILENT,
    rows: truth.Declared | None = None,
) -> Store:
    """A truth store, as of `open_truth`; one of something else there, or a damaged one, goes."""
    try:
        return open_truth(plan, problem, folder, groups, rows)
    except ValueError:
        progress.say("  the networks that are there were retrained for something else")
        shutil.rmtree(folder)
        return open_truth(plan, problem, folder, groups, rows)


def retrained_change(
    plan: Plan,
    folder: Path,
    groups: Groups,
    mask: np.ndarray,
    full: np.ndarray,
    tell: filling.Tell,
) -> np.ndarray:
    """What exact retraining with the groups weighted [K] changes, [S, Q]; it is kept in a store.

    Args:
        full: [S, Q] of the check's networks of everything, with which these share their seeds; what
            of it is missing is retrained too.
        tell: as of `filling.fill`.
    """
    seeds = plan.check.truth.seeds
    masks = np.stack([np.ones(groups.count), mask]).astype(np.float32)
    rows = truth.Declared(masks, np.full(2, seeds), np.zeros(0, int), np.zeros(2))
    opened = opened_anew(plan, plan.check, folder, groups, rows=rows)
    for seed, outputs in enumerate(full[:seeds]):
        if not store.is_done(opened, store.Row(0, seed)):
            store.write_row(opened, store.Row(0, seed), outputs, 0.0)
    truth.fill(plan.check, opened, plan.split.train, plan.split.test, groups, None, tell)
    outputs = store.read(opened)
    return outputs[:, 1] - outputs[:, 0]


def masks_of(found: Truth, num_groups: int) -> np.ndarray:
    """Everything, and each of the truth's subsets, [1 + R, K]."""
    return np.concatenate([np.ones((1, num_groups), np.float32), found.masks])


def told(check: Check, groups: Groups) -> Check:
    """The same with what is predicted at retraining's size, as it is told."""
    intervals, shares = intervals_of(check, groups), groups.shares()
    base, away = check.predicted[:1], moved_share(check.truth.masks, shares)
    changes = expected(intervals, check.predicted[1:] - base, away)
    return check._replace(
        scores=expected(intervals, check.scores, shares),
        predicted=np.concatenate([base, base + changes]),
    )


def agreement(check: Check, groups: Groups) -> list[dict[str, Any]]:
    """How well DDM, as it is told, and grad-dot agree with retraining, a row a score; JSON values.

    Of groups of one size it is that of the updates themselves.
    """
    check = told(check, groups)
    truth, halves = check.truth, len(check.truth.masks)
    if halves == 1:  # has no order
        truth, halves = truth._replace(keep=truth.keep[:0]), 0
    ours = scoring.judge_outputs(truth, check.scores, check.predicted[1 : 1 + halves])
    others = scoring.judge_outputs(truth, check.grad_dot)
    what = [
        f"one group left out ({len(truth.groups)} groups), per query, Spearman",
        f"half of the groups left out ({halves} halves), LDS",
    ]
    return [_pooled(check)] + [
        {
            "what": said,
            "ddm": ddm["value"],
            "ddm_interval": ddm["over_rows"],
            "grad_dot": grad_dot["value"],
            "one_retraining": ddm["one_retraining"],
            "perfect": ddm["ceiling"],
        }
        for said, ddm, grad_dot in zip(what, ours.values(), others.values(), strict=False)
    ]


def told_sizes(check: Check, groups: Groups) -> list[str]:
    """That retraining goes further than the updates do, or less far, where it does; or nothing.

    Recipes are chosen by order alone, and few steps undo a part of what a group did.
    """
    sizes, times = (getattr(intervals_of(check, groups), name) for name in ("sizes", "times"))
    if all(1 / UNLIKE < each < UNLIKE for each in times):
        return []
    shares = [f"about {100 * share:.2g} %" for share in np.exp(sizes)]
    said = f"{times[0]:.2g} times what the updates say where {shares[0]} of the data are gone"
    for factor, share in zip(times[1:], shares[1:], strict=True):
        said += f", {factor:.2g} times where {share} are"
    return [
        "Changes are told at the size that retraining gave the groups and halves that the run "
        f"checked itself on: {said}. The sign is the updates' own, and so is the order of what is "
        "of one size."
    ]


def _pooled(check: Check) -> dict[str, Any]:
    effects, left_out = check.truth.effects(), check.truth.groups
    ceiling = metrics.noise_ceiling(effects, "pearson", pooled=True)
    ddm, grad_dot = (
        metrics.pooled_correlation(scores[left_out], effects.mean(0))
        for scores in (check.scores, check.grad_dot)
    )
    return {
        "what": f"one group left out ({len(left_out)} groups), all pairs, Pearson",
        "ddm": ddm,
        "ddm_interval": [float("nan"), float("nan")],
        "grad_dot": grad_dot,
        "one_retraining": ceiling.one_run,
        "perfect": ceiling.perfect,
    }
