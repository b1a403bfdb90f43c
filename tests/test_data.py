"""Data: shapes, ranges and draws, the checks of one's own arrays, and TFDS without TensorFlow."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from PIL import Image
from scipy import sparse

from ddm_jax import data
from ddm_jax.data.split import resize
from ddm_jax.types import Batch

SHARED = Path(__file__).parents[2] / "shared" / "tensorflow_datasets"
needs_shared_data = pytest.mark.skipif(
    not (SHARED / "mnist").is_dir(), reason="prepared TFDS data is not beside the repository"
)


# digits


def test_digits_are_cut_into_1000_and_797():
    split = data.load("digits")
    assert split.train.x.shape == (1000, 8, 8, 1)
    assert split.train.y.shape == (1000, 10)
    assert split.test.x.shape == (797, 8, 8, 1)
    assert split.test.y.shape == (797, 10)
    assert split.train.x.dtype == split.train.y.dtype == np.float32
    assert split.classes == tuple("0123456789")
    assert not split.flipped.any()


def test_digits_are_in_the_unit_interval_and_one_hot():
    split = data.load("digits")
    for batch in (split.train, split.test):
        assert batch.x.min() == 0.0
        assert batch.x.max() == 1.0
        np.testing.assert_array_equal(np.sort(batch.y, 1)[:, :-1], 0.0)
        np.testing.assert_array_equal(batch.y.max(1), 1.0)


def test_digits_are_scikit_learns_pixels_over_16():
    from sklearn.datasets import load_digits

    source = load_digits()
    split = data.load("digits", seed=3)
    for batch, ids in ((split.train, split.train_ids), (split.test, split.test_ids)):
        assert batch.x.shape == (len(ids), 8, 8, 1)
        np.testing.assert_array_equal(batch.x[..., 0], source.images[ids].astype(np.float32) / 16)
        np.testing.assert_array_equal(batch.y.argmax(1), source.target[ids])


def test_train_and_test_share_nothing_and_cover_all():
    split = data.load("digits")
    assert split.train_ids.shape == (1000,)
    assert split.test_ids.shape == (797,)
    together = np.concatenate([split.train_ids, split.test_ids])
    np.testing.assert_array_equal(np.sort(together), np.arange(1797))


def test_the_seed_fixes_the_draw():
    first, again = (data.load(train_size=50, test_size=20, seed=5) for _ in range(2))
    other = data.load(train_size=50, test_size=20, seed=6)
    np.testing.assert_array_equal(first.train_ids, again.train_ids)
    np.testing.assert_array_equal(first.train.x, again.train.x)
    np.testing.assert_array_equal(first.test_ids, again.test_ids)
    assert not np.array_equal(first.train_ids, other.train_ids)


def test_sizes_draw_without_repeats():
    split = data.load(train_size=60, test_size=30, seed=1)
    assert split.train.x.shape == (60, 8, 8, 1)
    assert split.test.x.shape == (30, 8, 8, 1)
    assert len(set(split.train_ids) | set(split.test_ids)) == 90


@pytest.mark.parametrize(("noise", "count"), [(0.1, 20), (0.5, 100), (0.99, 198)])
def test_label_noise_flips_so_many_labels_and_says_which(noise, count):
    clean = data.load(train_size=200, test_size=10, seed=2)
    noisy = data.load(train_size=200, test_size=10, seed=2, label_noise=noise)
    np.testing.assert_array_equal(noisy.train_ids, clean.train_ids)
    np.testing.assert_array_equal(noisy.train.x, clean.train.x)
    np.testing.assert_array_equal(noisy.test.y, clean.test.y)
    assert noisy.flipped.shape == (200,)
    assert noisy.flipped.sum() == count
    different = noisy.train.y.argmax(1) != clean.train.y.argmax(1)
    np.testing.assert_array_equal(different, noisy.flipped)


def test_flipped_labels_are_uniform_over_the_other_classes():
    clean = data.load(seed=4)
    noisy = data.load(seed=4, label_noise=0.9)
    shift = (noisy.train.y.argmax(1) - clean.train.y.argmax(1)) % 10
    counts = np.bincount(shift[noisy.flipped], minlength=10)
    assert counts.shape == (10,)
    assert counts[0] == 0
    # 900 flips over 9 shifts: 100 each, with a standard deviation of 9.4.
    assert np.abs(counts[1:] - 100).max() < 40


def test_nearest_classes_by_hand():
    # Mean images 0, 1, 3 and 10 everywhere; class 1 has two images, class 4 none.
    pixels = np.array([0.0, 0.5, 1.5, 3.0, 10.0]).repeat(4).reshape(5, 2, 2, 1)
    labels = np.array([0, 1, 1, 2, 3])
    nearest = data._nearest_class(pixels, labels, 5)
    assert nearest.shape == (5,)
    np.testing.assert_array_equal(nearest[:4], [1, 0, 1, 2])
    turned = data._nearest_class(pixels[::-1], labels[::-1], 5)
    np.testing.assert_array_equal(turned[:4], nearest[:4])


def test_a_class_without_images_is_nobodys_nearest():
    # The images of classes 0 and 3 are closest to black, where an absent class might be put.
    pixels = np.array([0.0, 5.0, 9.0]).reshape(3, 1, 1, 1)
    nearest = data._nearest_class(pixels, np.array([0, 2, 3]), 4)
    assert nearest.shape == (4,)
    np.testing.assert_array_equal(nearest[[0, 2, 3]], [2, 3, 2])


@pytest.mark.parametrize(("noise", "count"), [(0.1, 20), (0.5, 100)])
def test_nearest_noise_flips_so_many_labels_to_the_class_that_looks_alike(noise, count):
    settings = {"train_size": 200, "test_size": 10, "seed": 2}
    clean = data.load(**settings)
    noisy = data.load(**settings, label_noise=noise, noise_kind="nearest")
    np.testing.assert_array_equal(noisy.train_ids, clean.train_ids)
    np.testing.assert_array_equal(noisy.test.y, clean.test.y)
    before, after = clean.train.y.argmax(1), noisy.train.y.argmax(1)
    assert before.shape == after.shape == noisy.flipped.shape == (200,)
    assert noisy.flipped.sum() == count
    np.testing.assert_array_equal(before != after, noisy.flipped)
    means = {c: clean.train.x[before == c].mean(0) for c in range(10)}
    for c in range(10):
        away = {d: np.linalg.norm(means[c] - means[d]) for d in range(10) if d != c}
        assert set(after[noisy.flipped & (before == c)]) <= {min(away, key=away.get)}


def test_both_kinds_of_noise_flip_the_same_points_of_a_seed():
    settings = {"train_size": 200, "test_size": 10, "label_noise": 0.3}
    near, again, other = (
        data.load(**settings, seed=seed, noise_kind="nearest") for seed in (2, 2, 3)
    )
    uniform = data.load(**settings, seed=2)
    assert near.train.y.shape == uniform.train.y.shape == (200, 10)
    np.testing.assert_array_equal(near.train.y, again.train.y)
    np.testing.assert_array_equal(near.flipped, uniform.flipped)
    assert not np.array_equal(near.train.y, uniform.train.y)
    assert not np.array_equal(near.flipped, other.flipped)


def test_digits_in_the_original_order_are_scikit_learns_whatever_the_seed():
    from sklearn.datasets import load_digits

    source = load_digits()
    for seed in (0, 7):
        split = data.load(train_size=30, test_size=20, seed=seed, order="original")
        assert split.train.x.shape == (30, 8, 8, 1)
        assert split.test.x.shape == (20, 8, 8, 1)
        np.testing.assert_array_equal(split.train_ids, np.arange(30))
        np.testing.assert_array_equal(split.test_ids, np.arange(1000, 1020))
        np.testing.assert_array_equal(
            split.train.x[..., 0], source.images[:30].astype(np.float32) / 16
        )
        np.testing.assert_array_equal(split.train.y.argmax(1), source.target[:30])
        np.testing.assert_array_equal(split.test.y.argmax(1), source.target[1000:1020])


def test_a_given_normalisation_is_used_and_undone_by_pixels():
    plain = data.load(train_size=30, test_size=20)
    split = data.load(train_size=30, test_size=20, normalise="0.1307/0.3081")
    assert split.offset.shape == split.scale.shape == (1,)
    np.testing.assert_allclose([split.offset[0], split.scale[0]], [0.1307, 0.3081], rtol=1e-6)
    for batch, same in ((split.train, plain.train), (split.test, plain.test)):
        assert batch.x.shape == same.x.shape
        assert batch.x.dtype == np.float32
        np.testing.assert_allclose(batch.x, (same.x - 0.1307) / 0.3081, atol=1e-5)
        np.testing.assert_allclose(split.pixels(batch.x), same.x, atol=1e-6)


def test_standard_normalisation_has_mean_0_and_deviation_1_and_is_undone_by_pixels():
    plain = data.load(train_size=300, test_size=50)
    split = data.load(train_size=300, test_size=50, normalise="standard")
    assert split.offset.shape == split.scale.shape == (1,)
    np.testing.assert_allclose(split.train.x.mean(), 0.0, atol=1e-5)
    np.testing.assert_allclose(split.train.x.std(), 1.0, atol=1e-5)
    for batch, same in ((split.train, plain.train), (split.test, plain.test)):
        pixels = split.pixels(batch.x)
        assert pixels.shape == same.x.shape
        np.testing.assert_allclose(pixels, same.x, atol=1e-6)
    assert split.test.x.mean() != pytest.approx(0.0, abs=1e-6), "the test set has its own mean"


def test_image_size_resizes():
    split = data.load(train_size=10, test_size=5, image_size=4)
    whole = data.load(train_size=10, test_size=5)
    assert split.train.x.shape == (10, 4, 4, 1)
    # Halving by area is the mean over blocks of 2x2.
    blocks = whole.train.x.reshape(10, 4, 2, 4, 2, 1).mean((2, 4))
    np.testing.assert_allclose(split.train.x, blocks, atol=1e-6)


def resized_by_hand(image: np.ndarray, size: int) -> np.ndarray:
    """Every pixel repeated `size` times, and means over the blocks that become the new pixels."""
    large = image.astype(np.float64).repeat(size, 0).repeat(size, 1)
    height, width = image.shape[:2]
    return large.reshape(size, height, size, width, *image.shape[2:]).mean((1, 3))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (28, 28, 3), (5, 7, 3), (3, 20)])
@pytest.mark.parametrize("size", [4, 8, 9])
def test_a_resized_pixel_is_the_mean_of_its_area(shape, size, rng):
    image = rng.integers(0, 256, shape).astype(np.uint8)
    expected = resized_by_hand(image, size)
    found = resize(image / 255, size)
    assert found.shape == expected.shape == (size, size, *shape[2:])
    np.testing.assert_allclose(found, expected / 255, atol=1e-12)
    as_bytes = resize(image, size)
    assert as_bytes.dtype == np.uint8
    np.testing.assert_allclose(as_bytes, expected, atol=0.5 + 1e-9)
    np.testing.assert_array_equal(resize(np.full(shape, 200, np.uint8), size), 200)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_size": 0}, "train_size=0; it must be a whole number, at least 1"),
        ({"train_size": 2.5}, "train_size=2.5; it must be a whole number"),
        ({"test_size": -1}, "test_size=-1; it must be a whole number, at least 1"),
        ({"train_size": 1001}, "train_size=1001; digits has only 1000"),
        ({"test_size": 798}, "test_size=798; digits has only 797"),
        ({"label_noise": 1.0}, r"label_noise=1.0; it must be .* at least 0 and below 1"),
        ({"label_noise": -0.1}, "label_noise=-0.1"),
        ({"label_noise": float("nan")}, "label_noise=nan"),
        ({"normalise": "minmax"}, "normalise='minmax'; choose 'unit', 'standard' or '<mean>/"),
        ({"normalise": "0.1/0"}, "normalise='0.1/0'; choose"),
        ({"normalise": "0.1/-1"}, "normalise='0.1/-1'; choose"),
        ({"normalise": "0.1/nan"}, "normalise='0.1/nan'; choose"),
        ({"normalise": "nan/1"}, "normalise='nan/1'; choose"),
        ({"normalise": "0.1/inf"}, "normalise='0.1/inf'; choose"),
        ({"normalise": "abc"}, "normalise='abc'; choose"),
        ({"normalise": "0.1"}, "normalise='0.1'; choose"),
        ({"normalise": "1/2/3"}, "normalise='1/2/3'; choose"),
        ({"order": "sorted"}, "order='sorted'; choose one of random, original"),
        ({"noise_kind": "far"}, "noise_kind='far'; choose one of uniform, nearest"),
        ({"image_size": 0}, "image_size=0; it must be a whole number, at least 1"),
        ({"seed": -1}, "seed=-1; it must be a whole number, at least 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", **settings)


# make_batch


def test_make_batch_is_one_hot():
    batch = data.make_batch([[1.0, 2.0], [3.0, 4.0]], np.array([2, 0]), 3)
    assert batch.x.shape == (2, 2)
    assert batch.y.shape == (2, 3)
    assert batch.x.dtype == batch.y.dtype == np.float32
    np.testing.assert_array_equal(batch.x, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(batch.y, [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("given", "kept", "labels"),
    [
        (np.int64, np.int32, np.float32),
        (np.int32, np.int32, np.float32),
        (np.uint16, np.uint16, np.float32),
        (np.float64, np.float32, np.float32),
        (np.float32, np.float32, np.float32),
        (np.float16, np.float16, np.float16),
        (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
    ],
)
def test_integers_stay_integers_and_floats_floats(given, kept, labels):
    tokens = np.array([[1, 20, 3], [7, 0, 2]]).astype(given)
    batch = data.make_batch(tokens, [1, 0], 2)
    assert (batch.x.dtype, batch.y.dtype) == (kept, labels)
    np.testing.assert_array_equal(batch.x, tokens)
    np.testing.assert_array_equal(batch.y, [[0, 1], [1, 0]])


def test_float64_stays_where_jax_computes_with_it():
    with jax.enable_x64(True):
        batch = data.make_batch(np.full((2, 1), 0.1), [1, 0], 2)
    assert batch.x.dtype == batch.y.dtype == np.float64
    assert batch.x[0, 0] == 0.1


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), "no examples"),
        (np.float32(1), np.zeros(1, int), r"inputs have shape \(\)"),
        (np.zeros(3), np.zeros(3, int), r"inputs have shape \(3,\)"),
        (np.zeros((3, 2)), np.zeros(2, int), r"labels have shape \(2,\); 3 inputs need \(3,\)"),
        (np.zeros((3, 2)), np.zeros((3, 1), int), r"labels have shape \(3, 1\)"),
        (np.zeros((3, 2)), np.array([0, 4, 1]), "label 4 of example 1 is out of range"),
        (np.zeros((3, 2)), np.array([0, 1, -1]), "label -1 of example 2 is out of range"),
        (np.array([[0.0], [np.nan]]), np.zeros(2, int), "1 of 2 .* the first is example 1"),
        (np.array([[np.inf], [np.nan]]), np.zeros(2, int), "2 of 2 .* the first is example 0"),
        (np.array([[1e300], [0.0]]), np.zeros(2, int), "1 of 2 .* the first is example 0"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, int), r"uint8.*`x\.astype.* / 255`"),
        (np.zeros((2, 1), bool), np.zeros(2, int), r"inputs are bool; pass numbers"),
        (np.array([["a"], ["b"]]), np.zeros(2, int), r"inputs are <U1; pass numbers"),
        (np.array([[1.0], [None]]), np.zeros(2, int), r"inputs are object; pass numbers"),
    ],
)
def test_make_batch_refuses(x, labels, message):
    with pytest.raises(ValueError, match=message):
        data.make_batch(x, labels, 4)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["cat", "dog", "cat"]),
        np.array(["cat", "dog", None], object),
        np.array([True, False, True]),
        np.array([0.0, 1.0, 2.0]),
        np.array([0.0, np.nan, 2.0]),
        pandas.Categorical(["cat", "dog", "cat"]),
        pandas.Series(["cat", "dog", "cat"], dtype="category"),
    ],
)
def test_labels_that_are_no_integers_are_told_how_to_become_them(labels):
    with pytest.raises(ValueError, match=r"np\.unique\(labels, return_inverse=True\)") as caught:
        data.make_batch(np.zeros((3, 2)), labels, 4)
    assert "\n" not in str(caught.value)


def test_the_mend_for_names_as_labels_works():
    classes, labels = np.unique(["dog", "cat", "dog"], return_inverse=True)
    batch = data.make_batch(np.zeros((3, 2)), labels, len(classes))
    assert batch.y.argmax(1).tolist() == [1, 0, 1]


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.coo_array])
def test_sparse_inputs_name_the_mend(kind):
    with pytest.raises(ValueError, match=r"inputs are a sparse \w+; pass `x\.toarray\(\)`"):
        data.make_batch(kind(np.eye(3)), np.arange(3), 3)


@pytest.mark.parametrize("classes", [1, 0, 2.5])
def test_there_are_two_classes_at_least(classes):
    with pytest.raises(ValueError, match=rf"num_classes={classes}; .* at least 2"):
        data.make_batch(np.zeros((3, 2)), np.zeros(3, int), classes)


# What is imported

WITHOUT = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
from ddm_jax import data
split = data.load({name!r}, **{settings!r})
print(split.train.x.shape)
"""


