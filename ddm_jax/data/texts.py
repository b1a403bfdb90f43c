"""Texts: a folder of .txt files or lines of JSON, as counts of hashed words."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.data.examples import Examples, Fitted, Reading, close_to
from ddm_jax.data.folders import Folder
from ddm_jax.data.table import TARGETS

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
        try:
            texts.append(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text; save it as UTF-8, or remove it") from error
    where = folder.where
    found = text_examples(texts, folder.labels, where, reading, test_from=folder.test_from)
    return found._replace(told=(*found.told, *folder.told))


def jsonl_examples(path: Path, reading: Reading) -> Examples:
    """A line an example: `{"text": ..., "label": ...}`, and maybe a group.

    Raises:
        ValueError: for a line that is no such object.
    """
    lines = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                lines.append((number, json.loads(line)))
                if not isinstance(lines[-1][1], dict):
                    raise ValueError("no object")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: no JSON object ({error})") from error
    if not lines:
        raise ValueError(f'{path} is empty; write lines of {{"text": ..., "label": ...}}')
    first = lines[0][1]
    target = reading.target or next((name for name in first if name.lower() in TARGETS), "label")
    texts, labels, groups = [], [], []
    for number, entry in lines:
        for name, kinds in (("text", str), (target, str | int | float)):
            if name not in entry:
                mend = "data.target names another" if name == target else "it holds what is read"
                raise ValueError(
                    f"{path}, line {number}: no field {name!r} ({mend}); {close_to(name, entry)}"
                )
            if not isinstance(entry[name], kinds):
                raise ValueError(
                    f"{path}, line {number}: {name!r} is {json.dumps(entry[name])[:60]}; it must "
                    f"be a text{' or a number' if name == target else ''}"
                )
        texts.append(entry["text"])
        labels.append(entry[target])
        groups.append(entry.get(reading.groups))
    if reading.groups is not None and all(group is None for group in groups):
        raise ValueError(
            f"data.groups={reading.groups}: no such field in {path}; "
            f"{close_to(reading.groups, first)}"
        )
    kinds_there = {type(label) for label in labels}
    if str in kinds_there and len(kinds_there) > 1:
        odd = next(at for at, label in enumerate(labels) if type(label) is not type(labels[0]))
        raise ValueError(
            f"{path}, line {lines[odd][0]}: {target!r} is {labels[odd]!r}, of another kind than in "
            "the lines before; write all as texts, or all as numbers"
        )
    named = None if reading.groups is None else np.asarray(groups, object)
    where = str(path)
    return text_examples(texts, np.asarray(labels), where, reading, target=target, groups=named)
