"""Fill a truth store: any number of processes at once, and none computes another's row again.

Whoever computes a row holds a lock on one byte of the store's file `lock`. The lock is the
operating system's, so it goes when its process does, and another process takes the row.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ddm_jax import store
from ddm_jax.store import Row, Store

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
    with _lock_file(opened) as lock:
        while missing:
            claimed = _claim(opened, lock, missing, size)
            if not claimed:
                tell(len(rows) - len(missing), "waiting for another process")
                time.sleep(0.5)
            else:
                begin = time.perf_counter()
                outputs = _compute(opened, compute, claimed, size)
                seconds = (time.perf_counter() - begin) / len(claimed)
                for row, values in zip(claimed, outputs, strict=True):
                    store.write_row(opened, row, values, seconds)
                    _unlock(lock, row)
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
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}; it must be at least 1")


def status(opened: Store) -> Status:
    """Count what is done, declared and being computed; not for use inside of `fill`."""
    rows = store.declared(opened)
    done = [row for row in rows if store.is_done(opened, row)]
    seconds = [json.loads(store.paths(opened, row).mark.read_text())["seconds"] for row in done]
    finished = set(done)
    with _lock_file(opened) as lock:
        claimed = 0
        for row in rows:
            if row not in finished:
                if _lock(lock, row):
                    _unlock(lock, row)
                else:
                    claimed += 1
    median = float(np.median(seconds)) if seconds else float("nan")
    return Status(len(done), len(rows), claimed, median)


def _compute(opened: Store, compute: Compute, rows: list[Row], size: int) -> np.ndarray:
    filled = rows + [rows[-1]] * (size - len(rows))
    index, seeds = np.asarray(filled).T
    outputs = np.asarray(compute(index, seeds))
    return outputs[: len(rows)]


def _claim(opened: Store, lock: int, missing: list[Row], size: int) -> list[Row]:
    """Lock up to `size` missing rows that nobody else holds."""
    claimed: list[Row] = []
    for row in missing:
        if len(claimed) == size:
            break
        if not _lock(lock, row):
            continue
        if store.is_done(opened, row):  # by another process, since we looked
            _unlock(lock, row)
        else:
            claimed.append(row)
    return claimed


@contextlib.contextmanager
def _lock_file(opened: Store) -> Iterator[int]:
    lock = os.open(opened.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield lock
    finally:
        os.close(lock)  # gives back every lock that this process holds


def _lock(lock: int, row: Row) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, row.mask * store.MOST_SEEDS + row.seed)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(lock: int, row: Row) -> None:
    fcntl.lockf(lock, fcntl.LOCK_UN, 1, row.mask * store.MOST_SEEDS + row.seed)


def _sweep(opened: Store) -> None:
    """Remove what killed processes left half-written."""
    for left_over in (opened.folder / store.ROWS).glob("*.new-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left_over.stat().st_mtime > 60:
                left_over.unlink()
