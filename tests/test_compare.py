"""Estimators on one truth: what they are asked, what is chosen, and what they score.

No network is trained here: the truths are drawn, and `Spy` is an estimator that answers as it is
told and keeps what it was asked, by the row of the query and of the mask.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_problem import DISTILL, GROUPS, UPDATE, small_problem, split, task

from ddm_jax import estimators, metrics
from ddm_jax.cluster import as_groups
from ddm_jax.estimators.ddm import DDMState
from ddm_jax.judge import candidates, compare, scoring
from ddm_jax.judge.candidates import BUDGET, CANDIDATES, Candidates
from ddm_jax.judge.compare import check_estimators, split_parts
from ddm_jax.judge.problem import make_problem, trainer_of
from ddm_jax.judge.scoring import LEAVE_ONE_OUT
from ddm_jax.judge.truth import Truth, truth_key
from ddm_jax.synset import all_members
from ddm_jax.types import Estimator, Synset
from ddm_jax.updates import UpdateSettings

QUERIES = 40
LDS = "LDS, keep 0.5"


class Asked(NamedTuple):
    """One call of an estimator."""

    settings: dict
    score: str
    rows: tuple[int, ...]  # of the random subsets; empty for leave-one-out
    queries: tuple[int, ...]


class Spy:
    """A fake estimator: `answer(settings, rows or None, queries)` gives what it says."""

    def __init__(self, truth, answer, additive=False):
        self.fits: list[tuple[dict, jax.Array]] = []
        self.asked: list[Asked] = []
        self.answer, self.additive, self.truth = answer, additive, truth
        self.of_query = {np.asarray(x).tobytes(): q for q, x in enumerate(split().test.x)}
        self.of_mask = {mask.tobytes(): row for row, mask in enumerate(truth.masks)}
        # Otherwise it could not tell what it was asked for.
        assert len(self.of_query) == len(split().test.x)
        assert len(self.of_mask) == len(truth.masks)

    def make(self, problem, chosen) -> Estimator:
        def fit(key, run, data, groups):
            self.fits.append((chosen, key))
            return jnp.asarray(len(self.fits))

        def say(state, masks, query):
            # The state of an own fit: one with the same offline settings.
            offline = {name: value for name, value in chosen.items() if name.startswith("fit")}
            fitted = self.fits[int(state) - 1][0]
            assert offline == {name: fitted[name] for name in offline}
            queries = [self.of_query[np.asarray(x).tobytes()] for x in query.x]
            rows = None
            if masks is not None:
                rows = [self.of_mask[np.asarray(mask).tobytes()] for mask in masks]
            score = LEAVE_ONE_OUT if rows is None else f"LDS, keep {self.truth.keep[rows[0]]:g}"
            self.asked.append(Asked(chosen, score, tuple(rows or ()), tuple(queries)))
            return self.answer(chosen, rows, queries)

        def score(state, query):
            return say(state, None, query)

        def outputs(state, masks, query):
            return say(state, masks, query)

        return Estimator(fit, score, None if self.additive else outputs)


def make_truth(
    rng, *, num_groups=10, subsets=12, keep=(0.5,), seeds=3, noise=0.0, leave_one_out=True
) -> Truth:
    """A linear truth: every group adds its own effect, and every run its noise."""
    effects = rng.normal(size=(num_groups, QUERIES))
    masks = [np.zeros((0, num_groups), np.float32)]
    for fraction in keep if subsets else ():
        # Masks that differ, so that a mask says which row it is.
        every = list(itertools.combinations(range(num_groups), round(fraction * num_groups)))
        chosen = rng.choice(len(every), subsets, replace=False)
        masks.append(np.array([np.isin(range(num_groups), every[c]) for c in chosen], np.float32))
    masks = np.concatenate(masks)

    def runs(outputs):
        shape = (seeds, *outputs.shape)
        return (outputs + noise * rng.normal(size=shape)).astype(np.float32)

    single = num_groups if leave_one_out else 0
    return Truth(
        full=runs(effects.sum(0))[: seeds if single else 0],
        single=runs(effects.sum(0) - effects[:single])[: seeds if single else 0],
        groups=np.arange(single),
        masks=masks,
        keep=np.repeat(keep if subsets else (), subsets),
        subsets=runs(masks @ effects),
        seconds=0.1,
    )


def exact(truth):
    """What an estimator that knows the truth says."""

    def answer(settings, rows, queries):
        if rows is None:
            return truth.effects().mean(0)[:, queries]
        return truth.subsets.mean(0)[rows][:, queries]

    return answer


@pytest.fixture(scope="module")
def problem():
    return small_problem()


def _judge(name, truth, groups=GROUPS, run=None, **options):
    data, query = split().train, split().test
    return compare.judge(name, small_problem(), truth, run, data, query, groups, **options)


@pytest.fixture
def judged(monkeypatch):
    """Judge a spy with some candidates; returns it and its rows."""
    monkeypatch.setattr(compare, "program_of", lambda *_: "")  # it asks nothing of a spy

    def judge(truth, answer, offline=None, online=None, *, additive=False, groups=None, **options):
        spy = Spy(truth, answer, additive)
        candidates = Candidates(spy.make, offline or {}, online or {})
        monkeypatch.setitem(CANDIDATES, "spy", candidates)
        cuts = np.arange(120) % truth.masks.shape[1] if groups is None else groups
        return spy, _judge("spy", truth, as_groups(cuts), **options)

    return judge


# The two parts


@pytest.mark.parametrize(
    ("counts", "num_queries", "tuned", "queries"),
    [
        ({0.5: 40}, 797, {0.5: 10}, 199),
        ({0.5: 100}, 500, {0.5: 25}, 125),
        ({0.25: 20, 0.5: 8, 0.75: 6}, 40, {0.25: 5, 0.5: 3, 0.75: 3}, 10),
        ({0.5: 6}, 2, {0.5: 3}, 1),
        ({}, 40, {}, 10),
    ],
)
@pytest.mark.parametrize("seed", [0, 7])
def test_the_parts_share_nothing_and_cover_everything(counts, num_queries, tuned, queries, seed):
    keep = np.random.default_rng(seed).permutation(
        np.repeat(np.array(list(counts), float), list(counts.values()))
    )
    tuning, reporting = split_parts(keep, num_queries, seed)
    for both, count in (
        ((tuning.subsets, reporting.subsets), len(keep)),
        ((tuning.queries, reporting.queries), num_queries),
    ):
        assert sum(map(len, both)) == count
        np.testing.assert_array_equal(np.sort(np.concatenate(both)), np.arange(count))
        assert all(np.issubdtype(part.dtype, np.integer) for part in both)
        assert all((np.diff(part) > 0).all() for part in both)
    assert {k: int((keep[tuning.subsets] == k).sum()) for k in counts} == tuned
    assert len(tuning.queries) == queries


def test_the_parts_follow_the_seed_alone():
    keep = np.repeat([0.25, 0.5], 20)
    first, again, other = (split_parts(keep, 40, seed) for seed in (0, 0, 1))
    for part in range(2):
        for field in range(2):
            one, two, three = first[part][field], again[part][field], other[part][field]
            assert one.shape == two.shape == three.shape
            np.testing.assert_array_equal(one, two)
            assert not np.array_equal(one, three)


@pytest.mark.parametrize(
    ("keep", "num_queries", "message"),
    [
        ([0.5] * 5, 40, r"truth\.subsets=5 cannot be split .* use at least 6"),
        ([0.25] * 8 + [0.5] * 4, 40, r"truth\.subsets=4 cannot be split"),
        ([0.5] * 8, 1, "1 queries cannot be split in two; use at least 2"),
        ([], 1, "1 queries cannot be split"),
    ],
)
def test_too_little_to_split_is_refused(keep, num_queries, message):
    with pytest.raises(ValueError, match=message):
        split_parts(np.array(keep), num_queries, 0)


# What is asked of an estimator


def test_tuning_never_sees_what_is_reported(judged, rng):
    truth = make_truth(rng, keep=(0.5, 0.3), subsets=8, noise=0.5)
    tuned, reported, told = {}, {}, []

    def answer(settings, rows, queries):
        return exact(truth)(settings, rows, queries) * settings["a"]

    spy, rows = judged(truth, answer, online={"a": (1.0, -1.0)}, say=told.append)
    for score in (LEAVE_ONE_OUT, "LDS, keep 0.3", LDS):
        calls = [call for call in spy.asked if call.score == score]
        # One a candidate, then the chosen one, twice to tell its compilation apart.
        assert len(calls) == 4
        assert calls[2] == calls[3]
        tuned[score], reported[score] = calls[:2], calls[2]
        assert [call.settings["a"] for call in calls] == [1.0, -1.0, 1.0, 1.0]
    every_row, every_query = [], set()
    for score, calls in tuned.items():
        shown = reported[score]
        for call in calls:
            assert not set(call.queries) & set(shown.queries)
            assert not set(call.rows) & set(shown.rows)
            assert len(call.queries) == 10
            every_row += call.rows
        assert len(shown.queries) == 30
        every_row += shown.rows
        every_query |= set(shown.queries) | set(calls[0].queries)
    assert not any(tuned[LEAVE_ONE_OUT][0].rows + reported[LEAVE_ONE_OUT].rows)
    assert sorted(set(every_row)) == list(range(16))
    assert every_query == set(range(40))
    # The same queries for every score.
    assert len({call.queries for call in reported.values()}) == 1
    assert [row["counterfactuals"] for row in rows] == [10, 5, 5]
    assert {row["queries"] for row in rows} == {30}
    assert sum("on the tuning part" in text for text in told) == 6


def test_the_best_of_the_tuning_part_is_kept_though_it_reports_worse(judged, rng):
    truth = make_truth(rng)
    tuning, _ = split_parts(truth.keep, QUERIES, 0)

    def answer(settings, rows, queries):
        seen = set(queries) <= set(tuning.queries.tolist())
        right = exact(truth)(settings, rows, queries)
        return right if seen == (settings["a"] == "right in tuning") else -right

    _, rows = judged(truth, answer, online={"a": ("right later", "right in tuning")})
    assert [row["score"] for row in rows] == [LEAVE_ONE_OUT, LDS]
    for row in rows:
        assert row["settings"] == {"a": "right in tuning"}
        assert row["candidates"] == 2
        np.testing.assert_allclose(row["tuning_values"], [-1, 1], atol=1e-12)
        np.testing.assert_allclose(row["value"], -1, atol=1e-12)


def test_each_score_has_its_own_choice(judged, rng):
    truth = make_truth(rng)

    def answer(settings, rows, queries):
        right = exact(truth)(settings, rows, queries)
        return right if (rows is None) == settings["fit_single"] else -right

    _, rows = judged(truth, answer, offline={"fit_single": (True, False)})
    assert [row["settings"]["fit_single"] for row in rows] == [True, False]
    np.testing.assert_allclose([row["value"] for row in rows], [1, 1], atol=1e-12)


def test_a_single_candidate_is_not_tuned(judged, rng):
    truth = make_truth(rng)
    spy, rows = judged(truth, exact(truth))
    assert len(spy.fits) == 1
    assert [call.score for call in spy.asked] == [LEAVE_ONE_OUT] * 2 + [LDS] * 2
    assert all(len(call.queries) == 30 for call in spy.asked)
    for row in rows:
        assert (row["settings"], row["candidates"], row["tuning_values"]) == ({}, 1, [])


def test_other_parts_may_be_passed(judged, rng):
    truth = make_truth(rng)
    parts = (
        scoring.Part(np.arange(4), np.arange(5)),
        scoring.Part(np.arange(4, 12), np.arange(5, 9)),
    )
    spy, rows = judged(truth, exact(truth), online={"a": (1, 2)}, parts=parts)
    assert spy.asked[0].queries == (0, 1, 2, 3, 4)
    assert spy.asked[-1][2:] == (tuple(range(4, 12)), (5, 6, 7, 8))
    assert [(row["counterfactuals"], row["queries"]) for row in rows] == [(10, 4), (8, 4)]


def test_offline_settings_get_a_fit_each_and_online_ones_share_it(judged, rng, monkeypatch):
    truth = make_truth(rng)
    # Whose state is used for whom, the spy itself asserts.
    spy, rows = judged(
        truth, exact(truth), offline={"fit_items": (1, 5)}, online={"steps": (10, 20, 30)}
    )
    assert [settings["fit_items"] for settings, _ in spy.fits] == [1, 5]
    assert all(row["candidates"] == 6 for row in rows)
    tuned = [(call.settings["fit_items"], call.settings["steps"]) for call in spy.asked[:6]]
    assert tuned == [(1, 10), (1, 20), (1, 30), (5, 10), (5, 20), (5, 30)]


def test_a_fit_draws_nothing_that_the_truth_drew(judged, rng):
    """An estimator with the truth's own seeds would know its noise."""
    truth = make_truth(rng)
    spy, _ = judged(truth, exact(truth), offline={"fit": (1, 2)})
    drawn = [jax.random.fold_in(truth_key(0), i) for i in (0, 1, 10**6)]
    drawn += [jax.random.fold_in(drawn[1], seed) for seed in range(8)]
    taken = {np.asarray(jax.random.key_data(key)).tobytes() for key in drawn}
    assert len(taken) == len(drawn)
    keys = [np.asarray(jax.random.key_data(key)).tobytes() for _, key in spy.fits]
    assert len(keys) == 2
    assert keys[0] == keys[1]
    assert not set(keys) & taken


