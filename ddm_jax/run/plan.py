"""Everything that the settings determine, built and checked before any work."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax import cluster, data, files, objectives, tuning
from ddm_jax.blocks import blocks_needed
from ddm_jax.checks import check_batch, check_loss
from ddm_jax.compute.memory import bytes_of
from ddm_jax.judge.problem import Problem, TruthSettings, make_problem
from ddm_jax.matching import trajectory_indices
from ddm_jax.models import make_module
from ddm_jax.online import check_moments
from ddm_jax.run.settings import GIVEN, Config
from ddm_jax.tasks import classification, multilabel, regression
from ddm_jax.tasks.language import parts_of, vocabulary_of
from ddm_jax.train import Trainer, recipe
from ddm_jax.types import Groups, Task, length

TASKS = {"distribution": classification, "labels": multilabel, "any": regression}
BASE = "base"  # the library's own network of bytes
TUNING_SEED, CHECK_SEED = 2**31, 2**30  # added to the run's


class Plan(NamedTuple):
    """Everything that the settings determine, built and checked before any work."""

    config: Config
    split: data.Split
    task: Task  # its output is online.objective
    given: Task  # as it came, whose output is the objective "output"
    trainer: Trainer
    tune: Problem | None  # what the updates are chosen by; None where nothing is chosen
    check: Problem  # what the run itself is checked by
    truth: Problem  # of `ddm truth` and `ddm compare`
    inputs: dict[str, str]  # digests of the data, and of the groups where a file has them


def make_plan(config: Config) -> Plan:
    """Load the data and build every stage, so that a wrong setting fails before any work.

    Raises:
        ValueError: for a setting that does not fit the data, or a run of a model or data that were
            given in Python.
    """
    given = [
        name
        for name, value in (("data", config.data.name), ("model", config.model.kind))
        if value.partition(" ")[0] == GIVEN
    ]
    if given:
        raise ValueError(
            f"the {' and the '.join(given)} of this run came from Python: name the file that "
            "defines its study with --study FILE, or go on in Python with ddm.study"
        )
    split = load_data(config)
    return plan_of(config, split, task_of(config, split))


def plan_with(config: Config, given: Plan | None = None) -> Plan:
    """A plan of settings; of the data and the task of `given`, where they came from Python.

    Raises:
        ValueError: as `make_plan`.
    """
    return make_plan(config) if given is None else plan_of(config, given.split, given.given)


def plan_of(config: Config, split: data.Split, task: Task) -> Plan:
    """A plan of data and a task that are there.

    Raises:
        ValueError: for a setting that does not fit them, or a task that does not fit the data.
    """
    size = length(split.train)
    cut, check = config.cluster, config.check
    if split.kind == "language" and cut.method in ("class_kmeans", "kmeans"):
        raise ValueError(
            f"cluster.method={cut.method} clusters numbers, and tokens are none; use "
            "cluster.method=data, the documents, or random, point or file"
        )
    for batch, what in ((split.train, "the training data"), (split.test, "the queries")):
        check_batch(task, batch, what)
    check_loss(task, split.train, "the training data")
    for batch, ids, what in (
        (split.train, split.train_ids, "training points"),
        (split.test, split.test_ids, "queries"),
    ):
        if len(ids) != length(batch):
            raise ValueError(
                f"the split has {length(batch)} {what} and the ids of {len(ids)}: one of them was "
                "replaced alone; make a split of all of them with data.given_split"
            )
    given, task = task, objectives.explain(task, config.online.objective)
    inputs = {"data": digest_of(split)}
    if cut.method == "file":
        inputs["cluster.file"] = files.digest(read_groups(cut.file, size).ids)
    elif cut.method == "data":
        found = split_groups(split)
        inputs["data.groups"] = files.digest(found.ids, np.asarray(found.names or ()))
    else:
        cluster.check_num_groups(cut.method, labels_of(split, cut.method), cut.num_groups)
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
            given,
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
    if split.kind == "language":
        vocabulary = vocabulary_of(given, split.test.x["tokens"].shape[1])
        for batch in (split.train, split.test):
            parts_of(batch.x, vocabulary)
    params = jax.eval_shape(task.init, jax.random.key(0))
    for explained in (checked.task, judged.task):
        found = jax.eval_shape(explained.output, params, split.test)
        if getattr(found, "ndim", None) != 1:
            raise ValueError(
                f"online.objective={config.online.objective} says "
                f"{getattr(found, 'shape', type(found).__name__)} of {length(split.test)} queries; "
                "it must be one number each: use loss or output"
            )
    trainer = recipe(task, config.train, size)
    begin = lambda key: trainer.moments(trainer.start(key))  # noqa: E731
    check_moments(config.online.optimizer, jax.eval_shape(begin, jax.random.key(0)))
    return Plan(
        config=config,
        split=split,
        task=task,
        given=given,
        trainer=trainer,
        tune=tuned if config.tune.subsets else None,
        check=checked,
        truth=judged,
        inputs=inputs,
    )


def digest_of(split: data.Split) -> str:
    """The digest of the examples."""
    return files.digest(*jax.tree.leaves((split.train, split.test)))


def load_data(config: Config) -> data.Split:
    """The data of a run.

    Raises:
        ValueError: as `data.load`.
    """
    return data.load(**dataclasses.asdict(config.data), seed=config.seed)


def task_of(config: Config, split: data.Split) -> Task:
    """The task of the library's own network of the settings, by what the targets are.

    Raises:
        ValueError: for a network that does not fit the examples.
    """
    model = config.model
    if split.kind == "language":
        return language_task(config, split)
    if model.kind == "gpt":
        raise ValueError(
            f"model.kind=gpt is for documents, and {split.name} are {split.kind}; say with "
            "data.context how many tokens a sequence has"
        )
    shape = split.train.x.shape[1:]
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
    module = make_module(model.kind, split.train.y.shape[1], **options[model.kind])
    return TASKS[split.targets](module, shape)


def language_task(config: Config, split: data.Split) -> Task:
    """The task of a GPT on documents, fresh or of a folder.

    Raises:
        ValueError: for another network, or one that does not know the tokens.
    """
    from ddm_jax import models, tasks

    model, context = config.model, split.train.x["tokens"].shape[1]
    vocabulary = split.tokenizer.vocabulary if split.tokenizer else 0
    if model.kind != "gpt":
        raise ValueError(f"model.kind={model.kind} is not for documents; use model.kind=gpt")
    only: dict[str, Any] = {}
    if model.lora:
        from flax import nnx

        only = {"trainable": nnx.LoRAParam}
    if model.start is None:
        sizes = {name: getattr(model, name) for name in ("width", "depth", "heads", "lora")}

        def fresh(rngs: Any) -> Any:
            return models.GPT(vocabulary, context=context, rngs=rngs, **sizes)

        return tasks.language(fresh, context, **only)
    folder = models.BASE if model.start == BASE else model.start
    made = models.load_gpt2(folder, lora=model.lora)
    # With its own tokenizer it may know more, such as those that fill up its table.
    unlike = made.vocabulary != vocabulary and config.data.tokenizer is None
    if made.context < context or made.vocabulary < vocabulary or unlike:
        raise ValueError(
            f"model.start={model.start} knows {made.vocabulary} tokens and a context of "
            f"{made.context}; the documents have {vocabulary} and data.context={context}: name "
            "its own tokenizer with data.tokenizer, and a context that fits"
        )
    return tasks.language(made, context, **only)


def labels_of(split: data.Split, method: str) -> np.ndarray:
    """The class of each training point, [N]; for a method that asks for none, zeros.

    Raises:
        ValueError: where targets are no classes and the method asks for them.
    """
    if split.targets == "distribution":
        return np.asarray(split.train.y).argmax(1)
    if method in ("class", "class_kmeans"):
        found = "several labels each" if split.targets == "labels" else "none"
        raise ValueError(
            f"cluster.method={method} is for classes, and the targets are {found}; use "
            "cluster.method=kmeans"
        )
    return np.zeros(length(split.train), np.int64)


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
    cut, points = plan.config.cluster, length(plan.split.train)
    if cut.method == "file":
        return read_groups(cut.file, points).count
    if cut.method == "data":
        return split_groups(plan.split).count
    if cut.method == "class":
        return len(np.unique(labels_of(plan.split, cut.method)))
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
