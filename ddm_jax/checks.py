"""What may come in: numbers, names, settings, batches, runs. The one place for checks.

Every check names the value, what is allowed and the mend in one line, as a ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from ddm_jax.types import Batch, Task, TrainRun, length

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


def require_distributions(task: Task, method: str) -> None:
    """Refuse a task whose targets are no distributions over classes, for a method that needs them.

    Raises:
        ValueError: for `targets="any"`.
    """
    if task.targets != "distribution":
        raise ValueError(
            f"{method} needs classes, and this task has targets={task.targets!r}: use a method "
            "that holds for any loss, such as influence_cg, trak, datamodel or retraining"
        )


def is_concrete(tree: Any) -> bool:
    """Whether no leaf is being traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def check_batch(task: Task, batch: Batch, what: str = "data", need: int = 1) -> None:
    """Check examples before anything compiles; what is being traced passes by its shapes alone.

    Raises:
        ValueError: for leaves without one leading axis of at least `need`, labels that do not fit
            the network, NaN or infinity, or label rows that are no distributions.
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
    if isinstance(y, jax.Array | np.ndarray) and y.ndim == 1:
        raise ValueError(
            f"the labels of {what} have shape {y.shape}; make them one-hot rows [B, C] with "
            "`data.make_batch`"
        )
    if isinstance(y, jax.Array | np.ndarray) and not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(
            f"the labels of {what} are {y.dtype}; make them floating-point rows, one-hot or soft"
        )
    params = jax.eval_shape(task.init, jax.random.key(0))
    some = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
    try:
        logits = jax.eval_shape(jax.jit(task.apply), params, some.x)
    except Exception as error:  # whatever a network of any library raises
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the inputs of {what}, {_shapes(some.x)}, do not fit the network: {first}"
        ) from error
    if not isinstance(y, jax.Array | np.ndarray) or y.shape != logits.shape:
        raise ValueError(
            f"the labels of {what} have shape {_shapes(some.y)}; the network needs {logits.shape}"
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
                f"{rows[bad[0]].sum():g}); for real targets or several labels make the task with "
                "targets='any' and use a method for any loss, such as influence_cg"
            )


def _shapes(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves)


def check_run(task: Task, run: TrainRun) -> None:
    """Check that a run is one of this task's network, and has not diverged.

    Raises:
        ValueError: for parameters of another structure or shape, or that are not finite.
    """
    expected = jax.eval_shape(task.init, jax.random.key(0))
    theirs, ours = (str(jax.tree.structure(tree)) for tree in (run.params, expected))
    if theirs != ours:
        raise ValueError(
            f"the run's parameters are of another network: they are {theirs}, and this task's "
            f"{ours}"
        )
    for want, have in zip(jax.tree.leaves(expected), jax.tree.leaves(run.params), strict=True):
        if want.shape != have.shape:
            raise ValueError(
                f"the run's parameters are of another network: {have.shape} for {want.shape}"
            )
    if is_concrete(run.params):
        finite = jax.tree.map(lambda leaf: bool(np.isfinite(np.asarray(leaf)).all()), run.params)
        if not all(jax.tree.leaves(finite)):
            raise ValueError(
                "the run's parameters are not finite: its training diverged; lower the learning "
                "rate"
            )
