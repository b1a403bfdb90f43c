"""What if groups were gone, and a network that forgot them, in words, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax import metrics, unlearn
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import in_batches
from ddm_jax.masks import moved_share
from ddm_jax.metrics.intervals import LEVEL
from ddm_jax.run import check as checking
from ddm_jax.run import passages, questions, targets
from ddm_jax.run.answer_figures import (
    bars_figure,
    changes_figure,
    effects_figure,
)
from ddm_jax.run.check import Check
from ddm_jax.run.finished import Answer, Finished
from ddm_jax.run.wording import objective_in_words, query_in_words, text_of
from ddm_jax.types import Params, length, take

MIXED = 0.25  # of a class, in other groups or of others in its own: then its groups are not it


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
    objective, several = objective_in_words(plan.split, plan.config.online.objective), len(gone) > 1
    said = f"changes by {-joint.mean():+.4f}"
    if several:
        said += f"; adding up single effects gives {-summed.mean():+.4f}"
    sentences = [
        f"Without the groups {questions.named(run, gone)} "
        f"({int(run.groups.sizes()[gone].sum()):,} of {length(plan.split.train):,} training "
        f"points) the mean {objective} of {len(joint)} queries {said}.",
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
    retrained = None if check is None else retrained_before(check, mask[1])
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


def retrained_before(check: Check, mask: np.ndarray) -> np.ndarray | None:
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
        f"{questions.named(run, gone)} were forgotten by {used} alone: {measure} on what was "
        "forgotten, kept and on the test set, and how well a loss threshold tells "
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


def _beginning(run: Finished, groups: np.ndarray) -> str:
    """The first half of the query that some groups raise most, as a prompt."""
    better = -1.0 if run.plan.task.lower_is_better else 1.0
    query = int(np.argmax(better * run.attribution.scores[groups].sum(0)))
    text = text_of(run.plan.split, take(run.plan.split.test.x, query))
    # A character that the cut went through is none of the document's.
    text = text.strip("\ufffd") or text
    return text[: max(len(text) // 2, 1)]
