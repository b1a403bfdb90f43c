"""Answers about a finished run in words, tables and figures; the numbers are of `questions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ddm_jax.checks import check_integer
from ddm_jax.metrics.profiles import compare_profiles, profile
from ddm_jax.run import questions, targets
from ddm_jax.run.answer_figures import (
    points_figure,
    profiles_figure,
    ranked_figure,
)
from ddm_jax.run.finished import Answer, Finished
from ddm_jax.run.wording import objective_in_words, query_in_words
from ddm_jax.types import length, take


def points(run: Finished, queries: Sequence[int] = (), top: int = 5) -> Answer:
    """Which single training points did it, for some queries: by default the worst mistakes.

    Raises:
        ValueError: for queries that there are not, or a top out of range.
    """
    plan, split = run.plan, run.plan.split
    chosen = questions.find_queries(run, queries) if len(queries) else _worst(run)[:8]
    check_integer("top", top, 1, length(split.train))
    scores = questions.of_points(run, chosen)
    better = -1.0 if plan.task.lower_is_better else 1.0
    order = np.argsort(-better * scores, 0, kind="stable")
    guesses = targets.said_of(split, plan.task, run.target.params, chosen)
    sides = ["helped most (training points)", "hurt most"]
    if ":" in plan.config.online.objective:  # of which neither more nor less is better
        sides = ["raised it most (training points)", "lowered it most"]
    rows = [["query", "label" if split.classes else "target", "said", *sides]]
    for place, q in enumerate(chosen):
        rows.append(
            [
                query_in_words(split, int(q)),
                targets.label(split, take(split.test.y, q)),
                guesses[q],
                _listed_points(run, order[:top, place]),
                _listed_points(run, order[::-1][:top, place]),
            ]
        )
    # Sequences have no targets, and nothing is said of them.
    shown = [place for place, cells in enumerate(zip(*rows[1:], strict=True)) if any(cells)]
    rows = [[row[place] for place in shown] for row in rows]
    figure = points_figure(split, chosen, guesses, order, scores, min(top, 6))
    sentences = [
        f"Influence of each of {len(scores):,} training points on the "
        f"{_objective(run)} of {len(chosen)} queries, with the curvature of the "
        "synset; positive raises it. The order is more certain than the size.",
    ]
    arrays = {"scores": scores, "queries": chosen, "groups": run.groups.ids}
    told, ids = _rows_of_file(run)
    return Answer("Single points", sentences + told, rows, figure, arrays | ids)


MEANINGS = {
    "mislabelled": "like labels that were flipped on purpose in a training of its own",
    "misread targets": "far from what the network says all through training, among all others",
    "low quality": "far from all others of its class, blurred or noisy",
    "redundant": "another point of its class is (nearly) the same",
    "badly learnt": "a large loss in the end",
    "harmful": "makes the network worse on {} of the test points",
}


def rank_quality(run: Finished, top: int = 20) -> Answer:
    """The points that look mislabelled, odd, duplicated and harmful, by what the targets are."""
    split = run.plan.split
    check_integer("top", top, 1, length(split.train))
    half = questions.half_of_queries(split)
    found = questions.quality(run, half)
    rows = [["", f"the {top} worst training points, worst first"]]
    for name, values in found.items():
        rows.append([name, _listed_points(run, np.argsort(values, kind="stable")[:top])])
    meant = [f"{name.capitalize()}: {MEANINGS[name].format(len(half))}." for name in found]
    sentences = [
        "Each list is a ranking to look at, not a verdict. "
        + " ".join(meant)
        + " In the file of arrays higher is better.",
    ]
    if split.flipped.any():
        worst = np.argsort(found["mislabelled"], kind="stable")[: int(split.flipped.sum())]
        sentences.append(
            f"{split.flipped[worst].mean():.0%} of the {int(split.flipped.sum())} labels that were "
            f"flipped on purpose are among as many most suspect ones."
        )
    figure = ranked_figure(split, found, min(top, 12))
    arrays = {name.replace(" ", "_"): values for name, values in found.items()}
    told, ids = _rows_of_file(run)
    return Answer("Data quality", sentences + told, rows, figure, arrays | ids)


def _objective(run: Finished) -> str:
    return objective_in_words(run.plan.split, run.plan.config.online.objective)


def _listed_points(run: Finished, points: Any) -> str:
    """Training points by their numbers, with their row in a file and the group whose they are."""
    split, owner, said = run.plan.split, np.asarray(run.groups.ids), []
    for each in points:
        more = [f"row {split.train_ids[each] + 1}"] * (bool(split.told) and split.kind == "table")
        if run.groups.names is not None and owner[each] >= 0:
            more.append(questions.named(run, [owner[each]]))
        said.append(f"{int(each)} ({', '.join(more)})" if more else f"{int(each)}")
    return ", ".join(said)


def _rows_of_file(run: Finished) -> tuple[list[str], dict[str, np.ndarray]]:
    """Where the points of a file of one's own are in it: a sentence, and arrays."""
    split = run.plan.split
    if not split.told:  # digits and TFDS
        return [], {}
    what = f"row train_ids[i] + 1 of {split.name}, and query q row test_ids[q] + 1"
    if split.kind == "language":
        what = (
            f"sequence train_ids[i] + 1 of those that {split.name} was cut into, document after "
            "document, and query q sequence test_ids[q] + 1 (0 or less: asked)"
        )
    told = f"Point i is {what}: both are in the file of arrays."
    return [told], {"train_ids": split.train_ids, "test_ids": split.test_ids}


