"""How seconds and memory grow: over devices, K, P, Q, M and N, one process a case.

Every case trains nothing: it distils 100 steps for K groups of random data from a random
trajectory, and updates all K held-out networks by 10 steps, twice each, the second time without
compilation. Fake CPU devices on few cores show what placement costs, not what it gains. Peak
memory is the process's own, and stands beside `expected_bytes`, the model of docs/scaling.md.

    python benchmarks/scaling.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import protocol

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
    import jax

    jax.config.update("jax_num_cpu_devices", case["devices"])
    import jax.numpy as jnp
    import numpy as np
    import optax

    import ddm_jax as ddm
    from ddm_jax import offline, pieces

    module = (
        ddm.models.MLP(10, (case["width"], 64))
        if case["model"] == "mlp"
        else ddm.models.ConvNet(10, case["width"])
    )
    task = ddm.classification(module, (28, 28, 1))
    draw = np.random.default_rng(0)

    def batch(count: int) -> ddm.Batch:
        labels = np.eye(10, dtype=np.float32)[draw.integers(0, 10, count)]
        return ddm.Batch(draw.random((count, 28, 28, 1), np.float32), labels)

    data, query = batch(case["points"]), batch(case["queries"])
    groups = np.arange(case["points"]) % case["groups"]
    params = jax.jit(task.init)(jax.random.key(0))
    checkpoints = jax.tree.map(
        lambda leaf: jnp.stack([leaf] * case["checkpoints"]) * jnp.float32(1), params
    )
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    run = ddm.TrainRun(jax.random.key(0), params, checkpoints, None, None, None)
    start = ddm.initial_synset(
        jax.random.key(1), task, "random", run, data, groups, case["items"], [0]
    )
    distiller = ddm.make_distiller(
        task, optimizer=optax.adam(0.001), distance="squared", balance=0.5
    )
    indices = list(range(case["checkpoints"]))
    finetune = ddm.make_finetune(task, steps=STEPS, optimizer=optax.sgd(0.01, 0.9, nesterov=True))
    jax.block_until_ready((checkpoints, start))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told: dict[str, Any] = {"num_params": num_params}

    begin = time.perf_counter()
    blocks = offline.plan_blocks(distiller, groups, len(indices), params, data)
    blockwise = offline.make_blockwise(task, distiller, blocks)
    seconds: list[float] = []

    def loop(carry: Any, total: int, step: Any) -> Any:
        position = 0
        told["gradient_seconds"] = time.perf_counter() - begin
        while position < total:
            before_step = time.perf_counter()
            carry, position, _ = step(carry, position)
            seconds.append(time.perf_counter() - before_step)
        return carry

    synset, _ = blockwise.distil(jax.random.key(2), start, run, data, indices, DISTILL_STEPS, loop)
    told["distill_step_seconds"] = min(seconds[1:]) / offline.STEPS_AT_ONCE
    told["distill_compile_seconds"] = seconds[0] - min(seconds[1:])
    told["blocks"] = len(blocks.members)

    scores = ddm.leave_one_out(ddm.ddm_response(finetune, task.output), case["groups"])
    begin = time.perf_counter()
    jax.block_until_ready(scores(params, synset, query))
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    jax.block_until_ready(scores(params, synset, query))
    told["online_seconds"] = time.perf_counter() - begin
    told["online_compile_seconds"] = first - told["online_seconds"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    each = pieces.bytes_an_example(
        lambda p, b, w: w @ task.loss(p, b), params, jax.tree.map(lambda leaf: leaf[:2], data)
    )
    expected = expected_bytes(case, num_params, each)
    told["example_bytes"] = each
    told["peak_bytes"] = peak
    told["start_bytes"] = before
    told["expected_bytes"] = expected
    return told


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(case)],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    protocol.say(
        f"  {case}: distil {1000 * found['distill_step_seconds']:.1f} ms a step, online "
        f"{found['online_seconds']:.2f} s, peak {found['peak_bytes'] / 2**20:.0f} MiB"
    )
    return case | found


def main() -> None:
    """Measure all cases and write results/scaling.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small cases")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
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
    protocol.write_json("scaling", options.quick, {"steps": STEPS, "rows": rows})


if __name__ == "__main__":
    main()
