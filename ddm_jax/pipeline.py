"""The stages of a run: load, jit, loop, log, save, resume.

    data -> target -> groups -> synset -> attribution -> check -> report

Every step draws its randomness from its own index and every dispatch has the same shape, so a
resumed run ends with the same bits. `plan.py` builds what the settings determine, `workdir.py`
keeps the results.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax import checkpoint, cluster
from ddm_jax import config as settings
from ddm_jax.attribution import Attribution, make_attribution
from ddm_jax.config import Config
from ddm_jax.distill import trajectory_indices
from ddm_jax.estimators import make_grad_dot
from ddm_jax.loo import (
    leave_one_out_masks,
    random_masks,
    ridge_datamodel,
    subset_outputs,
    trajectory_point,
)
from ddm_jax.offline import Step, make_blockwise, plan_blocks
from ddm_jax.parallel import in_batches, replicate
from ddm_jax.plan import Plan, check_distillation_fits, make_plan, read_groups
from ddm_jax.streaming import over_rows, read_as_needed
from ddm_jax.synset import initial_synset
from ddm_jax.types import Synset, TrainRun
from ddm_jax.workdir import (
    DEPENDS,
    SILENT,
    Progress,
    Resume,
    keep_stage,
    open_workdir,
    stage_seconds,
    versions,
)


class SynsetResult(NamedTuple):
    synset: Synset
    start: Synset
    losses: Any  # [S], or one zero where nothing was distilled
    error: Any  # [K] relative matching error at held-out checkpoints
    error_start: Any  # [K] the same before distillation


class CheckResult(NamedTuple):
    groups: Any  # [G] the groups left out
    masks: Any  # [R, K]: everything, without each of G groups, H random halves
    retrained: Any  # [seeds, R, Q]
    predicted: Any  # [R, Q] DDM
    grad_dot: Any  # [K, Q] scores of the baseline


def run(config: Config, workdir: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Run every stage that is not done yet; returns the metrics, as in metrics.json."""
    plan = make_plan(config)
    check_distillation_fits(plan)
    open_workdir(workdir, config)
    target = target_stage(plan, workdir, progress)
    groups = groups_stage(plan, workdir, progress, target)
    synset = synset_stage(plan, workdir, progress, target, groups)
    attribution = attribution_stage(plan, workdir, progress, target, groups, synset)
    check = check_stage(plan, workdir, progress, target, groups, synset)
    return report_stage(plan, workdir, progress, target, groups, synset, attribution, check)


def run_stage(name: str, workdir: Path, config: Config, progress: Progress = SILENT) -> None:
    """Run one stage again with `config`, and those before it where they are missing.

    The settings of later stages may change freely; a stage whose settings changed is redone by
    the next `run`.
    """
    plan = make_plan(config)
    if name not in ("target", "groups"):
        check_distillation_fits(plan)
    settings.save(config, workdir / "config.json")
    for stale in (name, f"{name}.partial"):
        if name != "report":
            checkpoint.remove(workdir / stale)
    target = target_stage(plan, workdir, progress)
    if name == "target":
        return
    groups = groups_stage(plan, workdir, progress, target)
    if name == "groups":
        return
    synset = synset_stage(plan, workdir, progress, target, groups)
    if name == "synset":
        return
    attribution = attribution_stage(plan, workdir, progress, target, groups, synset)
    if name == "attribution":
        return
    check = check_stage(plan, workdir, progress, target, groups, synset)
    if name == "check":
        return
    report_stage(plan, workdir, progress, target, groups, synset, attribution, check)


def target_stage(plan: Plan, workdir: Path, progress: Progress) -> TrainRun:
    """Train the target network, an epoch or `checkpoint_every` of them at a time."""
    trainer, train = plan.trainer, plan.split.train
    key = _key(plan, "target")
    weights = jnp.ones(len(train.x))
    shapes = jax.eval_shape(trainer.train, key, train, weights)
    steps, count = shapes.losses.shape[0], jax.tree.leaves(shapes.checkpoints)[0].shape[0]
    every = plan.config.train.checkpoint_every * (len(train.x) // plan.config.train.batch_size)
    first = steps - every * count

    def compute(resume: Resume) -> TrainRun:
        rows = jax.jit(trainer.batches, static_argnums=1)(key, len(train.x))
        advance = read_as_needed(jax.jit(trainer.advance), train, rows.shape[1])
        state = jax.jit(trainer.start)(key)
        checkpoints = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.checkpoints
        )
        carry = (state, checkpoints, np.zeros(steps, np.float32))

        def step(carry, position: int):
            state, checkpoints, losses = carry
            # The steps before the first kept checkpoint are a piece of their own.
            size = first if first and position == 0 else every
            state, new = advance(state, rows[position : position + size], weights)
            losses[position : position + size] = new
            _check_finite(losses, "training", "train", plan.config.train.learning_rate)
            index = (position + size - first) // every - 1
            if index >= 0:
                for kept, leaf in zip(
                    jax.tree.leaves(checkpoints), jax.tree.leaves(state.params), strict=True
                ):
                    kept[index] = leaf
            return (state, checkpoints, losses), position + size, f"loss {new[-1]:.4f}"

        state, checkpoints, losses = resume(carry, steps, step)
        rates = jax.vmap(trainer.schedule)(jnp.arange(steps)) * jnp.ones(steps)
        return TrainRun(key, state.params, checkpoints, rates, rows, losses)

    return keep_stage(
        plan, workdir, "target", "training the target network", shapes, compute, progress
    )