def _without(hidden: tuple[str, ...], name: str, **settings) -> str:
    code = WITHOUT.format(hidden=hidden, name=name, settings=settings)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_digits_need_no_tfds_and_no_opencv():
    hidden = ("cv2", "tensorflow_datasets", "array_record", "importlib_resources")
    assert _without(hidden, "digits", image_size=4) == "(1000, 4, 4, 1)"


@pytest.mark.slow
@needs_shared_data
def test_tfds_data_need_no_opencv():
    settings = {"data_dir": str(SHARED), "train_size": 5, "image_size": 20}
    assert _without(("cv2",), "mnist", **settings) == "(5, 20, 20, 1)"


# TFDS data of one's own, prepared without TensorFlow


def _png(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "png")
    file.seek(0)
    return file


def _pictures(count: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def _prepare(folder: Path, name: str, shape, splits: dict, extra: dict | None = None) -> None:
    """Write a TFDS data set as array_record; it is not registered, so only its files are known.

    `splits` maps names to lists of (picture, label); `extra` holds more features and values.
    """
    import tensorflow_datasets as tfds

    extra = extra or {}
    features = {
        "image": tfds.features.Image(shape=shape, encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["circle", "square", "star"]),
    } | {key: feature for key, (feature, _) in extra.items()}

    class OwnPictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in splits.items()}

        def _generate_examples(self, rows):
            for key, (picture, label) in enumerate(rows):
                more = {name: value for name, (_, value) in extra.items()}
                yield key, {"image": _png(picture), "label": label, **more}

    OwnPictures.name = name
    builder = OwnPictures(data_dir=str(folder), file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(file_format="array_record", download_config=config)


def _rows(pictures: np.ndarray) -> list:
    return [(picture, index % 3) for index, picture in enumerate(pictures)]


def _assert_same_set(batch, pictures: np.ndarray, labels: np.ndarray):
    """TFDS shuffles what it writes, so compare as sets, by the (random) pixels."""
    assert batch.x.shape == pictures.shape
    assert batch.y.shape == (len(pictures), 3)
    read = np.round(batch.x * 255).astype(np.uint8)
    np.testing.assert_allclose(batch.x, read / np.float32(255), atol=1e-7)
    order = np.lexsort(read.reshape(len(read), -1).T)
    expected = np.lexsort(pictures.reshape(len(pictures), -1).T)
    np.testing.assert_array_equal(read[order], pictures[expected])
    np.testing.assert_array_equal(batch.y.argmax(1)[order], labels[expected])


@pytest.mark.parametrize("depth", [1, 3])
def test_ones_own_tfds_data_are_read_pixel_by_pixel_in_rgb_order(tmp_path, depth):
    train, test = (_pictures(n, (5, 6, depth), seed=n) for n in (12, 7))
    _prepare(tmp_path, "shapes", (5, 6, depth), {"train": _rows(train), "test": _rows(test)})
    split = data.load("shapes", data_dir=str(tmp_path))
    assert split.classes == ("circle", "square", "star")
    _assert_same_set(split.train, train, np.arange(12) % 3)
    _assert_same_set(split.test, test, np.arange(7) % 3)


def test_of_sixteen_bits_the_upper_eight_are_read(tmp_path):
    pictures = _pictures(3, (4, 4), 0).astype(np.uint16) * 256 + 7
    _prepare(tmp_path, "shapes", (4, 4, 1), {"train": _rows(pictures), "test": _rows(pictures)})
    split = data.load("shapes", data_dir=str(tmp_path))
    _assert_same_set(split.train, (pictures // 256)[..., None].astype(np.uint8), np.arange(3))


def test_rows_of_a_draw_are_the_rows_it_names(tmp_path):
    train, test = _pictures(20, (4, 4, 1), 0), _pictures(6, (4, 4, 1), 1)
    _prepare(tmp_path, "shapes", (4, 4, 1), {"train": _rows(train), "test": _rows(test)})
    whole = data.load("shapes", data_dir=str(tmp_path))
    part = data.load("shapes", data_dir=str(tmp_path), train_size=8, test_size=3, seed=9)
    np.testing.assert_array_equal(whole.train_ids, np.arange(20))
    assert part.train.x.shape == (8, 4, 4, 1)
    assert part.test.x.shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(part.train.x, whole.train.x[part.train_ids])
    np.testing.assert_array_equal(part.train.y, whole.train.y[part.train_ids])
    np.testing.assert_array_equal(part.test.x, whole.test.x[part.test_ids])


def test_the_original_order_is_refused_where_it_is_not_known(tmp_path):
    _prepare(tmp_path, "shapes", (4, 4, 1), {"train": _rows(_pictures(3, (4, 4, 1), 0))})
    with pytest.raises(ValueError, match=r"order='original' is known for .*not for 'shapes'"):
        data.load("shapes", data_dir=str(tmp_path), order="original")


def test_a_given_normalisation_is_the_same_for_every_channel(tmp_path):
    train, test = _pictures(5, (4, 4, 3), 0), _pictures(3, (4, 4, 3), 1)
    _prepare(tmp_path, "shapes", (4, 4, 3), {"train": _rows(train), "test": _rows(test)})
    plain = data.load("shapes", data_dir=str(tmp_path))
    split = data.load("shapes", data_dir=str(tmp_path), normalise="0.49/0.25")
    assert split.offset.shape == split.scale.shape == (3,)
    assert split.train.x.shape == plain.train.x.shape == (5, 4, 4, 3)
    np.testing.assert_allclose(split.train.x, (plain.train.x - 0.49) / 0.25, atol=1e-5)
    np.testing.assert_allclose(split.pixels(split.train.x), plain.train.x, atol=1e-6)


def test_without_a_test_split_a_fifth_is_held_out(tmp_path):
    pictures = _pictures(25, (4, 4, 1), 0)
    _prepare(tmp_path, "shapes", (4, 4, 1), {"train": _rows(pictures)})
    split = data.load("shapes", data_dir=str(tmp_path))
    assert split.train.x.shape == (20, 4, 4, 1)
    assert split.test.x.shape == (5, 4, 4, 1)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([split.train_ids, split.test_ids])), np.arange(25)
    )
    both = Batch(
        np.concatenate([split.train.x, split.test.x]), np.concatenate([split.train.y, split.test.y])
    )
    _assert_same_set(both, pictures, np.arange(25) % 3)
    other = data.load("shapes", data_dir=str(tmp_path), seed=1)
    assert not np.array_equal(np.sort(split.test_ids), np.sort(other.test_ids))


def test_a_validation_split_stands_in_for_the_test_split(tmp_path):
    splits = {"train": _rows(_pictures(6, (4, 4, 1), 0))}
    valid = _pictures(4, (4, 4, 1), 1)
    _prepare(tmp_path, "shapes", (4, 4, 1), {**splits, "validation": _rows(valid)})
    split = data.load("shapes", data_dir=str(tmp_path))
    _assert_same_set(split.test, valid, np.arange(4) % 3)


def test_images_of_different_sizes_need_image_size(tmp_path):
    rows = [(np.full((side, side + 1, 3), 40 * side, np.uint8), 0) for side in (3, 4, 5)]
    _prepare(tmp_path, "shapes", (None, None, 3), {"train": rows, "test": rows})
    with pytest.raises(ValueError, match=r"have 3 different sizes.*set image_size"):
        data.load("shapes", data_dir=str(tmp_path))
    split = data.load("shapes", data_dir=str(tmp_path), image_size=4)
    assert split.train.x.shape == (3, 4, 4, 3)
    # An image of one colour keeps it, whatever its size.
    shades = np.sort(split.train.x[:, 0, 0, 0])
    np.testing.assert_allclose(shades, np.array([120, 160, 200]) / 255, atol=1e-6)
    np.testing.assert_array_equal(
        split.train.x, split.train.x[:, :1, :1, :1].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    )


def test_two_label_features_are_refused_by_name(tmp_path):
    import tensorflow_datasets as tfds

    more = {"colour": (tfds.features.ClassLabel(names=["red", "blue"]), 1)}
    rows = _rows(_pictures(3, (4, 4, 1), 0))
    _prepare(tmp_path, "shapes", (4, 4, 1), {"train": rows}, more)
    with pytest.raises(
        ValueError, match=r"class labels \['label', 'colour'\]|\['colour', 'label'\]"
    ):
        data.load("shapes", data_dir=str(tmp_path))


# What cannot be loaded


def _one_line(name: str, **settings) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the caller looks at the message)
        data.load(name, **settings)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def test_a_missing_data_dir_is_named(tmp_path):
    assert "nowhere is not a directory" in _one_line("mnist", data_dir=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["nosuchdata", "", "mnist:9.9.9", "mnist/nosuchconfig"])
