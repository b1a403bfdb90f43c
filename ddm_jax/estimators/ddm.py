"""The Distilled Datamodel behind the functions of an estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.blocks import plan_blocks
from ddm_jax.checks import check_alone, check_integer, is_concrete
from ddm_jax.cluster import with_background
from ddm_jax.distill import DistillSettings, Loop, make_blockwise, straight_through
from ddm_jax.estimators.contract import joint_estimator
from ddm_jax.items import free_leaves, items_of
from ddm_jax.matching import trajectory_indices
from ddm_jax.online import (
    Begin,
    Parts,
    check_moments,
    make_begin,
    make_counterfactual,
    make_parts,
    trajectory_point,
)
from ddm_jax.optimizers import decoupled_decay
from ddm_jax.synset import initial_synset
from ddm_jax.types import (
    Array,
    Batch,
    Estimator,
    Groups,
    Leaf,
    Params,
    Synset,
    Task,
    TrainRun,
    length,
)
from ddm_jax.updates import Settled, UpdateSettings, settled


class DistillInfo(NamedTuple):
    """How distillation went."""

    start: Synset  # what it started from
    losses: Leaf  # [S], or one zero where nothing was distilled
    error: Leaf  # [K], relative matching error at held-out checkpoints; NaN without any
    error_start: Leaf  # [K], the same before distillation


class DDMState(NamedTuple):
    """A distilled run: all that counterfactuals take."""

    checkpoints: Params  # of the target network, leaves [T, ...]
    weight_decay: Array
    synset: Synset
    info: DistillInfo
    second_moments: Params | None = None  # at the checkpoints, of a training of Adam's kind
    decoupled_decay: Leaf = np.float32(0)  # of AdamW's kind
    # What the items leave of each group's gradient, leaves [K, ...]; see `corrected`.
    residual: Params | None = None


def make_ddm(
    task: Task,
    distill: DistillSettings | None = None,
    update: UpdateSettings | None = None,
    *,
    loop: Loop = straight_through,
    stable: float | None = None,
) -> Estimator:
    """Make the whole method as an estimator: `fit` distils, `score` leaves every group out.

    `fit` makes the synset of each group by reverse gradient matching along the trajectory
    (`distill`), and `outputs(state, masks, query)` fine-tunes the trained network on the items of
    what each mask keeps (`online`), all masks in one compiled step. Ye, Yu, Liu & Wang, "Distilled
    datamodel with reverse gradient matching", CVPR 2024, arXiv 2404.14006.

    Args:
        distill, update: the settings of both stages.
        loop: runs the steps of distillation, and may save and show what it likes in between, see
            `distill.Step`.
        stable: as of `make_outputs`.

    Raises:
        ValueError: (in `fit`) for settings that do not fit the run or the task's items.
    """
    distill = DistillSettings() if distill is None else distill
    update = UpdateSettings() if update is None else update
    for given, kind in ((distill, DistillSettings), (update, UpdateSettings)):
        if not isinstance(given, kind):
            raise ValueError(f"{given!r} is no {kind.__name__}; write {kind.__name__}(steps=...)")

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> DDMState:
        matched, held_out = trajectory_indices(length(run.checkpoints), distill.part)
        check_integer("distill.offset", distill.offset, 0, length(run.checkpoints) - 1)
        check_learnt(task, distill, data)
        check_moments(update.optimizer, run.second_moments)
        if is_concrete((run.params, data)):
            check_alone(task, run.params, data)
        asked, groups = groups.count, with_background(groups)
        initial_key, draw_key = jax.random.split(key)
        start = initial_synset(
            initial_key, task, distill.start, run, data, groups, distill.items, matched
        )
        blocks = plan_blocks(
            groups, len(matched), run.params, data, distill.distance, distill.precision
        )
        offline = make_blockwise(task, distill, blocks)
        synset, losses = offline.distil(draw_key, start, run, data, matched, loop)

        def error(of: Synset) -> np.ndarray:
            if not held_out:
                return np.full(groups.count, np.nan, np.float32)
            return offline.errors(of, run, data, held_out).mean(0)

        errors = error(synset)[:asked], error(start)[:asked]
        synset, start = (apart_from_background(each, asked) for each in (synset, start))
        return distilled_run(run, synset, DistillInfo(start, losses, *errors))

    outputs = make_outputs(task, update, stable=stable)
    return joint_estimator(task, fit, outputs, lambda state: len(state.synset.share), method="ddm")


def make_outputs(
    task: Task,
    update: UpdateSettings,
    parts: Parts | None = None,
    known: dict[Any, Begin] | None = None,
    stable: float | None = None,
) -> Callable[..., Array]:
    """Make `outputs(state, masks [R, K], query) -> [R, Q]` of a distilled run.

    Args:
        parts: as of `online.make_counterfactual`.
        known: what updates of this state found where they began; it is added to.
        stable: the stable rate without momentum of these updates on this state, where it is known
            (`Tuned.stable`): finding it costs some tens of products with the Hessian.
    """
    chosen = settled(update)
    rewind, parts = chosen.rewind, make_parts(task) if parts is None else parts
    place = _place(chosen)
    begin_of = make_begin(chosen, parts)
    counterfactual = make_counterfactual(task, update, parts)

    def outputs(state: DDMState, masks: Any, query: Batch) -> Array:
        of = _where_to_begin(state, rewind)
        if known is None or place not in known:
            begin = begin_of(*of, stable, state.residual)
        else:
            begin = known[place]
        if known is not None:
            known[place] = begin
        return counterfactual(of[0], state.synset, masks, query, begin=begin)

    return outputs


def _where_to_begin(state: DDMState, rewind: float) -> tuple[Any, ...]:
    """What `online.make_begin` takes of a state."""
    start, moments = (
        None if of is None else trajectory_point(of, rewind)
        for of in (state.checkpoints, state.second_moments)
    )
    trained = trajectory_point(state.checkpoints, 0.0) if rewind else None
    return start, state.synset, state.weight_decay, moments, state.decoupled_decay, trained


def find_stable(task: Task, update: UpdateSettings, state: DDMState) -> float | None:
    """Find the stable rate of updates on a state, which `make_outputs` takes; None where given."""
    chosen = settled(update)
    if chosen.learning_rate is not None:
        return None
    begin = make_begin(chosen, make_parts(task))
    return float(cast(Array, begin(*_where_to_begin(state, chosen.rewind)).rate))


def stable_of(update: UpdateSettings, known: dict[Any, Begin]) -> float | None:
    """The rate that is stable for these updates, of what `make_outputs` found; None where given."""
    found = known[_place(settled(update))].rate
    return None if found is None else float(found)


def _place(chosen: Settled) -> tuple[Any, ...]:
    """What decides what updates find where they begin."""
    return chosen.optimizer, chosen.batch, chosen.rewind, chosen.learning_rate is None


def distilled_run(run: TrainRun, synset: Synset, info: DistillInfo) -> DDMState:
    """What counterfactuals take of a run and its synset."""
    decay = decoupled_decay(run.optimizer)
    return DDMState(
        run.checkpoints, run.weight_decay, synset, info, run.second_moments, np.float32(decay)
    )


def undistilled(synset: Synset) -> DistillInfo:
    """What there is to tell of a synset that was not distilled here."""
    nothing = np.zeros(len(synset.share), np.float32)
    return DistillInfo(synset, nothing[:1], nothing, nothing)


def apart_from_background(synset: Synset, count: int) -> Synset:
    """The synset of `count` groups and, where there is one more, the background as group -1."""
    if len(synset.share) == count:
        return synset
    group = jnp.where(synset.group >= count, -1, synset.group)
    return synset._replace(group=group, share=synset.share[:count], background=synset.share[count])


def check_learnt(task: Task, distill: DistillSettings, data: Batch) -> None:
    """Check that what is to be learnt are parts of an item, before anything is computed.

    Raises:
        ValueError: as `items.free_leaves`.
    """
    one = jax.tree.map(lambda leaf: np.asarray(leaf[:1]), data)
    free_leaves(task, items_of(task).start(one), distill.learn)
