"""What may come in: numbers, names, settings, batches, runs. The one place for checks.

Every check names the value, what is allowed and the mend in one line, as a ValueError.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from ddm_jax.types import Array, Batch, Params, Task, TrainRun, length

PIECE = 2**24  # numbers that are looked at at once


def check_integer(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number in `least..most`; no bool, no 2.5, no NaN."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and value >= least and (most is None or value <= most):
        return int(value)
    allowed = f"at least {least}" if most is None else f"in {least}..{most}"
    raise ValueError(f"{name}={value!r}; it must be a whole number, {allowed}")


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """A finite number within the bounds that are given."""
    bounds = (
        ("above", above, lambda bound: value > bound),
        ("at least", least, lambda bound: value >= bound),
        ("below", below, lambda bound: value < bound),
        ("at most", most, lambda bound: value <= bound),
    )
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if (
        number
        and math.isfinite(value)
        and all(holds(bound) for _, bound, holds in bounds if bound is not None)
    ):
        return float(value)
    allowed = [f"{word} {bound:g}" for word, bound, _ in bounds if bound is not None]
    raise ValueError(f"{name}={value!r}; it must be {' and '.join(['a finite number', *allowed])}")


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> Any:
    """One of the allowed names."""
    if isinstance(value, str) and value in allowed:
        return value
    raise ValueError(f"{name}={value!r}; choose one of {', '.join(allowed)}")


@dataclass_transform(frozen_default=True)
def settings(section: str) -> Callable[[type], Any]:
    """Make a class a frozen dataclass whose fields are checked: types strictly, bounds as declared.

    Fields declare what they allow, once: `items: Annotated[int, Field(ge=1)] = 10` or
    `start: Literal["pursuit", "noise"] = "pursuit"`. Errors are one line, named after `section`.
    """
    config = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    def decorate(cls: type) -> Any:
        made = pydantic.dataclasses.dataclass(cls, frozen=True, config=config)
        validated = made.__init__
        names = tuple(made.__dataclass_fields__)

        def init(self: Any, *args: Any, **values: Any) -> None:
            if len(args) > len(names):
                raise ValueError(f"{section} has {len(names)} settings, and {len(args)} are given")
            try:  # by their names, which errors then say
                validated(self, **dict(zip(names, args, strict=False)), **values)
            except pydantic.ValidationError as error:
                raise ValueError(one_line(error, section)) from None

        made.__init__ = init  # type: ignore[method-assign]
        return made

    return decorate


BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}


def say_bound(bound: float) -> str:
    """A bound as one would write it: 4294967296, 0.5."""
    return f"{bound:.0f}" if bound == int(bound) else f"{bound:g}"


def one_line(error: pydantic.ValidationError, section: str = "") -> str:
    """The first fault of settings: "distill.items=0; it must be at least 1"."""
    found = error.errors(include_url=False)[0]
    names = [section, *(str(part) for part in found["loc"] if not str(part).startswith("function"))]
    name, value, kind = ".".join(filter(None, names)), found["input"], found["type"]
    if kind in ("missing", "missing_argument"):
        return f"{name} is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name} is no setting; `ddm settings` lists them"
    if kind == "too_short":
        return f"{name}={value!r}; it must have at least {found['ctx']['min_length']} entry"
    if kind == "literal_error":
        allowed = found["ctx"]["expected"].replace(" or ", ", ")
        return f"{name}={value!r}; choose one of {allowed}"
    if kind in BOUNDS:
        word, bound = BOUNDS[kind]
        return f"{name}={value!r}; it must be {word} {say_bound(found['ctx'][bound])}"
    if kind == "value_error":  # of a check of several fields, which says all of it
        return str(found["ctx"]["error"])
    allowed = found["msg"].removeprefix("Input should be ")
    return f"{name}={value!r}; it must be {allowed}"


def require_extra(package: str, extra: str, what: str) -> Any:
    """A module of a package that is only for some uses.

    Args:
        extra: which of the project's extras brings it.
        what: what needs it.

    Raises:
        ValueError: where it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise ValueError(
            f"{what} needs {name}, which is not installed: python -m pip install 'ddm_jax[{extra}]'"
        ) from error


