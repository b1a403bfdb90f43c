"""A folder that Hugging Face's `datasets` saved with `save_to_disk`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.checks import require_extra
from ddm_jax.data.examples import Examples, Reading, close_to
from ddm_jax.data.folders import TEST_PARTS
from ddm_jax.data.images import pixels_of, stacked
from ddm_jax.data.table import TARGETS, table_examples
from ddm_jax.data.targets import as_labels
from ddm_jax.data.texts import text_examples

MARKS = ("dataset_dict.json", "state.json")


def is_saved(path: Path) -> bool:
    """Whether a folder is one that `datasets` saved."""
    return any((path / mark).is_file() for mark in MARKS)


def saved_examples(path: Path, reading: Reading) -> Examples:
    """Its images, texts or columns of numbers, and a label; parts "train" and "test" are kept.

    Raises:
        ValueError: without the package, or for columns that are not as said.
    """
    datasets = require_extra("datasets", "datasets", f"{path}, which Hugging Face's saved,")
    loaded, where, test = datasets.load_from_disk(str(path)), str(path), None
    if isinstance(loaded, dict):
        if "train" not in loaded:
            raise ValueError(f"{where} has the parts {', '.join(loaded)}; it needs 'train'")
        test = next((loaded[part] for part in TEST_PARTS if part in loaded), None)
        loaded = loaded["train"]
    names = list(loaded.column_names)
    target = reading.target or next((name for name in names if name.lower() in TARGETS), names[-1])
    for setting, asked in (("target", target), ("groups", reading.groups)):
        if asked is not None and asked not in names:
            raise ValueError(f"data.{setting}={asked}: no such column; {close_to(asked, names)}")

    def column(name: str) -> list[Any]:
        return [*loaded[name], *(test[name] if test is not None else [])]

    labels, listed = as_labels(column(target), target, lambda row: f"{where}, row {row + 1}")
    class_names = getattr(loaded.features.get(target), "names", None)
    told: dict[str, Any] = {
        "target": target,
        "test_from": None if test is None else len(loaded),
        "names": tuple(class_names) if class_names else listed,
        "groups": None if reading.groups is None else np.asarray(column(reading.groups), object),
    }
    left = [name for name in names if name not in (target, reading.groups, *reading.drop)]
    if len(left) == 1 and hasattr(loaded[left[0]][0], "convert"):
        return _image_examples(column(left[0]), labels, where, told)
    if len(left) == 1 and isinstance(loaded[left[0]][0], str):
        return text_examples(column(left[0]), labels, where, reading, **told)
    import pandas

    frame = pandas.DataFrame({name: column(name) for name in left})
    frame[target] = 0 if labels.ndim > 1 else labels  # several are as they were read
    read = table_examples(frame, where, reading._replace(target=target, groups=None, drop=()))
    return read._replace(**told, labels=labels if class_names or labels.ndim > 1 else read.labels)


def _image_examples(images: list[Any], labels: np.ndarray, where: str, told: Any) -> Examples:
    heads = [(image.mode, image.size) for image in images]
    fit = stacked(where, heads, lambda row, depth: pixels_of(images[row], depth))
    said = (f"{where}: {len(images):,} images",)
    return Examples(where, "images", labels, fit, told=said, **told)
