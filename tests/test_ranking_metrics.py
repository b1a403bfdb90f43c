"""Detection and retrieval against numbers by hand, scikit-learn, and every order of the ties."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ddm_jax import metrics


def equal(actual, expected, **tolerance):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, **{"atol": 1e-12, **tolerance})


# Detection


def test_detection_by_hand():
    suspicion, bad = [0.5, 0.9, 0.6, 0.8, 0.7], [False, True, False, False, True]
    told = metrics.detection(suspicion, bad, [0, 0.2, 0.4, 0.6, 1])
    # Of the six pairs of a bad and a good point, only (.7, .8) is the wrong way round.
    assert told.auc == pytest.approx(5 / 6)
    # The bad points stand first and third: (1 / 1 + 2 / 3) / 2.
    assert told.average_precision == pytest.approx(5 / 6)
    equal(told.found, [0, 0.5, 0.5, 1, 1])


def test_a_part_of_a_point_is_inspected_in_part():
    # A tenth of four points: .4 of the one bad point.
    equal(metrics.detection([4, 3, 2, 1], [1, 0, 0, 0], [0.1]).found, [0.4])


def test_detection_is_scikit_learns(rng):
    suspicion = rng.standard_normal(50).round(1)
    bad = rng.random(50) < 0.3
    told = metrics.detection(suspicion, bad)
    assert told.auc == pytest.approx(roc_auc_score(bad, suspicion))
    assert told.average_precision == pytest.approx(average_precision_score(bad, suspicion))
    assert told.found.shape == (3,)


def test_perfect_detection_and_its_opposite(rng):
    bad = np.arange(20) < 4
    told = metrics.detection(bad + 0.1 * rng.random(20), bad, [0.05, 0.1, 0.2, 0.5])
    assert (told.auc, told.average_precision) == (1, 1)
    equal(told.found, [0.25, 0.5, 1, 1])
    told = metrics.detection(-(bad + 0.1 * rng.random(20)), bad, [0.5, 0.8, 0.9])
    assert told.auc == 0
    equal(told.found, [0, 0, 0.5])


def test_a_suspicion_that_says_nothing_finds_what_chance_finds():
    fractions = [0, 0.05, 0.25, 0.6, 1]
    told = metrics.detection(np.zeros(10), np.arange(10) < 3, fractions)
    assert told.auc == pytest.approx(0.5)
    assert told.average_precision == pytest.approx(0.3)
    equal(told.found, fractions)


def test_ties_count_as_the_mean_of_all_their_orders():
    suspicion, bad = np.array([2, 1, 1, 1, 0.0]), np.array([0, 1, 1, 0, 0])
    fractions = [0.2, 0.4, 0.6, 0.8]
    told = metrics.detection(suspicion, bad, fractions)
    # The tied ones are the second to the fourth: each further point finds a third.
    equal(told.found, [0, 1 / 3, 2 / 3, 1])
    orders = [
        metrics.detection(suspicion + 0.01 * np.array([0, *order, 0]), bad, fractions)
        for order in permutations(range(3))
    ]
    equal(told.found, np.mean([order.found for order in orders], 0))
    assert told.auc == pytest.approx(np.mean([order.auc for order in orders]))


@pytest.mark.parametrize(
    ("suspicion", "bad", "inspect", "message"),
    [
        ([1, 2, 3], [1, 0], [0.1], r"suspicion \(3,\) and bad \(2,\)"),
        ([[1], [2]], [[1], [0]], [0.1], r"must both be \[N\]"),
        ([1, np.nan], [1, 0], [0.1], "not finite"),
        ([1, np.inf], [1, 0], [0.1], "not finite"),
        ([1, 2], [0, 0], [0.1], "0 of 2 points are bad"),
        ([1, 2], [1, 1], [0.1], "2 of 2 points are bad"),
        ([], [], [0.1], "0 of 0 points are bad"),
        ([1, 2], [1, 0], [0.1, 1.1], r"inspect=1\.1"),
        ([1, 2], [1, 0], [-0.1], r"inspect=-0\.1"),
    ],
)
def test_detection_names_what_is_wrong(suspicion, bad, inspect, message):
    with pytest.raises(ValueError, match=message):
        metrics.detection(suspicion, bad, inspect)


# Retrieval


def test_retrieval_by_hand():
    scores = np.array([[4, 3, 2, 1], [1, 2, 3, 4]]).T
    relevant = np.array([[1, 0, 1, 0], [0, 0, 1, 1]]).T
    told = metrics.retrieval(scores, relevant, 2)
    # Query 0 finds the relevant first and third, query 1 first and second.
    equal(told.precision_per_query, [0.5, 1])
    equal(told.average_precision_per_query, [(1 + 2 / 3) / 2, 1])
    assert told.precision == pytest.approx(0.75)
    assert told.average_precision == pytest.approx(11 / 12)
    assert told.undefined == 0
    # Down to the last one, the relevant part of everything.
    equal(metrics.retrieval(scores, relevant, 4).precision_per_query, [0.5, 0.5])
    equal(metrics.retrieval(scores, relevant, 1).precision_per_query, [1, 1])
    # More is asked for than there is.
    equal(metrics.retrieval(scores, relevant, 3).precision_per_query, [2 / 3, 2 / 3])


def test_precision_counts_ties_in_expectation_and_average_precision_at_once():
    scores, relevant = np.array([[1, 1, 0]]).T, np.array([[1, 0, 0]]).T
    told = metrics.retrieval(scores, relevant, 1)
    equal(told.precision_per_query, [0.5])
    # scikit-learn takes tied points together: precision 1 / 2 at full recall.
    equal(told.average_precision_per_query, [0.5])
    equal(metrics.retrieval(scores, relevant, 2).precision_per_query, [0.5])


def test_retrieval_is_scikit_learns_and_a_sorted_list(rng):
    scores = rng.standard_normal((30, 6))
    relevant = rng.random((30, 6)) < 0.3
    told = metrics.retrieval(scores, relevant, 7)
    top = np.argsort(-scores, axis=0)[:7]
    equal(told.precision_per_query, np.take_along_axis(relevant, top, 0).mean(0))
    theirs = [average_precision_score(relevant[:, q], scores[:, q]) for q in range(6)]
    equal(told.average_precision_per_query, theirs)


def test_queries_without_a_ranking_or_without_a_difference_are_undefined_and_counted():
    scores = np.array([[3, 2, 1], [5, 5, 5], [3, 2, 1], [3, 2, 1]]).T
    relevant = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).T
    told = metrics.retrieval(scores, relevant, 1)
    equal(told.precision_per_query, [1, np.nan, np.nan, np.nan])
    equal(told.average_precision_per_query, [1, np.nan, np.nan, np.nan])
    assert (told.precision, told.average_precision, told.undefined) == (1, 1, 3)
    nothing = metrics.retrieval(scores[:, 1:], relevant[:, 1:], 1)
    assert np.isnan([nothing.precision, nothing.average_precision]).all()
    assert nothing.undefined == 3


@pytest.mark.parametrize(
    ("scores", "relevant", "k", "message"),
    [
        (np.zeros((3, 2)), np.zeros((2, 3)), 1, r"scores \(3, 2\) and relevant \(2, 3\)"),
        (np.zeros(3), np.zeros(3), 1, r"must both be \[K, Q\]"),
        (np.zeros((3, 2)), np.zeros((3, 2)), 0, r"k=0; it must be a whole number, in 1\.\.3"),
        (np.zeros((3, 2)), np.zeros((3, 2)), 4, r"k=4; it must be a whole number, in 1\.\.3"),
    ],
)
def test_retrieval_names_what_is_wrong(scores, relevant, k, message):
    with pytest.raises(ValueError, match=message):
        metrics.retrieval(scores, relevant, k)