def require_distributions(task: Task, method: str) -> Callable[[Params, Any], Array]:
    """The logits of a task of classes, `apply(params, x) -> [B, C]`, for a method that needs them.

    Raises:
        ValueError: for `targets="any"`, or a task without predictions.
    """
    if task.targets != "distribution":
        raise ValueError(
            f"{method} needs classes, and this task has targets={task.targets!r}: use a method "
            "that holds for any loss, such as influence_cg, trak, datamodel or retraining"
        )
    if task.apply is None:
        raise ValueError(
            f"{method} needs the logits of the classes, and this task has none: make it with "
            "apply=(params, x) -> [B, C], or with targets='any' and a method for any loss"
        )
    return task.apply


def is_concrete(tree: Any) -> bool:
    """Whether no leaf is being traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def check_batch(task: Task, batch: Batch, what: str = "data", need: int = 1) -> None:
    """Check examples before anything compiles; what is being traced passes by its shapes alone.

    Raises:
        ValueError: for leaves without one leading axis of at least `need`, labels that do not fit
            the network, NaN or infinity, or label rows that are no distributions. Where the
            targets are "any", y may be anything, and None.
    """
    if not isinstance(batch, Batch):
        raise ValueError(f"{what} is a {type(batch).__name__}; make it with `data.make_batch`")
    leaves = jax.tree.leaves(batch)
    lengths = {leaf.shape[0] if np.ndim(leaf) else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths:
        shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves)
        raise ValueError(f"{what} has leaves of shapes {shapes}; they must share one leading axis")
    if length(batch) < need:
        raise ValueError(f"{what} has {length(batch)} examples; it needs at least {need}")
    for leaf in leaves:
        if leaf.dtype.kind not in "fiubV" or np.issubdtype(leaf.dtype, np.complexfloating):
            raise ValueError(f"{what} holds {leaf.dtype}; it must hold numbers")
        if is_concrete(leaf) and not _finite(leaf):
            raise ValueError(f"{what} holds NaN or infinity; leave those examples out")
    if task.targets == "distribution":
        _check_distributions(task, batch, what)
    if task.targets == "labels" and is_concrete(batch.y):
        y = np.asarray(batch.y, np.float32)
        if y.size and not (y.min() >= 0 and y.max() <= 1):
            raise ValueError(
                f"the labels of {what} are {y.min():g} to {y.max():g}; they must be in 0..1, 1 for "
                "a label that holds"
            )


def check_loss(task: Task, data: Batch, what: str = "data") -> None:
    """Check, by shapes alone, that a task has a loss for each example.

    Raises:
        ValueError: for a loss of another shape than [B], such as a mean over them.
    """
    shape = _shape_of(task, "loss", data, what)
    if shape != (length(data),):
        raise ValueError(
            f"the loss of the task has shape {shape} for {length(data)} examples; it must be [B], "
            "one number an example, and no mean over them"
        )


def check_alone(task: Task, params: Params, data: Batch) -> None:
    """Check that the loss of an example depends on that example alone, on a few of them.

    Raises:
        ValueError: for a loss that mixes examples, as a mean of the batch or a `[B, 1] - [B]` does.
    """
    few = jax.tree.map(lambda leaf: jnp.asarray(leaf[:3]), data)
    together = np.asarray(task.loss(params, few), np.float32)
    for place in range(len(together)):
        alone = jax.tree.map(lambda leaf, n=place: leaf[n : n + 1], few)
        apart = np.abs(np.asarray(task.loss(params, alone), np.float32)[0] - together[place])
        if apart > 1e-2 * np.abs(together).max() + 1e-5:
            raise ValueError(
                f"the loss of example {place} is another one among others: a loss must be of each "
                "example alone (a [B, 1] minus a [B] mixes them, and so does a mean of the batch)"
            )


def count_outputs(task: Task, query: Batch) -> int:
    """How many outputs of a query are explained, by shapes alone: Q, or S of a task of sets.

    Raises:
        ValueError: for an output of another shape.
    """
    shape = _shape_of(task, "output", query, "the query")
    if task.of_sets and len(shape) != 1:
        raise ValueError(f"the output of the task has shape {shape}; of sets it must be [S]")
    if not task.of_sets and shape != (length(query),):
        raise ValueError(
            f"the output of the task has shape {shape} for {length(query)} queries; it must be "
            "[Q], or say `task._replace(of_sets=True)` for one of sets of queries"
        )
    return shape[0]


def _shape_of(task: Task, part: str, batch: Batch, what: str) -> tuple[int, ...]:
    """The shape of the task's "loss" or "output" of a batch."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    try:
        found = jax.eval_shape(jax.jit(getattr(task, part)), params, _shapes_of(batch))
    except Exception as error:  # whatever a model of any library raises
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"the {part} of the task fails on {what}: {first}") from error
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise ValueError(f"the {part} of the task is a {type(found).__name__}, and no array")
    return found.shape


