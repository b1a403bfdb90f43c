"""Every estimator on every protocol, judged on the same truths: `ddm compare` one by one.

Each estimator runs in a process of its own, so that its memory is its own and its failure no
other's. Settings are chosen on a quarter of the subsets and queries, BUDGET candidates at most,
and scored on the rest; updates take what the judge allows of a retraining's cost
(`judge.candidates`); a truth is filled where it is not (`ddm truth`). Wrong labels: 1,000
points, a tenth flipped; a point's value is its mean effect on the margins of the test set (which
has no wrong labels), settings chosen on another partition.

    python benchmarks/comparison.py --data-dir DIR [--quick] [--partitions 10]
        [--protocols digits mnist ...] [--estimators ddm grad_dot ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import protocol
from harness import say

from ddm_jax import metrics
from ddm_jax.judge.candidates import CANDIDATES, every_choice
from ddm_jax.run import evaluate
from ddm_jax.run.plan import make_plan

DATASETS = {"digits": "digits", "cifar10-convnet": "cifar10"}  # of a preset; the others: mnist
PRESETS = ("digits", "mnist", "mnist-convnet", "cifar10-convnet", "dattri-lr", "dattri-mlp")
MISLABELLED = {  # a preset and changes
    "mislabelled digits": ("digits", ()),
    "mislabelled MNIST, logistic": (
        "mnist",
        ("data.train_size=1000", "data.test_size=100", "model.kind=logistic"),
    ),
}
NOISE = ("data.label_noise=0.1", "data.noise_kind=nearest", "cluster.method=point")
NOISE += ("truth.objective=margin",)  # what the points are asked to raise
TUNING_PARTITION = 1  # of the wrong labels
FIRST_PARTITION = 10  # results/comparison.json; another one's are in comparison_<partition>.json
QUICK = (
    "data.train_size=100",
    "data.test_size=60",
    "train.epochs=20",
    "cluster.num_groups=10",
    "distill.steps=50",
    "distill.distance=squared",
    "truth.subsets=8",
    "truth.seeds=2",
    "truth.subset_seeds=2",
)
QUICK_ESTIMATORS = ("ddm", "grad_dot")


def judged(preset: str, name: str, words: list[str], workdir: Path, limit: float) -> list[Any]:
    """The rows of one estimator on one truth, in a process of its own."""
    place = [*words, "--preset", preset, "--workdir", str(workdir)]
    command = [sys.executable, "-m", "ddm_jax", "compare", DATASETS.get(preset, "mnist")]
    try:
        subprocess.run(
            [*command, *place, "--estimators", name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
            timeout=limit,
            check=False,  # an estimator that fails says so in compare.json
        )
    except subprocess.TimeoutExpired:
        return [{"estimator": name, "error": f"not done in {limit / 60:.0f} minutes"}]
    rows = evaluate.read_comparison(workdir)["rows"]
    return [row for row in rows if row["estimator"] == name]


def words_of(options: argparse.Namespace, preset: str, seed: int) -> list[str]:
    """What `ddm compare` is told: the partition, the small form, and the updates."""
    quick = QUICK if options.quick else ()
    online = protocol.at_cost(protocol.settings_of(options, preset, seed, *quick)).online
    updates = [f"online.{name}={getattr(online, name)}" for name in protocol.UPDATES]
    updates = [each for each in updates if not each.endswith("=None")]
    words = [word for each in (f"seed={seed}", *quick, *updates) for word in ("--set", each)]
    return words + (["--data-dir", options.data_dir] if options.data_dir else [])


def suspicion(case: str, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """How every candidate of an estimator finds wrong labels: AUC and average precision."""
    preset, changes = MISLABELLED[case]
    quick = QUICK if options.quick else ()
    chosen = protocol.settings_of(options, preset, seed, *changes, *NOISE, *quick)
    plan = make_plan(protocol.at_cost(chosen))
    data, query = protocol.placed(plan)
    points = protocol.cluster(plan)
    target = jax.jit(plan.trainer.train)(jax.random.key(seed), data, jnp.ones(len(data.x)))
    candidates = CANDIDATES[name]
    found: dict[str, Any] = {"settings": [], "auc": [], "average_precision": [], "seconds": []}
    for offline in every_choice(candidates.offline):
        state, fitting = None, 0.0
        for online in every_choice(candidates.online):
            fixed = {"items": 1} if name == "ddm" else {}  # a group is a point
            estimator = candidates.make(plan.truth, fixed | offline | online)
            if state is None:
                key = jax.random.key(seed)
                state, fitting = harness.once(estimator.fit, key, target, data, points)
            scores, scoring = harness.once(estimator.score, state, query)
            found["seconds"].append(fitting + scoring)
            scores = np.asarray(scores)
            worth = scores.mean(1) if np.isfinite(scores).all() else np.zeros(len(data.x))
            told = metrics.detection(-worth, plan.split.flipped, (0.1,))
            found["settings"].append(offline | online)
            found["auc"].append(told.auc)
            found["average_precision"].append(told.average_precision)
    return found


def mislabelled(case: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Choose the candidate on one partition, and report it on another."""
    tried = suspicion(case, name, TUNING_PARTITION, options)
    best = int(np.argmax(tried["auc"]))
    reported = suspicion(case, name, options.partitions[0], options)
    return {"estimator": name} | {what: each[best] for what, each in reported.items()}


