"""The distilled datamodel, grad-dot and exact retraining as estimators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax.estimators.retraining import (
    retrained_outputs,
    retraining_response,
    subset_retraining_response,
)

MAKE = {
    "ddm": lambda ready: ddm.make_ddm(
        ready.task, ddm.DistillSettings(items=1, steps=40), ddm.UpdateSettings(steps=10)
    ),
    "grad_dot": lambda ready: ddm.estimators.make_grad_dot(ready.task),
    "retraining": lambda ready: ddm.make_retraining(ready.task, ready.train, seeds=1),
}


@pytest.mark.slow
def test_outputs_of_half_of_the_groups_tell_the_classes_that_stay(ready):
    for name in ("ddm", "retraining"):
        estimator = MAKE[name](ready)
        state = estimator.fit(jax.random.key(3), ready.run, ready.data, ready.groups)
        masks = np.ones((2, 10), np.float32)
        masks[1, ::2] = 0
        kept = np.asarray(estimator.outputs(state, masks, ready.query))
        assert kept.shape == (2, 50)
        stays = np.asarray(ready.query.y).argmax(1) % 2 == 1
        change = kept[1] - kept[0]
        assert change[stays].mean() > change[~stays].mean() + 1, name


@pytest.mark.parametrize("name", ["ddm", "retraining"])
def test_masks_that_cannot_be_are_refused(name, ready):
    estimator = MAKE[name](ready)
    state = estimator.fit(jax.random.key(3), ready.run, ready.data, ready.groups)
    with pytest.raises(ValueError, match="mask 1 keeps no group"):
        estimator.outputs(state, np.eye(10)[:2] * [[1], [0]], ready.query)
    with pytest.raises(ValueError, match=r"they must be \[R, 10\]"):
        estimator.outputs(state, np.ones((1, 9)), ready.query)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddm", "grad_dot"])
def test_only_training_uses_the_training_loss(name, ready):
    def never(params, batch, key):
        raise AssertionError("the random loss is for training alone")

    class Other:
        task = ready.task._replace(training_loss=never)

    want, got = (
        estimator.score(
            estimator.fit(jax.random.key(3), ready.run, ready.data, ready.groups), ready.query
        )
        for estimator in (MAKE[name](ready), MAKE[name](Other))
    )
    assert got.shape == want.shape == (10, 50)
    np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_rewind_moves_the_score_and_not_what_is_fitted(ready):
    distill, found = ddm.DistillSettings(items=1, steps=5), {}
    # At a given rate: the stable one looks at the end of the trajectory too.
    updates = {"steps": 5, "learning_rate": 0.05}
    for rewind in (0.0, 0.5):
        estimator = ddm.make_ddm(ready.task, distill, ddm.UpdateSettings(**updates, rewind=rewind))
        state = estimator.fit(jax.random.key(3), ready.run, ready.data, ready.groups)
        found[rewind] = state, np.asarray(estimator.score(state, ready.query))
    for a, b in zip(*(jax.tree.leaves(found[r][0]) for r in (0.0, 0.5)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    assert found[0.0][1].shape == found[0.5][1].shape == (10, 50)
    assert np.abs(found[0.0][1] - found[0.5][1]).max() > 0.01
    # A rewound start is the checkpoint itself: here as the last one of a shorter trajectory.
    short = found[0.0][0]._replace(
        checkpoints=jax.tree.map(lambda leaf: leaf[:5], ready.run.checkpoints)
    )
    plain = ddm.make_ddm(ready.task, distill, ddm.UpdateSettings(**updates))
    got = np.asarray(plain.score(short, ready.query))
    assert got.shape == found[0.5][1].shape
    np.testing.assert_allclose(got, found[0.5][1], atol=1e-4)
    with pytest.raises(ValueError, match="rewind=1"):
        ddm.UpdateSettings(rewind=1.0)


# Exact retraining


@pytest.fixture(scope="module")
def response(ready):
    return retraining_response(ready.train, ready.task.output)


@pytest.mark.slow
def test_seeds_are_averaged_with_the_keys_of_the_split(ready, response):
    few = ready.query._replace(x=ready.query.x[:6], y=ready.query.y[:6])
    both = ddm.make_retraining(ready.task, ready.train, seeds=2)
    state = both.fit(jax.random.key(3), ready.run, ready.data, ready.groups)
    got = both.score(state, few)
    one = jax.jit(response)

    def by_hand(key, k):
        full, without = (
            one(keep, key, ready.data, ready.groups, few)
            for keep in (jnp.ones(10), jnp.ones(10).at[k].set(0))
        )
        return full - without

    keys = jax.random.split(jax.random.key(3), 2)
    want = jnp.stack([(by_hand(keys[0], k) + by_hand(keys[1], k)) / 2 for k in (0, 7)])
    assert got.shape == (10, 6)
    assert got[jnp.array([0, 7])].shape == want.shape
    np.testing.assert_allclose(got[jnp.array([0, 7])], want, atol=2e-3)
    assert jnp.abs(by_hand(keys[0], 0) - by_hand(keys[1], 0)).max() > 0.05
    # An even number of masks: each of them with both keys, and not the masks with one in turn.
    kept = both.outputs(state, jnp.ones((2, 10)).at[1, 7].set(0), few)
    assert kept.shape == (2, 6)
    np.testing.assert_allclose(kept[0] - kept[1], want[1], atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "chunk"), [(1, 2), (3, 2)])
def test_placement_changes_nothing(ready, count, chunk):
    plain = ddm.make_retraining(ready.task, ready.train, seeds=2)
    placed = ddm.make_retraining(
        ready.task, ready.train, seeds=2, devices=jax.local_devices()[:count], chunk=chunk
    )
    masks = np.ones((3, 10), np.float32)
    masks[1, 2] = masks[2, 5:] = 0
    state = plain.fit(jax.random.key(3), ready.run, ready.data, ready.groups)
    want = plain.outputs(state, masks, ready.query)
    got = placed.outputs(state, masks, ready.query)
    assert got.shape == want.shape == (3, 50)
    np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.slow
def test_networks_with_masks_and_keys_of_their_own_equal_one_by_one(ready, response):
    masks = np.ones((4, 10), np.float32)
    masks[1, 3] = masks[3, 3] = masks[2, ::2] = 0
    keys = jax.vmap(jax.random.key)(jnp.array([5, 5, 9, 9]))
    groups = ready.groups
    got = retrained_outputs(response)(masks, keys, ready.data, groups, ready.query)
    one = jax.jit(response)
    want = jnp.stack([one(masks[i], keys[i], ready.data, groups, ready.query) for i in range(4)])
    assert got.shape == want.shape == (4, 50)
    np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.slow
def test_a_subset_is_a_training_set_of_its_own(ready, response):
    few = subset_retraining_response(ready.train, ready.task.output, 100)
    rows = np.sort(np.random.default_rng(0).permutation(150)[:100])
    keep = jnp.zeros(150).at[rows].set(1)
    key, points = jax.random.key(4), ddm.as_groups(np.arange(150))
    got = jax.jit(few)(keep, key, ready.data, points, ready.query)
    part = ddm.Batch(ready.data.x[rows], ready.data.y[rows])
    run = jax.jit(ready.train)(key, part, jnp.ones(100))
    want = ready.task.output(run.params, ready.query)
    assert got.shape == want.shape == (50,)
    np.testing.assert_allclose(got, want, atol=2e-3)
    weighted = jax.jit(response)(keep, key, ready.data, points, ready.query)
    assert weighted.shape == got.shape
    assert jnp.abs(weighted - got).max() > 0.1, "other batches and another number of epochs"


@pytest.mark.slow
def test_subsets_of_points_go_through_the_estimator(ready):
    points = np.arange(150)
    estimator = ddm.make_retraining(
        ready.task,
        ready.train,
        response=subset_retraining_response(ready.train, ready.task.output, 75),
    )
    state = estimator.fit(jax.random.key(3), ready.run, ready.data, points)
    masks = ddm.random_masks(jax.random.key(0), 2, 150)
    got = estimator.outputs(state, masks, ready.query)
    key, rows = jax.random.split(jax.random.key(3), 1)[0], np.flatnonzero(masks[1])
    part = ddm.Batch(ready.data.x[rows], ready.data.y[rows])
    run = jax.jit(ready.train)(key, part, jnp.ones(75))
    want = ready.task.output(run.params, ready.query)
    assert got.shape == (2, 50)
    assert got[1].shape == want.shape
    np.testing.assert_allclose(got[1], want, atol=2e-3)
