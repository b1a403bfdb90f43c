import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax import synset as starts
from ddm_jax.types import take


def make(ready, method, items, groups=None):
    groups = ready.groups if groups is None else groups
    return ddm.initial_synset(
        jax.random.key(2), ready.task, method, ready.run, ready.data, groups, items, [6, 7, 8, 9]
    )


@pytest.mark.parametrize("method", starts.STARTS)
@pytest.mark.parametrize("items", [1, 3])
def test_shapes_shares_and_labels(ready, method, items):
    synset = make(ready, method, items)
    assert synset.x.shape == (10, items, 8, 8, 1)
    assert synset.y.shape == (10, items, 10)
    assert synset.mass.shape == (10, items)
    np.testing.assert_allclose(synset.share, np.bincount(ready.groups) / 150, rtol=1e-6)
    # Groups are classes here: every item has its own class as its label, sharply.
    np.testing.assert_array_equal(
        synset.y.argmax(-1), np.repeat(np.arange(10)[:, None], items, axis=1)
    )
    assert (jax.nn.softmax(synset.y).max(-1) > 0.9999).all()
    assert np.isfinite(np.asarray(synset.x)).all()


@pytest.mark.parametrize("method", ["pursuit", "random", "central"])
def test_items_start_as_members_of_their_group(ready, method):
    synset = make(ready, method, 3)
    for group in range(10):
        members = np.asarray(ready.data.x)[ready.groups == group]
        for item in np.asarray(synset.x[group]):
            assert (np.abs(members - item).reshape(len(members), -1).max(1) == 0).any()


def test_noise_shows_no_training_image(ready):
    synset = np.asarray(make(ready, "noise", 2).x).reshape(20, 1, -1)
    away = np.abs(synset - np.asarray(ready.data.x).reshape(1, 150, -1)).max(-1)
    assert away.min() > 0.3


def test_noise_of_a_mixed_group_has_its_mixture_of_labels(ready):
    groups = np.zeros(150, np.int32)
    synset = make(ready, "noise", 1, groups)
    want = np.asarray(ready.data.y).mean(0)
    np.testing.assert_allclose(jax.nn.softmax(synset.y[0, 0]), want, atol=1e-4)


def test_central_members_are_the_nearest(ready):
    synset = make(ready, "central", 1)
    members = np.asarray(ready.data.x)[ready.groups == 4].reshape(-1, 64)
    away = ((members - members.mean(0)) ** 2).sum(1)
    np.testing.assert_array_equal(np.asarray(synset.x[4]).reshape(64), members[away.argmin()])


def test_one_group_a_point_reproduces_every_point(ready):
    synset = make(ready, "pursuit", 1, np.arange(150))
    h = jax.vmap(ddm.make_synset_gradient(ready.task), (None, 0))(ready.run.params, synset)
    g = jax.vmap(
        lambda x, y: jax.grad(
            lambda p: ready.task.loss(p, ddm.Batch(x[None], y[None])).sum() / 150
        )(ready.run.params)
    )(*ready.data)
    for a, b in zip(jax.tree.leaves(g), jax.tree.leaves(h), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_pursuit_finds_the_exact_sum_by_hand():
    # The sum (3, 4) is 3 times the first row and 4 times the second, but a row counts once.
    features = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    members, weights = starts.pursue(features, 2)
    assert members.shape == weights.shape == (2,)
    np.testing.assert_allclose(weights @ features[members], [3.0, 4.0], rtol=1e-6)
    assert set(members) & {0, 2, 3}
    assert set(members) & {1, 4}


def test_pursuit_blows_no_small_row_up():
    """A row with almost no gradient but the right direction stays below the whole group."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 8))
    features[5] = features[:5].sum(0) * 1e-5
    members, weights = starts.pursue(features, 1)
    assert members[0] != 5
    assert 0 <= weights[0] <= 6


def test_pursuit_residual_shrinks_with_more_items_and_small_groups_repeat():
    features = np.random.default_rng(1).normal(size=(7, 20))
    target, errors = features.sum(0), []
    for items in range(1, 10):
        members, weights = starts.pursue(features, items)
        assert members.shape == weights.shape == (items,)
        errors.append(np.linalg.norm(target - weights @ features[members]))
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(errors))
    assert errors[6] < 1e-4  # all seven members
    assert set(members) == set(range(7))


def test_pursuit_matches_gradients_far_better_than_random_members(ready):
    points = ddm.make_match_points(ready.task, 10)(
        ready.run.checkpoints, ready.data, ddm.group_batches(ready.groups, 10), jnp.array([7, 9])
    )
    error = jax.jit(ddm.make_matching_error(ready.task))
    pursuit, random = (np.median(error(make(ready, m, 3), points)) for m in ("pursuit", "random"))
    assert pursuit < 0.5 * random


def test_gradient_sketches_keep_inner_products(ready):
    sketch = jax.jit(starts.make_gradient_sketch(ready.task, 256))
    few = take(ready.data, slice(0, 40))
    start = take(ready.run.checkpoints, 0)
    got = np.asarray(sketch(jax.random.key(0), start, few))
    assert got.shape == (40, 256)

    def one(x, y):
        gradient = jax.grad(lambda p: ready.task.loss(p, ddm.Batch(x[None], y[None])).sum())(start)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    exact = np.asarray(jax.vmap(one)(*few))
    np.testing.assert_allclose((got**2).sum(1).mean() / (exact**2).sum(1).mean(), 1.0, atol=0.1)
    products = np.corrcoef((got @ got.T).ravel(), (exact @ exact.T).ravel())[0, 1]
    assert products > 0.95


def test_wrong_starts_are_named(ready):
    with pytest.raises(ValueError, match="unknown start 'best'"):
        make(ready, "best", 1)
    with pytest.raises(ValueError, match="items=0"):
        make(ready, "random", 0)