# The scores


@pytest.mark.parametrize("additive", [True, False])
def test_the_true_effects_score_one(judged, rng, additive):
    truth = make_truth(rng)
    spy, rows = judged(truth, exact(truth), additive=additive)
    assert [row["score"] for row in rows] == [LEAVE_ONE_OUT, LDS]
    # An additive one is asked for its scores alone, and they are added up.
    assert all((call.score == LEAVE_ONE_OUT) or not additive for call in spy.asked)
    for row in rows:
        for name in ("value", "value_one_run", "ceiling", "share_of_ceiling", "one_retraining"):
            np.testing.assert_allclose(row[name], 1, atol=1e-12, err_msg=name)
        assert row["undefined"] == 0
        assert row["runs"] == 3


def test_scores_and_ceilings_are_those_of_the_metrics(judged, rng):
    truth = make_truth(rng, noise=1.0, seeds=4)
    wrong = rng.normal(size=(10, QUERIES))

    def answer(settings, rows, queries):
        right = exact(truth)(settings, rows, queries)
        return right + 2 * (wrong if rows is None else truth.masks[rows] @ wrong)[:, queries]

    spy, rows = judged(truth, answer)
    for row, call in zip(rows, (spy.asked[0], spy.asked[2]), strict=True):
        queries = list(call.queries)
        if row["score"] == LEAVE_ONE_OUT:
            runs = (truth.full[:, None] - truth.single)[:, :, queries]
        else:
            runs = truth.subsets[:, list(call.rows)][:, :, queries]
        said = answer({}, list(call.rows) or None, queries)
        assert said.shape == runs.shape[1:]
        expected, ceiling = metrics.agreement(said, runs.mean(0)), metrics.noise_ceiling(runs)
        assert 0.1 < expected.mean < ceiling.perfect < 1
        assert row["value"] == expected.mean
        assert row["over_queries"] == list(expected.over_queries)
        assert row["over_rows"] == list(expected.over_rows)
        assert row["share_of_ceiling"] == expected.mean / ceiling.perfect
        one = [metrics.per_query_correlation(said, run).mean() for run in runs]
        np.testing.assert_allclose(row["value_one_run"], np.mean(one), rtol=1e-12)
        assert row["ceiling"] == ceiling.perfect
        assert row["ceiling_interval"] == list(ceiling.interval)
        assert row["one_retraining"] == ceiling.one_run
        assert (row["reliability"], row["runs"]) == (ceiling.reliability, 4)
        np.testing.assert_allclose(row["ceiling_one_run"], ceiling.reliability**0.5, rtol=1e-12)
        needed = row["runs_for_ceiling_0.8"]
        assert metrics.ceiling_of(ceiling.reliability, needed) >= 0.8
        assert metrics.ceiling_of(ceiling.reliability, needed - 1) < 0.8 or needed == 1


