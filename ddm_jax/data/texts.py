"""Texts: a folder of .txt files or lines of JSON, as counts of hashed words."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.data.examples import Examples, Fitted, Reading, close_to, read_lines, read_text
from ddm_jax.data.folders import Folder
from ddm_jax.data.table import TARGETS
from ddm_jax.data.targets import as_labels

ENDINGS = (".txt",)
WORD = re.compile(r"\w+")


def count_words(texts: list[str], words: int) -> tuple[np.ndarray, list[str]]:
    """Roots of how often the words of each bucket are in each text.

    A word's bucket is the CRC-32 of its lower-case UTF-8 bytes, modulo the number of buckets.

    Returns:
        counts [M, words] float32, and the commonest word of each bucket, "" of an empty one.
    """
    counts = np.zeros((len(texts), words), np.float32)
    total: Counter[str] = Counter()
    place: dict[str, int] = {}
    for row, text in enumerate(texts):
        found = Counter(WORD.findall(text.lower()))
        total.update(found)
        for word, count in found.items():
            if word not in place:
                place[word] = zlib.crc32(word.encode()) % words
            counts[row, place[word]] += count
    named = [""] * words
    for word, _ in sorted(total.items(), key=lambda each: (each[1], each[0])):
        named[place[word]] = word
    return np.sqrt(counts), named


def text_examples(
    texts: list[str], labels: Any, where: str, reading: Reading, **others: Any
) -> Examples:
    """M texts and their labels."""

    def fit(rows: np.ndarray) -> Fitted:
        x, named = count_words(texts, reading.words)
        nothing = np.zeros(reading.words, np.float32), np.ones(reading.words, np.float32)
        features = tuple((word, None) for word in named)
        return Fitted(lambda some, image_size: x[some], *nothing, features)

    told = (f"{where}: {len(texts):,} texts, as counts of words in {reading.words} buckets",)
    return Examples(where, "texts", labels, fit, originals=texts, told=told, **others)


def folder_examples(folder: Folder, reading: Reading) -> Examples:
    """The texts of a folder.

    Raises:
        ValueError: for a file that is no UTF-8 text.
    """
    texts = []
    for path in folder.files:
        texts.append(read_text(path).replace("\r\n", "\n").replace("\r", "\n"))
    where = folder.where
    found = text_examples(texts, folder.labels, where, reading, test_from=folder.test_from)
    return found._replace(groups=folder.groups, told=(*found.told, *folder.told))


def jsonl_examples(path: Path, reading: Reading) -> Examples:
    """A line an example: `{"text": ..., "label": ...}`, and maybe a group.

    Raises:
        ValueError: for a line that is no such object.
    """
    found = read_lines(path)
    if not found:
        raise ValueError(f'{path} is empty; write lines of {{"text": ..., "label": ...}}')
    rows = [row for _, row in found]
    return row_examples(rows, str(path), lambda row: f"{path}, line {found[row][0]}", reading)


def row_examples(
    rows: Sequence[Any],
    where: str,
    at: Callable[[int], str],
    reading: Reading,
    test_from: int | None = None,
) -> Examples:
    """Rows with a text, a label (or a list of the labels that hold) and maybe a group.

    Args:
        at: where a row is from, for messages.

    Raises:
        ValueError: for a row without a field or with one of another kind, or a field of groups that
            no row has.
    """
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"{at(place)}: no JSON object, but {str(row)[:60]!r}")
    fields = list(dict.fromkeys(str(name) for row in rows for name in row))
    guessed = next((name for name in rows[0] if str(name).lower() in TARGETS), "label")
    target = reading.target or guessed
    for place, row in enumerate(rows):
        for name, kinds in (("text", str), (target, str | int | float | list)):
            if name not in row:
                mend = "data.target names another" if name == target else "it holds what is read"
                raise ValueError(f"{at(place)}: no field {name!r} ({mend}); {close_to(name, row)}")
            if not isinstance(row[name], kinds):
                raise ValueError(
                    f"{at(place)}: {name!r} is {json.dumps(row[name], default=str)[:60]}; it "
                    f"must be a text{', a number or a list' if name == target else ''}"
                )
    labels, names = as_labels([row[target] for row in rows], target, at)
    others: dict[str, Any] = {"target": target, "names": names, "test_from": test_from}
    said: tuple[str, ...] = ()
    if reading.groups is not None:
        if reading.groups not in fields:
            raise ValueError(
                f"data.groups={reading.groups}: no such field in {where}; "
                f"{close_to(reading.groups, fields)}"
            )
        lacking = [place for place, row in enumerate(rows) if reading.groups not in row]
        if lacking:
            said = (
                f"  no field {reading.groups!r} in {len(lacking)} of {len(rows)} rows, which are "
                f"in no group; the first is {at(lacking[0])}",
            )
        others["groups"] = np.asarray([row.get(reading.groups) for row in rows], object)
    texts = [row["text"] for row in rows]
    found = text_examples(texts, labels, where, reading, **others)
    return found._replace(told=(*found.told, *said))
