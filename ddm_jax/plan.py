"""Everything that the settings determine, built and checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from ddm_jax import cluster, data, objectives
from ddm_jax.config import Config
from ddm_jax.distill import PRECISIONS, Distiller, make_distiller, trajectory_indices
from ddm_jax.estimators.retraining import retraining_response, subset_retraining_response
from ddm_jax.loo import Response, ddm_response, make_finetune, stable_rate, subset_size
from ddm_jax.models import classification, make_module
from ddm_jax.objectives import Output
from ddm_jax.offline import blocks_needed
from ddm_jax.streaming import bytes_of
from ddm_jax.synset import STARTS
from ddm_jax.train import Trainer, cosine_schedule, make_trainer, steps_an_epoch
from ddm_jax.types import Array, Params, Synset, Task

OPTIMIZERS = ("adam", "sgd")


class Plan(NamedTuple):
    """Everything that the settings determine, built and checked before any work."""

    config: Config
    split: data.Split
    task: Task
    trainer: Trainer
    distiller: Distiller
    output: Output
    make_response: Callable[[float], Response]  # of the distilled datamodel, at a learning rate
    stable_rate: Callable[..., Array]  # params, synset -> the online stage's own learning rate
    retraining: Response
    truth_output: Output
    truth_retraining: Response  # of the ground truth's own objective and way of removing


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
        "logistic": {"initial": model.initial},
        "mlp": {"hidden": model.hidden, "dropout": model.dropout, "initial": model.initial},
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
        cluster.check_groups(read_groups(config.cluster.file), size)
    else:
        cluster.check_num_groups(
            config.cluster.method, split.train.y.argmax(1), config.cluster.num_groups
        )
    trainer = _trainer(task, config, size)
    params = jax.eval_shape(task.init, jax.random.key(0))
    output = objectives.make_objective(online.objective, task.apply)
    truth_output = objectives.make_objective(config.truth.objective, task.apply)
    for explained in (output, truth_output):
        jax.eval_shape(explained, params, split.test)
    if config.truth.removal == "subset":
        kept = subset_size(size, config.truth.keep[0])
        if train.batch_size > kept:
            raise ValueError(
                f"train.batch_size={train.batch_size} exceeds the {kept} points of a subset; "
                "lower it"
            )
        trained = _trainer(task, config, kept).train
        truth_retraining = subset_retraining_response(trained, truth_output, kept)
    else:
        truth_retraining = retraining_response(trainer.train, truth_output)

    def make_response(rate: float) -> Response:
        finetune = make_finetune(
            task,
            update=online.update,
            steps=online.steps,
            optimizer=optax.sgd(rate, momentum=online.momentum or None, nesterov=True),
            weight_decay=train.weight_decay,
            step_items=online.step_items,
        )
        return ddm_response(finetune, output)

    make_response(1.0)  # a wrong setting fails here

    def stable(params: Params, synset: Synset) -> Array:
        return stable_rate(
            task,
            params,
            synset,
            momentum=online.momentum,
            weight_decay=train.weight_decay,
            step_items=online.step_items,
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
        make_response=make_response,
        stable_rate=jax.jit(stable),
        retraining=retraining_response(trainer.train, output),
        truth_output=truth_output,
        truth_retraining=truth_retraining,
    )


def shorter_trainer(plan: Plan, epochs: int) -> Trainer:
    """The training recipe of a plan with another number of epochs, its schedule compressed.

    Raises:
        ValueError: for fewer than one epoch.
    """
    if epochs < 1:
        raise ValueError(f"epochs={epochs}; it must be at least 1")
    changed = dataclasses.replace(plan.config.train, epochs=epochs, checkpoint_every=epochs)
    config = dataclasses.replace(plan.config, train=changed)
    return _trainer(plan.task, config, len(plan.split.train.x))


def check_distillation_fits(plan: Plan) -> None:
    """Check that the gradients to match can be in memory, a block of groups at a time.

    Raises:
        ValueError: as `offline.blocks_needed`.
    """
    config = plan.config
    if config.cluster.method == "file":
        return  # how many groups it has is seen when it is read
    by_point = config.cluster.method == "point"
    count = len(plan.split.train.x) if by_point else config.cluster.num_groups
    checkpoints = config.train.epochs // config.train.checkpoint_every
    matched, _ = trajectory_indices(checkpoints, config.distill.part)
    params = jax.eval_shape(plan.task.init, jax.random.key(0))
    held, precision = bytes_of(plan.split.train), config.distill.precision
    blocks_needed(plan.distiller, len(matched), count, params, held, precision)


def _trainer(task: Task, config: Config, num_points: int) -> Trainer:
    train = config.train
    epoch = steps_an_epoch(num_points, train.batch_size, train.last_batch)
    steps = train.epochs * epoch
    return make_trainer(
        task,
        steps=steps,
        batch_size=train.batch_size,
        learning_rate=cosine_schedule(
            train.learning_rate, steps, train.final_learning_rate, train.warmup_epochs * epoch
        ),
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        checkpoint_every=train.checkpoint_every * epoch,
        last_batch=train.last_batch,
    )


def check_settings(config: Config) -> None:
    """Check what can be checked without the data.

    Raises:
        ValueError: naming the setting, what is allowed, and how to mend it.
    """
    train, distill, online, check = config.train, config.distill, config.online, config.check
    truth = config.truth
    one_of = {
        "model.kind": (config.model.kind, ("logistic", "mlp", "convnet", "resnet")),
        "model.norm": (config.model.norm, ("instance", "group")),
        "model.initial": (config.model.initial, ("lecun", "uniform")),
        "train.last_batch": (train.last_batch, ("drop", "keep")),
        "truth.removal": (truth.removal, ("weights", "subset")),
        "cluster.method": (config.cluster.method, (*cluster.METHODS, "file")),
        "cluster.features": (config.cluster.features, ("pixels", "network")),
        "distill.start": (distill.start, STARTS),
        "distill.precision": (distill.precision, tuple(PRECISIONS)),
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
        ("online.step_items", online.step_items, 1),
        ("online.masks", online.masks, 2),
        ("check.groups", check.groups, 2),
        ("check.subsets", check.subsets, 0),
        ("check.seeds", check.seeds, 2),
        ("truth.seeds", truth.seeds, 2),
        ("truth.subset_seeds", truth.subset_seeds, 2),
        ("truth.subsets", truth.subsets, 0 if truth.leave_one_out else 4),
    ):
        if number < least:
            raise ValueError(f"{name}={number}; it must be at least {least}")
    for name, rate in (
        ("train.learning_rate", train.learning_rate),
        ("distill.learning_rate", distill.learning_rate),
    ):
        if not 0 < rate < float("inf"):
            raise ValueError(f"{name}={rate}; it must be positive and finite")
    for name, rate in (
        ("train.final_learning_rate", train.final_learning_rate),
        ("online.learning_rate", online.learning_rate),
    ):
        if not 0 <= rate < float("inf"):
            raise ValueError(f"{name}={rate}; it must be at least 0 and finite")
    if train.warmup_epochs >= train.epochs:
        raise ValueError(
            f"train.warmup_epochs={train.warmup_epochs}; it must be below train.epochs, "
            f"{train.epochs}"
        )
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed={config.seed}; it must be in 0..2**32 - 1")
    for name, part in (
        ("train.momentum", train.momentum),
        ("model.dropout", config.model.dropout),
        ("online.momentum", online.momentum),
        ("online.rewind", online.rewind),
    ):
        if not 0 <= part < 1:
            raise ValueError(f"{name}={part}; it must be in [0, 1)")
    for fraction in truth.keep:
        if not 0 < fraction < 1:
            raise ValueError(f"truth.keep={fraction}; a subset keeps a part in (0, 1)")
    if truth.subsets and not truth.keep:
        raise ValueError("truth.keep is empty; name at least one part to keep, for example 0.5")
    if truth.leave_one_out and not truth.paired:
        raise ValueError("truth.leave_one_out=true needs truth.paired=true: effects are pairs")
    if truth.removal == "subset" and (
        truth.leave_one_out or len(truth.keep) != 1 or config.cluster.method != "point"
    ):
        raise ValueError(
            "truth.removal=subset trains on subsets of one size: it needs cluster.method=point, "
            "truth.leave_one_out=false and a single truth.keep"
        )
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


def read_groups(file: str | None) -> np.ndarray:
    """Read a user's groups, a .npy of integers.

    Raises:
        ValueError: when the file cannot be read.
    """
    try:
        return np.load(str(file), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"cluster.file={file} cannot be read as .npy: {error}") from error
