"""Questions put to a finished run: points, data quality, subsets, forgetting, another network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax import metrics, unlearn
from ddm_jax.checks import check_integer, require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import in_batches
from ddm_jax.estimators.points import make_trajectory_influence, spread_points
from ddm_jax.masks import moved_share
from ddm_jax.metrics.intervals import LEVEL, half_widths, reach
from ddm_jax.metrics.profiles import compare_profiles, profile
from ddm_jax.objectives import explain
from ddm_jax.run import check as checking
from ddm_jax.run import stages
from ddm_jax.run.answer_figures import (
    bars_figure,
    effects_figure,
    points_figure,
    profiles_figure,
    ranked_figure,
)
from ddm_jax.run.check import Check
from ddm_jax.run.choosing import of_synset
from ddm_jax.run.finished import Answer, Finished
from ddm_jax.run.jobs import predict
from ddm_jax.types import Params, Task, take
from ddm_jax.values import label_quality, novelty, typicality, usefulness

DAMPING = 0.01  # of single points; chosen on digits, see benchmarks/points.py
CHECKPOINTS = 8
MOST_QUERIES = 200


def points(run: Finished, queries: Sequence[int] = (), top: int = 5) -> Answer:
    """Which single training points did it, for some queries: by default the worst mistakes.

    Raises:
        ValueError: for queries that there are not, or a top out of range.
    """
    plan, split = run.plan, run.plan.split
    count = len(split.test.x)
    chosen = np.asarray(queries, int) if len(queries) else _worst(run)[:8]
    if len(chosen) > MOST_QUERIES or (chosen < 0).any() or (chosen >= count).any():
        raise ValueError(
            f"queries {_listed(chosen)}: name at most {MOST_QUERIES} of 0..{count - 1}"
        )
    check_integer("top", top, 1, len(split.train.x))
    if run.attribution.scores.shape[1] != count:
        raise ValueError(f"the objective {plan.config.online.objective} is not one of each query")
    scores = _influence(run, plan.task, chosen)
    better = -1.0 if plan.task.lower_is_better else 1.0
    order = np.argsort(-better * scores, 0, kind="stable")
    wanted = split.test.y.argmax(1)
    guesses = _logits(run, run.target.params, split.test.x[chosen]).argmax(1)
    rows = [["query", "label", "said", "helped most (training points)", "hurt most"]]
    for place, q in enumerate(chosen):
        rows.append(
            [
                str(q),
                split.classes[wanted[q]],
                split.classes[guesses[place]],
                _listed(order[:top, place]),
                _listed(order[::-1][:top, place]),
            ]
        )
    figure = points_figure(split, chosen, guesses, order, scores, min(top, 6))
    sentences = [
        f"Influence of each of {len(scores):,} training points on the "
        f"{plan.config.online.objective} of {len(chosen)} queries, with the curvature of the "
        "synset; positive raises it. The order is more certain than the size.",
    ]
    arrays = {"scores": scores, "queries": chosen, "groups": run.groups.ids}
    told, ids = _rows_of_file(run)
    return Answer("Single points", sentences + told, rows, figure, arrays | ids)


def rank_quality(run: Finished, top: int = 20) -> Answer:
    """The points that look mislabelled, odd, duplicated and harmful."""
    plan, split = run.plan, run.plan.split
    check_integer("top", top, 1, len(split.train.x))
    given = jax.random.key(plan.config.seed), run.target, jax.device_put(split.train)
    half = np.arange(0, len(split.test.x), 2)[:MOST_QUERIES]
    each = _influence(run, explain(plan.task, "margin"), half)
    found = {  # higher is better: the suspects are read from below
        "mislabelled": label_quality(plan.task, plan.trainer.train)(*given),
        "low quality": typicality(plan.task)(*given),
        "redundant": novelty(plan.task)(*given),
        "harmful": usefulness(each),
    }
    rows = [["", f"the {top} worst training points, worst first"]]
    for name, values in found.items():
        rows.append([name, _listed(np.argsort(values, kind="stable")[:top])])
    sentences = [
        "Each list is a ranking to look at, not a verdict. Mislabelled: like labels that were "
        "flipped on purpose in a training of its own. Low quality: far from all others of its "
        "class, blurred or noisy. Redundant: another point of its class is (nearly) the same. "
        "Harmful: lowers the mean margin of "
        f"{len(half)} of the test points. In the file of arrays higher is better.",
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
    gone = _groups(run, without)
    mask = np.ones((2, run.groups.count), np.float32)
    mask[1, gone] = 0
    outputs = predict(plan, run, mask)
    joint = outputs[0] - outputs[1]
    summed = run.attribution.scores[gone].sum(0)
    added = metrics.additivity(mask, outputs, run.attribution.scores)
    flipped = int(((outputs[0] > 0) != (outputs[1] > 0)).sum())
    objective = plan.config.online.objective
    sentences = [
        f"Without the groups {_named(run, gone)} ({int(run.groups.sizes()[gone].sum()):,} of "
        f"{len(plan.split.train.x):,} training points) the mean {objective} of {len(joint)} "
        "queries "
        f"changes by {-joint.mean():+.4f}; adding up single effects gives {-summed.mean():+.4f}.",
        f"Joint and summed effects correlate at {added.correlation:.3f}, slope {added.slope:.2f}.",
    ]
    if objective == "margin":
        sentences.append(f"{flipped} queries change from right to wrong or back.")
    order = np.argsort(-np.abs(joint), kind="stable")[:10]
    rows = [["query", f"{objective} with", "without", "without, by adding single effects"]]
    arrays = {"outputs": outputs, "without": gone, "summed": summed}
    found = check_of_run(run)
    if found is not None:
        away = moved_share(mask[1:], run.groups.shares())
        intervals = checking.intervals_of(found, run.groups)
        wide = half_widths(intervals, -joint[None], away, reach(found.scores))[0]
        rows[0].insert(3, f"{LEVEL:.0%} of retrainings")
        arrays["half_width"] = wide
        sure = int((np.abs(joint) > wide).sum())
        sentences.append(
            f"{sure} of {len(joint)} changes are larger than their error bar, which {LEVEL:.0%} of "
            "single retrainings stay inside of, by the groups and halves that the run checked "
            "itself on."
        )
        if away[0] > 1.2 * np.exp(intervals.sizes[-1]):
            sentences.append(
                "More is gone here than in any subset that the error bars were learnt on: they may "
                "be too short."
            )
        if lost := _unlike_any_learnt(run, found, gone):
            sentences.append(
                f"Of {', '.join(lost)} nothing is left. No subset that the error bars were learnt "
                "on lost a class: such changes come out larger, and the bars do not hold for them."
            )
    for q in order:
        row = [
            str(q),  # its place among the queries, as `ddm points --query` takes it
            f"{outputs[0, q]:.3f}",
            f"{outputs[1, q]:.3f}",
            f"{outputs[0, q] - summed[q]:.3f}",
        ]
        if found is not None:
            low, high = (outputs[1, q] + sign * wide[q] for sign in (-1, 1))
            row.insert(3, f"{low:.3f} to {high:.3f}")
        rows.append(row)
    return Answer("What if", sentences, rows, effects_figure(joint, summed), arrays)


def forget(
    run: Finished, groups: Sequence[int | str], check: bool = False
) -> tuple[Answer, Params]:
    """Forget groups with the synset alone; with `check` beside exact retraining."""
    plan, split = run.plan, run.plan.split
    gone = _groups(run, groups)
    mask = np.ones(run.groups.count, np.float32)
    mask[gone] = 0
    amount = _amount(run)
    update = of_synset(run.tuning)
    params, careful = unlearn.forget_groups(plan.task, run.synset, mask, update, amount)
    forgotten = np.isin(run.groups.ids, gone)
    networks = {"before": [run.target.params], "after forgetting": [params]}
    if check:
        keys = jax.random.split(jax.random.key(plan.config.seed + 1), plan.config.check.seeds)
        exact = compiled(plan.trainer.train)
        data, weights = jax.device_put(split.train), jnp.asarray(1.0 - forgotten)
        networks["retrained"] = [exact(key, data, weights).params for key in keys]
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
    sentences = [
        f"{int(forgotten.sum()):,} of {len(forgotten):,} training points in the groups "
        f"{_named(run, gone)} were forgotten without looking at any training data: accuracies on "
        "what was forgotten, kept and on the test set, and how well a loss threshold tells "
        "forgotten points from test points (.5: not at all).",
        "This is no proof of deletion: it says how the network behaves, and the synset and the "
        "kept checkpoints still hold the forgotten groups. Delete or distil those again.",
    ]
    if not careful and amount != 1.0:
        sentences.append(
            f"The network moved by {amount:.2f} times what the updates do: by so much retraining "
            "went farther than they, without the groups that the run checked itself on."
        )
    if not check:
        sentences.append("With --check it stands beside exact retraining.")
    figure = bars_figure(means, rows[0][1:])
    arrays = {"groups": gone, **{k.replace(" ", "_"): v for k, v in means.items()}}
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
    there = np.asarray(split.train.y)
    left = there[~np.isin(run.groups.ids, gone)].sum(0)
    lost = np.flatnonzero((left < unlearn.ABSENT * there.sum(0)) & (there.sum(0) > 0))
    return [split.classes[index] for index in lost]


def _rows_of_file(run: Finished) -> tuple[list[str], dict[str, np.ndarray]]:
    """Where the points of a file of one's own are in it: a sentence, and arrays."""
    split = run.plan.split
    if not split.told:  # digits and TFDS
        return [], {}
    told = (
        f"Point i is row train_ids[i] + 1 of {split.name}, and query q row test_ids[q] + 1: both "
        "are in the file of arrays."
    )
    return [told], {"train_ids": split.train_ids, "test_ids": split.test_ids}


