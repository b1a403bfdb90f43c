"""Agreement with exact retraining beyond softmax and SGD: five kinds of task, judged alike.

    diabetes      regression, 342 patients, 10 numbers each; MLP 10-32-1
    friedman      regression, 5,000 points of Friedman's first function with noise; MLP 10-32-1
    pairs         several labels: which digits are there, of two side by side; MLP 128-64-10
    nnx-convnet   digits, a ConvNet in flax NNX trained by AdamW
    nnx-lora      the same, pretrained on digits 0-4 and fine-tuned on 5-9 by adapters of rank 4

Truth: 40 random halves of the groups and each group alone, exactly retrained, on test losses.
Settings are chosen on a quarter of the halves and queries and reported on the rest, for every
estimator alike, and updates and short retrainings cost the same (`judge.compare`).

    python benchmarks/tasks.py [--quick] [--partitions 10 11 12] [--cases pairs ...]
        [--estimators ddm ...] [--estimators averages]
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from harness import say
from sklearn import datasets

import ddm_jax as ddm
from ddm_jax.compute.convolution import convolve
from ddm_jax.estimators.over_networks import over_networks
from ddm_jax.judge import compare, scoring, truth
from ddm_jax.judge.candidates import CANDIDATES
from ddm_jax.judge.problem import Problem, TruthSettings, make_problem, trainer_of
from ddm_jax.models import MLP
from ddm_jax.train import TrainSettings

ESTIMATORS = (
    "retraining",
    "short_retraining",
    "ddm",
    "influence_cg",
    "ekfac",
    "trak",
    "datamodel",
    "knn_shapley",
    "grad_dot",
)
QUICK_ESTIMATORS = ("retraining", "ddm")
AVERAGES = "averages"  # of DDM over several target networks
NETWORKS, STEPS = (1, 2, 4), 120
UPDATE = ddm.UpdateSettings(schedule="constant", momentum=0.9, rewind=0.0)


class Case(NamedTuple):
    """A learning problem with its groups and recipes."""

    task: ddm.Task
    train: ddm.Batch
    test: ddm.Batch
    groups: ddm.Groups
    training: TrainSettings
    distill: ddm.DistillSettings = ddm.DistillSettings()
    update: ddm.UpdateSettings = UPDATE
    step_items: int = 5  # of each group, in a step of the averages


def _regression(
    x: np.ndarray, y: np.ndarray, tests: int, seed: int, groups: int, **recipe: Any
) -> Case:
    """A regression on standardised numbers, and groups of like inputs."""
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order, None]
    train, test = slice(tests, None), slice(tests)
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = (y - y[train].mean(0)) / y[train].std(0)
    x, y = x.astype(np.float32), y.astype(np.float32)
    cut = ddm.make_groups(
        "kmeans",
        features=x[train],
        num_groups=groups,
        seed=seed,
    )
    return Case(
        task=ddm.regression(MLP(1, (32,)), (x.shape[1],)),
        train=ddm.Batch(x[train], y[train]),
        test=ddm.Batch(x[test], y[test]),
        groups=cut,
        training=TrainSettings(**recipe),
    )


def diabetes(seed: int, quick: bool) -> Case:
    """A year's progress of diabetes from ten numbers (Efron et al., "Least angle regression")."""
    x, y = datasets.load_diabetes(return_X_y=True)
    return _regression(
        x, y, 100, seed, 20, epochs=60, batch_size=38, learning_rate=0.05,
        final_learning_rate=0.005, weight_decay=0.03,
    )  # fmt: skip


def friedman(seed: int, quick: bool) -> Case:
    """Friedman's first function of ten uniform numbers, of which five matter, and unit noise."""
    count = 700 if quick else 5500
    x, y = datasets.make_friedman1(count, noise=1.0, random_state=seed)
    return _regression(
        x, y, count - (600 if quick else 5000), seed, 20 if quick else 50, epochs=20,
        batch_size=100, learning_rate=0.1, final_learning_rate=0.005, weight_decay=3e-3,
    )._replace(distill=ddm.DistillSettings(items=30, steps=500), step_items=10)  # fmt: skip


def _digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    found = datasets.load_digits()
    order = rng.permutation(len(found.target))
    return (found.images[order] / 16).astype(np.float32), found.target[order], rng


