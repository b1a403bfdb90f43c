"""What a run will take before it begins: networks, seconds, memory and disk.

One training step is compiled and timed; everything else follows from counts, in example gradients,
and from how long that took to compile. It is an estimate: within a factor of two of what the
presets took on a CPU, compilation included.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax import recipes, tuning
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.memory import bytes_of, device_memory
from ddm_jax.judge.flops import count_flops
from ddm_jax.judge.rivals import EPOCHS
from ddm_jax.matching import PRECISIONS, trajectory_indices
from ddm_jax.rates import products_of_rate
from ddm_jax.run.plan import Plan, count_groups
from ddm_jax.synset import SKETCH_POINTS
from ddm_jax.types import length

LONG = 600.0  # seconds above which a run says beforehand what it will take
SLOW = 1e10  # operations a second of a slow machine: what is short at that is not timed
SHORTEST = 1e-4  # seconds of a step, however small
REPORT = 2**20  # bytes of the report and its figures
TIMED_STEPS = 5
# Example gradients of one step on one item of a synset: a gradient of a gradient.
MATCHING_COST = 5.0
SKETCH_COST = 2.0  # of one example's own gradient, beside its part in a batch's
# Seconds of each stage where a training step compiles in COMPILED, as that of a small MLP does.
COMPILED = 1.0
COMPILING = {"target": 3.0, "synset": 8.0, "tuning": 20.0, "attribution": 4.0, "check": 6.0}


class Estimate(NamedTuple):
    """What the stages of a run will take, about."""

    networks: dict[str, int]  # to train, by stage
    seconds: dict[str, float]  # by stage
    memory: int  # bytes of arrays at once, at most
    disk: int  # bytes


def networks_of(plan: Plan) -> dict[str, int]:
    """How many networks the stages of a run train."""
    check, tune = plan.config.check, plan.config.tune
    groups = min(check.groups, count_groups(plan))
    return {
        "target": 1,
        "tuning": tune.subsets * tune.seeds,
        "check": check.seeds * (1 + groups + check.subsets),
    }


def is_long(plan: Plan) -> bool:
    """Whether a run may be long, by the operations of its trainings alone; traces only."""
    trainer, train = plan.trainer, plan.split.train
    rows = jax.eval_shape(lambda key: trainer.batches(key, length(train)), jax.random.key(0))
    state = jax.eval_shape(trainer.start, jax.random.key(0))
    weights = jax.ShapeDtypeStruct((length(train),), jnp.float32)
    step = jax.ShapeDtypeStruct((1, *rows.shape[1:]), rows.dtype)
    operations = count_flops(trainer.advance, state, step, train, weights) or np.inf
    a_step = max(operations / SLOW, SHORTEST)
    return sum(networks_of(plan).values()) * rows.shape[0] * a_step > LONG


def estimate(plan: Plan) -> Estimate:
    """Time a training step, and count.

    Networks that are trained or updated side by side share the devices; a device of a CPU is a
    core.
    """
    config, trainer, train = plan.config, plan.trainer, plan.split.train
    points, groups = length(train), count_groups(plan)
    rows = jax.jit(trainer.batches, static_argnums=1)(jax.random.key(0), points)
    steps, batch = rows.shape
    a_step, compiling = _seconds_a_step(plan, rows)
    slower = max(compiling / COMPILED, 1.0)
    example, training = a_step / batch, a_step * steps
    side_by_side = training / jax.device_count()  # where there are many networks
    matched, _ = trajectory_indices(len(trainer.checkpoint_steps), config.distill.part)
    items = groups * config.distill.items
    networks = networks_of(plan)
    sketched = SKETCH_POINTS * SKETCH_COST + len(matched)
    matching = config.distill.steps * config.distill.points_per_step * items * MATCHING_COST
    share = _share(plan, steps * batch, items)
    answers = {
        "tuning": _answers_of_tuning(plan, share, steps * batch) if plan.tune else 0.0,
        "attribution": share * (1 + groups),
        "check": share * (1 + config.check.subsets),
    }
    if plan.tune is not None:
        pools = (items, points) if "data" in config.tune.pools else (items,)
        answers["tuning"] += sum(_rates(plan, each) for each in pools) / (steps * batch)
    seconds = {
        "target": training,
        "synset": example * (points * sketched + matching / jax.device_count()),
        **{
            stage: side_by_side * (networks.get(stage, 0) + answers[stage])
            for stage in ("tuning", "attribution", "check")
        },
    }
    params = jax.eval_shape(plan.task.init, jax.random.key(0))
    size, count = bytes_of(params), sum(leaf.size for leaf in jax.tree.leaves(params))
    trajectory = len(trainer.checkpoint_steps) * size
    data = bytes_of((plan.split.train, plan.split.test))
    gradients = PRECISIONS[config.distill.precision] * len(matched) * groups * count
    synset = items * bytes_of(train) // points
    # A correction holds what groups, items and both leave.
    tries = plan.tune is not None and "corrected" in config.tune.pools
    corrected = 3 * groups * size if tries else 0
    kept = min(gradients, device_memory() // 4)
    scores = 4 * groups * length(plan.split.test)
    networks_said = 4 * _outputs(plan) * sum(networks.values())
    return Estimate(
        networks=networks,
        seconds={stage: slower * COMPILING[stage] + found for stage, found in seconds.items()},
        # Data on the host and on the device; of gradients what a quarter of a device holds.
        memory=2 * data + 2 * trajectory + max(kept, corrected) + 8 * synset,
        disk=trajectory + 2 * synset + 3 * scores + networks_said + REPORT,
    )


def _seconds_a_step(plan: Plan, rows: Any) -> tuple[float, float]:
    """Of the training of one network, the fastest of three runs; and what compiling it took."""
    trainer, train = plan.trainer, jax.device_put(plan.split.train)
    advance, state = compiled(trainer.advance), compiled(trainer.start)(jax.random.key(0))
    few, weights = rows[:TIMED_STEPS], jnp.ones(length(train))
    found = []
    for _ in range(4):
        begin = time.perf_counter()
        jax.block_until_ready(advance(state, few, train, weights))
        found.append(time.perf_counter() - begin)
    fastest = min(found[1:])
    return fastest / len(few), max(found[0] - fastest, 0.0)


def _share(plan: Plan, gradients: int, items: int) -> float:
    """What an answer costs of a retraining."""
    if plan.tune is not None and plan.config.online.steps is None:
        return plan.config.tune.share
    return recipes.example_gradients(plan.config.online, items) / gradients


def _answers_of_tuning(plan: Plan, share: float, gradients: int) -> float:
    """How many retrainings the answers of the tuning cost, as `tuning.tune` asks for them."""
    tune = plan.config.tune
    pools = 2 if "data" in tune.pools else 1
    count = len(recipes.STEPS_ALIKE) + len(recipes.DEFLATED)
    first = pools * count * min(tuning.FIRST, tune.subsets) * min(share, tuning.FIRST_SHARE)
    corrected = tuning.CORRECTED * ("corrected" in tune.pools)
    last = (pools * tuning.FINALISTS + corrected) * tune.subsets * share
    costs = sum(recipes.shares(plan.config.online, share, gradients))
    told = 2 * tune.subsets * (costs + (pools - 1) * share)
    epochs = plan.config.train.epochs
    short = 2 * tune.subsets * sum(each / epochs for each in EPOCHS if each < epochs)
    others = min(max(tuning.OTHERS_COST, tuning.OTHERS[0] * share), tuning.OTHERS[1] * share)
    return first + last + told + short + others


def _rates(plan: Plan, items: int) -> float:
    """How many example gradients the stable rates take that recipes of a pool go at."""
    online = plan.config.online
    if online.learning_rate is not None:
        return 0.0
    rewinds = {each["rewind"] for each in recipes.STEPS_ALIKE}
    rewinds = rewinds if online.rewind is None else {online.rewind}
    found = sum(2 if rewind else 1 for rewind in rewinds)  # where they start, and at the end
    weights = jnp.ones(length(plan.split.train))
    run = jax.eval_shape(plan.trainer.train, jax.random.key(0), plan.split.train, weights)
    kinds = 2 if run.second_moments is not None and online.optimizer is None else 1
    products = products_of_rate(items, online.batch or recipes.BATCH["sgd"])
    return kinds * found * products * recipes.CURVATURE_COST


def _outputs(plan: Plan) -> int:
    params = jax.eval_shape(plan.task.init, jax.random.key(0))
    return int(np.prod(jax.eval_shape(plan.task.output, params, plan.split.test).shape))


def table(found: Estimate) -> list[list[str]]:
    """Stages, the networks that they train, and about how long they take; the head first."""
    rows = [["stage", "networks to train", "about"]]
    for stage, seconds in found.seconds.items():
        rows.append([stage, str(found.networks.get(stage, 0) or ""), in_words(seconds)])
    total = in_words(sum(found.seconds.values()))
    return [*rows, ["together", str(sum(found.networks.values())), total]]


def told(found: Estimate) -> str:
    """What a run will take, in one sentence."""
    return (
        f"This run trains {sum(found.networks.values())} networks and takes about "
        f"{in_words(sum(found.seconds.values()))} on this machine as busy as it is now, within a "
        f"factor of two; about {found.memory / 2**30:.2g} GiB of arrays in memory and "
        f"{found.disk / 2**20:.2g} MiB on disk."
    )


def in_words(seconds: float) -> str:
    """A time to two digits, in the unit that reads best."""
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{max(seconds, 1):.0f} s"
