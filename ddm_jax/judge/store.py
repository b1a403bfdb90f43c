"""The truth store: the outputs of exactly retrained networks, a file a row, that cannot lose work.

A row is one network: a mask (which groups it keeps) and a seed (its initialisation and batch
order). All rows are declared when the store is made; any number of processes may then fill any of
them, at once or one after the other, and may be killed at any moment:

    truth.json             what the store was made with, and how many seeds each mask has
    masks.npy              [R, K]
    rows/00012-0003.npy    [Q] outputs of mask 12 with seed 3
    rows/00012-0003.json   its done mark, written after it: SHA-256, seconds, device
    lock                   one byte a row; see `filling`

Files appear whole or not at all, and are never links. A row without a valid done mark is simply not
done. What a store was made with (settings, data, groups, what is computed, JAX) is compared
whenever it is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax.files import digest, read_json, write_json, write_whole

MANIFEST, MASKS, ROWS = "truth.json", "masks.npy", "rows"
MOST_SEEDS = 10_000  # a mask; fixes which byte of the lock a row has, see `filling`


class Store(NamedTuple):
    """An open truth store."""

    folder: Path
    masks: np.ndarray  # [R, K] float32
    seeds: np.ndarray  # [R] int, how many seeds each mask is declared with
    num_outputs: int  # Q
    identity: dict[str, Any]  # what it was made with


class Row(NamedTuple):
    """One network."""

    mask: int
    seed: int


class RowFiles(NamedTuple):
    """Where a row lies."""

    values: Path  # the outputs
    mark: Path  # that they are done


# store, identity, the names that differ -> those that forbid its use, the identity to go on with
Renew = Callable[[Store, dict[str, Any], set[str]], tuple[set[str], dict[str, Any]]]


def open_store(
    folder: Path,
    identity: dict[str, Any],
    masks: np.ndarray,
    seeds: np.ndarray,
    num_outputs: int,
    renew: Renew = lambda found, identity, changed: (changed, identity),
) -> Store:
    """Make a store, or open the one in `folder` if it was made with the same things.

    More seeds than it was made with are added to what is declared; fewer leave its rows alone.

    Args:
        identity: what the outputs depend on, flat, JSON values; masks and the number of outputs
            are added here.
        masks: [R, K], which groups each network keeps.
        seeds: [R], how many seeds each mask gets, at least 1.
        num_outputs: Q, the length of a row.
        renew: asked about a store that differs, whether it may be used all the same.

    Raises:
        ValueError: when the folder holds a store made with something else, naming what, or is a
            link.
    """
    masks, seeds = np.asarray(masks, np.float32), np.asarray(seeds, np.int64)
    if masks.ndim != 2 or seeds.shape != (len(masks),):
        raise ValueError(f"masks {masks.shape} need one number of seeds each, not {seeds.shape}")
    if len(seeds) == 0 or seeds.min() < 1 or seeds.max() > MOST_SEEDS:
        raise ValueError(f"the seeds of a mask must be in 1..{MOST_SEEDS}")
    identity = identity | {"masks": digest(masks), "outputs": int(num_outputs)}
    folder = folder.absolute()
    _refuse_links(folder)
    if not (folder / MANIFEST).exists():
        taken = folder.exists() and any(folder.iterdir())
        if taken and not (folder / MANIFEST).exists():  # nobody made it since
            raise ValueError(f"{folder} is not empty and holds no truth store; use another folder")
        if not taken:
            _create(folder, identity, masks, seeds)
    found = inspect_store(folder)
    names = found.identity.keys() | identity.keys()
    changed = {name for name in names if found.identity.get(name) != identity.get(name)}
    serious, renewed = renew(found, identity, changed) if changed else (changed, found.identity)
    if serious:
        told = (
            f"{name} {_short(found.identity.get(name))} -> {_short(identity.get(name))}"
            for name in sorted(serious)
        )
        raise ValueError(
            f"the truth in {folder} was made with something else ({'; '.join(told)}); use "
            "another --workdir, or delete that folder to compute it again"
        )
    if renewed != found.identity or (seeds > found.seeds).any():
        found = found._replace(identity=renewed, seeds=np.maximum(seeds, found.seeds))
        _write_manifest(folder, renewed, found.seeds)
    return found._replace(seeds=seeds)


def inspect_store(folder: Path) -> Store:
    """Open the store in `folder` as it is, whatever it was made with.

    Raises:
        ValueError: when there is none, it is a link, or its manifest or masks are damaged.
    """
    folder = folder.absolute()
    _refuse_links(folder, *(folder / name for name in (MANIFEST, MASKS, ROWS)))
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{folder} holds no truth store; `ddm truth` makes one")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if "checksum" in manifest:  # 0.8 wrote none
            manifest = read_json(folder / MANIFEST, mend="it is not to be edited")
        identity = manifest["identity"]
        masks = np.load(folder / MASKS, allow_pickle=False)
        seeds = np.asarray(manifest["seeds"], np.int64)
        if digest(masks) != identity["masks"] or len(seeds) != len(masks):
            raise ValueError("its masks are not those that it was made with")
        return Store(folder, masks, seeds, int(identity["outputs"]), identity)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the truth store {folder} is damaged ({error}); delete the folder and fill it again"
        ) from error


def declared(store: Store) -> list[Row]:
    """All rows, seed by seed."""
    return [
        Row(mask, seed)
        for seed in range(int(store.seeds.max()))
        for mask in np.flatnonzero(store.seeds > seed).tolist()
    ]


def paths(store: Store, row: Row) -> RowFiles:
    """The two files of a row."""
    name = store.folder / ROWS / f"{row.mask:05d}-{row.seed:04d}"
    return RowFiles(name.with_suffix(".npy"), name.with_suffix(".json"))


def is_done(store: Store, row: Row) -> bool:
    """Whether a row is there whole, with its done mark.

    Raises:
        ValueError: where one of its files is a link.
    """
    values, mark = paths(store, row)
    _refuse_links(values, mark)
    try:
        told = json.loads(mark.read_text())
        return told["sha256"] == _sha(values.read_bytes()) and told["seconds"] >= 0
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_row(store: Store, row: Row, outputs: np.ndarray, seconds: float) -> None:
    """Write a row and then its done mark, each whole or not at all.

    Raises:
        ValueError: for outputs of a wrong shape or that are not finite.
    """
    outputs = np.asarray(outputs, np.float32)
    if outputs.shape != (store.num_outputs,):
        raise ValueError(f"outputs have shape {outputs.shape}; a row is ({store.num_outputs},)")
    if not np.isfinite(outputs).all():
        raise ValueError(
            f"the network of mask {row.mask} with seed {row.seed} diverged: its outputs are not "
            "finite; lower train.learning_rate. What was computed before is kept"
        )
    content = _npy(outputs)
    values, mark = paths(store, row)
    write_whole(values, content)
    told = {
        "sha256": _sha(content),
        "seconds": seconds,
        "device": jax.devices()[0].device_kind,
    }
    write_whole(mark, json.dumps(told).encode())


def read_row(store: Store, row: Row) -> np.ndarray:
    """The outputs of a row that is done, [Q]."""
    return np.load(paths(store, row).values, allow_pickle=False)


def read(store: Store) -> np.ndarray:
    """All outputs, `[S, R, Q]`; NaN for the seeds that a mask is not declared with.

    Raises:
        ValueError: when rows are missing.
    """
    rows = declared(store)
    missing = [row for row in rows if not is_done(store, row)]
    if missing:
        raise ValueError(
            f"the truth in {store.folder} lacks {len(missing)} of {len(rows)} rows; fill it with "
            "`ddm truth`"
        )
    shape = (int(store.seeds.max()), len(store.masks), store.num_outputs)
    outputs = np.full(shape, np.nan, np.float32)
    for row in rows:
        outputs[row.seed, row.mask] = read_row(store, row)
    return outputs


def checksum(outputs: np.ndarray, decimals: int = 3) -> str:
    """SHA-256 of outputs rounded to `decimals`, to tell whether a truth came out the same."""
    # Adding zero turns -0 into 0.
    return digest(np.round(np.asarray(outputs, np.float64), decimals) + 0.0)


def _create(folder: Path, identity: dict[str, Any], masks: np.ndarray, seeds: np.ndarray) -> None:
    """Make the store under another name and move it into place, where nobody was faster."""
    fresh = folder.with_name(f"{folder.name}.new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)  # of a dead process of this number
    (fresh / ROWS).mkdir(parents=True)
    write_whole(fresh / MASKS, _npy(masks))
    _write_manifest(fresh, identity, seeds)
    with contextlib.suppress(OSError):
        folder.rmdir()  # an empty one is in the way
    try:
        fresh.rename(folder)
    except OSError:
        shutil.rmtree(fresh)
        if not (folder / MANIFEST).exists():
            raise


def _write_manifest(folder: Path, identity: dict[str, Any], seeds: np.ndarray) -> None:
    write_json(folder / MANIFEST, {"identity": identity, "seeds": seeds})


def _refuse_links(*files: Path) -> None:
    for path in files:
        if path.is_symlink():
            raise ValueError(f"{path} is a link; a truth store has none: name what it points to")


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
