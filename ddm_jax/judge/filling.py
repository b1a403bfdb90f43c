"""Fill a truth store: any number of processes at once, and none computes another's row again.

Whoever computes a row holds a lock on it, the operating system's, so that it goes when its process
does, and another process takes the row: a lock on one byte of the store's file `lock`, and on
systems without those on a file a row in the folder `locks`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddm_jax.checks import check_integer
from ddm_jax.judge import store
from ddm_jax.judge.store import Row, Store

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
ENOUGH_SECONDS = 2.0  # of work a dispatch, where rows are short
MOST_ROWS = 64  # a dispatch

# rows of the masks [B], seeds [B] -> outputs [B, Q]
Compute = Callable[[np.ndarray, np.ndarray], np.ndarray]
Tell = Callable[[int, str], None]


class Status(NamedTuple):
    """What a store holds."""

    done: int
    declared: int
    claimed: int  # rows that some process is computing now
    seconds_per_row: float  # median of the rows that are done; NaN without any


def fill(
    opened: Store,
    compute: Compute,
    *,
    chunk: int | None = None,
    least: int = 1,
    tell: Tell = lambda done, note: None,
) -> int:
    """Compute every row that is not done; returns how many this process computed.

    Rows that another process is computing are left to it, and waited for: if that process dies,
    they are computed here. Rows are taken seed by seed, so that a store that is not full yet holds
    whole seeds.

    Args:
        compute: pure; a row's outputs must depend on its mask and seed alone.
        chunk: rows a call of `compute`; a last, smaller one is filled up with repeats, so that
            `compute` sees one shape. Default: `least` rows first (the devices that `compute`
            uses), then as many as fill two seconds.
        tell: called with the rows done so far and a note.

    Raises:
        ValueError: for a chunk below 1, or outputs that are not finite; what was computed before
            is kept.
    """
    check_chunk(chunk)
    rows = store.declared(opened)
    _sweep(opened)
    computed, size = 0, chunk or least
    missing = [row for row in rows if not store.is_done(opened, row)]
    looked = time.perf_counter()
    with _Locks(opened) as locks:
        while missing:
            claimed = _claim(opened, locks, missing, size)
            if not claimed:
                tell(len(rows) - len(missing), "waiting for another process")
                time.sleep(0.5)
            else:
                begin = time.perf_counter()
                outputs = compute_rows(compute, claimed, size)
                seconds = (time.perf_counter() - begin) / len(claimed)
                for row, values in zip(claimed, outputs, strict=True):
                    store.write_row(opened, row, values, seconds)
                    locks.give(row)
                computed += len(claimed)
                if chunk is None and size == least < computed:  # the first one compiled
                    enough = int(np.clip(ENOUGH_SECONDS / seconds, size, max(size, MOST_ROWS)))
                    size = enough // least * least
            # What others finish is looked for now and then; looking costs a file a row.
            look = not claimed or time.perf_counter() - looked > ENOUGH_SECONDS
            ours = set(claimed)
            missing = [
                r for r in missing if r not in ours and not (look and store.is_done(opened, r))
            ]
            looked = time.perf_counter() if look else looked
            tell(len(rows) - len(missing), f"{computed} here")
    return computed


def check_chunk(chunk: int | None) -> None:
    """Raise a ValueError for a chunk below 1."""
    if chunk is not None:
        check_integer("chunk", chunk)


def status(opened: Store) -> Status:
    """Count what is done, declared and being computed; not for use inside of `fill`."""
    rows = store.declared(opened)
    done = {row for row in rows if store.is_done(opened, row)}
    seconds = [json.loads(store.paths(opened, row).mark.read_text())["seconds"] for row in done]
    claimed = 0
    with _Locks(opened) as locks:
        for row in rows:
            if row not in done:
                claimed += not locks.take(row)
                locks.give(row)
    median = float(np.median(seconds)) if seconds else float("nan")
    return Status(len(done), len(rows), claimed, median)


def compute_rows(compute: Compute, rows: list[Row], size: int) -> np.ndarray:
    """The outputs of rows, `[len(rows), Q]`, in a call of `size` rows."""
    index, seeds = np.asarray(rows + [rows[-1]] * (size - len(rows))).T
    return np.asarray(compute(index, seeds))[: len(rows)]


def _claim(opened: Store, locks: _Locks, missing: list[Row], size: int) -> list[Row]:
    """Lock up to `size` missing rows that nobody else holds."""
    claimed: list[Row] = []
    for row in missing:
        if len(claimed) == size:
            break
        if not locks.take(row):
            continue
        if store.is_done(opened, row):  # by another process, since we looked
            locks.give(row)
        else:
            claimed.append(row)
    return claimed


class _Locks:
    """The locks of a store's rows; all that this process holds go at the end."""

    def __init__(self, opened: Store) -> None:
        self.folder = opened.folder
        self.held: dict[Row, Any] = {}  # where a row has a file
        if fcntl:
            self.file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, row: Row) -> bool:
        """Whether the row is ours now."""
        if fcntl:
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(row))
            except (BlockingIOError, PermissionError):
                return False
            return True
        import filelock

        (self.folder / "locks").mkdir(exist_ok=True)
        lock = filelock.FileLock(self.folder / "locks" / str(_byte(row)))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return False
        self.held[row] = lock
        return True

    def give(self, row: Row) -> None:
        """Let others take the row, where it is ours."""
        if fcntl:
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, _byte(row))
        elif row in self.held:
            self.held.pop(row).release()

    def __enter__(self) -> _Locks:
        return self

    def __exit__(self, *error: object) -> None:
        for row in list(self.held):
            self.give(row)
        if fcntl:
            os.close(self.file)


def _byte(row: Row) -> int:
    return row.mask * store.MOST_SEEDS + row.seed


def _sweep(opened: Store) -> None:
    """Remove what killed processes left half-written."""
    for left_over in (opened.folder / store.ROWS).glob("*.new-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left_over.stat().st_mtime > 60:
                left_over.unlink()
