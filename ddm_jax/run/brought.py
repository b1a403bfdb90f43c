"""What is brought to a study from Python, as what a plan is made of: a split, groups, a task.

Everything is checked here, before any work.
"""

from __future__ import annotations

import dataclasses
import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddm_jax import data as loading
from ddm_jax.cluster import as_groups
from ddm_jax.data import Split
from ddm_jax.data.own import TEST_PART
from ddm_jax.run import own, settings
from ddm_jax.run.plan import TASKS
from ddm_jax.run.settings import GIVEN, Config
from ddm_jax.types import Batch, Groups, Task, length, take
from ddm_jax.updates import UpdateSettings


def of_type(given: Any, kind: type, name: str) -> Any:
    """The settings of a stage, where some are given.

    Raises:
        ValueError: for settings of another stage, or none.
    """
    if given is not None and not isinstance(given, kind):
        raise ValueError(f"{name}={given!r}; pass {kind.__name__}(...)")
    return given


def of_training(groups: Any, split: Split) -> Any:
    """Groups of the training points, where they are given of all examples that were cut."""
    if isinstance(groups, Groups) or not hasattr(groups, "__len__"):
        return groups
    rows = np.concatenate([split.train_ids, split.test_ids])
    if len(groups) != len(rows) or not np.array_equal(np.sort(rows), np.arange(len(rows))):
        return groups
    each = list(groups)
    return [each[row] for row in split.train_ids]


def split_of(data: Any, task: Any, seed: int, column: str | None) -> Split:
    """The split of data in any form; of one batch a fifth become queries.

    Args:
        column: of a table, that says the groups.

    Raises:
        ValueError: as `data.load` and `data.given_split`, or for a column where there is none.
    """
    targets = task.targets if isinstance(task, Task) else None
    if column is not None:
        pair = isinstance(data, tuple | list) and any(isinstance(part, Batch) for part in data)
        if pair or isinstance(data, Split | Batch):
            raise ValueError(
                f"groups={column!r} names a column, and the data have none; give the group of each "
                "training point"
            )
        return _loaded(data, seed, groups=column)
    if isinstance(data, Split):
        train = loading.as_computed(data.train, "the training data")
        return data._replace(train=train, test=loading.as_computed(data.test, "the queries"))
    if isinstance(data, Batch):
        whole = loading.as_computed(data, "the data")
        order = np.random.default_rng(seed).permutation(length(whole))
        cut = max(len(order) // TEST_PART, 1)
        test_ids, train_ids = np.sort(order[:cut]), np.sort(order[cut:])
        parts = take(whole, train_ids), take(whole, test_ids)
        split = loading.given_split(*parts, targets=targets)
        return split._replace(train_ids=train_ids, test_ids=test_ids)
    pair = isinstance(data, tuple | list) and len(data) == 2
    if pair and all(isinstance(part, Batch) for part in data):
        return loading.given_split(data[0], data[1], targets=targets)
    return _loaded(data, seed)


def _loaded(data: Any, seed: int, **reading: Any) -> Split:
    split = loading.load(data, seed=seed, **reading)
    return split if isinstance(data, str | Path) else split._replace(name="your data")


def groups_of(groups: Any, count: int) -> Groups:
    """Groups of one's own, checked, those that are `Groups` already as well."""
    if not isinstance(groups, Groups):
        return as_groups(groups, count)
    return as_groups(groups.ids, count, count=groups.count, names=groups.names)


def task_of(model: Any, split: Split) -> Task:
    """The task of a model, by what the targets are.

    Raises:
        ValueError: for a model that fails on the inputs, in its library's words.
    """
    if split.kind == "language":
        context = split.train.x["tokens"].shape[1]
        raise ValueError(
            f"documents take a task: pass tasks.language(model, {context}) in place of the model"
        )
    inputs = _example_of(split.train.x)
    try:
        return TASKS[split.targets](model, inputs)
    except Exception as error:  # whatever a model of any library raises
        *_, last = traceback.extract_tb(error.__traceback__)
        ours = Path(last.filename).is_relative_to(Path(__file__).parents[1])
        if isinstance(error, ValueError) and ours:
            raise
        shapes = ", ".join(str(leaf.shape[1:]) for leaf in jax.tree.leaves(split.train.x))
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the model fails on examples of shape {shapes}: {said}") from error


def check_differ(split: Split) -> None:
    """Targets that are all the same teach a model nothing; a task of one's own may mean them so."""
    y = split.train.y
    if not isinstance(y, np.ndarray | jax.Array) or len(y) < 2 or (y != y[:1]).any():
        return
    shown = np.asarray(y[0]).ravel()[:8].tolist()
    raise ValueError(
        f"all {len(y)} training examples have the target {shown}, of which nothing can be learnt; "
        "bring others, or a Task"
    )


def _example_of(x: Any) -> Any:
    """The shape of one example, as the makers of tasks take it."""
    if isinstance(x, np.ndarray | jax.Array) and jax.dtypes.issubdtype(x.dtype, np.floating):
        return x.shape[1:]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)


def config_of(
    split: Split,
    given: dict[str, Any],
    *,
    num_groups: int | None,
    objective: str,
    seed: int,
    name: str,
) -> Config:
    """The settings of a study: what is given, and what fits the data."""
    base = settings.preset("own")
    sections = {section: value for section, value in given.items() if value is not None}
    if "online" in sections:
        found = sections["online"]
        if type(found) is not UpdateSettings:  # those with an objective have another place for it
            raise ValueError(
                f"update={found!r}; pass ddm.UpdateSettings, and what is explained as objective="
            )
        sections["online"] = settings.OnlineSettings(**vars(sections["online"]))
    base = dataclasses.replace(base, seed=seed, **sections)
    fitted = [each for each in own.fitted(base, split) if each.partition(".")[0] not in sections]
    if num_groups is not None:
        fitted += [f"cluster.num_groups={num_groups}"]
        fitted = [each for each in fitted if each != "cluster.method=data"]
    fitted += [f"data.name={name}", f"model.kind={GIVEN}"]
    fitted += [f"{section}.objective={objective}" for section in ("online", "truth")]
    return settings.override(base, fitted)
