"""Checkpoints: a pytree of arrays as a folder of orbax's files, with a checksum of every byte.

A checkpoint has a `manifest.json` that names the folder of its arrays, the SHA-256 sums of the
files in it (a flipped byte restores silently otherwise) and the types of the arrays (orbax pads or
cuts an array of another shape). Replacing that manifest is what replaces a checkpoint.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddm_jax.files import (
    AGAIN,
    DamagedFileError,
    check_same,
    in_one_line,
    read_json,
    sha,
    sync,
    write_json,
)

MANIFEST = "manifest.json"
LEFT_OVER_SECONDS = 86400.0  # a tree that no manifest names is a dead process's after that


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    tree: str  # the folder of its arrays
    files: dict[str, str]  # the SHA-256 sum of each file in it
    kinds: dict[str, str]  # the type and the shape of each array
    metadata: dict[str, Any]


def save(path: Path, tree: Any, metadata: dict[str, Any] | None = None) -> None:
    """Write a pytree of arrays (typed keys, sharded ones) and JSON metadata, or replace it.

    What was written is read back before it counts.

    Raises:
        ValueError: where a link or a file has its name, or a folder's has a backslash.
        OSError: where it cannot be written, or is not there when it is read back.
    """
    check_folder(path)
    path = path.absolute()
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{path} is a link or a file; a checkpoint is a folder: delete it")
    path.mkdir(parents=True, exist_ok=True)
    fresh = path / f"tree-{secrets.token_hex(8)}"
    arrays = jax.tree.map(_to_host, tree)
    try:
        _write_tree(fresh, arrays)
        for file in fresh.rglob("*"):
            sync(file)
        manifest = Manifest(fresh.name, _sums(fresh), _kinds(arrays), metadata or {})
        others = _others(path, fresh)
        write_json(path / MANIFEST, asdict(manifest))
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.rmdir()  # where it was made for this
        raise
    for other in others:
        shutil.rmtree(other, ignore_errors=True)


def load(path: Path, like: Any) -> Any:
    """Read a pytree with the structure, shapes and types of `like` (arrays or their shapes).

    A leaf is a numpy array where that of `like` is, and otherwise on a device, in `like`'s
    sharding where it has one.

    Raises:
        DamagedFileError: when a file is missing or changed, or does not fit `like`.
    """
    path = path.absolute()
    manifest = _manifest(path)
    damaged = f"the checkpoint {path} is damaged: its files are not those that were saved"
    check_same(_sums(path / manifest.tree), manifest.files, damaged)
    misfit = f"the checkpoint {path} does not fit this run"
    check_same(manifest.kinds, _kinds(like), misfit)
    try:
        arrays = _restore(path / manifest.tree, like)
    except Exception as error:  # orbax raises a mixture of types
        raise DamagedFileError(f"{misfit} ({in_one_line(error)}); {AGAIN}") from error
    return jax.tree.map(_to_place, arrays, like)


def metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a checkpoint alone."""
    return _manifest(path.absolute()).metadata


def fits(path: Path, like: Any) -> bool:
    """Whether the arrays of a checkpoint have the shapes and types of `like`."""
    return _manifest(path.absolute()).kinds == _kinds(like)


def exists(path: Path) -> bool:
    """Whether a whole checkpoint is there."""
    return (path / MANIFEST).is_file()


def remove(path: Path) -> None:
    """Delete a checkpoint if it is there, its manifest first."""
    if path.is_symlink():
        raise ValueError(f"{path} is a link; delete it")
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def check_folder(path: Path) -> None:
    """Check that checkpoints can be kept below a folder.

    Raises:
        ValueError: for a backslash in its path: orbax would write somewhere else.
    """
    if "\\" in path.absolute().as_posix():
        raise ValueError(f"{path} has a backslash in its path; orbax writes none there: rename it")


def _manifest(path: Path) -> Manifest:
    try:
        return read_json(path / MANIFEST, Manifest)
    except FileNotFoundError as error:
        raise DamagedFileError(f"the checkpoint {path} has no {MANIFEST}; {AGAIN}") from error


def _write_tree(folder: Path, arrays: Any) -> None:
    """Write arrays with orbax, and read them back: it may have written somewhere else."""
    import orbax.checkpoint as ocp

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder, arrays)
        written = jax.tree.leaves(_restore(folder, arrays))
    except Exception as error:  # orbax raises a mixture of types
        raise OSError(f"{folder} cannot be written ({in_one_line(error)})") from error
    if not all(map(_same, written, jax.tree.leaves(arrays))):
        raise OSError(f"{folder} cannot be written: what was read back is something else")


def _restore(folder: Path, like: Any) -> Any:
    """Read a tree of numpy arrays and typed keys; `like` has its structure and types."""
    import orbax.checkpoint as ocp

    def target(leaf: Any) -> Any:
        kind = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return kind if _is_key(leaf) else np.empty(kind.shape, kind.dtype)

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, jax.tree.map(target, like))


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: Any) -> Any:
    """A numpy array, from one device or many; a typed key stays one, on one device."""
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return jax.device_put(leaf, jax.local_devices()[0]) if _is_key(leaf) else np.asarray(leaf)


def _to_place(value: Any, like: Any) -> Any:
    """Where `like` is: on the host, over its devices, or on the first one."""
    if isinstance(like, np.ndarray | np.generic):
        return np.asarray(value)
    sharding = getattr(like, "sharding", None)
    several = sharding is not None and len(sharding.device_set) > 1
    return jax.device_put(value, sharding if several else None)


def _same(one: Any, two: Any) -> bool:
    """Whether two arrays have the same bytes."""
    pair = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in (one, two)]
    one, two = (np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in pair)
    return np.array_equal(one, two)


def _kinds(tree: Any) -> dict[str, str]:
    """The types and shapes of the leaves by their places."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(at): f"{leaf.dtype}{list(leaf.shape)}" for at, leaf in leaves}


def _sums(folder: Path) -> dict[str, str]:
    """The SHA-256 sum of each file; links count as other files."""
    return {
        file.relative_to(folder).as_posix(): (
            "link" if file.is_symlink() else sha(file.read_bytes())
        )
        for file in sorted(folder.rglob("*"))
        if file.is_symlink() or file.is_file()
    }


def _others(path: Path, fresh: Path) -> list[Path]:
    """What a fresh tree replaces: the one that the manifest names, and what dead processes left.

    Another tree may be one that another process is writing.
    """
    named = ""
    with contextlib.suppress(ValueError, OSError):
        named = _manifest(path).tree
    before = time.time() - LEFT_OVER_SECONDS
    found = [tree for tree in path.glob("tree*") if tree != fresh]
    return [tree for tree in found if tree.name == named or tree.stat().st_mtime < before]
