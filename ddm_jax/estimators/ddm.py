"""The Distilled Datamodel behind the two functions of an estimator."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddm_jax.cluster import check_groups
from ddm_jax.distill import make_distiller, make_match_points, trajectory_indices
from ddm_jax.loo import (
    Response,
    check_rewind,
    ddm_response,
    leave_one_out_masks,
    make_finetune,
    stable_rate,
    subset_outputs,
    trajectory_point,
)
from ddm_jax.objectives import Output
from ddm_jax.offline import make_blockwise, plan_blocks
from ddm_jax.synset import initial_synset
from ddm_jax.types import Array, Batch, Estimator, Params, Synset, Task, TrainRun


class DDMState(NamedTuple):
    checkpoints: Params  # of the target network, leaves [T, ...]
    synset: Synset


def make_ddm(
    task: Task,
    *,
    items: int = 10,
    start: str = "pursuit",
    part: float = 0.75,
    offset: int = 0,
    distance: str = "squared",
    balance: float = 0.5,
    precision: str = "float32",
    distill_steps: int = 3000,
    distill_rate: float = 0.005,
    update: str = "retain",
    steps: int = 50,
    step_items: int | None = 5,
    learning_rate: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    rewind: float = 0.0,
    output: Output | None = None,
) -> Estimator:
    """Make the whole method as an estimator: `fit` distils, `score` leaves every group out.

    The stages behind it, and what each setting means, are in `synset`, `distill` and `loo`; use
    those for another optimiser, for subsets of groups, or for a loop with progress.

    Args:
        items: M, synthetic items a group.
        start: where the synset starts, see `synset.initial_synset`.
        part: the late part of the trajectory that is matched, in (0, 1].
        offset: s, in checkpoints.
        distance, balance: of the matching loss, see `distill.make_distiller`.
        precision: of the gradients to match, "float32" or "bfloat16", which takes half the memory.
        distill_steps, distill_rate: Adam steps and their peak rate, with a cosine to zero.
        update: "retain" or "forget".
        steps, learning_rate, momentum: of the online SGD (Nesterov); the rate defaults to
            `loo.stable_rate`, which follows the curvature of the synset.
        step_items: how many of each group's items an online step takes, see `loo.make_finetune`.
        weight_decay: of the training objective.
        rewind: start the online stage this part of the training before its end, in [0, 1).
        output: what is explained; default `task.output`.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(distill_rate, max(distill_steps, 1)))
    distiller = make_distiller(task, optimizer=optimizer, distance=distance, balance=balance)
    explained = task.output if output is None else output

    def make_response(rate: Array | float) -> Response:
        online = optax.sgd(rate, momentum=momentum or None, nesterov=True)
        finetune = make_finetune(
            task,
            update=update,
            steps=steps,
            optimizer=online,
            weight_decay=weight_decay,
            step_items=step_items,
        )
        return ddm_response(finetune, explained)

    # A wrong setting fails here, not after distillation.
    make_response(1.0)
    make_match_points(task, 1, offset, precision=precision)
    check_rewind(rewind)

    @jax.jit
    def online_rate(start: Params, synset: Synset) -> Array:
        return stable_rate(
            task,
            start,
            synset,
            momentum=momentum,
            weight_decay=weight_decay,
            step_items=step_items,
        )

    def response(keep: Array, start: Params, rate: Array, synset: Synset, query: Batch) -> Array:
        return make_response(rate)(keep, start, synset, query)

    mapped = subset_outputs(response)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> DDMState:
        groups = check_groups(groups, len(data.x))
        checkpoints = jax.tree.leaves(run.checkpoints)[0].shape[0]
        indices, _ = trajectory_indices(checkpoints, part)
        initial_key, draw_key = jax.random.split(key)
        first = initial_synset(initial_key, task, start, run, data, groups, items, indices)
        blocks = plan_blocks(distiller, groups, len(indices), run.params, data, precision)
        offline = make_blockwise(task, distiller, blocks, offset, precision)
        synset, _ = offline.distil(draw_key, first, run, data, indices, distill_steps)
        return DDMState(run.checkpoints, synset)

    def outputs(state: DDMState, masks: Any, query: Batch) -> Array:
        start = trajectory_point(state.checkpoints, rewind)
        rate = online_rate(start, state.synset) if learning_rate is None else learning_rate
        return mapped(masks, start, jnp.asarray(rate, jnp.float32), state.synset, query)

    def score(state: DDMState, query: Batch) -> Array:
        kept = outputs(state, leave_one_out_masks(state.synset.share.shape[0]), query)
        return kept[0] - kept[1:]

    return Estimator(fit, score, outputs)
