"""Baselines, by literal numbers, closed forms and brute force."""

from itertools import combinations, permutations
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

import ddm_jax as ddm
from ddm_jax import estimators
from ddm_jax.estimators.knn_shapley import values_in_order

KEY = jax.random.key(0)


def linear_task(inputs=3, classes=3):
    """Logits `x w`, so that gradients can be written down; the inputs are the features."""

    def apply(params, x):
        return x @ params["w"]

    loss, output = ddm.objectives.loss(apply), ddm.objectives.margin(apply)
    init = lambda key: {"w": jnp.zeros((inputs, classes))}  # noqa: E731
    return ddm.Task(init, loss, output, apply, features=lambda params, x: x)


def run_of(params):
    """A finished training of which only the network is looked at."""
    checkpoints = jax.tree.map(lambda leaf: leaf[None], params)
    return ddm.TrainRun(KEY, params, checkpoints, weight_decay=jnp.ones(()))


def batch(x, labels, classes=2):
    return ddm.Batch(jnp.asarray(x, jnp.float32), jnp.eye(classes)[jnp.asarray(labels)])


def scores_of(make, data, groups, query, run=None, task=None, **settings):
    """Of a network whose parameters are zero, where it does not matter."""
    if task is None:
        task = linear_task(data.x.shape[1], data.y.shape[1])
    estimator = make(task, **settings)
    state = estimator.fit(KEY, run or run_of(task.init(KEY)), data, np.asarray(groups))
    scores = np.asarray(estimator.score(state, query))
    assert scores.shape == (max(groups) + 1, len(query.x))
    return scores


def test_group_size_is_the_share_of_the_data():
    data = batch([[0.0]] * 5, [0, 1, 0, 1, 0])
    query = batch([[1.0], [2.0], [3.0]], [0, 1, 0])
    got = scores_of(estimators.make_group_size, data, [1, 0, 1, 2, 1], query)
    np.testing.assert_allclose(got, [[0.2] * 3, [0.6] * 3, [0.2] * 3], rtol=1e-6)


def test_class_fraction_counts_for_and_against():
    data = batch([[0.0]] * 5, [0, 1, 2, 2, 0], classes=3)
    query = batch([[1.0], [2.0], [3.0]], [0, 1, 2], classes=3)
    got = scores_of(estimators.make_class_fraction, data, [0, 0, 0, 1, 1], query)
    np.testing.assert_allclose(got, [[-0.2, -0.2, -0.2], [0.0, -0.4, 0.0]], atol=1e-7)


def test_density_support_is_a_kernel_with_sides():
    # The inputs have variance one, so that bandwidth 0.5 makes the kernel exp(-distance^2).
    data = batch([[0.0], [0.0], [2.0], [2.0]], [0, 0, 0, 1])
    query = batch([[0.0], [2.0], [1.0]], [0, 1, 0])
    make = estimators.make_density_support
    got = scores_of(make, data, [0, 1, 1, 2], query, bandwidth=0.5)
    far, half = np.exp(-4), np.exp(-1)
    want = [[1, -far, half], [1 + far, -1 - far, 2 * half], [-far, 1, -half]]
    np.testing.assert_allclose(got, np.array(want) / 4, rtol=1e-5)


@pytest.fixture(scope="module")
def linear():
    """A linear network of no particular merit on 12 points: 4 groups, 5 queries."""
    rng = np.random.default_rng(1)
    data = batch(rng.normal(size=(12, 3)), rng.permutation(np.arange(12) % 3), 3)
    query = batch(rng.normal(size=(5, 3)), [0, 1, 2, 1, 0], 3)
    run = run_of({"w": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)})
    return data, query, run, rng.permutation(np.arange(12) % 4)


def loss_gradients(w, data):
    """`x (p - y)^T` for each point: `[N, 9]`."""
    x, y = np.asarray(data.x, float), np.asarray(data.y, float)
    slope = softmax(x @ np.asarray(w, float), axis=1) - y
    return np.einsum("nf,nc->nfc", x, slope).reshape(len(x), -1)


def margin_gradients(w, data):
    """`x (y - p')^T`, p' the probabilities among the other classes."""
    x, y = np.asarray(data.x, float), np.asarray(data.y, float)
    others = softmax(np.where(y > 0, -np.inf, x @ np.asarray(w, float)), axis=1)
    return np.einsum("nf,nc->nfc", x, y - others).reshape(len(x), -1)


