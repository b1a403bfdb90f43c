"""The columns of a table: numbers, categories, true or false; and the numbers that they become."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

MOST_CATEGORIES = 50
# What pandas, R, SQL and spreadsheets write where a value is missing.
MISSING = (
    *("", "NA", "N/A", "n/a", "<NA>", "#N/A", "#N/A N/A", "#NA", "NaN", "nan", "-NaN", "-nan"),
    *("None", "NULL", "null", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?$")  # a number with a decimal comma


class Column(NamedTuple):
    """A column [M], of one kind."""

    name: str
    kind: str  # number, boolean or category
    values: np.ndarray  # [M]: float64, bool, or object with texts
    missing: np.ndarray  # [M] bool
    whole: bool = False  # a number that was written without a point


def read_column(name: str, series: Any, where: str, infer: bool) -> Column:
    """Find out of which kind a column is.

    Args:
        series: a pandas Series [M].
        infer: whether texts may stand for numbers and booleans, as in a CSV file.

    Raises:
        ValueError: for values of several kinds, of another kind, or that are not finite.
    """
    from pandas.api import types

    missing = np.asarray(series.isna(), bool)
    present = np.flatnonzero(~missing)
    if types.is_bool_dtype(series.dtype) and not missing.any():
        return Column(name, "boolean", np.asarray(series, bool), missing)
    if types.is_numeric_dtype(series.dtype) and not types.is_bool_dtype(series.dtype):
        if types.is_complex_dtype(series.dtype):
            raise ValueError(_other(name, where, series.dtype))
        whole = types.is_integer_dtype(series.dtype)
        return _number(name, series.to_numpy(np.float64, na_value=np.nan), missing, where, whole)
    listed = series.astype(object).tolist()
    kinds = {place: _kind(listed[place]) for place in present}
    if not len(present):
        return Column(name, "number", np.full(len(listed), np.nan), missing)
    common = Counter(kinds.values()).most_common(1)[0][0]
    for place, kind in kinds.items():
        if kind != common:
            raise ValueError(_mixed(name, where, place, listed[place], common))
    if common == "other":
        raise ValueError(_other(name, where, type(listed[present[0]]).__name__))
    if common == "number":
        values = np.full(len(listed), np.nan)
        values[present] = [float(listed[place]) for place in present]
        whole = all(isinstance(listed[place], int | np.integer) for place in present)
        return _number(name, values, missing, where, whole)
    if common == "text" and infer:
        texts = [str(listed[place]).strip() for place in present]
        numbers = [as_number(text) for text in texts]
        readable = sum(number is not None for number in numbers)
        if readable == len(texts):
            values = np.full(len(listed), np.nan)
            values[present] = numbers
            whole = all(text.lstrip("+-").isdigit() for text in texts)
            return _number(name, values, missing, where, whole)
        if 2 * readable > len(texts):
            at = next(index for index, number in enumerate(numbers) if number is None)
            raise ValueError(_mixed(name, where, present[at], texts[at], "number"))
        commas = [place for place, text in zip(present, texts, strict=True) if COMMA.match(text)]
        if 2 * (len(commas) + readable) > len(texts) and commas:
            raise ValueError(
                f"{where}, row {commas[0] + 1}, column {name!r}: "
                f"{str(listed[commas[0]]).strip()!r} has a comma; write decimals with a point and "
                f"thousands without, or leave the column out with data.drop={name}"
            )
        if {text.lower() for text in texts} <= {"true", "false"}:
            common = "boolean"
            for place, text in zip(present, texts, strict=True):
                listed[place] = text.lower() == "true"
    if common == "boolean" and not missing.any():
        return Column(name, "boolean", np.asarray(listed, bool), missing)
    values = np.full(len(listed), None, object)
    for place in present:
        values[place] = str(listed[place]).strip()
    return Column(name, "category", values, missing)


def _number(name: str, values: np.ndarray, missing: np.ndarray, where: str, whole: bool) -> Column:
    endless = np.flatnonzero(np.isinf(values))
    if endless.size:
        raise ValueError(
            f"{where}, row {endless[0] + 1}, column {name!r}: {values[endless[0]]} is not finite; "
            "repair or remove that row"
        )
    return Column(name, "number", values, missing | np.isnan(values), whole)


def _kind(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "boolean"
    if isinstance(value, int | float | np.integer | np.floating):
        return "number"
    return "text" if isinstance(value, str) else "other"


def as_number(text: str) -> float | None:
    """The number that a text means, or None."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def missing_words(series: Any) -> Any:
    """Which texts [M] of a file stand for a missing value."""
    return series.isna() | series.isin(MISSING)


