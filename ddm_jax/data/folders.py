"""Folders of files: a subfolder a class, of the whole or of each of a training and a test part.

A folder inside of a class's holds the files of one source, which is their group.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

# What may hold the test part, the first that there is.
TEST_PARTS = ("test", "validation", "valid", "val")


class Folder(NamedTuple):
    """The files of a folder, those of the training part first."""

    where: str
    files: list[Path]  # M
    labels: np.ndarray  # [M] names of their subfolders
    test_from: int | None  # the first of the test part
    groups: np.ndarray | None  # [M] the folder inside of its class's that a file is in, or None
    told: tuple[str, ...] = ()  # what was not used


def find_files(path: Path, endings: tuple[str, ...]) -> Folder:
    """Files with some endings, in the order of their names; those of a class before its sources'.

    Raises:
        ValueError: for a subfolder without any.
    """

    def inside(folder: Path) -> list[Path]:
        return sorted(
            each
            for each in folder.iterdir()
            if each.suffix.lower() in endings and each.is_file() and _is_shown(each)
        )

    parts = [path]
    held_out = next((name for name in TEST_PARTS if (path / name).is_dir()), None)
    if (path / "train").is_dir() and held_out is not None:
        parts = [path / "train", path / held_out]
    files: list[Path] = []
    labels: list[str] = []
    groups: list[str | None] = []
    counts = []
    for part in parts:
        classes = sorted(each for each in part.iterdir() if each.is_dir() and _is_shown(each))
        for folder in classes:
            found: list[tuple[Path, str | None]] = [(each, None) for each in inside(folder)]
            sources = [each for each in folder.iterdir() if each.is_dir() and _is_shown(each)]
            for source in sorted(sources):
                found += [(each, source.name) for each in inside(source)]
            if not found:
                raise ValueError(
                    f"{folder} has no {', '.join(endings)} files; each subfolder is a class: put "
                    "examples in it, or remove it"
                )
            files += [each for each, _ in found]
            groups += [source for _, source in found]
            labels += [folder.name] * len(found)
        if not classes:
            raise ValueError(f"{part} has no subfolders; put the files of each class in one")
        counts.append(len(files))
    used, left = set(files), Counter[str]()
    for each in path.rglob("*"):
        if _is_shown(each) and not each.is_dir() and each not in used:
            left[each.suffix.lower() or "without an ending"] += 1
    said = ", ".join(f"{count} {ending}" for ending, count in sorted(left.items()))
    told: tuple[str, ...] = (f"  files not used: {said}",) if said else ()
    first = counts[0] if len(parts) > 1 else None
    if len(parts) > 1 and held_out != TEST_PARTS[0]:
        told += (f"  {held_out} is the test part",)
    several = len({each for each in groups if each is not None}) > 1
    by = np.asarray(groups, object) if several else None
    return Folder(str(path), files, np.asarray(labels), first, by, told)


def endings_in(path: Path) -> set[str]:
    """The endings of the files in the subfolders of a folder, in theirs, and in theirs."""
    found: set[str] = set()
    for pattern in ("*/*", "*/*/*", "*/*/*/*"):
        found |= {each.suffix.lower() for each in path.glob(pattern) if _is_shown(each)}
    return found


def _is_shown(path: Path) -> bool:
    return not path.name.startswith(".")
