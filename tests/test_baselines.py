"""Baselines and data values, by literal numbers, closed forms and brute force."""

from itertools import combinations
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
from ddm_jax.estimators.data_values import make_data_value

KEY = jax.random.key(0)


def linear_task():
    """Logits `x w`, so that gradients can be written down; the inputs are the features."""

    def apply(params, x):
        return x @ params["w"]

    loss, output = ddm.objectives.loss(apply), ddm.objectives.margin(apply)
    return ddm.Task(lambda key: {"w": jnp.zeros((3, 3))}, apply, loss, output, lambda params, x: x)


def run_of(params, checkpoints=None, learning_rates=()):
    """A finished training of which only the networks and rates are looked at."""
    none = jnp.zeros((0,))
    return ddm.TrainRun(KEY, params, checkpoints, jnp.asarray(learning_rates), none, none)


def batch(x, labels, classes=2):
    return ddm.Batch(jnp.asarray(x, jnp.float32), jnp.eye(classes)[jnp.asarray(labels)])


def scores_of(estimator, data, groups, query, run=None):
    state = estimator.fit(KEY, run, data, np.asarray(groups))
    scores = np.asarray(estimator.score(state, query))
    assert scores.shape == (max(groups) + 1, len(query.x))
    return scores


def values_of(estimator, data, run=None):
    """A data value of every point, centred: `[N]` from groups of one point."""
    query = ddm.Batch(data.x[:2], data.y[:2])
    scores = scores_of(estimator, data, range(len(data.x)), query, run)
    np.testing.assert_array_equal(scores[:, 0], scores[:, 1])
    return len(data.x) * scores[:, 0]


def centred(values):
    values = np.asarray(values, float)
    return values - values.mean()


def test_group_size_is_the_share_of_the_data():
    data = batch([[0.0]] * 5, [0, 1, 0, 1, 0])
    query = batch([[1.0], [2.0], [3.0]], [0, 1, 0])
    got = scores_of(estimators.make_group_size(), data, [1, 0, 1, 2, 1], query)
    np.testing.assert_allclose(got, [[0.2] * 3, [0.6] * 3, [0.2] * 3], rtol=1e-6)


def test_class_fraction_counts_for_and_against():
    data = batch([[0.0]] * 5, [0, 1, 2, 2, 0], classes=3)
    query = batch([[1.0], [2.0], [3.0]], [0, 1, 2], classes=3)
    got = scores_of(estimators.make_class_fraction(), data, [0, 0, 0, 1, 1], query)
    np.testing.assert_allclose(got, [[-0.2, -0.2, -0.2], [0.0, -0.4, 0.0]], atol=1e-7)


def test_density_support_is_a_kernel_with_sides():
    # The inputs have variance one, so that bandwidth 0.5 makes the kernel exp(-distance^2).
    data = batch([[0.0], [0.0], [2.0], [2.0]], [0, 0, 0, 1])
    query = batch([[0.0], [2.0], [1.0]], [0, 1, 0])
    got = scores_of(estimators.make_density_support(bandwidth=0.5), data, [0, 1, 1, 2], query)
    far, half = np.exp(-4), np.exp(-1)
    want = [[1, -far, half], [1 + far, -1 - far, 2 * half], [-far, 1, -half]]
    np.testing.assert_allclose(got, np.array(want) / 4, rtol=1e-5)


@pytest.fixture(scope="module")
def linear():
    """A linear network of no particular merit on 12 points: 4 groups, 5 queries."""
    rng = np.random.default_rng(1)
    data = batch(rng.normal(size=(12, 3)), rng.permutation(np.arange(12) % 3), 3)
    query = batch(rng.normal(size=(5, 3)), [0, 1, 2, 1, 0], 3)
    checkpoints = {"w": jnp.asarray(rng.normal(size=(3, 3, 3)), jnp.float32)}
    # A checkpoint after steps 2, 4 and 6.
    run = run_of({"w": checkpoints["w"][-1]}, checkpoints, [9.0, 0.5, 9.0, 0.25, 9.0, 0.125])
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
    got = scores_of(estimators.make_grad_cos(linear_task()), data, groups, query, run)
    of_points = loss_gradients(run.params["w"], data)
    of_queries = margin_gradients(run.params["w"], query)
    lengths = np.outer(np.linalg.norm(of_points, axis=1), np.linalg.norm(of_queries, axis=1))
    want = -by_group(of_points @ of_queries.T / lengths, groups) / 12
    assert got.shape == want.shape == (4, 5)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_self_influence_is_the_squared_length_of_the_steps_at_checkpoints(linear):
    data, _, run, _ = linear
    got = values_of(estimators.make_self_influence(linear_task()), data, run)
    pairs = zip((0.5, 0.25, 0.125), run.checkpoints["w"], strict=True)
    squares = sum(rate * (loss_gradients(w, data) ** 2).sum(1) for rate, w in pairs)
    assert got.shape == squares.shape == (12,)
    np.testing.assert_allclose(got, centred(-squares), rtol=1e-4, atol=1e-4)


