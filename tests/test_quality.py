"""Rankings of training points: labels, and points beside the others of their class."""

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from ddm_jax import metrics, values
from ddm_jax.types import Batch
from ddm_jax.values import kernel, labels
from ddm_jax.values.kernel import wide_network_kernel

KEY = jax.random.key(0)


def batch(x, classes) -> Batch:
    x, classes = np.asarray(x), np.asarray(classes)
    return Batch(x, np.eye(max(classes.max() + 1, 2), dtype=np.float32)[classes])


@pytest.fixture
def bad(planted):
    return np.asarray(planted.groups.ids) == 10


@pytest.fixture
def asked(planted):
    """`asked("novelty", data)`: the values of a method that asks no network."""

    def ask(name: str, data: Batch = planted.data, **settings) -> np.ndarray:
        return getattr(values, name)(planted.task, **settings)(KEY, None, data)

    return ask


def label_quality(planted, key=0):
    ask = values.label_quality(planted.task, planted.train)
    return ask(jax.random.key(key), planted.run, planted.data)


@pytest.mark.slow
def test_wrong_labels_come_last(planted, bad):
    found = label_quality(planted)
    assert found.shape == (150,)
    assert metrics.detection(-found, bad).auc > 0.93
    np.testing.assert_array_equal(found, label_quality(planted))
    other = label_quality(planted, 1)  # other flips, another network, and much the same order
    assert (found != other).any()
    assert spearmanr(found, other).statistic > 0.9


