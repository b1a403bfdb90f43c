"""Several targets: labels of which any number may hold, and numbers; by every route."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest

from ddm_jax import data
from ddm_jax.checks import check_batch
from ddm_jax.models import MLP
from ddm_jax.tasks import multilabel, regression

NAMES = ("rain", "snow", "wind")
X = np.random.default_rng(0).normal(size=(40, 4))
HOT = np.stack([np.arange(40) % 2, np.arange(40) % 3 == 0, np.arange(40) % 5 < 2], 1).astype(int)


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def frame(kind=int, **columns):
    found = pandas.DataFrame(X, columns=list("abcd"))
    for place, name in enumerate(NAMES):
        found[name] = HOT[:, place].astype(kind)
    return found.assign(**columns)


def whole(split):
    """The targets of both parts, in the order of the file."""
    order = np.argsort(np.concatenate([split.train_ids, split.test_ids]))
    return np.concatenate([split.train.y, split.test.y])[order]


def test_a_multi_hot_array_is_of_labels_by_its_names(tmp_path):
    split = data.load(saved(tmp_path / "a.npz", x=X, y=HOT, names=NAMES))
    assert (split.targets, split.classes) == ("labels", NAMES)
    assert split.train.y.dtype == np.float32
    assert (len(split.train.y), len(split.test.y)) == (32, 8)
    np.testing.assert_array_equal(whole(split), HOT)
    assert "  3 labels, 1.2 of which hold in an example on average: rain, snow, wind" in split.told
    check_batch(multilabel(MLP(3, (4,)), (4,)), split.train)
    other = data.load(saved(tmp_path / "b.npz", x=X, y=HOT.astype(bool)), seed=1)
    assert other.classes == ("0", "1", "2")
    assert not np.array_equal(other.test_ids, split.test_ids)


@pytest.mark.parametrize("kind", [int, bool, float])
def test_one_hot_rows_are_classes(tmp_path, kind):
    labels = np.arange(40) % 3
    y = np.eye(3)[labels].astype(kind)
    split = data.load(saved(tmp_path / "a.npz", x=X, y=y, names=NAMES))
    assert (split.targets, split.classes) == ("distribution", NAMES)
    np.testing.assert_array_equal(whole(split), np.eye(3)[labels])
    column = data.load(saved(tmp_path / "b.npz", x=X, y=labels[:, None]))
    np.testing.assert_array_equal(column.train.y, split.train.y)


@pytest.mark.parametrize("kind", [int, bool])
@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", ""])
def test_columns_of_labels(tmp_path, kind, ending):
    table, path = frame(kind), tmp_path / f"a.{ending}"
    if ending == "parquet":
        table.to_parquet(path)
    elif ending:
        table.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    split = data.load(path if ending else table, target="rain, snow,wind")
    assert (split.targets, split.classes) == ("labels", NAMES)
    assert [name for name, _ in split.features] == list("abcd")
    np.testing.assert_array_equal(whole(split), HOT)
    expected = data.load(saved(tmp_path / "a.npz", x=X, y=HOT))
    np.testing.assert_array_equal(split.train.x, expected.train.x)
    np.testing.assert_array_equal(split.train.y, expected.train.y)
    assert any("the targets are 'rain', 'snow', 'wind'" in line for line in split.told)


def test_lists_of_labels_of_lines_of_json(tmp_path):
    listed = [[name for name, held in zip(NAMES, row, strict=True) if held] for row in HOT]
    lines = [json.dumps({"text": f"word{i}", "label": each}) for i, each in enumerate(listed)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    split = data.load(path)
    assert [] in listed
    assert (split.kind, split.targets, split.classes) == ("texts", "labels", NAMES)
    np.testing.assert_array_equal(whole(split), HOT)


def test_several_numbers_are_a_regression(tmp_path):
    y = np.random.default_rng(1).normal(size=(40, 2))
    split = data.load(saved(tmp_path / "a.npz", x=X, y=y))
    assert (split.targets, split.classes) == ("any", ())
    assert split.train.y.shape == (32, 2)
    np.testing.assert_allclose(split.target_numbers(whole(split)), y, rtol=1e-4, atol=1e-5)
    check_batch(regression(MLP(2, (4,)), (4,)), split.train)
    table = frame(height=y[:, 0], weight=y[:, 1])
    named = data.load(table, target="height,weight", drop=NAMES)
    np.testing.assert_array_equal(whole(named), whole(split))
    assert "  2 numbers as targets, a regression: height, weight" in named.told


def test_labels_of_a_test_part(tmp_path):
    path = saved(tmp_path / "a.npz", x=X[:30], y=HOT[:30], x_test=X[30:], y_test=HOT[30:])
    split = data.load(path)
    np.testing.assert_array_equal(split.test.y, HOT[30:])
    np.testing.assert_array_equal(split.test_ids, np.arange(30, 40))


def test_a_column_whose_name_has_a_comma():
    split = data.load(frame(**{"rain,wind": ["yes", "no"] * 20}), target="rain,wind")
    assert split.classes == ("no", "yes")


NEVER = HOT * [1, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": NEVER}, "label 'snow' holds in none of the 32 training examples"),
        ({"y": HOT | [0, 1, 0]}, "label 'snow' holds in all of the 32 training examples"),
        ({"names": ["a", "b"]}, "2 names for the 3 columns of the target 'y'"),
        ({"y": HOT[:39]}, r"y has shape \(39, 3\); x needs \(40,\), or \(40, C\)"),
        ({"y": HOT[:, :, None]}, r"y has shape \(40, 3, 1\); x needs"),
        ({"y": HOT.astype(str)}, "y is <U21; it must hold numbers"),
        ({"y": np.where(HOT, np.nan, 0.0)}, "row 1: y is nan; remove that row"),
        (
            {"y": np.stack([X[:, 0], np.full(40, 2.5)], 1), "names": ["a", "b"]},
            "target 'b' is constant",
        ),
        ({"x_test": X, "y_test": HOT[:, 0]}, r"y has shape \(40, 3\) and y_test \(40,\)"),
    ],
)
def test_several_targets_that_are_refused(tmp_path, change, message):
    path = saved(tmp_path / "a.npz", **({"x": X, "y": HOT, "names": NAMES} | change))
    with pytest.raises(ValueError, match=message) as caught:
        data.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "target", "message"),
    [
        ({}, "rain,wnid", "data.target=wnid: no such column; did you mean 'wind'"),
        (
            {"rain": ["yes", "no"] * 20},
            "rain,wind",
            r"column 'rain', one of several targets, holds texts \('yes'\)",
        ),
        ({"rain": [None, 1.0] * 20}, "rain,wind", "row 1: the target 'rain' is missing"),
        ({}, "a,b,c,d,rain,snow,wind", "has no column beside the target"),
    ],
)
def test_columns_as_targets_that_are_refused(columns, target, message):
    with pytest.raises(ValueError, match=message):
        data.load(frame(**columns), target=target)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ('["rain", 3]', "line 2: 3 among 'label' is no text"),
        ('"rain"', "line 2: 'label' is 'rain', of another kind"),
        ('["rain", " "]', "line 2: ' ' among 'label'"),
    ],
)
def test_lists_of_labels_that_are_refused(tmp_path, label, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a", "label": ["rain"]}}\n{{"text": "b", "label": {label}}}')
    with pytest.raises(ValueError, match=message):
        data.load(path)


def test_no_labels_are_flipped_where_several_may_hold(tmp_path):
    with pytest.raises(ValueError, match=r"label_noise=0\.1 flips classes; the target is several"):
        data.load(frame(), target="rain,snow,wind", label_noise=0.1)