def test_training_loss_is_that_of_the_trained_network(linear):
    data, _, run, _ = linear
    got = values_of(estimators.make_training_loss(linear_task()), data, run)
    logits = np.asarray(data.x, float) @ np.asarray(run.params["w"], float)
    want = centred((log_softmax(logits, axis=1) * np.asarray(data.y)).sum(1))
    assert got.shape == want.shape == (12,)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_representation_is_a_cosine_with_sides():
    data = batch([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [3.0, 4.0, 0.0]], [0, 0, 1], 3)
    query = batch([[5.0, 0.0, 0.0], [0.0, -1.0, 0.0]], [0, 1], 3)
    estimator = estimators.make_representation(linear_task())
    got = scores_of(estimator, data, [0, 1, 1], query, run_of({}))
    np.testing.assert_allclose(got, np.array([[1, 0], [-0.6, 1 - 0.8]]) / 3, atol=1e-6)


def test_representer_splits_the_logit_of_the_refitted_layer(linear):
    data, query, run, groups = linear
    l2 = 0.05
    estimator = estimators.make_representer(linear_task(), l2=l2, steps=100)
    got = scores_of(estimator, data, groups, query, run)

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


# The logits of two classes at three checkpoints, as (label's, other) for each of five points.
GOOD, BAD = (np.log(3.0), 0.0), (0.0, np.log(3.0))
COURSE = [  # never forgotten, forgotten once, never told right, learnt late, forgotten for good
    [GOOD, GOOD, BAD, BAD, GOOD],
    [GOOD, BAD, BAD, GOOD, BAD],
    [GOOD, GOOD, BAD, GOOD, BAD],
]
RIGHT = np.array([3, 2, 0, 2, 1])  # checkpoints at which each is told right


@pytest.mark.parametrize(
    ("measure", "want"),
    [
        ("loss", (RIGHT * np.log(3 / 4) + (3 - RIGHT) * np.log(1 / 4)) / 3),
        ("margin", (2 * RIGHT - 3) * np.log(3) / 3),
        ("forgetting", [0, -1, -4, 0, -1]),
    ],
)
def test_training_dynamics_of_a_known_course(measure, want):
    labels = np.array([0, 1, 0, 1, 1])
    logits = np.array(COURSE, np.float32)
    logits[:, labels == 1] = logits[:, labels == 1][..., ::-1]

    def apply(params, x):
        return params["logits"][x[:, 0].astype(int)]

    loss, output = ddm.objectives.loss(apply), ddm.objectives.margin(apply)
    task = ddm.Task(lambda key: {}, apply, loss, output)
    checkpoints = {"logits": jnp.asarray(logits)}
    run = run_of({"logits": checkpoints["logits"][-1]}, checkpoints)
    data = batch(np.arange(5)[:, None], labels)
    got = values_of(estimators.make_training_dynamics(task, measure=measure), data, run)
    np.testing.assert_allclose(got, centred(want), atol=1e-5)