def test_an_unknown_data_set_is_named(tmp_path, name):
    assert f"unknown data set {name!r}" in _one_line(name, data_dir=str(tmp_path))


def test_a_path_that_is_not_there_is_named(tmp_path):
    assert "../mnist: no such file or folder" in _one_line("../mnist", data_dir=str(tmp_path))


no_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow would download the data"
)


@no_tensorflow
def test_data_that_are_not_prepared_name_the_extra_at_once(tmp_path):
    begin = time.perf_counter()
    text = _one_line("mnist", data_dir=str(tmp_path))
    assert time.perf_counter() - begin < 20, "no network, no retries"
    assert f"mnist is not prepared in {tmp_path}" in text
    assert "pip install 'ddm_jax[prepare]'" in text


@no_tensorflow
def test_a_builder_that_imports_tensorflow_names_the_extra(tmp_path):
    text = _one_line("coco", data_dir=str(tmp_path))
    assert "coco is not prepared" in text
    assert "pip install 'ddm_jax[prepare]'" in text


@no_tensorflow
def test_data_prepared_in_another_format_say_so(tmp_path):
    _prepare(tmp_path, "shapes", (4, 4, 1), {"train": _rows(_pictures(3, (4, 4, 1), 0))})
    info = tmp_path / "shapes" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    text = _one_line("shapes", data_dir=str(tmp_path))
    assert "it is prepared there as tfrecord" in text
    assert "ddm_jax[prepare]" in text


