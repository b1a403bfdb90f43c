"""The one way to a file: written whole, read as what was declared, with a checksum of every byte.

A file is written under a name of its own, flushed, and renamed to its name, so that it is there
whole or not at all; links are refused. Three kinds:

    JSON         text that carries its checksum              write_json, read_json
    arrays       an .npz whose comment is its checksum       write_arrays, read_arrays
    checkpoints  a folder of orbax's files, for big pytrees  save, load, metadata, fits

A checkpoint has a `manifest.json` that names the folder of its arrays, the SHA-256 sums of the
files in it (a flipped byte restores silently otherwise) and the types of the arrays (orbax pads or
cuts an array of another shape). Replacing that manifest is what replaces a checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from pydantic import TypeAdapter, ValidationError

from ddm_jax.checks import one_line

MANIFEST = "manifest.json"
AGAIN = "delete it and run the same command again"  # the mend of what a command computes
LEFT_OVER_SECONDS = 86400.0  # a tree that no manifest names is a dead process's after that


class DamagedFileError(ValueError):
    """A file that is not what was written, or not what it should be."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    tree: str  # the folder of its arrays
    files: dict[str, str]  # the SHA-256 sum of each file in it
    kinds: dict[str, str]  # the type and the shape of each array
    metadata: dict[str, Any]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; it is on disk when this returns.

    Raises:
        ValueError: where a link, a folder or a device has its name.
        OSError: where the disk is full, say; what was there before is there still.
    """
    _check_destination(path)
    fresh = path.with_name(f"{path.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with fresh.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync(path.parent)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a dictionary as JSON, numbers that are not finite as null, with its checksum."""
    write_whole(path, _text(plain(value)))


def read_json(path: Path, kind: Any = dict, mend: str = AGAIN) -> Any:
    """Read what `write_json` wrote, as a `kind`: a dataclass, `dict[str, int]`, ...

    Types are strict: neither `"false"` nor 1 is a bool, and a dataclass's missing fields that have
    no default are an error.

    Raises:
        FileNotFoundError: where there is none.
        DamagedFileError: where a byte was changed, or the value is no `kind`.
    """
    content = _read(path)
    try:
        value = json.loads(content)
        value.pop("checksum")
        same = _text(value) == content
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        same = False
    if not same:
        raise DamagedFileError(f"{path} is damaged or was edited: its checksum is wrong; {mend}")
    try:
        return (
            value
            if kind is dict
            else TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        )
    except ValidationError as error:
        raise DamagedFileError(f"{path} is not as declared ({one_line(error)}); {mend}") from error


def plain(value: Any) -> Any:
    """The value in JSON's words: numpy's numbers and arrays too; what is not finite is null."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write_arrays(
    path: Path, arrays: dict[str, Any], metadata: dict[str, Any] | None = None
) -> None:
    """Write named arrays and JSON metadata as an .npz that `numpy.load` reads.

    Its zip comment is the SHA-256 of all bytes before it.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"{name} holds Python objects; an array file has numbers and texts")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, metadata=np.asarray(json.dumps(plain(metadata or {}))))
    with zipfile.ZipFile(buffer, "a") as file:
        file.comment = bytes(64)  # its length stands before it
    content = buffer.getvalue()[:-64]
    write_whole(path, content + _sha(content).encode())


def read_arrays(
    path: Path,
    kinds: dict[str, tuple[str, int]],
    mend: str = AGAIN,
    optional: tuple[str, ...] = (),
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the metadata that `write_arrays` wrote.

    Args:
        kinds: for each array its type, such as "float32" or "any", and its number of axes.
        optional: those that may be missing.

    Raises:
        FileNotFoundError: where there is none.
        DamagedFileError: where a byte was changed, or the arrays are not `kinds`.
    """
    arrays, metadata = read_any_arrays(path, mend)
    found = {name: (array.dtype.name, array.ndim) for name, array in arrays.items()}
    wanted = {
        name: (found.get(name, kind)[0] if kind[0] == "any" else kind[0], kind[1])
        for name, kind in kinds.items()
        if name in found or name not in optional
    }
    _check_same(found, wanted, f"{path} is not as declared", mend)
    return arrays, metadata


def read_any_arrays(path: Path, mend: str = AGAIN) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_arrays` wrote, whatever its arrays are called.

    Raises:
        FileNotFoundError: where there is none.
        DamagedFileError: where a byte was changed, or it is another kind of file.
    """
    content = _read(path)
    if _sha(content[:-64]).encode() != content[-64:]:
        raise DamagedFileError(f"{path} is damaged or was edited: its checksum is wrong; {mend}")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    metadata = json.loads(str(arrays.pop("metadata")))
    return arrays, metadata


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
            _sync(file)
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
    _check_same(_sums(path / manifest.tree), manifest.files, damaged)
    misfit = f"the checkpoint {path} does not fit this run"
    _check_same(manifest.kinds, _kinds(like), misfit)
    try:
        arrays = _restore(path / manifest.tree, like)
    except Exception as error:  # orbax raises a mixture of types
        raise DamagedFileError(f"{misfit} ({_first(error)}); {AGAIN}") from error
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


def digest(*arrays: Any) -> str:
    """SHA-256 of arrays with their shapes and types, 16 characters."""
    total = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def check_folder(path: Path) -> None:
    """Check that checkpoints can be kept below a folder.

    Raises:
        ValueError: for a backslash in its path: orbax would write somewhere else.
    """
    if "\\" in path.absolute().as_posix():
        raise ValueError(f"{path} has a backslash in its path; orbax writes none there: rename it")


def _check_destination(path: Path) -> None:
    if path.is_symlink():
        raise ValueError(f"{path} is a link; delete it, so that a file can be written there")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file; move it, so that one can be written there")


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path.read_bytes()


def _text(value: dict[str, Any]) -> bytes:
    """The bytes of a dictionary of JSON values: the same for the same value, checksum last."""
    bare = json.dumps(value, indent=1, allow_nan=False)
    told = value | {"checksum": _sha(bare.encode())}
    return (json.dumps(told, indent=1, allow_nan=False) + "\n").encode()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _first(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:300]


def _check_same(found: dict, wanted: dict, what: str, mend: str = AGAIN) -> None:
    for name in sorted(set(found) | set(wanted)):
        one, two = (each.get(name, "not there") for each in (found, wanted))
        if one != two:
            name = name or "its array"
            raise DamagedFileError(f"{what} ({name} is {one} and should be {two}); {mend}")


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk, where the system can."""
    with contextlib.suppress(OSError):
        place = os.open(path, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


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
        raise OSError(f"{folder} cannot be written ({_first(error)})") from error
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
            "link" if file.is_symlink() else _sha(file.read_bytes())
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