def compare_networks(first: Finished, second: Finished, top: int = 5) -> Answer:
    """What two networks rely on: attribution profiles over the same groups and queries.

    Raises:
        ValueError: where their groups, queries or objectives differ.
    """
    if not np.array_equal(first.groups.ids, second.groups.ids):
        raise ValueError(
            f"{first.workdir} and {second.workdir} have other groups; make them with the same "
            "data, seed and cluster settings, or with cluster.method=file"
        )
    own, other = first.plan.config.online.objective, second.plan.config.online.objective
    asked = [jax.tree.leaves(each.plan.split.test) for each in (first, second)]
    same = (
        own == other
        and np.array_equal(first.attribution.query_ids, second.attribution.query_ids)
        and len(asked[0]) == len(asked[1])
        and all(np.array_equal(*each) for each in zip(*asked, strict=True))
    )
    if not same:
        raise ValueError(
            f"{first.workdir} ({own}) and {second.workdir} ({other}) explain other queries or "
            "another objective; attribute one of them again"
        )
    one, two = first.attribution.scores, second.attribution.scores
    alike = compare_profiles(one, two, min(top, len(one)))
    relies = profile(one), profile(two)
    names = str(first.workdir), str(second.workdir)
    sentences = [
        f"Mean Spearman correlation of the effects of groups, query by query: "
        f"{alike.per_query:.3f}; of how much each group matters overall: {alike.profile:.3f}.",
        f"Of the {min(top, len(one))} most helpful groups of a query they share {alike.top:.0%}; "
        f"unrelated networks would share {alike.chance:.0%}. Two networks that differ by their "
        "seed alone are not at 1 either: compare those to know what is chance.",
    ]
    rows = [["group", f"share of {names[0]}", f"share of {names[1]}"]]
    for group in np.argsort(-np.abs(relies[0] - relies[1]), kind="stable")[:10]:
        rows.append(
            [questions.named(first, [group]), f"{relies[0][group]:.1%}", f"{relies[1][group]:.1%}"]
        )
    figure = profiles_figure(*relies, *names)
    arrays = {"first": relies[0], "second": relies[1]}
    return Answer("Two networks", sentences, rows, figure, arrays)


def _worst(run: Finished) -> np.ndarray:
    """The test points that the network answers worst, first."""
    return targets.worst(run.plan.split, run.plan.task, run.target.params, run.plan.split.test)
