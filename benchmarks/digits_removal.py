"""Acting on an attribution: do predictions flip, does accuracy follow, when groups are removed?

Brittleness (Ilyas et al. 2022): of right predictions on digits, how many does retraining without
the k groups that help them most turn wrong? The groups are those of DDM, grad-dot, the exact
leave-one-group-out order (8 retrainings each), and random ones.

Removal and keep curves: a tenth of the training labels is flipped; groups are ranked by their mean
effect on one half of the test points, and networks retrained without the worst (or without the
best, or on the best alone) are tested on the other half.

All retrainings have seeds that no score has seen.

    python benchmarks/digits_removal.py [--quick] [--partitions 10 11 12]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import protocol

import ddm_jax as ddm
from ddm_jax import candidates, metrics
from ddm_jax.evaluate import Ready

REMOVED = (1, 2, 4, 8)  # groups, of 50
FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
QUERIES = 100  # of the right predictions
SEEDS = 3
QUICK = (
    "data.train_size=300",
    "data.test_size=200",
    "train.epochs=40",
    "cluster.num_groups=20",
    "distill.steps=100",
    "distill.distance=squared",
    "truth.subsets=6",
    "truth.seeds=2",
    "truth.subset_seeds=2",
)


class Helpfulness(NamedTuple):
    """What each group does for each query, by one method."""

    scores: np.ndarray  # [K, Q], larger = lowers the loss
    offline_seconds: float  # compilation included, here and below
    online_seconds: float


def helpfulness(ready: Ready, seed: int) -> dict[str, Helpfulness]:
    """By every method."""
    data, query = jax.device_put((ready.plan.split.train, ready.plan.split.test))
    online = ready.plan.config.online
    chosen = {"steps": online.steps, "rewind": online.rewind}
    effects = ready.truth.effects()  # [S, K, Q]
    retrained = (effects.shape[1] + 1) * effects.shape[0] * ready.truth.seconds
    found = {"exact order": Helpfulness(-effects.mean(0), 0.0, retrained)}
    for name, estimator in (
        ("DDM", candidates.make_ddm_candidate(ready.plan, chosen)),
        ("grad-dot", candidates.make_grad_dot_candidate(ready.plan, {})),
    ):
        begin = time.perf_counter()
        state = estimator.fit(jax.random.key(seed), ready.target, data, ready.groups)
        jax.block_until_ready(state)
        fitted = time.perf_counter()
        scores = -np.asarray(estimator.score(state, query))
        found[name] = Helpfulness(scores, fitted - begin, time.perf_counter() - fitted)
    scores = np.random.default_rng(seed).standard_normal(effects.shape[1:])
    found["random"] = Helpfulness(scores, 0.0, 0.0)
    return found


def retrain(ready: Ready, masks: np.ndarray, seed: int, output: Any) -> np.ndarray:
    """Mean output over fresh seeds for each mask, `[J, Q]`."""
    estimator = ddm.make_retraining(
        ready.plan.task, ready.plan.trainer.train, seeds=SEEDS, output=output
    )
    key = jax.random.fold_in(jax.random.key(seed), 4242)
    data, query = jax.device_put((ready.plan.split.train, ready.plan.split.test))
    state = estimator.fit(key, ready.target, data, ready.groups)
    assert estimator.outputs is not None
    return np.asarray(estimator.outputs(state, jnp.asarray(masks), query))


def brittleness(ready: Ready, seed: int, queries: int) -> list[dict[str, Any]]:
    """Flip rates for each method and number of groups removed."""
    helpful = helpfulness(ready, seed)
    count = int(ready.groups.max()) + 1
    margin = ready.plan.task.output
    before = retrain(ready, np.ones((1, count)), seed, margin)[0]
    right = np.flatnonzero(before > 0)
    chosen = np.random.default_rng(seed).permutation(right)[:queries]
    rows = []
    for name, method in helpful.items():
        row: dict[str, Any] = {"estimator": name}
        row["offline_seconds"] = method.offline_seconds
        row["online_seconds"] = method.online_seconds
        for k in REMOVED:
            masks = metrics.top_masks(method.scores[:, chosen], k)  # a network a query
            after = retrain(ready, masks, seed, margin)[np.arange(len(chosen)), chosen]
            row[f"flipped_{k}"] = float(metrics.flips(before[chosen], after[None]).rate[0])
        rows.append(row | {"queries": len(chosen)})
        protocol.say(f"  {row}")
    return rows


def curves(ready: Ready, seed: int) -> list[dict[str, Any]]:
    """Test accuracy of networks without a growing part of the data."""
    sizes = np.bincount(ready.groups)
    half = np.random.default_rng(seed).permutation(len(ready.plan.split.test.x))
    ranking, testing = np.array_split(half, 2)
    rows = []
    margin = ready.plan.task.output
    for name, method in helpfulness(ready, seed).items():
        value = method.scores[:, ranking].mean(1)
        row: dict[str, Any] = {"estimator": name}
        masks = {
            "without_worst": metrics.curve_masks(value, sizes, FRACTIONS, "lowest"),
            "without_best": metrics.curve_masks(value, sizes, FRACTIONS, "highest"),
        }
        # Without the worst part f is on the best part 1 - f alone: a keep curve, too.
        for what, chosen in masks.items():
            margins = retrain(ready, chosen, seed, margin)[:, testing]
            accuracy = (margins > 0).mean(1)
            row[what] = [float(value) for value in accuracy]
            row[f"{what}_area"] = metrics.curve_area(FRACTIONS, accuracy)
        rows.append(row)
        protocol.say(f"  {row}")
    return rows


def main() -> None:
    """Run both and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="300 images, 20 groups")
    parser.add_argument("--partitions", type=int, nargs="+", default=[10, 11, 12])
    options = parser.parse_args()
    brittle, curved = [], []
    changes = QUICK if options.quick else ()
    noisy = (*changes, "data.label_noise=0.1")
    for seed in options.partitions[: 1 if options.quick else None]:
        with tempfile.TemporaryDirectory() as folder:
            clean = Path(folder) / "clean" if options.quick else None
            flipped = Path(folder) / "noisy"
            if not options.quick:
                flipped = protocol.WORK / f"digits-noisy-{seed}"
            ready = protocol.prepare("digits", seed, *changes, folder=clean)
            brittle.append(brittleness(ready, seed, 25 if options.quick else QUERIES))
            curved.append(curves(protocol.prepare("digits", seed, *noisy, folder=flipped), seed))
    for row, same in zip(mean := protocol.average(curved), zip(*curved, strict=True), strict=True):
        for what in ("without_worst", "without_best"):
            row[what] = np.mean([each[what] for each in same], 0).tolist()
    content = {
        "settings": {"removed": REMOVED, "fractions": FRACTIONS, "seeds": SEEDS},
        "partitions": options.partitions,
        "brittleness": protocol.average(brittle),
        "curves": mean,
    }
    protocol.write_json("digits_removal", options.quick, content)


if __name__ == "__main__":
    main()
