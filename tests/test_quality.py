"""Rankings of training points."""

import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax import quality


def test_wrong_labels_come_first(planted):
    found = quality.mislabelled(planted.task, planted.run, planted.data)
    assert found.shape == (150,)
    bad = planted.groups == 10
    assert ddm.metrics.detection(found, bad).auc > 0.95
    assert 0 < found.min() <= found.max() <= 1


def test_beyond_the_kernel_the_margin_is_left(planted, monkeypatch):
    monkeypatch.setattr(quality, "LARGEST", 10)
    found = quality.mislabelled(planted.task, planted.run, planted.data)
    margin = ddm.estimators.make_training_dynamics(planted.task, measure="margin")
    state = margin.fit(None, planted.run, planted.data, np.arange(150))
    np.testing.assert_array_equal(
        np.argsort(found, kind="stable"), np.argsort(-np.asarray(state.values), kind="stable")
    )


def test_odd_and_redundant_points():
    x = np.array([[0.0], [1.0], [1.0], [2.0], [9.0], [1.0], [5.0]])
    labels = np.array([0, 0, 0, 0, 0, 1, 1])
    same = quality.redundant(x, labels)
    # Point 5 equals points 1 and 2, but has another label.
    np.testing.assert_allclose(same, [-1, 0, 0, -1, -7, -4, -4])
    odd = quality.low_quality(x, labels, 2)
    np.testing.assert_allclose(odd, [1, 0.5, 0.5, 1, 7.5, 4, 4])
    assert np.isinf(quality.redundant(x, np.arange(7))).all()


def test_harm_is_the_mean_over_queries():
    points = np.array([[1.0, -3.0], [2.0, 2.0]])
    np.testing.assert_allclose(quality.harmful(points), [1, -2])
    np.testing.assert_allclose(quality.harmful(points, lower_is_better=True), [-1, 2])


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"they must be \[N, \.\.\.\] and \[N\]"):
        quality.redundant(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="neighbours=0"):
        quality.low_quality(np.zeros((3, 2)), np.zeros(3), 0)


def test_duplicates_are_at_no_distance(planted):
    x, labels = np.asarray(planted.data.x), np.asarray(planted.data.y).argmax(1)
    found = quality.redundant(np.r_[x, x[:20]], np.r_[labels, labels[:20]])
    np.testing.assert_allclose(found[:20], 0, atol=1e-5)
    np.testing.assert_allclose(found[150:], 0, atol=1e-5)
    assert found[20:150].max() < -0.1
    assert not (quality.redundant(x, labels) > -0.1).any()


def test_noise_is_far_from_its_class(planted, rng):
    x, labels = np.array(planted.data.x), np.asarray(planted.data.y).argmax(1)
    noisy = rng.permutation(150)[:8]
    x[noisy] += 2 * rng.standard_normal(x[noisy].shape)
    found = quality.low_quality(x, labels)
    assert set(np.argsort(-found)[:8]) == set(noisy)


def test_a_small_class_has_fewer_neighbours():
    x, labels = np.array([[0.0], [1.0], [3.0]]), np.zeros(3, int)
    # Distances 1 3, 1 2 and 2 3; a third neighbour is the furthest again.
    np.testing.assert_allclose(quality.low_quality(x, labels, 2), [2, 1.5, 2.5])
    np.testing.assert_allclose(quality.low_quality(x, labels, 3), [7 / 3, 5 / 3, 8 / 3])
