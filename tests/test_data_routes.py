"""Data of one's own: each route's numbers, its classes, parts and groups, and what is refused."""

from __future__ import annotations

import json
import sys
import types
import zlib

import numpy as np
import pandas
import pytest
from command import ddm
from PIL import Image

from ddm_jax import data
from ddm_jax.data.own import is_own
from ddm_jax.run import own, settings_file
from ddm_jax.run import settings as config
from ddm_jax.run.plan import make_plan
from ddm_jax.run.wording import describe


def write(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def numbers(count: int = 30, classes: int = 3):
    draw = np.random.default_rng(0)
    return draw.normal(5, 3, (count, 4)), np.arange(count) % classes


def table(count: int = 20) -> pandas.DataFrame:
    """Half of the rows are of each class."""
    return pandas.DataFrame(
        {
            "age": np.arange(count) + 20,
            "city": ["Rome", "Oslo"] * (count // 2),
            "member": [True, True, False, False] * (count // 4),
            "label": ["no"] * (count // 2) + ["yes"] * (count // 2),
        }
    )


def both(split):
    """The numbers of both parts in the order of the file, and the classes."""
    x = np.concatenate([split.train.x, split.test.x])
    labels = np.concatenate([split.train.y.argmax(1), split.test.y.argmax(1)])
    order = np.argsort(np.concatenate([split.train_ids, split.test_ids]))
    return x[order], labels[order]


# Numbers


def test_every_route_gives_the_same_bits(tmp_path):
    x, y = numbers()
    frame = pandas.DataFrame(x, columns=list("abcd")).assign(y=y)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    first = data.load(frame, seed=1)
    assert first.train.x.shape == (24, 4)
    assert first.test.x.shape == (6, 4)
    assert first.train.x.dtype == np.float32
    for name in ("a.npz", "a.csv", "a.tsv", "a.parquet"):
        split = data.load(tmp_path / name, seed=1)
        assert split.classes == ("0", "1", "2")
        for one, two in zip((*first.train, *first.test), (*split.train, *split.test), strict=True):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(split.train_ids, first.train_ids)


def test_numbers_are_standardised_by_the_training_part():
    x, y = numbers()
    split = data.load(pandas.DataFrame(x, columns=list("abcd")).assign(y=y))
    expected = (x - x[split.train_ids].mean(0)) / x[split.train_ids].std(0)
    np.testing.assert_allclose(split.train.x, expected[split.train_ids], atol=1e-6)
    np.testing.assert_allclose(split.test.x, expected[split.test_ids], atol=1e-6)
    np.testing.assert_allclose(split.numbers(split.test.x), x[split.test_ids], atol=1e-5)


def test_a_table_of_several_kinds():
    split = data.load(table().assign(planet="Earth"), target="label")
    assert split.kind == "table"
    assert split.classes == ("no", "yes")
    assert split.features == (("age", None), ("city", "Oslo"), ("city", "Rome"), ("member", None))
    assert split.train.x.shape == (16, 4)
    np.testing.assert_array_equal(split.numbers(split.train.x)[:, 1], split.train_ids % 2)
    np.testing.assert_array_equal(split.train.x[:, 3], split.train_ids % 4 < 2)
    np.testing.assert_array_equal(split.train.y.argmax(1), split.train_ids >= 10)
    said = "\n".join(split.told)
    for line in ("standardised: age", "true or false: member", "city (2)", "dropped: planet"):
        assert line in said
    assert split.shown_train["city"].tolist() == [["Rome", "Oslo"][i % 2] for i in split.train_ids]


def test_a_csv_file_means_numbers_texts_and_booleans(tmp_path):
    frame = table()
    frame.to_csv(tmp_path / "t.csv", index=False)
    one, two = data.load(frame), data.load(tmp_path / "t.csv")
    np.testing.assert_array_equal(one.train.x, two.train.x)
    np.testing.assert_array_equal(one.test.y, two.test.y)
    assert one.features == two.features


def test_missing_values_become_medians_and_a_category():
    frame = table().astype({"age": float, "city": object})
    frame.loc[3, "age"] = frame.loc[4, "city"] = None
    split = data.load(frame, missing="impute", order="original")
    assert split.features[1:4] == (("city", "Oslo"), ("city", "Rome"), ("city", "missing"))
    np.testing.assert_array_equal(split.test_ids, [8, 9, 18, 19])
    train = np.array([20, 21, 22, 24, 25, 26, 27, 30, 31, 32, 33, 34, 35, 36, 37])
    x, _ = both(split)
    assert split.numbers(x)[3, 0] == pytest.approx(np.median(train), abs=1e-5)
    np.testing.assert_array_equal(x[4, 1:4], [0, 0, 1])
    assert "missing values filled: age (1), city (1)" in split.told[-1]


@pytest.mark.parametrize("name", ["target", "Label", "class", "y"])
def test_the_target_is_known_by_its_name_else_the_last_column(name):
    frame = pandas.DataFrame({name: [0, 1] * 5, "a": range(10), "b": [0, 1, 2, 3, 4] * 2})
    split = data.load(frame)
    assert [column for column, _ in split.features] == ["a", "b"]
    assert f"the target is {name!r} (data.target names another)" in split.told[0]
    last = data.load(frame.rename(columns={name: "c"}))
    assert [column for column, _ in last.features] == ["c", "a"]
    assert last.classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([3, 1, 10], ("1", "3", "10")),
        ([True, False, True], ("False", "True")),
        (["b", "a", "c"], ("a", "b", "c")),
        ([-1, 1, 0], ("-1", "0", "1")),
        ([0.5, 1.0, 0.25], ("0.25", "0.5", "1")),
        ([1.0, 2.0, 3.0], ("1", "2", "3")),
    ],
)
def test_labels_of_any_kind_are_classes(tmp_path, labels, classes):
    x, _ = numbers()
    np.savez(tmp_path / "a.npz", x=x, y=np.asarray(labels * 10))
    split = data.load(tmp_path / "a.npz")
    assert split.classes == classes
    ranks = np.unique(labels, return_inverse=True)[1]
    np.testing.assert_array_equal(both(split)[1], np.tile(ranks, 10))


def test_names_of_classes_and_a_test_part_of_an_npz(tmp_path):
    x, y = numbers()
    path = tmp_path / "a.npz"
    for first in (0, 1):
        np.savez(path, x=x[:20], y=y[:20] + first, x_test=x[20:], y_test=y[20:] + first,
                 names=["cat", "dog", "emu"])  # fmt: skip
        split = data.load(path)
        assert split.classes == ("cat", "dog", "emu")
        np.testing.assert_array_equal(split.train_ids, np.arange(20))
        np.testing.assert_array_equal(split.test_ids, np.arange(20, 30))
        np.testing.assert_array_equal(split.test.y.argmax(1), y[20:])


def test_images_of_an_npz(tmp_path):
    x = np.arange(10 * 4 * 4, dtype=np.uint8).reshape(10, 4, 4)
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1] * 5)
    split = data.load(tmp_path / "a.npz")
    assert split.kind == "images"
    np.testing.assert_array_equal(both(split)[0][..., 0], x.astype(np.float32) / np.float32(255))
    np.savez(tmp_path / "b.npz", x=x.astype(np.float32) - 80, y=[0, 1] * 5)
    other = data.load(tmp_path / "b.npz")
    assert other.kind == "arrays"
    np.testing.assert_allclose(other.train.x.mean((0, 1)), 0, atol=1e-6)


