"""One contract that every estimator passes, on a problem with six labels that are wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from estimator_cases import CASES

import ddm_jax as ddm
from ddm_jax.candidates import CANDIDATES, VARIANTS

K, N, Q = 11, 150, 50


class Fitted:
    """An estimator with its state and scores, and what its first and second calls compiled."""

    def __init__(self, name, problem):
        self.name, self.case, self.problem = name, CASES[name], problem
        self.estimator = self.case.make(problem)
        self.state = self.fit(problem.run, problem.data, problem.groups)
        self.scores = np.asarray(self.estimator.score(self.state, problem.query))

    def fit(self, run, data, groups):
        return self.estimator.fit(jax.random.key(3), run, data, groups)


@pytest.fixture(params=sorted(CASES), scope="module")
def fitted(request, planted):
    return Fitted(request.param, planted)


def compilations(caplog, work):
    caplog.clear()
    with jax.log_compiles():
        jax.block_until_ready(work())
    return [record for record in caplog.records if "Compiling" in record.getMessage()]


def test_every_estimator_is_here_and_can_be_compared():
    assert set(CASES) == set(ddm.estimators.ESTIMATORS) == set(CANDIDATES) - set(VARIANTS)
    assert set(VARIANTS.values()) <= set(CASES)


def test_scores_are_finite_and_say_something(fitted, planted):
    scores = fitted.scores
    assert scores.shape == (K, Q)
    assert (fitted.estimator.outputs is not None) == fitted.case.joint
    assert np.isfinite(scores).all()
    assert (np.abs(scores).max(1) > 0).all()
    if fitted.case.without_query:
        np.testing.assert_allclose(scores, scores[:, :1].repeat(Q, 1), rtol=1e-6)
        return
    assert np.ptp(scores, axis=1).max() > 0
    if fitted.name == "random":
        return
    # Having the only group of the query's class raises the query's margin.
    own = scores[np.asarray(planted.query.y).argmax(1), np.arange(Q)]
    assert own.mean() > scores.mean()


def test_queries_do_not_touch_each_other(fitted, planted):
    few = ddm.Batch(planted.query.x[10:20], planted.query.y[10:20])
    part = np.asarray(fitted.estimator.score(fitted.state, few))
    assert part.shape == (K, 10)
    scale = np.abs(fitted.scores).max()
    np.testing.assert_allclose(part / scale, fitted.scores[:, 10:20] / scale, atol=1e-4)


def test_a_second_call_compiles_nothing(fitted, planted, caplog):
    """With other values of the same shapes; the first one was the fixture's."""
    darker = planted.query._replace(x=planted.query.x * 0.5)
    assert not compilations(caplog, lambda: fitted.estimator.score(fitted.state, darker))
    fewer = planted.query._replace(x=planted.query.x[:7], y=planted.query.y[:7])
    if fitted.name == "grad_dot":  # the log does tell
        assert compilations(caplog, lambda: fitted.estimator.score(fitted.state, fewer))


def test_rows_follow_a_permutation_of_the_groups_and_the_points_may_come_in_any_order(
    fitted, planted
):
    rng = np.random.default_rng(0)
    names, order = rng.permutation(K), np.arange(N)
    data, run = planted.data, planted.run
    if not fitted.case.trains:
        order = rng.permutation(N)
        data = ddm.Batch(data.x[order], data.y[order])
        run = run._replace(rows=jnp.asarray(np.argsort(order))[run.rows].astype(jnp.int32))
    moved = fitted.fit(run, data, names[planted.groups][order].astype(np.int32))
    permuted = np.asarray(fitted.estimator.score(moved, planted.query))
    assert permuted.shape == fitted.scores.shape
    scale = np.abs(fitted.scores).max()
    np.testing.assert_allclose(permuted[names] / scale, fitted.scores / scale, atol=2e-3)


def test_a_mislabelled_group_is_the_most_harmful(fitted, planted):
    """Six zeros called one, as a group of their own, harm the other zeros most."""
    zeros = np.asarray(planted.query.y).argmax(1) == 0
    harm = fitted.scores[:, zeros].mean(1)
    if fitted.case.without_query:  # by point: large groups of hard points are worth little too
        harm = harm / np.bincount(planted.groups)
    assert harm.shape == (K,)
    if not fitted.case.overlooks:
        assert harm.argmin() == 10


@pytest.mark.parametrize("fitted", sorted(n for n in CASES if CASES[n].additive), indirect=True)
def test_points_add_up_to_their_groups(fitted, planted):
    state = fitted.fit(planted.run, planted.data, np.arange(N, dtype=np.int32))
    points = np.asarray(fitted.estimator.score(state, planted.query))
    assert points.shape == (N, Q)
    sums = np.zeros((K, Q))
    np.add.at(sums, planted.groups, points)
    scale = np.abs(fitted.scores).max()
    np.testing.assert_allclose(sums / scale, fitted.scores / scale, atol=1e-3)


@pytest.mark.parametrize("fitted", sorted(n for n in CASES if CASES[n].joint), indirect=True)
def test_outputs_of_leave_one_out_masks_are_the_scores(fitted, planted):
    masks = np.ones((5, K), np.float32)
    masks[1, 0] = masks[2, 4] = masks[3, 9] = 0
    masks[4, ::2] = 0
    kept = np.asarray(fitted.estimator.outputs(fitted.state, masks, planted.query))
    assert kept.shape == (5, Q)
    assert np.isfinite(kept).all()
    scale = np.abs(fitted.scores).max()
    got, want = (kept[:1] - kept[1:4]) / scale, fitted.scores[[0, 4, 9]] / scale
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("name", sorted(CASES))
def test_bad_settings_and_groups_are_refused_by_name(name, planted):
    for settings, told in CASES[name].bad:
        with pytest.raises(ValueError, match=told):
            CASES[name].make(planted, **settings)
    gap = np.where(planted.groups == 3, 11, planted.groups)
    with pytest.raises(ValueError, match="group 3 is empty"):
        CASES[name].make(planted).fit(jax.random.key(0), planted.run, planted.data, gap)
