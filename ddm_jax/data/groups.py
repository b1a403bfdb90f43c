"""The groups that data bring: names or numbers of each training example."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddm_jax.types import Groups


def read_groups(values: np.ndarray, where: str) -> Groups:
    """Groups [N] of any names; -1, an empty text and what is missing are the background.

    Numbers come in their order, texts in theirs, and their names are kept.

    Raises:
        ValueError: for fewer than two groups.
    """
    listed = [_plain(each) for each in values.tolist()]
    present: list[Any] = [each for each in listed if each is not None]
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
    return Groups(ids, len(known), tuple(known))


def _plain(value: Any) -> str | None:
    """The name of a group, or None for the background."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value == int(value):
        value = int(value)
    text = (value.decode() if isinstance(value, bytes) else str(value)).strip()
    return None if text in ("", "-1") else text
