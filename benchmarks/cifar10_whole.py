"""All 50,000 images of CIFAR-10 in 100 groups, a ConvNet of width 32: halves that were retrained.

The settings of the preset "cifar10-convnet", but for these and for eight epochs. Truth: 16 random
halves of the groups, two seeds each. What networks say is kept in `results/cifar10_whole.npz` as it
comes, however a call ends, and a later one goes on from there. With all 32, estimators are judged
as everywhere (`ddm compare`). An answer of DDM's may cost a hundredth of the example gradients that
a retraining takes of what is kept.

    JAX_NUM_CPU_DEVICES=2 python benchmarks/cifar10_whole.py --data-dir DIR [--quick] [--minutes 60]
        [--estimators ddm ...]

It has not been run whole: a network is some 400,000 example gradients.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np
from harness import say
from protocol import PROGRESS

from ddm_jax.judge import compare, filling, store, truth
from ddm_jax.judge.store import Store
from ddm_jax.run import settings
from ddm_jax.run.check import open_truth
from ddm_jax.run.plan import Plan, make_plan
from ddm_jax.run.stages import Results, bring
from ddm_jax.types import length

WHOLE = (
    "data.train_size=50000",
    "model.width=32",
    "train.epochs=8",
    "cluster.num_groups=100",
    "tune.share=0.005",  # of a retraining with everything
    "truth.leave_one_out=false",
    "truth.subsets=16",
    "truth.subset_seeds=2",
)
QUICK = (
    "data.train_size=400",
    "data.test_size=50",
    "model.width=4",
    "model.depth=2",
    "train.epochs=2",
    "distill.items=2",
    "cluster.num_groups=10",
    "tune.share=0.1",
    "truth.leave_one_out=false",
    "truth.subsets=8",
    "truth.subset_seeds=2",
)
ESTIMATORS = (
    *("ddm", "ddm_corrected", "real_data", "retraining", "short_retraining", "grad_dot"),
    *("grad_cos", "tracin", "trak", "ekfac", "source", "knn_shapley", "untrac_inverse"),
)
QUICK_ESTIMATORS = ("grad_dot",)
FIRST_DIGITS = 5  # of what networks say


class EnoughError(Exception):
    """The time is over; what was done is kept."""


def restore(opened: Store, kept: Path) -> None:
    """Give a store the rows that are kept beside the results, where they are of the same truth."""
    if not kept.exists():
        return
    with np.load(kept, allow_pickle=False) as rows:
        if json.loads(str(rows["identity"])) != opened.identity:
            raise SystemExit(f"{kept} holds the truth of something else; move it away")
        for mask, seed, outputs, seconds in zip(
            rows["mask"], rows["seed"], rows["outputs"], rows["seconds"], strict=True
        ):
            row = store.Row(int(mask), int(seed))
            if not store.is_done(opened, row):
                store.write_row(opened, row, outputs, float(seconds))


def keep(opened: Store, kept: Path) -> None:
    """Write all rows that a store has."""
    done = [row for row in store.declared(opened) if store.is_done(opened, row)]
    marks = [json.loads(store.paths(opened, row).mark.read_text()) for row in done]
    np.savez_compressed(
        kept,
        identity=json.dumps(opened.identity),
        mask=np.asarray([row.mask for row in done]),
        seed=np.asarray([row.seed for row in done]),
        outputs=np.asarray([store.read_row(opened, row) for row in done]),
        seconds=np.asarray([mark["seconds"] for mark in marks]),
    )


def fill(plan: Plan, found: Results, opened: Store, kept: Path, minutes: float) -> bool:
    """Retrain what is missing, for so many minutes; whether that is everything."""
    begin = time.perf_counter()

    def tell(done: int, note: str) -> None:
        keep(opened, kept)
        say(f"  {done} networks, {note}, {time.perf_counter() - begin:.0f} s")
        if time.perf_counter() - begin > 60 * minutes:
            raise EnoughError

    devices = jax.local_device_count()
    with contextlib.suppress(EnoughError):
        truth.fill(
            plan.truth, opened, plan.split.train, plan.split.test, found.groups, devices, tell
        )
    status = filling.status(opened)
    return status.done == status.declared


def rows_of(name: str, plan: Plan, found: Results, judged: truth.Truth) -> list[dict[str, Any]]:
    """The rows of one estimator, or why there are none."""
    begin = time.perf_counter()
    given = (plan.truth, judged, found.target, plan.split.train, plan.split.test, found.groups)
    try:
        rows = compare.judge(name, *given, say=say)
    except (MemoryError, ValueError) as error:  # the others go on
        say(f"{name}: {error}")
        return [{"estimator": name, "error": str(error).splitlines()[0]}]
    say(f"{name}: {time.perf_counter() - begin:.0f} s")
    told = {"commit": harness.commit()}
    return [{k: v for k, v in row.items() if k != "program"} | told for row in rows]


def main() -> None:
    """Retrain, judge, and write the results after each estimator."""
    options: argparse.Namespace = harness.arguments(
        __doc__,
        quick="400 images, a narrow network, 8 halves",
        partitions=(10,),
        data=True,
        minutes={"type": float, "default": 1e9, "help": "stop retraining after so many"},
        estimators={"nargs": "*", "default": ESTIMATORS, "choices": ESTIMATORS},
    )
    (seed,) = options.partitions
    changes = [f"seed={seed}", *options.changes, *(QUICK if options.quick else WHOLE)]
    plan = make_plan(settings.override(settings.preset("cifar10-convnet"), changes))
    work = options.work / f"cifar10-whole-{seed}"
    place = work if options.quick else harness.RESULTS
    kept = place / "cifar10_whole.npz"
    work.mkdir(parents=True, exist_ok=True)
    found = bring(plan, work, ("target", "groups"), PROGRESS)
    opened = open_truth(plan, plan.truth, work / "truth", found.groups)
    restore(opened, kept)
    if not fill(plan, found, opened, kept, options.minutes):
        say("the halves are not all retrained: call this again")
        return
    judged = truth.read_truth(plan.truth, opened)
    written = options.output or harness.RESULTS / "cifar10_whole.json"
    rows: list[dict[str, Any]] = []
    names = QUICK_ESTIMATORS if options.quick else options.estimators
    if written.exists() and not options.quick:  # estimators can be measured again alone
        rows = [
            row for row in json.loads(written.read_text())["rows"] if row["estimator"] not in names
        ]
    for name in names:
        rows += rows_of(name, plan, found, judged)
        content = {
            "rows": rows,
            "images": length(plan.split.train),
            "groups": found.groups.count,
            "queries": length(plan.split.test),
            "seconds_per_retraining": judged.seconds,
            "share": plan.truth.share,
        }
        harness.write(options, content)


if __name__ == "__main__":
    main()