# Parts and groups


def test_a_fifth_of_each_class_is_for_testing_by_the_seed():
    y = np.repeat([0, 1, 2], [50, 10, 2])
    frame = pandas.DataFrame({"a": np.arange(62), "y": y})
    first, again, other = (data.load(frame, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test.y.sum(0), [10, 2, 1])
    np.testing.assert_array_equal(first.train.y.sum(0), [40, 8, 1])
    np.testing.assert_array_equal(first.test_ids, again.test_ids)
    assert not np.array_equal(first.test_ids, other.test_ids)


def test_groups_have_their_names_and_the_rest_is_background():
    frame = table().assign(who=["10", "9", None, "-1", "9"] * 4)
    split = data.load(frame, groups="who")
    assert split.groups.names == ("9", "10")
    expected = np.array([1, 0, -1, -1, 0] * 4)[split.train_ids]
    np.testing.assert_array_equal(split.groups.ids, expected)
    assert split.groups.background
    assert "who" not in [name for name, _ in split.features]


def test_groups_of_an_npz(tmp_path):
    x, y = numbers()
    np.savez(tmp_path / "a.npz", x=x, y=y, groups=np.arange(30) % 5 - 1)
    split = data.load(tmp_path / "a.npz")
    assert split.groups.names == ("0", "1", "2", "3")
    np.testing.assert_array_equal(split.groups.ids, split.train_ids % 5 - 1)


def test_nearest_noise_of_a_table_is_by_standardised_columns():
    """Class 0 is like class 1 in a column of large numbers, and like class 2 in the others."""
    y = np.arange(60) % 3
    draw = np.random.default_rng(0).normal(size=60) * 0.01
    frame = pandas.DataFrame({"far": np.array([0, 1e6, 3e6])[y] + draw, "y": y})
    frame["a"] = frame["b"] = frame["c"] = np.array([0.0, 1.0, 0.0])[y] + draw
    split = data.load(frame, target="y", label_noise=0.5, noise_kind="nearest")
    flipped = split.flipped & (y[split.train_ids] == 0)
    np.testing.assert_array_equal(split.train.y[flipped].argmax(1), 2)


# Folders and texts


def image_folder(path, count: int = 5, size: int = 6, parts=("",)):
    for part in parts:
        for place, name in enumerate(("cat", "dog")):
            (path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((size, size), 20 * number + 100 * place, np.uint8)
                Image.fromarray(pixels).save(path / part / name / f"{number}.png")
    return path


def test_a_folder_of_images(tmp_path):
    split = data.load(image_folder(tmp_path / "a"))
    assert split.train.x.shape == (8, 6, 6, 1)
    x, labels = both(split)
    np.testing.assert_array_equal(labels, [0] * 5 + [1] * 5)
    expected = np.r_[0:100:20, 100:200:20].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(x[:, 0, 0, 0], expected)
    assert split.classes == ("cat", "dog")
    parts = data.load(image_folder(tmp_path / "b", parts=("train", "test")))
    assert len(parts.train.x) == len(parts.test.x) == 10


def test_images_of_several_sizes_and_colours(tmp_path):
    folder = image_folder(tmp_path / "a")
    Image.new("RGB", (8, 4), (255, 0, 0)).save(folder / "cat" / "9.png")
    with pytest.raises(ValueError, match="2 different sizes, for example 6x6 and 8x4; set data"):
        data.load(folder)
    split = data.load(folder, image_size=4)
    x, _ = both(split)
    np.testing.assert_array_equal(x[5, 0, 0], [1, 0, 0])


def test_texts_are_roots_of_counts_of_hashed_words(tmp_path):
    texts = ["Good good GOOD film", "good film", "bad film", "bad, bad film!"] * 3
    labels = ["up", "up", "down", "down"] * 3
    lines = [json.dumps({"text": t, "label": k}) for t, k in zip(texts, labels, strict=True)]
    split = data.load(write(tmp_path / "a.jsonl", "\n".join(lines) + "\n"), words=64)
    assert (split.kind, split.classes) == ("texts", ("down", "up"))
    x, found = both(split)
    assert x.shape == (12, 64)
    good, bad, film = (zlib.crc32(word) % 64 for word in (b"good", b"bad", b"film"))
    np.testing.assert_allclose(x[0, [good, bad, film]], [np.sqrt(3), 0, 1], rtol=1e-6)
    np.testing.assert_allclose(x[3, [good, bad, film]], [0, np.sqrt(2), 1], rtol=1e-6)
    np.testing.assert_array_equal(found, [1, 1, 0, 0] * 3)
    assert split.features[good] == ("good", None)
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        write(tmp_path / "folder" / label / f"{number:02d}.txt", text)
    folder = data.load(tmp_path / "folder", words=64)
    np.testing.assert_array_equal(both(folder)[0][6:8], x[:2])


def test_lines_of_json_with_groups(tmp_path):
    lines = [
        json.dumps({"text": f"word{i}", "kind": i % 2, "by": f"author {i % 3}"}) for i in range(12)
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    split = data.load(path, target="kind", groups="by")
    assert split.classes == ("0", "1")
    assert split.groups.names == ("author 0", "author 1", "author 2")
    np.testing.assert_array_equal(split.groups.ids, split.train_ids % 3)


class Saved(dict):
    """What `datasets` gives of a part."""

    def __init__(self, columns, names):
        super().__init__(columns)
        self.column_names = list(columns)
        self.features = {"label": types.SimpleNamespace(names=names)}

    def __len__(self):
        return len(self["label"])

    def __getitem__(self, name):
        return super().__getitem__(name)


@pytest.mark.parametrize("kind", ["images", "texts", "table"])
def test_a_folder_of_hugging_face(tmp_path, monkeypatch, kind):
    columns = {
        "images": {"image": [Image.new("L", (4, 4), 20 * i) for i in range(10)]},
        "texts": {"text": [f"word{i} same" for i in range(10)]},
        "table": {"a": list(range(10)), "b": [0.5, 1.5] * 5},
    }[kind] | {"label": [0, 1] * 5}
    write(tmp_path / "saved" / "state.json", "{}")
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"pip install 'ddm_jax\[datasets\]'"):
        data.load(tmp_path / "saved")
    module = types.ModuleType("datasets")
    module.load_from_disk = lambda path: {"train": Saved(columns, ["no", "yes"])}
    monkeypatch.setitem(sys.modules, "datasets", module)
    split = data.load(tmp_path / "saved")
    assert (split.kind, split.classes) == (kind, ("no", "yes"))
    np.testing.assert_array_equal(both(split)[1], [0, 1] * 5)
    assert split.train.x.shape[1:] == {"images": (4, 4, 1), "texts": (512,), "table": (2,)}[kind]


@pytest.mark.slow
def test_folders_that_hugging_face_really_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("L", (4, 4), 20 * i) for i in range(10)]
    labels = datasets.ClassLabel(names=["no", "yes"])
    saved = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 5})
    saved.cast_column("label", labels).save_to_disk(tmp_path / "images")
    split = data.load(tmp_path / "images")
    assert (split.kind, split.classes) == ("images", ("no", "yes"))
    pixels = np.concatenate(
        [split.pixels(part.x)[:, 0, 0, 0] for part in (split.train, split.test)]
    )
    np.testing.assert_allclose(np.sort(pixels), np.arange(10) * 20 / 255, atol=1e-6)
    frame = pandas.DataFrame({"a": np.arange(20.0), "kind": ["x", "y"] * 10})
    parts = {"train": frame[:15], "test": frame[15:]}
    datasets.DatasetDict(
        {
            name: datasets.Dataset.from_pandas(part, preserve_index=False)
            for name, part in parts.items()
        }
    ).save_to_disk(tmp_path / "table")
    split = data.load(tmp_path / "table", target="kind")
    assert (split.kind, len(split.train_ids), len(split.test_ids)) == ("table", 15, 5)