def groups_stage(
    plan: Plan, workdir: Path, progress: Progress, target: TrainRun | None
) -> np.ndarray:
    """Cut the training set into groups; by the network's features it needs the target."""
    config, train = plan.config.cluster, plan.split.train
    size = len(train.x)

    def compute(resume: Resume) -> np.ndarray:
        if config.method == "file":
            return cluster.check_groups(read_groups(config.file), size)
        features = train.x
        if config.features == "network":
            if target is None:
                raise ValueError("cluster.features=network needs the trained target network")
            if plan.task.features is None:
                raise ValueError("cluster.features=network; this task has no features: use pixels")
            by_rows = in_batches(plan.task.features)
            features = over_rows(
                lambda rows, params: by_rows(params, rows[0]), (train.x,), target.params
            )
        return cluster.make_groups(
            config.method,
            features=features,
            labels=train.y.argmax(1),
            num_groups=config.num_groups,
            seed=plan.config.seed,
        )

    like = jax.ShapeDtypeStruct((size,), np.int32)
    groups = keep_stage(plan, workdir, "groups", "clustering", like, compute, progress)
    return np.asarray(groups)


def synset_stage(
    plan: Plan, workdir: Path, progress: Progress, target: TrainRun, groups: np.ndarray
) -> SynsetResult:
    """Distil the synset, and measure the match at checkpoints that were held out."""
    config, train = plan.config.distill, plan.split.train
    num_groups, classes = int(groups.max()) + 1, train.y.shape[1]
    key, draw_key = jax.random.split(_key(plan, "synset"))
    count = jax.tree.leaves(target.checkpoints)[0].shape[0]
    fit, held_out = trajectory_indices(count, config.part)
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)  # noqa: E731
    synset = Synset(
        x=float32(num_groups, config.items, *train.x.shape[1:]),
        y=float32(num_groups, config.items, classes),
        mass=float32(num_groups, config.items),
        share=float32(num_groups),
    )
    kept_losses = max(config.steps, 1)  # orbax saves no empty array
    shapes = SynsetResult(
        synset, synset, float32(kept_losses), float32(num_groups), float32(num_groups)
    )

    def compute(resume: Resume) -> SynsetResult:
        progress.say("  gradients of the groups along the trajectory, and where to start")
        start = initial_synset(
            key, plan.task, config.start, target, train, groups, config.items, fit
        )
        blocks = plan_blocks(
            plan.distiller, groups, len(fit), target.params, train, config.precision
        )
        if blocks.members.shape[0] > jax.device_count():
            progress.say(f"  {len(blocks.members)} blocks of groups, as memory asks for")
        offline = make_blockwise(plan.task, plan.distiller, blocks, config.offset, config.precision)

        def checked(carry, total: int, step: Step):
            def step_and_check(carry, position: int):
                carry, position, note = step(carry, position)
                _check_finite(carry[2], "distillation", "distill", config.learning_rate)
                return carry, position, note

            return resume(carry, total, step_and_check)

        synset, losses = offline.distil(draw_key, start, target, train, fit, config.steps, checked)
        return SynsetResult(
            synset=synset,
            start=start,
            losses=losses,
            error=offline.errors(synset, target, train, held_out).mean(0),
            error_start=offline.errors(start, target, train, held_out).mean(0),
        )

    return keep_stage(plan, workdir, "synset", "distilling the synset", shapes, compute, progress)


def predict(plan: Plan, target: TrainRun, synset: Synset, masks: Any) -> jax.Array:
    """The queries' outputs [R, Q] without what each mask leaves out, all in one compiled step."""
    online = plan.config.online
    start = trajectory_point(target.checkpoints, online.rewind)
    rate = online.learning_rate or float(plan.stable_rate(start, synset))
    return subset_outputs(plan.make_response(rate))(masks, start, synset, plan.split.test)