def by_group(values, groups):
    sums = np.zeros((max(groups) + 1, *values.shape[1:]))
    np.add.at(sums, groups, values)
    return sums


def test_grad_cos_is_the_cosine_of_explicit_gradients(linear):
    data, query, run, groups = linear
    got = scores_of(estimators.make_grad_cos, data, groups, query, run)
    of_points = loss_gradients(run.params["w"], data)
    of_queries = margin_gradients(run.params["w"], query)
    lengths = np.outer(np.linalg.norm(of_points, axis=1), np.linalg.norm(of_queries, axis=1))
    want = -by_group(of_points @ of_queries.T / lengths, groups) / 12
    assert got.shape == want.shape == (4, 5)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_representation_is_a_cosine_with_sides():
    data = batch([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [3.0, 4.0, 0.0]], [0, 0, 1], 3)
    query = batch([[5.0, 0.0, 0.0], [0.0, -1.0, 0.0]], [0, 1], 3)
    got = scores_of(estimators.make_representation, data, [0, 1, 1], query)
    np.testing.assert_allclose(got, np.array([[1, 0], [-0.6, 1 - 0.8]]) / 3, atol=1e-6)


def test_representer_splits_the_logit_of_the_refitted_layer(linear):
    data, query, run, groups = linear
    l2 = 0.05
    make = estimators.make_representer
    got = scores_of(make, data, groups, query, run, l2=l2, steps=100)

    def with_bias(x):
        return np.column_stack([np.asarray(x, float), np.ones(len(x))])

    x, y = with_bias(data.x), np.asarray(data.y, float)

    def objective(flat):
        w = flat.reshape(4, 3)
        losses = -(log_softmax(x @ w, axis=1) * y).sum(1)
        slope = x.T @ (softmax(x @ w, axis=1) - y) / 12 + 2 * l2 * w
        return losses.mean() + l2 * (w**2).sum(), slope.ravel()

    w = minimize(objective, np.zeros(12), jac=True, tol=1e-12).x.reshape(4, 3)
    alpha = (y - softmax(x @ w, axis=1)) / (2 * l2 * 12)
    logits = (with_bias(query.x) @ w)[np.arange(5), np.asarray(query.y).argmax(1)]
    near = x @ with_bias(query.x).T
    want = by_group(near * (alpha @ np.asarray(query.y).T), groups)
    assert got.shape == want.shape == (4, 5)
    assert np.abs(logits).min() > 0.05
    np.testing.assert_allclose(got.sum(0), logits, atol=1e-4)
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("name", ["representation", "representer"])
def test_what_needs_features_says_so(name):
    with pytest.raises(ValueError, match=r"needs task\.features"):
        estimators.ESTIMATORS[name](linear_task()._replace(features=None))


@pytest.mark.slow
@pytest.mark.parametrize("neighbours", [1, 2, 3, 8])
def test_knn_shapley_is_the_value_over_all_subsets(neighbours, rng):
    data = batch(rng.normal(size=(6, 2)), [0, 1, 0, 1, 1, 0])
    query = batch(rng.normal(size=(3, 2)), [0, 1, 1])
    make = estimators.make_knn_shapley
    points = scores_of(make, data, range(6), query, neighbours=neighbours)
    groups = np.array([0, 1, 1, 0, 2, 2])
    sums = scores_of(make, data, groups, query, neighbours=neighbours)

    def worth(subset, q):
        away = [np.sum((data.x[i] - query.x[q]) ** 2) for i in subset]
        nearest = [subset[i] for i in np.argsort(away)[:neighbours]]
        return sum(float(data.y[i] @ query.y[q]) for i in nearest) / neighbours

    want = np.zeros((6, 3))
    for q in range(3):
        known = {s: worth(s, q) for n in range(7) for s in combinations(range(6), n)}
        for s, value in known.items():
            for i in set(range(6)) - set(s):
                gain = known[tuple(sorted((*s, i)))] - value
                want[i, q] += gain / (6 * comb(5, len(s)))
    assert points.shape == want.shape
    assert np.ptp(want) > 0.1
    # Every estimator's scores are in units of 1/N.
    np.testing.assert_allclose(points, want / 6, atol=1e-6)
    np.testing.assert_allclose(sums, by_group(want, groups) / 6, atol=1e-6)


