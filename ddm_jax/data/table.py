"""Tables: CSV and parquet files, and pandas DataFrames."""

from __future__ import annotations

import csv
import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.checks import require_extra
from ddm_jax.data.columns import (
    MOST_CATEGORIES,
    Column,
    as_number,
    encode,
    missing_words,
    read_column,
    write_points,
)
from ddm_jax.data.examples import Examples, Fitted, Reading, close_to, read_text

TARGETS = ("target", "label", "class", "y")


def csv_examples(path: Path, reading: Reading) -> Examples:
    """A CSV or TSV file with a head.

    Raises:
        ValueError: for a file that cannot be read, or as `table_examples`.
    """
    import pandas

    text, where = read_text(path), str(path)
    apart = "\t" if path.suffix.lower() == ".tsv" else ","
    told: tuple[str, ...] = ()
    try:
        head = _head(text, apart)
        if len(head) == 1 and len(_head(text, ";")) > 1:
            apart, head = ";", _head(text, ";")
            told = ("  columns are apart by semicolons",)
        if head and all(as_number(name) is not None for name in head):
            raise ValueError(_no_head(where, head))
        _check_names(head, where)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame = pandas.read_csv(
                io.StringIO(text, newline=""),
                sep=apart,
                header=0,
                names=head,
                dtype=str,
                index_col=False,
                skipinitialspace=True,
                keep_default_na=False,
            )
    except (pandas.errors.ParserError, pandas.errors.ParserWarning, csv.Error) as error:
        said = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path} cannot be read as a table: {said}") from error
    if _is_row(head, frame):
        raise ValueError(_no_head(where, head))
    if apart == ";":
        commas = [name for name in head if write_points(frame, name)]
        told += (f"  decimal commas, read as points: {', '.join(commas)}",) if commas else ()
    found = table_examples(frame, where, reading, infer=True)
    return found._replace(told=(*found.told, *told))


def _head(text: str, apart: str) -> list[str]:
    """The names of the columns, in the first row that is not blank."""
    lines = io.StringIO(text, newline="")
    rows = csv.reader(lines, delimiter=apart, skipinitialspace=True)
    return next((row for row in rows if row and row != [""]), [])


def _is_row(head: list[str], frame: Any) -> bool:
    """Whether the head is a row of data: its texts, or beside numbers one, are among the values."""
    numbers = [as_number(name) is not None for name in head]
    texts = [name for name, number in zip(head, numbers, strict=True) if not number]
    again = [bool((frame[name] == name).any()) for name in texts]
    return all(again) or (any(again) and any(numbers))


def _no_head(where: str, head: list[str]) -> str:
    shown = ",".join(head[:6]) + (",..." if len(head) > 6 else "")
    return (
        f"{where} has no head: its first row, {shown[:80]}, looks like data; write the names of "
        "the columns in a row before it"
    )


def parquet_examples(path: Path, reading: Reading) -> Examples:
    """A parquet file.

    Raises:
        ValueError: for a file that cannot be read, without pyarrow, or as `table_examples`.
    """
    import pandas

    require_extra("pyarrow", "parquet", str(path))
    try:
        frame = pandas.read_parquet(path)
    except Exception as error:  # pyarrow raises many kinds
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as parquet: {said}") from error
    return table_examples(frame, str(path), reading)


def table_examples(frame: Any, where: str, reading: Reading, infer: bool = False) -> Examples:
    """A DataFrame, a row an example.

    Raises:
        ValueError: for columns that there are not, are there twice, hold several kinds of values,
            miss some, or have too many categories.
    """
    frame = frame.reset_index(drop=True)
    names = [str(name) for name in frame.columns]
    _check_names(names, where)
    frame.columns = names
    if not len(frame):
        raise ValueError(f"{where} has no rows")
    targets = _asked_targets(reading.target, names)
    groups_asked = [] if reading.groups is None else [reading.groups]
    for setting, wanted in (("target", targets), ("groups", groups_asked), ("drop", reading.drop)):
        for asked in wanted:
            if asked not in names:
                mend = close_to(asked, names)
                raise ValueError(f"data.{setting}={asked}: no such column; {mend}")
    left = [name for name in names if name not in reading.drop and name != reading.groups]
    guessed = next((name for name in left if name.lower() in TARGETS), left[-1] if left else "")
    targets = targets or [guessed]
    for target in targets:
        if target not in left:
            raise ValueError(
                f"data.target={target} is dropped, or has the groups; name another column"
            )
        left.remove(target)
    target = ",".join(targets)
    if not left:
        raise ValueError(f"{where} has no column beside the target {target!r}; it needs one")
    said: list[str] = []
    if infer:
        frame, said = _without_missing(frame, targets)
    read = [read_column(name, frame[name], where, infer) for name in targets]
    labels = _labels(read[0], where) if len(read) == 1 else _several_labels(read, where)
    columns = [read_column(name, frame[name], where, infer) for name in left]
    for column in columns:
        _check_column(column, where, reading.missing)

    def fit(rows: np.ndarray) -> Fitted:
        x, offset, scale, features, told, used = encode(columns, rows, where, infer)
        return Fitted(lambda some, image_size: x[some], offset, scale, features, told, used)

    found = "" if reading.target else " (data.target names another)"
    groups = None
    if reading.groups is not None:
        groups = frame[reading.groups].astype(object)
        groups = np.asarray(groups.where(groups.notna(), None), object)
    told = [f"{where}: {len(frame):,} rows, {_called(targets)}{found}"]
    told += [f"  dropped, as asked: {', '.join(reading.drop)}"] if reading.drop else []
    told += said
    return Examples(
        where=where,
        kind="table",
        labels=labels,
        fit=fit,
        target=target,
        names=tuple(targets) if len(targets) > 1 else None,
        groups=groups,
        originals=frame[left],
        told=tuple(told),
    )


