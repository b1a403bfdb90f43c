"""The memory of 10,000 sequences of 256 tokens and a GPT of 5 million parameters.

Sketching their gradients, choosing items for each of ten groups by matching pursuit, and one
counterfactual. N x P would be 200 GB. Memory does not depend on what the tokens are: they are
random.

    python benchmarks/language_memory.py [--quick]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import numpy as np
from flax import nnx
from harness import say

import ddm_jax as ddm
from ddm_jax import models, tasks
from ddm_jax.estimators.ddm import distilled_run, make_outputs, undistilled
from ddm_jax.synset import initial_synset
from ddm_jax.types import length, take

VOCABULARY, WIDTH, DEPTH, HEADS, CONTEXT, COUNT = 256, 256, 6, 8, 256, 10_000
GROUPS, ITEMS, STEPS, BATCH = 10, 20, 20, 20


def peak() -> float:
    """The most memory that this process has held so far, GB."""
    return harness.peak_gib() * 2**30 / 1e9


def main() -> None:
    """Do each in turn, and write how long it took and the most memory that was held until then."""
    options = harness.arguments(__doc__, quick="64 short ones, a tiny GPT", partitions=(0,))
    count, context, width, depth = (
        (64, 16, 16, 1) if options.quick else (COUNT, CONTEXT, WIDTH, DEPTH)
    )
    draw = np.random.default_rng(options.partitions[0])
    rows = draw.integers(0, VOCABULARY, (count, context))
    data = tasks.sequences(list(rows), context, VOCABULARY)

    def fresh(rngs: nnx.Rngs) -> models.GPT:
        sizes = {"context": context, "width": width, "depth": depth, "heads": HEADS}
        return models.GPT(VOCABULARY, **sizes, rngs=rngs)

    task = tasks.language(fresh, context)
    stages: list[dict[str, Any]] = []

    def measured(name: str, work: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        found = jax.block_until_ready(work())
        stages.append({"stage": name, "seconds": time.perf_counter() - begin, "peak_gb": peak()})
        say(f"  {name}: {stages[-1]['seconds']:.0f} s, {peak():.2f} GB so far")
        return found

    train = ddm.make_train(
        task,
        steps=4,
        batch_size=8,
        optimizer="adamw",
        learning_rate=1e-3,
        checkpoint_every=4,
    )
    run = measured(
        "training, 4 steps",
        lambda: jax.jit(train)(jax.random.key(0), data, np.ones(count, np.float32)),
    )
    groups = ddm.as_groups(np.arange(count) % GROUPS)
    items, key = min(ITEMS, count // GROUPS), jax.random.key(1)
    last = [length(run.checkpoints) - 1]
    synset = measured(
        "sketches of all gradients, pursuit",
        lambda: initial_synset(key, task, "pursuit", run, data, groups, items, last),
    )
    state = distilled_run(run, synset, undistilled(synset))
    outputs_of = make_outputs(task, ddm.UpdateSettings(steps=STEPS, batch=BATCH))
    masks = 1 - np.eye(GROUPS, dtype=np.float32)[:1]
    query = take(data, slice(4))
    outputs = measured("one counterfactual", lambda: outputs_of(state, masks, query))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    content = {
        "sequences": count,
        "parameters": parameters,
        "tokens": context,
        "whole_gb": count * parameters * 4 / 1e9,
        "finite": bool(np.isfinite(np.asarray(outputs)).all()),
        "stages": stages,
    }
    harness.write(options, content)


if __name__ == "__main__":
    main()