def pairs(seed: int, quick: bool) -> Case:
    """Two digits side by side; the labels are the digits that are there, one or two of ten."""
    images, labels, rng = _digits(seed)
    split, counts = 1200, (300, 60) if quick else (2000, 500)

    def draw(first: int, last: int, count: int) -> ddm.Batch:
        left, right = rng.integers(first, last, (2, count))
        y = np.maximum(*(np.eye(10, dtype=np.float32)[labels[side]] for side in (left, right)))
        return ddm.Batch(np.concatenate([images[left], images[right]], 2), y)

    train, test = draw(0, split, counts[0]), draw(split, len(images), counts[1])
    groups = ddm.make_groups("kmeans", features=train.x, num_groups=40, seed=seed)
    return Case(
        task=ddm.multilabel(MLP(10, (64,)), (8, 16)),
        train=train,
        test=test,
        groups=groups,
        training=TrainSettings(
            epochs=20 if quick else 40, learning_rate=0.1, final_learning_rate=0.01,
            momentum=0.9, weight_decay=1e-3,
        ),
        distill=ddm.DistillSettings(items=20, steps=1000),
    )  # fmt: skip


class Convolution(nnx.Module):
    """A 3x3 convolution whose derivatives stay fast inside compiled loops."""

    def __init__(self, depth: int, width: int, rngs: nnx.Rngs):
        start = nnx.initializers.he_normal()
        self.kernel = nnx.Param(start(rngs.params(), (3, 3, depth, width)))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        return convolve(x, self.kernel[...]) + self.bias[...]


class ConvNet(nnx.Module):
    """Two convolutions of 16 and 32 channels and two dense layers, for images of 8x8."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = Convolution(1, 16, rngs)
        self.norm = nnx.GroupNorm(16, num_groups=4, rngs=rngs)
        self.second = Convolution(16, 32, rngs)
        self.hidden: Any = nnx.Linear(4 * 32, 64, rngs=rngs)
        self.out: Any = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.first(x[..., None])))
        x = nnx.avg_pool(x, (2, 2), (2, 2))
        x = nnx.avg_pool(nnx.relu(self.second(x)), (2, 2), (2, 2))
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


def _classes(images: np.ndarray, labels: np.ndarray) -> ddm.Batch:
    return ddm.data.make_batch(images, labels, num_classes=10)


def _class_groups(data: ddm.Batch, count: int, seed: int) -> ddm.Groups:
    labels = np.asarray(data.y).argmax(1)
    return ddm.make_groups(
        "class_kmeans", features=data.x, labels=labels, num_groups=count, seed=seed
    )


ADAMW = {"optimizer": "adamw", "learning_rate": 3e-3, "final_learning_rate": 3e-5}


def nnx_convnet(seed: int, quick: bool) -> Case:
    """Digits by a ConvNet of flax NNX, trained by AdamW with a cosine."""
    images, labels, _ = _digits(seed)
    size = 200 if quick else 1000
    train, test = _classes(images[:size], labels[:size]), _classes(images[-500:], labels[-500:])
    return Case(
        task=ddm.classification(lambda rngs: ConvNet(rngs)),
        train=train,
        test=test,
        groups=_class_groups(train, 10 if quick else 50, seed),
        training=TrainSettings(
            epochs=4 if quick else 20, batch_size=50, weight_decay=1e-2, **ADAMW
        ),
        update=dataclasses.replace(UPDATE, momentum=0.95),
    )


def nnx_lora(seed: int, quick: bool) -> Case:
    """The same network, pretrained on digits 0-4, and adapters of rank 4 on 5-9."""
    images, labels, _ = _digits(seed)
    low = labels < 5
    base = ConvNet(nnx.Rngs(seed))
    whole = ddm.classification(base)
    batch = _classes(images[low], labels[low])
    steps = 100 if quick else 300
    train = ddm.make_train(
        whole, steps=steps, batch_size=100, optimizer="adamw", learning_rate=3e-3
    )
    done = jax.jit(train)(jax.random.key(seed), batch, jnp.ones(len(batch.x)))
    base = ddm.merge(base, done.params)
    rngs = nnx.Rngs(seed + 1)
    base.hidden = nnx.LoRA(128, 4, 64, base_module=base.hidden, rngs=rngs)
    base.out = nnx.LoRA(64, 4, 10, base_module=base.out, rngs=rngs)
    images, labels = images[~low], labels[~low]
    size = 300 if quick else 600
    train_data = _classes(images[:size], labels[:size])
    return Case(
        task=ddm.classification(base, trainable=nnx.LoRAParam),
        train=train_data,
        test=_classes(images[size:], labels[size:]),
        groups=_class_groups(train_data, 20 if quick else 30, seed),
        training=TrainSettings(
            epochs=10 if quick else 40, batch_size=50, weight_decay=1e-2,
            **ADAMW | {"learning_rate": 1e-2},
        ),
        update=dataclasses.replace(UPDATE, momentum=0.95),
    )  # fmt: skip


CASES: dict[str, Callable[[int, bool], Case]] = {
    "diabetes": diabetes,
    "friedman": friedman,
    "pairs": pairs,
    "nnx-convnet": nnx_convnet,
    "nnx-lora": nnx_lora,
}


def problem_of(case: Case, seed: int, quick: bool) -> Problem:
    """What is judged, by its test losses."""
    few = {"seeds": 2, "subsets": 8, "subset_seeds": 2}
    many = {"seeds": 4, "subsets": 40, "subset_seeds": 4}
    distill = dataclasses.replace(case.distill, steps=100) if quick else case.distill
    return make_problem(
        case.task,
        case.training,
        distill,
        case.update,
        TruthSettings(objective="loss", **(few if quick else many)),
        num_points=len(case.groups.ids),
        seed=seed,
    )


def truth_of(
    problem: Problem, case: Case, data: ddm.Batch, query: ddm.Batch, folder: Any
) -> truth.Truth:
    """The case's truth, filled where it is not."""
    opened = truth.open_truth(problem, data, query, case.groups, folder)
    truth.fill(problem, opened, data, query, case.groups)
    return truth.read_truth(problem, opened)


