"""What each stage of a run computes, and the shapes of what it keeps.

Every step draws its randomness from its own index and every dispatch has the same shape, so a
resumed run ends with the same bits.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax import cluster
from ddm_jax.attribution import Attribution, make_attribution
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import in_batches
from ddm_jax.compute.streaming import over_rows, read_as_needed
from ddm_jax.distill import Loop, Step
from ddm_jax.estimators.ddm import (
    DistillInfo,
    make_ddm,
    make_outputs,
)
from ddm_jax.estimators.grad_dot import make_grad_dot
from ddm_jax.items import items_of
from ddm_jax.judge.truth import read_truth
from ddm_jax.run import check as checking
from ddm_jax.run.check import Check
from ddm_jax.run.plan import Plan, labels_of, read_groups, split_groups
from ddm_jax.run.workdir import SILENT, Progress, versions
from ddm_jax.types import Groups, Synset, TrainRun, length, take


class Results(NamedTuple):
    """What the stages made, as far as they are done."""

    target: Any = None  # TrainRun
    groups: Any = None  # Groups
    synset: Any = None  # DDMState
    tuning: Any = None  # Tuning
    attribution: Any = None  # Attribution
    check: Any = None  # Check
    report: Any = None  # the metrics, as in metrics.json


class Job(NamedTuple):
    """What a stage gets to see."""

    plan: Plan
    workdir: Path
    results: Results
    key: jax.Array
    seconds: dict[str, float]  # of each stage that is done, compilation included
    progress: Progress
    compute: bool  # False: read alone


def train_target(job: Job, loop: Loop) -> TrainRun:
    """Train the target network, from one kept checkpoint to the next."""
    trainer, train = job.plan.trainer, job.plan.split.train
    kept = trainer.checkpoint_steps
    steps = int(kept[-1])
    rows = jax.jit(trainer.batches, static_argnums=1)(job.key, length(train))
    advance = read_as_needed(compiled(trainer.advance), train, rows.shape[1])
    state = compiled(trainer.start)(job.key)
    start = jax.tree.map(np.asarray, state.params)
    kept_of = compiled(lambda state: (state.params, trainer.moments(state)))
    weights = jnp.ones(length(train))
    empty = jax.tree.map(
        lambda leaf: np.zeros((len(kept), *leaf.shape), leaf.dtype), jax.eval_shape(kept_of, state)
    )

    def step(carry, position: int):
        state, trajectory, losses = carry
        index = int(np.searchsorted(kept, position, "right"))
        end = int(kept[index])
        state, new = advance(state, rows[position:end], weights)
        losses[position:end] = new
        _check_finite(losses, "training", "train", job.plan.config.train.learning_rate)
        for all_, leaf in zip(
            jax.tree.leaves(trajectory), jax.tree.leaves(kept_of(state)), strict=True
        ):
            all_[index] = leaf
        return (state, trajectory, losses), end, f"loss {new[-1]:.4f}"

    state, trajectory, losses = loop((state, empty, np.zeros(steps, np.float32)), steps, step)
    checkpoints, squares = trajectory
    return trainer.finish(job.key, start, state.params, checkpoints, rows, losses, squares)


def cut_groups(job: Job, loop: Loop) -> np.ndarray:
    """Cut the training set into groups; by the network's features it needs the target."""
    config, train, task = job.plan.config.cluster, job.plan.split.train, job.plan.task
    if config.method == "file":
        return np.asarray(read_groups(config.file, length(train)).ids)
    if config.method == "data":
        return np.asarray(split_groups(job.plan.split).ids)
    features = cluster.flat_features(train.x)
    if config.features == "network":
        if task.features is None:
            raise ValueError("cluster.features=network; this task has no features: use pixels")
        by_rows = in_batches(task.features)
        params = job.results.target.params
        features = over_rows(lambda rows, params: by_rows(params, rows[0]), (train.x,), params)
    groups = cluster.make_groups(
        config.method,
        features=features,
        labels=labels_of(job.plan.split, config.method),
        num_groups=config.num_groups,
        seed=job.plan.config.seed,
    )
    return np.asarray(groups.ids)


def groups_of(job: Job, ids: np.ndarray) -> Groups:
    """The groups, with their names where the data bring them."""
    named = job.plan.config.cluster.method == "data"
    return cluster.as_groups(ids, names=split_groups(job.plan.split).names if named else None)


def distil(job: Job, loop: Loop) -> tuple[Synset, DistillInfo]:
    """Distil the synset, and measure the match at checkpoints that were held out."""
    plan, config = job.plan, job.plan.config

    def checked(carry, total: int, step: Step):
        def step_and_check(carry, position: int):
            carry, position, note = step(carry, position)
            _check_finite(carry[2], "distillation", "distill", config.distill.learning_rate)
            return carry, position, note

        return loop(carry, total, step_and_check)

    job.progress.say("  gradients of the groups along the trajectory, and where to start")
    ddm = make_ddm(plan.task, config.distill, loop=checked)
    state = ddm.fit(job.key, job.results.target, plan.split.train, job.results.groups)
    return state.synset, state.info


