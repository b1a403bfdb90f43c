"""The stages of a run in a work directory: load, jit, loop, log, save, resume.

    data -> target -> groups -> synset -> attribution -> check -> report

Each stage keeps its result under its own name in the work directory, with a fingerprint of the
settings it depends on, and is not redone while that fits. Long stages keep a partial result
beside it (`<stage>.partial`) and go on from there; every step draws its randomness from its own
index and every dispatch has the same shape, so a resumed run ends with the same bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Callable
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ddm_jax
from ddm_jax import checkpoint, cluster, data, objectives
from ddm_jax import config as settings
from ddm_jax.attribution import Attribution, make_attribution
from ddm_jax.config import Config
from ddm_jax.distill import Distiller, make_distiller, make_match_points, trajectory_indices
from ddm_jax.estimators import make_grad_dot
from ddm_jax.loo import (
    Response,
    ddm_response,
    leave_one_out_masks,
    make_finetune,
    random_masks,
    retraining_response,
    ridge_datamodel,
    subset_outputs,
    trajectory_point,
)
from ddm_jax.matching import group_batches, make_matching_error
from ddm_jax.models import classification, make_module
from ddm_jax.objectives import Output
from ddm_jax.parallel import in_batches
from ddm_jax.synset import STARTS, initial_synset
from ddm_jax.train import Trainer, cosine_schedule, make_trainer
from ddm_jax.types import Synset, Task, TrainRun

# What each stage's result depends on, besides the seed: the sections of the settings.
DEPENDS = {
    "target": ("data", "model", "train"),
    "groups": ("data", "model", "train", "cluster"),
    "synset": ("data", "model", "train", "cluster", "distill"),
    "attribution": ("data", "model", "train", "cluster", "distill", "online"),
    "check": ("data", "model", "train", "cluster", "distill", "online", "check"),
}
STAGES = (*DEPENDS, "report")
OPTIMIZERS = ("adam", "sgd")
SAVE_SECONDS = 20.0  # how often a long stage keeps a partial result
DISTILL_CHUNK = 50  # distillation steps a dispatch


class Progress(NamedTuple):
    """Where messages and progress go; the command line passes its own."""

    say: Callable[[str], None]
    track: Callable[[str, int], Callable[[int, str], None]]  # (what, total) -> (done, note)


SILENT = Progress(lambda text: None, lambda what, total: lambda done, note: None)


class Plan(NamedTuple):
    """Everything that the settings determine, built and checked before any work."""

    config: Config
    split: data.Split
    task: Task
    trainer: Trainer
    distiller: Distiller
    output: Output
    response: Response  # of the distilled datamodel
    retraining: Response


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


def make_plan(config: Config) -> Plan:
    """Load the data and build every stage, so that a wrong setting fails before any work.

    Raises:
        ValueError: for a setting that is out of range or does not fit the data.
    """
    check_settings(config)
    split = data.load(**dataclasses.asdict(config.data), seed=config.seed)
    shape, size = split.train.x.shape[1:], len(split.train.x)
    model, train, distill, online = config.model, config.train, config.distill, config.online
    options: dict[str, dict[str, Any]] = {
        "logistic": {},
        "mlp": {"hidden": model.hidden},
        "convnet": {"width": model.width, "depth": model.depth, "norm": model.norm},
        "resnet": {"width": model.width, "blocks": model.blocks, "norm": model.norm},
    }
    module = make_module(model.kind, len(split.classes), **options.get(model.kind, {}))
    task = classification(module, shape)
    if train.batch_size > size:
        raise ValueError(
            f"train.batch_size={train.batch_size} exceeds the {size} training points; lower it"
        )
    if config.cluster.method == "file":
        cluster.check_groups(_read_groups(config.cluster.file), size)
    else:
        cluster.check_num_groups(
            config.cluster.method, split.train.y.argmax(1), config.cluster.num_groups
        )
    epoch = size // train.batch_size
    steps = train.epochs * epoch
    trainer = make_trainer(
        task,
        steps=steps,
        batch_size=train.batch_size,
        learning_rate=cosine_schedule(
            train.learning_rate, steps, train.final_learning_rate, train.warmup_epochs * epoch
        ),
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        checkpoint_every=train.checkpoint_every * epoch,
    )
    output = objectives.make_objective(online.objective, task.apply)
    jax.eval_shape(output, jax.eval_shape(task.init, jax.random.key(0)), split.test)
    finetune = make_finetune(
        task,
        update=online.update,
        steps=online.steps,
        optimizer=optax.sgd(online.learning_rate, momentum=online.momentum or None, nesterov=True),
        weight_decay=train.weight_decay,
    )
    distiller = make_distiller(
        task,
        optimizer=_optimizer(distill.optimizer, distill.learning_rate, distill.steps),
        distance=distill.distance,
        balance=distill.balance,
        learn=distill.learn,
        points_per_step=distill.points_per_step,
    )
    return Plan(
        config=config,
        split=split,
        task=task,
        trainer=trainer,
        distiller=distiller,
        output=output,
        response=ddm_response(finetune, output),
        retraining=retraining_response(trainer.train, output),
    )


def check_settings(config: Config) -> None:
    """Check what can be checked without the data.

    Raises:
        ValueError: naming the setting, what is allowed, and how to mend it.
    """
    train, distill, online, check = config.train, config.distill, config.online, config.check
    one_of = {
        "model.kind": (config.model.kind, ("logistic", "mlp", "convnet", "resnet")),
        "model.norm": (config.model.norm, ("instance", "group")),
        "cluster.method": (config.cluster.method, (*cluster.METHODS, "file")),
        "cluster.features": (config.cluster.features, ("pixels", "network")),
        "distill.start": (distill.start, STARTS),
        "distill.optimizer": (distill.optimizer, OPTIMIZERS),
        "online.design": (online.design, ("difference", "masks")),
    }
    for name, (value, allowed) in one_of.items():
        if value not in allowed:
            raise ValueError(f"{name}={value!r}; choose one of {', '.join(allowed)}")
    for name, number, least in (
        ("model.width", config.model.width, 1),
        ("model.depth", config.model.depth, 0),
        *(("model.hidden", units, 1) for units in config.model.hidden),
        *(("model.blocks", blocks, 1) for blocks in config.model.blocks),
        ("train.epochs", train.epochs, 1),
        ("train.batch_size", train.batch_size, 1),
        ("train.checkpoint_every", train.checkpoint_every, 1),
        ("train.warmup_epochs", train.warmup_epochs, 0),
        ("cluster.num_groups", config.cluster.num_groups, 2),
        ("distill.items", distill.items, 1),
        ("distill.steps", distill.steps, 0),
        ("distill.offset", distill.offset, 0),
        ("online.steps", online.steps, 1),
        ("online.masks", online.masks, 2),
        ("check.groups", check.groups, 2),
        ("check.subsets", check.subsets, 0),
        ("check.seeds", check.seeds, 2),
    ):
        if number < least:
            raise ValueError(f"{name}={number}; it must be at least {least}")
    for name, rate in (
        ("train.learning_rate", train.learning_rate),
        ("distill.learning_rate", distill.learning_rate),
        ("online.learning_rate", online.learning_rate),
    ):
        if not 0 < rate < float("inf"):
            raise ValueError(f"{name}={rate}; it must be positive and finite")
    if not train.final_learning_rate >= 0:
        raise ValueError(
            f"train.final_learning_rate={train.final_learning_rate}; it must be at least 0"
        )
    if train.warmup_epochs >= train.epochs:
        raise ValueError(
            f"train.warmup_epochs={train.warmup_epochs}; it must be below train.epochs, "
            f"{train.epochs}"
        )
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed={config.seed}; it must be in 0..2**32 - 1")
    for name, part in (
        ("train.momentum", train.momentum),
        ("online.momentum", online.momentum),
        ("online.rewind", online.rewind),
    ):
        if not 0 <= part < 1:
            raise ValueError(f"{name}={part}; it must be in [0, 1)")
    if not 0 < distill.part <= 1:
        raise ValueError(f"distill.part={distill.part}; it must be in (0, 1]")
    if train.checkpoint_every * 2 > train.epochs:
        raise ValueError(
            f"train.checkpoint_every={train.checkpoint_every} keeps fewer than two checkpoints of "
            f"{train.epochs} epochs; the trajectory needs at least two"
        )
    if config.cluster.method == "file" and config.cluster.file is None:
        raise ValueError("cluster.method=file needs cluster.file, a .npy of N integers")


def _optimizer(name: str, rate: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(rate, max(steps, 1))
    if name == "adam":
        return optax.adam(schedule)
    return optax.sgd(schedule)


def open_workdir(workdir: Path, config: Config) -> None:
    """Make the work directory, or check that it was made with the same settings.

    Raises:
        ValueError: when it holds a run with other settings, naming them.
    """
    path = workdir / "config.json"
    if path.exists():
        changed = settings.differences(settings.load(path), config)
        # Data may be moved; what they are is part of every stage's fingerprint.
        changed = [change for change in changed if not change.startswith("data.data_dir ")]
        if changed:
            raise ValueError(
                f"{workdir} was made with other settings ({'; '.join(changed)}); use another "
                "--workdir, or change them with the command of their stage, for example "
                f"`ddm distill --workdir {workdir} --set distill.items=2`"
            )
        return
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file; use another --workdir")
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run; use another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    settings.save(config, path)


def check_stage_change(stage: str, old: Config, new: Config) -> None:
    """Check that a stage's command changes the settings of that stage or of later ones only.

    Raises:
        ValueError: naming the settings that belong to an earlier stage.
    """
    names = list(STAGES)
    earlier = DEPENDS[names[names.index(stage) - 1]] if names.index(stage) else ("data",)
    wrong = [
        change
        for change in settings.differences(old, new)
        if change.split(" ")[0].split(".")[0] in (*earlier, "seed")
    ]
    if wrong:
        raise ValueError(
            f"{'; '.join(wrong)}: that belongs to a stage before this one; use the command of "
            "that stage, or a new --workdir"
        )


def run(config: Config, workdir: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Run every stage that is not done yet; returns the metrics, as in metrics.json."""
    plan = make_plan(config)
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
        on_device = jax.device_put(train)
        rows = jax.jit(trainer.batches, static_argnums=1)(key, len(train.x))
        advance = jax.jit(trainer.advance)
        state = jax.jit(trainer.start)(key)
        checkpoints = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.checkpoints
        )
        carry = (state, checkpoints, np.zeros(steps, np.float32))

        def step(carry, position: int):
            state, checkpoints, losses = carry
            # The steps before the first kept checkpoint are a piece of their own.
            size = first if first and position == 0 else every
            state, new = advance(state, rows[position : position + size], on_device, weights)
            losses[position : position + size] = new
            _check_finite(losses, position, "training", "train", plan.config.train.learning_rate)
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

    return _stage(plan, workdir, "target", "training the target network", shapes, compute, progress)