def check_of_run(run: Finished) -> Check | None:
    """The run's own check; None where it has none that fits."""
    try:
        return stages.bring(run.plan, run.workdir, ("check",), compute=False).check
    except stages.NotDoneError:
        return None


def _amount(run: Finished) -> float:
    """How far to forget, by the run's own check; one where it has none that fits."""
    check = check_of_run(run)
    if check is None:
        return 1.0
    left_out = check.truth.groups
    return metrics.calibrated_amount(check.scores[left_out], check.truth.effects())


def _influence(run: Finished, task: Task, queries: np.ndarray) -> np.ndarray:
    """Of each training point on some queries, along the trajectory, [N, Q]."""
    some = spread_points(run.target.checkpoints, CHECKPOINTS)
    train, query = jax.device_put(run.plan.split.train), take(run.plan.split.test, queries)
    influence = compiled(make_trajectory_influence(task, damping=DAMPING))
    return np.asarray(influence(some, run.synset.synset, train, query, run.target.weight_decay))


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
    same = own == other and np.array_equal(
        first.attribution.query_ids, second.attribution.query_ids
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


def _groups(run: Finished, groups: Sequence[int | str]) -> np.ndarray:
    """The groups that are asked about, by their numbers, or their names where they have some."""
    count, names = run.groups.count, run.groups.names or ()
    numbered = any(name.lstrip("-").isdigit() for name in names)  # a number is a name then
    try:
        found = [
            names.index(str(each)) if str(each) in names or numbered else int(each)
            for each in groups
        ]
    except ValueError as error:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        allowed = f"some of {shown}" if names else f"integers in 0..{count - 1}"
        raise ValueError(
            f"groups {', '.join(map(str, groups))}: name {allowed}, with commas between (a name "
            "with a comma in it quoted: '\"a, b\",c')"
        ) from error
    gone = np.unique(np.asarray(found, int))
    wrong = gone[(gone < 0) | (gone >= count)]
    if len(wrong) or not len(gone) or len(gone) == count:
        told = f"there is no group {_listed(wrong)}" if len(wrong) else f"groups {_listed(gone)}"
        raise ValueError(f"{told}: name some of 0..{count - 1}, and not all of them")
    return gone


def _named(run: Finished, groups: Any) -> str:
    """Groups by their names where they have some, else by their numbers."""
    names = run.groups.names
    return _listed(groups) if names is None else ", ".join(names[int(each)] for each in groups)


def groups_of_class(run: Finished, name: str) -> list[int]:
    """The groups most of whose points are of a class.

    Raises:
        ValueError: for a class that there is not, or that no group is of.
    """
    classes = run.plan.split.classes
    if name not in classes:
        raise ValueError(f"class {name!r}; choose one of {', '.join(classes)}")
    labels, ids = run.plan.split.train.y.argmax(1), np.asarray(run.groups.ids)
    own = [np.bincount(labels[ids == group]).argmax() for group in range(run.groups.count)]
    found = np.flatnonzero(np.asarray(own) == classes.index(name)).tolist()
    if not found:
        raise ValueError(f"no group is mostly of class {name!r}; name groups instead")
    return found


def _judge(run: Finished, params: Params, forgotten: np.ndarray) -> metrics.Unlearned:
    split, task = run.plan.split, run.plan.task
    losses = in_batches(task.loss)
    right = [
        _logits(run, params, data.x).argmax(1) == data.y.argmax(1)
        for data in (split.train, split.test)
    ]
    return metrics.unlearned(
        np.asarray(losses(params, split.train)),
        right[0],
        forgotten,
        np.asarray(losses(params, split.test)),
        right[1],
    )


def _logits(run: Finished, params: Params, x: Any) -> np.ndarray:
    apply = require_distributions(run.plan.task, "a run")
    return np.asarray(in_batches(apply)(params, x))


def _worst(run: Finished) -> np.ndarray:
    """The test points by margin, the most confident mistakes first."""
    margin = explain(run.plan.task, "margin").output
    margins = in_batches(margin)(run.target.params, run.plan.split.test)
    return np.argsort(np.asarray(margins), kind="stable")


def _listed(numbers: Any) -> str:
    return ", ".join(str(int(number)) for number in numbers) or "none"
