"""What can be asked of a finished run, in numbers: groups, queries, subsets, points, data quality.

`answers` puts them in words, tables and figures; a study passes them on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax import unlearn
from ddm_jax.card import WhatIf
from ddm_jax.compute.compiled import compiled
from ddm_jax.data import Split
from ddm_jax.estimators.points import make_trajectory_influence, spread_points
from ddm_jax.masks import moved_share
from ddm_jax.metrics.intervals import expected, half_widths, reach
from ddm_jax.objectives import explain
from ddm_jax.online import explained_outputs
from ddm_jax.run import check as checking
from ddm_jax.run import targets
from ddm_jax.run.choosing import without_data
from ddm_jax.run.finished import Finished
from ddm_jax.run.jobs import predict
from ddm_jax.types import Params, Task, length, take
from ddm_jax.values import (
    label_quality,
    novelty,
    training_loss,
    triage,
    typicality,
    usefulness,
)

DAMPING = 0.01  # of single points; chosen on digits, see benchmarks/points.py
CHECKPOINTS = 8
MOST_QUERIES = 200


def find_groups(run: Finished, groups: Any) -> np.ndarray:
    """The groups that are asked about, each once, in order.

    Args:
        groups: their numbers, or their names where they have some; or one alone.

    Raises:
        ValueError: for what is neither, groups that there are not, none, or all of them.
    """
    gone, count = np.unique(places_of(run, groups)), run.groups.count
    if not len(gone) or len(gone) == count:
        raise ValueError(f"groups {listed(gone)}: name some of 0..{count - 1}, and not all of them")
    return gone


def places_of(run: Finished, groups: Any) -> np.ndarray:
    """The number of each group that is named.

    Raises:
        ValueError: as `find_groups`, but for none and all.
    """
    count, names = run.groups.count, run.groups.names or ()
    numbered = any(name.lstrip("-").isdigit() for name in names)  # a number is a name then
    one = isinstance(groups, str) or not np.iterable(groups)
    asked = [groups] if one else list(groups)

    def place(each: Any) -> int:
        each = each.item() if np.shape(each) == () and hasattr(each, "item") else each
        if str(each) in names:
            return names.index(str(each))
        # A boolean or 1.7 would pass for a number: True for the group 1.
        whole = isinstance(each, str | int) and not isinstance(each, bool)
        if numbered or not whole:
            raise ValueError(f"{each!r} is no group")
        return int(each)

    found, unknown = np.zeros(len(asked), int), []
    for index, each in enumerate(asked):
        try:
            found[index] = place(each)
        except ValueError:
            unknown.append(each)
    if unknown:
        quoted = [
            f'"{each}"' if isinstance(each, str) and "," in each else str(each)
            for each in (*names, *unknown)
        ]
        shown = ", ".join(quoted[: len(names)][:20]) + (", ..." if len(names) > 20 else "")
        allowed = f"some of {shown}" if names else f"integers in 0..{count - 1}"
        told = (
            f"groups {', '.join(quoted[len(names) :][:20])}: name {allowed}, with commas between "
            "(a name with a comma in it quoted: '\"a, b\",c')"
        )
        raise ValueError(" ".join(told.split()))  # names may have several lines
    wrong = found[(found < 0) | (found >= count)]
    if len(wrong):
        raise ValueError(
            f"there is no group {listed(wrong)}: name some of 0..{count - 1}, and not all of them"
        )
    return found


def find_queries(run: Finished, queries: Sequence[int]) -> np.ndarray:
    """The queries that are asked about.

    Raises:
        ValueError: for none, more than MOST_QUERIES, or some that there are not.
    """
    chosen, count = np.atleast_1d(queries), length(run.plan.split.test)
    whole = chosen.ndim == 1 and np.issubdtype(chosen.dtype, np.integer) and len(chosen)
    if not whole or (chosen < 0).any() or (chosen >= count).any():
        asked = ", ".join(map(str, chosen.ravel()[:20])) + (", ..." if chosen.size > 20 else "")
        raise ValueError(f"queries {asked}: name some of 0..{count - 1}")
    if len(chosen) > MOST_QUERIES:
        raise ValueError(f"{len(chosen)} queries; name at most {MOST_QUERIES} at once")
    return chosen


def half_of_queries(split: Split) -> np.ndarray:
    """Queries by which training points are judged; the others can judge what comes of it."""
    return np.arange(0, length(split.test), 2)[:MOST_QUERIES]


def what_if(run: Finished, masks: np.ndarray) -> WhatIf:
    """The queries' outputs with the groups weighted, [R, Q] for masks [R, K], and their intervals.

    By the run's check changes are at retraining's size, and outputs those of the trained network
    changed by them; without one they are what the updates say, and intervals are None.
    """
    every = np.concatenate([np.ones((1, run.groups.count)), masks]).astype(np.float32)
    outputs, trained = predict(run.plan, run, every), None
    if run.check is not None:
        params, query = run.target.params, run.plan.split.test
        trained = np.asarray(explained_outputs(run.plan.task, params, query))
    return told_at_size(run, masks, outputs, trained)


def told_at_size(
    run: Finished, masks: np.ndarray, outputs: np.ndarray, trained: np.ndarray | None
) -> WhatIf:
    """What updates say of masks [R, K], as `what_if` tells it.

    Args:
        outputs: [1 + R, Q], those of everything kept first.
        trained: [Q] of the trained network, where the run has a check.
    """
    changes, wide = outputs[1:] - outputs[:1], None
    if run.check is not None:
        intervals = checking.intervals_of(run.check, run.groups)
        away = moved_share(masks, run.groups.shares())
        wide = half_widths(intervals, changes, away, reach(run.check.scores))
        changes = expected(intervals, changes, away).astype(outputs.dtype)
        outputs = np.asarray(trained)[None]
    return WhatIf(outputs[:1] + changes, changes, wide)


class Forgotten(NamedTuple):
    """A network without some groups, and how it was made."""

    params: Params
    careful: bool  # see `unlearn.forget_groups`
    amount: float  # of what the updates do
    corrected: bool  # by what the items leave of the groups' gradients, and not the items alone


def forgotten_network(run: Finished, gone: np.ndarray) -> Forgotten:
    """A network without some groups, by what the run keeps of its data."""
    mask = np.ones(run.groups.count, np.float32)
    mask[gone] = 0
    update, _, state = without_data(run, run.plan)
    forget = unlearn.make_forget_groups(run.plan.task, state, update)
    params, careful = forget(mask)
    amount = 1.0 if careful else amount_of(run, forget)
    if not careful:
        params = unlearn.along(run.target.params, params, amount)
    return Forgotten(params, careful, amount, state.residual is not None)


def amount_of(run: Finished, forget: Callable[..., unlearn.Forgotten]) -> float:
    """How far to forget, by the groups that the run checked itself on; one where it did not."""
    if run.check is None:
        return 1.0
    truth, count = run.check.truth, run.groups.count
    found = [forget(mask) for mask in 1 - np.eye(count, dtype=np.float32)[truth.groups]]
    told = [place for place, each in enumerate(found) if not each.careful]
    if not told or len(truth.single) < 2:
        return 1.0
    return unlearn.calibrated_amount(
        run.plan.task,
        run.target.params,
        [found[place].params for place in told],
        run.plan.split.test,
        -truth.effects()[:, told],
    )


def of_points(run: Finished, queries: np.ndarray) -> np.ndarray:
    """The influence of each training point on what the run explains of some queries, [N, Q].

    Raises:
        ValueError: for an objective that is not one of each query, or has no gradient.
    """
    objective = run.plan.config.online.objective
    if run.plan.task.of_sets or run.attribution.scores.shape[1] != length(run.plan.split.test):
        raise ValueError(
            f"the objective {objective} is not one of each query; points are for one that is, such "
            "as loss"
        )
    scores = influence(run, run.plan.task, queries)
    if not scores.any():
        raise ValueError(
            f"the objective {objective} does not change with the parameters, so no point seems to "
            "matter; points are for one with a gradient, such as loss"
        )
    return scores


def influence(run: Finished, task: Task, queries: np.ndarray) -> np.ndarray:
    """Of each training point on some queries, along the trajectory, [N, Q]."""
    some = spread_points(run.target.checkpoints, CHECKPOINTS)
    train, query = jax.device_put(run.plan.split.train), take(run.plan.split.test, queries)
    classes = run.plan.split.targets == "distribution" and task.apply is not None
    curvature = "gauss_newton" if classes else "fisher"  # which any loss has
    of_points = compiled(make_trajectory_influence(task, damping=DAMPING, curvature=curvature))
    return np.asarray(of_points(some, run.synset.synset, train, query, run.target.weight_decay))


def quality(run: Finished, queries: np.ndarray) -> dict[str, np.ndarray]:
    """Rankings of the training points, [N] each, by what the targets are; higher is better.

    Args:
        queries: by which the harmful are known.
    """
    plan, split = run.plan, run.plan.split
    given = jax.random.key(plan.config.seed), run.target, jax.device_put(split.train)
    classes = split.targets == "distribution" and plan.task.apply is not None
    better = explain(plan.task, "margin" if classes else "loss")
    harm = usefulness(influence(run, better, queries), better.lower_is_better)
    found = {}
    compared = classes and split.kind != "other"  # by their inputs, one array
    if compared:
        found["mislabelled"] = label_quality(plan.task, plan.trainer.train)(*given)
        found["low quality"] = typicality(plan.task)(*given)
        found["redundant"] = novelty(plan.task)(*given)
    elif targets.are_numbers(split) and split.train.y.shape[1] == 1 and plan.task.apply is not None:
        found["misread targets"] = triage(plan.task)(*given)
    if not compared:
        found["badly learnt"] = training_loss(plan.task)(*given)
    return found | {"harmful": harm}


def listed(numbers: Any) -> str:
    """Whole numbers with commas between."""
    return ", ".join(str(int(number)) for number in numbers) or "none"


def named(run: Finished, groups: Any) -> str:
    """Groups by their names where they have some, else by their numbers."""
    names = run.groups.names
    if names is None:
        return listed(groups)
    chosen = [names[int(each)] for each in groups]
    return ", ".join(f'"{name}"' if "," in name else name for name in chosen)