def test_margin_is_over_the_largest_other_logit(linear):
    data, _, run, _ = linear
    got = values_of(estimators.make_training_dynamics(linear_task()), data, run)
    y = np.asarray(data.y) > 0
    logits = np.asarray(data.x, float) @ np.asarray(run.checkpoints["w"], float)
    others = np.where(y, -np.inf, logits).max(2)
    want = centred((logits[:, y] - others).mean(0))
    assert got.shape == want.shape == (12,)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_complexity_gap_is_the_drop_when_a_point_is_left_out(rng):
    data = batch(rng.normal(size=(8, 3)), [0, 1, 2, 0, 1, 2, 0, 0], 3)
    got = values_of(estimators.make_complexity_gap(damping=0.02), data)
    x = np.asarray(data.x, float)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = np.clip(x @ x.T, -1, 1)
    kernel = cosine * (np.pi - np.arccos(cosine)) / (2 * np.pi)
    kernel = kernel + 0.02 * np.mean(np.diag(kernel)) * np.eye(8)
    y = np.asarray(data.y, float) - np.asarray(data.y).mean(0)

    def complexity(keep):
        return np.trace(y[keep].T @ np.linalg.inv(kernel[np.ix_(keep, keep)]) @ y[keep])

    every = np.arange(8)
    drops = [complexity(every) - complexity(np.delete(every, i)) for i in range(8)]
    assert min(drops) > 0
    np.testing.assert_allclose(got, centred(np.negative(drops)), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("neighbours", [1, 2, 3, 8])
def test_knn_shapley_is_the_value_over_all_subsets(neighbours, rng):
    data = batch(rng.normal(size=(6, 2)), [0, 1, 0, 1, 1, 0])
    query = batch(rng.normal(size=(3, 2)), [0, 1, 1])
    task = linear_task()._replace(features=None)
    estimator = estimators.make_knn_shapley(task, neighbours=neighbours)
    points = scores_of(estimator, data, range(6), query, run_of({}))
    groups = np.array([0, 1, 1, 0, 2, 2])
    sums = scores_of(estimator, data, groups, query, run_of({}))

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
    shown = estimators.make_knn_shapley(task, neighbours=2)
    thin = ddm.Batch(data.x[:, :1], data.y), ddm.Batch(query.x[:, :1], query.y)
    plain = estimators.make_knn_shapley(task._replace(features=None), neighbours=2)
    got = scores_of(shown, data, groups, query, run)
    np.testing.assert_allclose(got, scores_of(plain, thin[0], groups, thin[1], run), atol=1e-6)
    assert np.ptp(got - scores_of(plain, data, groups, query, run)) > 0


def test_data_oob_is_the_mean_over_the_networks_that_did_not_see_a_point():
    """Of networks that are their training weights, and tell a point right by its neighbour's."""
    seen = []

    def train(key, data, weights):
        jax.debug.callback(lambda w: seen.append(np.asarray(w)), weights)
        return run_of({"w": weights})

    def apply(params, x):
        right = jnp.roll(params["w"], 1)[x[:, 0].astype(int)] > 0
        return jnp.stack([right, ~right], 1).astype(jnp.float32)

    loss, output = ddm.objectives.loss(apply), ddm.objectives.margin(apply)
    task = ddm.Task(lambda key: {}, apply, loss, output)
    data = batch(np.arange(7)[:, None], [0] * 7)
    got = values_of(estimators.make_data_oob(task, train, models=3), data)
    jax.effects_barrier()
    weights = np.stack(seen)
    assert weights.shape == (3, 7)
    np.testing.assert_array_equal(weights.sum(1), 7)
    assert len(np.unique(weights, axis=0)) == 3
    outside, right = weights == 0, np.roll(weights, 1, axis=1) > 0
    assert not outside.any(0).all()  # a point is in all samples
    mean = right[outside].mean()
    want = [right[outside[:, i], i].mean() if outside[:, i].any() else mean for i in range(7)]
    assert np.ptp(want) > 0
    np.testing.assert_allclose(got, centred(want), atol=1e-6)


def test_a_data_value_is_a_sum_of_what_is_above_the_mean():
    data = batch([[1.0], [2.0], [3.0], [6.0]], [0, 1, 0, 1])
    estimator = make_data_value(lambda key, run, data: run.params + data.x[:, 0])
    query = batch([[1.0], [2.0], [3.0]], [0, 1, 0])
    got = scores_of(estimator, data, [1, 0, 1, 0], query, run_of(10.0))
    np.testing.assert_allclose(got, [[0.5] * 3, [-0.5] * 3], atol=1e-6)


def test_random_scores_are_normal_and_depend_on_the_key(linear):
    data, _, _, _ = linear
    query = batch(np.random.default_rng(2).normal(size=(100, 3)), [0] * 100, 3)
    estimator = estimators.make_random()
    got = scores_of(estimator, data, range(12), query)
    np.testing.assert_array_equal(got, scores_of(estimator, data, range(12), query))
    assert stats.kstest(got.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(got) - np.eye(12)).max() < 0.4
    other = estimator.fit(jax.random.key(1), None, data, np.arange(12))
    assert np.abs(np.asarray(estimator.score(other, query)) - got).min() > 0


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (lambda task: estimators.make_class_fraction(), "the class fraction"),
        (lambda task: estimators.make_density_support(), "density support"),
        (estimators.make_knn_shapley, "KNN-Shapley"),
        (estimators.make_representation, "representation similarity"),
        (estimators.make_representer, "the representer method"),
        (estimators.make_training_dynamics, "the margin"),
        (lambda task: estimators.make_data_oob(task, None), "Data-OOB"),
    ],
)
def test_what_compares_classes_refuses_other_targets(make, method, linear):
    data, _, run, groups = linear
    regression = ddm.Batch(data.x, data.x[:, :1])
    with pytest.raises(ValueError, match=rf"{method} compares classes.*\(12, 1\).*triage"):
        make(linear_task()).fit(KEY, run, regression, groups)
