"""Error bars of predicted changes."""

from __future__ import annotations

import numpy as np
import pytest

from ddm_jax import metrics

QUERIES = 400
REMOVED = np.repeat([0.02, 0.5], 8)


def changes(seed: int, seeds: int = 3, removed: np.ndarray = REMOVED):
    """Predictions and retrainings whose residuals grow with the query's reach and the size."""
    rng = np.random.default_rng(seed)
    reach = np.random.default_rng(0).lognormal(0, 1, QUERIES)  # the queries are the same ones
    size = np.sqrt(removed)[:, None]
    predicted = size * reach * rng.normal(size=(len(removed), QUERIES))
    noise = 0.3 * size * reach * rng.normal(size=(seeds, len(removed), QUERIES))
    return predicted, predicted + noise, reach


def test_of_new_subsets_nine_in_ten_are_inside():
    predicted, retrained, reach = changes(1)
    intervals = metrics.fit_intervals(predicted, retrained, REMOVED, reach)
    new, true, _ = changes(2)
    wide = metrics.half_widths(intervals, new, REMOVED, reach)
    assert wide.shape == new.shape
    assert (wide > 0).all()
    for size in (slice(8), slice(8, None)):
        inside = metrics.coverage(new[size], wide[size], true[:, size])
        assert 0.87 < inside < 0.93


def test_what_is_expected_has_the_size_that_retraining_gave():
    """Updates that undo a third of what single groups did, and a half of what halves did."""
    predicted, retrained, reach = changes(1)
    short = np.where(REMOVED < 0.1, 1 / 3, 1 / 2)[:, None]
    intervals = metrics.fit_intervals(short * predicted, retrained, REMOVED, reach)
    np.testing.assert_allclose(intervals.times, [3, 2], rtol=0.05)
    new, true, _ = changes(2)
    said = metrics.expected(intervals, short * new, REMOVED)
    np.testing.assert_allclose(said, new, rtol=0.05)
    wide = metrics.half_widths(intervals, short * new, REMOVED, reach)
    for size in (slice(8), slice(8, None)):
        assert 0.87 < metrics.coverage(said[size], wide[size], true[:, size]) < 0.93
    # Their largest are where retraining goes, and not short of it.
    largest = np.abs(true).mean(0) > 2 * np.median(np.abs(true))
    inside = np.abs(true - said) <= wide
    around = np.abs(true - short * new) <= wide
    assert inside[:, largest].mean() > around[:, largest].mean() + 0.1
    between = metrics.expected(intervals, np.ones((1, 2)), [0.1])
    assert ((between > 2) & (between < 3)).all()


def test_predictions_that_are_wrong_keep_their_order():
    predicted, _, reach = changes(1)
    for wrong in (-predicted[None], np.zeros_like(predicted)[None]):
        intervals = metrics.fit_intervals(predicted, wrong, REMOVED, reach)
        said = metrics.expected(intervals, predicted, REMOVED)
        np.testing.assert_array_equal(np.argsort(said), np.argsort(predicted))
    nothing = metrics.fit_intervals(0 * predicted, predicted[None], REMOVED, reach)
    np.testing.assert_array_equal(nothing.times, 1)


def test_shares_that_are_near_are_of_one_size():
    predicted, retrained, reach = changes(1)
    removed = np.r_[0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, np.full(8, 0.5)]
    assert len(metrics.fit_intervals(predicted, retrained, removed, reach).sizes) == 2


def test_bars_are_wider_where_more_is_at_stake():
    predicted, retrained, reach = changes(1)
    intervals = metrics.fit_intervals(predicted, retrained, REMOVED, reach)
    alike = np.full((3, 2), 0.1)
    wide = metrics.half_widths(intervals, alike, [0.02, 0.1, 0.5], np.array([0.1, 10.0]))
    assert (wide[:, 1] > 2 * wide[:, 0]).all()  # by the query's reach
    assert (np.diff(wide, axis=0) > 0).all()  # by the size, between the measured ones too


def test_where_nothing_is_removed_there_is_no_bar():
    predicted, retrained, reach = changes(1)
    intervals = metrics.fit_intervals(predicted, retrained, REMOVED, reach)
    wide = metrics.half_widths(intervals, predicted[:2], [0.0, 0.01], reach)
    assert (wide[0] == 0).all()
    assert (wide[1] > 0).all()
    with pytest.raises(ValueError, match=r"reach \(3,\) must be one of each column of \(2, 400\)"):
        metrics.half_widths(intervals, predicted[:2], [0.1, 0.1], reach[:3])


def test_reach_of_half_precision_is_finite():
    scores = np.full((3, 2), 300, np.float16)
    np.testing.assert_array_equal(metrics.reach(scores), 300)


def test_twice_the_share_is_another_size():
    predicted, retrained, reach = changes(1)
    removed = np.repeat([0.25, 0.5], 8)
    sizes = metrics.fit_intervals(predicted, retrained, removed, reach).sizes
    np.testing.assert_allclose(np.exp(sizes), [0.25, 0.5])


def test_bars_follow_the_scale_of_the_output():
    predicted, retrained, reach = changes(1)
    one = metrics.fit_intervals(predicted, retrained, REMOVED, reach)
    two = metrics.fit_intervals(1000 * predicted, 1000 * retrained, REMOVED, 1000 * reach)
    np.testing.assert_allclose(
        metrics.half_widths(two, 1000 * predicted, REMOVED, 1000 * reach),
        1000 * metrics.half_widths(one, predicted, REMOVED, reach),
        rtol=1e-6,
    )


def test_perfect_predictions_have_hardly_any_bar():
    predicted, _, reach = changes(1)
    intervals = metrics.fit_intervals(predicted, predicted[None], REMOVED, reach)
    wide = metrics.half_widths(intervals, predicted, REMOVED, reach)
    assert np.isfinite(wide).all()
    assert wide.max() < 0.01 * np.abs(predicted).max()


def test_one_size_serves_all():
    predicted, retrained, reach = changes(1, removed=np.full(4, 0.5))
    intervals = metrics.fit_intervals(predicted, retrained, np.full(4, 0.5), reach)
    small = metrics.half_widths(intervals, predicted[:1], [0.01], reach)
    np.testing.assert_array_equal(
        small, metrics.half_widths(intervals, predicted[:1], [0.5], reach)
    )


def test_what_is_not_finite_is_refused():
    predicted, retrained, reach = changes(1)
    retrained[0, 3, 7] = np.nan
    with pytest.raises(ValueError, match="changes and reach must be finite"):
        metrics.fit_intervals(predicted, retrained, REMOVED, reach)


@pytest.mark.parametrize("reach", [np.ones(1), np.ones((1, 5))])
def test_a_reach_that_is_not_one_a_query_is_refused(reach):
    with pytest.raises(ValueError, match="must be"):
        metrics.fit_intervals(np.ones((4, 5)), np.ones((2, 4, 5)), [0.5] * 4, reach)
    with pytest.raises(ValueError, match="must be"):
        metrics.fit_intervals(np.ones((4, 5)), np.ones((0, 4, 5)), [0.5] * 4, np.ones(5))


@pytest.mark.parametrize(
    ("shape", "removed", "told"),
    [
        ((2, 3, 5), [0.5, 0.5], "must be"),
        ((2, 4, 5), [0.5] * 3, "must be"),
        ((2, 4, 5), [0.5, 0.5, 0.5, 1.0], "removed=1.0"),
    ],
)
def test_what_does_not_fit_is_refused(shape, removed, told):
    with pytest.raises(ValueError, match=told):
        metrics.fit_intervals(np.ones((4, 5)), np.ones(shape), removed, np.ones(5))
