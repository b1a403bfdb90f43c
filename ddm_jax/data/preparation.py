"""New examples become numbers as those of a split did: queries where the data are gone."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ddm_jax.data.columns import read_column
from ddm_jax.data.examples import close_to, some_of
from ddm_jax.data.split import Preparation, Split, make_batch
from ddm_jax.data.texts import count_words
from ddm_jax.types import Batch

WHERE = "the queries"


def preparation_of(split: Split, fill: np.ndarray | None) -> Preparation:
    """How the examples of a split became numbers; `fill` are those of what was missing."""
    table = split.kind == "table"
    numbers = (split.target_offset, split.target_scale)
    return Preparation(
        split.kind,
        split.targets,
        list(split.classes),
        list(np.shape(split.train.x)[1:]),
        [list(each) for each in split.features] if table else [],
        [None if np.isnan(each) else float(each) for each in (() if fill is None else fill)],
        np.asarray(split.offset, float).tolist(),
        np.asarray(split.scale, float).tolist(),
        *(None if each is None else np.asarray(each, float).tolist() for each in numbers),
    )


def prepare(by: Preparation, examples: Any, labels: Any = None) -> Batch:
    """Make a `Batch` of new examples, to the bit as `data.load` would have made it.

    Args:
        examples: of a table a DataFrame, or an array [M, columns] where they had no names; texts;
            images [M, H, W, D] as bytes or in [0, 1]; other arrays [M, ...].
        labels: names of classes [M]; of several labels lists of names, or [M, C] of zeros and
            ones; or numbers, in the units of the data. None: targets are NaN, and so is every
            output that needs them.

    Raises:
        ValueError: for a column that is not there, a value that cannot be one of it or is missing
            where none was, another shape, or a class that the data did not have.
    """
    x = _numbers(by, examples)
    wide = x.dtype
    x = (x - np.asarray(by.offset, wide)) / np.asarray(by.scale, wide)
    if list(x.shape[1:]) != by.shape:
        raise ValueError(f"{WHERE} have the shape {list(x.shape[1:])}; it must be {by.shape}")
    made = make_batch(x, np.zeros(len(x), np.int64), 2)
    return made._replace(y=_targets(by, labels, len(x)).astype(made.x.dtype))


def _numbers(by: Preparation, examples: Any) -> np.ndarray:
    """The numbers [M, ...] before they are standardised."""
    if by.kind == "texts":
        texts = [examples] if isinstance(examples, str) else list(examples)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{WHERE} must be texts")
        return count_words(texts, by.shape[0])[0]
    if by.kind == "table":
        return _table(by, examples)
    found = np.asarray(examples)
    if found.ndim == len(by.shape) and by.shape[-1:] == [1]:
        found = found[..., None]  # grey
    if by.kind == "arrays":
        return found.astype(np.float64)
    if found.dtype == np.uint8:
        return found.astype(np.float32) / np.float32(255)
    floats = np.issubdtype(found.dtype, np.floating)
    if not floats or (found.size and not (found.min() >= 0 and found.max() <= 1)):
        raise ValueError(
            f"{WHERE} are images of {found.dtype}"
            f"{' beyond 0..1' if floats else ''}; pass bytes (uint8), or floats in 0..1"
        )
    return found.astype(np.float32)


def _table(by: Preparation, examples: Any) -> np.ndarray:
    import pandas

    frame = examples
    if not isinstance(frame, pandas.DataFrame):
        found = np.asarray(examples)
        if found.ndim != 2:
            raise ValueError(f"{WHERE} have shape {found.shape}; pass a DataFrame, or [M, columns]")
        frame = pandas.DataFrame(found, columns=[f"x{place}" for place in range(found.shape[1])])
    frame = frame.reset_index(drop=True)
    there = [str(name) for name in frame.columns]
    frame.columns = there
    parts = []
    for place, (name, category) in enumerate(by.columns):
        if name not in there:
            raise ValueError(f"{WHERE} have no column {name!r}; {close_to(str(name), there)}")
        series = frame[name]
        gone = np.asarray(series.isna(), bool)
        if category is not None:
            texts = np.asarray([str(value).strip() for value in series.astype(object)])
            if category in ("True", "False"):  # of a file: true and TRUE are the same
                texts = np.char.capitalize(np.char.lower(texts))
            parts.append(np.where(gone, "missing", texts) == category)
            continue
        column = read_column(str(name), series, WHERE, infer=True)
        if column.kind == "category":
            shown = column.values[~column.missing][0]
            raise ValueError(f"{WHERE}: column {name!r} is of numbers, and holds {shown!r}")
        values, fill = column.values.astype(np.float64), by.fill[place]
        if column.missing.any():
            if fill is None:
                row = np.flatnonzero(column.missing)[0] + 1
                raise ValueError(
                    f"{WHERE}, row {row}, column {name!r}: the value is missing, and none was in "
                    "the data; fill it in"
                )
            values = np.where(column.missing, fill, values)
        parts.append(values)
    return np.stack([np.asarray(part, np.float64) for part in parts], 1)


def _targets(by: Preparation, labels: Any, count: int) -> np.ndarray:
    """Targets [M, C]."""
    if labels is None:
        columns = len(by.classes) or len(by.target_offset or [0])
        return np.full((count, columns), np.nan)
    if by.targets == "any":
        numbers = np.asarray(labels, np.float64).reshape(len(np.asarray(labels)), -1)
        offset, scale = np.asarray(by.target_offset), np.asarray(by.target_scale)
        if numbers.shape != (count, len(offset)):
            raise ValueError(
                f"labels have shape {numbers.shape}; {count} queries need {count, len(offset)}"
            )
        return (numbers - offset) / scale
    if by.targets == "labels" and isinstance(labels, np.ndarray | jax.Array):
        held = np.asarray(labels)
        if held.shape != (count, len(by.classes)) or not np.isin(held, (0, 1)).all():
            raise ValueError(
                f"labels have shape {held.shape}; {count} queries need "
                f"{count, len(by.classes)} of zeros and ones, or a list of names each"
            )
        return held
    asked = [labels] if isinstance(labels, str) else list(labels)
    if len(asked) != count:
        raise ValueError(f"{len(asked)} labels for {count} queries; give one for each")
    places = {name: place for place, name in enumerate(by.classes)}
    y = np.zeros((count, len(places)))
    for row, each in enumerate(asked):
        for name in map(str, each if isinstance(each, list | tuple | set) else [each]):
            if name not in places:
                raise ValueError(f"label {name!r} is none of the data's: {some_of(by.classes)}")
            y[row, places[name]] = 1
    if by.targets == "distribution" and (y.sum(1) != 1).any():
        raise ValueError("labels must name one class for each query")
    return y
