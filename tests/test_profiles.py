"""Comparing networks by their profiles, and items with training points."""

import numpy as np
import pytest

import ddm_jax as ddm


def test_a_matrix_is_like_itself_and_unlike_its_negative(rng):
    scores = rng.standard_normal((8, 30))
    same = ddm.compare_profiles(scores, scores, 3)
    np.testing.assert_allclose(same, (1, 1, 1, 3 / 8))
    turned = ddm.compare_profiles(scores, -scores, 3)
    assert turned.per_query == pytest.approx(-1)
    assert turned.profile == pytest.approx(1)
    assert turned.top == 0
    other = ddm.compare_profiles(scores, rng.standard_normal((8, 30)), 3)
    assert abs(other.per_query) < 0.3
    assert abs(other.top - other.chance) < 0.15


def test_a_profile_is_relative():
    scores = np.array([[1.0, -3.0], [2.0, 2.0]])
    np.testing.assert_allclose(ddm.profile(scores), [0.5, 0.5])
    np.testing.assert_allclose(ddm.profile(10 * scores[:, :1]), [1 / 3, 2 / 3])


def test_what_is_refused(rng):
    with pytest.raises(ValueError, match=r"both must be \[K, Q\]"):
        ddm.compare_profiles(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"k=4; it must be in 1\.\.3"):
        ddm.compare_profiles(np.zeros((3, 2)), np.zeros((3, 2)), 4)
    with pytest.raises(ValueError, match=r"they must be \[K, M, \.\.\.\]"):
        ddm.nearest_training_points(np.zeros((2, 1, 3)), np.zeros((5, 4)))


def test_copies_are_found():
    data = np.arange(10.0)[:, None] * np.ones(4)  # neighbours are 1 apart in each feature
    items = np.stack([data[[3]], data[[6]] + 0.3, data[[9]] + 2])
    found = ddm.nearest_training_points(items, data)
    assert found.nearest.tolist() == [3, 6, 9]
    np.testing.assert_allclose(found.distance, [0, 0.3, 2], atol=1e-9)
    assert found.typical == pytest.approx(1)
    assert found.copies == pytest.approx(1 / 3)
