"""Every estimator on every protocol, judged on the same truths: `ddm compare` one by one.

Each estimator runs in a process of its own, so that its memory is its own and its failure no
other's. Settings are chosen on a quarter of the subsets and queries, BUDGET candidates at most,
and scored on the rest; a truth is filled where it is not (`ddm truth`). Wrong labels: 1,000
points, a tenth flipped; a point's value is its mean effect on the margins of the test set (which
has no wrong labels), settings chosen on another partition.

    python benchmarks/comparison.py --data-dir DIR [--quick] [--partition 10]
        [--protocols digits mnist ...] [--estimators ddm grad_dot ...]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import protocol

import ddm_jax as ddm
from ddm_jax import config, evaluate, pipeline
from ddm_jax.candidates import CANDIDATES
from ddm_jax.plan import make_plan
from ddm_jax.workdir import SILENT

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
    command = [sys.executable, "-m", "ddm_jax.cli", "compare", DATASETS.get(preset, "mnist")]
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


def suspicion(case: str, name: str, seed: int, options: Any) -> dict[str, Any]:
    """How every candidate of an estimator finds wrong labels: AUC and average precision."""
    preset, changes = MISLABELLED[case]
    assignments = [f"seed={seed}", *changes, *NOISE, *(QUICK if options.quick else ())]
    if options.data_dir:
        assignments.append(f"data.data_dir={options.data_dir}")
    plan = make_plan(config.override(config.preset(preset), assignments))
    data, query = jax.device_put((plan.split.train, plan.split.test))
    with tempfile.TemporaryDirectory() as folder:
        target = pipeline.target_stage(plan, Path(folder), SILENT)
    candidates = CANDIDATES[name]
    found: dict[str, Any] = {"settings": [], "auc": [], "average_precision": [], "seconds": []}
    for offline in _product(candidates.offline):
        state, fitting = None, 0.0
        for online in _product(candidates.online):
            fixed = {"items": 1} if name == "ddm" else {}  # a group is a point
            estimator = candidates.make(plan, fixed | offline | online)
            begin = time.perf_counter()
            if state is None:
                points = np.arange(len(data.x))
                state = estimator.fit(jax.random.key(seed), target, data, points)
                fitting = time.perf_counter() - begin
                begin = time.perf_counter()
            scores = np.asarray(estimator.score(state, query))
            found["seconds"].append(fitting + time.perf_counter() - begin)
            finite = np.isfinite(scores).all()
            values = scores.mean(1) if finite else np.zeros(len(data.x))
            told = ddm.metrics.detection(-values, plan.split.flipped, (0.1,))
            found["settings"].append(offline | online)
            found["auc"].append(told.auc)
            found["average_precision"].append(told.average_precision)
    return found


def _product(choices: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    every = itertools.product(*choices.values())
    return [dict(zip(choices, values, strict=True)) for values in every]


def mislabelled(case: str, name: str, options: Any) -> dict[str, Any]:
    """Choose the candidate on one partition, and report it on another."""
    try:
        tried = suspicion(case, name, TUNING_PARTITION, options)
        best = int(np.argmax(tried["auc"]))
        reported = suspicion(case, name, options.partition, options)
    except Exception as error:  # the others go on and the table shows it
        return {"estimator": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"estimator": name} | {what: values[best] for what, values in reported.items()}


def main() -> None:
    """Run the protocols and write the results after each estimator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="where TFDS keeps prepared data")
    parser.add_argument("--quick", action="store_true", help="100 digits, two estimators")
    parser.add_argument("--partition", type=int, default=FIRST_PARTITION)
    every = (*PRESETS, *MISLABELLED)
    parser.add_argument("--protocols", nargs="+", default=every, choices=every)
    parser.add_argument("--estimators", nargs="+", default=list(CANDIDATES), choices=CANDIDATES)
    parser.add_argument("--minutes", type=float, default=15.0, help="for one estimator")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # wrong labels, in a process of its own
    options = parser.parse_args()
    if options.one:
        row = mislabelled(options.protocols[0], options.one, options)
        Path(os.environ["ROW"]).write_text(json.dumps(row))
        return
    protocols: tuple[str, ...] = tuple(options.protocols)
    names = options.estimators
    if options.quick:
        protocols, names = ("digits", "mislabelled digits"), QUICK_ESTIMATORS
    part = "" if options.partition == FIRST_PARTITION else f"_{options.partition}"
    written = protocol.RESULTS / f"comparison{part}.json"
    results: dict[str, Any] = {}
    if not options.quick and written.exists():  # protocols can be measured again alone
        results = json.loads(written.read_text())["protocols"]
    changes = [f"seed={options.partition}", *(QUICK if options.quick else ())]
    words = [word for change in changes for word in ("--set", change)]
    words += ["--data-dir", options.data_dir] if options.data_dir else []
    with tempfile.TemporaryDirectory() as folder:
        for case in protocols:
            place = Path(folder) / case if options.quick else protocol.WORK / _folder(case, options)
            before = results.get(case, {"rows": []})["rows"]
            results[case] = {"rows": [row for row in before if row["estimator"] not in names]}
            for name in names:
                begin = time.perf_counter()
                if case in MISLABELLED:
                    rows = [_apart(case, name, options, Path(folder))]
                else:
                    rows = judged(case, name, words, place, 60 * options.minutes)
                    if (place / "compare.json").exists():
                        told = evaluate.read_comparison(place)
                        results[case]["seconds_per_retraining"] = told["seconds_per_retraining"]
                results[case]["rows"] += rows
                scores = [row.get("value", row.get("auc", row.get("error"))) for row in rows]
                protocol.say(f"{case}, {name}: {scores}, {time.perf_counter() - begin:.0f} s")
                protocol.write_json(
                    "comparison",
                    options.quick,
                    {"partition": options.partition, "protocols": results},
                    part,
                )


def _folder(case: str, options: Any) -> str:
    return f"{case}-{options.partition}"


def _apart(case: str, name: str, options: Any, folder: Path) -> dict[str, Any]:
    told = folder / "row.json"
    told.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--protocols", case, "--one", name]
    command += ["--partition", str(options.partition)]
    command += ["--data-dir", options.data_dir] if options.data_dir else []
    command += ["--quick"] if options.quick else []
    try:
        subprocess.run(
            command,
            env=os.environ | {"ROW": str(told)},
            timeout=60 * options.minutes,
            check=True,
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        return {"estimator": name, "error": f"not done in {options.minutes:.0f} minutes"}
    except subprocess.CalledProcessError as error:
        return {"estimator": name, "error": error.stderr.decode().strip().splitlines()[-1][:200]}
    return json.loads(told.read_text())


if __name__ == "__main__":
    main()
