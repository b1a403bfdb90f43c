"""Pytrees on disk: the only file that knows orbax.

A checkpoint is a folder with orbax's files and a `manifest.json` of their SHA-256 sums and of
the shapes, because a flipped byte restores silently otherwise, and an array of another shape is
padded or cut. It appears under its name whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

MANIFEST = "manifest.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not what was saved."""


def save(path: Path, tree: Any, metadata: dict[str, Any] | None = None) -> None:
    """Write a pytree of arrays (typed keys allowed) and JSON metadata, replacing what is there."""
    path = path.absolute()
    fresh, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    for left_over in (fresh, old):
        shutil.rmtree(left_over, ignore_errors=True)
    fresh.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(fresh / "tree", tree)
    manifest = {"files": _sums(fresh), "shapes": _shapes(tree), "metadata": metadata or {}}
    manifest["sum"] = _sum(manifest)
    (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1))
    if path.exists():
        path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def load(path: Path, like: Any) -> Any:
    """Read a pytree with the structure, shapes and types of `like` (arrays or their shapes).

    Raises:
        DamagedCheckpointError: when a file is missing or changed, or does not fit `like`.
    """
    path = path.absolute()
    manifest = _manifest(path)
    sums = _sums(path)
    for name in sorted(set(manifest["files"]) | set(sums)):
        if manifest["files"].get(name) != sums.get(name):
            raise DamagedCheckpointError(
                f"the checkpoint {path} is damaged: {name} is missing or changed since it was "
                f"saved; delete the folder and run the same command again"
            )
    found, wanted = manifest["shapes"], _shapes(like)
    for name in sorted(set(found) | set(wanted)):
        if found.get(name) != wanted.get(name):
            raise DamagedCheckpointError(
                f"the checkpoint {path} does not fit this run: {name or 'its array'} has shape "
                f"{found.get(name)} and should have {wanted.get(name)}; delete the folder and run "
                "the same command again"
            )
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path / "tree", target)
    except Exception as error:  # orbax raises a mixture of types
        raise DamagedCheckpointError(
            f"the checkpoint {path} does not fit this run ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); delete the folder and run the same command again"
        ) from error


def metadata(path: Path) -> dict[str, Any]:
    """Read the metadata alone."""
    return _manifest(path.absolute())["metadata"]


def fits(path: Path, like: Any) -> bool:
    """Whether the arrays of a checkpoint have the shapes of `like`."""
    return _manifest(path.absolute())["shapes"] == _shapes(like)


def exists(path: Path) -> bool:
    """Whether a whole checkpoint is there; one that was being replaced is put back."""
    old = path.with_name(path.name + ".old")
    if not path.exists() and old.exists():
        old.rename(path)
    return path.exists()


def remove(path: Path) -> None:
    """Delete a checkpoint if it is there."""
    for name in (path.name, path.name + ".new", path.name + ".old"):
        shutil.rmtree(path.with_name(name), ignore_errors=True)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest.pop("sum") != _sum(manifest):
            raise ValueError("its sum is wrong")
        return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(
            f"the checkpoint {path} is damaged: {MANIFEST} cannot be read; delete the folder and "
            "run the same command again"
        ) from error


def _shapes(tree: Any) -> dict[str, list[int]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(place): list(np.shape(leaf)) for place, leaf in leaves}


def _sum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sums(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file != path / MANIFEST
    }