# A number as target


def test_a_number_as_target_is_standardised(tmp_path):
    frame = pandas.DataFrame({"a": np.arange(40.0), "price": np.arange(40) * 0.5})
    split = data.load(frame)
    assert split.classes == ()
    assert split.train.y.shape == (32, 1)
    np.testing.assert_allclose(
        split.target_numbers(split.train.y)[:, 0], split.train_ids * 0.5, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(split.train.y.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(split.train.y.std(), 1, atol=1e-6)


# What is refused


def refused(text: str, message: str, tmp_path, **options):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(ValueError, match=message) as caught:
        data.load(path, **options)
    assert "\n" not in str(caught.value)


ROWS = "\n".join(f"{i},{i % 3},{'ab'[i % 2]}" for i in range(12))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (f"age,n,label\n{ROWS}", {"target": "lable"}, "data.target=lable: no .* mean 'label'"),
        (f"age,n,label\n{ROWS}", {"groups": "aeg"}, "data.groups=aeg: .* did you mean 'age'"),
        (f"age,n,label\n{ROWS}", {"drop": ("m",)}, "data.drop=m: .* there are age, n, label"),
        (f"age,n,label\n{ROWS}\nold,1,a", {}, r"t.csv, row 13, column 'age': 'old' is no number"),
        (f"age,n,label\n{ROWS}\n,1,a", {}, r"t.csv, row 13, column 'age': the value is missing"),
        (f"age,n,label\n{ROWS}\n1,1,", {}, r"t.csv, row 13: the target 'label' is missing"),
        (f"age,n,label\n{ROWS}\ninf,1,a", {}, r"row 13, column 'age': inf is not finite"),
        (f"age,n,label\n{ROWS}\n1,1,c", {}, r"class 'c' has one example, which cannot"),
        (f"age,n,label\n{ROWS}\n1,1,a,9", {}, "cannot be read as a table"),
        (f"age,age,label\n{ROWS}", {}, "has the column 'age' twice"),
        ("a,label\n1,x\n2,x\n", {}, r"the target 'label' is constant \(x\)"),
        ("a,label\n1,x\n1,y\n1,x\n1,y\n", {}, "all rows are equal"),
        ("a label\n1 x\n", {}, "has one column 'a label'; it needs .* commas"),
        ("", {}, "is empty; it needs a head and rows"),
        ("a,label\n", {}, "has no rows"),
        (
            "a,label\n" + "".join(f"name{i},{i % 2}\n" for i in range(60)),
            {},
            "column 'a' has 60 different texts, more than 50; .* data.drop=a",
        ),
    ],
)
def test_tables_that_are_refused(tmp_path, text, options, message):
    refused(text, message, tmp_path, **options)


