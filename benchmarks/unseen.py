"""Self-tuned updates on data that nobody tuned on, beside what a user would do instead.

    mnist      MNIST 5,000 / 500, the preset "mnist"
    letters    tinyshakespeare: the next letter, of the ten most frequent, from the eight before it
    modules    which of ten modules of Python's standard library a line of code is from
    ink        MNIST again, as a regression: how much ink the lower half has, from the upper half
    speakers   tinyshakespeare: which of the ten who say most says a line
    patches    which of ten parts of scikit-learn's two photographs a patch of 12x12 is from
    thousand   MNIST 60,000 / 500 in 1,000 groups, ten items a group, not distilled

Rule: what can be had without a download and has at least 5,000 examples of ten classes or a number;
settings are those of the preset "mnist" throughout, and nothing was chosen by hand on these. That
steps may take the training data themselves was decided after letters and modules had been seen, and
before the last four. Truth: 40 random halves of 50 groups and each group alone, retrained with 4
seeds (of the thousand: 20 halves, and 20 groups, with 3). The updates are chosen by `tuning.tune`
on eight halves of its own (two seeds), at each cost; the best of each pool stands beside them, and
so does retraining cut short at the same cost, at most. Error bars are learnt on eight groups and
eight halves of their own (three seeds).

    python benchmarks/unseen.py --data-dir DIR --text FILE [--quick] [--partitions 10 11 12]
        [--cases mnist ...] [--shares 0.02 0.1 0.25]
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.util
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from harness import say
from sklearn.datasets import load_sample_images

import ddm_jax as ddm
from ddm_jax import metrics, tuning
from ddm_jax.estimators import pools
from ddm_jax.judge import scoring, truth
from ddm_jax.judge.problem import Problem, TruthSettings, make_problem, trainer_of
from ddm_jax.judge.rivals import short_retrainings
from ddm_jax.masks import moved_share
from ddm_jax.models import MLP
from ddm_jax.run import settings

LENGTH = 8  # letters before the next
MODULES = ("argparse", "mailbox", "_pydecimal", "doctest", "inspect", "pickletools", "subprocess")
MODULES += ("tarfile", "turtle", "typing")
WORDS = 512  # buckets of hashed words
APART = 2**31  # seeds of what is chosen, and of what error bars are learnt by
SHARES = (0.02, 0.1, 0.25)


class Case(NamedTuple):
    """A learning problem."""

    task: ddm.Task
    train: ddm.Batch
    test: ddm.Batch
    groups: ddm.Groups


def _classes(x: np.ndarray, labels: np.ndarray, sizes: tuple[int, int], seed: int) -> Case:
    order = np.random.default_rng(seed).permutation(len(x))
    x, labels = x[order].astype(np.float32), labels[order]
    train, test = slice(sizes[0]), slice(sizes[0], sum(sizes))
    return Case(
        task=ddm.classification(MLP(10, (128, 64)), x.shape[1:]),
        train=ddm.data.make_batch(x[train], labels[train], num_classes=10),
        test=ddm.data.make_batch(x[test], labels[test], num_classes=10),
        groups=ddm.make_groups(
            "class_kmeans", features=x[train], labels=labels[train], num_groups=50, seed=seed
        ),
    )


def _hashed(lines: list[str]) -> np.ndarray:
    x = np.zeros((len(lines), WORDS), np.float32)
    for row, line in enumerate(lines):
        for word in re.findall("[A-Za-z]+", line.lower()):
            for part in (word, word[:4]):
                x[row, zlib.crc32(part.encode()) % WORDS] += 0.5
    return x


def mnist(options: argparse.Namespace, seed: int, sizes: tuple[int, int]) -> Case:
    """MNIST as the preset has it."""
    split = ddm.data.load(
        "mnist", train_size=sizes[0], test_size=sizes[1], seed=seed, data_dir=options.data_dir
    )
    groups = ddm.make_groups(
        "class_kmeans", features=split.train.x, labels=split.train.y.argmax(1),
        num_groups=50 if sizes[0] < 60_000 else 1000, seed=seed,
    )  # fmt: skip
    task = ddm.classification(MLP(10, (128, 64)), split.train.x.shape[1:])
    return Case(task, split.train, split.test, groups)


def letters(options: argparse.Namespace, seed: int, sizes: tuple[int, int]) -> Case:
    """The next letter from those before it, one-hot."""
    text = re.sub("[^a-z ]+", " ", Path(options.text).read_text().lower())
    text = re.sub(" +", " ", text)
    ids = np.frombuffer(text.encode(), np.uint8)
    ids = np.where(ids == ord(" "), 26, ids - ord("a"))
    common = [letter for letter, _ in collections.Counter(ids[ids < 26]).most_common(10)]
    places = np.flatnonzero(np.isin(ids, common))
    places = places[places >= LENGTH]
    chosen = np.random.default_rng(seed).choice(places, sum(sizes), replace=False)
    before = ids[chosen[:, None] - np.arange(1, LENGTH + 1)]
    labels = np.searchsorted(np.sort(common), ids[chosen])
    return _classes(np.eye(27)[before], labels, sizes, seed)


def modules(options: argparse.Namespace, seed: int, sizes: tuple[int, int]) -> Case:
    """Which module a line is from, by its words and their beginnings, hashed."""
    lines, labels = [], []
    for label, name in enumerate(MODULES):
        found = importlib.util.find_spec(name)
        assert found is not None
        every = dict.fromkeys(
            line.strip() for line in Path(str(found.origin)).read_text().splitlines()
        )
        kept = [line for line in every if len(line) > 20]
        lines += kept
        labels += [label] * len(kept)
    return _classes(_hashed(lines), np.asarray(labels), sizes, seed)


def ink(options: argparse.Namespace, seed: int, sizes: tuple[int, int]) -> Case:
    """How much ink the lower half of a digit has, from the upper half: standardised."""
    case = mnist(options, seed, sizes)
    both = [np.asarray(batch.x)[..., 0] for batch in (case.train, case.test)]
    upper, lower = ([half(x) for x in both] for half in (lambda x: x[:, :14], lambda x: x[:, 14:]))
    amount = [x.mean((1, 2)) for x in lower]
    middle, width = amount[0].mean(), amount[0].std()
    train, test = (
        ddm.Batch(x, ((y - middle) / width)[:, None].astype(np.float32))
        for x, y in zip(upper, amount, strict=True)
    )
    groups = ddm.make_groups("kmeans", features=train.x, num_groups=50, seed=seed)
    return Case(ddm.regression(MLP(1, (128, 64)), (14, 28)), train, test, groups)


def speakers(options: argparse.Namespace, seed: int, sizes: tuple[int, int]) -> Case:
    """Who says a line, by its words and their beginnings, hashed."""
    said: dict[str, list[str]] = {}
    for speech in Path(options.text).read_text().split("\n\n"):
        name, *lines = speech.splitlines() or [""]
        said.setdefault(name, []).extend(line for line in lines if len(line) > 20)
    most = sorted(said, key=lambda name: -len(said[name]))[:10]
    lines = [line for name in most for line in said[name]]
    labels = [label for label, name in enumerate(most) for _ in said[name]]
    return _classes(_hashed(lines), np.asarray(labels), sizes, seed)


def patches(options: argparse.Namespace, seed: int, sizes: tuple[int, int]) -> Case:
    """Which of five bands of which photograph a patch is from, standardised."""
    draw = np.random.default_rng(seed)
    x, labels = [], []
    for number, image in enumerate(load_sample_images().images):
        height, width = image.shape[0] // 5, image.shape[1]
        for band in range(5):
            for _ in range(-(-sum(sizes) // 10)):
                top = band * height + draw.integers(height - 12)
                left = draw.integers(width - 12)
                x.append(image[top : top + 12, left : left + 12])
                labels.append(5 * number + band)
    pixels = np.stack(x).astype(np.float32)
    pixels = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    return _classes(pixels, np.asarray(labels), sizes, seed)


CASES: dict[str, Callable[..., Case]] = {
    "mnist": mnist,
    "letters": letters,
    "modules": modules,
    "ink": ink,
    "speakers": speakers,
    "patches": patches,
    "thousand": mnist,
}


def truth_of(problem: Problem, case: Case, folder: Path) -> truth.Truth:
    """A truth of the case, filled where it is not."""
    opened = truth.open_truth(problem, case.train, case.test, case.groups, folder)
    truth.fill(problem, opened, case.train, case.test, case.groups)
    return truth.read_truth(problem, opened)


def paired(found: truth.Truth) -> np.ndarray:
    """Changes of each seed's networks against its own with everything: groups, then subsets."""
    seeds = min(len(found.full), len(found.subsets))
    full = found.full[:seeds, None]
    return np.concatenate([found.single[:seeds] - full, found.subsets[:seeds] - full], 1)


