"""Forgetting groups with the synset alone, against exact retraining and what is usually tried.

Each case forgets a whole class or a random 5 % of the groups. Retrained networks: SEEDS, with keys
of their own. Unlearned ones: the same number of networks of other keys, with the synset of the
first, and, for random groups, an amount calibrated on CHECKED other groups that were retrained
without. `within` counts the accuracies (forgotten, kept, test) whose mean is within one standard
deviation over retrained seeds of theirs; for retraining itself, one half of its seeds against the
other. Rivals: fine-tuning on the real kept data, for as many example gradients as a tenth of
retraining; gradient ascent on the real forgotten data; for a class the trivial answer, the trained
network whose output for it is switched off.

    python benchmarks/unlearning.py --data-dir DIR [--quick] [--partitions 10 11]
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import protocol
from harness import say

import ddm_jax as ddm
from ddm_jax import metrics, objectives, unlearn
from ddm_jax.compute.placement import in_batches
from ddm_jax.judge.problem import trainer_of
from ddm_jax.online import trajectory_point
from ddm_jax.rates import stable_rate
from ddm_jax.run.plan import Plan
from ddm_jax.types import Groups, TrainRun, take

SEEDS = 8
CHECKED = 8  # groups that no case forgets, retrained without to know how far to go
MOMENTUM = 0.9
# Preset, changes, items, steps, items of each group a step, rewind: chosen on partitions 1 to 3,
# MNIST 1.
# How a class goes (`unlearn.CAREFUL`, `unlearn.FIRST`): on these and MNIST 2.
CASES: dict[str, tuple[str, tuple[str, ...], int, int, int, float]] = {
    "digits": ("digits", (), 10, 60, 5, 0.9),
    "MNIST 60,000": (
        "mnist",
        ("data.train_size=60000", "data.test_size=10000", "cluster.num_groups=100"),
        5,
        50,
        1,
        0.0,
    ),
}
QUICK = (
    "data.train_size=300",
    "data.test_size=200",
    "cluster.num_groups=20",
    "train.epochs=20",
    "distill.distance=squared",
)


def accuracies(
    task: ddm.Task, split: Any, networks: Any, forgotten: np.ndarray
) -> dict[str, np.ndarray]:
    """The four measures for each network, and the margins of the forgotten points."""
    losses, margins = in_batches(task.loss), in_batches(task.output)
    found: list[metrics.Unlearned] = []
    forgotten_margins = []
    train, test = jax.device_put((split.train, split.test))
    count = jax.tree.leaves(networks)[0].shape[0]
    for index in range(count):
        params = take(networks, index)
        own, other = np.asarray(margins(params, train)), np.asarray(margins(params, test))
        found.append(
            metrics.unlearned(
                np.asarray(losses(params, train)),
                own > 0,
                forgotten,
                np.asarray(losses(params, test)),
                other > 0,
            )
        )
        forgotten_margins.append(own[forgotten])
    told = {name: np.array([getattr(f, name) for f in found]) for name in found[0]._fields}
    return told | {"margins": np.array(forgotten_margins)}


def without_output(task: ddm.Task, label: int) -> ddm.Task:
    """The trivial answer to forgetting a class: never name it."""

    def apply(params: Any, x: Any) -> Any:
        return task.apply(params, x).at[:, label].set(-1e4)

    return task._replace(apply=apply, loss=objectives.loss(apply), output=objectives.margin(apply))


def judged(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, Any]:
    """A row's measures, for the networks found beside those retrained (`truth` itself: halves)."""
    row: dict[str, Any] = {}
    within, half = 0, len(truth["margins"]) // 2
    for measure in ("forgotten", "kept", "test", "membership"):
        row[measure] = float(found[measure].mean())
        row[f"{measure}_deviation"] = float(found[measure].std(ddof=1))
        if measure != "membership":
            distance = abs(found[measure].mean() - truth[measure].mean())
            if found is truth:  # with other keys, as far as half of them can tell
                distance = abs(truth[measure][:half].mean() - truth[measure][half:].mean())
            within += bool(distance <= max(truth[measure].std(ddof=1), 1e-9))
    row["within"] = within
    row["klom"] = float(
        metrics.klom(found["margins"][:half], truth["margins"][half : 2 * half]).mean()
    )
    row["margin"] = float(found["margins"].mean())
    return row