def groups_stage(plan: Plan, workdir: Path, progress: Progress, target: TrainRun) -> np.ndarray:
    """Cut the training set into groups."""
    config, train = plan.config.cluster, plan.split.train
    size = len(train.x)

    def compute(resume: Resume) -> np.ndarray:
        if config.method == "file":
            return cluster.check_groups(_read_groups(config.file), size)
        features = train.x
        if config.features == "network":
            if plan.task.features is None:
                raise ValueError("cluster.features=network; this task has no features: use pixels")
            features = np.asarray(in_batches(plan.task.features)(target.params, train.x))
        return cluster.make_groups(
            config.method,
            features=features,
            labels=train.y.argmax(1),
            num_groups=config.num_groups,
            seed=plan.config.seed,
        )

    like = jax.ShapeDtypeStruct((size,), np.int32)
    groups = _stage(plan, workdir, "groups", "clustering", like, compute, progress)
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
        on_device = jax.device_put(train)
        start = initial_synset(
            key, plan.task, config.start, target, on_device, groups, config.items, fit
        )
        make_points = jax.jit(make_match_points(plan.task, num_groups, config.offset))
        batches = group_batches(groups, num_groups)
        points = make_points(target, on_device, batches, jnp.asarray(fit))
        advance = jax.jit(plan.distiller.advance, static_argnums=3)

        def step(carry, position: int):
            state, losses = carry
            size = min(DISTILL_CHUNK, config.steps - position)
            state, new = advance(draw_key, state, points, size)
            losses[position : position + size] = new
            _check_finite(losses, position, "distillation", "distill", config.learning_rate)
            return (state, losses), position + size, f"matching loss {np.mean(new):.4f}"

        carry = (plan.distiller.start(start), np.zeros(kept_losses, np.float32))
        state, losses = resume(carry, config.steps, step)
        held = make_points(target, on_device, batches, jnp.asarray(held_out))
        error = jax.jit(make_matching_error(plan.task))
        return SynsetResult(
            synset=state.synset,
            start=start,
            losses=losses,
            error=np.asarray(error(state.synset, held)).mean(0),
            error_start=np.asarray(error(start, held)).mean(0),
        )

    return _stage(plan, workdir, "synset", "distilling the synset", shapes, compute, progress)


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
    outputs = subset_outputs(plan.response)
    start = trajectory_point(target, config.rewind)
    width = jax.eval_shape(plan.output, target.params, query).shape[0]

    def compute(resume: Resume) -> np.ndarray:
        if config.design == "masks":
            masks = random_masks(_key(plan, "attribution"), config.masks, num_groups)
            kept = outputs(masks, start, synset.synset, query)
            scores = ridge_datamodel(masks, kept).astype(np.float32)
        else:
            kept = outputs(leave_one_out_masks(num_groups), start, synset.synset, query)
            scores = np.asarray(kept[0] - kept[1:])
        return make_attribution(scores, groups).scores  # not kept where it is not finite

    like = jax.ShapeDtypeStruct((num_groups, width), np.float32)
    scores = _stage(
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
        on_device, cut = jax.device_put(train), jnp.asarray(groups)
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
        start = trajectory_point(target, plan.config.online.rewind)
        predicted = subset_outputs(plan.response)(masks, start, synset.synset, query)
        baseline = make_grad_dot(plan.task, plan.output)
        return CheckResult(
            groups=left_out.astype(np.int32),
            masks=masks,
            retrained=retrained,
            predicted=np.asarray(predicted),
            grad_dot=np.asarray(
                baseline.score(baseline.fit(key, target, on_device, groups), query)
            ),
        )

    what = f"retraining {config.seeds * len(masks)} networks to check"
    return _stage(plan, workdir, "check", what, shapes, compute, progress)


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


Resume = Callable[[Any, int, Callable[[Any, int], tuple[Any, int, str]]], Any]


def _stage(
    plan: Plan,
    workdir: Path,
    name: str,
    what: str,
    like: Any,
    compute: Callable[[Resume], Any],
    progress: Progress,
) -> Any:
    """Load a stage's result, or compute and save it; `like` has its structure and shapes.

    `compute(resume)` may run its loop as `resume(carry, total, step)`, where
    `step(carry, position) -> (carry, position, note)`; the carry is kept on disk every
    SAVE_SECONDS and when the loop is interrupted.
    """
    path, partial = workdir / name, workdir / f"{name}.partial"
    fingerprint = _fingerprint(plan, name)
    if checkpoint.exists(path) and checkpoint.metadata(path)["fingerprint"] == fingerprint:
        progress.say(f"{what}: done before")
        return checkpoint.load(path, like)
    progress.say(what)
    begin = time.perf_counter()
    before = 0.0

    def resume(carry: Any, total: int, step: Callable) -> Any:
        nonlocal before
        position = 0
        if checkpoint.exists(partial):
            kept = checkpoint.metadata(partial)
            if kept["fingerprint"] == fingerprint:
                carry = jax.tree.map(
                    lambda old, new: np.array(new) if isinstance(old, np.ndarray) else new,
                    carry,
                    checkpoint.load(partial, carry),
                )
                position, before = kept["position"], kept["seconds"]
                progress.say(f"  picking up at {position} of {total}")
        show = progress.track(what, total)

        def keep() -> None:
            seconds = before + time.perf_counter() - begin
            checkpoint.save(
                partial,
                carry,
                {"fingerprint": fingerprint, "position": position, "seconds": seconds},
            )

        saved = time.perf_counter()
        try:
            while position < total:
                carry, position, note = step(carry, position)
                show(position, note)
                if time.perf_counter() - saved > SAVE_SECONDS and position < total:
                    keep()
                    saved = time.perf_counter()
        except KeyboardInterrupt:
            if position:
                keep()
            raise
        return carry

    result = jax.block_until_ready(compute(resume))
    seconds = before + time.perf_counter() - begin
    checkpoint.save(
        path, result, {"fingerprint": fingerprint, "seconds": seconds, "versions": versions()}
    )
    checkpoint.remove(partial)
    progress.say(f"  {seconds:.1f} s")
    return result


def _fingerprint(plan: Plan, name: str) -> str:
    """What a stage's result depends on: its settings and the data themselves."""
    sections = {s: dataclasses.asdict(getattr(plan.config, s)) for s in DEPENDS[name]}
    # Where the data lies does not matter, what they are does.
    sections["data"].pop("data_dir")
    digest = hashlib.sha256(json.dumps([plan.config.seed, sections]).encode())
    if "cluster" in sections and plan.config.cluster.method == "file":
        digest.update(_read_groups(plan.config.cluster.file).tobytes())
    for array in (*plan.split.train, *plan.split.test):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def stage_seconds(workdir: Path) -> dict[str, float]:
    """Seconds of each finished stage, compilation included."""
    done = {name: workdir / name for name in DEPENDS if checkpoint.exists(workdir / name)}
    return {name: checkpoint.metadata(path)["seconds"] for name, path in done.items()}


def versions() -> dict[str, str]:
    """Versions of what computes, and the device."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
    return {
        "ddm_jax": ddm_jax.__version__,
        "python": platform.python_version(),
        **{name: packages.version(name) for name in names},
        "device": jax.devices()[0].device_kind,
    }


def _key(plan: Plan, stage: str) -> jax.Array:
    return jax.random.fold_in(jax.random.key(plan.config.seed), list(DEPENDS).index(stage))


def _check_finite(losses: np.ndarray, first: int, what: str, section: str, rate: float) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise ValueError(
            f"{what} diverged at step {bad[0]} of {len(losses)}: its loss is {losses[bad[0]]}; "
            f"lower {section}.learning_rate (now {rate})"
        )


def _read_groups(file: str | None) -> np.ndarray:
    try:
        return np.load(str(file), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"cluster.file={file} cannot be read as .npy: {error}") from error
