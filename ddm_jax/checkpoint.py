"""Pytrees on disk: the only file that knows orbax.

A checkpoint is a folder with orbax's files and a `manifest.json` of their SHA-256 sums, because
a flipped byte restores silently otherwise. It appears under its name whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

MANIFEST = "manifest.json"


class DamagedCheckpoint(ValueError):
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
    manifest = {"files": _sums(fresh), "metadata": metadata or {}}
    (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1))
    if path.exists():
        path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def load(path: Path, like: Any) -> Any:
    """Read a pytree with the structure, shapes and types of `like` (arrays or their shapes).

    Raises:
        DamagedCheckpoint: when a file is missing or changed, or does not fit `like`.
    """
    path = path.absolute()
    manifest = _manifest(path)
    sums = _sums(path)
    for name in sorted(set(manifest["files"]) | set(sums)):
        if manifest["files"].get(name) != sums.get(name):
            raise DamagedCheckpoint(
                f"the checkpoint {path} is damaged: {name} is missing or changed since it was "
                f"saved; delete the folder and run the same command again"
            )
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path / "tree", target)
    except Exception as error:  # orbax raises a mixture of types
        raise DamagedCheckpoint(
            f"the checkpoint {path} does not fit this run ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); delete the folder and run the same command again"
        ) from error


def metadata(path: Path) -> dict[str, Any]:
    """Read the metadata alone."""
    return _manifest(path.absolute())["metadata"]


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
        manifest["files"], manifest["metadata"]
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(
            f"the checkpoint {path} is damaged: {MANIFEST} cannot be read; delete the folder and "
            "run the same command again"
        ) from error


def _sums(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file != path / MANIFEST
    }
