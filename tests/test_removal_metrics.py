"""Masks that remove groups, and what came of it, against literal examples."""

from __future__ import annotations

import numpy as np
import pytest

from ddm_jax import metrics
from ddm_jax.masks import curve_masks, top_masks


def equal(actual, expected, **tolerance):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, **{"atol": 1e-12, **tolerance})


# Brittleness


def test_top_masks_remove_what_helps_each_query_most():
    scores = np.array([[5, -1], [1, 2], [3, 0]])  # [K, Q]
    equal(top_masks(scores, 1), [[0, 1, 1], [1, 0, 1]])
    equal(top_masks(scores, 2), [[0, 1, 0], [1, 0, 0]])
    assert top_masks(scores, 1).dtype == np.float32


def test_ties_go_to_the_lower_group():
    equal(top_masks(np.zeros((4, 1)), 2), [[0, 0, 1, 1]])
    equal(top_masks([[0], [7], [7], [7]], 2), [[1, 0, 0, 1]])


def test_top_masks_keep_what_helps_no_more_than_what_goes(rng):
    scores = rng.standard_normal((9, 5))
    masks = top_masks(scores, 4)
    assert masks.shape == (5, 9)
    equal((masks == 0).sum(1), [4] * 5)
    gone, kept = (np.where(masks == m, scores.T, np.nan) for m in (0, 1))
    assert (np.nanmin(gone, 1) > np.nanmax(kept, 1)).all()


@pytest.mark.parametrize(
    ("scores", "k", "message"),
    [
        (np.zeros(3), 1, r"\(3,\); they must be \[K, Q\]"),
        (np.zeros((3, 2)), 0, r"k=0; it must be a whole number, in 1\.\.2"),
        (np.zeros((3, 2)), 3, r"k=3; it must be a whole number, in 1\.\.2"),
    ],
)
def test_top_masks_name_what_is_wrong(scores, k, message):
    with pytest.raises(ValueError, match=message):
        top_masks(scores, k)


def test_flips_by_hand():
    before = np.array([1.0, -1.0, 2.0, 0.5, 0.0])
    # A margin of zero is not right, before or after; what was wrong before does not count.
    after = np.array(
        [
            [1.0, 1.0, 2.0, 0.5, 1.0],
            [1.0, -1.0, -3.0, 0.0, -1.0],
            [-1.0, 1.0, -3.0, -0.1, 1.0],
        ]
    )
    told = metrics.flips(before, after)
    equal(told.rate, [0, 2 / 3, 1])
    assert (told.queries, told.left_out) == (3, 2)


def test_flips_of_nothing_right_are_undefined_without_a_warning():
    told = metrics.flips(np.array([-1.0, 0.0]), np.ones((3, 2)))
    equal(told.rate, [np.nan] * 3)
    assert (told.queries, told.left_out) == (0, 2)


@pytest.mark.parametrize(("before", "after"), [((3,), (3,)), ((3,), (2, 2)), ((1, 3), (1, 3))])
def test_flips_name_what_is_wrong(before, after):
    with pytest.raises(ValueError, match=r"must be \[Q\] and \[J, Q\]"):
        metrics.flips(np.ones(before), np.ones(after))


# Removal curves

VALUE, SIZES = [3.0, 1.0, 2.0], [2, 5, 3]


def test_curve_masks_remove_the_lowest_first():
    # Group 1 is half of the points, with group 2 it is .8.
    masks = curve_masks(VALUE, SIZES, [0, 0.4, 0.5, 0.7, 0.8, 0.99], "lowest")
    assert masks.dtype == np.float32
    expected = [[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 0, 1], [1, 0, 0], [1, 0, 0]]
    equal(masks, expected)


def test_curve_masks_remove_the_highest_first():
    # Group 0 is .2 of the points, with group 2 it is .5.
    masks = curve_masks(VALUE, SIZES, [0, 0.1, 0.2, 0.49, 0.5, 0.99], "highest")
    expected = [[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 1, 0], [0, 1, 0]]
    equal(masks, expected)


def test_curve_masks_stop_at_the_first_group_that_does_not_fit():
    # The second would exceed .3, and the third, which would fit, waits its turn.
    equal(curve_masks([1, 2, 3], [2, 7, 1], [0.3], "lowest"), [[0, 1, 1]])


@pytest.mark.parametrize("first", ["lowest", "highest"])
def test_equal_values_go_by_group(first):
    equal(curve_masks([0, 0, 0], [1, 1, 1], [0.4, 0.7], first), [[0, 1, 1], [0, 0, 1]])


def test_a_fraction_that_rounding_made_smaller_still_counts():
    assert 1 - 0.9 < 0.1
    equal(curve_masks(np.arange(10), np.ones(10), [1 - 0.9], "lowest").sum(1), [9])


def test_a_group_is_always_left():
    almost = 1 - 1e-12
    equal(curve_masks(VALUE, SIZES, [almost], "lowest"), [[1, 0, 0]])
    equal(curve_masks(VALUE, SIZES, [almost], "highest"), [[0, 1, 0]])
    equal(curve_masks([1.0], [4], [0, 0.5, almost], "lowest"), [[1], [1], [1]])


