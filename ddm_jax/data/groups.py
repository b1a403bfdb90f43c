"""The groups that data bring: names or numbers of each training example."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddm_jax.cluster import is_missing
from ddm_jax.types import Groups


def read_groups(values: np.ndarray, rows: np.ndarray, where: str) -> tuple[Groups, tuple[str, ...]]:
    """The groups of some rows of [M] of any names; -1, "" and what is missing are background.

    Numbers come in their order, texts in theirs, and their names are kept.

    Returns:
        the groups, and the names of those that have none of the rows.

    Raises:
        ValueError: for fewer than two groups.
    """
    every = _whole([_plain(each, where) for each in values.tolist()])
    listed = [every[row] for row in rows]
    present = [each for each in listed if each is not None]
    try:
        known = sorted(set(present), key=int)
    except ValueError:
        known = sorted(set(present))
    place = {each: index for index, each in enumerate(known)}
    ids = np.asarray([-1 if each is None else place[each] for each in listed], np.int32)
    if len(known) < 2:
        raise ValueError(
            f"{where} brings {len(known)} groups; at least 2 are needed, of which one can be left "
            "out"
        )
    gone = dict.fromkeys(each for each in every if each is not None and each not in place)
    return Groups(ids, len(known), tuple(known)), tuple(gone)


def _plain(value: Any, where: str) -> str | None:
    """The name of a group, or None where there is none."""
    if is_missing(value):
        return None
    if isinstance(value, float) and np.isinf(value):
        raise ValueError(f"{where}: a group is {value}; name it, or leave it empty")
    text = (value.decode() if isinstance(value, bytes) else str(value)).strip()
    return text or None


def _whole(names: list[str | None]) -> list[str | None]:
    """Without the background; and 3 where all names are numbers and this one is written 3.0."""
    try:
        numbers = [None if name is None else float(name) for name in names]
    except ValueError:
        return [None if name == "-1" else name for name in names]
    if not all(number is None or number == round(number) for number in numbers):
        return names
    return [None if number in (None, -1) else str(int(number)) for number in numbers]
