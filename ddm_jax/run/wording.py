"""An example that is no image, in a few words for a figure."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ddm_jax.data import Split

LINES, LETTERS, WIDTH = 5, 100, 26


def describe(split: Split, x: Any, original: Any = None) -> str:
    """At most five lines: the columns that differ most from the training mean, or a text's start.

    Args:
        x: the example as the network sees it, [...].
        original: what it was, a row of a DataFrame or a text; None of a synthetic item.
    """
    x = np.asarray(x)
    if split.kind == "texts":
        text = original if original is not None else _words(split, x)
        text = " ".join(text.split())
        text = text if len(text) <= LETTERS else text[:LETTERS] + "..."
        return "\n".join(textwrap.wrap(text, WIDTH)) or "(no words)"
    if split.kind == "table":
        return "\n".join(_columns(split, x, original))
    values = split.numbers(x)
    shape = " x ".join(map(str, values.shape))
    return f"{shape}\nmean {values.mean():.3g}\n{values.min():.3g} to {values.max():.3g}"


def _columns(split: Split, x: np.ndarray, original: Any) -> list[str]:
    """The most unusual columns of a row, as "name = value"."""
    train = np.asarray(split.train.x)
    unusual = np.abs(x - train.mean(0)) / np.maximum(train.std(0), 1e-6)
    owner: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(split.features):
        owner.setdefault(name, []).append(place)
    names = sorted(owner, key=lambda name: -unusual[owner[name]].max())[:LINES]
    numbers = split.numbers(x)
    lines = []
    for name in names:
        places = owner[name]
        category = split.features[places[int(np.argmax(x[places]))]][1]
        value = numbers[places[0]] if category is None else category
        value = original[name] if original is not None else value
        lines.append(f"{_cut(name, 18)} = {_cut(_said(value), 14)}")
    return lines


def _said(value: Any) -> str:
    if value is None or value != value:
        return "missing"
    return f"{value:.5g}" if isinstance(value, float | np.floating) else str(value)


def _words(split: Split, x: np.ndarray) -> str:
    """The words that count most in a synthetic text."""
    order = np.argsort(-x, kind="stable")[:12]
    return " ".join(split.features[place][0] for place in order if x[place] > 0)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
