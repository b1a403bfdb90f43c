"""Comparing networks by their profiles, and items with training points."""

import numpy as np
import pytest

from ddm_jax import metrics


def test_a_matrix_is_like_itself_and_unlike_its_negative(rng):
    scores = rng.standard_normal((8, 30))
    same = metrics.compare_profiles(scores, scores, 3)
    np.testing.assert_allclose(same, (1, 1, 1, 3 / 8))
    turned = metrics.compare_profiles(scores, -scores, 3)
    assert turned.per_query == pytest.approx(-1)
    assert turned.profile == pytest.approx(1)
    assert turned.top == 0
    other = metrics.compare_profiles(scores, rng.standard_normal((8, 30)), 3)
    assert abs(other.per_query) < 0.3
    assert abs(other.top - other.chance) < 0.15


def test_a_profile_is_relative():
    scores = np.array([[1.0, -3.0], [2.0, 2.0]])
    np.testing.assert_allclose(metrics.profile(scores), [0.5, 0.5])
    np.testing.assert_allclose(metrics.profile(10 * scores[:, :1]), [1 / 3, 2 / 3])


def test_what_is_refused(rng):
    with pytest.raises(ValueError, match=r"both must be \[K, Q\]"):
        metrics.compare_profiles(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"k=4; it must be a whole number, in 1\.\.3"):
        metrics.compare_profiles(np.zeros((3, 2)), np.zeros((3, 2)), 4)
    with pytest.raises(ValueError, match=r"inputs of one shape, \[I, \.\.\.\]"):
        metrics.nearest_training_points(np.zeros((2, 3)), np.zeros((5, 4)))


def test_copies_are_found():
    data = np.arange(10.0)[:, None] * np.ones(4)  # neighbours are 1 apart in each feature
    items = np.stack([data[3], data[6] + 0.3, data[9] + 2])
    found = metrics.nearest_training_points(items, data)
    assert found.nearest.tolist() == [3, 6, 9]
    np.testing.assert_allclose(found.distance, [0, 0.3, 2], atol=1e-9)
    assert found.typical == pytest.approx(1)
    assert found.copies == pytest.approx(1 / 3)


def test_likeness_by_hand():
    """One query with the same order, one with the reverse; the profiles are each other's mirror."""
    first = np.array([[1.0, 0.1], [2.0, 0.2], [3.0, 0.3]])
    second = np.array([[0.1, 3.0], [0.2, 2.0], [0.3, 1.0]])
    found = metrics.compare_profiles(first, second, 1)
    np.testing.assert_allclose(found, (0, -1, 0.5, 1 / 3), atol=1e-12)
    assert metrics.compare_profiles(first, second, 2).top == pytest.approx((1 + 1 / 2) / 2)
    assert metrics.compare_profiles(first, second, 3).top == 1


def test_a_profile_of_equal_parts_has_no_order():
    found = metrics.compare_profiles(np.array([[1.0], [-1.0]]), np.array([[2.0], [1.0]]), 1)
    assert np.isnan(found.profile)
    assert found.top == 1


def test_items_may_be_images(rng):
    data = rng.standard_normal((20, 3, 3, 1))
    chosen = np.array([4, 9, 0, 17])
    found = metrics.nearest_training_points(data[chosen], data)
    assert found.nearest.tolist() == [4, 9, 0, 17]
    np.testing.assert_allclose(found.distance, 0, atol=1e-6)
    assert found.copies == 1
    between = metrics.nearest_training_points(data[chosen] + 3, data)
    assert between.copies == 0
    assert between.typical == found.typical


@pytest.mark.parametrize("k", [0, -1, 3])
def test_k_is_among_the_groups(k):
    with pytest.raises(ValueError, match=rf"k={k}; it must be a whole number, in 1\.\.2"):
        metrics.compare_profiles(np.eye(2), np.eye(2), k)


def test_shapes_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match=r"both must be \[K, Q\]"):
        metrics.compare_profiles(np.ones(3), np.ones(3))
    for items, data in (((2, 1, 3), (5, 3)), ((0, 3), (5, 3)), ((3,), (3,))):
        with pytest.raises(ValueError, match="inputs of one shape"):
            metrics.nearest_training_points(np.zeros(items), np.zeros(data))
    with pytest.raises(ValueError, match="1 training points; at least 2"):
        metrics.nearest_training_points(np.zeros((2, 3)), np.zeros((1, 3)))


def test_members_are_told_by_their_distance(rng):
    members, others = rng.standard_normal((40, 3)), rng.standard_normal((30, 3))
    copies = members.copy()
    assert metrics.membership_by_distance(copies, members, others) == 1
    assert metrics.membership_by_distance(copies, others, members) == 0
    far = 1000 + rng.standard_normal((40, 3))
    assert 0.3 < metrics.membership_by_distance(far, members, others) < 0.7
    with pytest.raises(ValueError, match="inputs of one shape"):
        metrics.membership_by_distance(copies, members, others[:, :2])
    with pytest.raises(ValueError, match="none empty"):
        metrics.membership_by_distance(copies, members[:0], others)