def attribution_stage(
    plan: Plan,
    workdir: Path,
    progress: Progress,
    target: TrainRun,
    groups: np.ndarray,
    synset: SynsetResult,
) -> Attribution:
    """Leave out every group, all in one compiled step, and save attribution.npz."""
    config, query = plan.config.online, plan.split.test
    num_groups = len(synset.error)
    width = jax.eval_shape(plan.output, target.params, query).shape[0]

    def compute(resume: Resume) -> np.ndarray:
        if config.design == "masks":
            masks = random_masks(_key(plan, "attribution"), config.masks, num_groups)
            kept = predict(plan, target, synset.synset, masks)
            scores = ridge_datamodel(masks, kept).astype(np.float32)
        else:
            kept = predict(plan, target, synset.synset, leave_one_out_masks(num_groups))
            scores = np.asarray(kept[0] - kept[1:])
        return make_attribution(scores, groups).scores  # not kept where it is not finite

    like = jax.ShapeDtypeStruct((num_groups, width), np.float32)
    scores = keep_stage(
        plan, workdir, "attribution", f"leaving out {num_groups} groups", like, compute, progress
    )
    attribution = make_attribution(
        scores,
        groups,
        plan.split.test_ids if width == len(query.x) else None,
        {
            "method": f"ddm, {config.update} update, {config.design}",
            "objective": config.objective,
            "dataset": plan.config.data.name,
            "sizes": np.bincount(groups).tolist(),
            "seed": plan.config.seed,
            "seconds": stage_seconds(workdir),
            "versions": versions(),
        },
    )
    attribution.save(workdir / "attribution.npz")
    return attribution


def check_stage(
    plan: Plan,
    workdir: Path,
    progress: Progress,
    target: TrainRun,
    groups: np.ndarray,
    synset: SynsetResult,
) -> CheckResult:
    """Retrain exactly without a few groups and on a few random halves, and compare."""
    config, query, train = plan.config.check, plan.split.test, plan.split.train
    num_groups = len(synset.error)
    key = _key(plan, "check")
    left_out = np.sort(
        np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), num_groups))[: config.groups]
    )
    single = np.asarray(leave_one_out_masks(num_groups))[np.r_[0, 1 + left_out]]
    halves = np.asarray(random_masks(jax.random.fold_in(key, 1), config.subsets, num_groups))
    masks = np.concatenate([single, halves.reshape(-1, num_groups)]).astype(np.float32)
    width = jax.eval_shape(plan.output, target.params, query).shape[0]
    seeds = jax.random.split(jax.random.fold_in(key, 2), config.seeds)
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)  # noqa: E731
    shapes = CheckResult(
        groups=jax.ShapeDtypeStruct(left_out.shape, np.int32),
        masks=float32(*masks.shape),
        retrained=float32(config.seeds, len(masks), width),
        predicted=float32(len(masks), width),
        grad_dot=float32(num_groups, width),
    )

    def compute(resume: Resume) -> CheckResult:
        on_device, cut = replicate((train, groups))
        retrain = subset_outputs(plan.retraining)
        at_once = jax.local_device_count() if jax.default_backend() == "cpu" else len(masks)
        jobs = [(s, r) for s in range(config.seeds) for r in range(0, len(masks), at_once)]

        def step(carry, position: int):
            seed, first = jobs[position]
            rows = np.arange(first, first + at_once).clip(max=len(masks) - 1)
            outputs = np.asarray(retrain(masks[rows], seeds[seed], on_device, cut, query))
            carry[seed, rows] = outputs
            return carry, position + 1, f"seed {seed + 1} of {config.seeds}"

        empty = np.zeros(shapes.retrained.shape, np.float32)
        retrained = resume(empty, len(jobs), step)
        predicted = predict(plan, target, synset.synset, masks)
        baseline = make_grad_dot(plan.task, plan.output)
        return CheckResult(
            groups=left_out.astype(np.int32),
            masks=masks,
            retrained=retrained,
            predicted=np.asarray(predicted),
            grad_dot=np.asarray(baseline.score(baseline.fit(key, target, train, groups), query)),
        )

    what = f"retraining {config.seeds * len(masks)} networks to check"
    return keep_stage(plan, workdir, "check", what, shapes, compute, progress)


def report_stage(
    plan: Plan,
    workdir: Path,
    progress: Progress,
    target: TrainRun,
    groups: np.ndarray,
    synset: SynsetResult,
    attribution: Attribution,
    check: CheckResult,
) -> dict[str, Any]:
    """Write metrics.json, the figures and report.html."""
    from ddm_jax import report

    progress.say("report")
    return report.write(
        plan, workdir, target, groups, synset, attribution, check, stage_seconds(workdir)
    )


def _key(plan: Plan, stage: str) -> jax.Array:
    return jax.random.fold_in(jax.random.key(plan.config.seed), list(DEPENDS).index(stage))


def _check_finite(losses: np.ndarray, what: str, section: str, rate: float) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise ValueError(
            f"{what} diverged at step {bad[0]} of {len(losses)}: its loss is {losses[bad[0]]}; "
            f"lower {section}.learning_rate (now {rate})"
        )