def test_own_and_other_classes_are_told_apart(judged, rng):
    labels, queries = split().train.y.argmax(1), split().test.y.argmax(1)
    # Three groups a class; a stray point of another class does not change whose group it is.
    groups = 3 * labels + np.arange(len(labels)) % 3
    stray = np.flatnonzero(groups == 0)[0]
    groups[stray] = 4
    assert np.bincount(groups, minlength=30).min() > 0
    own = np.arange(30)[:, None] // 3 == queries
    truth = make_truth(rng, num_groups=30, subsets=0, noise=0.1)

    def answer(settings, rows, asked):
        return (exact(truth)(settings, rows, range(QUERIES)) * np.where(own, 1, -1))[:, asked]

    spy, rows = judged(truth, answer, groups=groups)
    (row,) = rows
    np.testing.assert_allclose([row["own_class"], row["other_class"]], [1, -1], atol=1e-12)
    shown = list(spy.asked[0].queries)
    runs = truth.effects()[:, :, shown]
    for name, which in (("own", own), ("other", ~own)):
        ceiling = metrics.noise_ceiling(runs, rows=which[:, shown]).perfect
        assert 0 < ceiling < 1
        assert row[f"{name}_class_ceiling"] == ceiling


def test_every_keep_fraction_has_a_row_with_its_own_subsets(judged, rng):
    truth = make_truth(rng, keep=(0.3, 0.5, 0.7), subsets=8)
    spy, rows = judged(truth, exact(truth))
    names = [LEAVE_ONE_OUT, "LDS, keep 0.3", LDS, "LDS, keep 0.7"]
    assert scoring.score_names(truth) == names
    assert [row["score"] for row in rows] == names
    for call in spy.asked[2:]:
        assert call.score in names[1:]
        assert {f"LDS, keep {truth.keep[row]:g}" for row in call.rows} == {call.score}
    assert all("own_class" in row for row in rows[:1])
    assert not any("own_class" in row for row in rows[1:])


