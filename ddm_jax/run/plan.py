"""Everything that the settings determine, built and checked before any work."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax import cluster, data, files, objectives, tuning
from ddm_jax.blocks import blocks_needed
from ddm_jax.compute.memory import bytes_of
from ddm_jax.judge.problem import Problem, TruthSettings, make_problem
from ddm_jax.matching import trajectory_indices
from ddm_jax.models import make_module
from ddm_jax.online import check_moments
from ddm_jax.run.settings import Config
from ddm_jax.tasks import classification
from ddm_jax.train import Trainer, recipe
from ddm_jax.types import Groups, Task

TUNING_SEED, CHECK_SEED = 2**31, 2**30  # added to the run's


class Plan(NamedTuple):
    """Everything that the settings determine, built and checked before any work."""

    config: Config
    split: data.Split
    task: Task  # its output is online.objective
    trainer: Trainer
    tune: Problem | None  # what the updates are chosen by; None where nothing is chosen
    check: Problem  # what the run itself is checked by
    truth: Problem  # of `ddm truth` and `ddm compare`
    inputs: dict[str, str]  # digests of the data, and of the groups where a file has them


def make_plan(config: Config) -> Plan:
    """Load the data and build every stage, so that a wrong setting fails before any work.

    Raises:
        ValueError: for a setting that does not fit the data.
    """
    split = load_data(config)
    shape, size = split.train.x.shape[1:], len(split.train.x)
    model, cut, check = config.model, config.cluster, config.check
    options: dict[str, dict[str, Any]] = {
        "logistic": {"initial": model.initial},
        "mlp": {"hidden": model.hidden, "dropout": model.dropout, "initial": model.initial},
        "convnet": {"width": model.width, "depth": model.depth, "norm": model.norm},
        "resnet": {"width": model.width, "blocks": model.blocks, "norm": model.norm},
    }
    if model.kind in ("convnet", "resnet") and len(shape) != 3:
        raise ValueError(
            f"model.kind={model.kind} is for images, and an example here has the shape {shape}; "
            "use model.kind=mlp"
        )
    module = make_module(model.kind, len(split.classes), **options[model.kind])
    task = objectives.explain(classification(module, shape), config.online.objective)
    inputs = {"data": files.digest(*split.train, *split.test)}
    if cut.method == "file":
        inputs["cluster.file"] = files.digest(read_groups(cut.file, size).ids)
    elif cut.method == "data":
        found = split_groups(split)
        inputs["data.groups"] = files.digest(found.ids, np.asarray(found.names))
    else:
        cluster.check_num_groups(cut.method, split.train.y.argmax(1), cut.num_groups)
    few = TruthSettings(
        objective=config.online.objective,
        groups=check.groups,
        seeds=check.seeds,
        subsets=check.subsets,
        subset_seeds=check.seeds,
    )
    halves = TruthSettings(
        objective=config.online.objective,
        leave_one_out=False,
        subsets=config.tune.subsets or tuning.LEAST,
        subset_seeds=config.tune.seeds,
    )
    # Each draws subsets and seeds of its own: what is chosen by one says nothing of another.
    tuned, checked, judged = (
        make_problem(
            task,
            config.train,
            config.distill,
            config.online,
            truth,
            num_points=size,
            seed=(config.seed + apart) % 2**32,
            share=config.tune.share,
        )
        for truth, apart in ((halves, TUNING_SEED), (few, CHECK_SEED), (config.truth, 0))
    )
    params = jax.eval_shape(task.init, jax.random.key(0))
    for explained in (checked.task, judged.task):
        jax.eval_shape(explained.output, params, split.test)
    trainer = recipe(task, config.train, size)
    begin = lambda key: trainer.moments(trainer.start(key))  # noqa: E731
    check_moments(config.online.optimizer, jax.eval_shape(begin, jax.random.key(0)))
    return Plan(
        config=config,
        split=split,
        task=task,
        trainer=trainer,
        tune=tuned if config.tune.subsets else None,
        check=checked,
        truth=judged,
        inputs=inputs,
    )


def load_data(config: Config) -> data.Split:
    """The data of a run.

    Raises:
        ValueError: as `data.load`, and for a number as target.
    """
    split = data.load(**dataclasses.asdict(config.data), seed=config.seed)
    if not split.classes:
        raise ValueError(
            f"{split.name}: a number as target is not yet for `ddm run`; use ddm.regression in "
            "Python, or name a column of classes with data.target"
        )
    return split


def split_groups(split: data.Split) -> Groups:
    """The groups that the data bring.

    Raises:
        ValueError: where they bring none.
    """
    if split.groups is None:
        raise ValueError(
            f"cluster.method=data: {split.name} brings no groups; name their column with "
            "data.groups, or bring an array `groups` in an .npz"
        )
    return split.groups


def check_distillation_fits(plan: Plan) -> None:
    """Check that the gradients to match can be in memory, a block of groups at a time.

    Raises:
        ValueError: as `blocks.blocks_needed`.
    """
    config, train, count = plan.config, plan.split.train, count_groups(plan)
    matched, _ = trajectory_indices(len(plan.trainer.checkpoint_steps), config.distill.part)
    params = jax.eval_shape(plan.task.init, jax.random.key(0))
    distill, held = config.distill, bytes_of(train)
    blocks_needed(count, len(matched), params, held, distill.distance, distill.precision)


def count_groups(plan: Plan) -> int:
    """K, before anything is clustered."""
    cut, points = plan.config.cluster, len(plan.split.train.x)
    if cut.method == "file":
        return read_groups(cut.file, points).count
    if cut.method == "data":
        return split_groups(plan.split).count
    if cut.method == "class":
        return len(np.unique(plan.split.train.y.argmax(1)))
    return points if cut.method == "point" else cut.num_groups


def read_groups(file: str | None, num_points: int) -> Groups:
    """Read a user's groups, a .npy of integers.

    Raises:
        ValueError: when the file cannot be read, or its groups do not fit the points.
    """
    try:
        return cluster.as_groups(np.load(str(file), allow_pickle=False), num_points)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cluster.file={file} cannot be read as groups: {error}") from error