def calibrate(
    plan: Plan,
    runs: list[TrainRun],
    keys: Any,
    groups: Groups,
    checked: np.ndarray,
    moved: list[Any],
) -> float:
    """The amount, from retraining without each of some groups with the keys of two runs."""
    data, query = protocol.placed(plan)
    train, outputs = jax.jit(plan.trainer.train), in_batches(plan.task.output)
    retrained = []
    for key, full in list(zip(keys, runs, strict=False))[:2]:
        without = [train(key, data, jnp.asarray(1.0 * (groups.ids != k))).params for k in checked]
        retrained.append([outputs(w, query) - outputs(full.params, query) for w in without])
    return unlearn.calibrated_amount(plan.task, runs[0].params, moved, query, np.asarray(retrained))


def case_rows(name: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every removal by every method."""
    preset, changes, items, steps, each, rewind = CASES[name]
    quick = QUICK if options.quick else ()
    plan = protocol.plan_of(options, preset, seed, *changes, *quick)
    chosen = plan.config
    data, _ = protocol.placed(plan)
    size = len(data.x)
    labels = plan.split.train.y.argmax(1)
    seeds = 3 if options.quick else SEEDS
    train = jax.jit(plan.trainer.train)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 11), 2 * seeds)
    runs, took = harness.once(lambda: [train(key, data, jnp.ones(size)) for key in keys[:seeds]])
    say(f"{name}, partition {seed}: {took / seeds:.1f} s each")
    groups = protocol.cluster(plan)
    count = groups.count
    batch = each * count
    distil_steps = 200 if options.quick else min(chosen.distill.steps, 300)
    distill = dataclasses.replace(chosen.distill, items=items, steps=distil_steps)
    made = ddm.make_ddm(plan.task, distill)
    state, offline = harness.once(made.fit, keys[-1], runs[0], data, groups)
    synset = state.synset
    decay = chosen.train.weight_decay

    @jax.jit
    def stable(params: Any, synset: Any) -> Any:
        return stable_rate(
            plan.task,
            params,
            synset,
            momentum=MOMENTUM,
            weight_decay=decay,
            batch=batch,
        )

    def updates(rate: Any) -> dict[str, Any]:
        return {
            "steps": steps,
            "optimizer": optax.sgd(rate, MOMENTUM, nesterov=True),
            "weight_decay": decay,
            "batch": batch,
        }

    @jax.jit
    def forget(params: Any, start: Any, rate: Any, synset: Any, keep: Any, amount: Any) -> Any:
        moved = unlearn.make_forget(plan.task, **updates(rate))(params, start, synset, keep)
        return unlearn.along(params, moved, amount)

    short = trainer_of(plan.truth, max(chosen.train.epochs // 10, 1))

    @jax.jit
    def real_finetune(key: Any, params: Any, data: Any, weights: Any) -> Any:
        start = short.start(key)._replace(params=params)
        rows = short.batches(key, size)
        return short.advance(start, rows, data, weights)[0].params

    @jax.jit
    def ascend(params: Any, data: Any, weights: Any) -> Any:
        def step(params: Any, _: Any) -> tuple[Any, None]:
            slope = jax.grad(lambda p: weights @ plan.task.loss(p, data) / weights.sum())(params)
            return jax.tree.map(lambda p, g: p + 0.05 * g, params, slope), None

        return jax.lax.scan(step, params, length=10)[0]

    rng = np.random.default_rng(seed)
    own = np.array([np.bincount(labels[groups.ids == k]).argmax() for k in range(count)])
    gone = {f"class {c}": own == c for c in rng.permutation(int(own.max()) + 1)[:2]}
    part = max(round(0.05 * count), 1)
    for index in range(3):
        gone[f"5 % of the groups, draw {index}"] = np.isin(
            np.arange(count), rng.permutation(count)[:part]
        )
    if options.quick:
        gone = dict(list(gone.items())[1:3])
    left = np.setdiff1d(
        np.arange(count), [k for out in list(gone.values())[-3:] for k in np.flatnonzero(out)]
    )
    checked = rng.permutation(left)[: 3 if options.quick else CHECKED]
    start = trajectory_point(runs[0].checkpoints, rewind)
    own_rate = stable(start, synset)
    moved = [
        forget(runs[0].params, start, own_rate, synset, jnp.ones(count).at[k].set(0), 1.0)
        for k in checked
    ]
    calibrated = calibrate(plan, runs, keys, groups, checked, moved)
    say(f"  amount {calibrated:.2f}")
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    rows = []
    for what, out in gone.items():
        forgotten = out[groups.ids]
        weights = jnp.asarray(1.0 - forgotten)
        retrained, took = harness.once(
            lambda weights=weights: [train(key, data, weights).params for key in keys[seeds:]]
        )
        retraining = took / seeds
        truth = accuracies(plan.task, plan.split, stack(retrained), forgotten)
        keep = jnp.asarray(1.0 - out)
        careful, back = unlearn.where_to_start(synset, keep, 1.0, rewind)
        starts = [trajectory_point(run.checkpoints, back) for run in runs]
        rate = careful * stable(starts[0], synset)
        amount = calibrated if careful == 1.0 else 1.0  # a class goes by the update itself
        _, seconds = harness.timed(forget, runs[0].params, starts[0], rate, synset, keep, amount)
        _, real_seconds = harness.timed(real_finetune, keys[0], runs[0].params, data, weights)
        several = {
            "retraining": (None, retraining),
            "synset": (
                stack(
                    [
                        forget(r.params, s, rate, synset, keep, amount)
                        for r, s in zip(runs, starts, strict=True)
                    ]
                ),
                seconds,
            ),
            "real kept data, a tenth": (
                stack(
                    [
                        real_finetune(k, r.params, data, weights)
                        for k, r in zip(keys[:seeds], runs, strict=True)
                    ]
                ),
                real_seconds,
            ),
            "gradient ascent": (
                stack([ascend(r.params, data, jnp.asarray(1.0 * forgotten)) for r in runs]),
                None,
            ),
            "nothing": (stack([run.params for run in runs]), None),
        }
        if what.startswith("class"):
            several["output switched off"] = several["nothing"]
        for method, (networks, took) in several.items():
            task = plan.task
            if method == "output switched off":
                task = without_output(task, int(own[out][0]))
            found = truth
            if networks is not None:
                found = accuracies(task, plan.split, networks, forgotten)
            row = {"case": name, "gone": what, "method": method} | judged(found, truth)
            row["amount"] = calibrated if method == "synset" else None
            row["seconds"] = took
            if took is not None:
                row["share_of_retraining"] = took / retraining
            row["offline_seconds"] = offline if method == "synset" else None
            rows.append(row)
            say(harness.told(row))
    return rows


def main() -> None:
    """Run every case and write the results."""
    options = harness.arguments(
        __doc__,
        quick="300 digits",
        partitions=(10, 11),
        data=True,
        cases={"nargs": "+", "default": list(CASES), "choices": list(CASES)},
    )
    rows = []
    for name in options.cases[: 1 if options.quick else None]:
        for seed in options.partitions:
            rows += [row | {"partition": seed} for row in case_rows(name, seed, options)]
            harness.write(options, {"settings": {"seeds": SEEDS, "cases": CASES}, "rows": rows})


if __name__ == "__main__":
    main()
