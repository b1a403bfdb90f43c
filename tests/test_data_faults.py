"""Faults of files and tables that users have met: each is read rightly and told, or refused."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest
from PIL import Image

from ddm_jax import data

ROWS = [f"{i}.5,{i % 5},{'pq'[i % 2]}" for i in range(20)]


def written(path, *lines: str, encoding: str = "utf-8"):
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def refused(match: str, *given, **options):
    with pytest.raises(ValueError, match=match) as caught:
        data.load(*given, **options)
    assert "\n" not in str(caught.value)


def told(split, text: str) -> bool:
    return any(text in line for line in split.told)


# The head of a CSV file


@pytest.mark.parametrize(
    "rows",
    [
        [f"{i}.5,{i % 5},{i % 2}" for i in range(20)],
        ROWS,
        ["Rome,yes", "Oslo,no"] * 8,
        ["1,1,0", *(f"{i},1,{i % 2}" for i in range(20))],
    ],
    ids=["numbers", "numbers and a text", "texts", "the same number twice"],
)
def test_a_file_without_a_head_is_refused(tmp_path, rows):
    path = written(tmp_path / "a.csv", *rows)
    refused(rf"a\.csv has no head: its first row, {rows[0]}, looks like data; write", path)


@pytest.mark.parametrize("head", ["a,b,y", "2019,2020,y", "a,1,y", "0.1,0.5,label"])
def test_a_head_is_one_though_there_are_numbers_in_it(tmp_path, head):
    split = data.load(written(tmp_path / "a.csv", head, *ROWS))
    assert [name for name, _ in split.features] == head.split(",")[:2]


def test_columns_of_numbers_and_of_no_name(tmp_path):
    path = written(tmp_path / "a.csv", ",a,y", *ROWS)
    refused("column 1 has no name; name it, or leave it out .* index=False", path)
    frame = pandas.DataFrame(np.random.default_rng(0).normal(size=(20, 4))).assign(
        **{"4": ["p", "q"] * 10}
    )
    split = data.load(frame.rename(columns={"4": 4}), target=4, groups=None, drop=[1, 2])
    assert split.classes == ("p", "q")
    assert [name for name, _ in split.features] == ["0", "3"]
    assert data.load(frame.assign(who=1), drop="who").features == data.load(frame).features
    both = data.load(frame.assign(z=[0, 1, 1, 1] * 5, w=[1, 1, 0, 1] * 5), target=["z", "w"])
    assert both.classes == ("z", "w")


def test_blank_lines_before_the_head_are_passed_over(tmp_path):
    one = data.load(written(tmp_path / "a.csv", "a,b,y", *ROWS))
    for name, first in (("b.csv", ["", "\r"]), ("c.csv", ["\ufeff"])):
        two = data.load(written(tmp_path / name, *first, "a,b,y", *ROWS))
        np.testing.assert_array_equal(one.train.x, two.train.x)
        assert two.features == one.features


# Commas and semicolons


def test_semicolons_and_decimal_commas_are_read_and_told(tmp_path):
    rows = [f"{i},5;{i % 5};{-i / 4};{'pq'[i % 2]}".replace(".", ",") for i in range(20)]
    split = data.load(written(tmp_path / "a.csv", "a;b;c;y", *rows))
    plain = [row.replace(",", ".").replace(";", ",") for row in rows]
    expected = data.load(written(tmp_path / "b.csv", "a,b,c,y", *plain))
    np.testing.assert_array_equal(split.train.x, expected.train.x)
    assert split.features == expected.features
    assert told(split, "columns are apart by semicolons")
    assert told(split, "decimal commas, read as points: a, c")
    path = written(tmp_path / "c.csv", "a;b;c;y", *rows, "old;1;2,5;p")
    refused(r"c\.csv, row 21, column 'a': 'old' is no number", path)


def test_commas_in_numbers_are_refused_elsewhere(tmp_path):
    rows = [f"{i % 3},{i % 7}\t{'pq'[i % 2]}" for i in range(20)]
    path = written(tmp_path / "a.tsv", "a\ty", *rows)
    refused(r"a\.tsv, row 1, column 'a': '0,0' has a comma; write decimals with a point", path)
    quoted = [f'"1,{i % 3}00",{"pq"[i % 2]}' for i in range(20)]
    refused("column 'a': '1,000' has a comma", written(tmp_path / "b.csv", "a,y", *quoted))
    texts = [f'"{city}",{i % 2}' for i, city in enumerate(["Rome, Italy", "Oslo, Norway"] * 9)]
    assert len(data.load(written(tmp_path / "c.csv", "a,y", *texts)).features) == 2


# What is missing


@pytest.mark.parametrize("word", ["None", "NA", "null"])
def test_a_class_may_be_named_none(tmp_path, word):
    rows = [f"{i},{['Gable', word, 'Hip'][i % 3]}" for i in range(30)]
    split = data.load(written(tmp_path / "a.csv", "a,roof", *rows))
    assert split.classes == tuple(sorted(["Gable", "Hip", word]))
    assert told(split, f"{word!r} in 'roof' is a name like others there; empty would be missing")


@pytest.mark.parametrize(
    ("labels", "word"),
    [(["p", "q"], ""), (["p", "q"], "nan"), (["1", "2"], "NA"), (["True", "false"], "NA")],
)
def test_what_is_missing_in_a_target_is_refused(tmp_path, labels, word):
    rows = [f"{i},{labels[i % 2]}" for i in range(20)]
    path = written(tmp_path / "a.csv", "a,y", *rows, f"21,{word}")
    refused("row 21: the target 'y' is missing", path)


def test_a_word_for_missing_in_another_column_is_missing(tmp_path):
    rows = [f"{['1', 'NA', '3'][i % 3]},{i},{'pq'[i % 2]}" for i in range(30)]
    path = written(tmp_path / "a.csv", "a,b,y", *rows)
    refused("row 2, column 'a': the value is missing", path)
    split = data.load(path, missing="impute")
    assert told(split, "missing values filled: a (10)")
    assert split.shown_train["a"].isna().sum() == sum(split.train_ids % 3 == 1)


@pytest.mark.parametrize("kind", [float, object])
def test_a_column_that_the_training_part_misses_is_dropped_and_told(kind):
    values = np.arange(20).astype(kind)
    values[:16] = None
    values = values if kind is float else [None if v is None else f"t{v}" for v in values]
    train = pandas.DataFrame({"a": np.arange(20.0), "b": values, "y": ["p", "q"] * 10})
    with np.errstate(all="raise"):
        split = data.load((train[:16], train[16:]), missing="impute")
    assert split.features == (("a", None),)
    assert told(split, "missing in all of the training part, dropped: b")


# Parts, classes and groups


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(["val"], "val"), (["valid"], "valid"), (["validation"], "validation"),
     (["val", "test"], "test")],
)  # fmt: skip
def test_a_validation_folder_stands_in_for_the_test_part(tmp_path, names, chosen):
    for part in ["train", *names]:
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(3):
                (tmp_path / part / kind / f"{number}.txt").write_text(f"{part} {kind} {number}")
    split = data.load(tmp_path)
    assert (len(split.train.x), len(split.test.x)) == (6, 6)
    assert all(text.startswith(f"{chosen} ") for text in split.shown_test)
    assert told(split, f"{chosen} is the test part") == (chosen != "test")
    assert told(split, "files not used: 6 .txt") == (len(names) > 1)


def test_what_a_smaller_training_part_leaves_out_is_told():
    rows = {"a": np.arange(40.0), "who": [f"g{i % 10}" for i in range(40)], "y": list("pqrs") * 10}
    frame = pandas.DataFrame(rows)
    assert not told(data.load(frame, groups="who"), "no training example is left")
    few = data.load(frame, groups="who", train_size=2, order="original")
    assert few.classes == ("p", "q", "r", "s")
    assert told(few, "no training example is left of the classes: r, s")
    assert told(few, "of the groups: g2, g3, g4, g5, g6, g7, g8, g9")
    assert few.groups.names == ("g0", "g1")


def test_pixels_in_a_small_part_of_the_range_are_told(tmp_path):
    draw = np.random.default_rng(0)
    for most, said in ((2**12, True), (2**14, True), (2**16, False)):
        for kind in ("cat", "dog"):
            folder = tmp_path / str(most) / kind
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = draw.integers(0, most, (8, 8)).astype(np.uint16)
                Image.fromarray(pixels).save(folder / f"{number}.png")
        assert told(data.load(tmp_path / str(most)), "a small part of 0..1; stretch them") == said
    masks = draw.integers(0, 2, (20, 4, 4)).astype(np.uint8)
    assert told(data.load((masks, np.arange(20) % 2)), "all pixels are in 0..0.00392")


def test_rows_of_json_without_a_group_are_told_and_a_field_that_is_nowhere_refused(tmp_path):
    rows = [{"text": f"word{i}", "label": i % 2, "author": "ab"[i % 3 % 2]} for i in range(20)]
    del rows[0]["author"], rows[7]["author"]
    path = written(tmp_path / "a.jsonl", *map(json.dumps, rows))
    split = data.load(path, groups="author")
    assert split.groups.names == ("a", "b")
    assert told(split, "no field 'author' in 2 of 20 rows, which are in no group; the first is")
    assert told(split, "line 1")
    refused("data.groups=auhtor: no such field in .* did you mean 'author'", path, groups="auhtor")
    empty = [row | {"by": None} for row in rows]
    refused("brings 0 groups", written(tmp_path / "b.jsonl", *map(json.dumps, empty)), groups="by")


# Other encodings


def test_a_file_that_is_no_utf_8_names_the_line_and_the_byte(tmp_path):
    rows = [f"{i},{['Zürich', 'Oslo'][i % 2]}" for i in range(20)]
    path = written(tmp_path / "a.csv", "a,y", *rows, encoding="latin-1")
    refused(r"a\.csv, line 2: byte 0xfc is no UTF-8; save the file as UTF-8", path)
    path = written(tmp_path / "b.csv", "a,y", *rows, encoding="utf-16")
    refused(r"b\.csv, line 1: byte 0xff is no UTF-8", path)
    line = '{"text": "é", "label": 1}'
    path = written(tmp_path / "c.jsonl", "", line, encoding="latin-1")
    refused(r"c\.jsonl, line 2: byte 0xe9 is no UTF-8", path)
    for kind in ("cat", "dog"):
        (tmp_path / "d" / kind).mkdir(parents=True)
        written(tmp_path / "d" / kind / "1.txt", "a", "b", "é", encoding="latin-1")
    refused(r"1\.txt, line 3: byte 0xe9 is no UTF-8", tmp_path / "d")


def test_folders_inside_of_a_class_are_groups(tmp_path):
    for number in range(24):
        place = tmp_path / "a" / f"class {number % 2}" / ("", "north", "south")[number // 2 % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.txt").write_text(f"word{number}")
    split = data.load(tmp_path / "a")
    assert split.classes == ("class 0", "class 1")
    assert split.groups.names == ("north", "south")
    for text, group in zip(split.shown_train, split.groups.ids, strict=True):
        assert int(group) == int(text.removeprefix("word")) // 2 % 3 - 1
    # One source is none that could be left out: its files are examples as any other.
    for number in range(10):
        place = tmp_path / "b" / f"class {number % 2}" / "only"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.txt").write_text(f"word{number}")
    assert data.load(tmp_path / "b").groups is None
