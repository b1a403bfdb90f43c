"""How seconds and memory grow: over devices, K, P, Q, M and N, one process a case.

Every case trains nothing: it distils 100 steps for K groups of random data from a random
trajectory, and updates all K held-out networks by 10 steps, twice each, the second time without
compilation. Fake CPU devices on few cores show what placement costs, not what it gains. Peak
memory is the process's own, and stands beside `expected_bytes`, the model of docs/speed.md.

    python benchmarks/scaling.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import say

import ddm_jax as ddm
from ddm_jax.blocks import plan_blocks
from ddm_jax.compute import pieces
from ddm_jax.distill import STEPS_AT_ONCE, DistillSettings, make_blockwise
from ddm_jax.masks import leave_one_out
from ddm_jax.online import ddm_response, make_finetune, subset_outputs
from ddm_jax.synset import initial_synset
from ddm_jax.types import Batch, TrainRun

BASE: dict[str, Any] = {
    "devices": 1,
    "model": "mlp",
    "width": 128,
    "points": 5000,
    "queries": 500,
    "groups": 50,
    "items": 5,
    "checkpoints": 8,
}
CONVNET = BASE | {"model": "convnet", "width": 16, "points": 1000, "groups": 16, "items": 2}
VARIED: dict[str, tuple[Any, ...]] = {
    "devices": (1, 2, 4, 8),
    "groups": (10, 50, 200, 400),
    "width": (32, 128, 512),
    "queries": (500, 5000),
    "items": (1, 5, 10),
    "points": (5000, 60_000),
}
VARIED_CONVNET: dict[str, tuple[Any, ...]] = {
    "devices": (1, 2, 4, 8),
    "groups": (8, 16, 64),
    "width": (16, 32, 64),
}
STEPS = 10  # of an update
DISTILL_STEPS = 100


def expected_bytes(case: dict[str, Any], num_params: int, example_bytes: int) -> dict[str, int]:
    """What the stages hold at most, beside the interpreter and the compiled programs.

    Data lie on the host and, for distillation, in the blocks of the devices; the trajectory on the
    host and on each device; the gradients in one part a device.
    """
    pixels, count = 28 * 28, case["points"]
    devices = min(case["devices"], case["groups"])
    data = 4 * (pixels + 10) * count
    trajectory = 4 * case["checkpoints"] * num_params
    gradients = 4 * case["checkpoints"] * case["groups"] * num_params
    synset = 4 * (pixels + 11) * case["items"] * case["groups"]
    queries = 4 * (pixels + 10) * case["queries"]
    return {
        "data": 2 * data,
        "trajectory": (1 + devices) * trajectory,
        "gradients": gradients,
        # The synset itself, its start and scale, and two moments, for both of two states.
        "synset": 8 * synset,
        "queries": (1 + devices) * queries,
        # One network a device: parameters, momentum, gradient, their updates; a piece of a batch.
        "networks": devices * (4 * 5 * num_params + max(6 * 2**20, example_bytes)),
    }


def child(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case in this process."""
    jax.config.update("jax_num_cpu_devices", case["devices"])
    module = (
        ddm.models.MLP(10, (case["width"], 64))
        if case["model"] == "mlp"
        else ddm.models.ConvNet(10, case["width"])
    )
    task = ddm.classification(module, (28, 28, 1))
    draw = np.random.default_rng(0)

    def batch(count: int) -> Batch:
        labels = np.eye(10, dtype=np.float32)[draw.integers(0, 10, count)]
        return Batch(draw.random((count, 28, 28, 1), np.float32), labels)

    data, query = batch(case["points"]), batch(case["queries"])
    groups = ddm.as_groups(np.arange(case["points"]) % case["groups"])
    params = jax.jit(task.init)(jax.random.key(0))
    count = case["checkpoints"]
    checkpoints = jax.tree.map(lambda leaf: jnp.stack([leaf] * count) * jnp.float32(1), params)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    run = TrainRun(jax.random.key(0), params, checkpoints, weight_decay=jnp.zeros(()))
    start = initial_synset(jax.random.key(1), task, "random", run, data, groups, case["items"], [0])
    settings = DistillSettings(items=case["items"], learning_rate=0.001, steps=DISTILL_STEPS)
    indices = list(range(count))
    optimizer = optax.sgd(0.01, 0.9, nesterov=True)
    finetune = make_finetune(task, steps=STEPS, optimizer=optimizer)
    jax.block_until_ready((checkpoints, start))
    before = harness.peak_gib()
    told: dict[str, Any] = {"num_params": num_params}

    begin = time.perf_counter()
    blocks = plan_blocks(groups, count, params, data, settings.distance, settings.precision)
    seconds: list[float] = []

    def loop(carry: Any, total: int, step: Any) -> Any:
        position = 0
        told["gradient_seconds"] = time.perf_counter() - begin
        while position < total:
            (carry, position, _), took = harness.once(step, carry, position)
            seconds.append(took)
        return carry

    distil = make_blockwise(task, settings, blocks).distil
    synset, _ = distil(jax.random.key(2), start, run, data, indices, loop)
    told["distill_step_seconds"] = min(seconds[1:]) / STEPS_AT_ONCE
    told["distill_compile_seconds"] = seconds[0] - min(seconds[1:])
    told["blocks"] = len(blocks.members)

    outputs = subset_outputs(ddm_response(finetune, task.output))
    scores = leave_one_out(outputs, groups.count)
    _, first = harness.once(scores, params, synset, query)
    _, told["online_seconds"] = harness.once(scores, params, synset, query)
    told["online_compile_seconds"] = first - told["online_seconds"]
    peak = harness.peak_gib()
    each = pieces.bytes_an_example(
        lambda p, b, w: w @ task.loss(p, b), params, jax.tree.map(lambda leaf: leaf[:2], data)
    )
    told["example_bytes"] = each
    told["peak_bytes"] = round(peak * 2**30)
    told["start_bytes"] = round(before * 2**30)
    told["expected_bytes"] = expected_bytes(case, num_params, each)
    return told


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case in a process of its own."""
    found = harness.apart(["--case", json.dumps(case)])
    say(
        f"  {case}: distil {1000 * found['distill_step_seconds']:.1f} ms a step, online "
        f"{found['online_seconds']:.2f} s, peak {found['peak_bytes'] / 2**20:.0f} MiB"
    )
    return case | found


def main() -> None:
    """Measure all cases and write results/scaling.json."""
    options = harness.arguments(
        __doc__, quick="two small cases", partitions=(0,), case={"help": argparse.SUPPRESS}
    )
    if options.case:
        print(json.dumps(child(json.loads(options.case))))
        return
    if options.quick:
        small = BASE | {"points": 200, "queries": 20, "groups": 10, "width": 16, "items": 1}
        cases = [("devices", small | {"devices": count}) for count in (1, 2)]
    else:
        cases = [
            (name, base | {name: value})
            for base, varied in ((BASE, VARIED), (CONVNET, VARIED_CONVNET))
            for name, values in varied.items()
            for value in values
        ]
    rows = [{"varied": name} | measure(case) for name, case in cases]
    harness.write(options, {"steps": STEPS, "rows": rows})


if __name__ == "__main__":
    main()
