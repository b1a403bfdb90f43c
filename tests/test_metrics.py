"""Metrics against numbers by hand, scipy, and truths of known reliability."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ddm_jax import metrics


def test_spearman_and_pearson_by_hand():
    predicted = np.array([[1.0], [2.0], [3.0], [4.0]])
    truth = np.array([[1.0], [3.0], [2.0], [10.0]])
    # Rank differences 0, 1, 1, 0: 1 - 6 * 2 / (4 * 15) = 0.8.
    spearman = metrics.per_query_correlation(predicted, truth)
    assert spearman.shape == (1,)
    np.testing.assert_allclose(spearman, [0.8], atol=1e-12)
    # Deviations -1.5 -.5 .5 1.5 and -3 -1 -2 6: 13 / sqrt(5 * 50).
    pearson = metrics.per_query_correlation(predicted, truth, "pearson")
    assert pearson.shape == (1,)
    np.testing.assert_allclose(pearson, [13 / np.sqrt(250)], atol=1e-12)


def test_ties_get_their_mean_rank():
    predicted = np.array([[1.0], [1.0], [2.0]])
    truth = np.array([[1.0], [2.0], [3.0]])
    # Ranks 1.5 1.5 3 and 1 2 3: 1.5 / sqrt(1.5 * 2).
    np.testing.assert_allclose(
        metrics.per_query_correlation(predicted, truth), [1.5 / np.sqrt(3)], atol=1e-12
    )


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_scipys(kind, ties, rng):
    a, b = rng.standard_normal((2, 12, 5))
    if ties:
        a, b = a.round(), b.round()
    ours = metrics.per_query_correlation(a, b, kind)
    score = stats.spearmanr if kind == "spearman" else stats.pearsonr
    theirs = np.array([score(a[:, q], b[:, q]).statistic for q in range(5)])
    assert ours.shape == theirs.shape == (5,)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_constant_queries_have_no_correlation_and_are_left_out(rng):
    predicted, truth = rng.standard_normal((2, 6, 4))
    predicted[:, 1] = 0.1
    truth[:, 3] = -0.7
    each = metrics.per_query_correlation(predicted, truth)
    assert each.shape == (4,)
    np.testing.assert_array_equal(np.isnan(each), [False, True, False, True])
    expected = (each[0] + each[2]) / 2
    assert metrics.linear_datamodeling_score(predicted, truth) == pytest.approx(expected)
    assert metrics.leave_one_out_correlation(predicted, truth) == pytest.approx(expected)


def test_all_constant_is_nan_without_a_warning():
    assert np.isnan(metrics.linear_datamodeling_score(np.ones((3, 2)), np.ones((3, 2))))


@pytest.mark.parametrize(
    ("predicted", "truth", "kind", "message"),
    [
        (np.zeros((3, 2)), np.zeros((2, 3)), "spearman", r"predictions \(3, 2\).*\(2, 3\)"),
        (np.zeros(3), np.zeros(3), "spearman", "one shape"),
        (np.zeros((1, 3)), np.zeros((1, 3)), "spearman", "R >= 2"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "kendall", "kind='kendall'; choose"),
    ],
)
def test_bad_arguments_are_named(predicted, truth, kind, message):
    with pytest.raises(ValueError, match=message):
        metrics.per_query_correlation(predicted, truth, kind)


def test_a_perfect_linear_datamodel_scores_one_and_its_negative_minus_one(rng):
    masks = rng.integers(0, 2, (20, 7)).astype(float)
    scores = rng.standard_normal((7, 9))
    truth = 3.0 + masks @ scores
    assert metrics.linear_datamodeling_score(masks @ scores, truth) == pytest.approx(1)
    assert metrics.linear_datamodeling_score(-masks @ scores, truth) == pytest.approx(-1)


def test_pooled_correlation_is_over_all_pairs(rng):
    a, b = rng.standard_normal((2, 4, 3))
    expected = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert metrics.pooled_correlation(a, b) == pytest.approx(expected)
    ranks = stats.spearmanr(a.ravel(), b.ravel()).statistic
    assert metrics.pooled_correlation(a, b, "spearman") == pytest.approx(ranks)
    assert np.isnan(metrics.pooled_correlation(a, np.ones((4, 3))))


def _pearson(predicted, truth) -> float:
    return float(np.mean(metrics.per_query_correlation(predicted, truth, "pearson")))


@pytest.mark.parametrize("seeds", [2, 5])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_noise_ceiling_of_a_truth_with_known_reliability(seeds, ratio, rng):
    """Signal of variance v, noise of variance 1 a seed: correlations have closed forms."""
    signal = np.sqrt(ratio) * rng.standard_normal((2000, 8))
    truth = signal + rng.standard_normal((seeds, 2000, 8))
    ceiling = metrics.noise_ceiling(truth, _pearson)
    # A perfect predictor against the mean of S seeds.
    assert ceiling.perfect == pytest.approx(np.sqrt(ratio / (ratio + 1 / seeds)), abs=0.02)
    assert ceiling.perfect == pytest.approx(_pearson(signal, truth.mean(0)), abs=0.02)
    # One seed against the mean of the S - 1 others.
    others = ratio + 1 / (seeds - 1)
    assert ceiling.one_run == pytest.approx(ratio / np.sqrt((ratio + 1) * others), abs=0.02)


def test_noise_ceiling_by_hand():
    seed = np.array([[1.0], [2.0], [3.0], [4.0]])
    other = np.array([[1.0], [3.0], [2.0], [4.0]])
    ceiling = metrics.noise_ceiling(np.stack([seed, other]))
    assert ceiling.one_run == pytest.approx(0.8)
    assert ceiling.perfect == pytest.approx(np.sqrt(2 * 0.8 / 1.8))


@pytest.mark.parametrize("correlation", [-0.3, -0.5, -0.6, -1.0, 0.0])
@pytest.mark.parametrize("seeds", [2, 3])
def test_seeds_that_contradict_one_another_have_a_ceiling_of_zero(correlation, seeds):
    ceiling = metrics.noise_ceiling(np.zeros((seeds, 4, 2)), lambda a, b: correlation)
    assert ceiling == (pytest.approx(correlation), 0.0)


def test_noise_ceiling_of_a_constant_truth_is_undefined():
    ceiling = metrics.noise_ceiling(np.zeros((3, 4, 2)))
    assert np.isnan(ceiling.one_run)
    assert np.isnan(ceiling.perfect)


@pytest.mark.parametrize("shape", [(1, 4, 2), (4, 2)])
def test_noise_ceiling_needs_two_seeds(shape):
    with pytest.raises(ValueError, match="S >= 2 seeds"):
        metrics.noise_ceiling(np.zeros(shape))


def test_mean_interval_covers_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        low, high = metrics.mean_interval(np.random.default_rng(seed).normal(1.0, 1.0, 60))
        assert low < high
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_mean_interval_has_the_width_of_the_normal_one(rng):
    values = rng.normal(0, 2, 400)
    low, high = metrics.mean_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(400), rel=0.1)


def test_mean_interval_leaves_nan_out_and_repeats(rng):
    values = rng.standard_normal(20)
    with_nan = np.concatenate([values, [np.nan, np.nan]])
    assert metrics.mean_interval(with_nan) == metrics.mean_interval(values)
    assert metrics.mean_interval(values, seed=1) != metrics.mean_interval(values)


def test_mean_interval_of_too_few_is_undefined():
    assert np.isnan(metrics.mean_interval(np.array([1.0, np.nan]))).all()