def test_a_truth_of_one_kind_has_scores_of_that_kind(judged, rng):
    subsets_alone = make_truth(rng, leave_one_out=False)
    assert subsets_alone.effects().shape == (0, 0, QUERIES)
    _, rows = judged(subsets_alone, exact(subsets_alone))
    assert [row["score"] for row in rows] == [LDS]
    single_alone = make_truth(rng, subsets=0)
    assert single_alone.masks.shape == (0, 10)
    _, rows = judged(single_alone, exact(single_alone))
    assert [row["score"] for row in rows] == [LEAVE_ONE_OUT]


def test_rows_are_plain_json(judged, rng):
    truth = make_truth(rng, noise=1.0)
    _, rows = judged(truth, exact(truth), online={"a": (1, 2)})
    assert json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert row["estimator"] == "spy"
        for name in ("offline_seconds", "online_seconds", "compile_seconds"):
            assert isinstance(row[name], float)
            assert row[name] >= 0


def test_what_takes_long_is_not_run_twice(judged, rng, monkeypatch):
    monkeypatch.setattr(compare, "REPEAT_SECONDS", -1.0)
    truth = make_truth(rng)
    spy, rows = judged(truth, exact(truth))
    assert [call.score for call in spy.asked] == [LEAVE_ONE_OUT, LDS]
    assert [row["compile_seconds"] for row in rows] == [None, None]
    assert all(row["online_seconds"] > 0 for row in rows)


