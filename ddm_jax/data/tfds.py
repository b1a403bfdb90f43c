"""TFDS image classification sets that are prepared as array_record, without TensorFlow."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np

from ddm_jax.data.images import pixels_of
from ddm_jax.data.split import Source, resize

NUMBERED = ("mnist", "cifar10")  # sets whose original order can be told


def tfds_source(
    name: str, data_dir: str | None, draw: np.random.Generator, original: bool
) -> Source:
    """A TFDS data set by its name.

    Raises:
        ValueError: for a name that is unknown, not prepared, or no image classification set.
    """
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
    return Source(names, train, held_out, train_rows, test_rows, read)


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
            f"unknown data set {name!r}: there is no such file or folder, and no TFDS data set "
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
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    pixels, labels = [], []
    for row, record in enumerate(records):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        try:
            with Image.open(io.BytesIO(feature[image].bytes_list.value[0])) as file:
                decoded = pixels_of(file, depth)
        except Exception as error:  # pillow raises many kinds
            raise ValueError(
                f"image {row} of {name} cannot be decoded ({error}); prepare the data again"
            ) from error
        pixels.append(decoded if image_size is None else resize(decoded, image_size))
        labels.append(feature[label].int64_list.value[0])
    shapes = {p.shape[:2] for p in pixels}
    if len(shapes) > 1:
        raise ValueError(
            f"the images of {name} have {len(shapes)} different sizes, for example "
            f"{sorted(shapes)[:2]}; set image_size to resize them all"
        )
    stacked = np.stack(pixels)
    stacked = stacked[..., None] if depth == 1 else stacked
    return stacked.astype(np.float32) / np.float32(255), np.asarray(labels, np.int64)