@pytest.mark.parametrize("first", ["lowest", "highest"])
def test_removals_grow_and_never_exceed_their_fraction(first, rng):
    value, sizes = rng.standard_normal(12), rng.integers(1, 9, 12)
    fractions = np.linspace(0, 0.9, 10)
    masks = curve_masks(value, sizes, fractions, first)
    assert masks.shape == (10, 12)
    assert (np.diff(masks, axis=0) <= 0).all()
    gone = (1 - masks) @ sizes / sizes.sum()
    assert gone.shape == fractions.shape
    assert (gone <= fractions + 1e-9).all()
    # The next group would have been too much.
    assert (gone + sizes.max() / sizes.sum() > fractions).all()
    opposite = curve_masks(-value, sizes, fractions, first)
    other = {"lowest": "highest", "highest": "lowest"}[first]
    equal(opposite, curve_masks(value, sizes, fractions, other))


@pytest.mark.parametrize(
    ("value", "sizes", "fractions", "first", "message"),
    [
        (VALUE, SIZES, [0.1], "largest", "first='largest'; choose"),
        (VALUE, [1, 2], [0.1], "lowest", r"value \(3,\) and sizes \(2,\)"),
        ([VALUE], [SIZES], [0.1], "lowest", r"must both be \[K\]"),
        (VALUE, SIZES, [0.1, 1.0], "lowest", r"fractions=1\.0; it must be .* below 1"),
        (VALUE, SIZES, [-0.1], "lowest", r"fractions=-0\.1"),
    ],
)
def test_curve_masks_name_what_is_wrong(value, sizes, fractions, first, message):
    with pytest.raises(ValueError, match=message):
        curve_masks(value, sizes, fractions, first)


def test_curve_area_by_hand():
    # A triangle over [0, 1].
    assert metrics.curve_area([0, 0.5, 1], [0, 1, 0]) == pytest.approx(0.5)
    # A triangle of area 1 and a rectangle of area 4 over [0, 3]: a mean height.
    assert metrics.curve_area([0, 1, 3], [0, 2, 2]) == pytest.approx(5 / 3)
    # Where the fractions lie does not matter to a constant.
    assert metrics.curve_area([0.1, 0.15, 0.7], [4, 4, 4]) == pytest.approx(4)


@pytest.mark.parametrize(
    ("fractions", "values", "message"),
    [
        ([0, 0.5], [1, 2, 3], r"fractions \(2,\) and values \(3,\)"),
        ([0.5], [1], "at least 2"),
        ([[0, 1]], [[0, 1]], "one length"),
        ([0, 0.5, 0.5], [1, 2, 3], "must increase"),
        ([0.5, 0], [1, 2], "must increase"),
    ],
)
def test_curve_area_names_what_is_wrong(fractions, values, message):
    with pytest.raises(ValueError, match=message):
        metrics.curve_area(fractions, values)


# Whether effects add up


def test_effects_that_add_up(rng):
    single = rng.standard_normal((4, 3))
    masks = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1]])
    found = metrics.additivity(masks, masks @ single, single)
    np.testing.assert_allclose(found, (1, 1, 0), atol=1e-12)


def test_effects_that_overlap():
    # Either of two groups is enough: without one nothing happens much, without both everything.
    masks = np.array([[1, 1], [0, 1], [1, 0], [0, 0]])
    outputs = np.array([[1.0], [0.9], [0.9], [0.0]])
    found = metrics.additivity(masks, outputs, np.array([[0.1], [0.1]]))
    # joint .1 .1 1, summed .1 .1 .2: slope (.01 + .01 + .2) / .06, error .64 / 1.02
    np.testing.assert_allclose(found, (1.0, 0.22 / 0.06, 0.64 / 1.02))
    with pytest.raises(ValueError, match="first one all ones"):
        metrics.additivity(masks[1:], outputs[1:], np.array([[0.1], [0.1]]))
    with pytest.raises(ValueError, match="do not fit"):
        metrics.additivity(masks, outputs[:2], np.array([[0.1], [0.1]]))


def test_nothing_is_said_of_effects_that_are_none():
    masks = [[1, 1], [0, 1], [1, 0]]
    still = metrics.additivity(masks, np.ones((3, 2)), np.ones((2, 2)))
    flat = metrics.additivity(masks, [[2.0], [1.0], [0.5]], np.ones((2, 1)))
    assert np.isnan(still).all()
    assert np.isnan(flat).all()


def test_sums_twice_too_large():
    masks = [[1, 1], [0, 1], [1, 0], [0, 0]]
    found = metrics.additivity(masks, [[3.0], [2.0], [1.0], [0.0]], [[2.0], [4.0]])
    np.testing.assert_allclose(found, (1, 0.5, 1))


def test_additivity_names_what_is_wrong():
    for masks in ([1, 1], [[1, 1]], [[1, 0.5], [1, 1]]):
        with pytest.raises(ValueError, match=r"R >= 2, the first one all ones"):
            metrics.additivity(masks, np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="do not fit"):
        metrics.additivity([[1, 1], [0, 1]], np.ones((2, 1)), np.ones((3, 1)))