def test_a_damaged_image_is_named(tmp_path, monkeypatch):
    _prepare(tmp_path, "shapes", (4, 4, 1), {"train": _rows(_pictures(3, (4, 4, 1), 0))})

    def broken(file):
        raise OSError("cannot identify image file")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(ValueError, match=r"image 0 of shapes cannot be decoded \(cannot identify"):
        data.load("shapes", data_dir=str(tmp_path), train_size=2)


# The real sets, where they are


@pytest.mark.slow
@needs_shared_data
def test_mnist_loads_whole():
    split = data.load("mnist", data_dir=str(SHARED), test_size=1000)
    assert split.train.x.shape == (60000, 28, 28, 1)
    assert split.test.x.shape == (1000, 28, 28, 1)
    assert split.classes == tuple("0123456789")
    counts = split.train.y.sum(0).astype(int)
    # The published class counts of MNIST's training set.
    known = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(counts, known)
    assert split.train.x.min() == 0.0
    assert split.train.x.max() == 1.0
    # Its published mean and deviation.
    np.testing.assert_allclose(split.train.x.mean(dtype=np.float64), 0.1307, atol=1e-4)
    np.testing.assert_allclose(split.train.x.std(dtype=np.float64), 0.3081, atol=1e-4)


@needs_shared_data
def test_cifar10_is_read_in_rgb_order():
    split = data.load("cifar10", data_dir=str(SHARED), train_size=2000, test_size=10)
    assert split.train.x.shape == (2000, 32, 32, 3)
    assert split.classes[0] == "airplane"
    # Aeroplanes are seen against the sky: their pictures are blue at the top.
    sky = split.train.x[split.train.y.argmax(1) == 0, :8].mean((0, 1, 2))
    assert sky[2] > sky[0]