# What goes wrong


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("score", [LEAVE_ONE_OUT, LDS])
def test_values_that_are_not_finite_are_an_error(judged, rng, bad, score):
    truth = make_truth(rng)

    def answer(settings, rows, queries):
        values = exact(truth)(settings, rows, queries).copy()
        if (rows is None) == (score == LEAVE_ONE_OUT):
            values[1, 2] = bad
        return values

    with pytest.raises(ValueError, match=rf"values for {score} are not finite \(settings {{}}\)"):
        judged(truth, answer)


def test_a_candidate_that_diverges_is_not_chosen(judged, rng):
    truth = make_truth(rng)

    def answer(settings, rows, queries):
        right = exact(truth)(settings, rows, queries)
        return {"nan": right * np.nan, "wrong": -right, "right": right}[settings["a"]]

    _, rows = judged(truth, answer, online={"a": ("nan", "wrong", "right")})
    for row in rows:
        assert row["settings"] == {"a": "right"}
        assert len(row["tuning_values"]) == 3
        np.testing.assert_allclose(row["tuning_values"], [np.nan, -1, 1], atol=1e-12)


def test_constant_predictions_are_undefined_and_nothing_breaks(judged, rng):
    truth = make_truth(rng)

    def answer(settings, rows, queries):
        return np.zeros((10 if rows is None else len(rows), len(queries)))

    _, rows = judged(truth, answer, online={"a": (1, 2)})
    for row in rows:
        assert row["settings"] == {"a": 1}
        assert np.isnan([row["value"], row["share_of_ceiling"], *row["tuning_values"]]).all()
        assert row["undefined"] == 30


def test_a_truth_of_noise_alone_has_no_share_of_its_ceiling():
    """Two runs that disagree: the ceiling is 0, and nothing can be divided by it."""
    run = np.arange(12.0).reshape(6, 2)
    row = scoring.score_row(run, np.stack([run, 2 * run[::-1]]))
    assert row["ceiling"] == 0
    assert np.isnan(row["share_of_ceiling"])
    assert row["runs_for_ceiling_0.8"] is None


@pytest.mark.parametrize("answer", [lambda *_: np.zeros((10, 7)), lambda *_: np.zeros(30)])
def test_values_of_a_wrong_shape_are_an_error(judged, rng, answer):
    with pytest.raises(ValueError, match=r"predictions .* and truths \(10, 30\)"):
        judged(make_truth(rng), answer)