@pytest.mark.slow
def test_signs_have_unit_deviation(planted, bad, asked):
    signs = labels.label_signs(planted.task, planted.run, planted.data)
    assert signs.shape == (150, 2)
    np.testing.assert_allclose(signs.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(signs.std(0), 1, rtol=1e-6)
    losses = np.asarray(planted.task.loss(planted.run.params, planted.data))
    np.testing.assert_array_equal(np.argsort(signs[:, 0]), np.argsort(-losses))
    margins = asked("kernel_margins")
    np.testing.assert_array_equal(np.argsort(signs[:, 1]), np.argsort(margins))
    assert (signs[bad].mean(0) < -1).all()


@pytest.mark.slow
def test_a_sign_that_says_nothing_has_no_weight(planted, bad, monkeypatch, rng):
    """What is learnt from the planted labels follows the sign that finds them."""
    real = labels.label_signs

    def noise_and_signs(task, run, data):
        signs = real(task, run, data)
        return np.concatenate([rng.standard_normal((150, 2)), signs[:, 1:]], 1)

    monkeypatch.setattr(labels, "label_signs", noise_and_signs)
    assert metrics.detection(-label_quality(planted), bad).auc > 0.9


@pytest.mark.slow
def test_kernel_margins_are_those_of_regression_without_the_point_and_the_suspects(rng, asked):
    """Against ridge regression that is fitted anew for each point, on what is not left out."""
    x = rng.standard_normal((30, 4)) + 4 * np.repeat(np.eye(3, 4), 10, 0)
    given = np.repeat(np.arange(3), 10)
    wrong = [3, 14]
    given[wrong] = [1, 2]
    y = np.eye(3)[given]
    gram_of_all = np.asarray(wide_network_kernel(x), np.float64)
    every = np.arange(30)

    def fitted_anew(trained):
        margins = []
        for point in every:
            others = trained[trained != point]
            share = y[trained].mean(0)
            gram = gram_of_all[np.ix_(others, others)] + 0.5 * kernel.DAMPING * np.eye(len(others))
            outputs = share + gram_of_all[point, others] @ np.linalg.solve(gram, y[others] - share)
            margins.append(outputs[given[point]] - np.delete(outputs, given[point]).max())
        return np.array(margins)

    expected = fitted_anew(every)
    for _ in range(kernel.ROUNDS):
        most = np.sort(expected)[int(kernel.LEFT_OUT * 30)]
        expected = fitted_anew(np.flatnonzero(expected >= min(most, 0)))
    np.testing.assert_allclose(asked("kernel_margins", Batch(x, y)), expected, atol=2e-3)
    assert set(np.argsort(expected)[:2]) == set(wrong)


def test_kernel_margins_in_blocks(planted, asked, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 75)
    halves = asked("kernel_margins")
    even = asked("kernel_margins", Batch(planted.data.x[::2], planted.data.y[::2]))
    np.testing.assert_allclose(halves[::2], even, atol=1e-5)


def test_odd_and_new_points(asked):
    x = np.array([[0.0], [1.0], [1.0], [2.0], [9.0], [1.0], [5.0]])
    data = batch(x, [0, 0, 0, 0, 0, 1, 1])
    # Point 5 equals points 1 and 2, but has another label.
    np.testing.assert_allclose(asked("novelty", data), [1, 0, 0, 1, 7, 4, 4])
    typical = asked("typicality", data, neighbours=2)
    # Mean distances 1 .5 .5 1 7.5, and 4 4: logs above the class's median, by the median of all.
    assert (typical[[1, 2, 5, 6]] == 0).all()
    assert typical[0] == typical[3] == 0
    assert typical[4] == min(typical) < 0
    alone = batch(x, np.arange(7))
    assert (asked("novelty", alone) == np.inf).all()
    assert (asked("typicality", alone) == -np.inf).all()


def test_use_is_the_mean_over_queries():
    points = np.array([[1.0, -3.0], [2.0, 2.0]])
    np.testing.assert_allclose(values.usefulness(points), [-1, 2])
    np.testing.assert_allclose(values.usefulness(points, lower_is_better=True), [1, -2])


def test_what_is_refused(asked, planted):
    with pytest.raises(ValueError, match=r"3 points with targets of shape \(4, 2\)"):
        asked("novelty", Batch(np.zeros((3, 2)), np.eye(2)[[0, 1, 0, 1]]))
    with pytest.raises(ValueError, match="1 points hold NaN or infinity, the first is 2"):
        asked("typicality", batch(np.array([[0.0], [1.0], [np.nan]]), [0, 0, 1]))
    with pytest.raises(ValueError, match="at least two classes"):
        asked("kernel_margins", Batch(np.zeros((12, 2)), np.ones((12, 1))))
    with pytest.raises(ValueError, match=r"9 points .* at least 10 are needed"):
        asked("kernel_margins", batch(np.zeros((9, 2)), np.arange(9)))
    with pytest.raises(ValueError, match=r"12 points with targets of shape \(12,\)"):
        asked("kernel_margins", Batch(np.zeros((12, 2)), np.zeros(12)))
    with pytest.raises(ValueError, match="hold NaN or infinity, the first is 0"):
        asked("kernel_margins", batch(np.full((12, 2), np.nan), np.arange(12)))
    few = Batch(planted.data.x[:9], planted.data.y[:9])
    with pytest.raises(ValueError, match="9 examples; it needs at least 10"):
        values.label_quality(planted.task, planted.train)(KEY, planted.run, few)


def test_duplicates_are_at_no_distance(planted, asked):
    data = planted.data
    twice = Batch(np.r_[data.x, data.x[:20]], np.r_[data.y, data.y[:20]])
    found = asked("novelty", twice)
    np.testing.assert_allclose(found[:20], 0, atol=1e-5)
    np.testing.assert_allclose(found[150:], 0, atol=1e-5)
    assert found[20:150].min() > 0.1
    assert (asked("novelty") > 0.1).all()


def test_noise_is_far_from_its_class(planted, asked, rng):
    x = np.array(planted.data.x)
    noisy = rng.permutation(150)[:8]
    x[noisy] += 2 * rng.standard_normal(x[noisy].shape)
    found = asked("typicality", planted.data._replace(x=x))
    assert set(np.argsort(found)[:8]) == set(noisy)


def test_a_small_class_has_fewer_neighbours(asked):
    data = batch(np.array([[0.0], [1.0], [3.0]]), [0, 0, 0])
    # Distances 1 3, 1 2 and 2 3; a third neighbour is the furthest again.
    for neighbours, means in ((2, [2, 1.5, 2.5]), (3, [7 / 3, 5 / 3, 8 / 3])):
        logs = np.log(means)
        away = logs - np.median(logs)
        expected = -np.maximum(away / np.median(np.abs(away)), 0)
        found = asked("typicality", data, neighbours=neighbours)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_blur_is_odd_though_it_is_near_its_class(planted, asked, rng):
    x = np.array(planted.data.x)
    blurred = rng.permutation(150)[:8]
    x[blurred] = gaussian_filter(x[blurred], (0, 1, 1, 0))
    found = asked("typicality", planted.data._replace(x=x))
    assert set(np.argsort(found)[:8]) == set(blurred)
    as_vectors = asked("typicality", planted.data._replace(x=x.reshape(150, -1)))
    assert len(set(np.argsort(as_vectors)[:8]) & set(blurred)) <= 2
