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

from typing import Any, NamedTuple

import harness
import jax
import numpy as np
import protocol
from harness import say

from ddm_jax import metrics
from ddm_jax.estimators import make_retraining
from ddm_jax.judge.candidates import CANDIDATES
from ddm_jax.masks import curve_masks, top_masks
from ddm_jax.run.evaluate import Ready

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
    data, query = protocol.placed(ready)
    effects = ready.truth.effects()  # [S, K, Q]
    retrained = (effects.shape[1] + 1) * effects.shape[0] * ready.truth.seconds
    found = {"exact order": Helpfulness(-effects.mean(0), 0.0, retrained)}
    for name, candidate in (("DDM", "ddm"), ("grad-dot", "grad_dot")):
        estimator = CANDIDATES[candidate].make(ready.plan.truth, {})
        key = jax.random.key(seed)
        state, offline = harness.once(estimator.fit, key, ready.target, data, ready.groups)
        scores, online = harness.once(estimator.score, state, query)
        found[name] = Helpfulness(-np.asarray(scores), offline, online)
    scores = np.random.default_rng(seed).standard_normal(effects.shape[1:])
    found["random"] = Helpfulness(scores, 0.0, 0.0)
    return found


def retrain(ready: Ready, masks: np.ndarray, seed: int) -> np.ndarray:
    """Mean margin over fresh seeds for each mask, `[J, Q]`."""
    estimator = make_retraining(ready.plan.task, ready.plan.trainer.train, seeds=SEEDS)
    key = jax.random.fold_in(jax.random.key(seed), 4242)
    data, query = protocol.placed(ready)
    state = estimator.fit(key, ready.target, data, ready.groups)
    assert estimator.outputs is not None
    return np.asarray(estimator.outputs(state, masks, query))


def brittleness(ready: Ready, seed: int, queries: int) -> list[dict[str, Any]]:
    """Flip rates for each method and number of groups removed."""
    helpful = helpfulness(ready, seed)
    before = retrain(ready, np.ones((1, ready.groups.count)), seed)[0]
    right = np.flatnonzero(before > 0)
    chosen = np.random.default_rng(seed).permutation(right)[:queries]
    rows = []
    for name, method in helpful.items():
        row: dict[str, Any] = {"estimator": name}
        row["offline_seconds"] = method.offline_seconds
        row["online_seconds"] = method.online_seconds
        for k in REMOVED:
            masks = top_masks(method.scores[:, chosen], k)  # a network a query
            after = retrain(ready, masks, seed)[np.arange(len(chosen)), chosen]
            row[f"flipped_{k}"] = float(metrics.flips(before[chosen], after[None]).rate[0])
        rows.append(row | {"queries": len(chosen)})
        say(f"  {row}")
    return rows


def curves(ready: Ready, seed: int) -> list[dict[str, Any]]:
    """Test accuracy of networks without a growing part of the data."""
    sizes = ready.groups.sizes()
    half = np.random.default_rng(seed).permutation(len(ready.plan.split.test.x))
    ranking, testing = np.array_split(half, 2)
    rows = []
    for name, method in helpfulness(ready, seed).items():
        value = method.scores[:, ranking].mean(1)
        row: dict[str, Any] = {"estimator": name}
        masks = {
            "without_worst": curve_masks(value, sizes, FRACTIONS, "lowest"),
            "without_best": curve_masks(value, sizes, FRACTIONS, "highest"),
        }
        # Without the worst part f is on the best part 1 - f alone: a keep curve, too.
        for what, chosen in masks.items():
            margins = retrain(ready, chosen, seed)[:, testing]
            accuracy = (margins > 0).mean(1)
            row[what] = [float(value) for value in accuracy]
            row[f"{what}_area"] = metrics.curve_area(FRACTIONS, accuracy)
        rows.append(row)
        say(f"  {row}")
    return rows


def main() -> None:
    """Run both and write the results."""
    options = harness.arguments(__doc__, quick="300 images, 20 groups")
    brittle, curved = [], []
    changes = QUICK if options.quick else ()
    noisy = (*changes, "data.label_noise=0.1")
    for seed in options.partitions:
        ready = protocol.prepare(options, "digits", seed, *changes)
        brittle.append(brittleness(ready, seed, 25 if options.quick else QUERIES))
        ready = protocol.prepare(options, "digits", seed, *noisy, name="digits-noisy")
        curved.append(curves(ready, seed))
    for row, same in zip(mean := harness.average(curved), zip(*curved, strict=True), strict=True):
        for what in ("without_worst", "without_best"):
            row[what] = np.mean([each[what] for each in same], 0).tolist()
    content = {
        "settings": {"removed": REMOVED, "fractions": FRACTIONS, "seeds": SEEDS},
        "brittleness": harness.average(brittle),
        "curves": mean,
    }
    harness.write(options, content)


if __name__ == "__main__":
    main()
