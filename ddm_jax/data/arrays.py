"""Arrays of one's own: an .npz of x, y and what else is known."""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.data.examples import Examples, Fitted, Reading
from ddm_jax.data.split import resize
from ddm_jax.data.table import table_examples

KNOWN = ("x", "y", "x_test", "y_test", "groups", "names")


def npz_examples(path: Path, reading: Reading) -> Examples:
    """An .npz: `x [N, ...]`, `y [N]`, and maybe `x_test`, `y_test`, `groups [N]`, `names [C]`.

    A `y [N, C]` is of several labels or numbers; see `targets.find_targets`.

    Raises:
        ValueError: for a file that cannot be read, lacks an array, or has some that do not fit.
    """
    return array_examples(_read(path), str(path), reading)


def array_examples(
    found: Mapping[str, np.ndarray],
    where: str,
    reading: Reading,
    label_names: tuple[str, ...] | None = None,
) -> Examples:
    """Arrays of the names that an .npz has.

    Args:
        label_names: of the columns of `y`, where the labels bring them.

    Raises:
        ValueError: for an array that is missing, or some that do not fit.
    """
    told = _check_known(found, where)
    x, y = found["x"], found["y"]
    if ("x_test" in found) != ("y_test" in found):
        raise ValueError(f"{where}: x_test and y_test go together; bring both, or neither")
    count, test_from = len(x) if x.ndim else 0, None
    if "x_test" in found:
        if found["x_test"].shape[1:] != x.shape[1:] or found["x_test"].ndim != x.ndim:
            raise ValueError(
                f"{where}: x has shape {x.shape} and x_test {found['x_test'].shape}; they must "
                "agree but for the first"
            )
        _check(found["x_test"], found["y_test"], where, "_test")
        kinds = found["x_test"].dtype.kind, x.dtype.kind
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{where}: x is {x.dtype} and x_test {found['x_test'].dtype}; bring both as "
                "one type"
            )
        if y.dtype.kind != found["y_test"].dtype.kind and "U" in (
            y.dtype.kind,
            found["y_test"].dtype.kind,
        ):
            raise ValueError(f"{where}: y holds {y.dtype} and y_test {found['y_test'].dtype}")
        if y.shape[1:] != found["y_test"].shape[1:]:
            raise ValueError(
                f"{where}: y has shape {y.shape} and y_test {found['y_test'].shape}; they must "
                "agree but for the first"
            )
        test_from = count
    _check(x, y, where)
    if "x_test" in found:
        x, y = np.concatenate([x, found["x_test"]]), np.concatenate([y, found["y_test"]])
    groups = found.get("groups")
    if groups is not None:
        if groups.shape != (count,):
            raise ValueError(f"{where}: groups have shape {groups.shape}; x needs ({count},)")
        # The queries are in none.
        groups = np.concatenate([groups.astype(object), np.full(len(x) - count, None)])
    names = tuple(map(str, found["names"].ravel())) if "names" in found else label_names
    if x.ndim == 2:
        import pandas

        frame = pandas.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
        frame["y"] = 0  # as it is, below
        read = table_examples(frame, where, Reading("y", missing=reading.missing))
        told = (f"{where}: {len(x):,} rows of {x.shape[1]} numbers", *told)
        return read._replace(
            labels=y, test_from=test_from, target="y", names=names, groups=groups, told=told
        )
    told = (f"{where}: {len(x):,} arrays of shape {x.shape[1:]}", *told)
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        told += ("  images have their channels last: x.transpose(0, 2, 3, 1), if these are such",)
    kind, fit = _fit(x)
    return Examples(where, kind, y, fit, test_from, "y", names, groups, told=told)


def _read(path: Path) -> dict[str, np.ndarray]:
    found = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name in stored.files:  # what is not known is named, and not read
                found[name] = np.asarray(stored[name]) if name in KNOWN else np.empty(0)
    except (OSError, TypeError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path} holds an array of Python objects, which is not read: save numbers, or "
                "texts as `np.asarray(texts, str)`"
            ) from error
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error
    return found


def _check_known(there: Mapping[str, np.ndarray], where: str) -> tuple[str, ...]:
    """Check the names of arrays; gives a line about those that are not used."""
    for name in there:
        close = difflib.get_close_matches(name.lower(), KNOWN, 1, 0.75)
        if name not in KNOWN and close and close[0] not in there:
            raise ValueError(f"{where} holds {name!r}; did you mean {close[0]!r}?")
    for name in ("x", "y"):
        if name not in there:
            raise ValueError(f"{where} holds {', '.join(there) or 'nothing'}; it needs x and y")
    others = [name for name in there if name not in KNOWN]
    return (f"  not used: {', '.join(others)}",) if others else ()


def _check(x: np.ndarray, y: np.ndarray, where: str, which: str = "") -> None:
    if x.ndim < 2:
        raise ValueError(f"{where}: x{which} has shape {x.shape}; it must be [N, ...]")
    if not len(x):
        raise ValueError(f"{where}: x{which} has no examples")
    if 0 in x.shape:
        raise ValueError(f"{where}: x{which} has shape {x.shape}; an example must have numbers")
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{where}: x{which} is {x.dtype}; it must hold numbers")
    if y.shape[:1] != (len(x),) or y.ndim > 2 or 0 in y.shape:
        raise ValueError(
            f"{where}: y{which} has shape {y.shape}; x{which} needs ({len(x)},), or ({len(x)}, C) "
            "of several labels or numbers"
        )
    if y.dtype.kind not in ("fiub" if y.ndim == 2 and y.shape[1] > 1 else "fiubUS"):
        texts = "" if y.ndim == 2 else " or texts"
        raise ValueError(f"{where}: y{which} is {y.dtype}; it must hold numbers{texts}")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        row, *column = np.argwhere(~np.isfinite(y))[0]
        shown = y[(row, *column)]
        raise ValueError(f"{where}, row {row + 1}: y{which} is {shown}; remove that row")
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1)) if x.ndim > 2 else np.empty(0)
    if bad.size:
        raise ValueError(
            f"{where}: {bad.size} of {len(x)} examples of x{which} hold NaN or infinity, the "
            f"first is row {int(bad[0]) + 1}; remove or repair them"
        )


def _fit(x: np.ndarray) -> tuple[str, Any]:
    """What arrays of more than one axis are: images, or others, standardised by the last one."""
    grey = x.ndim == 3
    shaped = x[..., None] if grey else x
    pixels = x.dtype == np.uint8 or (x.dtype.kind == "f" and x.min() >= 0 and x.max() <= 1)
    if shaped.ndim == 4 and shaped.shape[-1] in (1, 3) and pixels:
        divisor = np.float32(255 if x.dtype == np.uint8 else 1)

        def read(rows: np.ndarray, image_size: int | None) -> np.ndarray:
            found = shaped[rows].astype(np.float32) / divisor
            if image_size is None:
                return found
            return np.stack([resize(image, image_size) for image in found])

        return "images", lambda rows: Fitted(read)

    def fit(rows: np.ndarray) -> Fitted:
        axes = tuple(range(x.ndim - 1))
        some = x[rows].astype(np.float64)
        with np.errstate(over="ignore"):  # what is too large is refused
            scale = np.maximum(some.std(axes), 1e-12)
        return Fitted(lambda rows, image_size: x[rows].astype(np.float64), some.mean(axes), scale)

    return "arrays", fit
