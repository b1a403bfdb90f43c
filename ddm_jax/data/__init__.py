"""Data: `load(name) -> Split`, for scikit-learn's digits and any TFDS image classification set.

Everything is held as arrays in host memory; images are float32 `[N, H, W, D]`, labels one-hot.
"""

from __future__ import annotations

import numpy as np

from ddm_jax.checks import check_choice, check_integer, check_number
from ddm_jax.data.digits import digits_source
from ddm_jax.data.split import Split, make_batch
from ddm_jax.data.tfds import tfds_source

__all__ = ["Split", "load", "make_batch"]


def load(
    name: str = "digits",
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
) -> Split:
    """Load a data set by name.

    "digits" is scikit-learn's handwritten digits (1,797 images of 8x8, no download), cut at
    random into 1,000 for training and 797 for testing. Any other name is a TFDS data set with
    one image and one class label, read from `data_dir` and downloaded where that is possible;
    its test part is the split "test", else "validation", else a fifth of "train".

    Args:
        name: "digits" or a TFDS name such as "mnist" or "cifar10:3.0.2".
        train_size: training points N; default all.
        test_size: test points Q; default all.
        seed: fixes the split, the draws and the flipped labels.
        order: "random" draws the points at random; "original" takes the first ones in the order
            of the original files (digits, mnist and cifar10).
        label_noise: the part of the training labels to flip, in [0, 1); `Split.flipped` says
            which.
        noise_kind: "uniform" flips a label to any other class; "nearest" to the class whose mean
            image is nearest to that of its own, which is harder to find (class-dependent).
        normalise: "unit" keeps pixels in [0, 1]; "standard" subtracts the training mean and
            divides by the training deviation per channel; "<mean>/<deviation>", for example
            "0.1307/0.3081", uses these.
        image_size: resize all images to this height and width; needed where they differ.
        data_dir: where TFDS keeps prepared data; default TFDS's own.

    Raises:
        ValueError: for an unknown name, or a setting out of range.
    """
    check_number("label_noise", label_noise, least=0, below=1)
    given = _given_normalisation(normalise)
    check_choice("order", order, ("random", "original"))
    check_choice("noise_kind", noise_kind, ("uniform", "nearest"))
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
    if name == "digits":
        source = digits_source(draw, original)
    else:
        source = tfds_source(name, data_dir, draw, original)
    train_ids = _choose(draw, source.train_rows, train_size, "train_size", name, original)
    test_ids = _choose(draw, source.test_rows, test_size, "test_size", name, original)
    train_pixels, train_labels = source.read(source.train_split, train_ids, image_size)
    test_pixels, test_labels = source.read(source.test_split, test_ids, image_size)

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
            train_labels[chosen] = _nearest_class(train_pixels, train_labels, count)[before]

    depth = train_pixels.shape[-1]
    offset, scale = np.zeros(depth, np.float32), np.ones(depth, np.float32)
    if given is not None:
        offset, scale = offset + np.float32(given[0]), scale * np.float32(given[1])
    elif normalise == "standard":
        offset = train_pixels.mean((0, 1, 2), dtype=np.float64).astype(np.float32)
        scale = np.maximum(train_pixels.std((0, 1, 2), dtype=np.float64), 1e-6).astype(np.float32)
    classes = len(source.classes)
    return Split(
        name=name,
        train=make_batch((train_pixels - offset) / scale, train_labels, classes),
        test=make_batch((test_pixels - offset) / scale, test_labels, classes),
        classes=source.classes,
        train_ids=train_ids,
        test_ids=test_ids,
        flipped=flipped,
        offset=offset,
        scale=scale,
    )


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
