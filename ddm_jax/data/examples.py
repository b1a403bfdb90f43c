"""What every route to data of one's own gives: `Examples`, not yet cut into parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddm_jax.data.columns import Used


class Reading(NamedTuple):
    """How to read data of one's own; see `data.load`."""

    target: str | None = None
    groups: str | None = None
    drop: tuple[str, ...] = ()
    missing: str = "refuse"
    words: int = 512


class Fitted(NamedTuple):
    """What becomes of M examples as numbers, once it is known which of them are for training."""

    # rows [n], image_size -> numbers [n, ...] before `(x - offset) / scale`
    read: Callable[[np.ndarray, int | None], np.ndarray]
    offset: np.ndarray | None = None  # [D]; None: as `normalise` says
    scale: np.ndarray | None = None  # [D]
    features: tuple[tuple[str, str | None], ...] = ()  # D columns or words, and of which category
    told: tuple[str, ...] = ()  # lines for the user
    used: tuple[Used, ...] = ()  # the columns of a table


class Examples(NamedTuple):
    """M examples as a route has read them."""

    where: str  # the file or folder, for messages
    kind: str  # images, table, texts or arrays
    labels: np.ndarray  # [M] of any kind, or [M, C] of numbers
    fit: Callable[[np.ndarray], Fitted]  # of the training rows [n]
    test_from: int | None = None  # the first row of a test part; None: it is to be cut
    target: str = "label"  # what the labels are called there
    names: tuple[str, ...] | None = None  # of classes or columns, where the data bring them
    groups: Any = None  # [M] names or numbers; -1 and what is missing are background
    originals: Any = None  # a DataFrame of M rows, or M texts
    told: tuple[str, ...] = ()  # lines for the user


def close_to(name: str, known: Any) -> str:
    """What to say after an unknown name: one that is like it, else all."""
    import difflib

    known = [str(each) for each in known]
    close = difflib.get_close_matches(name, known, 1)
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"did you mean {close[0]!r}?" if close else f"there are {shown}"


def some_of(names: Sequence[str]) -> str:
    """The first eight names, with commas between."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def read_lines(path: Path) -> list[tuple[int, Any]]:
    """The JSON values of a file of lines, each with the number of its line.

    Raises:
        ValueError: for a line that is none, or bytes that are no UTF-8.
    """
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: no JSON object ({error})") from error
    return found


def read_text(path: Path) -> str:
    """A file of UTF-8 text, with its ends of lines as they are.

    Raises:
        ValueError: for bytes that are no UTF-8.
    """
    stored = path.read_bytes()
    try:
        return stored.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = stored.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{stored[error.start]:02x} is no UTF-8; save the file as "
            "UTF-8"
        ) from error
