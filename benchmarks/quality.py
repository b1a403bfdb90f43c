"""Finding bad training data, with the trivial scores beside, and what removing it is worth.

*Detection*: a tenth of the training points is spoilt, and every score ranks all points without
knowing which. Labels flipped to any other class (uniform) or to the class with the nearest mean
image (nearest); images blurred, noisy, or with a grey square over a quarter of them; near copies
of other points, where a copy and its original count as bad.

*Removal*: labels flipped; networks retrained without the most suspect part. *Keep*: nothing
spoilt; networks retrained without the part that a score holds useless. Scores that look at test
points look at one half of them, networks are tested on the other; their seeds are new.

How scores are made was chosen on partitions 1 and 2; others are reported.

    python benchmarks/quality.py --data-dir DIR [--quick] [--partitions 10 11 12]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
import protocol
from harness import say
from scipy.ndimage import gaussian_filter

import ddm_jax as ddm
from ddm_jax import metrics, objectives, values
from ddm_jax.data import Split
from ddm_jax.estimators.points import make_trajectory_influence, spread_points
from ddm_jax.estimators.retraining import retraining_response
from ddm_jax.masks import leave_one_out_masks
from ddm_jax.online import subset_outputs
from ddm_jax.run.plan import Plan
from ddm_jax.types import take

BAD = 0.1
FOLDS = 5
SEEDS = 5  # of each retraining
INSPECT = (0.05, 0.1, 0.2)
LABELS = ("uniform", "nearest")
IMAGES = ("blurred", "noisy", "occluded", "copied")
WITHOUT = (0.0, 0.05, 0.1, 0.2, 0.3)
USELESS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
# Name: preset and changes to it, partitions of those asked for, whether networks are retrained.
CASES: dict[str, tuple[str, tuple[str, ...], int, bool]] = {
    "digits, MLP": ("digits", (), 3, True),
    "MNIST 1,000, MLP": ("mnist", ("data.train_size=1000", "data.test_size=2000"), 3, True),
    "CIFAR-10 4,000, ConvNet": (
        "cifar10-convnet",
        ("data.train_size=4000", "data.test_size=500"),
        1,
        False,
    ),
}
QUICK = (
    "data.train_size=300",
    "data.test_size=200",
    "cluster.num_groups=20",
    "distill.steps=50",
    "train.epochs=20",
    "distill.items=2",
    "distill.distance=squared",
)


class Suspicion(NamedTuple):
    """A score of the training points."""

    values: np.ndarray  # [N], larger = more suspect
    seconds: float  # the training of `run` apart; compilation included


def spoil(split: Split, kind: str, seed: int) -> tuple[ddm.Batch, np.ndarray]:
    """The training data with a tenth of the images spoilt, and which are bad [N].

    Labels were flipped when the data were loaded.
    """
    if kind not in IMAGES:
        return split.train, split.flipped
    draw = np.random.default_rng(seed)
    pixels, labels = split.pixels(split.train.x), split.train.y.copy()
    size, side = len(pixels), pixels.shape[1]
    order = draw.permutation(size)
    some, others = order[: round(BAD * size)], order[round(BAD * size) :]
    bad = np.isin(np.arange(size), some)
    if kind == "blurred":
        pixels[some] = gaussian_filter(pixels[some], (0, side / 14, side / 14, 0))
    elif kind == "noisy":
        pixels[some] += 0.3 * draw.standard_normal(pixels[some].shape)
    elif kind == "occluded":
        half = side // 2
        for point, (top, left) in zip(
            some, draw.integers(0, side - half + 1, (len(some), 2)), strict=True
        ):
            pixels[point, top : top + half, left : left + half] = 0.5
    else:
        source = others[: len(some)]
        pixels[some] = pixels[source] + 0.02 * draw.standard_normal(pixels[source].shape)
        labels[some] = labels[source]
        bad[source] = True
    x = (np.clip(pixels, 0, 1) - split.offset) / split.scale
    return ddm.Batch(x.astype(np.float32), labels), bad


def make_retrained(plan: Plan, output: Any) -> Callable[..., np.ndarray]:
    """Make `(masks [R, N], key, data, query) -> [R, Q]`: networks trained on what a mask keeps."""
    outputs = subset_outputs(retraining_response(plan.trainer.train, output))
    every = ddm.as_groups(np.arange(len(plan.split.train.x)))
    return lambda masks, key, data, query: np.asarray(outputs(masks, key, data, every, query))


def scores(
    plan: Plan, train: ddm.Batch, seed: int, ranking: np.ndarray, kind: str
) -> dict[str, Suspicion]:
    """Every score of the training points; `ranking` are the test points that may be looked at."""
    task, trainer = plan.task, plan.trainer
    data = jax.device_put(train)
    size = len(data.x)
    every = np.arange(size)
    labels = train.y.argmax(1)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 7), 5)
    run = jax.block_until_ready(jax.jit(trainer.train)(keys[0], data, jnp.ones(size)))
    found: dict[str, Suspicion] = {}

    def keep(name: str, work: Callable[[], Any]) -> None:
        begin = time.perf_counter()
        worth = np.asarray(work(), np.float64)  # larger = better, and here it is the reverse
        found[name] = Suspicion(-worth, time.perf_counter() - begin)

    def value(made: values.Values) -> Any:
        return made(keys[1], run, data)

    def confidence() -> np.ndarray:
        folds = ddm.make_groups(
            "random", features=train.x, labels=labels, num_groups=FOLDS, seed=seed
        ).ids
        masks = folds != np.arange(FOLDS)[:, None]
        probability = objectives.explain(task, "probability").output
        each = make_retrained(plan, probability)(masks, keys[1], data, data)
        return each[folds, every]

    def without_own_group() -> np.ndarray:
        masks = leave_one_out_masks(groups.count)[1:]
        assert measured.outputs is not None
        return np.asarray(measured.outputs(state, masks, data))[groups.ids, every]

    def influence() -> np.ndarray:
        influence = jax.jit(make_trajectory_influence(task, batch=plan.config.online.batch))
        query = jax.device_put(take(plan.split.test, ranking))
        some = spread_points(run.checkpoints, 8)
        return np.asarray(influence(some, state.synset, data, query, run.weight_decay))

    keep("training loss", lambda: value(values.training_loss(task)))
    keep("area under the margin", lambda: value(values.training_dynamics(task)))
    keep("self-confidence, 5 folds", confidence)
    keep("complexity gap", lambda: value(values.complexity_gap(task)))
    keep("self-influence", lambda: value(values.self_influence(task)))
    if kind in (*LABELS, "nothing"):
        groups = protocol.cluster(plan, train)
        measured = ddm.make_ddm(task, plan.config.distill, plan.config.online)
        state, fitting = harness.once(measured.fit, keys[2], run, data, groups)
        keep("without its own group, DDM", without_own_group)
        name = "without its own group, DDM"
        found[name] = found[name]._replace(seconds=found[name].seconds + fitting)
        points, took = harness.once(influence)
        found["*harmful*"] = Suspicion(-values.usefulness(points, task.lower_is_better), took)
        found["*least influential*"] = Suspicion(-np.abs(points).mean(1), took)
    keep("*mislabelled*", lambda: values.label_quality(task, trainer.train)(keys[3], run, data))
    keep("*kernel margins*", lambda: value(values.kernel_margins(task)))
    keep("*low quality*", lambda: value(values.typicality(task)))
    keep("*redundant*", lambda: value(values.novelty(task)))
    return found


def halves(plan: Plan, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Test points to rank by, and to test on."""
    order = np.random.default_rng(seed).permutation(len(plan.split.test.x))
    ranking, testing = np.array_split(order, 2)
    return ranking[:500], testing