def test_a_column_of_several_types_of_python():
    mixed = table().astype({"city": object})
    mixed.loc[5, "city"] = 7
    with pytest.raises(ValueError, match="the DataFrame, row 6, column 'city': 7 is no text"):
        data.load(mixed)
    dated = table().assign(day=pandas.Timestamp("2026-01-01"))
    with pytest.raises(ValueError, match=r"column 'day' holds .*; turn it into numbers"):
        data.load(dated, target="label")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.arange(29)}, r"y has shape \(29,\); x needs \(30,\)"),
        ({"y": np.zeros(30, int)}, r"is constant \(0\)"),
        ({"y": np.array([None] * 30)}, "an array of Python objects, which is not read"),
        ({"x": np.ones((30, 4))}, "all rows are equal"),
        ({"x": np.ones((30, 4, 4, 1))}, "all training examples are equal"),
        ({"x": np.full((30, 4), np.nan)}, "column 'x0' is empty"),
        ({"x": np.full((30, 4, 4), np.nan)}, "30 of 30 examples of x hold NaN .* row 1"),
        ({"x": np.zeros(30)}, r"x has shape \(30,\)"),
        ({"x": np.array([["a"]] * 30)}, "x is <U1; it must hold numbers"),
        ({"x_test": np.ones((3, 4))}, "x_test and y_test go together"),
        ({"x_test": np.ones((3, 5)), "y_test": np.ones(3)}, "they must agree but for the first"),
        ({"groups": np.zeros(3, int)}, r"groups have shape \(3,\)"),
        ({"groups": np.zeros(30, int)}, "brings 1 groups; at least 2 are needed"),
        ({"names": ["a", "b"]}, "2 names, and y has labels from 0 to 2"),
        ({"X_test": np.ones((3, 4))}, "holds 'X_test'; did you mean 'x_test'"),
        (
            {"x_test": np.ones((2, 4)), "y_test": np.array([0, 7])},
            "class '7' is in the test part alone",
        ),
    ],
)
def test_arrays_that_are_refused(tmp_path, change, message):
    x, y = numbers()
    np.savez(tmp_path / "a.npz", **({"x": x, "y": y} | change))
    with pytest.raises(ValueError, match=message) as caught:
        data.load(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


def test_folders_that_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no \.png, .* in subfolders"):
        data.load(tmp_path / "empty")
    folder = image_folder(tmp_path / "a")
    (folder / "emu").mkdir()
    with pytest.raises(ValueError, match=r"emu has no \.png"):
        data.load(folder)
    (folder / "emu" / "broken.png").write_bytes(b"\x89PNG no")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read .*; repair or remove"):
        data.load(folder)


def test_a_cut_image_is_named(tmp_path):
    folder = image_folder(tmp_path / "a", size=64)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    path = folder / "cat" / "1.png"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        data.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a", "label": 1}\n{"text": "b"', "line 2: no JSON object"),
        ('{"text": "a", "label": 1}\n[1]', "line 2: no JSON object"),
        ('{"txt": "a", "label": 1}', "line 1: no field 'text' .* did you mean 'txt'"),
        ('{"text": 3, "label": 1}', "line 1: 'text' is 3; it must be a text"),
        ('{"text": "a", "label": 1}\n{"text": "a", "label": "x"}', "line 2: 'label' is 'x', of"),
        ("\n", "is empty; write lines"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": NaN}', "row 2: the target is nan"),
    ],
)
def test_lines_of_json_that_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        data.load(write(tmp_path / "a.jsonl", text))


