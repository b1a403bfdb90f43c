"""What the examples of one's own have as targets: classes, several labels, or numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddm_jax.data.examples import Examples, some_of

MOST_VALUES = 20  # of a target of numbers that are classes


class Targets(NamedTuple):
    """The targets of M examples."""

    kind: str  # in the words of `Task.targets`
    names: tuple[str, ...]  # of the C classes or labels; none of numbers
    values: np.ndarray  # the classes [M]; labels that hold, or numbers, [M, C]
    told: str


def find_targets(found: Examples) -> Targets:
    """Find what the targets are.

    One column is of classes, whose names are in the order of their numbers or texts, or of numbers.
    Several columns of 0 and 1 are labels, or classes where exactly one holds in every row; several
    of other numbers are numbers.

    Raises:
        ValueError: for a target that is the same everywhere, or not finite, or names that are not
            one for each.
    """
    values = np.asarray(found.labels)
    values = values[:, 0] if values.shape[1:] == (1,) else values
    if values.dtype.kind == "S":
        values = np.char.decode(values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))[0]
        shown = values[row][~np.isfinite(values[row])][0] if values.ndim > 1 else values[row]
        raise ValueError(f"{found.where}, row {row + 1}: the target is {shown}; remove it")
    if values.ndim > 2 or (values.ndim == 2 and values.dtype.kind not in "fiub"):
        raise ValueError(
            f"{found.where}: the target {found.target!r} is an array of shape {values.shape} of "
            f"{values.dtype}; bring one column, or several of numbers"
        )
    if values.ndim == 2:
        return _of_several(found, values)
    present, places = np.unique(values, return_inverse=True)
    _check_differ(found, present)
    if found.names is not None:
        return _classes(found.names, _named(values, present, found))
    if values.dtype.kind in "fiu":
        most = MOST_VALUES if values.dtype.kind == "f" else max(MOST_VALUES, len(values) // 2)
        if len(present) > most:
            told = "  a number as target: a regression"
            return Targets("any", (), values[:, None].astype(np.float64), told)
        whole = (present == np.round(present)).all()
        names = [f"{each:.0f}" if whole else f"{each:g}" for each in present]
        if len(set(names)) < len(names):  # six digits do not tell them apart
            names = [repr(float(each)) for each in present]
        return _classes(names, places)
    return _classes([str(each) for each in present], places)


def _of_several(found: Examples, values: np.ndarray) -> Targets:
    """The targets of a [M, C] of numbers."""
    count = values.shape[1]
    names = found.names or tuple(map(str, range(count)))
    if len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"{found.where}: {len(names)} names for the {count} columns of the target "
            f"{found.target!r}; bring a name of its own for each"
        )
    if not ((values == 0) | (values == 1)).all():
        constant = np.flatnonzero((values == values[:1]).all(0))
        if constant.size:
            raise ValueError(
                f"{found.where}: the target {names[constant[0]]!r} is constant "
                f"({values[0, constant[0]]}); leave it out"
            )
        shown = f": {some_of(names)}" if found.names else ""
        told = f"  {count} numbers as targets, a regression{shown}"
        return Targets("any", (), values.astype(np.float64), told)
    held = values.sum(1)
    if (held == 1).all():
        classes = values.argmax(1)
        _check_differ(found, np.unique(np.asarray(names)[classes]))
        return _classes(names, classes)
    told = (
        f"  {count} labels, {held.mean():.2g} of which hold in an example on average: "
        f"{some_of(names)}"
    )
    return Targets("labels", names, values.astype(np.float64), told)


def _classes(names: Sequence[str], places: np.ndarray) -> Targets:
    told = f"  {len(names)} classes: {some_of(names)}"
    return Targets("distribution", tuple(names), places, told)


def _check_differ(found: Examples, present: np.ndarray) -> None:
    if len(present) < 2:
        raise ValueError(
            f"{found.where}: the target {found.target!r} is constant ({present[0]}); a classifier "
            "needs two classes or more"
        )


def _named(values: np.ndarray, present: np.ndarray, found: Examples) -> np.ndarray:
    """The classes [M] of labels that have names: their places among them, from 0 or from 1."""
    names = found.names or ()
    if values.dtype.kind == "U" and set(present) <= set(names):
        return np.asarray([names.index(each) for each in values])
    whole = values.dtype.kind in "fiub" and (present == present.astype(np.int64)).all()
    if len(set(names)) != len(names) or not whole:
        raise ValueError(f"{found.where}: names must be different, and y their places, from 0")
    first = 1 if present[0] == 1 and present[-1] == len(names) else 0
    if present[0] < first or present[-1] - first >= len(names):
        raise ValueError(
            f"{found.where}: {len(names)} names, and y has labels from {present[0]} to "
            f"{present[-1]}; they must be places among the names, from 0"
        )
    return values.astype(np.int64) - first


def as_labels(listed: Sequence[Any], name: str, at: Callable[[int], str]) -> tuple[np.ndarray, Any]:
    """Labels of any kind as an array: [M], or [M, C] of lists.

    A list of texts is of the labels that hold; one of numbers has one for each of C columns.

    Args:
        name: what the labels are called there.
        at: where a label is from, for messages.

    Returns:
        the array, and the names of its C columns where they are known.

    Raises:
        ValueError: for labels of several kinds, lists of several lengths, or no label at all.
    """
    kinds = [_kind(label) for label in listed]
    for row, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(
                f"{at(row)}: {name!r} is {repr(listed[row])[:60]}, of another kind than before; "
                "write all as texts, all as numbers, or all as lists of texts"
            )
    if kinds[0] != "list":
        return np.asarray(listed), None
    if not any(isinstance(each, str) for labels in listed for each in labels):
        odd = [row for row, labels in enumerate(listed) if len(labels) != len(listed[0])]
        if odd:
            raise ValueError(
                f"{at(odd[0])}: {name!r} is a list of {len(listed[odd[0]])} numbers, and of "
                f"{len(listed[0])} before; of labels that hold write the names, as texts"
            )
        if len(listed[0]):
            return np.asarray([list(labels) for labels in listed]), None
    for row, labels in enumerate(listed):
        for each in labels:
            if not isinstance(each, str) or not each.strip():
                raise ValueError(f"{at(row)}: {each!r} among {name!r} is no text; write names")
    known = sorted({label for labels in listed for label in labels})
    if not known:
        raise ValueError(
            f"{at(0)}: {name!r} is empty, and so are all others; write lists of labels"
        )
    place = {label: index for index, label in enumerate(known)}
    hot = np.zeros((len(listed), len(known)), bool)
    for row, labels in enumerate(listed):
        hot[row, [place[label] for label in labels]] = True
    return hot, tuple(known)


def _kind(label: Any) -> str:
    if isinstance(label, str):
        return "text"
    return "list" if isinstance(label, list | tuple | set | frozenset) else "number"
