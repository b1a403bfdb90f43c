"""Answers about a finished run in words, tables and figures; the numbers are of `questions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax import metrics, unlearn
from ddm_jax.checks import check_integer
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import in_batches
from ddm_jax.masks import moved_share
from ddm_jax.metrics.intervals import LEVEL
from ddm_jax.metrics.profiles import compare_profiles, profile
from ddm_jax.run import check as checking
from ddm_jax.run import passages, questions, targets
from ddm_jax.run.answer_figures import (
    bars_figure,
    changes_figure,
    effects_figure,
    points_figure,
    profiles_figure,
    ranked_figure,
)
from ddm_jax.run.check import Check
from ddm_jax.run.finished import Answer, Finished
from ddm_jax.run.wording import objective_in_words, query_in_words, text_of
from ddm_jax.types import Params, length, take

MIXED = 0.25  # of a class, in other groups or of others in its own: then its groups are not it


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


def counterfactual(run: Finished, without: Sequence[int | str]) -> Answer:
    """What if these groups were gone, together, beside the sum of their single effects."""
    plan = run.plan
    gone = questions.find_groups(run, without)
    mask = np.ones((2, run.groups.count), np.float32)
    mask[1, gone] = 0
    found = questions.what_if(run, mask[1:])
    outputs = np.concatenate([found.outputs - found.changes, found.outputs])
    joint = -found.changes[0]
    summed = run.attribution.scores[gone].sum(0)
    check, away = run.check, moved_share(mask[1:], run.groups.shares())
    # Whether effects add up is a matter of the updates, before anything has retraining's size.
    times, alone = 1.0, run.attribution.scores
    if check is not None:
        intervals = checking.intervals_of(check, run.groups)
        times, alone = float(metrics.expected(intervals, [[1.0]], away)[0, 0]), check.scores
    plain = joint / times
    added = metrics.additivity(mask, outputs[:1] - np.stack([0 * plain, plain]), alone)
    worse, better = (int((side * outputs[0] > 0)[side * outputs[1] <= 0].sum()) for side in (1, -1))
    objective, several = _objective(run), len(gone) > 1
    said = f"changes by {-joint.mean():+.4f}"
    if several:
        said += f"; adding up single effects gives {-summed.mean():+.4f}"
    sentences = [
        f"Without the groups {_named(run, gone)} ({int(run.groups.sizes()[gone].sum()):,} of "
        f"{length(plan.split.train):,} training points) the mean {objective} of {len(joint)} "
        f"queries {said}.",
        "Both outputs are of networks after the same updates: what differs is what is gone."
        if check is None
        else "The first output is the trained network's; the change is told at retraining's size.",
    ]
    if several and np.isfinite(added.correlation):
        sentences.append(
            f"By the updates joint and summed effects correlate at {added.correlation:.3f}, slope "
            f"{added.slope:.2f}."
        )
    if objective == "margin":
        sentences.append(
            f"{worse} queries change from right to wrong, and {better} from wrong to right."
        )
    retrained = None if check is None else _retrained(check, mask[1])
    if retrained is not None:
        each = ", ".join(f"{change:+.4f}" for change in retrained.mean(1))
        sentences.append(
            f"The run's check retrained without exactly this: there the mean {objective} changes "
            f"by {each}, a number a seed."
        )
    order = np.argsort(-np.abs(joint), kind="stable")[:10]
    rows = [["query", f"{objective}, all kept", "without"]]
    rows[0] += ["without, by adding single effects"] * several
    rows[0] += ["without, retrained"] * (retrained is not None)
    arrays = {"outputs": outputs, "without": gone, "summed": summed}
    wide = None
    if check is not None and found.half_widths is not None:
        wide = found.half_widths[0]
        rows[0].insert(3, f"{LEVEL:.0%} of retrainings")
        arrays["half_width"] = wide
        sure = int((np.abs(joint) > wide).sum())
        sentences.append(
            f"{sure} of {len(joint)} changes are larger than their error bar, which {LEVEL:.0%} of "
            "single retrainings stay inside of, by the groups and halves that the run checked "
            "itself on."
        )
        sentences += checking.told_sizes(check, run.groups)
        learnt = 1 - np.eye(run.groups.count)[check.truth.groups], check.truth.masks
        most = moved_share(np.concatenate(learnt), run.groups.shares()).max()
        size = np.sqrt((plain**2).mean())
        seen = np.concatenate(
            [check.scores[check.truth.groups], check.predicted[1:] - check.predicted[:1]]
        )
        beyond = size > 1.5 * np.sqrt((seen**2).mean(1)).max()
        if away[0] > 1.2 * most or beyond:
            more = "Outputs change more here" if beyond else "More is gone here"
            sentences.append(
                f"{more} than with any subset that the error bars were learnt on: they may be too "
                "short."
            )
        if lost := _unlike_any_learnt(run, check, gone):
            sentences.append(
                f"Of {', '.join(lost)} nothing is left. No subset that the error bars were learnt "
                "on lost a class: such changes come out larger, and the bars do not hold for them."
            )
    for q in order:
        row = [
            query_in_words(plan.split, int(q)),  # its place first, as `ddm points --query` has it
            f"{outputs[0, q]:.3f}",
            f"{outputs[1, q]:.3f}",
            *([f"{outputs[0, q] - summed[q]:.3f}"] * several),
            *([] if retrained is None else [f"{outputs[0, q] + retrained.mean(0)[q]:.3f}"]),
        ]
        if wide is not None:
            low, high = (outputs[1, q] + sign * wide[q] for sign in (-1, 1))
            row.insert(3, f"{low:.3f} to {high:.3f}")
        rows.append(row)
    figure = changes_figure(-joint, wide, objective)
    if several:
        figure = effects_figure(plain, alone[gone].sum(0))
    return Answer("What if", sentences, rows, figure, arrays)


def _retrained(check: Check, mask: np.ndarray) -> np.ndarray | None:
    """What retraining changed, [S, Q], where the check left out what this mask does."""
    truth = check.truth
    for place, group in enumerate(truth.groups):
        if np.array_equal(np.flatnonzero(mask != 1), [group]) and mask[group] == 0:
            return truth.single[:, place] - truth.full
    for place, kept in enumerate(truth.masks):
        if np.array_equal(kept, mask):
            seeds = min(len(truth.full), len(truth.subsets))
            return truth.subsets[:seeds, place] - truth.full[:seeds]
    return None


def forget(
    run: Finished, groups: Sequence[int | str], check: bool = False, prompt: str | None = None
) -> tuple[Answer, Params]:
    """Forget groups with the synset alone; with `check` beside exact retraining.

    Of a language model with what each network says after a `prompt`; by default the beginning of a
    query that the groups raise most.
    """
    plan, split = run.plan, run.plan.split
    gone = questions.find_groups(run, groups)
    if prompt is not None and split.kind != "language":
        raise ValueError(f"prompt={prompt!r} is for language models; this run is of {split.kind}")
    if split.kind == "language":
        prompt = _beginning(run, gone) if prompt is None else prompt
        passages.tokens_of(split, prompt)  # refused before any work
    params, careful, amount, corrected = questions.forgotten_network(run, gone)
    forgotten = np.isin(run.groups.ids, gone)
    networks = {"before": [run.target.params], "after forgetting": [params]}
    measure = "accuracies" if split.classes else "mean losses"
    if check:
        keys = jax.random.split(jax.random.key(plan.config.seed + 1), plan.config.check.seeds)
        exact = compiled(plan.trainer.train)
        data, weights = jax.device_put(split.train), jnp.asarray(1.0 - forgotten)
        networks[f"retrained, {len(keys)} seeds"] = [
            exact(key, data, weights).params for key in keys
        ]
    rows = [["", *(f"{name}" for name in ("forgotten", "kept", "test", "membership AUC"))]]
    means = {}
    for name, each in networks.items():
        judged = np.array([_judge(run, one, forgotten) for one in each])
        means[name] = judged.mean(0)
        spread = judged.std(0, ddof=1) if len(judged) > 1 else None
        rows.append(
            [name]
            + [
                f"{value:.3f}" + (f" ± {spread[place]:.3f}" if spread is not None else "")
                for place, value in enumerate(means[name])
            ]
        )
    used = "the synset" + " and what it leaves of each group's gradient" * corrected
    sentences = [
        f"{int(forgotten.sum()):,} of {len(forgotten):,} training points in the groups "
        f"{_named(run, gone)} were forgotten by {used} alone: {measure} on what was forgotten, "
        "kept and on the test set, and how well a loss threshold tells "
        "forgotten points from test points (.5: not at all).",
        "This is no proof of deletion: it says how the network behaves, and the synset and the "
        "kept checkpoints still hold the forgotten groups. Delete or distil those again.",
    ]
    if careful:
        sentences.append(
            "By the items of what is kept a class goes as a whole: they are taught not to name it, "
            "and no amount is sought."
        )
    elif amount != 1.0:
        sentences.append(
            f"The network moved by {amount:.2f} times what the updates do: so far it took to go "
            "where retraining went without each of the groups that the run checked itself on (the "
            f"median, {unlearn.MOST:g} at most). What moved outputs much more or less than they "
            "did may be left short, or overshot."
        )
    if prompt is not None:
        shown = {name.split(",")[0]: each[0] for name, each in networks.items()}
        said = passages.continuations(split, plan.task, shown, prompt)
        sentences.append(f"After {prompt!r} the networks go on, by their likeliest tokens:")
        sentences += [f"{name}: {text!r}" for name, text in said.items()]
    if check:
        before, after, exact = (each[0] for each in means.values())
        if abs(exact - before) > 1e-9:
            sentences.append(
                f"On what was forgotten it went {(after - before) / (exact - before):.0%} of the "
                f"way that retraining went; look at the kept and the test set beside it."
            )
    else:
        sentences.append("With --check it stands beside exact retraining.")
    figure = bars_figure(means, rows[0][1:])
    arrays = {"groups": gone, **{k.split(",")[0].replace(" ", "_"): v for k, v in means.items()}}
    return Answer("Forgetting", sentences, rows, figure, arrays), params


def _unlike_any_learnt(run: Finished, check: Check, gone: np.ndarray) -> list[str]:
    """The classes that go as a whole, where no subset of the check lost any."""
    learnt = [np.asarray([group]) for group in check.truth.groups]
    learnt += [np.flatnonzero(mask == 0) for mask in check.truth.masks]
    if any(_classes_lost(run, each) for each in learnt):
        return []
    return _classes_lost(run, gone)


def _classes_lost(run: Finished, gone: np.ndarray) -> list[str]:
    """The classes of which less than a hundredth is left without some groups."""
    split = run.plan.split
    if not split.classes:
        return []
    there = np.asarray(split.train.y)
    left = there[~np.isin(run.groups.ids, gone)].sum(0)
    lost = np.flatnonzero((left < unlearn.ABSENT * there.sum(0)) & (there.sum(0) > 0))
    return [split.classes[index] for index in lost]


def _objective(run: Finished) -> str:
    return objective_in_words(run.plan.split, run.plan.config.online.objective)


def _listed_points(run: Finished, points: Any) -> str:
    """Training points by their numbers, with their row in a file and the group whose they are."""
    split, owner, said = run.plan.split, np.asarray(run.groups.ids), []
    for each in points:
        more = [f"row {split.train_ids[each] + 1}"] * (bool(split.told) and split.kind == "table")
        if run.groups.names is not None and owner[each] >= 0:
            more.append(_named(run, [owner[each]]))
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
        rows.append([_named(first, [group]), f"{relies[0][group]:.1%}", f"{relies[1][group]:.1%}"])
    figure = profiles_figure(*relies, *names)
    arrays = {"first": relies[0], "second": relies[1]}
    return Answer("Two networks", sentences, rows, figure, arrays)


def _named(run: Finished, groups: Any) -> str:
    """Groups by their names where they have some, else by their numbers."""
    names = run.groups.names
    if names is None:
        return questions.listed(groups)
    chosen = [names[int(each)] for each in groups]
    return ", ".join(f'"{name}"' if "," in name else name for name in chosen)


def groups_of_class(run: Finished, name: str) -> list[int]:
    """The groups most of whose points are of a class.

    Raises:
        ValueError: for a class that there is not, that no group is of, or that groups mix with
            others.
    """
    classes = run.plan.split.classes
    if not classes:
        raise ValueError(f"class {name!r}: the targets here are no classes; name groups to forget")
    if name not in classes:
        raise ValueError(f"class {name!r}; choose one of {', '.join(classes)}")
    if run.plan.split.targets != "distribution":
        raise ValueError("an example has several labels here: name groups to forget")
    labels, ids = run.plan.split.train.y.argmax(1), np.asarray(run.groups.ids)
    own = [np.bincount(labels[ids == group]).argmax() for group in range(run.groups.count)]
    place = classes.index(name)
    found = np.flatnonzero(np.asarray(own) == place)
    if not len(found):
        raise ValueError(f"no group is mostly of class {name!r}; name groups instead")
    lost = np.isin(ids, found)
    stay, others = int((labels == place)[~lost].sum()), int((labels != place)[lost].sum())
    if stay + others > MIXED * (labels == place).sum():
        raise ValueError(
            f"the groups that are mostly of class {name!r} are no class: {stay} of its "
            f"{int((labels == place).sum())} points are in other groups, and {others} of others in "
            "them; name groups, or cut groups of one class each (cluster.method=class_kmeans)"
        )
    return found.tolist()


def _judge(run: Finished, params: Params, forgotten: np.ndarray) -> metrics.Unlearned:
    split, task = run.plan.split, run.plan.task
    lost = [targets.losses(task, params, batch) for batch in (split.train, split.test)]
    right = lost
    if split.classes and task.apply is not None:
        right = [
            ~targets.wrong(split, np.asarray(in_batches(task.apply)(params, batch.x)), batch.y)
            for batch in (split.train, split.test)
        ]
    return metrics.unlearned(lost[0], right[0], forgotten, lost[1], right[1])


def _worst(run: Finished) -> np.ndarray:
    """The test points that the network answers worst, first."""
    return targets.worst(run.plan.split, run.plan.task, run.target.params, run.plan.split.test)


def _beginning(run: Finished, groups: np.ndarray) -> str:
    """The first half of the query that some groups raise most, as a prompt."""
    better = -1.0 if run.plan.task.lower_is_better else 1.0
    query = int(np.argmax(better * run.attribution.scores[groups].sum(0)))
    text = text_of(run.plan.split, take(run.plan.split.test.x, query))
    # A character that the cut went through is none of the document's.
    text = text.strip("\ufffd") or text
    return text[: max(len(text) // 2, 1)]