def test_a_path_that_is_not_there_is_no_tfds_name(tmp_path):
    table().to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(ValueError, match=r"tabel\.csv: no such file; did you mean .*table\.csv"):
        data.load(tmp_path / "tabel.csv")
    said = ddm("run", tmp_path / "tabel.csv")
    assert said.exit_code == 1
    assert said.stderr.startswith(f"error: {tmp_path / 'tabel.csv'}: no such file; did you mean")


def test_what_is_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "pets")
    write(tmp_path / "mnist" / "3.0.1" / "dataset_info.json", "{}")
    (tmp_path / "digits").mkdir()
    for name in ("pets", "pets/", "./mnist", "gone.csv", "~/x", tmp_path, table()):
        assert is_own(name)
    for name in ("mnist", "digits", "cifar10", "cifar10_corrupted/fog"):
        assert not is_own(name)
    assert is_own("gone.csv", "elsewhere")
    assert not is_own("pets", "elsewhere")


@pytest.mark.parametrize(
    ("name", "options"),
    [("digits", {"target": "y"}), ("a", {"target": "y"}), ("a", {"drop": ("y",)})],
)
def test_settings_of_columns_elsewhere(tmp_path, name, options):
    image_folder(tmp_path / "a")
    with pytest.raises(ValueError, match=r"target.* of tables|is for columns"):
        data.load(name if name == "digits" else tmp_path / name, **options)