def main() -> None:
    """Judge every estimator on every case and partition; each case has a file of results."""
    options = harness.arguments(
        __doc__,
        quick="the smallest form of one case",
        cases={"nargs": "+", "default": list(CASES), "choices": list(CASES)},
        estimators={
            "nargs": "+",
            "default": list(ESTIMATORS),
            "choices": [*CANDIDATES, AVERAGES],
        },
    )
    names = QUICK_ESTIMATORS if options.quick else options.estimators
    cases = ("diabetes",) if options.quick else options.cases
    for name in cases:
        path = options.output or harness.RESULTS / f"tasks_{name}.json"
        kept = {}
        if not options.quick and path.exists():  # estimators can be measured again alone
            kept = json.loads(path.read_text())["rows"]
        measured = []
        for seed in options.partitions:
            say(f"{name}, partition {seed}")
            measured.append(judged(name, seed, names, options))
            rows = kept | {each: [found[each] for found in measured] for each in names}
            done = {"partitions": options.partitions[: len(measured)]}
            harness.write(options, {"case": name, "rows": rows} | done, f"_{name}")


def averaged(
    problem: Problem,
    found: truth.Truth,
    runs: list[ddm.TrainRun],
    data: ddm.Batch,
    query: ddm.Batch,
    case: Case,
) -> list[dict[str, Any]]:
    """DDM from E target networks at equal online cost: 120 / E steps, a synset each or one."""
    rows = []
    key, groups = jax.random.key(0), case.groups
    batch = case.step_items * groups.count
    for count in NETWORKS:
        update = dataclasses.replace(problem.update, steps=STEPS // count, batch=batch)
        one = ddm.make_ddm(problem.task, problem.distill, update)
        for shared in (False, True) if count > 1 else (False,):
            made = over_networks(one, one_synset=shared)
            states = made.fit(key, runs[:count], data, groups)  # type: ignore[arg-type]
            said = made.outputs(states, found.masks, query)  # type: ignore[misc]
            scored = scoring.judge_outputs(found, made.score(states, query), said)
            rows.append(
                {"networks": count, "synset": "one for all" if shared else "one each"}
                | {score: row["value"] for score, row in scored.items()}
            )
            say(harness.told(rows[-1]))
    return rows


def judged(name: str, seed: int, names: Any, options: Any) -> dict[str, Any]:
    """The rows of each estimator on one partition, or why there are none."""
    case = CASES[name](seed, options.quick)
    problem = problem_of(case, seed, options.quick)
    data, query = jax.device_put((case.train, case.test))
    found = truth_of(problem, case, data, query, options.work / f"tasks-{name}-{seed}")
    train = trainer_of(problem).train
    run = jax.jit(train)(jax.random.key(seed), data, jnp.ones(len(case.groups.ids)))
    rows: dict[str, Any] = {"seconds_per_retraining": found.seconds}
    if AVERAGES in names:
        keys = [jax.random.key(1000 * seed + number) for number in range(max(NETWORKS))]
        runs = [jax.jit(train)(each, data, jnp.ones(len(case.groups.ids))) for each in keys]
        rows[AVERAGES] = averaged(problem, found, runs, data, query, case)
    for each in (name for name in names if name != AVERAGES):
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                rows[each] = compare.judge(
                    each, problem, found, run, data, query, case.groups, say=say
                )
            for line in {str(warning.message) for warning in told}:
                say(f"  {line}")
        except ValueError as error:
            say(f"  {each}: {error}")
            rows[each] = str(error)
    return rows


if __name__ == "__main__":
    main()