def measure(options: argparse.Namespace, name: str, seed: int) -> list[dict[str, Any]]:
    """One case and partition: a row for each cost."""
    large = name == "thousand"
    sizes = (600, 100) if options.quick else (60_000 if large else 5000, 500)
    case, chosen = CASES[name](options, seed, sizes), settings.preset("mnist")
    regress = case.task.targets != "distribution"
    training = chosen.train
    if regress:  # a squared error has another scale
        training = dataclasses.replace(training, learning_rate=0.05, final_learning_rate=0.0025)
    distill = chosen.distill
    if options.quick:
        training = dataclasses.replace(training, epochs=6, checkpoint_every=1)
        distill = dataclasses.replace(distill, steps=20, items=5)
    if large:
        distill = dataclasses.replace(distill, steps=0, items=10)
    count = len(case.groups.ids)

    def problem(apart: int, **wanted: Any) -> Problem:
        judged = TruthSettings(objective="loss", **wanted)
        return make_problem(
            case.task, training, distill, ddm.UpdateSettings(), judged, num_points=count,
            seed=(seed + apart) % 2**32,
        )  # fmt: skip

    few = {"seeds": 2, "subsets": 6, "subset_seeds": 2, "groups": 4}
    many: dict[str, Any] = {"seeds": 4, "subsets": 40, "subset_seeds": 4}
    if large:
        many = {"seeds": 3, "subsets": 20, "subset_seeds": 3, "groups": 20}
    many = few if options.quick else many
    reports = problem(0, **many)
    chooses = problem(APART, leave_one_out=False, subsets=8, subset_seeds=2)
    bars = problem(APART // 2, seeds=3, groups=8, subsets=8, subset_seeds=3)
    folders = [options.work / f"unseen-{name}-{seed}-{part}" for part in ("report", "tune", "bars")]
    found, tuned_by, barred = (
        truth_of(one, case, folder)
        for one, folder in zip((reports, chooses, bars), folders, strict=True)
    )
    task = reports.task  # whose output is the truth's
    data, query = jax.device_put((case.train, case.test))
    run = jax.jit(trainer_of(reports).train)(jax.random.key(seed), data, jnp.ones(count))
    estimator = ddm.make_ddm(task, distill)
    state, offline = harness.once(estimator.fit, jax.random.key(seed + 1), run, data, case.groups)
    gradients = int(run.rows.size)
    short = short_retrainings(reports, found.masks, found.subsets.mean(0), data, case.groups, query)
    ceilings = scoring.ceilings(found)
    rows = []
    for share in options.shares[-1:] if options.quick else options.shares:
        row: dict[str, Any] = {"case": name, "partition": seed, "share": share}
        tuned, row["seconds of choosing"] = harness.once(
            lambda share=share: tuning.tune(
                task, state, tuned_by.masks, tuned_by.subsets, query, gradients=gradients,
                share=share, real=(data, case.groups),
            )
        )  # fmt: skip
        assert tuned.other is not None
        row["pool"] = tuned.pool
        for pool, update in ((tuned.pool, tuned.update), (tuned.other.pool, tuned.other.update)):
            made = ddm.make_ddm(task, None, update)
            at = pools.state_of(pool, state, task, data, case.groups)
            assert made.outputs is not None
            outputs, online = harness.timed(made.outputs, at, found.masks, query)
            scores = np.asarray(made.score(at, query))
            for score, judged in scoring.judge_outputs(found, scores, outputs).items():
                row[f"{pool}, {score}"] = judged["value"]
                row[f"{pool}, {score}, interval"] = judged["over_rows"]
            row[f"{pool}, updates"] = tuning.describe(update, pool)
            row[f"{pool}, seconds a question"] = online / len(found.masks)
            if pool == tuned.pool:
                row["coverage"] = covered(made, at, found, barred, case.groups, query, scores)
        allowed = [each for each in short if each.share <= share + 1e-9]
        row["short retraining"] = max((each.agreement for each in allowed), default=None)
        for score, judged in ceilings.items():
            row[f"one retraining, {score}"] = judged["one_retraining"]
            row[f"ceiling, {score}"] = judged["ceiling"]
        row |= {"offline_seconds": offline, "seconds_a_retraining": found.seconds}
        row["short"] = [each._asdict() for each in short]
        say(f"  {json.dumps(row, default=float)}")
        rows.append(row)
    return rows


def covered(
    made: ddm.Estimator,
    state: Any,
    found: truth.Truth,
    barred: truth.Truth,
    groups: ddm.Groups,
    query: ddm.Batch,
    scores: np.ndarray,
) -> dict[str, float]:
    """How many retrained changes lie inside of error bars that were learnt on other subsets."""

    def predicted(of: truth.Truth) -> tuple[np.ndarray, np.ndarray]:
        masks = np.concatenate([1 - np.eye(groups.count)[of.groups], of.masks])
        every = np.concatenate([np.ones((1, groups.count)), of.masks]).astype(np.float32)
        outputs = np.asarray(made.outputs(state, every, query))  # type: ignore[misc]
        changes = np.concatenate([-scores[of.groups], outputs[1:] - outputs[:1]])
        return changes, moved_share(masks, groups.shares())

    learnt, away = predicted(barred)
    intervals = metrics.fit_intervals(learnt, paired(barred), away, metrics.reach(scores))
    changes, away = predicted(found)
    wide = metrics.half_widths(intervals, changes, away, metrics.reach(scores))
    said = metrics.expected(intervals, changes, away)
    true, alone = paired(found), len(found.groups)
    return {
        "single groups": metrics.coverage(said[:alone], wide[:alone], true[:, :alone]),
        "halves": metrics.coverage(said[alone:], wide[alone:], true[:, alone:]),
        "halves, width over spread": float(
            np.median(wide[alone:] / np.maximum(true[:, alone:].std(1).mean(0), 1e-9))
        ),
    }


def main() -> None:
    """Measure every case on every partition."""
    options = harness.arguments(
        __doc__,
        quick="600 lines of code, few steps",
        data=True,
        text={"help": "tinyshakespeare.txt"},
        cases={"nargs": "+", "default": list(CASES), "choices": list(CASES)},
        shares={"nargs": "+", "type": float, "default": list(SHARES)},
    )
    cases = ("modules",) if options.quick else options.cases
    rows: list[dict[str, Any]] = []
    for name in cases:
        for seed in options.partitions:
            say(f"{name}, partition {seed}")
            rows += measure(options, name, seed)
            harness.write(options, {"rows": rows})


if __name__ == "__main__":
    main()
