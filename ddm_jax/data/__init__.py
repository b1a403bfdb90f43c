"""Data: `load(name) -> Split`, for files of one's own, scikit-learn's digits and TFDS images.

Everything is held as arrays in host memory; images are float32 `[N, H, W, D]`, labels one-hot.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from ddm_jax.checks import check_choice, check_integer, check_number
from ddm_jax.data.digits import digits_source
from ddm_jax.data.examples import Reading, some_of
from ddm_jax.data.groups import read_groups
from ddm_jax.data.language import CORPUS, documents, some_of_documents
from ddm_jax.data.own import is_own, own_source
from ddm_jax.data.preparation import preparation_of, prepare
from ddm_jax.data.split import (
    Source,
    Split,
    as_computed,
    given_split,
    make_batch,
    standardise_targets,
)
from ddm_jax.data.tfds import tfds_source
from ddm_jax.types import Batch

LARGEST = 1e30  # of a number; squares of larger ones are beyond single precision
LANGUAGE, CONTEXT = "language", 64  # the corpus, and its tokens of a sequence
SMALL_RANGE = 0.25  # of pixels, as of 12 or 14 bits in files of 16

__all__ = [
    "Split",
    "as_computed",
    "documents",
    "given_split",
    "is_own",
    "load",
    "make_batch",
    "prepare",
]


def load(
    name: Any = "digits",
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    order: str = "random",
    label_noise: float = 0.0,
    noise_kind: str = "uniform",
    normalise: str = "unit",
    image_size: int | None = None,
    data_dir: str | None = None,
    target: str | int | Sequence[str] | None = None,
    groups: str | int | None = None,
    drop: str | Sequence[str] = (),
    missing: str = "refuse",
    words: int = 512,
    context: int | None = None,
    tokenizer: str | None = None,
) -> Split:
    """Load data by a path or a name.

    Data of one's own are an .npz of arrays (`x`, `y`, and maybe `x_test`, `y_test`, `groups`,
    `names`), a table (.csv, .tsv, .parquet or a pandas DataFrame), a folder of images or of texts
    with a subfolder a class, lines of JSON with a text and a label (.jsonl), or a folder that
    Hugging Face's datasets saved. In Python they may be a dict of such arrays or a pair (x, y), a
    torch Dataset or any sequence of pairs (x, y), a list of dicts with a text and a label, or
    (train, test) of two such. Where they have no test part, a fifth of each class becomes one.

    With a `context`, a folder of texts or lines of JSON are documents for a language model, see
    `documents`; "language" is a small corpus that the library carries.

    Several targets are `y [N, C]`: labels, of which any number may hold, where all are 0 or 1, or
    true or false, or lists of texts; else numbers. `Split.targets` says which.

    "digits" is scikit-learn's handwritten digits (1,797 images of 8x8, no download), cut at
    random into 1,000 for training and 797 for testing. Any other name is a TFDS data set with
    one image and one class label, read from `data_dir` and downloaded where that is possible;
    its test part is the split "test", else "validation", else a fifth of "train".

    Args:
        name: a path, data in Python, "digits", or a TFDS name such as "mnist" or "cifar10:3.0.2".
        train_size: training points N; default all.
        test_size: test points Q; default all.
        seed: fixes the split, the draws and the flipped labels.
        order: "random" draws the points at random; "original" takes the first ones in the order
            of the original files (digits, mnist, cifar10 and your own).
        label_noise: the part of the training labels to flip, in [0, 1); `Split.flipped` says
            which.
        noise_kind: "uniform" flips a label to any other class; "nearest" to the class whose mean
            image is nearest to that of its own, which is harder to find (class-dependent).
        normalise: "unit" keeps pixels in [0, 1]; "standard" subtracts the training mean and
            divides by the training deviation per channel; "<mean>/<deviation>", for example
            "0.1307/0.3081", uses these.
        image_size: resize all images to this height and width; needed where they differ.
        data_dir: where TFDS keeps prepared data; default TFDS's own.
        target: the column to predict, or several with commas between; default one named target,
            label, class or y, else the last.
        groups: the column that says the group of each row; -1 and what is missing are background.
        drop: columns to leave out.
        missing: "refuse" missing values, or "impute" the median, and a category of their own.
        words: buckets that the words of texts are counted in.
        context: tokens of a sequence of a document; None where texts are no documents.
        tokenizer: of documents, a tokenizer.json or a folder that has one; None for bytes.

    Raises:
        ValueError: for an unknown name, data that cannot be read as they are, or a setting out of
            range.
    """
    name = str(name) if isinstance(name, PathLike) else name
    check_number("label_noise", label_noise, least=0, below=1)
    given = _given_normalisation(normalise)
    check_choice("order", order, ("random", "original"))
    check_choice("noise_kind", noise_kind, ("uniform", "nearest"))
    check_choice("missing", missing, ("refuse", "impute"))
    check_integer("words", words)
    check_integer("seed", seed, 0)
    for setting, value in (
        ("train_size", train_size),
        ("test_size", test_size),
        ("image_size", image_size),
    ):
        if value is not None:
            check_integer(setting, value)
    draw = np.random.default_rng(seed)
    original = order == "original"
    reading = Reading(
        target=None if target is None else ",".join(map(str, _listed(target))),
        groups=None if groups is None else str(groups),
        drop=tuple(map(str, _listed(drop))),
        missing=missing,
        words=words,
    )
    corpus = isinstance(name, str) and name == LANGUAGE
    if context is not None or corpus:
        if not isinstance(name, str):
            raise ValueError("context cuts documents by a path; of others use data.documents")
        kept = Reading(groups=reading.groups, words=words)
        others = (normalise, image_size, label_noise, order, data_dir)
        if reading != kept or others != ("unit", None, 0.0, "random", None):
            raise ValueError(
                f"{name} are documents, which have groups, context and tokenizer alone: leave out "
                "target, drop, missing, normalise, image_size, label_noise, order and data_dir"
            )
        found = documents(
            CORPUS if corpus else name,
            context=CONTEXT if context is None else context,
            group=reading.groups,
            tokenizer=tokenizer,
            seed=seed,
        )
        return some_of_documents(found._replace(name=name), draw, train_size, test_size)
    if tokenizer is not None:
        raise ValueError(f"tokenizer={tokenizer!r} is of documents; name their context too")
    if is_own(name, data_dir):
        source = own_source(name, reading, draw, original)
        name = name if isinstance(name, str) else type(name).__name__
    elif reading != Reading(words=words):
        raise ValueError(f"{name}: target, groups, drop and missing are of tables of your own")
    elif name == "digits":
        source = digits_source(draw, original)
    else:
        source = tfds_source(name, data_dir, draw, original)
    if source.kind != "images" and (normalise != "unit" or image_size is not None):
        raise ValueError(f"normalise and image_size are for images; {name} are {source.kind}")
    if source.targets != "distribution" and label_noise:
        what = "several labels" if source.classes else "a number"
        raise ValueError(f"label_noise={label_noise} flips classes; the target is {what}")
    train_ids = _choose(draw, source.train_rows, train_size, "train_size", name, original)
    test_ids = _choose(draw, source.test_rows, test_size, "test_size", name, original)
    train_pixels, train_labels = source.read(source.train_split, train_ids, image_size)
    test_pixels, test_labels = source.read(source.test_split, test_ids, image_size)
    if source.targets == "labels":
        _check_labels(train_labels, source.classes, name)

    flipped = np.zeros(len(train_ids), bool)
    if label_noise:
        chosen = draw.permutation(len(train_ids))[: round(label_noise * len(train_ids))]
        flipped[chosen] = True
        count = len(source.classes)
        shift = draw.integers(1, count, len(chosen))
        before = train_labels[chosen]
        train_labels = train_labels.copy()
        if noise_kind == "uniform":
            train_labels[chosen] = (before + shift) % count
        else:
            seen = train_pixels
            if source.offset is not None:
                seen = (train_pixels - source.offset) / source.scale
            train_labels[chosen] = _nearest_class(seen, train_labels, count)[before]

    depth = train_pixels.shape[-1]
    offset, scale = np.zeros(depth, np.float32), np.ones(depth, np.float32)
    if source.offset is not None and source.scale is not None:
        offset, scale = source.offset, source.scale
    elif given is not None:
        offset, scale = offset + np.float32(given[0]), scale * np.float32(given[1])
    elif normalise == "standard":
        offset = train_pixels.mean((0, 1, 2), dtype=np.float64).astype(np.float32)
        scale = np.maximum(train_pixels.std((0, 1, 2), dtype=np.float64), 1e-6).astype(np.float32)
    wild = ~np.isfinite(scale) | (np.abs(offset) > LARGEST) | (scale > LARGEST)
    if wild.any():
        place = int(np.flatnonzero(wild)[0])
        named = source.features[place][0] if source.features else str(place)
        raise ValueError(
            f"{name}: column {named!r} has numbers beyond {LARGEST:g}; bring it in other units, or "
            "leave it out"
        )
    if is_same(train_pixels):
        raise ValueError(f"{name}: all training examples are equal; nothing can be learnt of them")
    grouped, told = None, source.told
    if source.groups is not None:
        grouped, gone = read_groups(source.groups, train_ids, name)
        none = int((np.asarray(grouped.ids) < 0).sum())
        told += (f"  {grouped.count} groups; {none} of {len(train_ids)} examples in none",)
        told += (f"  no training example is left of the groups: {some_of(gone)}",) if gone else ()
    told += _what_is_odd(train_pixels, train_labels, source)
    found = Split(
        name=name,
        train=_batch((train_pixels - offset) / scale, train_labels, source),
        test=_batch((test_pixels - offset) / scale, test_labels, source),
        classes=source.classes,
        train_ids=train_ids,
        test_ids=test_ids,
        flipped=flipped,
        offset=offset,
        scale=scale,
        kind=source.kind,
        features=source.features,
        shown_train=_rows_of(source.originals, train_ids),
        shown_test=_rows_of(source.originals, test_ids),
        groups=grouped,
        told=told,
        targets=source.targets,
    )
    found = standardise_targets(found) if found.targets == "any" else found
    return found._replace(preparation=preparation_of(found, source.used))


def _listed(names: Any) -> Sequence[Any]:
    """Names of columns, which may be numbers, as several where one alone is given."""
    return names if isinstance(names, list | tuple) else [names]


def is_same(x: np.ndarray) -> bool:
    """Whether there are several examples [N, ...], and all are equal."""
    return len(x) > 1 and bool((x == x[:1]).all())


def _batch(x: np.ndarray, labels: np.ndarray, source: Source) -> Batch:
    if source.targets == "distribution":
        return make_batch(x, labels, len(source.classes))
    batch = make_batch(x, np.zeros(len(x), np.int64), 2)
    if np.abs(labels).max() > LARGEST:
        raise ValueError(f"the target reaches {np.abs(labels).max():.3g}; bring it in other units")
    if source.targets == "any":  # rounded once they are standardised: 1.7e9 seconds are no float32
        return batch._replace(y=labels)
    return batch._replace(y=labels.astype(batch.x.dtype))


def _check_labels(held: np.ndarray, labels: Sequence[str], name: str) -> None:
    """What holds in no training example [N, C], or in all of them, cannot be learnt."""
    for label, share in zip(labels, held.mean(0), strict=True):
        if share in (0, 1):
            raise ValueError(
                f"{name}: label {label!r} holds in {'all' if share else 'none'} of the {len(held)} "
                "training examples, which cannot be learnt; leave it out, or bring others"
            )


def _what_is_odd(x: np.ndarray, labels: np.ndarray, source: Source) -> tuple[str, ...]:
    """Lines about training examples that can be learnt of, and may not be as they were meant."""
    told: tuple[str, ...] = ()
    if source.targets == "distribution":
        count = np.bincount(labels, minlength=len(source.classes))
        gone = [source.classes[place] for place in np.flatnonzero(count == 0)]
        told += (f"  no training example is left of the classes: {some_of(gone)}",) if gone else ()
    low, high = x.min(), x.max()
    if source.kind == "images" and high - low < SMALL_RANGE:
        told += (
            f"  all pixels are in {low:.3g}..{high:.3g}, a small part of 0..1; stretch them, or "
            "say data.normalise=standard",
        )
    return told


def _rows_of(originals: Any, rows: np.ndarray) -> Any:
    if originals is None:
        return None
    if isinstance(originals, list):
        return [originals[row] for row in rows]
    return originals.iloc[rows].reset_index(drop=True)


def _given_normalisation(text: str) -> tuple[float, float] | None:
    if text in ("unit", "standard"):
        return None
    try:
        mean, deviation = (float(part) for part in text.split("/"))
    except ValueError:
        mean, deviation = 0.0, 0.0
    if not (np.isfinite([mean, deviation]).all() and deviation > 0):
        raise ValueError(
            f"normalise={text!r}; choose 'unit', 'standard' or '<mean>/<deviation>', for example "
            "0.1307/0.3081"
        )
    return mean, deviation


def _nearest_class(pixels: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """For each class another one: that of the nearest mean image. `[C]`."""
    flat = pixels.reshape(len(pixels), -1)
    present = np.bincount(labels, minlength=count) > 0
    means = np.stack([flat[labels == c].mean(0) if present[c] else flat[0] for c in range(count)])
    distance = ((means[:, None] - means[None]) ** 2).sum(-1)
    distance[:, ~present] = np.inf
    np.fill_diagonal(distance, np.inf)
    return distance.argmin(1)


def _choose(
    draw, rows: np.ndarray, size: int | None, setting: str, name: str, original: bool
) -> np.ndarray:
    if size is None:
        return rows
    if size > len(rows):
        raise ValueError(f"{setting}={size}; {name} has only {len(rows)} such examples")
    return (rows if original else draw.permutation(rows))[:size]