def _without_missing(frame: Any, targets: list[str]) -> tuple[Any, list[str]]:
    """Texts of a file with what stands for missing values removed, and lines for the user.

    In a target of names "None" and "NA" are names too; what is empty is missing there as well.
    """
    gone = frame.apply(missing_words)
    said = []
    for name in targets:
        words = {word for word in frame[name][gone[name]].dropna() if word}
        shown = sorted(word for word in words if as_number(word) is None)  # "nan" stays missing
        others = frame[name][~gone[name]].map(lambda text: str(text).strip().lower())
        named = {text for text in others if as_number(text) is None} - {"true", "false"}
        if shown and 2 * others.isin(named).sum() > len(others):
            gone[name] &= ~frame[name].isin(shown)
            said += [
                f"  {word!r} in {name!r} is a name like others there; empty would be missing"
                for word in shown
            ]
    return frame.mask(gone), said


def _labels(column: Column, where: str) -> np.ndarray:
    gone = np.flatnonzero(column.missing)
    if gone.size:
        raise ValueError(
            f"{where}, row {gone[0] + 1}: the target {column.name!r} is missing ({gone.size} in "
            "all); remove such rows, or name another with data.target="
        )
    if column.kind == "category":
        return column.values.astype(str)
    return column.values.astype(np.int64) if column.whole else column.values


def _several_labels(columns: list[Column], where: str) -> np.ndarray:
    """Several targets [M, C]: labels that hold or not, or numbers."""
    for column in columns:
        if column.kind == "category" and not column.missing.all():
            text = column.values[np.flatnonzero(~column.missing)[0]]
            raise ValueError(
                f"{where}: column {column.name!r}, one of several targets, holds texts ({text!r}); "
                "each must be of 0 and 1, true and false, or numbers"
            )
    return np.stack([_labels(column, where) for column in columns], 1)


def _asked_targets(asked: str | None, names: list[str]) -> list[str]:
    """The columns that are named, with commas between where there are several."""
    if asked is None or asked in names:
        return [] if asked is None else [asked]
    return list(dict.fromkeys(each.strip() for each in asked.split(",")))


def _called(targets: list[str]) -> str:
    if len(targets) == 1:
        return f"the target is {targets[0]!r}"
    return f"the targets are {', '.join(map(repr, targets))}"


def _check_column(column: Column, where: str, missing: str) -> None:
    gone = np.flatnonzero(column.missing)
    if gone.size == len(column.missing):
        raise ValueError(
            f"{where}: column {column.name!r} is empty; leave it out with data.drop={column.name}"
        )
    if gone.size and missing == "refuse":
        raise ValueError(
            f"{where}, row {gone[0] + 1}, column {column.name!r}: the value is missing "
            f"({gone.size} in this column); fill it in, or say data.missing=impute"
        )
    if column.kind == "category":
        count = len(set(column.values[~column.missing]))
        if count > MOST_CATEGORIES:
            raise ValueError(
                f"{where}: column {column.name!r} has {count} different texts, more than "
                f"{MOST_CATEGORIES}; leave it out with data.drop={column.name}"
            )


def _check_names(names: list[str], where: str) -> None:
    if "" in names and len(names) > 1:
        raise ValueError(
            f"{where}: column {names.index('') + 1} has no name; name it, or leave it out (pandas "
            "writes the numbers of rows so: save with index=False)"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{where} has the column {twice[0]!r} twice; give each a name of its own")
    if len(names) < 2:
        shown = f" {names[0][:60]!r}" if names else "s at all"
        raise ValueError(
            f"{where} has one column{shown}; it needs a target and another, with commas between"
            if names
            else f"{where} is empty; it needs a head and rows"
        )
