"""One contract that every estimator passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm

MAKE = {
    "ddm": lambda ready: ddm.make_ddm(ready.task, items=1, distill_steps=40, steps=10),
    "grad_dot": lambda ready: ddm.make_grad_dot(ready.task),
    "retraining": lambda ready: ddm.make_retraining(ready.task, ready.train, seeds=1),
}


@pytest.fixture(params=sorted(MAKE), scope="module")
def fitted(request, ready):
    estimator = MAKE[request.param](ready)
    key = jax.random.key(3)
    return estimator, estimator.fit(key, ready.run, ready.data, ready.groups)


def test_every_estimator_is_here():
    assert set(MAKE) == set(ddm.estimators.ESTIMATORS)


def test_scores_are_finite_and_say_something(fitted, ready):
    estimator, state = fitted
    scores = np.asarray(estimator.score(state, ready.query))
    assert scores.shape == (10, 50)
    assert np.isfinite(scores).all()
    assert (np.abs(scores).max(1) > 0).all()
    # Having the only group of the query's class raises the query's margin.
    own = scores[np.asarray(ready.query.y).argmax(1), np.arange(50)]
    assert own.mean() > scores.mean()
    assert (own > 0).mean() > 0.9


def test_queries_do_not_touch_each_other(fitted, ready):
    estimator, state = fitted
    scores = np.asarray(estimator.score(state, ready.query))
    few = ddm.Batch(ready.query.x[10:20], ready.query.y[10:20])
    part = np.asarray(estimator.score(state, few))
    assert part.shape == (10, 10)
    np.testing.assert_allclose(part, scores[:, 10:20], atol=1e-4)


def test_rows_follow_a_permutation_of_the_groups(fitted, ready):
    estimator, state = fitted
    order = np.random.default_rng(0).permutation(10)
    moved = estimator.fit(
        jax.random.key(3), ready.run, ready.data, order[ready.groups].astype(np.int32)
    )
    scores = np.asarray(estimator.score(state, ready.query))
    permuted = np.asarray(estimator.score(moved, ready.query))
    assert permuted.shape == scores.shape
    np.testing.assert_allclose(permuted[order], scores, atol=2e-3)


@pytest.mark.parametrize("name", sorted(MAKE))
def test_a_second_call_compiles_nothing(name, ready, caplog):
    estimator = MAKE[name](ready)
    state = estimator.fit(jax.random.key(3), ready.run, ready.data, ready.groups)
    darker = ready.query._replace(x=ready.query.x * 0.5)

    def compilations(query):
        caplog.clear()
        with jax.log_compiles():
            jax.block_until_ready(estimator.score(state, query))
        return [record for record in caplog.records if "Compiling" in record.getMessage()]

    assert compilations(ready.query)
    assert not compilations(darker)


def test_a_mislabelled_group_is_the_most_harmful(fitted, ready):
    """Six zeros called one, as a group of their own, harm the other zeros most."""
    estimator, _ = fitted
    labels = np.asarray(ready.data.y).argmax(1)
    bad = np.flatnonzero(labels == 0)[:6]
    y = np.asarray(ready.data.y).copy()
    y[bad] = np.eye(10)[1]
    groups = ready.groups.copy()
    groups[bad] = 10
    data = ready.data._replace(y=jnp.asarray(y))
    run = jax.jit(ready.train)(jax.random.key(0), data, jnp.ones(150))
    scores = np.asarray(
        estimator.score(estimator.fit(jax.random.key(3), run, data, groups), ready.query)
    )
    zeros = np.asarray(ready.query.y).argmax(1) == 0
    assert scores.shape == (11, 50)
    assert scores[:, zeros].mean(1).argmin() == 10


def test_wrong_settings_are_named(ready):
    with pytest.raises(ValueError, match="seeds=0"):
        ddm.make_retraining(ready.task, ready.train, seeds=0)
    gap = np.where(ready.groups == 3, 11, ready.groups)
    for make in MAKE.values():
        with pytest.raises(ValueError, match="group 3 is empty"):
            make(ready).fit(jax.random.key(0), ready.run, ready.data, gap)
    with pytest.raises(ValueError, match="unknown update"):
        ddm.make_ddm(ready.task, update="erase")