def test_settings_of_images_elsewhere():
    for options in ({"normalise": "standard"}, {"image_size": 8}):
        with pytest.raises(ValueError, match="normalise and image_size are for images"):
            data.load(table(), **options)


# Settings that fit, and words


def test_the_settings_fit_the_data(tmp_path):
    x, y = numbers(200, 3)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    chosen = own.fitting(str(tmp_path / "a.npz"), ["seed=3"])
    assert (chosen.model.kind, chosen.model.hidden) == ("mlp", (128, 64))
    assert (chosen.seed, chosen.cluster.num_groups, chosen.train.batch_size) == (3, 16, 40)
    assert chosen.data.train_size is None
    frame = table().assign(who=["a", "b", "c", "d"] * 5)
    frame.to_csv(tmp_path / "t.csv", index=False)
    path = str(tmp_path / "t.csv")
    assert own.fitting(path, ["data.target=label"]).cluster.method == "class_kmeans"
    named = own.fitting(path, ["data.target=label", "data.groups=who"])
    assert named.cluster.method == "data"
    assert named.train.batch_size == 4


def test_large_data_are_drawn_from(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "MOST", {"own": (50, 20), "images": (5, 2)})
    x, y = numbers(200, 3)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    chosen = own.fitting(str(tmp_path / "a.npz"), [])
    assert (chosen.data.train_size, chosen.data.test_size) == (50, 20)
    assert chosen.cluster.num_groups == 5
    large = image_folder(tmp_path / "large", size=16)
    chosen = own.fitting(str(large), [])
    assert (chosen.model.kind, chosen.data.train_size, chosen.data.test_size) == (
        "convnet",
        5,
        None,
    )


