"""New examples become numbers as those of a split did: queries where the data are gone."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddm_jax.data.columns import MISSING, Column, Used, read_column
from ddm_jax.data.examples import close_to, some_of
from ddm_jax.data.given import as_array
from ddm_jax.data.images import pixels_of
from ddm_jax.data.split import Preparation, Split, make_batch
from ddm_jax.data.texts import count_words
from ddm_jax.data.tokens import prepared_documents
from ddm_jax.types import Batch

WHERE = "the queries"
TRUTH = {"True", "False", "missing"}


def preparation_of(split: Split, used: Sequence[Used]) -> Preparation:
    """How the examples of a split became numbers, those of a table by the columns they used."""
    numbers = (split.target_offset, split.target_scale)
    there = [] if split.kind != "table" else [str(each) for each in split.shown_train.columns]
    unnamed = there == [f"x{place}" for place in range(len(there))]
    return Preparation(
        split.kind,
        split.targets,
        list(split.classes),
        list(np.shape(split.train.x)[1:]),
        list(used),
        len(there) if unnamed else 0,
        np.asarray(split.offset, float).tolist(),
        np.asarray(split.scale, float).tolist(),
        *(None if each is None else np.asarray(each, float).tolist() for each in numbers),
    )


def prepare(by: Preparation, examples: Any, labels: Any = None) -> Batch:
    """Make a `Batch` of new examples, to the bit as `data.load` would have made it.

    Of documents they are texts, each one sequence, or pairs (prompt, continuation).

    A text of a category that the data did not have is in none of them, as in `data.load`, and
    warned of.

    Args:
        examples: of a table a DataFrame, or an array [M, columns] where they had no names; texts;
            images [M, H, W, D] as bytes or in [0, 1] (those of "digits" divided by 16), as large as
            the network sees them; other arrays [M, ...].
        labels: names of classes [M]; of several labels lists of names, or [M, C] of zeros and
            ones; or numbers, in the units of the data. None: targets are NaN; a card refuses
            them where its objective needs labels.

    Raises:
        ValueError: for a column that is not there, a value that cannot be one of it or is missing
            where none was, another shape, or a class that the data did not have.
    """
    if by.kind == "language":
        if labels is not None:
            raise ValueError("queries of a language model have no labels; leave them out")
        return prepared_documents(by, examples)
    x = _numbers(by, examples)
    if not len(x):
        raise ValueError("no queries; pass one at least")
    wide = x.dtype
    if list(x.shape[1:]) != by.shape:
        raise ValueError(f"{WHERE} have the shape {list(x.shape[1:])}; it must be {by.shape}")
    x = (x - np.asarray(by.offset, wide)) / np.asarray(by.scale, wide)
    made = make_batch(x, np.zeros(len(x), np.int64), 2)
    return made._replace(y=_targets(by, labels, len(x)).astype(made.x.dtype))


def _array(value: Any, what: str) -> np.ndarray:
    found = as_array(value, what)
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{what} hold {found.dtype}; they must be numbers")
    return found


def _numbers(by: Preparation, examples: Any) -> np.ndarray:
    """The numbers [M, ...] before they are standardised."""
    if by.kind == "table":
        return _table(by, examples)
    if isinstance(examples, Mapping) or hasattr(examples, "columns"):
        raise ValueError(
            f"{WHERE} are a {type(examples).__name__}; pass a list of texts, or an array"
        )
    if by.kind == "texts":
        texts = [examples] if isinstance(examples, str) else list(examples)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{WHERE} must be texts")
        return count_words(texts, by.shape[0])[0]
    if isinstance(examples, list | tuple) and all(hasattr(each, "convert") for each in examples):
        examples = [pixels_of(each, by.shape[-1]) for each in examples]  # of pillow
    found = _array(examples, WHERE)
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
        if not by.unnamed:
            raise ValueError(
                f"{WHERE} are a {type(examples).__name__}; the data's columns have names: pass a "
                "DataFrame"
            )
        found = _array(examples, WHERE)
        if found.ndim != 2 or found.shape[1] != by.unnamed:
            raise ValueError(
                f"{WHERE} have shape {found.shape}; pass [M, {by.unnamed}], as the data had"
            )
        frame = pandas.DataFrame(found, columns=[f"x{place}" for place in range(by.unnamed)])
    frame = frame.reset_index(drop=True)
    frame.columns = [str(name) for name in frame.columns]
    parts = []
    for used in (Used(*each) for each in by.columns):  # lists, where they were in a file
        count = Counter(frame.columns)[used.name]
        if count != 1:
            mend = "give each a name of its own" if count else close_to(used.name, frame.columns)
            what = f"the column {used.name!r} twice" if count else f"no column {used.name!r}"
            raise ValueError(f"{WHERE} have {what}; {mend}")
        series = frame[used.name]
        if used.kind == "category":
            parts += _category(used, series)
        else:
            parts.append(_number(used, read_column(used.name, series, WHERE, used.texts)))
    return np.stack(parts, 1)


def _number(used: Used, column: Column) -> np.ndarray:
    values = np.full(len(column.missing), np.nan)
    there = ~column.missing
    wrong = column.kind not in ("number", used.kind)
    if not wrong:
        values = np.array(column.values, np.float64)
    if wrong or (used.kind == "boolean" and not np.isin(values[there], (0, 1)).all()):
        what = "numbers" if used.kind == "number" else "true or false"
        odd = column.values[there & (wrong | ~np.isin(values, (0, 1)))].tolist()[0]
        raise ValueError(f"{WHERE}: column {used.name!r} is of {what}, and holds {odd!r}")
    if column.missing.any():
        _check_gap(used, column.missing)
        values[column.missing] = used.gap
    return values


def _category(used: Used, series: Any) -> list[np.ndarray]:
    """One number for each category."""
    gone = np.array(series.isna(), bool)
    known = set(used.categories)
    read: list[str] = []
    for row, value in enumerate(series.astype(object)):
        text = "missing" if gone[row] else str(value).strip()
        if not gone[row] and not isinstance(value, str) and text not in known:
            raise ValueError(
                f"{WHERE}, row {row + 1}, column {used.name!r}: {value!r} is a "
                f"{type(value).__name__}, and the data had {some_of(used.categories)}"
            )
        if used.texts and text not in known and text in MISSING:
            gone[row], text = True, "missing"
        if known <= TRUTH and text not in known and text.lower() in ("true", "false"):
            text = text.capitalize()
        read.append(text)
    if gone.any():
        _check_gap(used, gone)
    unseen = [row for row, text in enumerate(read) if text not in known]
    if unseen:
        warnings.warn(
            f"{WHERE}, row {unseen[0] + 1}, column {used.name!r}: {read[unseen[0]]!r} is a "
            f"category that the data did not have ({len(unseen)} rows so); it counts as none of "
            f"{some_of(used.categories)}",
            stacklevel=2,
        )
    return [np.asarray([text == each for text in read], np.float64) for each in used.categories]


def _check_gap(used: Used, gone: np.ndarray) -> None:
    if used.gap is None:
        row = np.flatnonzero(gone)[0] + 1
        raise ValueError(
            f"{WHERE}, row {row}, column {used.name!r}: the value is missing, and none was in the "
            "data; fill it in"
        )


def _targets(by: Preparation, labels: Any, count: int) -> np.ndarray:
    """Targets [M, C]."""
    if labels is None:
        columns = len(by.classes) or len(by.target_offset or [0])
        return np.full((count, columns), np.nan)
    if hasattr(labels, "columns") or isinstance(labels, Mapping):
        raise ValueError(f"labels are a {type(labels).__name__}; pass a list or an array")
    if by.targets == "any":
        numbers = _array(labels, "labels").astype(np.float64)
        offset, scale = np.asarray(by.target_offset), np.asarray(by.target_scale)
        if numbers.ndim == 1 and len(offset) == 1:
            numbers = numbers[:, None]
        if numbers.shape != (count, len(offset)) or not np.isfinite(numbers).all():
            raise ValueError(
                f"labels have shape {numbers.shape}; {count} queries need finite numbers "
                f"{count, len(offset)}"
            )
        return (numbers - offset) / scale
    if by.targets == "labels" and not _names(labels):
        held = _array(labels, "labels")
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
        for name in each if isinstance(each, list | tuple | set) else [each]:
            place = places.get(str(name))
            if place is None:
                raise ValueError(f"label {name!r} is none of the data's: {some_of(by.classes)}")
            if not isinstance(name, str) and str(place) != str(name):
                raise ValueError(
                    f"label {name!r} may be a name or a number of a class; pass its name as a "
                    f"text: {some_of(by.classes)}"
                )
            y[row, place] = 1
    if by.targets == "distribution" and (y.sum(1) != 1).any():
        raise ValueError("labels must name one class for each query")
    return y


def _names(labels: Any) -> bool:
    """Whether labels are names, or lists of names, of which some may be empty."""
    if not isinstance(labels, list | tuple):
        return False
    every = [
        name
        for each in labels
        for name in (each if isinstance(each, list | tuple | set) else [each])
    ]
    return all(isinstance(name, str) for name in every)
