"""The one way to a file: written whole, read as what was declared, with a checksum of every byte.

A file is written under a name of its own, flushed, and renamed to its name, so that it is there
whole or not at all; links are refused. Two kinds:

    JSON         text that carries its checksum              write_json, read_json
    arrays       an .npz whose comment is its checksum       write_arrays, read_arrays

Big pytrees are folders: `checkpoints`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ddm_jax.checks import one_line

AGAIN = "delete it and run the same command again"  # the mend of what a command computes


class DamagedFileError(ValueError):
    """A file that is not what was written, or not what it should be."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; it is on disk when this returns.

    Raises:
        ValueError: as `check_destination`.
        OSError: where the disk is full, say; what was there before is there still.
    """
    check_destination(path)
    fresh = path.with_name(f"{path.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with fresh.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    sync(path.parent)


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
    write_whole(path, content + sha(content).encode())


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
    check_same(found, wanted, f"{path} is not as declared", mend)
    return arrays, metadata


def read_any_arrays(path: Path, mend: str = AGAIN) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_arrays` wrote, whatever its arrays are called.

    Raises:
        FileNotFoundError: where there is none.
        DamagedFileError: where a byte was changed, or it is another kind of file.
    """
    content = _read(path)
    if sha(content[:-64]).encode() != content[-64:]:
        raise DamagedFileError(f"{path} is damaged or was edited: its checksum is wrong; {mend}")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    metadata = json.loads(str(arrays.pop("metadata")))
    return arrays, metadata


def digest(*arrays: Any) -> str:
    """SHA-256 of arrays with their shapes and types, 16 characters."""
    total = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def check_destination(path: Path) -> None:
    """Refuse a path at which no file can be written, before the work whose result it is.

    Raises:
        ValueError: where a link, a folder or a device has its name, or its folder is not there.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it, or name another")
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
    told = value | {"checksum": sha(bare.encode())}
    return (json.dumps(told, indent=1, allow_nan=False) + "\n").encode()


def sha(content: bytes) -> str:
    """The SHA-256 sum in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def in_one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:300]


def check_same(found: dict, wanted: dict, what: str, mend: str = AGAIN) -> None:
    """Check that two dictionaries are equal.

    Raises:
        DamagedFileError: naming the first entry that differs.
    """
    for name in sorted(set(found) | set(wanted)):
        one, two = (each.get(name, "not there") for each in (found, wanted))
        if one != two:
            name = name or "its array"
            raise DamagedFileError(f"{what} ({name} is {one} and should be {two}); {mend}")


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk, where the system can."""
    with contextlib.suppress(OSError):
        place = os.open(path, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