def write_points(frame: Any, name: str) -> bool:
    """Write the decimal commas of a column as points, where most of its texts are numbers then.

    Returns:
        whether there are any.
    """
    column = frame[name]
    commas = column.map(lambda text: bool(COMMA.match(str(text).strip())))
    others = [as_number(str(text)) is not None for text in column[~missing_words(column) & ~commas]]
    texts = len(others) - sum(others)
    if not commas.any() or texts >= commas.sum() + sum(others):
        return False
    frame[name] = column.where(~commas, column.map(lambda text: str(text).replace(",", ".")))
    return True


def _mixed(name: str, where: str, row: Any, value: Any, common: str) -> str:
    return (
        f"{where}, row {row + 1}, column {name!r}: {value!r} is no {common}, as most of the column "
        f"is; repair it, or leave the column out with data.drop={name}"
    )


def _other(name: str, where: str, kind: Any) -> str:
    return (
        f"{where}: column {name!r} holds {kind}, and no numbers, texts or booleans; turn it into "
        f"numbers, or leave it out with data.drop={name}"
    )


class Used(NamedTuple):
    """A column that became numbers: how its values are read; JSON values all."""

    name: str
    kind: str  # as of a `Column`
    categories: list[str]  # that became a number each; none of the other kinds
    gap: float | str | None  # what stands for a missing value; None: none was missing
    texts: bool  # whether texts may mean numbers, truth and what is missing, as in a CSV file


class Encoded(NamedTuple):
    """The numbers of a table."""

    x: np.ndarray  # [M, D] float64, before they are standardised
    offset: np.ndarray  # [D]
    scale: np.ndarray  # [D]
    features: tuple[tuple[str, str | None], ...]  # D columns, and of which category
    told: tuple[str, ...]
    used: tuple[Used, ...]


def encode(columns: list[Column], rows: np.ndarray, where: str, infer: bool) -> Encoded:
    """Numbers are standardised, and medians and categories found, by the training rows.

    Raises:
        ValueError: for a table without a column that tells its rows apart.
    """
    parts: list[np.ndarray] = []
    standard: list[bool] = []
    features: list[tuple[str, str | None]] = []
    kinds = ("number", "boolean", "category", "constant", "missing")
    said: dict[str, list[str]] = {kind: [] for kind in kinds}
    filled: list[str] = []
    used: list[Used] = []
    for column in columns:
        values, name = column.values, column.name
        gap: float | str | None = None
        if column.missing[rows].all():
            said["missing"].append(name)
            continue
        if column.kind == "category":
            values = np.where(column.missing, "missing", values).astype(str)
            known = np.unique(values[rows])
            found = (values[:, None] == known).astype(np.float64)
            named: list[tuple[str, str | None]] = [(name, str(each)) for each in known]
            gap = "missing" if column.missing.any() else None
            note = f"{name} ({len(known)})"
        else:
            values = values.astype(np.float64)
            if column.missing.any():
                there = rows[~column.missing[rows]]
                gap = middle = float(np.median(values[there]))
                values = np.where(column.missing, middle, values)
            known, named, note = np.unique(values[rows]), [(name, None)], name
            found = values[:, None]
        if len(known) < 2:
            said["constant"].append(name)
            continue
        if column.missing.any():
            filled.append(f"{name} ({column.missing.sum()})")
        said[column.kind].append(note)
        parts.append(found)
        features += named
        listed = [each for _, each in named if each is not None]
        used.append(Used(name, column.kind, listed, gap, infer))
        standard += [column.kind == "number"] * len(named)
    if not parts:
        raise ValueError(f"{where}: all rows are equal; no column is left that tells them apart")
    x = np.concatenate(parts, 1)
    offset, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    offset[standard] = x[rows][:, standard].mean(0)
    with np.errstate(over="ignore"):  # what is too large is refused by its name
        scale[standard] = np.maximum(x[rows][:, standard].std(0), 1e-300)
    words = {
        "number": "numbers, standardised",
        "boolean": "true or false",
        "category": "categories, a column for each value",
        "constant": "constant, dropped",
        "missing": "missing in all of the training part, dropped",
    }
    told = [f"  {words[kind]}: {_listed(names)}" for kind, names in said.items() if names]
    told += [f"  missing values filled: {_listed(filled)}"] if filled else []
    return Encoded(x, offset, scale, tuple(features), tuple(told), tuple(used))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
