"""Data of one's own, by a path or as a DataFrame: which route, which classes, which part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.data import folders, huggingface, images, texts
from ddm_jax.data.arrays import npz_examples
from ddm_jax.data.examples import Examples, Reading
from ddm_jax.data.split import Source
from ddm_jax.data.table import csv_examples, parquet_examples, table_examples

FILES: dict[str, Callable[[Path, Reading], Examples]] = {
    ".npz": npz_examples,
    ".csv": csv_examples,
    ".tsv": csv_examples,
    ".parquet": parquet_examples,
    ".jsonl": texts.jsonl_examples,
}
MOST_VALUES = 20  # of a target of numbers that are classes
TEST_PART = 5  # a fifth


def is_own(name: Any, data_dir: str | None = None) -> bool:
    """Whether data are one's own: a DataFrame, a path, or the name of a file or folder there is.

    A folder that TFDS prepared is none, nor is what might be a TFDS name and is not there, or
    where `data_dir` says where TFDS's data are.
    """
    if not isinstance(name, str | Path):
        return True
    text = str(name)
    path = Path(text).expanduser()
    if path.suffix.lower() in FILES or text.startswith(("/", ".", "~")) or text.endswith("/"):
        return True
    if text == "digits" or data_dir is not None or not path.exists():
        return False
    if path.is_dir() and not huggingface.is_saved(path):
        return not any(any(path.glob(f"{deep}/dataset_info.json")) for deep in ("*", "*/*"))
    return True


def read_own(name: Any, reading: Reading) -> Examples:
    """Read by the route of the name.

    Raises:
        ValueError: for a path that is not there, or has no route, or as the route does.
    """
    if not isinstance(name, str | Path):
        if not hasattr(name, "columns") or not hasattr(name, "iloc"):
            raise ValueError(
                f"data of type {type(name).__name__}; pass a path, a name or a pandas DataFrame, "
                "or make a Batch with data.make_batch"
            )
        return table_examples(name, "the DataFrame", reading)
    path = Path(name).expanduser()
    if not path.exists():
        what = "file" if path.suffix else "file or folder"
        raise ValueError(f"{name}: no such {what}{_hint(path)}")
    if path.is_dir():
        return _read_folder(path, reading)
    route = FILES.get(path.suffix.lower())
    if route is None:
        raise ValueError(f"{name}: no way to read such a file; bring one of {', '.join(FILES)}")
    return route(path, reading)


def _hint(path: Path) -> str:
    import difflib

    if not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], 1)
    return f"; did you mean {path.with_name(close[0])}?" if close else ""


def _read_folder(path: Path, reading: Reading) -> Examples:
    if huggingface.is_saved(path):
        return huggingface.saved_examples(path, reading)
    there = folders.endings_in(path)
    pictures, texted = there & set(images.ENDINGS), there & set(texts.ENDINGS)
    if pictures and texted:
        raise ValueError(f"{path} has images and texts; bring one kind")
    if texted:
        return texts.folder_examples(folders.find_files(path, texts.ENDINGS), reading)
    if pictures:
        return images.image_examples(folders.find_files(path, images.ENDINGS))
    raise ValueError(
        f"{path} has no {', '.join((*images.ENDINGS, *texts.ENDINGS))} files in subfolders; put "
        "those of each class in a subfolder of its own"
    )


def own_source(name: Any, reading: Reading, draw: np.random.Generator, original: bool) -> Source:
    """Data of one's own, cut into parts unless they are so already.

    Raises:
        ValueError: as `read_own`, for fewer than two classes, or a class that is not in both parts
            where they are made here, or not in the training part where they are there.
    """
    _check_asked(name, reading)
    found = read_own(name, reading)
    classes, labels = find_classes(found)
    count = len(labels)
    if found.test_from is None:
        train_rows, test_rows = _cut(labels, classes, found, draw, original)
    else:
        train_rows, test_rows = np.arange(found.test_from), np.arange(found.test_from, count)
        absent = np.setdiff1d(labels, labels[train_rows])
        if classes and absent.size:
            raise ValueError(
                f"{found.where}: class {classes[absent[0]]!r} is in the test part alone; bring "
                "training examples of it, or remove it"
            )
    fitted = found.fit(train_rows)

    def read(split: str, rows: np.ndarray, image_size: int | None):
        return fitted.read(rows, image_size), labels[rows]

    if classes:
        shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        said = f"  {len(classes)} classes: {shown}"
    else:
        said = "  a number as target: a regression"
    return Source(
        classes,
        "train",
        "test",
        train_rows,
        test_rows,
        read,
        kind=found.kind,
        offset=fitted.offset,
        scale=fitted.scale,
        features=fitted.features,
        groups=found.groups,
        originals=found.originals,
        told=(*found.told, said, *fitted.told),
    )


def _check_asked(name: Any, reading: Reading) -> None:
    """Settings of tables and lines of JSON say nothing elsewhere."""
    path = Path(name).expanduser() if isinstance(name, str | Path) else None
    kind = ".csv" if path is None else path.suffix.lower()
    if path is not None and path.is_dir() and huggingface.is_saved(path):
        return
    allowed = {
        "target": kind in (".csv", ".tsv", ".parquet", ".jsonl"),
        "groups": kind in (".csv", ".tsv", ".parquet", ".jsonl"),
        "drop": kind in (".csv", ".tsv", ".parquet"),
        "missing": kind in (".csv", ".tsv", ".parquet", ".npz"),
    }
    for setting, fits in allowed.items():
        value = getattr(reading, setting)
        if value != getattr(Reading(), setting) and not fits:
            shown = ",".join(value) if isinstance(value, tuple) else value
            mend = "; bring an array `groups`" if kind == ".npz" and setting == "groups" else ""
            raise ValueError(f"data.{setting}={shown} is for columns, and {name} has none{mend}")


def find_classes(found: Examples) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes and the class of each example, [M]; or none, and numbers.

    Numbers are in their order, texts in theirs.

    Raises:
        ValueError: for fewer than two classes, or names that are not one for each.
    """
    values = np.asarray(found.labels)
    if values.dtype.kind == "S":
        values = np.char.decode(values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = np.flatnonzero(~np.isfinite(values))[0]
        raise ValueError(f"{found.where}, row {row + 1}: the target is {values[row]}; remove it")
    present, labels = np.unique(values, return_inverse=True)
    about = f"{found.where}: the target {found.target!r}"
    if len(present) < 2:
        raise ValueError(
            f"{about} is constant ({present[0]}); a classifier needs two classes or more"
        )
    if found.names is not None:
        return found.names, _named(values, present, found)
    if values.dtype.kind in "fiu":
        most = MOST_VALUES if values.dtype.kind == "f" else max(MOST_VALUES, len(values) // 2)
        if len(present) > most:
            return (), values.astype(np.float64)
        whole = (present == np.round(present)).all()
        return tuple(f"{each:.0f}" if whole else f"{each:g}" for each in present), labels
    return tuple(str(each) for each in present), labels


def _named(values: np.ndarray, present: np.ndarray, found: Examples) -> np.ndarray:
    """The classes [M] of labels that have names: their places among them, from 0 or from 1."""
    names = found.names or ()
    if values.dtype.kind == "U" and set(present) <= set(names):
        return np.asarray([names.index(each) for each in values])
    whole = values.dtype.kind in "fiub" and (present == present.astype(np.int64)).all()
    if len(set(names)) != len(names) or not whole:
        raise ValueError(f"{found.where}: names must be different, and y their places, from 0")
    first = 1 if present[0] == 1 and present[-1] == len(names) else 0
    if present[0] < first or present[-1] - first >= len(names):
        raise ValueError(
            f"{found.where}: {len(names)} names, and y has labels from {present[0]} to "
            f"{present[-1]}; they must be places among the names, from 0"
        )
    return values.astype(np.int64) - first


def _cut(
    labels: np.ndarray,
    classes: tuple[str, ...],
    found: Examples,
    draw: np.random.Generator,
    original: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """A fifth of each class, at least one example, for testing; rows in their order."""
    strata = [np.flatnonzero(labels == index) for index in range(len(classes))]
    if not classes:
        strata = [np.arange(len(labels))]
    test: list[np.ndarray] = []
    for index, rows in enumerate(strata):
        if len(rows) == 1:
            raise ValueError(
                f"{found.where}: class {classes[index]!r} has one example, which cannot be in the "
                "training and in the test part; bring another, or remove it"
            )
        mixed = rows if original else draw.permutation(rows)
        if len(rows):
            test.append(mixed[-max(round(len(rows) / TEST_PART), 1) :])
    test_rows = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), test_rows), test_rows
