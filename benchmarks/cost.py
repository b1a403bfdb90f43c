"""DDM against exact retraining: what each costs at the agreement it reaches, over N and K.

MNIST, MLP 784-128-64-10 of the preset "mnist" (20 epochs), class-wise k-means. The truth is the
mean test loss of two seeds after exact retraining on 12 random halves of the groups; agreement is
the LDS against it. The rivals are one more exact retraining a half, and retraining cut short to
1, 2, 5 or 10 epochs (its schedule compressed): the cheapest of them that agrees at least as well
as DDM is what a user would pick instead. No setting is chosen here: DDM has the preset's online
settings, 50 steps, M = 5 (M = 1 for K = 1,000) and 1,000 distillation steps. Seconds are of one
core, without compilation, for one counterfactual; the totals are for leaving out each group.

    python benchmarks/cost.py --data-dir DIR [--quick] [--partition 10]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import protocol

import ddm_jax as ddm
from ddm_jax import config, pipeline
from ddm_jax.estimators.retraining import retrained_outputs
from ddm_jax.plan import make_plan
from ddm_jax.workdir import Progress

SIZES = ((1000, 10), (1000, 100), (5000, 10), (5000, 100), (5000, 1000))
SIZES += ((20_000, 100), (20_000, 1000), (60_000, 100))
SHORT = (1, 2, 5, 10)  # epochs
HALVES = 12
SEEDS = 2
AT_ONCE = 4  # networks a call
ONLINE_STEPS = 50


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Result, and seconds of a second call, or of the first where it is long."""
    begin = time.perf_counter()
    result = jax.block_until_ready(run())
    first = time.perf_counter() - begin
    if first > 100:
        return result, first
    begin = time.perf_counter()
    jax.block_until_ready(run())
    return result, time.perf_counter() - begin


def measure(chosen: config.Config, workdir: Any) -> dict[str, Any]:
    """One N and K."""
    plan = make_plan(chosen)
    silent = Progress(lambda text: None, lambda what, total: lambda done, note: None)
    target = pipeline.target_stage(plan, workdir, silent)
    groups = pipeline.groups_stage(plan, workdir, silent, target)
    count = int(groups.max()) + 1
    train, query = plan.split.train, jax.device_put(plan.split.test)
    data = jax.device_put(train)
    key = jax.random.key(chosen.seed + 1000)
    masks = np.asarray(ddm.random_masks(key, HALVES, count))
    loss = ddm.objectives.make_objective("loss", plan.task.apply)

    def retrain(epochs: int, seeds: list[int]) -> tuple[np.ndarray, float]:
        """Outputs [seeds, R, Q] and seconds a network."""
        schedule = config.override(chosen, [f"train.epochs={epochs}", "train.checkpoint_every=1"])
        settings = schedule.train
        steps = epochs * (len(train.x) // settings.batch_size)
        run = ddm.make_train(
            plan.task,
            steps=steps,
            batch_size=settings.batch_size,
            learning_rate=ddm.cosine_schedule(
                settings.learning_rate, steps, settings.final_learning_rate
            ),
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        outputs = retrained_outputs(ddm.retraining_response(run, loss))
        keys = jnp.stack([jax.random.fold_in(key, 100 + seed) for seed in seeds])
        every_mask = np.tile(masks, (len(seeds), 1))
        every_key = jnp.repeat(keys, HALVES)
        arguments = (data, jnp.asarray(groups), query)
        found, taken = [], []
        for first in range(0, len(every_mask), AT_ONCE):  # the first call compiles
            some = slice(first, first + AT_ONCE)
            begin = time.perf_counter()
            found.append(np.asarray(outputs(every_mask[some], every_key[some], *arguments)))
            taken.append(time.perf_counter() - begin)
        return np.concatenate(found).reshape(len(seeds), HALVES, -1), min(taken[1:]) / AT_ONCE

    truth_runs, retraining_seconds = retrain(chosen.train.epochs, list(range(SEEDS + 1)))
    truth = truth_runs[:SEEDS].mean(0)

    def agreement(outputs: np.ndarray) -> float:
        return ddm.metrics.linear_datamodeling_score(outputs, truth).mean

    short = []
    for epochs in SHORT:
        outputs, seconds = retrain(epochs, [SEEDS])
        short.append({"epochs": epochs, "lds": agreement(outputs[0]), "seconds": seconds})

    items = 1 if count >= 1000 else min(20, len(train.x) // count)
    taken = min(items, chosen.online.step_items)
    estimator = ddm.make_ddm(
        plan.task,
        items=items,
        distill_steps=chosen.distill.steps,
        distill_rate=chosen.distill.learning_rate,
        steps=ONLINE_STEPS,
        step_items=taken,
        momentum=chosen.online.momentum,
        weight_decay=chosen.train.weight_decay,
        output=loss,
    )
    state, offline = timed(lambda: estimator.fit(jax.random.key(0), target, data, groups))
    assert estimator.outputs is not None
    predicted, online = timed(lambda: estimator.outputs(state, masks, query))  # type: ignore[misc]
    online /= HALVES
    found = agreement(np.asarray(predicted))
    full = {
        "epochs": chosen.train.epochs,
        "lds": agreement(truth_runs[SEEDS]),
        "seconds": retraining_seconds,
    }
    as_good = [row for row in (*short, full) if row["lds"] >= found]
    rival = min(as_good, key=lambda row: row["seconds"]) if as_good else full
    updates = count + 1
    row = {
        "points": len(train.x),
        "groups": count,
        "items": items,
        "lds": found,
        "offline_seconds": offline,
        "online_seconds": online,
        "step_items": taken,
        "example_gradients": ONLINE_STEPS * taken * count,
        "retraining_example_gradients": int(target.rows.size),
        "retraining": full,
        "short": short,
        "rival": rival,
        "online_ratio": retraining_seconds / online,
        "online_ratio_rival": rival["seconds"] / online,
        "total_ratio": retraining_seconds * updates / (offline + online * updates),
        "total_ratio_rival": rival["seconds"] * updates / (offline + online * updates),
    }
    protocol.say(f"  {row}")
    return row


def main() -> None:
    """Measure every N and K and write results/cost.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="where TFDS keeps prepared data")
    parser.add_argument("--quick", action="store_true", help="200 images, 10 groups")
    parser.add_argument("--partition", type=int, default=10)
    options = parser.parse_args()
    place = [f"data.data_dir={options.data_dir}"] if options.data_dir else []
    # A second call of the offline stage finds its programs compiled.
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    rows = []
    for points, groups in [(200, 10)] if options.quick else SIZES:
        changes = [f"seed={options.partition}", f"data.train_size={points}"]
        changes += [f"cluster.num_groups={groups}", "distill.steps=1000", *place]
        if options.quick:
            changes += ["train.epochs=10", "data.test_size=50", "distill.steps=20"]
        with tempfile.TemporaryDirectory() as folder:
            chosen = config.override(config.preset("mnist"), changes)
            rows.append(measure(chosen, Path(folder)))
        content = {"partition": options.partition, "halves": HALVES, "seeds": SEEDS, "rows": rows}
        protocol.write_json("cost", options.quick, content)


if __name__ == "__main__":
    main()
