"""Data: `load(name) -> Split`, for scikit-learn's digits and any TFDS image classification set.

Everything is held as arrays in host memory; images are float32 `[N, H, W, D]`, labels one-hot.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddm_jax.types import Batch

DIGITS_TRAIN = 1000  # of 1,797; the rest is the test set
NUMBERED = ("mnist", "cifar10")  # TFDS sets whose original order can be told


class Split(NamedTuple):
    """A data set cut into a training and a test part.

    `x = (pixels - offset) / scale` with pixels in [0, 1], so `pixels(x)` can draw them again.
    """

    name: str
    train: Batch  # x [N, H, W, D] float32, y [N, C] one-hot
    test: Batch  # x [Q, H, W, D], y [Q, C]
    classes: tuple[str, ...]  # C names
    train_ids: np.ndarray  # [N] int, row in the source's training split
    test_ids: np.ndarray  # [Q] int, row in the source's test split
    flipped: np.ndarray  # [N] bool, training labels that were flipped
    offset: np.ndarray  # [D]
    scale: np.ndarray  # [D]

    def pixels(self, x: np.ndarray) -> np.ndarray:
        """Undo the normalisation: pixels in [0, 1]."""
        return np.clip(np.asarray(x) * self.scale + self.offset, 0.0, 1.0)


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
    if not 0 <= label_noise < 1:
        raise ValueError(f"label_noise={label_noise}; it must be in [0, 1)")
    given = _given_normalisation(normalise)
    if order not in ("random", "original"):
        raise ValueError(f"order={order!r}; choose 'random' or 'original'")
    if noise_kind not in ("uniform", "nearest"):
        raise ValueError(f"noise_kind={noise_kind!r}; choose 'uniform' or 'nearest'")
    for part, size in (("train_size", train_size), ("test_size", test_size)):
        if size is not None and size < 1:
            raise ValueError(f"{part}={size}; it must be at least 1, or left out for all")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size}; it must be at least 1 pixel")
    draw = np.random.default_rng(seed)
    original = order == "original"
    source = _digits(draw, original) if name == "digits" else _tfds(name, data_dir, draw, original)
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


def make_batch(x: np.ndarray, labels: np.ndarray, num_classes: int) -> Batch:
    """Make a `Batch` of your own arrays, checked: inputs `[N, ...]`, integer labels `[N]`.

    Raises:
        ValueError: for no examples, lengths that differ, labels that are no integers in
            [0, num_classes), or inputs that are not finite.
    """
    x, labels = np.asarray(x, np.float32), np.asarray(labels)
    if len(x) == 0:
        raise ValueError("there are no examples; pass at least one")
    if x.ndim < 2:
        raise ValueError(f"inputs have shape {x.shape}; they must be [N, ...], one row an example")
    if labels.shape != (len(x),):
        raise ValueError(f"labels have shape {labels.shape}; {len(x)} inputs need ({len(x)},)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}; they must be integers, one class each")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise ValueError(
            f"label {labels[wrong[0]]} of example {wrong[0]} is out of range; with "
            f"{num_classes} classes labels must be in 0..{num_classes - 1}"
        )
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {len(x)} examples hold NaN or infinity, the first is example "
            f"{bad[0]}; remove or repair them"
        )
    return Batch(x, np.eye(num_classes, dtype=np.float32)[labels])


class _Source(NamedTuple):
    classes: tuple[str, ...]
    train_split: str
    test_split: str
    train_rows: np.ndarray
    test_rows: np.ndarray
    # split, rows, image_size -> pixels [n, H, W, D] in [0, 1], labels [n]
    read: Callable[[str, np.ndarray, int | None], tuple[np.ndarray, np.ndarray]]


def _given_normalisation(text: str) -> tuple[float, float] | None:
    if text in ("unit", "standard"):
        return None
    try:
        mean, deviation = (float(part) for part in text.split("/"))
    except ValueError:
        mean, deviation = 0.0, 0.0
    if not deviation > 0:
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


def _digits(draw, original: bool) -> _Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    count = len(digits.target)
    order = np.arange(count) if original else draw.permutation(count)

    def read(split: str, rows: np.ndarray, image_size: int | None):
        pixels = (digits.images[rows, :, :, None] / 16.0).astype(np.float32)
        if image_size is not None:
            pixels = np.stack([_resize(image, image_size) for image in pixels])
        return pixels, digits.target[rows]

    return _Source(
        classes=tuple(str(c) for c in range(10)),
        train_split="digits",
        test_split="digits",
        train_rows=order[:DIGITS_TRAIN],
        test_rows=order[DIGITS_TRAIN:],
        read=read,
    )


def _original_rows(split: str, count: int) -> np.ndarray:
    """The rows of a TFDS split in the order of the original files.

    Row i holds the example whose number in the original file has the i-th smallest hash: true of
    builders that number their examples.
    """
    from tensorflow_datasets.core import hashing

    hasher = hashing.Hasher(split)
    keys = [hasher.hash_key(i) for i in range(count)]
    number_of_row = np.asarray(sorted(range(count), key=keys.__getitem__))
    return np.argsort(number_of_row)


def _tfds(name: str, data_dir: str | None, draw, original: bool) -> _Source:
    import tensorflow_datasets as tfds

    if original and name.split(":")[0] not in NUMBERED:
        raise ValueError(
            f"order='original' is known for {', '.join(NUMBERED)} and digits, not for {name!r}; "
            "use order='random'"
        )
    builder = _prepared_builder(name, data_dir)
    info = builder.info
    images = [k for k, f in info.features.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in info.features.items() if isinstance(f, tfds.features.ClassLabel)]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{name} has the image features {images} and the class labels {labels}; exactly one "
            "of each is needed (an image classification data set)"
        )
    image, label = images[0], labels[0]
    depth = info.features[image].shape[-1] or 3

    def read(split: str, rows: np.ndarray, image_size: int | None):
        # Raw records, parsed and decoded here, read several times faster than decoded ones.
        source = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        return _decode(source.__getitems__(rows.tolist()), image, label, depth, image_size, name)

    train = "train" if "train" in info.splits else next(iter(info.splits))
    rows = np.arange(info.splits[train].num_examples)
    held_out = next((s for s in ("test", "validation") if s in info.splits), None)
    if held_out is None:
        rows = draw.permutation(rows)
        cut = len(rows) // 5
        train_rows, test_rows, held_out = rows[cut:], rows[:cut], train
    else:
        train_rows, test_rows = rows, np.arange(info.splits[held_out].num_examples)
    if original:
        train_rows = _original_rows(train, len(train_rows))
        test_rows = _original_rows(held_out, len(test_rows))
    names = tuple(info.features[label].names or map(str, range(info.features[label].num_classes)))
    return _Source(names, train, held_out, train_rows, test_rows, read)


def _prepared_builder(name: str, data_dir: str | None):
    """Find a TFDS builder whose data is prepared as array_record, preparing it where possible."""
    import tensorflow_datasets as tfds

    place = str(Path(data_dir).expanduser()) if data_dir else None
    if place is not None and not Path(place).is_dir():
        raise ValueError(f"data_dir={data_dir} is not a directory; pass a prepared TFDS folder")
    try:
        builder = tfds.builder(name, data_dir=place)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise ValueError(
            f"unknown data set {name!r}; use 'digits' or the name of a TFDS data set "
            f"({(str(error) or type(error).__name__).splitlines()[0]})"
        ) from error
    except ImportError as error:
        raise ValueError(
            f"{name} is not prepared in {place or 'the TFDS folder'}, and its TFDS code needs a "
            f"package that is not installed ({str(error).splitlines()[-1]}). Run "
            "pip install 'ddm_jax[prepare]' and try again, or pass --data-dir with a prepared "
            "folder"
        ) from error
    formats = [builder.info.file_format] if builder.info.splits else []
    if formats and formats[0] == tfds.core.FileFormat.ARRAY_RECORD:
        return builder
    found = f": it is prepared there as {formats[0].value}" if formats else ""
    where = place or tfds.core.constants.DATA_DIR
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"{name} is not prepared in {where} in the array_record format{found}, and "
            "preparing it needs TensorFlow once. Run pip install 'ddm_jax[prepare]' and try "
            "again, or pass --data-dir with a prepared folder"
        )
    builder = tfds.builder(name, data_dir=place, file_format="array_record")
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise ValueError(
            f"{name} could not be downloaded and prepared in {where}: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    return builder


def _decode(records, image: str, label: str, depth: int, image_size: int | None, name: str):
    import cv2
    from tensorflow_datasets.proto import tf_example_pb2

    flag = cv2.IMREAD_GRAYSCALE if depth == 1 else cv2.IMREAD_COLOR
    pixels, labels = [], []
    for row, record in enumerate(records):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        encoded = np.frombuffer(feature[image].bytes_list.value[0], np.uint8)
        decoded = cv2.imdecode(encoded, flag)
        if decoded is None:
            raise ValueError(f"image {row} of {name} cannot be decoded; prepare the data again")
        if image_size is not None:
            decoded = _resize(decoded, image_size)
        pixels.append(decoded)
        labels.append(feature[label].int64_list.value[0])
    shapes = {p.shape[:2] for p in pixels}
    if len(shapes) > 1:
        raise ValueError(
            f"the images of {name} have {len(shapes)} different sizes, for example "
            f"{sorted(shapes)[:2]}; set image_size to resize them all"
        )
    stacked = np.stack(pixels)
    # OpenCV decodes to blue-green-red.
    stacked = stacked[..., None] if depth == 1 else stacked[..., ::-1]
    return stacked.astype(np.float32) / np.float32(255), np.asarray(labels, np.int64)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    import cv2

    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return resized.reshape(size, size, *image.shape[2:])