@needs_shared_data
@pytest.mark.parametrize("seed", [0, 3])
def test_mnist_in_the_original_order(seed):
    split = data.load(
        "mnist", data_dir=str(SHARED), train_size=10, test_size=10, seed=seed, order="original"
    )
    assert split.train.x.shape == split.test.x.shape == (10, 28, 28, 1)
    # The first labels of the published files.
    np.testing.assert_array_equal(split.train.y.argmax(1), [5, 0, 4, 1, 9, 2, 1, 3, 1, 4])
    np.testing.assert_array_equal(split.test.y.argmax(1), [7, 2, 1, 0, 4, 1, 4, 9, 5, 9])


@needs_shared_data
def test_cifar10_in_the_original_order():
    """Its examples are stored with their number in the original files."""
    import tensorflow_datasets as tfds

    split = data.load(
        "cifar10", data_dir=str(SHARED), train_size=40, test_size=30, order="original"
    )
    builder = tfds.builder("cifar10", data_dir=str(SHARED))
    for part, batch, rows in (
        ("train", split.train, split.train_ids),
        ("test", split.test, split.test_ids),
    ):
        stored = builder.as_data_source(part).__getitems__(rows.tolist())
        assert len(stored) == len(batch.x) > 0
        numbers = [example["id"] for example in stored]
        assert numbers == [f"{part}_{i:05d}".encode() for i in range(len(rows))]
        pixels = np.stack([example["image"] for example in stored])
        assert pixels.shape == batch.x.shape
        np.testing.assert_allclose(batch.x, pixels / np.float32(255), atol=1e-6)
        np.testing.assert_array_equal(batch.y.argmax(1), [e["label"] for e in stored])
