"""One contract that every estimator passes, on a problem with six labels that are wrong."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from estimator_cases import CASES, FACTORIES

import ddm_jax as ddm
from ddm_jax.judge.candidates import CANDIDATES, VARIANTS

# Every method, and each takes seconds: with what is slow.
pytestmark = pytest.mark.slow

K, N, Q = 11, 150, 50


def in_floats(tree, dtype):
    """A pytree with its floats of another size."""

    def one(leaf):
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if floats else leaf

    return jax.tree.map(one, tree)


class InFloats:
    """A problem whose network has parameters of another size, which were those of this one."""

    def __init__(self, problem, dtype):
        init = problem.task.init
        self.task = problem.task._replace(init=lambda key: in_floats(init(key), dtype))
        self.train = problem.recipe(self.task)
        self.run = problem.run._replace(
            params=in_floats(problem.run.params, dtype),
            checkpoints=in_floats(problem.run.checkpoints, dtype),
        )
        self.data, self.query, self.groups = problem.data, problem.query, problem.groups


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
    assert set(CASES) == set(FACTORIES) == set(CANDIDATES) - set(VARIANTS)
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    moved = fitted.fit(run, data, names[planted.groups.ids][order].astype(np.int32))
    permuted = np.asarray(fitted.estimator.score(moved, planted.query))
    assert permuted.shape == fitted.scores.shape
    scale = np.abs(fitted.scores).max()
    np.testing.assert_allclose(permuted[names] / scale, fitted.scores / scale, atol=2e-3)


def test_a_mislabelled_group_is_the_most_harmful(fitted, planted):
    """Six zeros called one, as a group of their own, harm the other zeros most."""
    zeros = np.asarray(planted.query.y).argmax(1) == 0
    harm = fitted.scores[:, zeros].mean(1)
    if fitted.case.without_query:  # by point: large groups of hard points are worth little too
        harm = harm / planted.groups.sizes()
    assert harm.shape == (K,)
    if not fitted.case.overlooks:
        assert harm.argmin() == 10


@pytest.mark.slow
@pytest.mark.parametrize("fitted", sorted(n for n in CASES if CASES[n].additive), indirect=True)
def test_points_add_up_to_their_groups(fitted, planted):
    state = fitted.fit(planted.run, planted.data, np.arange(N, dtype=np.int32))
    points = np.asarray(fitted.estimator.score(state, planted.query))
    assert points.shape == (N, Q)
    sums = np.zeros((K, Q))
    np.add.at(sums, planted.groups.ids, points)
    scale = np.abs(fitted.scores).max()
    np.testing.assert_allclose(sums / scale, fitted.scores / scale, atol=1e-3)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "least"), [("float64", 0.999), ("bfloat16", 0.9)])
def test_scores_are_those_of_a_network_in_floats_of_another_size(fitted, planted, dtype, least):
    """At least float32, and near those in float32; the rounding to bfloat16 is one in 256."""
    with jax.enable_x64(dtype == "float64"):
        problem = InFloats(planted, dtype)
        estimator = fitted.case.make(problem)
        with warnings.catch_warnings():  # a solve on the edge may diverge here, and say so
            warnings.simplefilter("ignore", UserWarning)
            state = estimator.fit(jax.random.key(3), problem.run, problem.data, problem.groups)
            scores = estimator.score(state, problem.query)
    assert scores.dtype in (jnp.float32, jnp.float64)
    scores = np.asarray(scores, np.float64)
    assert scores.shape == (K, Q)
    assert np.isfinite(scores).all()
    if not (fitted.case.trains and dtype == "bfloat16"):  # such networks go ways of their own
        if fitted.case is CASES["forward_matching"]:
            least -= 0.05  # thirty steps from the start, and not a few from the trained network
        assert np.corrcoef(scores.ravel(), fitted.scores.ravel())[0, 1] > least


@pytest.mark.parametrize("name", sorted(CASES))
def test_bad_settings_and_groups_are_refused_by_name(name, planted):
    for settings, told in CASES[name].bad:
        with pytest.raises(ValueError, match=told):
            CASES[name].make(planted, **settings)
    ids = np.asarray(planted.groups.ids)
    gap = np.where(ids == 3, 11, ids)
    estimator = CASES[name].make(planted)
    one = ddm.Batch(planted.data.x[:1], planted.data.y[:1])
    for data, groups, told in (
        (planted.data, gap, "group 3 is empty"),
        (planted.data, np.zeros(N, int), "there is one group"),
        (one, np.zeros(1, int), "it needs at least 2"),
    ):
        with pytest.raises(ValueError, match=told):
            estimator.fit(jax.random.key(0), planted.run, data, groups)


def test_what_a_query_must_be(fitted, planted):
    x, y = planted.query
    for query, told in (
        (ddm.Batch(x[:0], y[:0]), "it needs at least 1"),
        (ddm.Batch(x, y.argmax(1)), "make them one-hot"),
        (ddm.Batch(x, y[:, :5]), r"the network needs \(50, 10\)"),
        (ddm.Batch(x[:7], y), "one leading axis"),
        (ddm.Batch(x.at[3, 2, 2].set(jnp.nan), y), "holds NaN"),
    ):
        with pytest.raises(ValueError, match=told):
            fitted.estimator.score(fitted.state, query)