def like_synset(job: Job) -> tuple[Synset, DistillInfo]:
    """The shapes of `distil`."""
    config, task, train = job.plan.config.distill, job.plan.task, job.plan.split.train
    groups, background = job.results.groups.count, bool(job.results.groups.background)
    items = (groups + background) * config.items

    def of(*shape: int, dtype: Any = np.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    one = items_of(task).start(take(train, slice(1)))
    synset = Synset(
        items=jax.tree.map(lambda leaf: of(items, *leaf.shape[1:], dtype=leaf.dtype), one),
        group=of(items, dtype=np.int32),
        mass=of(items),
        share=of(groups),
        background=of() if background else None,
    )
    losses = of(max(config.steps, 1))
    return synset, DistillInfo(
        start=synset, losses=losses, error=of(groups), error_start=of(groups)
    )


def leave_out(job: Job, loop: Loop) -> np.ndarray:
    """Leave out every group, all in one compiled step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ddm: some answers are not finite")  # refused below
        tuning = job.results.tuning
        ddm = make_ddm(job.plan.task, None, tuning.update, stable=tuning.stable)
        scores = ddm.score(tuning.state, job.plan.split.test)
    # Not kept where it is not finite.
    return make_attribution(np.asarray(scores), job.results.groups).scores


def predict(plan: Plan, made: Any, masks: np.ndarray) -> np.ndarray:
    """The queries' outputs without what each mask [R, K] leaves out, [R, Q], in one step.

    Args:
        made: what the stages made: `Results` or `Finished`.
    """
    outputs = make_outputs(plan.task, made.tuning.update, stable=made.tuning.stable)
    return np.asarray(outputs(made.tuning.state, masks, plan.split.test))


def attribution_of(job: Job, scores: np.ndarray) -> Attribution:
    """The scores with everything to read them alone, saved as attribution.npz."""
    plan, config, groups = job.plan, job.plan.config, job.results.groups
    attribution = make_attribution(
        scores,
        groups,
        plan.split.test_ids if width(job) == length(plan.split.test) else None,
        {
            "method": f"ddm, {config.online.update} update",
            "objective": config.online.objective,
            "lower_is_better": plan.task.lower_is_better,
            "dataset": plan.split.name,
            "sizes": groups.sizes().tolist(),
            "seed": config.seed,
            "seconds": job.seconds,
            "versions": versions(),
        },
    )
    if job.compute:
        attribution.save(job.workdir / "attribution.npz")
    return attribution


def compare_with_retraining(job: Job, loop: Loop) -> dict[str, Any]:
    """Retrain exactly without a few groups and on a few random halves, and predict it."""
    plan, results = job.plan, job.results
    folder = job.workdir / "check"
    found = checking.retrained(plan, plan.check, folder, results.groups, job.progress)
    masks = checking.masks_of(found, results.groups.count)
    grad_dot = make_grad_dot(plan.task)
    state = grad_dot.fit(job.key, results.target, plan.split.train, results.groups)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "grad_dot: all scores are zero")  # of an accuracy
        beside = np.asarray(grad_dot.score(state, plan.split.test))
    return {
        "ddm": predict(plan, results, masks),
        "grad_dot": beside,
    }


def like_check(job: Job) -> dict[str, Any]:
    """The shapes of `compare_with_retraining`."""
    rows, count = 1 + job.plan.config.check.subsets, job.results.groups.count
    return {
        "ddm": jax.ShapeDtypeStruct((rows, width(job)), np.float32),
        "grad_dot": jax.ShapeDtypeStruct((count, width(job)), np.float32),
    }


def check_of(job: Job, kept: dict[str, Any]) -> Check:
    """The predictions beside the truth of the store."""
    plan, folder, groups = job.plan, job.workdir / "check", job.results.groups
    if job.compute:
        found = checking.retrained(plan, plan.check, folder, groups, SILENT)
    else:
        found = read_truth(plan.check, checking.open_truth(plan, plan.check, folder, groups))
    scores = job.results.attribution.scores
    check = Check(found, np.asarray(kept["ddm"]), scores, np.asarray(kept["grad_dot"]))
    if job.compute:  # what the attribution's own stage could not know
        checking.with_bars(job.results.attribution, check).save(job.workdir / "attribution.npz")
    return check


def width(job: Job) -> int:
    """Outputs of all queries: one each, or one of all."""
    params = jax.eval_shape(job.plan.task.init, jax.random.key(0))
    return jax.eval_shape(job.plan.task.output, params, job.plan.split.test).shape[0]


def _check_finite(losses: np.ndarray, what: str, section: str, rate: float) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise ValueError(
            f"{what} diverged at step {bad[0]} of {len(losses)}: its loss is {losses[bad[0]]}; "
            f"lower {section}.learning_rate (now {rate})"
        )
