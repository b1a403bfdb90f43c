"""Data in Python: arrays, a Dataset, sequences of examples and their parts, as by a file."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pandas
import pytest

from ddm_jax import data

X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
Y = np.arange(40) % 3
HOT = np.stack([np.arange(40) % 2, np.arange(40) % 3 == 0], 1).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (40, 6, 5, 3)).astype(np.uint8)


class Tensor:
    """A tensor as torch has it: none of numpy's arrays until it is detached."""

    def __init__(self, values, detached=False):
        self.values, self.detached = np.asarray(values), detached

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)

    def __len__(self):
        return len(self.values)

    def __array__(self, *_, **__):
        raise RuntimeError("call detach first")

    def detach(self):
        return Tensor(self.values, True)

    def cpu(self):
        return self

    def numpy(self):
        if not self.detached:
            raise RuntimeError("call detach first")
        return self.values


class Dataset:
    """A map-style Dataset of torch."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, place):
        return Tensor(self.x[place]), Tensor(self.y[place])


FORMS = {
    "arrays": lambda x, y: (x, y),
    "arrays of jax": lambda x, y: (jnp.asarray(x), jnp.asarray(y)),
    "tensors": lambda x, y: (Tensor(x), Tensor(y)),
    "an array and a list": lambda x, y: (x, y.tolist()),
    "a dict": lambda x, y: {"x": x, "y": y},
    "a Dataset": Dataset,
    "a list of pairs": lambda x, y: list(zip(x, y, strict=True)),
}


def assert_same(one, two):
    """All that a split holds but its name and what it tells."""
    for field in ("train_ids", "test_ids", "offset", "scale", "flipped"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    for a, b in zip((*one.train, *one.test), (*two.train, *two.test), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for field in ("classes", "kind", "features", "targets"):
        assert getattr(one, field) == getattr(two, field)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("x", "y"),
    [(X, Y), (X, HOT), (X, X[:, :2] * 3), (X, X[:, 0]), (PIXELS, Y), (X.reshape(40, 2, 2), Y)],
    ids=["classes", "labels", "numbers", "a number", "images", "others"],
)
def test_every_form_gives_the_bits_of_an_npz(tmp_path, form, x, y):
    np.savez(tmp_path / "a.npz", x=x, y=y)
    assert_same(data.load(FORMS[form](x, y), seed=3), data.load(tmp_path / "a.npz", seed=3))


@pytest.mark.parametrize("form", FORMS)
def test_two_of_a_form_are_training_and_test_parts(tmp_path, form):
    if form == "a dict":
        given = {"x": X[:30], "y": Y[:30], "x_test": X[30:], "y_test": Y[30:]}
    else:
        given = FORMS[form](X[:30], Y[:30]), FORMS[form](X[30:], Y[30:])
    np.savez(tmp_path / "a.npz", x=X[:30], y=Y[:30], x_test=X[30:], y_test=Y[30:])
    split = data.load(given)
    assert_same(split, data.load(tmp_path / "a.npz"))
    np.testing.assert_array_equal(split.test_ids, np.arange(30, 40))


def test_texts_as_dicts_and_as_pairs_are_as_lines_of_json(tmp_path):
    rows = [{"text": f"word{i % 7} same", "label": "ab"[i % 2], "by": i % 4} for i in range(20)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    one, two = data.load(path, groups="by"), data.load(rows, groups="by")
    assert_same(one, two)
    np.testing.assert_array_equal(one.groups.ids, two.groups.ids)
    pairs = [(row["text"], row["label"]) for row in rows]
    assert_same(data.load(path), data.load(pairs))
    parts = data.load((rows[:12], rows[12:]))
    np.testing.assert_array_equal(parts.test_ids, np.arange(12, 20))
    assert parts.shown_test == [row["text"] for row in rows[12:]]


def test_lists_of_labels_are_of_both_parts():
    given = [(x, ["rain"] * (n % 2) + ["wind"] * (n % 3 == 0)) for n, x in enumerate(X)]
    split = data.load((given[:30], given[30:]))
    assert (split.targets, split.classes) == ("labels", ("rain", "wind"))
    np.testing.assert_array_equal(split.test.y, HOT[30:])


def test_names_as_labels_of_any_array():
    names = np.asarray(["cat", "dog", "emu"])[Y]
    for y in (names, names.tolist(), pandas.Series(names), names.astype(object)):
        assert data.load((X, y)).classes == ("cat", "dog", "emu")


def test_a_dict_brings_groups():
    split = data.load({"x": X, "y": Y, "groups": ["a", "b"] * 20})
    assert split.groups.names == ("a", "b")


@pytest.mark.parametrize("kind", [object, "string", "category"])
def test_groups_of_pandas_are_background_where_they_are_missing(kind):
    from ddm_jax.cluster import as_groups

    listed = [pandas.NA if n % 4 == 0 else f"site {n % 4}" for n in range(40)]
    column = pandas.Series(listed, dtype=kind)
    found = as_groups(column, 40)
    assert found.names == ("site 1", "site 2", "site 3")
    assert (found.ids < 0).tolist() == [n % 4 == 0 for n in range(40)]
    frame = pandas.DataFrame({"a": X[:, 0], "by": column, "y": Y})
    split = data.load(frame, target="y", groups="by")
    assert split.groups.names == found.names
    np.testing.assert_array_equal(split.groups.ids, found.ids[split.train_ids])


def test_lists_and_tensors_in_dicts():
    listed = [["rain"] * (n % 2) + ["wind"] * (n % 3 == 0) for n in range(40)]
    split = data.load({"x": X, "y": listed, "groups": ["a", "b"] * 20})
    assert (split.targets, split.classes) == ("labels", ("rain", "wind"))
    np.testing.assert_array_equal(split.train.y, HOT[split.train_ids])
    assert split.groups.names == ("a", "b")
    rows = [{"text": f"word{n % 7}", "label": Tensor(n % 2)} for n in range(20)]
    plain = [row | {"label": n % 2} for n, row in enumerate(rows)]
    assert_same(data.load(rows), data.load(plain))


def test_two_frames_are_training_and_test_parts():
    frame = pandas.DataFrame(X, columns=list("abcd")).assign(y=Y)
    split = data.load((frame[:30], frame[30:]), target="y")
    np.testing.assert_array_equal(split.test_ids, np.arange(30, 40))
    np.testing.assert_allclose(split.numbers(split.test.x), X[30:], atol=1e-6)
    with pytest.raises(ValueError, match="the columns of the parts differ, in 'a'"):
        data.load((frame, frame.drop(columns="a")))


class Broken(Tensor):
    detach = Tensor.cpu

    def numpy(self):
        raise TypeError("unsupported ScalarType BFloat16")


def pairs(**changes):
    found = [list(pair) for pair in zip(X, Y.tolist(), strict=True)]
    for place, value in changes.items():
        found[int(place[1:])] = value
    return found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, "data of type int; pass a path, a name"),
        (iter([1]), "data of type list_iterator; pass a path"),
        ([], "the list has no examples"),
        (X, r"the ndarray, example 0: a ndarray, and no pair \(x, y\)"),
        (pairs(_3=X[0]), "the list, example 3: a ndarray, and no pair"),
        (pairs(_3=(X[0], 1, 2)), "the list, example 3: a tuple of 3, and no pair"),
        (pairs(_5=(X[0, :3], 1)), r"example 5: x has shape \(3,\) of float32, and the first \(4,"),
        (pairs(_5=(X[0].astype(np.uint8), 1)), "example 5: .* of uint8, .* bring all of one type"),
        (pairs(_6=(X[0], "a")), "the list, example 6: 'y' is 'a', of another kind"),
        (pairs(_6=([[1, 2], [3]], 0)), "the list, example 6: a list is no array"),
        (pairs(_6=(Broken(X[0]), 0)), r"example 6: a Broken is no array \(unsupported Scalar"),
        ([(x, [0, 1][: 1 + (n != 4)]) for n, x in enumerate(X)], "example 4: 'y' is a list"),
        ((pairs(), pairs(_2=(X[0, :3], 0))), "the tuple, test, example 2: x has shape"),
        ((pairs(), [{"text": "a", "label": 0}]), "one part has rows with texts, and one arrays"),
        ([{"text": "a", "label": 0}, {"text": "b"}], "the list, example 1: no field 'label'"),
        ([("a", 0), (X[0], 1)], "the list, example 1: 'text' is .* it must be a text"),
        ((X, 3), "the tuple: y is of type int"),
        ((X, Y[:9]), r"the tuple: y has shape \(9,\); x needs \(40,\)"),
        ({"x": X}, "the dict holds x; it needs x and y"),
        ({"x": X, "y": Y, "x_test": X}, "x_test and y_test go together"),
        ({"x": X, "y": [0] * 39 + ["a"]}, "the dict, example 39: 'y' is 'a', of another kind"),
        ({"x": X, "Y": Y}, "the dict holds 'Y'; did you mean 'y'"),
        ((np.ma.masked_greater(X, 1), Y), "values are masked; fill them in"),
        ((X, np.ma.masked_equal(Y, 1)), "the tuple: 13 values are masked"),
        ((np.zeros((40, 4, 0)), Y), r"x has shape \(40, 4, 0\); an example must have numbers"),
        (((X[:20], np.ones(20)), (X[20:], X[20:, 0])), "the target is 1 in all 20 training"),
    ],
)
def test_data_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        data.load(given)
    assert "\n" not in str(caught.value)


def test_half_precision_of_jax_is_numbers():
    split = data.load((jnp.asarray(X, jnp.bfloat16), jnp.asarray(X[:, 0], jnp.bfloat16)))
    assert (split.targets, split.train.x.dtype) == ("any", "float32")


@pytest.mark.parametrize("form", ["arrays", "a list of pairs"])
def test_numbers_far_from_zero_are_standardised_before_they_are_rounded(form):
    """Seconds since 1970 are 128 apart in single precision."""
    seconds = 1.7e9 + X[:, 0].astype(np.float64)
    found, wanted = data.load(FORMS[form](X, seconds)), data.load((X, X[:, 0]))
    np.testing.assert_allclose(found.train.y, wanted.train.y, atol=1e-5)
    np.testing.assert_allclose(found.target_numbers(found.test.y)[:, 0], seconds[found.test_ids])


def test_settings_of_columns_are_for_rows_and_frames_alone():
    with pytest.raises(ValueError, match=r"data\.target=y is for columns, and the list has none"):
        data.load(pairs(), target="y")
    with pytest.raises(ValueError, match="the tuple has none; bring an array `groups`"):
        data.load((X, Y), groups="y")


def test_channels_that_come_first_are_told():
    first = data.load((PIXELS.transpose(0, 3, 1, 2), Y))
    assert first.kind == "arrays"
    assert any("images have their channels last: x.transpose" in line for line in first.told)