def curves(
    plan: Plan,
    train: ddm.Batch,
    orders: dict[str, np.ndarray],
    fractions: tuple[float, ...],
    seed: int,
    testing: np.ndarray,
) -> list[dict[str, Any]]:
    """Test accuracy of networks retrained without the first part of each order."""
    size = len(train.x)
    masks = np.ones((len(orders), len(fractions), size), np.float32)
    for place, order in enumerate(orders.values()):
        for row, fraction in enumerate(fractions):
            masks[place, row, order[: round(fraction * size)]] = 0
    data, query = jax.device_put((train, take(plan.split.test, testing)))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 4242), SEEDS)
    outputs = make_retrained(plan, plan.task.output)
    margins = np.array([outputs(masks.reshape(-1, size), key, data, query) for key in keys])
    accuracy = (margins > 0).mean((0, 2)).reshape(masks.shape[:2])
    return [
        {"order": name}
        | {f"without_{part:g}": float(v) for part, v in zip(fractions, row, strict=True)}
        for name, row in zip(orders, accuracy, strict=True)
    ]


def orders(
    found: dict[str, Suspicion], kind: str, bad: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """In which order each method removes points."""
    draw = np.random.default_rng(seed)
    random = draw.permutation(len(bad))
    order = {"random": random}
    if kind in LABELS:
        order["the flipped ones"] = random[np.argsort(~bad[random], kind="stable")]
        names = {
            name: found[name].values
            for name in (
                "training loss",
                "self-confidence, 5 folds",
                "complexity gap",
                "*mislabelled*",
                "*harmful*",
            )
        }
    else:
        names = {
            "lowest training loss": -found["training loss"].values,
            "highest training loss": found["training loss"].values,
            "lowest self-influence": -found["self-influence"].values,
            "*redundant*": found["*redundant*"].values,
            "*least influential*": found["*least influential*"].values,
            "*harmful*": found["*harmful*"].values,
        }
    return order | {name: np.argsort(-v, kind="stable") for name, v in names.items()}


def case_rows(
    name: str, seed: int, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Detection of every kind, and the curves."""
    preset, changes, _, retrain = CASES[name]
    detected, curved = [], []
    kinds = (*LABELS, *IMAGES, *(("nothing",) if retrain else ()))
    if options.quick:
        kinds = ("nearest", "nothing")
    for kind in kinds:
        assignments = [*changes, *(QUICK if options.quick else ())]
        if kind in LABELS:
            assignments += [f"data.label_noise={BAD}", f"data.noise_kind={kind}"]
        plan = protocol.plan_of(options, preset, seed, *assignments)
        train, bad = spoil(plan.split, kind, seed)
        ranking, testing = halves(plan, seed)
        found = scores(plan, train, seed, ranking, kind)
        for score, suspicion in found.items():
            if kind == "nothing":
                break
            told = metrics.detection(suspicion.values, bad, INSPECT)
            row: dict[str, Any] = {"case": name, "kind": kind, "score": score}
            row |= {"auc": told.auc, "average_precision": told.average_precision}
            for part, share in zip(INSPECT, told.found, strict=True):
                row[f"found_{part:g}"] = float(share)
            row["seconds"] = suspicion.seconds
            detected.append(row)
            say(
                f"{name}, {seed}, {kind}: {score}: AUC {told.auc:.3f}, average precision "
                f"{told.average_precision:.3f}, {suspicion.seconds:.1f} s"
            )
        if retrain and (kind in LABELS or kind == "nothing"):
            fractions = WITHOUT if kind in LABELS else USELESS
            for row in curves(
                plan, train, orders(found, kind, bad, seed), fractions, seed, testing
            ):
                curved.append({"case": name, "kind": kind} | row)
                told = ", ".join(f"{row[f'without_{part:g}']:.3f}" for part in fractions)
                say(f"  {row['order']}: {told}")
    return detected, curved


def main() -> None:
    """Run every case and write the results."""
    options = harness.arguments(__doc__, quick="300 digits", data=True)
    detection, removal = [], []
    for name, (_, _, most, _) in list(CASES.items())[: 1 if options.quick else None]:
        seeds = options.partitions[:most]
        each = [case_rows(name, seed, options) for seed in seeds]
        for found, kept in ((detection, 0), (removal, 1)):
            rows = harness.average([part[kept] for part in each])
            found += [row | {"partitions": seeds} for row in rows]
        content = {
            "settings": {"bad": BAD, "seeds": SEEDS, "without": WITHOUT, "useless": USELESS},
            "detection": detection,
            "curves": removal,
        }
        harness.write(options, content)


if __name__ == "__main__":
    main()
