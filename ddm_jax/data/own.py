"""Data of one's own, by a path or in Python: which route, which classes, which part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.data import folders, huggingface, images, texts
from ddm_jax.data.arrays import npz_examples
from ddm_jax.data.examples import Examples, Reading
from ddm_jax.data.given import given_examples, given_name, route_of
from ddm_jax.data.split import Source
from ddm_jax.data.table import csv_examples, parquet_examples
from ddm_jax.data.targets import Targets, find_targets

FILES: dict[str, Callable[[Path, Reading], Examples]] = {
    ".npz": npz_examples,
    ".csv": csv_examples,
    ".tsv": csv_examples,
    ".parquet": parquet_examples,
    ".jsonl": texts.jsonl_examples,
}
TEST_PART = 5  # a fifth
CARRIED = ("digits", "language")  # names of what the library brings, whatever lies beside it


def is_own(name: Any, data_dir: str | None = None) -> bool:
    """Whether data are one's own: data in Python, a path, or the name of a file or folder there is.

    A folder that TFDS prepared is none, nor is what might be a TFDS name and is not there, or
    where `data_dir` says where TFDS's data are.
    """
    if not isinstance(name, str | Path):
        return True
    text = str(name)
    path = Path(text).expanduser()
    if path.suffix.lower() in FILES or text.startswith(("/", ".", "~")) or text.endswith("/"):
        return True
    if text in CARRIED or data_dir is not None or not path.exists():
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
        return given_examples(name, reading)
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
        "those of each class in a subfolder of its own (or take texts as documents: set a context)"
    )


def own_source(name: Any, reading: Reading, draw: np.random.Generator, original: bool) -> Source:
    """Data of one's own, cut into parts unless they are so already.

    Raises:
        ValueError: as `read_own`, for fewer than two classes, or a class that is not in both parts
            where they are made here, or not in the training part where they are there.
    """
    _check_asked(name, reading)
    found = read_own(name, reading)
    targets = find_targets(found)
    count = len(targets.values)
    if found.test_from is None:
        train_rows, test_rows = _cut(targets, found, draw, original)
    else:
        train_rows, test_rows = np.arange(found.test_from), np.arange(found.test_from, count)
        absent = _absent(targets, train_rows)
        if absent:
            raise ValueError(
                f"{found.where}: class {absent[0]!r} is in the test part alone; bring "
                "training examples of it, or remove it"
            )
    fitted = found.fit(train_rows)

    def read(split: str, rows: np.ndarray, image_size: int | None):
        return fitted.read(rows, image_size), targets.values[rows]

    return Source(
        targets.names,
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
        told=(*found.told, targets.told, *fitted.told),
        targets=targets.kind,
        used=fitted.used,
    )


def _absent(targets: Targets, rows: np.ndarray) -> list[str]:
    """The names of the classes that the test part has alone."""
    if targets.kind != "distribution":
        return []
    places = np.setdiff1d(targets.values, targets.values[rows])
    return [targets.names[place] for place in places]


def _check_asked(name: Any, reading: Reading) -> None:
    """Settings of tables and lines of JSON say nothing elsewhere."""
    path = Path(name).expanduser() if isinstance(name, str | Path) else None
    kind = route_of(name) if path is None else path.suffix.lower()
    shown_name = given_name(name) if path is None else name
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
            raise ValueError(
                f"data.{setting}={shown} is for columns, and {shown_name} has none{mend}"
            )


def _cut(
    targets: Targets,
    found: Examples,
    draw: np.random.Generator,
    original: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """A fifth for testing; of each class where there are classes, at least one. Rows in order."""
    count = len(targets.values)
    strata = [np.arange(count)]
    if targets.kind == "distribution":
        strata = [np.flatnonzero(targets.values == place) for place in range(len(targets.names))]
    test: list[np.ndarray] = []
    for index, rows in enumerate(strata):
        if len(rows) == 1:
            what = f"class {targets.names[index]!r}" if len(strata) > 1 else "it"
            raise ValueError(
                f"{found.where}: {what} has one example, which cannot be in the training and in "
                "the test part; bring another, or remove it"
            )
        mixed = rows if original else draw.permutation(rows)
        if len(rows):
            test.append(mixed[-max(round(len(rows) / TEST_PART), 1) :])
    test_rows = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(count), test_rows), test_rows
