"""An example that is no image, in a few words for a figure."""

from __future__ import annotations

import contextlib
import textwrap
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from ddm_jax.data.split import Split, Tokenizer

LINES, LETTERS, WIDTH = 5, 100, 26
SHORT = 60  # letters of a query in a table
FEW = 15  # numbers that are all shown
INTEGERS = 30  # of an example, such as its tokens


def is_defined(value: float | None) -> bool:
    """Whether a number is there: neither NaN nor the null that stands for it in JSON."""
    return value is not None and bool(np.isfinite(value))


def number(value: float | None) -> str:
    """Three decimals, or that there is no number."""
    return f"{value:.3f}" if value is not None and is_defined(value) else "undefined"


def in_seconds(value: float) -> str:
    """A time in seconds, to two digits below ten."""
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def describe(split: Split, x: Any, original: Any = None) -> str:
    """At most five lines: the columns that differ most from the training mean, or a text's start.

    Args:
        x: the example as the network sees it, [...], or a pytree of such.
        original: what it was, a row of a DataFrame or a text; None of a synthetic item.
    """
    if split.tokenizer is not None and original is None:
        original = text_of(split, x)
    if split.kind == "other":
        return "\n".join(_parts(x))
    if split.kind != "language":
        x = np.asarray(x)
    if split.kind in ("texts", "language"):
        text = original if original is not None else _words(split, x)
        text = " ".join(text.split())
        text = text if len(text) <= LETTERS else text[:LETTERS] + "..."
        return "\n".join(textwrap.wrap(text, WIDTH)) or "(no words)"
    if split.kind == "table":
        return "\n".join(_columns(split, x, original))
    if x.dtype.kind in "iub":
        return "\n".join(_parts(x))
    values = split.numbers(x)
    if values.size <= FEW:
        told = " ".join(f"{each:.3g}" for each in values.ravel())
        return "\n".join(textwrap.wrap(told, WIDTH))
    shape = " x ".join(map(str, values.shape))
    return f"{shape}\nmean {values.mean():.3g}\n{values.min():.3g} to {values.max():.3g}"


def query_in_words(split: Split, query: int) -> str:
    """The place of a query, and how its text begins, where it has one."""
    text = ""
    if split.tokenizer is not None:
        text = text_of(split, jax.tree.map(lambda leaf: leaf[query], split.test.x))
    elif split.kind == "texts" and isinstance(split.shown_test, list):
        text = split.shown_test[query]
    text = _cut(" ".join(text.split()), SHORT)
    return f"{query}: {text}" if text else str(query)


def objective_in_words(split: Split, objective: str) -> str:
    """What an objective is called: the output of a language model has a name."""
    named = split.kind == "language" and objective == "output"
    return "log-likelihood" if named else objective


def tokenizer_of(split: Split) -> Tokenizer:
    """The tokenizer of documents.

    Raises:
        ValueError: where the data have none.
    """
    if split.tokenizer is None:
        raise ValueError(f"{split.name} has no tokenizer, by which tokens are texts")
    return split.tokenizer


def text_of(split: Split, x: dict[str, np.ndarray]) -> str:
    """The text of a sequence, what is padding left out."""
    tokens, mask = np.asarray(x["tokens"]), np.asarray(x["mask"])
    marked = np.flatnonzero(mask > 0)
    return tokenizer_of(split).decode(tokens[: marked[-1] + 1 if len(marked) else 1].tolist())


def _parts(x: Any) -> list[str]:
    """The leaves of an example by their names: their first integers, or the mean of numbers."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        name, leaf = jax.tree_util.keystr(path, simple=True, separator="."), np.asarray(leaf)
        shape = " x ".join(map(str, leaf.shape)) or "one number"
        told = f"{shape}, mean {leaf.astype(np.float32).mean():.3g}"
        if leaf.dtype.kind in "iub":
            told = " ".join(map(str, leaf.ravel()[:INTEGERS]))
            told += " ..." if leaf.size > INTEGERS else ""
        lines += textwrap.wrap(f"{name}: {told}" if name else told, WIDTH)
    return lines[:LINES]


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
    if isinstance(value, str) and "." in value:  # a number as a file has it
        with contextlib.suppress(ValueError):
            value = float(value)
    return f"{value:.5g}" if isinstance(value, float | np.floating) else str(value)


def _words(split: Split, x: np.ndarray) -> str:
    """The words that count most in a synthetic text."""
    order = np.argsort(-x, kind="stable")[:12]
    return " ".join(split.features[place][0] for place in order if x[place] > 0)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
