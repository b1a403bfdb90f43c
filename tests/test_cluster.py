"""Clustering: every method, its shares and its refusals."""

from __future__ import annotations

import numpy as np
import pytest

from ddm_jax.cluster import METHODS, check_groups, check_num_groups, make_groups


def _blobs(labels, centres, rng):
    """Points so close to the centre of their blob that k-means has one answer."""
    return np.asarray(centres, float)[:, None] + 0.01 * rng.standard_normal((len(labels), 1))


def test_class_kmeans_literal():
    # Class 0 at 0 and 10, class 1 at 0 and 10: the classes stay apart where the points do not.
    features = np.array([[0.0], [0.1], [10.0], [10.1], [0.0], [0.1], [10.0]])
    groups = make_groups(
        "class_kmeans", features=features, labels=[0, 0, 0, 0, 1, 1, 1], num_groups=4
    )
    assert groups.shape == (7,)
    assert groups.dtype == np.int32
    parts = {frozenset(np.flatnonzero(groups == k).tolist()) for k in range(4)}
    assert parts == {frozenset(p) for p in ((0, 1), (2, 3), (4, 5), (6,))}
    assert set(groups[:4]) == {0, 1}


def test_kmeans_ignores_classes():
    features = np.array([[0.0], [0.1], [10.0], [10.1]])
    groups = make_groups("kmeans", features=features, labels=[0, 1, 0, 1], num_groups=2)
    assert groups.shape == (4,)
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_class_groups_are_the_classes_that_occur():
    groups = make_groups("class", features=np.zeros((4, 1)), labels=[7, 2, 7, 5], num_groups=99)
    np.testing.assert_array_equal(groups, [2, 0, 2, 1])


def test_point_groups_are_the_points():
    groups = make_groups("point", features=np.zeros((4, 1)), labels=[0, 0, 0, 1], num_groups=2)
    np.testing.assert_array_equal(groups, [0, 1, 2, 3])


def test_random_groups_have_equal_sizes_up_to_one_and_follow_the_seed():
    settings = {"features": np.zeros((23, 2)), "labels": np.zeros(23, int), "num_groups": 5}
    groups = make_groups("random", **settings, seed=1)
    assert groups.shape == (23,)
    np.testing.assert_array_equal(np.sort(np.bincount(groups)), [4, 4, 5, 5, 5])
    np.testing.assert_array_equal(groups, make_groups("random", **settings, seed=1))
    assert not np.array_equal(groups, make_groups("random", **settings, seed=2))


def test_images_are_flattened():
    images = np.zeros((6, 2, 2, 1))
    images[3:] = 1
    groups = make_groups("kmeans", features=images, labels=np.zeros(6, int), num_groups=2)
    assert groups.shape == (6,)
    assert len(set(groups[:3])) == len(set(groups[3:])) == 1
    assert groups[0] != groups[5]


@pytest.mark.parametrize("num_groups", [3, 4, 7, 11])
def test_class_kmeans_is_pure_and_shares_out_evenly_larger_classes_first(num_groups, rng):
    labels = rng.permutation(np.repeat([4, 1, 8], [30, 10, 20]))
    features = rng.standard_normal((60, 3))
    groups = make_groups("class_kmeans", features=features, labels=labels, num_groups=num_groups)
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
    groups = make_groups(method, **settings)
    assert groups.shape == (40,)
    assert groups.dtype == np.int32
    count = {"class": 4, "point": 40}.get(method, 8)
    np.testing.assert_array_equal(np.unique(groups), np.arange(count))
    np.testing.assert_array_equal(groups, make_groups(method, **settings))


@pytest.mark.parametrize(
    ("method", "num_groups", "message"),
    [
        ("spectral", 2, "unknown clustering 'spectral'; choose one of class_kmeans"),
        ("kmeans", 0, r"num_groups=0; it must be in 1..6"),
        ("random", 7, r"num_groups=7; it must be in 1..6"),
        ("class_kmeans", 7, r"num_groups=7; it must be in 1..6"),
        ("class_kmeans", 1, "num_groups=1; class_kmeans needs at least one for each of the 2"),
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


@pytest.mark.parametrize("method", METHODS)
def test_possible_requests_pass_the_check(method):
    check_num_groups(method, np.array([0, 0, 0, 1, 1, 1]), 6)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("method", ["kmeans", "class_kmeans"])
def test_fewer_distinct_points_than_groups_leave_a_group_empty(method):
    with pytest.raises(ValueError, match="group 1 is empty"):
        make_groups(method, features=np.ones((5, 2)), labels=np.zeros(5, int), num_groups=3)


def test_check_groups_returns_int32():
    groups = check_groups([1, 0, 1], 3)
    assert groups.dtype == np.int32
    np.testing.assert_array_equal(groups, [1, 0, 1])


@pytest.mark.parametrize(
    ("groups", "num_groups", "message"),
    [
        ([0, 1], None, r"groups have shape \(2,\); 3 points need \(3,\)"),
        ([[0, 1, 2]], None, r"groups have shape \(1, 3\)"),
        ([0.0, 1.0, 2.0], None, "groups are float64; they must be integers"),
        ([0, -2, 1], None, "group -2 is negative"),
        ([0, 3, 0], None, r"group 1 is empty \(2 of 4 groups are\)"),
        ([1, 2, 1], None, r"group 0 is empty \(1 of 3 groups are\)"),
        ([0, 1, 0], 3, r"group 2 is empty \(1 of 3 groups are\)"),
    ],
)
def test_bad_groups_are_named(groups, num_groups, message):
    with pytest.raises(ValueError, match=message):
        check_groups(np.array(groups), 3, num_groups)


def test_more_groups_than_asked_for_are_refused():
    with pytest.raises(ValueError, match="group 2"):
        check_groups(np.array([0, 1, 2]), 3, 2)


def test_no_points_are_refused():
    with pytest.raises(ValueError, match="no points"):
        check_groups(np.zeros(0, int), 0)
