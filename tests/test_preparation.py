"""New examples become numbers as those of a split did."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest
from PIL import Image

import ddm_jax as ddm
from ddm_jax.data.language import Document
from ddm_jax.data.split import Preparation, Tokenizer

WORDS = ["salt", "pepper", "sugar"]


def table(count=60):
    draw = np.random.default_rng(0)
    weight = draw.normal(5, 2, count)
    weight[::7] = np.nan
    spice = [WORDS[place] for place in draw.integers(0, 3, count)]
    spice[3] = None
    frame = pandas.DataFrame({"weight": weight, "spice": spice, "dear": draw.random(count) > 0.5})
    checked = [None if place % 5 == 0 else bool(place % 2) for place in range(count)]
    frame["checked"] = pandas.Series(checked, dtype=object)
    return frame.assign(
        always=1.0, kind=[["low", "high"][place] for place in draw.integers(0, 2, count)]
    )


def again(split, examples, labels=None):
    """By what a file of JSON would hold."""
    told = json.loads(json.dumps(split.preparation._asdict()))
    return ddm.data.prepare(Preparation(**told), examples, labels)


def check_same(split, found):
    for one, two in zip(found, split.test, strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def names_of(split):
    return [split.classes[place] for place in np.argmax(split.test.y, 1)]


def test_a_table_with_texts_and_missing_values():
    split = ddm.data.load(table(), target="kind", missing="impute")
    check_same(split, again(split, split.shown_test, names_of(split)))
    columns = ["checked", "dear", "spice", "weight"]
    one = split.shown_test.iloc[[0]][columns]  # in any order, and alone
    np.testing.assert_array_equal(again(split, one).x, split.test.x[:1])


def test_numbers_as_targets_are_in_their_units():
    frame = table().drop(columns="kind").assign(price=np.linspace(100, 900, 60))
    split = ddm.data.load(frame, target="price", missing="impute")
    check_same(split, again(split, split.shown_test, frame["price"].to_numpy()[split.test_ids]))


def test_several_labels():
    frame = table().drop(columns="kind").assign(hot=[0, 1] * 30, cold=[1, 1, 0] * 20)
    split = ddm.data.load(frame, target="hot,cold", missing="impute")
    held = frame[["hot", "cold"]].to_numpy()[split.test_ids]
    check_same(split, again(split, split.shown_test, held))
    named = [
        [name for name, there in zip(split.classes, row, strict=True) if there] for row in held
    ]
    check_same(split, again(split, split.shown_test, named))


def test_texts_and_arrays(tmp_path):
    rows = [
        {"text": f"{WORDS[n % 3]} and {WORDS[n % 2]} {n}", "label": WORDS[n % 2]} for n in range(40)
    ]
    split = ddm.data.load(rows, words=32)
    check_same(split, again(split, split.shown_test, names_of(split)))
    draw = np.random.default_rng(1)
    for x in (
        draw.normal(3, 2, (40, 4)),
        draw.normal(3, 2, (40, 6, 2)),
        draw.integers(0, 256, (40, 5, 5)).astype(np.uint8),
    ):
        split = ddm.data.load((x, np.arange(40) % 2))
        check_same(split, again(split, x[split.test_ids], names_of(split)))
    digits = ddm.data.load("digits", train_size=50, test_size=20)
    check_same(digits, again(digits, digits.pixels(digits.test.x), names_of(digits)))


def test_images_of_a_folder_that_are_standardised(tmp_path):
    draw = np.random.default_rng(2)
    pictures = draw.integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
    for number, picture in enumerate(pictures):
        folder = tmp_path / WORDS[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    split = ddm.data.load(str(tmp_path), normalise="standard")
    order = [*range(1, 20, 2), *range(0, 20, 2)]  # by folders: pepper, salt
    shown = pictures[np.asarray(order)[split.test_ids]]
    check_same(split, again(split, shown, names_of(split)))


@pytest.mark.parametrize(
    ("examples", "labels", "told"),
    [
        (table().drop(columns="spice"), None, "no column 'spice'"),
        (table().assign(weight="heavy"), None, "column 'weight' is of numbers, and holds 'heavy'"),
        (table().assign(dear=np.nan), None, "row 1, column 'dear': the value is missing"),
        (table()[:2], ["low", "middling"], "label 'middling' is none of the data's: high, low"),
        (table()[:2], ["low"], "1 labels for 2 queries"),
        (np.zeros((2, 5)), None, "columns have names: pass a DataFrame"),
        (table().assign(dear=7.5), None, "column 'dear' is of true or false, and holds 7.5"),
        (table().assign(weight=True), None, "column 'weight' is of numbers, and holds True"),
        (table().assign(spice=3), None, "row 1, column 'spice': 3 is a int"),
        (table().assign(checked=1.0), None, "column 'checked': 1.0 is a float"),
        (pandas.concat([table(), table()[["spice"]]], axis=1), None, "the column 'spice' twice"),
        (table()[:2], pandas.DataFrame({"kind": ["low", "low"]}), "labels are a DataFrame"),
    ],
)
def test_what_does_not_fit_is_refused(examples, labels, told):
    split = ddm.data.load(table(), target="kind", missing="impute")
    with pytest.raises(ValueError, match=told):
        again(split, examples, labels)


def test_other_shapes_and_numbers_are_refused():
    x = np.random.default_rng(1).normal(3, 2, (40, 6, 2))
    split = ddm.data.load((x, np.arange(40) % 2))
    with pytest.raises(ValueError, match="the shape \\[5, 2\\]; it must be \\[6, 2\\]"):
        again(split, x[:, :5])
    numbers = ddm.data.load((x[:, 0], np.linspace(0, 1, 40)))
    with pytest.raises(ValueError, match="labels have shape"):
        again(numbers, x[:, 0], np.zeros((40, 2)))
    words = ddm.data.load([{"text": WORDS[n % 3], "label": n % 2} for n in range(20)])
    with pytest.raises(ValueError, match="must be texts"):
        again(words, [1, 2])


@pytest.mark.parametrize("scale", [255, 255.0, -1.0, np.nan])
def test_images_that_are_neither_bytes_nor_of_zero_to_one_are_refused(scale):
    split = ddm.data.load("digits", train_size=50, test_size=20)
    with pytest.raises(ValueError, match=r"pass bytes \(uint8\), or floats in 0\.\.1"):
        again(split, np.full((2, 8, 8, 1), scale))


def test_without_labels_what_needs_them_is_nan():
    split = ddm.data.load(table(), target="kind", missing="impute")
    found = again(split, split.shown_test)
    np.testing.assert_array_equal(found.x, split.test.x)
    assert found.y.shape == split.test.y.shape
    assert np.isnan(found.y).all()
    assert ddm.data.given_split(split.train, split.test).preparation is None


def of_numbers(names=None):
    x = np.random.default_rng(1).normal(3, 2, (40, 3))
    extra = {} if names is None else {"names": np.array(names)}
    return ddm.data.load({"x": x, "y": np.arange(40) % 3, **extra}), x


def test_an_array_has_the_columns_that_the_data_had():
    split, x = of_numbers()
    check_same(split, again(split, x[split.test_ids], names_of(split)))
    for odd in (x[:, :2], np.c_[x, x[:, :1]], x[0]):
        with pytest.raises(ValueError, match=r"pass \[M, 3\], as the data had"):
            again(split, odd)
    with pytest.raises(ValueError, match="3 values are masked"):
        again(split, np.ma.masked_less(np.r_[x[:1], -999 * np.ones((1, 3))], -900))
    for odd in (x + 1j, x.astype(str)):
        with pytest.raises(ValueError, match="they must be numbers"):
            again(split, odd)


def test_a_label_is_a_name_and_no_place_of_another():
    plain, x = of_numbers()
    np.testing.assert_array_equal(again(plain, x[:3], [0, 1, 2]).y, np.eye(3))
    named, x = of_numbers(["1", "2", "3"])
    np.testing.assert_array_equal(again(named, x[:1], ["1"]).y, [[1, 0, 0]])
    with pytest.raises(ValueError, match="may be a name or a number of a class"):
        again(named, x[:1], [1])


def test_lists_of_zeros_and_ones_are_no_names():
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(40, 3)), draw.integers(0, 2, (40, 3))
    split = ddm.data.load((x, y))
    for labels in ([[1, 0, 1]], np.array([[1, 0, 1]]), [["0", "2"]]):
        np.testing.assert_array_equal(again(split, x[:1], labels).y, [[1, 0, 1]])
    np.testing.assert_array_equal(again(split, x[:1], [[]]).y, [[0, 0, 0]])


@pytest.mark.parametrize("number", [np.inf, None])
def test_numbers_as_targets_are_finite(number):
    x = np.random.default_rng(1).normal(size=(40, 2))
    split = ddm.data.load((x, np.linspace(0, 1, 40)))
    with pytest.raises(ValueError, match="labels"):
        again(split, x[:2], [1.0, number])


def test_texts_are_a_list_of_texts():
    split = ddm.data.load([{"text": WORDS[n % 3], "label": n % 2} for n in range(20)])
    for odd in ({"text": "salt"}, pandas.DataFrame({"text": ["salt"]})):
        with pytest.raises(ValueError, match="pass a list of texts"):
            again(split, odd)


def test_truth_in_any_letters_and_categories_that_differ_by_them(tmp_path):
    path = tmp_path / "own.csv"
    rows = [
        f"{word},{n},{'ab'[n % 2]}" for n, word in enumerate(["True", "TRUE", "maybe", "no"] * 10)
    ]
    path.write_text("\n".join(["c,n,kind", *rows]))
    split = ddm.data.load(str(path))
    check_same(split, again(split, split.shown_test, names_of(split)))
    rows = [f"{word},{n},{'ab'[n % 2]}" for n, word in enumerate(["true", "FALSE", ""] * 14)]
    path.write_text("\n".join(["c,n,kind", *rows]))
    split = ddm.data.load(str(path), missing="impute")
    asked = pandas.DataFrame({"c": ["TRUE", "false", "NA", None], "n": [1, 2, 3, 4]})
    found = again(split, asked).x[:, :3]
    np.testing.assert_array_equal(found, [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]])


def test_a_category_that_the_data_did_not_have_is_warned_of():
    split = ddm.data.load(table(), target="kind", missing="impute")
    odd = split.shown_test.iloc[:2].assign(spice=["slat", "salt"])
    with pytest.warns(UserWarning, match="row 1, column 'spice': 'slat' is a category that"):
        again(split, odd)


def test_a_category_is_missing_only_where_one_was():
    frame = pandas.DataFrame(
        {"c": ["missing", "here"] * 20, "n": range(40), "kind": ["a", "b"] * 20}
    )
    split = ddm.data.load(frame, target="kind")
    with pytest.raises(ValueError, match="column 'c': the value is missing, and none was"):
        again(split, frame.assign(c=None))
    dated = frame.assign(c=pandas.Timestamp("2020-01-01"))
    with pytest.raises(ValueError, match="is a Timestamp, and the data had"):
        again(split, dated)


def test_pictures_of_pillow_are_converted_as_those_of_a_folder(tmp_path):
    draw = np.random.default_rng(2)
    for number in range(20):
        picture = draw.integers(0, 256, (4, 4)).astype(np.uint8)
        folder = tmp_path / WORDS[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    split = ddm.data.load(str(tmp_path))
    picture = Image.open(tmp_path / "salt" / "00.png")
    grey = np.asarray(picture)
    paletted = picture.convert("P")
    np.testing.assert_array_equal(again(split, [paletted]).x, again(split, grey[None]).x)


def test_classes_of_long_numbers_have_names_of_their_own():
    frame = pandas.DataFrame({"n": range(20), "y": [1234567.5, 1234568.5] * 10})
    assert ddm.data.load(frame).classes == ("1234567.5", "1234568.5")


DOCUMENTS = [Document(name, name, f"{name} says so. " * 4) for name in ("Älva", "Bo")]


def test_documents_are_asked_by_their_texts():
    split = ddm.data.documents(DOCUMENTS, context=16, ask=[("Bo says", " so")])
    found = again(split, split.shown_test[1:])
    for name, leaf in found.x.items():
        np.testing.assert_array_equal(leaf, split.test.x[name][1:])
    pair = again(split, [("Bo says", " so")])
    for name, leaf in pair.x.items():
        np.testing.assert_array_equal(leaf[0], split.test.x[name][0])
    assert pair.y is None
    assert len(again(split, "Bo says").x["tokens"]) == 1


def test_what_is_no_question_to_a_language_model_is_refused():
    split = ddm.data.documents(DOCUMENTS, context=16)
    with pytest.raises(ValueError, match=r"has 17 tokens; a sequence has 2 to 16, .*: cut it"):
        again(split, ["x" * 17])
    with pytest.raises(ValueError, match="is no pair of texts; pass a list"):
        again(split, ["Bo", ("Bo", " says")])
    with pytest.raises(ValueError, match="have no labels"):
        again(split, ["Bo"], ["Bo"])


def test_documents_by_a_tokenizer_of_ones_own():
    tokens = Tokenizer(lambda text: [ord(each) % 7 for each in text], str, 7)
    assert ddm.data.documents(DOCUMENTS, context=8, tokenizer=tokens).preparation is None


def test_a_tokenizer_goes_with_what_it_made(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: place for place, word in enumerate(("?", "Bo", "Älva", "says", "so."))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    split = ddm.data.documents(DOCUMENTS, context=4, tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    found = again(split, ["Bo says so."])
    assert found.x["tokens"].tolist() == [[1, 3, 4, 0]]