def test_knn_shapley_looks_at_features(linear):
    data, query, run, groups = linear
    task = linear_task()._replace(features=lambda params, x: x[:, :1] * params["w"][0, 0])
    make = estimators.make_knn_shapley
    got = scores_of(make, data, groups, query, run, task, neighbours=2)
    thin = ddm.Batch(data.x[:, :1], data.y), ddm.Batch(query.x[:, :1], query.y)
    want = scores_of(make, thin[0], groups, thin[1], neighbours=2)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.ptp(got - scores_of(make, data, groups, query, run, neighbours=2)) > 0


@pytest.mark.parametrize("neighbours", [1, 3, 7])
def test_knn_shapley_of_ties_is_the_mean_over_their_orders(neighbours):
    """Three points in one place with labels that differ, two in another, and one alone."""
    away = np.array([1.0, 1.0, 1.0, 4.0, 9.0, 9.0], np.float32)
    same = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 1.0], np.float32)

    def ordered(same):
        values, rank = np.zeros(6), np.arange(1, 7)
        weight = np.minimum(neighbours, rank) / (neighbours * rank)
        values[5] = same[5] * weight[5]
        for i in range(4, -1, -1):
            values[i] = values[i + 1] + (same[i] - same[i + 1]) * weight[i]
        return values

    every = []
    for first in permutations(range(3)):
        for last in permutations((4, 5)):
            order = [*first, 3, *last]
            values = np.zeros(6)
            values[order] = ordered(same[order])
            every.append(values)
    want = np.mean(every, 0)
    got = values_in_order(jnp.asarray(away), jnp.asarray(same), neighbours)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_two_points_in_one_place_have_values_whatever_their_order():
    data = batch([[0.5], [0.5], [2.0], [0.0]], [0, 1, 0, 1])
    query = batch([[0.4], [3.0]], [0, 1])
    make = estimators.make_knn_shapley
    got = scores_of(make, data, range(4), query, neighbours=1)
    swapped = ddm.Batch(data.x, data.y[jnp.array([1, 0, 2, 3])])
    moved = scores_of(make, swapped, [1, 0, 2, 3], query, neighbours=1)
    np.testing.assert_allclose(moved, got, atol=1e-7)
    assert np.abs(got[0] - got[1]).max() > 0.05


def test_a_query_that_is_no_number_has_no_knn_shapley_and_the_others_keep_theirs(linear):
    data, query, run, groups = linear
    task = linear_task()
    estimator = estimators.make_knn_shapley(task)
    state = estimator.fit(KEY, run, data, groups)
    wrong = query._replace(x=query.x.at[2, 1].set(jnp.nan))
    with pytest.raises(ValueError, match="holds NaN"):
        estimator.score(state, wrong)
    got = np.asarray(jax.jit(estimator.score)(state, wrong))
    assert np.isnan(got[:, 2]).all()
    others = [0, 1, 3, 4]
    want = np.asarray(estimator.score(state, query))[:, others]
    np.testing.assert_allclose(got[:, others], want, atol=1e-7)


BEING_RIGHT = """
    class_fraction density_support group_size knn_shapley representation representer
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", BEING_RIGHT.split())
def test_what_helps_being_right_lowers_what_is_better_low(name, linear):
    data, query, run, groups = linear
    make = estimators.ESTIMATORS[name]
    got = scores_of(make, data, groups, query, run)
    loss = ddm.objectives.explain(linear_task(), "loss")
    np.testing.assert_array_equal(scores_of(make, data, groups, query, run, loss), -got)


def test_random_scores_are_normal_and_depend_on_the_key(linear):
    data, _, _, _ = linear
    query = batch(np.random.default_rng(2).normal(size=(100, 3)), [0] * 100, 3)
    make = estimators.make_random
    got = scores_of(make, data, range(12), query)
    np.testing.assert_array_equal(got, scores_of(make, data, range(12), query))
    assert stats.kstest(got.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(got) - np.eye(12)).max() < 0.4
    estimator, run = make(linear_task()), run_of(linear_task().init(KEY))
    other = estimator.fit(jax.random.key(1), run, data, np.arange(12))
    assert np.abs(np.asarray(estimator.score(other, query)) - got).min() > 0


OF_CLASSES = """
    class_fraction density_support ekfac gauss_newton knn_shapley representation representer
    source synset_influence value_network
"""


@pytest.mark.parametrize("name", OF_CLASSES.split())
def test_what_needs_classes_refuses_other_targets_by_name(name):
    several = linear_task()._replace(targets="any")
    trained = [None] if name == "value_network" else []
    with pytest.raises(ValueError, match=r"needs classes.*influence_cg"):
        estimators.ESTIMATORS[name](several, *trained)
