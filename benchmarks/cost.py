"""DDM against exact retraining: what each costs at the agreement it reaches, over N and K.

MNIST, MLP 784-128-64-10 of the preset "mnist" (20 epochs), class-wise k-means. The truth is the
mean test loss of two seeds after exact retraining on 12 random halves of the groups; agreement is
the LDS against it. The rivals are one more exact retraining a half, and retraining cut short to
1, 2, 5 or 10 epochs (its schedule compressed): the cheapest of them that agrees at least as well
as DDM is what a user would pick instead. No setting is chosen here: DDM has the momentum that
`protocol.py` has for the preset, 50 steps, M = 20 or what a group has (M = 1 for K = 1,000),
batches of 5 K items (or all) and 1,000 distillation steps. Seconds are of one core, without
compilation, for one counterfactual; the totals are for leaving out each group.

    python benchmarks/cost.py --data-dir DIR [--quick] [--partitions 10]
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import protocol

import ddm_jax as ddm
from ddm_jax import metrics
from ddm_jax.estimators.retraining import retrained_outputs, retraining_response
from ddm_jax.judge.problem import trainer_of
from ddm_jax.masks import random_masks

SIZES = ((1000, 10), (1000, 100), (5000, 10), (5000, 100), (5000, 1000))
SIZES += ((20_000, 100), (20_000, 1000), (60_000, 100))
SHORT = (1, 2, 5, 10)  # epochs
HALVES = 12
SEEDS = 2
AT_ONCE = 4  # networks a call
ONLINE_STEPS = 50
LONG = 100.0  # seconds of a stage that is not run twice


def measure(options: argparse.Namespace, seed: int, *changes: str) -> dict[str, Any]:
    """One N and K."""
    plan = protocol.plan_of(options, "mnist", seed, *changes)
    problem, chosen = plan.truth, plan.config
    data, query = protocol.placed(plan)
    size = len(data.x)
    target = jax.jit(plan.trainer.train)(jax.random.key(seed), data, jnp.ones(size))
    groups = protocol.cluster(plan)
    key = jax.random.key(seed + 1000)
    masks = np.asarray(random_masks(key, HALVES, groups.count))

    def retrain(epochs: int, seeds: list[int]) -> tuple[np.ndarray, float]:
        """Outputs [seeds, R, Q] and seconds a network."""
        train = trainer_of(problem, epochs).train
        outputs = retrained_outputs(retraining_response(train, problem.task.output))
        keys = jnp.stack([jax.random.fold_in(key, 100 + each) for each in seeds])
        every_mask = np.tile(masks, (len(seeds), 1))
        every_key = jnp.repeat(keys, HALVES)
        found, taken = [], []
        for first in range(0, len(every_mask), AT_ONCE):  # the first call compiles
            some = slice(first, first + AT_ONCE)
            begin = time.perf_counter()
            found.append(
                np.asarray(outputs(every_mask[some], every_key[some], data, groups, query))
            )
            taken.append(time.perf_counter() - begin)
        return np.concatenate(found).reshape(len(seeds), HALVES, -1), min(taken[1:]) / AT_ONCE

    epochs = problem.train.epochs
    truth_runs, retraining_seconds = retrain(epochs, list(range(SEEDS + 1)))
    truth = truth_runs[:SEEDS].mean(0)

    def agreement(outputs: Any) -> float:
        return metrics.linear_datamodeling_score(np.asarray(outputs), truth).mean

    short = []
    for few in SHORT:
        outputs, seconds = retrain(few, [SEEDS])
        short.append({"epochs": few, "lds": agreement(outputs[0]), "seconds": seconds})

    items = 1 if groups.count >= 1000 else min(20, size // groups.count)
    batch = min(protocol.STEP_ITEMS, items) * groups.count
    estimator = ddm.make_ddm(
        problem.task,
        dataclasses.replace(chosen.distill, items=items),
        dataclasses.replace(problem.update, steps=ONLINE_STEPS, batch=batch),
    )
    fitting = (estimator.fit, jax.random.key(0), target, data, groups)
    state, offline = harness.timed(*fitting, long=LONG)
    assert estimator.outputs is not None
    predicted, online = harness.timed(estimator.outputs, state, masks, query, long=LONG)
    online /= HALVES
    full = {"epochs": epochs, "lds": agreement(truth_runs[SEEDS]), "seconds": retraining_seconds}
    found = agreement(predicted)
    as_good = [row for row in (*short, full) if row["lds"] >= found]
    rival = min(as_good, key=lambda row: row["seconds"]) if as_good else full
    updates = groups.count + 1
    row = {
        "points": size,
        "groups": groups.count,
        "items": items,
        "lds": found,
        "offline_seconds": offline,
        "online_seconds": online,
        "batch": batch,
        "example_gradients": ONLINE_STEPS * batch,
        "retraining_example_gradients": int(target.rows.size),
        "retraining": full,
        "short": short,
        "rival": rival,
        "online_ratio": retraining_seconds / online,
        "online_ratio_rival": rival["seconds"] / online,
        "total_ratio": retraining_seconds * updates / (offline + online * updates),
        "total_ratio_rival": rival["seconds"] * updates / (offline + online * updates),
    }
    harness.say(f"  {row}")
    return row


def main() -> None:
    """Measure every N and K and write results/cost.json."""
    options = harness.arguments(__doc__, quick="200 images, 10 groups", partitions=(10,), data=True)
    # A second call of the offline stage finds its programs compiled.
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    (seed,) = options.partitions
    rows = []
    for points, count in [(200, 10)] if options.quick else SIZES:
        changes = [f"data.train_size={points}", f"cluster.num_groups={count}"]
        changes += ["distill.steps=1000"]
        if options.quick:
            changes += ["train.epochs=10", "data.test_size=50", "distill.steps=20"]
        rows.append(measure(options, seed, *changes))
        content = {"partition": seed, "halves": HALVES, "seeds": SEEDS, "rows": rows}
        harness.write(options, content)


if __name__ == "__main__":
    main()
