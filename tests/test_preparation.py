"""New examples become numbers as those of a split did."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest
from PIL import Image

import ddm_jax as ddm
from ddm_jax.data.split import Preparation

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
        (np.zeros(3), None, "pass a DataFrame, or"),
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
