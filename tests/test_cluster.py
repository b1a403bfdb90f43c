"""Clustering: every method, its shares and its refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.cluster import (
    METHODS,
    as_groups,
    check_num_groups,
    make_groups,
)


def _blobs(labels, centres, rng):
    """Points so close to the centre of their blob that k-means has one answer."""
    return np.asarray(centres, float)[:, None] + 0.01 * rng.standard_normal((len(labels), 1))


def test_class_kmeans_literal():
    # Class 0 at 0 and 10, class 1 at 0 and 10: the classes stay apart where the points do not.
    features = np.array([[0.0], [0.1], [10.0], [10.1], [0.0], [0.1], [10.0]])
    groups = make_groups(
        "class_kmeans", features=features, labels=[0, 0, 0, 0, 1, 1, 1], num_groups=4
    ).ids
    assert groups.shape == (7,)
    assert groups.dtype == np.int32
    parts = {frozenset(np.flatnonzero(groups == k).tolist()) for k in range(4)}
    assert parts == {frozenset(p) for p in ((0, 1), (2, 3), (4, 5), (6,))}
    assert set(groups[:4]) == {0, 1}


def test_kmeans_ignores_classes():
    features = np.array([[0.0], [0.1], [10.0], [10.1]])
    groups = make_groups("kmeans", features=features, labels=[0, 1, 0, 1], num_groups=2).ids
    assert groups.shape == (4,)
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_class_groups_are_the_classes_that_occur():
    groups = make_groups("class", features=np.zeros((4, 1)), labels=[7, 2, 7, 5], num_groups=99).ids
    np.testing.assert_array_equal(groups, [2, 0, 2, 1])


def test_point_groups_are_the_points():
    groups = make_groups("point", features=np.zeros((4, 1)), labels=[0, 0, 0, 1], num_groups=2).ids
    np.testing.assert_array_equal(groups, [0, 1, 2, 3])


def test_random_groups_have_equal_sizes_up_to_one_and_follow_the_seed():
    settings = {"features": np.zeros((23, 2)), "labels": np.zeros(23, int), "num_groups": 5}
    groups = make_groups("random", **settings, seed=1).ids
    assert groups.shape == (23,)
    np.testing.assert_array_equal(np.sort(np.bincount(groups)), [4, 4, 5, 5, 5])
    np.testing.assert_array_equal(groups, make_groups("random", **settings, seed=1).ids)
    assert not np.array_equal(groups, make_groups("random", **settings, seed=2).ids)


def test_images_are_flattened():
    images = np.zeros((6, 2, 2, 1))
    images[3:] = 1
    groups = make_groups("kmeans", features=images, labels=np.zeros(6, int), num_groups=2).ids
    assert groups.shape == (6,)
    assert len(set(groups[:3])) == len(set(groups[3:])) == 1
    assert groups[0] != groups[5]


@pytest.mark.parametrize("num_groups", [3, 4, 7, 11])
def test_class_kmeans_is_pure_and_shares_out_evenly_larger_classes_first(num_groups, rng):
    labels = rng.permutation(np.repeat([4, 1, 8], [30, 10, 20]))
    features = rng.standard_normal((60, 3))
    groups = make_groups(
        "class_kmeans", features=features, labels=labels, num_groups=num_groups
    ).ids
    assert groups.shape == (60,)
    assert set(groups) == set(range(num_groups))
    classes = [set(labels[groups == k]) for k in range(num_groups)]
    assert all(len(c) == 1 for c in classes)
    counts = {label: sum(c == {label} for c in classes) for label in (4, 8, 1)}
    base, extra = divmod(num_groups, 3)
    assert list(counts.values()) == [base + (place < extra) for place in range(3)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fills_its_groups_and_repeats(method, rng):
    labels = np.repeat(np.arange(4), 10)
    settings = {"features": rng.standard_normal((40, 5)), "labels": labels, "num_groups": 8}
    groups = make_groups(method, **settings).ids
    assert groups.shape == (40,)
    assert groups.dtype == np.int32
    count = {"class": 4, "point": 40}.get(method, 8)
    np.testing.assert_array_equal(np.unique(groups), np.arange(count))
    np.testing.assert_array_equal(groups, make_groups(method, **settings).ids)


@pytest.mark.parametrize(
    ("method", "num_groups", "message"),
    [
        ("spectral", 2, "method='spectral'; choose one of class_kmeans"),
        ("kmeans", 0, r"num_groups=0; it must be a whole number, in 2..6"),
        ("kmeans", 2.5, r"num_groups=2.5; it must be a whole number"),
        ("random", 7, r"num_groups=7; it must be a whole number, in 2..6"),
        ("class_kmeans", 7, r"num_groups=7; it must be a whole number, in 2..6"),
        ("class_kmeans", 1, r"num_groups=1; it must be a whole number, in 2..6"),
        ("class_kmeans", 6, "asks for 3 groups of class 1, which has 1 points"),
    ],
)
def test_impossible_requests_are_named(method, num_groups, message):
    labels = np.array([0, 0, 0, 0, 0, 1])
    with pytest.raises(ValueError, match=message):
        make_groups(method, features=np.arange(6.0)[:, None], labels=labels, num_groups=num_groups)
    if method in METHODS:
        with pytest.raises(ValueError, match=message):
            check_num_groups(method, labels, num_groups)


def test_every_class_needs_a_group_of_its_own():
    message = "num_groups=2; class_kmeans needs at least one for each of the 3"
    with pytest.raises(ValueError, match=message):
        check_num_groups("class_kmeans", np.array([0, 1, 2]), 2)


@pytest.mark.parametrize("method", METHODS)
def test_possible_requests_pass_the_check(method):
    check_num_groups(method, np.array([0, 0, 0, 1, 1, 1]), 6)


@pytest.mark.parametrize(("method", "asked"), [("kmeans", 8), ("class_kmeans", 4)])
def test_duplicated_rows_are_named(method, asked):
    """Three different rows, ten times each: no more groups than that, and no warning."""
    features = np.repeat(np.array([[0.0, 1.0], [1.0, 0.0], [5.0, 5.0]]), 10, 0)
    labels = np.arange(30) % 2
    message = f"finds 3 different groups among .* duplicated rows, and {asked} are asked for; lower"
    with pytest.raises(ValueError, match=message):
        make_groups(method, features=features, labels=labels, num_groups=8)
    few = 3 if method == "kmeans" else 6
    groups = make_groups(method, features=features, labels=labels, num_groups=few)
    assert (groups.sizes() == 30 // few).all()


def test_groups_are_counted_once_and_int32():
    groups = as_groups([1, 0, 1], 3, names=("web", "books"))
    assert groups.ids.dtype == np.int32
    assert groups.count == 2
    assert groups.names == ("web", "books")
    np.testing.assert_array_equal(groups.ids, [1, 0, 1])
    np.testing.assert_array_equal(groups.sizes(), [1, 2])
    assert as_groups(groups, 3) is groups


@pytest.mark.parametrize(
    ("groups", "count", "message"),
    [
        ([0, 1], None, r"groups have shape \(2,\); they must be \(3,\)"),
        ([[0, 1, 2]], None, r"groups have shape \(1, 3\)"),
        ([0.0, 1.0, 2.0], None, r"groups are float64; they must be integers 0..K-1, as np.unique"),
        (np.array([1j, 1j, 1j]), None, "groups are complex128; they must be integers"),
        ([0, -2, 1], None, r"group -2 is negative; .* 0..K-1, and -1 for the background"),
        ([-1, -1, -1], None, "all points are background"),
        ([-1, 0, 0], None, "there is one group"),
        ([-1, 0, 2], None, "group 1 is empty"),
        ([0, 3, 0], None, "4 groups of 3 points; number the groups without gaps"),
        ([0, 2, 0], None, r"group 1 is empty \(1 of 3 groups are\)"),
        ([1, 2, 1], None, r"group 0 is empty \(1 of 3 groups are\)"),
        ([0, 1, 0], 3, r"group 2 is empty \(1 of 3 groups are\)"),
        ([0, 1, 2], 2, "group 2 is out of range; 2 groups are 0..1"),
        ([0, 0, 0], None, "there is one group; at least 2 are needed"),
    ],
)
def test_bad_groups_are_named(groups, count, message):
    with pytest.raises(ValueError, match=message):
        as_groups(np.array(groups), 3, count=count)


def test_the_background_is_in_no_group():
    groups = as_groups([1, -1, 0, 1, -1])
    assert groups.count == 2
    assert groups.ids.tolist() == [1, -1, 0, 1, -1]
    np.testing.assert_array_equal(groups.sizes(), [1, 2])
    assert groups.background
    assert not as_groups([1, 0]).background
    assert as_groups([1, -1, 0], names=("web", "books")).names == ("web", "books")


def test_no_points_are_refused():
    with pytest.raises(ValueError, match="no points"):
        as_groups(np.zeros(0, int), 0)


def test_groups_of_other_points_or_with_other_names_are_refused():
    with pytest.raises(ValueError, match="groups are of 3 points, and there are 4"):
        as_groups(as_groups([0, 1, 0]), 4)
    with pytest.raises(ValueError, match="give 2 different ones"):
        as_groups([0, 1, 0], names=("web",))


def test_the_number_of_groups_is_static_and_the_ids_are_not():
    groups = as_groups([1, 0, 2, 1])
    sizes = jax.jit(lambda some: jax.ops.segment_sum(jnp.ones(4), some.ids, some.count))(groups)
    np.testing.assert_array_equal(sizes, groups.sizes())
    assert len(jax.tree.leaves(groups)) == 1
    assert jax.tree.map(lambda leaf: leaf, groups).count == 3


@pytest.mark.parametrize("method", METHODS)
def test_one_point_is_one_group_and_refused(method):
    """0.8 fitted it, and failed at the score."""
    with pytest.raises(ValueError, match=r"one group|num_groups=1"):
        make_groups(method, features=np.zeros((1, 2)), labels=[0], num_groups=1)


def test_groups_may_be_names():
    groups = as_groups(["bob", "alice", "bob", "carol"])
    np.testing.assert_array_equal(groups.ids, [1, 0, 1, 2])
    assert groups.names == ("alice", "bob", "carol")
    assert all(type(name) is str for name in as_groups([0, 1], names=np.array(["a", "b"])).names)


def test_one_hot_labels_are_named():
    with pytest.raises(ValueError, match=r"labels have shape \(4, 2\); .* y\.argmax\(1\)"):
        make_groups(
            "class", features=np.zeros((4, 1)), labels=np.eye(2)[[0, 1, 0, 1]], num_groups=2
        )


@pytest.mark.parametrize("names", [("a", "a"), "ab", ("a", "b", "c")])
def test_names_are_one_for_each_group(names):
    with pytest.raises(ValueError, match=r"names=.*; give 2 different ones, one for each group"):
        as_groups([0, 1, 0], names=names)


@pytest.mark.parametrize("nobody", [-1, None])
def test_names_and_a_background(nobody):
    groups = as_groups(["bob", nobody, "alice", "bob"])
    np.testing.assert_array_equal(groups.ids, [1, -1, 0, 1])
    assert groups.names == ("alice", "bob")
    assert groups.background
    import pandas as pd

    other = as_groups(pd.Series(["bob", nobody, "alice", "bob"]))
    np.testing.assert_array_equal(other.ids, groups.ids)


def test_labels_are_needed_where_classes_are():
    features = np.random.default_rng(0).normal(size=(20, 2))
    for method in ("kmeans", "random"):
        assert make_groups(method, features=features, num_groups=3).count == 3
    with pytest.raises(ValueError, match=r"method='class_kmeans' needs labels= \[N\]"):
        make_groups("class_kmeans", features=features, num_groups=3)