def test_groups_that_were_left_out_are_scored_alone(judged, rng):
    """A truth of a few single groups, as a run's check has it."""
    truth = make_truth(rng, noise=0.5)
    some = np.array([1, 4, 8])
    few = truth._replace(single=truth.single[:, some], groups=some)
    assert few.effects().shape == (3, 3, QUERIES)
    _, rows = judged(few, exact(truth))
    assert (rows[0]["score"], rows[0]["counterfactuals"]) == (LEAVE_ONE_OUT, 3)
    assert rows[0]["value"] > 0.99
    shuffled = truth._replace(single=truth.single[:, some[::-1]], groups=some[::-1].copy())
    _, again = judged(shuffled, exact(truth))
    assert again[0]["value"] == rows[0]["value"]
    assert again[0]["own_class"] == rows[0]["own_class"] or np.isnan(rows[0]["own_class"])


def test_outputs_are_judged_on_all_of_a_truth(rng):
    """As the check of a run does it."""
    truth = make_truth(rng, noise=0.5, keep=(0.3, 0.5))
    some = np.array([0, 3, 7])
    truth = truth._replace(single=truth.single[:, some], groups=some)
    scores = rng.normal(size=(10, QUERIES))
    outputs = truth.subsets.mean(0)
    found = scoring.judge_outputs(truth, scores, outputs)
    assert list(found) == [LEAVE_ONE_OUT, "LDS, keep 0.3", LDS]
    single = scoring.score_row(scores[some], truth.effects())
    assert found[LEAVE_ONE_OUT] == single
    assert single["counterfactuals"] == 3
    assert single["queries"] == QUERIES
    for name, rows in (("LDS, keep 0.3", slice(12)), (LDS, slice(12, 24))):
        np.testing.assert_allclose(found[name]["value"], 1, atol=1e-12)
        assert found[name]["ceiling"] == metrics.noise_ceiling(truth.subsets[:, rows]).perfect
    added = scoring.judge_outputs(truth, scores)
    assert added[LEAVE_ONE_OUT] == single
    by_hand = scoring.score_row(truth.masks[12:] @ scores, truth.subsets[:, 12:])
    np.testing.assert_allclose(added[LDS]["value"], by_hand["value"], rtol=1e-6)
    told = scoring.ceilings(truth)
    assert list(told) == list(found)
    assert all(found[name].items() >= told[name].items() for name in told)


@pytest.mark.slow
def test_the_memory_of_an_estimator_is_not_that_of_those_before_it(judged, rng):
    """Version 0.8 gave each the most that the process ever held."""
    if not compare._reset_peak():
        pytest.skip("this system does not say")
    truth = make_truth(rng)

    def hungry(settings, rows, queries):
        held = np.ones(2**27)  # a GiB
        return exact(truth)(settings, rows, queries) * held[0]

    peaks = [judged(truth, answer)[1][0]["peak_gib"] for answer in (hungry, exact(truth))]
    assert peaks[0] - peaks[1] > 0.9


def test_memory_that_nobody_tells_is_null(judged, rng, monkeypatch):
    monkeypatch.setattr(compare, "_reset_peak", lambda: False)
    truth = make_truth(rng)
    assert judged(truth, exact(truth))[1][0]["peak_gib"] is None


# What an estimator computes


@pytest.fixture(scope="module")
def run():
    train = jax.jit(trainer_of(small_problem()).train)
    return train(jax.random.key(0), split().train, jnp.ones(120))


