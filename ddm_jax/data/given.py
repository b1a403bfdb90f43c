"""Data in Python: a DataFrame, arrays, a Dataset as torch has them, or any sequence of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax.data.arrays import array_examples
from ddm_jax.data.examples import Examples, Reading
from ddm_jax.data.table import table_examples
from ddm_jax.data.targets import as_labels
from ddm_jax.data.texts import row_examples

ALLOWED = (
    "pass a path, a name, a pandas DataFrame, arrays (x, y), a dict of the arrays of an .npz, a "
    "Dataset or a sequence of examples (x, y), or (train, test) of two such"
)


class Part(NamedTuple):
    """M examples: as rows with a text, or as arrays and their labels."""

    where: str
    rows: list[Any] | None = None  # M
    x: Any = None  # [M, ...]
    y: Any = None  # an array [M, ...], or M labels of any kind


def given_examples(data: Any, reading: Reading) -> Examples:
    """Data that are no path, read by the routes of files.

    Raises:
        ValueError: for data of no such kind, an example that is no pair or has another shape than
            the first, naming its index; or as the routes do.
    """
    where = given_name(data)
    if is_frame(data):
        return table_examples(data, where, reading)
    if isinstance(data, Mapping):
        return _of_mapping(data, where, reading)
    if is_parts(data) and is_frame(data[0]) and is_frame(data[1]):
        return _of_frames(data[0], data[1], where, reading)
    if not is_parts(data):
        return _joined([_read_part(data, where)], where, reading)
    return _joined(
        [_read_part(data[0], f"{where}, train"), _read_part(data[1], f"{where}, test")],
        where,
        reading,
    )


def given_name(data: Any) -> str:
    """What data are called in messages."""
    return f"the {type(data).__name__}"


def route_of(data: Any) -> str:
    """The ending of the files whose settings data take."""
    part = data[0] if is_parts(data) else data
    if is_frame(part):
        return ".csv"
    if isinstance(part, Mapping) or _is_array(part) or not _is_sequence(part) or not len(part):
        return ".npz"
    return ".jsonl" if isinstance(part[0], Mapping) else ".npz"


def is_frame(data: Any) -> bool:
    """Whether data are a DataFrame, without importing pandas."""
    return hasattr(data, "columns") and hasattr(data, "iloc")


def is_parts(data: Any) -> bool:
    """Whether data are (train, test), and not arrays (x, y)."""
    return isinstance(data, tuple) and len(data) == 2 and not _is_array(data[0])


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_sequence(value: Any) -> bool:
    usable = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return usable and not isinstance(value, str | bytes)


def as_array(value: Any, where: str) -> np.ndarray:
    """An array of what is one, a tensor of another library or nested lists.

    Raises:
        ValueError: for what is none.
    """
    try:
        for step in ("detach", "cpu", "numpy"):  # as torch's tensors need it
            value = getattr(value, step)() if hasattr(value, step) else value
        found = np.asarray(value)
    except Exception as error:  # whatever a tensor of any library raises
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{where}: a {type(value).__name__} is no array ({said})") from error
    if np.ma.is_masked(value):  # what is under a mask would pass for data
        raise ValueError(
            f"{where}: {int(np.ma.getmaskarray(value).sum())} values are masked; fill them in "
            "(`.filled(numpy.nan)` for data.missing=impute), or leave those examples out"
        )
    if found.dtype.kind == "V" and jax.dtypes.issubdtype(found.dtype, np.floating):
        return found.astype(np.float32)  # bfloat16, which numpy has no kind for
    if found.dtype == object and found.size and all(isinstance(each, str) for each in found.flat):
        return found.astype(str)  # as pandas has texts
    return found


def _read_part(part: Any, where: str) -> Part:
    if isinstance(part, tuple) and len(part) == 2 and _is_array(part[0]):
        y = part[1]
        if _is_array(y):
            y = as_array(y, where)
        elif _is_sequence(y):
            y = [_label(y[place], _at(where)(place)) for place in range(len(y))]
        else:
            raise ValueError(f"{where}: y is of type {type(y).__name__}; {ALLOWED}")
        return Part(where, x=as_array(part[0], where), y=y)
    if is_frame(part) or isinstance(part, Mapping) or not _is_sequence(part):
        raise ValueError(f"{where}: data of type {type(part).__name__}; {ALLOWED}")
    if not len(part):
        raise ValueError(f"{where} has no examples; bring at least two of each class")
    examples = [part[place] for place in range(len(part))]
    if isinstance(examples[0], Mapping):
        return Part(where, rows=[_plain_row(row, _at(where)(n)) for n, row in enumerate(examples)])
    for place, example in enumerate(examples):
        if not isinstance(example, tuple | list) or len(example) != 2:
            kind = type(example).__name__
            size = f" of {len(example)}" if isinstance(example, tuple | list) else ""
            raise ValueError(
                f"{where}, example {place}: a {kind}{size}, and no pair (x, y); {ALLOWED}"
            )
    first, labels = examples[0][0], [_label(y, _at(where)(n)) for n, (_, y) in enumerate(examples)]
    if isinstance(first, str):
        rows = [{"text": x, "label": y} for (x, _), y in zip(examples, labels, strict=True)]
        return Part(where, rows=rows)
    arrays = [as_array(x, _at(where)(place)) for place, (x, _) in enumerate(examples)]
    for place, x in enumerate(arrays):
        for what, one, two in (
            ("shape", x.shape, arrays[0].shape),
            ("type", x.dtype == np.uint8, arrays[0].dtype == np.uint8),
        ):
            if one != two:
                raise ValueError(
                    f"{where}, example {place}: x has shape {x.shape} of {x.dtype}, and the first "
                    f"{arrays[0].shape} of {arrays[0].dtype}; bring all of one {what}"
                )
    return Part(where, x=np.stack(arrays), y=labels)


def _of_mapping(data: Mapping[Any, Any], where: str, reading: Reading) -> Examples:
    """The arrays of an .npz; labels may be lists too."""
    named = (("x", "y", where), ("x_test", "y_test", f"{where}, test"))
    pairs = [pair for pair in named if pair[0] in data and pair[1] in data]
    found = {name for pair in pairs for name in pair[:2]}
    others = {
        str(name): as_array(data[name], f"{where}, {name!r}") for name in data if name not in found
    }
    if "x" not in found:
        return array_examples(others, where, reading)
    parts = [_read_part((as_array(data[x], at), data[y]), at) for x, y, at in pairs]
    return _joined(parts, where, reading, others)


def _of_frames(train: Any, test: Any, where: str, reading: Reading) -> Examples:
    import pandas

    if list(train.columns) != list(test.columns):
        odd = [*(set(train.columns) ^ set(test.columns)), "their order"][0]
        raise ValueError(f"{where}: the columns of the parts differ, in {odd!r}; bring the same")
    frame = pandas.concat([train, test], ignore_index=True)
    return table_examples(frame, where, reading)._replace(test_from=len(train))


def _at(where: str) -> Callable[[int], str]:
    return lambda place: f"{where}, example {place}"


def _plain_row(row: Any, where: str) -> Any:
    """A row with its arrays and tensors as numbers; what is no row is refused where it is read."""
    if not isinstance(row, Mapping):
        return row
    return {
        name: as_array(value, where).tolist() if _is_array(value) else value
        for name, value in row.items()
    }


def _label(label: Any, where: str) -> Any:
    """A label as a text, a number, or a list of them."""
    if isinstance(label, str | bool | int | float | list | tuple | set | frozenset):
        return list(label) if isinstance(label, set | frozenset) else label
    return as_array(label, where).tolist()


def _joined(
    parts: list[Part], where: str, reading: Reading, others: Mapping[str, np.ndarray] | None = None
) -> Examples:
    """The one part, or the training part and the test part, and other arrays of an .npz."""
    kinds = {part.rows is None for part in parts}
    if len(kinds) > 1:
        raise ValueError(f"{where}: one part has rows with texts, and one arrays; bring one kind")
    if parts[0].rows is not None:
        sizes = [len(part.rows or ()) for part in parts]
        places = [_at(part.where)(n) for part in parts for n in range(len(part.rows or ()))]
        rows = [row for part in parts for row in part.rows or ()]
        test_from = sizes[0] if len(parts) > 1 else None
        return row_examples(rows, where, places.__getitem__, reading, test_from)
    names, labels = None, [part.y for part in parts]
    if not any(_is_array(y) for y in labels):
        places = [_at(part.where)(n) for part in parts for n in range(len(part.y))]
        y, names = as_labels([each for part in labels for each in part], "y", places.__getitem__)
        cut = len(labels[0])
        labels = [y[:cut], y[cut:]]
    arrays = {"x": parts[0].x, "y": np.asarray(labels[0]), **(others or {})}
    if len(parts) > 1:
        arrays |= {"x_test": parts[1].x, "y_test": np.asarray(labels[1])}
    return array_examples(arrays, where, reading, names)