def test_settings_of_before_there_were_data_of_ones_own(tmp_path):
    path = tmp_path / "config.json"
    settings_file.save(config.preset("mnist"), path)
    told = json.loads(path.read_text())
    for name in ("target", "groups", "drop", "missing", "words"):
        del told["settings"]["data"][name]
    told["settings"]["online"]["step_items"] = 5  # as 0.10 wrote
    told["ddm_jax"] = "0.10.0"
    path.write_text(json.dumps(told | {"written": json.dumps(told["settings"])}))
    assert settings_file.load(path).data == config.preset("mnist").data


def test_groups_that_data_do_not_bring_are_refused():
    chosen = config.override(config.preset("digits"), ["cluster.method=data"])
    with pytest.raises(ValueError, match=r"cluster\.method=data: digits brings no groups; name"):
        make_plan(chosen)


def test_a_row_in_words():
    frame = table().astype({"age": float})
    frame.loc[0, "age"] = 1000.25
    split = data.load(frame, order="original")
    said = describe(split, split.train.x[0], split.shown_train.iloc[0])
    assert said.splitlines()[0] == "age = 1000.2"
    assert set(said.splitlines()[1:]) == {"city = Rome", "member = True"}
    assert describe(split, split.train.x[1]).count("\n") == 2


# What hard use found


def _frame(**columns):
    draw = np.random.default_rng(0)
    return pandas.DataFrame(
        {"a": draw.normal(size=40), "b": draw.normal(size=40), "y": ["p", "q"] * 20} | columns
    )


def test_numbers_of_groups_are_the_same_however_they_are_written():
    written = ["10.0", "20", "-1.0", ""] * 10  # as pandas writes a column with gaps
    found = data.load(_frame(g=written), groups="g").groups
    assert found.names == ("10", "20")
    assert (np.asarray(found.ids) < 0).any()
    told = data.load(_frame(g=written), groups="g").told
    assert any(line.startswith("  2 groups; ") for line in told)
    with pytest.raises(ValueError, match="a group is inf"):
        data.load(_frame(g=[1.0, np.inf] * 20), groups="g")


def test_spaces_around_a_text_are_no_part_of_it():
    assert data.load(_frame(y=["p", "p ", "q", " q"] * 10)).classes == ("p", "q")


def test_parts_of_other_types_are_refused(tmp_path):
    x = np.random.default_rng(0).random((20, 4, 4)).astype(np.float32)
    y = np.arange(20) % 2
    np.savez(tmp_path / "own.npz", x=x, y=y, x_test=(255 * x).astype(np.uint8), y_test=y)
    with pytest.raises(ValueError, match="x is float32 and x_test uint8"):
        data.load(tmp_path / "own.npz")
    np.save(tmp_path / "plain.npy", x)
    (tmp_path / "plain.npy").rename(tmp_path / "plain.npz")
    with pytest.raises(ValueError, match="cannot be read as"):
        data.load(tmp_path / "plain.npz")


def test_numbers_that_are_too_large_are_refused():
    with pytest.raises(ValueError, match=r"column 'a' has numbers beyond 1e\+30"):
        data.load(_frame(a=1e200 * np.arange(40)))
    with pytest.raises(ValueError, match="the target reaches"):
        data.load(_frame(y=1e60 * np.arange(1.0, 41.0)))


def test_files_that_are_not_used_are_told(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for place in range(3):
            shade = np.full((8, 8), 40 * place + 10 * len(name) + (name == "dog"), np.uint8)
            Image.fromarray(shade).save(tmp_path / name / f"{place}.png")
        (tmp_path / name / "x.webp").write_bytes(b"")
    assert "  files not used: 2 .webp" in data.load(tmp_path).told


def test_a_network_for_images_is_refused_for_a_table(tmp_path):
    _frame().to_csv(tmp_path / "own.csv", index=False)
    chosen = config.override(
        config.preset("own"), [f"data.name={tmp_path / 'own.csv'}", "model.kind=convnet"]
    )
    with pytest.raises(ValueError, match=r"model\.kind=convnet is for images"):
        make_plan(chosen)