def _program(name, run, problem=None, **options):
    return compare.program_of(
        name, problem or small_problem(), run, split().train, split().test, GROUPS, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grad_dot", "tracin", "ddm", "source"])
def test_a_program_is_the_same_every_time_and_others_are_others(run, name, monkeypatch):
    """The last two work on the host, so that their code counts."""
    before = _program(name, run)
    assert _program(name, run) == before
    assert len(before) == 16
    others = {_program(other, run) for other in ("grad_dot", "tracin", "ddm", "source")}
    assert len(others) == 4
    ours = CANDIDATES[name]
    more = ours._replace(
        offline=ours.offline | {"damping": (1, 2)},
        make=lambda p, c: ours.make(
            p, {setting: value for setting, value in c.items() if setting != "damping"}
        ),
    )
    assert _program(name, run, candidates=more) != before


def test_an_edited_score_is_another_program_and_an_edited_docstring_is_not(run, monkeypatch):
    make = estimators.make_grad_dot

    def edited(change, doc):
        def candidate(problem, chosen):
            found = make(problem.task)

            def score(state, query):
                return change(found.score(state, query))

            score.__doc__ = doc
            return found._replace(score=score)

        return _program("grad_dot", run, candidates=Candidates(candidate, {}, {}))

    base = _program("grad_dot", run)
    assert edited(lambda scores: scores, "Said.") == base
    assert edited(lambda scores: scores, "Said otherwise.") == base
    assert edited(lambda scores: 2 * scores, "Said.") != base


def test_another_network_or_loss_is_another_program(run):
    base = small_problem()
    other = task()._replace(loss=lambda params, batch: 2 * task().loss(params, batch))
    parts = (base.train, base.distill, base.update, base.truth)
    changed = make_problem(other, *parts, num_points=120, seed=0)
    assert _program("grad_dot", run, changed) != _program("grad_dot", run)


# Names and settings, before any work


def _check(names, problem) -> None:
    check_estimators(names, problem, split().test)


def test_the_estimators_that_there_are_may_be_compared(problem):
    _check(list(CANDIDATES), problem)
    assert {"ddm", "grad_dot", "retraining"} <= set(CANDIDATES)
    assert set(candidates.VARIANTS) <= set(CANDIDATES)


DISTILLING = {
    "ddm": ("make_ddm", {"steps": 100, "rewind": 0.0}),
    "forward_matching": ("make_forward_matching", {"steps": 400}),
    "synset_influence": ("make_synset_influence", {"damping": 0.01}),
}


def watched(monkeypatch, made: str) -> list:
    """The arguments that a candidate gives to the maker of its estimator, which is made."""
    make, calls = getattr(candidates, made), []

    def watching(*args, **named):
        calls.append((args, named))
        return make(*args, **named)

    monkeypatch.setattr(candidates, made, watching)
    return calls


@pytest.mark.parametrize("name", DISTILLING)
def test_no_setting_of_a_problem_is_dropped(monkeypatch, name):
    """Version 0.8 left what is learnt, the points a step and the optimiser at their defaults."""
    distill = dataclasses.replace(
        DISTILL, learn=("x", "mass"), points_per_step=3, optimizer="sgd", offset=1, balance=0.2
    )
    distill = dataclasses.replace(distill, start="random", precision="bfloat16")
    update = dataclasses.replace(UPDATE, batch=40, learning_rate=0.125, momentum=0.8)
    made, chosen = DISTILLING[name]
    calls = watched(monkeypatch, made)
    problem = small_problem(distill=distill, update=update)
    CANDIDATES[name].make(problem, chosen)
    ((args, named),) = calls
    assert args[0] is problem.task
    if name == "ddm":
        assert args[1:] == (distill, dataclasses.replace(update, steps=100, rewind=0.0))
        assert named == {}
    elif name == "forward_matching":
        whole = dataclasses.replace(distill, part=1.0)
        assert args[1:] == (whole, dataclasses.replace(update, steps=400, rewind=0.0))
        assert named == {}
    else:
        assert args[2] == distill
        assert named == {"damping": 0.01}


def test_a_synset_for_its_curvature_is_small(monkeypatch):
    calls = watched(monkeypatch, "make_synset_influence")
    large = dataclasses.replace(DISTILL, items=20, steps=3000)
    CANDIDATES["synset_influence"].make(small_problem(distill=large), {})
    assert calls[0][0][2] == dataclasses.replace(large, items=5, steps=1000)


def test_recipes_share_what_they_are_compiled_of(problem):
    made = []

    def make(problem, chosen, parts):
        made.append(parts)
        return Estimator(lambda *_: np.zeros(1), lambda state, query: state)

    choices = {"recipe": ({"a": 1}, {"a": 2})}
    shared = CANDIDATES["ddm"].shared
    found = compare._fit(Candidates(make, {}, choices, shared), problem, None, None, None)
    assert len(found) == 2
    assert made[0] is made[1]
    assert CANDIDATES["real_data"].shared is shared


def test_what_is_chosen_takes_the_place_of_the_problems_own(monkeypatch, problem):
    calls, ours = watched(monkeypatch, "make_ddm"), CANDIDATES["ddm"]
    ours.make(problem, {"items": 7, "steps": 20})
    assert calls[0][0][1:] == (
        dataclasses.replace(DISTILL, items=7),
        dataclasses.replace(UPDATE, steps=20),  # the batch follows when the pool is known
    )
    with pytest.raises(ValueError, match=r"nothing: no setting of distillation or of the updates"):
        ours.make(problem, {"nothing": 1})


def test_no_more_candidates_than_the_budget(problem, monkeypatch):
    made = []

    def make(problem, chosen):
        made.append(chosen)

    for count, fine in ((3, True), (4, False)):
        candidates = Candidates(make, {"a": (1, 2)}, {"b": tuple(range(count))})
        monkeypatch.setitem(CANDIDATES, "greedy", candidates)
        if fine:
            _check(["greedy"], problem)
            assert len(made) == BUDGET == 6
        else:
            with pytest.raises(ValueError, match="greedy has 8 candidates; the budget is 6"):
                _check(["greedy"], problem)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [],
            "no estimators are named; choose from ddm, ddm_corrected, real_data",
        ),
        (["ddm", "nope"], "unknown estimator 'nope'; choose from ddm"),
        (["ddm", "grad_dot", "ddm"], "estimator 'ddm' is named twice"),
    ],
)
def test_names_that_cannot_be_compared_are_refused(problem, names, message):
    with pytest.raises(ValueError, match=message):
        _check(names, problem)


