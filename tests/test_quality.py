"""Rankings of training points."""

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

import ddm_jax as ddm
from ddm_jax import quality
from ddm_jax.estimators.complexity_gap import wide_network_kernel


def suspicion(planted, key=0):
    return quality.mislabelled(
        planted.task, planted.train, planted.run, planted.data, jax.random.key(key)
    )


def test_wrong_labels_come_first(planted):
    found = suspicion(planted)
    assert found.shape == (150,)
    bad = planted.groups == 10
    assert ddm.metrics.detection(found, bad).auc > 0.93
    np.testing.assert_array_equal(found, suspicion(planted))
    other = suspicion(planted, 1)  # other flips, another network, and much the same order
    assert (found != other).any()
    assert spearmanr(found, other).statistic > 0.9


def test_signs_have_unit_deviation(planted):
    signs = quality.label_signs(planted.task, planted.run, planted.data)
    assert signs.shape == (150, 2)
    np.testing.assert_allclose(signs.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(signs.std(0), 1, rtol=1e-6)
    losses = np.asarray(planted.task.loss(planted.run.params, planted.data))
    np.testing.assert_array_equal(np.argsort(signs[:, 0]), np.argsort(losses))
    margins = quality.kernel_margins(planted.data.x, planted.data.y)
    np.testing.assert_array_equal(np.argsort(signs[:, 1]), np.argsort(-margins))
    bad = planted.groups == 10
    assert (signs[bad].mean(0) > 1).all()


def test_a_sign_that_says_nothing_has_no_weight(planted, monkeypatch, rng):
    """What is learnt from the planted labels follows the sign that finds them."""
    real = quality.label_signs

    def noise_and_signs(task, run, data):
        signs = real(task, run, data)
        return np.concatenate([rng.standard_normal((150, 2)), signs[:, 1:]], 1)

    monkeypatch.setattr(quality, "label_signs", noise_and_signs)
    found = suspicion(planted)
    assert ddm.metrics.detection(found, planted.groups == 10).auc > 0.9


def test_kernel_margins_are_those_of_regression_without_the_point_and_the_suspects(rng):
    """Against ridge regression that is fitted anew for each point, on what is not left out."""
    x = rng.standard_normal((30, 4)) + 4 * np.repeat(np.eye(3, 4), 10, 0)
    labels = np.repeat(np.arange(3), 10)
    wrong = [3, 14]
    labels[wrong] = [1, 2]
    y = np.eye(3)[labels]
    kernel = np.asarray(wide_network_kernel(x), np.float64)
    every = np.arange(30)

    def fitted_anew(trained):
        margins = []
        for point in every:
            others = trained[trained != point]
            share = y[trained].mean(0)
            gram = kernel[np.ix_(others, others)] + 0.5 * quality.DAMPING * np.eye(len(others))
            outputs = share + kernel[point, others] @ np.linalg.solve(gram, y[others] - share)
            margins.append(outputs[labels[point]] - np.delete(outputs, labels[point]).max())
        return np.array(margins)

    expected = fitted_anew(every)
    for _ in range(quality.ROUNDS):
        most = np.sort(expected)[int(quality.LEFT_OUT * 30)]
        expected = fitted_anew(np.flatnonzero(expected >= min(most, 0)))
    np.testing.assert_allclose(quality.kernel_margins(x, y), expected, atol=2e-3)
    assert set(np.argsort(expected)[:2]) == set(wrong)


def test_kernel_margins_in_blocks(planted, monkeypatch):
    monkeypatch.setattr(quality, "BLOCK", 75)
    halves = quality.kernel_margins(planted.data.x, planted.data.y)
    even = quality.kernel_margins(planted.data.x[::2], planted.data.y[::2])
    np.testing.assert_allclose(halves[::2], even, atol=1e-5)


def test_odd_and_redundant_points():
    x = np.array([[0.0], [1.0], [1.0], [2.0], [9.0], [1.0], [5.0]])
    labels = np.array([0, 0, 0, 0, 0, 1, 1])
    same = quality.redundant(x, labels)
    # Point 5 equals points 1 and 2, but has another label.
    np.testing.assert_allclose(same, [-1, 0, 0, -1, -7, -4, -4])
    odd = quality.low_quality(x, labels, 2)
    # Mean distances 1 .5 .5 1 7.5, and 4 4: logs above the class's median, by the median of all.
    assert (odd[[1, 2, 5, 6]] == 0).all()
    assert odd[0] == odd[3] == 0
    assert odd[4] == max(odd)
    assert np.isinf(quality.redundant(x, np.arange(7))).all()
    assert np.isinf(quality.low_quality(x, np.arange(7))).all()


def test_harm_is_the_mean_over_queries():
    points = np.array([[1.0, -3.0], [2.0, 2.0]])
    np.testing.assert_allclose(quality.harmful(points), [1, -2])
    np.testing.assert_allclose(quality.harmful(points, lower_is_better=True), [-1, 2])


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"they must be \[N, \.\.\.\] and \[N\]"):
        quality.redundant(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="neighbours=0"):
        quality.low_quality(np.zeros((3, 2)), np.zeros(3), 0)
    with pytest.raises(ValueError, match="1 features hold NaN or infinity, the first is 2"):
        quality.low_quality(np.array([[0.0], [1.0], [np.nan]]), np.zeros(3))
    one = ddm.Batch(np.zeros((12, 2)), np.ones((12, 1)))
    with pytest.raises(ValueError, match="at least two classes"):
        quality.mislabelled(None, None, None, one, jax.random.key(0))
    few = ddm.Batch(np.zeros((9, 2)), np.eye(9))
    with pytest.raises(ValueError, match="at least 10 points"):
        quality.mislabelled(None, None, None, few, jax.random.key(0))
    with pytest.raises(ValueError, match=r"12 points with targets of shape \(12,\)"):
        quality.kernel_margins(one.x, np.zeros(12))
    with pytest.raises(ValueError, match="hold NaN or infinity, the first is 0"):
        quality.kernel_margins(one.x * np.nan, np.eye(12))


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
    for neighbours, means in ((2, [2, 1.5, 2.5]), (3, [7 / 3, 5 / 3, 8 / 3])):
        logs = np.log(means)
        away = logs - np.median(logs)
        expected = np.maximum(away / np.median(np.abs(away)), 0)
        found = quality.low_quality(x, labels, neighbours)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_blur_is_odd_though_it_is_near_its_class(planted, rng):
    x, labels = np.array(planted.data.x), np.asarray(planted.data.y).argmax(1)
    blurred = rng.permutation(150)[:8]
    x[blurred] = gaussian_filter(x[blurred], (0, 1, 1, 0))
    found = quality.low_quality(x, labels)
    assert set(np.argsort(-found)[:8]) == set(blurred)
    as_vectors = quality.low_quality(x.reshape(150, -1), labels)
    assert len(set(np.argsort(-as_vectors)[:8]) & set(blurred)) <= 2
