"""Correlations and ceilings against numbers by hand, scipy, and truths of known reliability."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ddm_jax import metrics
from ddm_jax.metrics import correlation as by_rows

KINDS = ["spearman", "pearson", "kendall"]
SCIPY = {"spearman": stats.spearmanr, "pearson": stats.pearsonr, "kendall": stats.kendalltau}


def equal(actual, expected, **tolerance):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, **{"atol": 1e-12, **tolerance})


def column(*values) -> np.ndarray:
    return np.array(values, float)[:, None]


# A query at a time


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Rank differences 0, 1, 1, 0: 1 - 6 * 2 / (4 * 15).
        ("spearman", 0.8),
        # Deviations -1.5 -.5 .5 1.5 and -3 -1 -2 6: 13 / sqrt(5 * 50).
        ("pearson", 13 / np.sqrt(250)),
        # Five of the six pairs agree, one does not.
        ("kendall", 4 / 6),
    ],
)
def test_correlations_by_hand(kind, expected):
    predicted, truth = column(1, 2, 3, 4), column(1, 3, 2, 10)
    equal(metrics.per_query_correlation(predicted, truth, kind), [expected])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Ranks 1.5 1.5 3 and 1 2 3: 1.5 / sqrt(1.5 * 2).
        ("spearman", 1.5 / np.sqrt(3)),
        # tau-b: two pairs agree, one of three is tied on one side.
        ("kendall", 2 / np.sqrt(2 * 3)),
    ],
)
def test_ties_by_hand(kind, expected):
    equal(metrics.per_query_correlation(column(1, 1, 2), column(1, 2, 3), kind), [expected])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_correlations_are_scipys_over_the_rows_that_count(kind, ties, masked, rng):
    a, b = rng.standard_normal((2, 14, 5))
    if ties:
        a, b = a.round(), b.round()
    rows = rng.random((14, 5)) < 0.7 if masked else np.ones((14, 5), bool)
    assert rows.all() != masked
    theirs = [SCIPY[kind](a[r, q], b[r, q]).statistic for q, r in enumerate(rows.T)]
    equal(metrics.per_query_correlation(a, b, kind, rows if masked else None), theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_constant_queries_have_no_correlation_and_are_counted(kind, rng):
    predicted, truth = rng.standard_normal((2, 6, 4))
    predicted[:, 1] = 0.1  # its mean is not quite 0.1
    truth[:, 3] = -0.7
    told = metrics.agreement(predicted, truth, kind)
    assert told.per_query.shape == (4,)
    np.testing.assert_array_equal(np.isnan(told.per_query), [False, True, False, True])
    assert told.undefined == 2
    assert told.mean == pytest.approx((told.per_query[0] + told.per_query[2]) / 2)
    # The intervals are those of the queries that are left.
    rest = metrics.agreement(predicted[:, ::2], truth[:, ::2], kind)
    equal(told.over_rows, rest.over_rows)
    equal(told.over_queries, rest.over_queries)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_constant_over_the_rows_that_count_is_undefined(kind, rng):
    predicted, truth = rng.standard_normal((2, 4, 3))
    truth[:2, 0] = 5.0
    # The first query counts two equal truths, the second one row, the third none.
    rows = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
    told = metrics.agreement(predicted, truth, kind, rows)
    equal(told.per_query, [np.nan] * 3)
    assert told.undefined == 3


@pytest.mark.parametrize("kind", KINDS)
def test_all_constant_is_nan_without_a_warning(kind):
    told = metrics.agreement(np.ones((5, 2)), np.ones((5, 2)), kind)
    assert np.isnan([told.mean, *told.over_rows, *told.over_queries]).all()
    assert told.undefined == 2


@pytest.mark.parametrize(
    ("predicted", "truth", "kind", "rows", "message"),
    [
        (np.zeros((3, 2)), np.zeros((2, 3)), "spearman", None, r"predictions \(3, 2\).*\(2, 3\)"),
        (np.zeros(3), np.zeros(3), "spearman", None, "one shape"),
        (np.zeros((1, 3)), np.zeros((1, 3)), "spearman", None, "R >= 2"),
        (np.zeros((3, 0)), np.zeros((3, 0)), "spearman", None, "Q >= 1"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "cosine", None, "kind='cosine'; choose"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "spearman", np.ones((3, 1)), r"rows have .*\(3, 1\)"),
    ],
)
def test_bad_arguments_are_named(predicted, truth, kind, rows, message):
    for score in (metrics.agreement, metrics.per_query_correlation):
        with pytest.raises(ValueError, match=message):
            score(predicted, truth, kind, rows)


def test_pooled_correlation_is_over_all_pairs(rng):
    a, b = rng.standard_normal((2, 4, 3))
    for kind in KINDS:
        expected = SCIPY[kind](a.ravel(), b.ravel()).statistic
        assert metrics.pooled_correlation(a, b, kind) == pytest.approx(expected)
    assert metrics.pooled_correlation(a, b) == metrics.pooled_correlation(a, b, "pearson")
    assert np.isnan(metrics.pooled_correlation(a, np.ones((4, 3))))


# Scores of an attribution


def test_additive_outputs_by_hand():
    scores, masks = [[1, 2], [10, 20]], [[1, 0], [0, 0], [1, 1]]
    equal(metrics.additive_outputs(scores, masks), [[1, 2], [0, 0], [11, 22]])


def test_a_perfect_linear_datamodel_scores_one_and_its_negative_minus_one(rng):
    masks = rng.integers(0, 2, (20, 7))
    scores = rng.standard_normal((7, 9))
    truth = 3.0 + metrics.additive_outputs(scores, masks)
    for sign in (1, -1):
        predicted = metrics.additive_outputs(sign * scores, masks)
        told = metrics.linear_datamodeling_score(predicted, truth)
        assert told.mean == pytest.approx(sign)
        equal(told.per_query, [sign] * 9)
        equal(told.over_rows, [sign, sign])
        equal(told.over_queries, [sign, sign])


def test_group_lds_is_within_each_size_not_across_sizes():
    # Larger subsets have larger outputs; among subsets of one size the prediction is backwards.
    predicted, truth = column(1, 2, 3, 11, 12, 13), column(3, 2, 1, 13, 12, 11)
    keep = np.array([0.25, 0.25, 0.25, 0.75, 0.75, 0.75])
    told = metrics.group_lds(predicted, truth, keep)
    means = {fraction: score.mean for fraction, score in told.items()}
    assert means == pytest.approx({0.25: -1, 0.75: -1})
    # Together, rank differences 2 0 2 2 0 2: 1 - 6 * 16 / (6 * 35).
    together = metrics.linear_datamodeling_score(predicted, truth)
    assert together.mean == pytest.approx(1 - 96 / 210)


def test_group_lds_takes_rows_in_any_order(rng):
    predicted, truth = rng.standard_normal((2, 9, 4))
    keep = np.array([0.5, 0.2, 0.9] * 3)
    told = metrics.group_lds(predicted, truth, keep)
    assert list(told) == [0.2, 0.5, 0.9]
    for start, fraction in enumerate((0.5, 0.2, 0.9)):
        alone = metrics.linear_datamodeling_score(predicted[start::3], truth[start::3])
        equal(told[fraction].per_query, alone.per_query)


def test_own_class_and_other_classes_by_hand():
    group_class, query_class = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1])
    truth = np.array([[1, 2, 3, 1, 2, 3]] * 2).T
    # Query 0: its own groups in order, the others backwards. Query 1: the others backwards, of
    # its own two changed places, 1 - 6 * 2 / (3 * 8).
    scores = np.array([[1, 2, 3, 3, 2, 1], [3, 2, 1, 1, 3, 2]]).T
    own = group_class[:, None] == query_class
    for rows, expected in ((own, [1, 0.5]), (~own, [-1, -1])):
        told = metrics.leave_one_out_correlation(scores, truth, rows=rows)
        equal(told.per_query, expected)
        assert told.mean == pytest.approx(np.mean(expected))


# Intervals


def gaussian(rng, correlation: float, rows: int, queries: int, shared: float = 0.0):
    """Predictions and truths of one known correlation; queries share a part of every row."""
    common, own = rng.standard_normal((2, 2, rows, 1)), rng.standard_normal((2, 2, rows, queries))
    a, b = (np.sqrt(shared) * common + np.sqrt(1 - shared) * own)[0]
    return a, correlation * a + np.sqrt(1 - correlation**2) * b


def test_over_rows_by_hand():
    told = metrics.agreement(column(1, 2, 3, 4), column(2, 1, 3, 4))
    assert told.mean == pytest.approx(0.8)
    # Without each row 1, 1, .5, .5: squares about their mean add up to .25, times (R - 1) / R.
    # Student's t of 3 degrees of freedom is 3.182; the slope of atanh is 1 / (1 - .8^2).
    reach = 3.182446 * np.sqrt(3 / 4 * 0.25) / 0.36
    equal(told.over_rows, np.tanh(np.arctanh(0.8) + np.array([-reach, reach])), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_over_rows_covers_the_true_correlation_though_queries_share_their_rows(kind, correlation):
    arcsine = np.arcsin(correlation) * 2 / np.pi
    ranks = np.arcsin(correlation / 2) * 6 / np.pi
    true = {"pearson": correlation, "spearman": ranks, "kendall": arcsine}[kind]
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(150):
        told = metrics.agreement(*gaussian(rng, correlation, 25, 4, shared=0.5), kind)
        low, high = told.over_rows
        assert -1 <= low < told.mean < high <= 1
        hits.append(low <= true <= high)
    assert 0.88 <= np.mean(hits) <= 0.995


def test_over_queries_covers_the_mean_over_all_queries():
    rng = np.random.default_rng(2)
    hits = []
    for _ in range(200):
        # Queries of several correlations, .5 on average, independent of one another.
        correlations = rng.choice([0.2, 0.8], 30)
        pairs = [gaussian(rng, each, 60, 1) for each in correlations]
        a, b = (np.concatenate(side, 1) for side in zip(*pairs, strict=True))
        low, high = metrics.mean_interval(metrics.per_query_correlation(a, b, "pearson"))
        assert -1 <= low < high <= 1
        hits.append(low <= 0.5 <= high)
    assert 0.88 <= np.mean(hits) <= 0.995


def test_over_queries_is_the_interval_of_the_mean_of_the_queries(rng):
    told = metrics.agreement(*rng.standard_normal((2, 8, 12)))
    assert told.over_queries == metrics.mean_interval(told.per_query)


def test_over_rows_is_the_wider_one_where_queries_share_their_noise(rng):
    told = metrics.agreement(*gaussian(rng, 0.5, 20, 50, shared=0.99))
    rows, queries = (high - low for low, high in (told.over_rows, told.over_queries))
    assert rows > 5 * queries


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_stay_in_range_and_need_three_rows(kind, rng):
    for count in (3, 4, 6):
        a = rng.standard_normal((count, 3))
        told = metrics.agreement(a, a + 0.1 * rng.standard_normal((count, 3)), kind)
        assert -1 <= told.over_rows[0] <= told.over_rows[1] <= 1
        assert -1 <= told.over_queries[0] <= told.over_queries[1] <= 1
    two = metrics.agreement(a[:2], a[:2], kind)
    assert two.mean == pytest.approx(1)
    assert np.isnan(two.over_rows).all()
    # Without its last row the prediction is constant: two values are left, too few.
    assert np.isnan(metrics.agreement(column(1, 1, 2), column(1, 2, 3), kind).over_rows).all()


@pytest.mark.parametrize("count", [2, 49, 50, 51, 101, 1000])
def test_the_jackknife_deletes_every_row_once_in_at_most_fifty_even_blocks(count):
    rows = np.ones((count + 2, 3), bool)
    rows[[0, 2]] = False  # rows that count for no query are no block
    deleted = [rows.any(1) & ~left.any(1) for left in by_rows.rows_left(rows)]
    np.testing.assert_array_equal(np.sum(deleted, 0), rows.any(1))
    sizes = np.sum(deleted, 1)
    assert len(deleted) <= 50
    assert len(deleted) >= min(count, 25)
    assert sizes.max() - sizes.min() <= 1


def test_blocks_give_about_the_interval_of_single_rows(rng, monkeypatch):
    values = gaussian(rng, 0.6, 400, 5)
    blocks = metrics.agreement(*values).over_rows
    ceiling = metrics.noise_ceiling(np.stack(values)).interval
    monkeypatch.setattr(by_rows, "MOST_BLOCKS", 400)
    np.testing.assert_allclose(blocks, metrics.agreement(*values).over_rows, atol=0.02)
    np.testing.assert_allclose(ceiling, metrics.noise_ceiling(np.stack(values)).interval, atol=0.02)


def test_queries_in_slices_are_the_same(rng, monkeypatch):
    values = np.stack(gaussian(rng, 0.6, 20, 11))
    whole = metrics.agreement(*values, "kendall"), metrics.noise_ceiling(values, "kendall")
    monkeypatch.setattr(by_rows, "MOST_PAIRS", 3 * 20**2)
    assert len(by_rows.query_slices((20, 11), "kendall")) == 4
    cut = metrics.agreement(*values, "kendall"), metrics.noise_ceiling(values, "kendall")
    np.testing.assert_array_equal(whole[0].per_query, cut[0].per_query)
    assert (whole[0].over_rows, whole[1]) == (cut[0].over_rows, cut[1])


def test_pooled_kendall_of_many_pairs_does_not_compare_them_all_at_once(rng):
    a, b = gaussian(rng, 0.6, 100, 400)  # all pairs of pairs would take 12 GiB
    expected = stats.kendalltau(a.ravel(), b.ravel()).statistic
    assert metrics.pooled_correlation(a, b, "kendall") == pytest.approx(expected, abs=1e-12)


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


# Ceilings


def test_spearman_brown_and_its_ceiling_by_hand():
    assert metrics.spearman_brown(0.5, 1) == 0.5
    assert metrics.spearman_brown(0.5, 3) == pytest.approx(0.75)
    assert metrics.ceiling_of(0.728, 1) == pytest.approx(0.853, abs=5e-4)
    assert metrics.ceiling_of(0.728, 4) == pytest.approx(0.956, abs=5e-4)
    assert metrics.ceiling_of(1.0, 7) == 1.0
    # At -.5 three runs are at the formula's pole.
    assert [metrics.ceiling_of(r, 3) for r in (0.0, -0.2, -0.5, -1.0)] == [0, 0, 0, 0]
    assert np.isnan(metrics.ceiling_of(float("nan"), 3))


def test_runs_needed_by_hand():
    # .956 with 4 runs, .946 with 3.
    assert metrics.runs_needed(0.728, 0.95) == 4
    # .5 in S runs has S / (S + 1): .81 takes 4.26 of them.
    assert metrics.runs_needed(0.5, 0.9) == 5
    assert metrics.runs_needed(0.5, 0.0) == 1
    assert metrics.runs_needed(1.0, 0.999) == 1
    assert [metrics.runs_needed(r, 0.5) for r in (0.0, -0.1, float("nan"))] == [None] * 3


@pytest.mark.parametrize("reliability", [0.05, 0.3, 0.5, 0.728, 0.95])
def test_runs_needed_is_the_inverse_of_the_ceiling(reliability):
    for runs in range(1, 40):
        reached = metrics.ceiling_of(reliability, runs)
        assert metrics.runs_needed(reliability, reached) == runs
        assert metrics.runs_needed(reliability, reached + 1e-6) == runs + 1


@pytest.mark.parametrize("ceiling", [1.0, 1.5, -0.1, float("nan")])
def test_runs_needed_refuses_a_ceiling_that_is_none(ceiling):
    with pytest.raises(ValueError, match=f"ceiling={ceiling}; it must be a finite number"):
        metrics.runs_needed(0.5, ceiling)


def test_noise_ceiling_of_two_and_three_runs_by_hand():
    a, b, c = column(1, 2, 3, 4), column(1, 3, 2, 4), column(2, 1, 3, 4)
    two = metrics.noise_ceiling(np.stack([a, b]))
    assert two.reliability == two.one_run == pytest.approx(0.8)
    assert two.perfect == pytest.approx(np.sqrt(2 * 0.8 / 1.8))
    assert (two.runs, two.undefined) == (2, 0)
    # a and b, a and c: .8; b and c: .4. Mean r = 2 / 3, and 3 r / (1 + 2 r) = 6 / 7.
    three = metrics.noise_ceiling(np.stack([a, b, c]))
    assert three.reliability == pytest.approx(2 / 3)
    assert three.perfect == pytest.approx(np.sqrt(6 / 7))
    # a against 1.5 2 2.5 4: 1; b against 1.5 1.5 3 4 and c against 1 2.5 2.5 4: 3 / sqrt(4.5 * 5).
    assert three.one_run == pytest.approx((1 + 2 * 3 / np.sqrt(22.5)) / 3)
    assert three.runs == 3


@pytest.mark.parametrize("seeds", [2, 5])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_noise_ceiling_of_a_truth_with_known_reliability(seeds, ratio, rng):
    """Signal of variance v, noise of variance 1 a seed: correlations have closed forms."""
    signal = np.sqrt(ratio) * rng.standard_normal((500, 30))
    truth = signal + rng.standard_normal((seeds, 500, 30))
    pearson = metrics.noise_ceiling(truth, "pearson")
    assert pearson.reliability == pytest.approx(ratio / (ratio + 1), abs=0.02)
    # A perfect predictor against the mean of S seeds.
    perfect = np.sqrt(ratio / (ratio + 1 / seeds))
    assert pearson.perfect == pytest.approx(perfect, abs=0.02)
    measured = metrics.per_query_correlation(signal, truth.mean(0), "pearson")
    assert measured.shape == (30,)
    assert pearson.perfect == pytest.approx(measured.mean(), abs=0.02)
    # One seed against the mean of the S - 1 others.
    others = ratio + 1 / (seeds - 1)
    assert pearson.one_run == pytest.approx(ratio / np.sqrt((ratio + 1) * others), abs=0.02)


def test_noise_ceiling_of_ranks_is_close(rng):
    signal = rng.standard_normal((200, 40))
    truth = signal + rng.standard_normal((4, 200, 40))
    ceiling = metrics.noise_ceiling(truth)
    # Spearman's of a bivariate normal of Pearson's sqrt(1 / (1 + 1 / 4)).
    assert ceiling.perfect == pytest.approx(np.arcsin(np.sqrt(0.8) / 2) * 6 / np.pi, abs=0.02)
    measured = metrics.per_query_correlation(signal, truth.mean(0))
    assert measured.shape == (40,)
    assert ceiling.perfect == pytest.approx(measured.mean(), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("pooled", [False, True])
def test_the_ceilings_interval_covers_the_known_ceiling(pooled):
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(150):
        truth = rng.standard_normal((40, 20)) + rng.standard_normal((4, 40, 20))
        ceiling = metrics.noise_ceiling(truth, "pearson", pooled=pooled)
        low, high = ceiling.interval
        assert 0 < low < ceiling.perfect < high < 1
        hits.append(low <= np.sqrt(0.8) <= high)
    assert 0.88 <= np.mean(hits) <= 0.995


def test_a_pooled_ceiling_is_that_of_all_pairs_and_its_interval_is_over_rows(rng):
    truth = rng.standard_normal((12, 3)) + rng.standard_normal((3, 12, 3))
    for kind in KINDS:
        pooled = metrics.noise_ceiling(truth, kind, pooled=True)
        flat = metrics.noise_ceiling(truth.reshape(3, -1, 1), kind)
        equal(pooled[:3], flat[:3])
    # Copies of a query are no new rows.
    one = metrics.noise_ceiling(truth[..., :1], "pearson")
    copied = metrics.noise_ceiling(np.repeat(truth[..., :1], 9, 2), "pearson", pooled=True)
    equal(copied.interval, one.interval)


def test_a_ceiling_over_some_rows_is_that_of_those_rows(rng):
    truth = rng.standard_normal((12, 3)) + rng.standard_normal((3, 12, 3))
    half = np.arange(12) % 2 == 0
    for kind in KINDS:
        some = metrics.noise_ceiling(truth, kind, rows=np.repeat(half[:, None], 3, 1))
        equal(some[:3], metrics.noise_ceiling(truth[:, half], kind)[:3])
    # Each query has rows of its own: the mean of three ceilings of one query each.
    rows = rng.random((12, 3)) < 0.6
    each = [metrics.noise_ceiling(truth[:, r, q : q + 1]) for q, r in enumerate(rows.T)]
    told = metrics.noise_ceiling(truth, rows=rows)
    assert told.reliability == pytest.approx(np.mean([one.reliability for one in each]))
    assert told.one_run == pytest.approx(np.mean([one.one_run for one in each]))


def test_runs_that_are_alike_have_a_ceiling_of_one(rng):
    truth = np.repeat(rng.standard_normal((1, 8, 3)), 3, 0)
    ceiling = metrics.noise_ceiling(truth)
    equal([*ceiling[:3], *ceiling.interval], np.ones(5))


def test_seeds_that_contradict_one_another_have_a_ceiling_of_zero(rng):
    signal = rng.standard_normal((6, 2))
    two = metrics.noise_ceiling(np.stack([signal, -signal]), "pearson")
    equal(two[:3], [-1, -1, 0])
    equal(two.interval, [0, 0])
    # Pairs of -.5: three runs at the formula's pole.
    runs = np.stack([column(1, 0, -1), column(0, -1, 1), column(-1, 1, 0)])
    three = metrics.noise_ceiling(runs, "pearson")
    equal(three[:3], [-0.5, -1, 0])


def test_constant_truths_have_no_ceiling_and_are_counted(rng):
    for pooled in (False, True):
        ceiling = metrics.noise_ceiling(np.zeros((3, 4, 2)), pooled=pooled)
        assert np.isnan([*ceiling[:3], *ceiling.interval]).all()
        assert ceiling.undefined == (1 if pooled else 2)
    truth = rng.standard_normal((3, 6, 4))
    truth[1, :, 2] = 0.1  # in one run is enough
    ceiling, rest = (metrics.noise_ceiling(t) for t in (truth, np.delete(truth, 2, 2)))
    assert (ceiling.undefined, rest.undefined) == (1, 0)
    assert ceiling.reliability == pytest.approx(rest.reliability)
    equal(ceiling.interval, rest.interval)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((1, 4, 2), {}, r"\(1, 4, 2\).*S >= 2 runs"),
        ((4, 2), {}, r"must be \[S, R, Q\]"),
        ((2, 1, 3), {}, "R >= 2 rows"),
        ((2, 3, 0), {}, "Q >= 1 queries"),
        ((2, 4, 2), {"kind": "cosine"}, "kind='cosine'; choose"),
        ((2, 4, 2), {"pooled": True, "rows": np.ones((4, 2))}, "exclude each other"),
        ((2, 4, 2), {"rows": np.ones((4, 1))}, "rows have shape"),
    ],
)
def test_noise_ceiling_names_what_is_wrong(shape, settings, message, rng):
    with pytest.raises(ValueError, match=message):
        metrics.noise_ceiling(rng.standard_normal(shape), **settings)