def test_a_wrong_setting_of_a_candidate_is_refused_before_a_fit(problem, monkeypatch):
    wrong = CANDIDATES["ddm"]._replace(online={"rewind": (0.0, 1.5)})
    monkeypatch.setitem(CANDIDATES, "ddm", wrong)
    with pytest.raises(ValueError, match="rewind"):
        _check(["grad_dot", "ddm"], problem)


def test_an_objective_without_an_output_a_query_is_refused():
    """Accuracy is one number for all queries; the parts could not be cut."""
    with pytest.raises(ValueError, match=r"truth\.objective=accuracy has no output a query"):
        _check(["ddm"], small_problem(objective="accuracy"))


@pytest.mark.slow
def test_what_helps_a_query_turns_its_sign_with_the_objective(run):
    """By the task alone: no candidate does it."""
    for name in ("class_fraction", "knn_shapley", "representation", "training_loss", "group_size"):
        scores = []
        for objective in ("loss", "margin"):
            problem = small_problem(objective=objective)
            estimator = CANDIDATES[name].make(problem, {})
            state = estimator.fit(jax.random.key(0), run, split().train, GROUPS)
            scores.append(np.asarray(estimator.score(state, split().test)))
        assert np.abs(scores[0]).max() > 0, name
        np.testing.assert_allclose(scores[0], -scores[1], rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddm", "grad_dot", "knn_shapley", "encoded_ensemble"])
def test_a_candidate_is_judged(run, rng, name):
    """With its first choice alone."""
    ours = CANDIDATES[name]
    first = lambda choices: {setting: each[:1] for setting, each in choices.items()}  # noqa: E731
    few = ours._replace(offline=first(ours.offline), online=first(ours.online))
    rows = _judge(name, make_truth(rng, noise=1.0), run=run, candidates=few)
    assert [row["score"] for row in rows] == [LEAVE_ONE_OUT, LDS]
    for row in rows:
        assert np.isfinite(row["value"]) or row["undefined"] == 30
        assert row["offline_seconds"] >= 0
        assert len(row["program"]) == 16


def test_updates_have_the_steps_that_their_pool_allows():
    """A pool that is smaller than a batch has more steps, and not a smaller cost."""
    problem = small_problem(update=UpdateSettings())
    fitted = {}
    for name in ("ddm", "real_data"):
        asked = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                candidates, "make_outputs",
                lambda _, update, parts, asked=asked: asked.append(update) or (lambda *args: None),
            )  # fmt: skip
            patch.setattr(
                candidates, "joint_estimator",
                lambda task, fit, outputs, count, method: (fit, outputs),
            )  # fmt: skip
            recipe = candidates.RECIPES[0]
            _, outputs = candidates.MAKERS[name](problem, recipe)
            synset = all_members(problem.task, split().train, GROUPS)
            few = jax.tree.map(lambda leaf: leaf[:7], (synset.items, synset.group, synset.mass))
            outputs(DDMState({}, 0.0, Synset(*few, synset.share), None), None, None)
        (fitted[name],) = asked
    allowed = problem.share * problem.num_points * problem.train.epochs
    for update in fitted.values():
        assert 0.8 * allowed <= update.steps * update.batch <= 1.2 * allowed
        assert update.batch <= 7