def _shapes_of(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _finite(leaf: Any) -> bool:
    """Whether all of an array's numbers are finite; of one in a file a piece is read at a time."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return True
    rows = max(PIECE * len(leaf) // max(leaf.size, 1), 1)
    leaf = np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf
    pieces = (leaf[first : first + rows] for first in range(0, len(leaf), rows))
    return all(bool(np.isfinite(piece).all()) for piece in pieces)


def _check_distributions(task: Task, batch: Batch, what: str) -> None:
    y = batch.y
    if y is None:
        raise ValueError(
            f"{what} has no labels; make them one-hot rows [B, C] with `data.make_batch`, or the "
            "task with targets='any'"
        )
    if isinstance(y, jax.Array | np.ndarray) and y.ndim == 1:
        raise ValueError(
            f"the labels of {what} have shape {y.shape}; make them one-hot rows [B, C] with "
            "`data.make_batch`, or the task with targets='any'"
        )
    if isinstance(y, jax.Array | np.ndarray) and not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(
            f"the labels of {what} are {y.dtype}; make them floating-point rows, one-hot or soft"
        )
    needed = None if task.apply is None else _logits_of(task, task.apply, batch, what)
    if not isinstance(y, jax.Array | np.ndarray) or y.ndim != 2 or y.shape != (needed or y.shape):
        raise ValueError(
            f"the labels of {what} have shape {_shapes(y)}; the network needs "
            f"{needed or 'rows [B, C]'}"
        )
    if y.shape[1] < 2:
        raise ValueError(
            f"the labels of {what} have one column; a classifier needs two classes or more "
            "(for real targets use `regression`, or targets='any')"
        )
    if is_concrete(y):
        rows = np.asarray(y, np.float32)
        bad = np.flatnonzero((np.abs(rows.sum(1) - 1) > 1e-2) | (rows.min(1) < -1e-3))
        if bad.size:
            raise ValueError(
                f"row {bad[0]} of the labels of {what} is no distribution over classes (it sums to "
                f"{rows[bad[0]].sum():g}); for real targets use `regression`, for several labels "
                "`multilabel`, or make the task with targets='any'"
            )


def _logits_of(task: Task, apply: Any, batch: Batch, what: str) -> tuple[int, ...]:
    """The shape of the predictions for a batch."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    some = _shapes_of(batch.x)
    try:
        return jax.eval_shape(jax.jit(apply), params, some).shape
    except Exception as error:  # whatever a network of any library raises
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"the inputs of {what}, {_shapes(some)}, do not fit the network: {first}"
        ) from error


def _shapes(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves)


def check_like(what: str, tree: Any, like: Any, whose: str, axis: int | None = None) -> None:
    """Check that a tree is one of finite numbers with the structure and shapes of another.

    Args:
        axis: the length of a first axis that the tree has before them.

    Raises:
        ValueError: naming the first leaf that differs.
    """
    theirs, ours = (str(jax.tree.structure(each)) for each in (tree, like))
    if theirs != ours:
        raise ValueError(f"{what} has the structure {theirs}; it must have {whose}, {ours}")
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    before = () if axis is None else (axis,)
    for (path, leaf), want in zip(paths, jax.tree.leaves(like), strict=True):
        name = f"{what}{jax.tree_util.keystr(path)}"
        if np.shape(leaf) != (*before, *np.shape(want)):
            raise ValueError(
                f"{name} has shape {np.shape(leaf)}; it must be {(*before, *np.shape(want))}, as "
                f"{whose}"
            )
        if is_concrete(leaf) and not bool(np.isfinite(np.asarray(leaf, np.float32)).all()):
            raise ValueError(
                f"{name} is not finite: its training diverged; lower the learning rate"
            )


def check_run(task: Task, run: TrainRun) -> None:
    """Check that a run is one of this task's network, and has not diverged.

    Raises:
        ValueError: for parameters of another structure or shape, or that are not finite.
    """
    expected = jax.eval_shape(task.init, jax.random.key(0))
    check_like("run.params", run.params, expected, "this task's")