def mislabelled_apart(case: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own; one that fails stands in the table with its error."""
    words = ["--protocols", case, "--one", name, "--partitions", str(options.partitions[0])]
    words += ["--data-dir", options.data_dir] if options.data_dir else []
    words += ["--quick"] if options.quick else []
    try:
        return harness.apart(words, options.minutes)
    except RuntimeError as error:
        return {"estimator": name, "error": str(error)}


def main() -> None:
    """Run the protocols and write the results after each estimator."""
    every = (*PRESETS, *MISLABELLED)
    options = harness.arguments(
        __doc__,
        quick="100 digits, two estimators",
        partitions=(FIRST_PARTITION,),
        data=True,
        protocols={"nargs": "+", "default": every, "choices": every},
        estimators={"nargs": "+", "default": list(CANDIDATES), "choices": list(CANDIDATES)},
        minutes={"type": float, "default": 15.0, "help": "for one estimator"},
        one={"help": argparse.SUPPRESS},  # wrong labels, in a process of its own
    )
    if options.one:
        print(json.dumps(mislabelled(options.protocols[0], options.one, options)))
        return
    (seed,) = options.partitions
    protocols, names = tuple(options.protocols), options.estimators
    if options.quick:
        protocols, names = ("digits", "mislabelled digits"), QUICK_ESTIMATORS
    part = "" if seed == FIRST_PARTITION else f"_{seed}"
    written = options.output or harness.RESULTS / f"comparison{part}.json"
    results: dict[str, Any] = {}
    if not options.quick and written.exists():  # protocols can be measured again alone
        results = json.loads(written.read_text())["protocols"]
    for case in protocols:
        before = results.get(case, {"rows": []})
        kept = [row for row in before["rows"] if row["estimator"] not in names]
        results[case] = before | {"rows": kept}
        place = options.work / f"{case}-{seed}"
        for name in names:
            begin = time.perf_counter()
            if case in MISLABELLED:
                rows = [mislabelled_apart(case, name, options)]
            else:
                words = words_of(options, case, seed)
                rows = judged(case, name, words, place, 60 * options.minutes)
                if (place / "compare.json").exists():
                    told = evaluate.read_comparison(place)
                    results[case]["seconds_per_retraining"] = told["seconds_per_retraining"]
            results[case]["rows"] += rows
            scores = [row.get("value", row.get("auc", row.get("error"))) for row in rows]
            say(f"{case}, {name}: {scores}, {time.perf_counter() - begin:.0f} s")
            harness.write(options, {"partition": seed, "protocols": results}, part)


if __name__ == "__main__":
    main()
