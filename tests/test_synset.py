import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax import synset as starts
from ddm_jax.gradients import group_batches
from ddm_jax.items import SHARPNESS, SOFT_LABELS, label_logits
from ddm_jax.matching import make_match_points, make_matching_error, make_synset_gradient
from ddm_jax.types import take


def make(ready, method, items, groups=None):
    groups = ready.groups if groups is None else ddm.as_groups(groups)
    return starts.initial_synset(
        jax.random.key(2), ready.task, method, ready.run, ready.data, groups, items, [6, 7, 8, 9]
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", starts.STARTS)
@pytest.mark.parametrize("items", [1, 3])
def test_shapes_shares_and_labels(ready, method, items):
    synset = make(ready, method, items)
    assert synset.items.x.shape == (10 * items, 8, 8, 1)
    assert synset.items.y.shape == (10 * items, 10)
    assert synset.mass.shape == synset.group.shape == (10 * items,)
    assert synset.group.dtype == jnp.int32
    np.testing.assert_array_equal(synset.group, np.repeat(np.arange(10), items))
    np.testing.assert_allclose(synset.share, ready.groups.sizes() / 150, rtol=1e-6)
    # Groups are classes here: every item has its own class as its label, sharply.
    np.testing.assert_array_equal(synset.items.y.argmax(-1), synset.group)
    assert (SOFT_LABELS.batch(synset.items).y.max(-1) > 0.9999).all()
    assert np.isfinite(np.asarray(synset.items.x)).all()


@pytest.mark.parametrize("method", ["pursuit", "random"])
def test_items_start_as_members_of_their_group(ready, method):
    synset = make(ready, method, 3)
    for group in range(10):
        members = np.asarray(ready.data.x)[ready.groups.ids == group]
        for item in np.asarray(synset.items.x)[synset.group == group]:
            assert (np.abs(members - item).reshape(len(members), -1).max(1) == 0).any()


def test_noise_shows_no_training_image(ready):
    synset = np.asarray(make(ready, "noise", 2).items.x).reshape(20, 1, -1)
    away = np.abs(synset - np.asarray(ready.data.x).reshape(1, 150, -1)).max(-1)
    assert away.min() > 0.3


def test_noise_of_a_mixed_group_has_its_mixture_of_labels(ready):
    groups = np.arange(150) // 75
    synset = make(ready, "noise", 1, groups)
    for group in range(2):
        want = np.asarray(ready.data.y)[groups == group].mean(0)
        np.testing.assert_allclose(SOFT_LABELS.batch(synset.items).y[group], want, atol=1e-5)


@pytest.mark.slow
def test_one_group_a_point_reproduces_every_point(ready):
    synset = make(ready, "pursuit", 1, np.arange(150))
    h = jax.vmap(make_synset_gradient(ready.task), (None, 0))(
        ready.run.params, starts.by_group(synset)
    )
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
    points = make_match_points(ready.task)(
        ready.run.checkpoints, ready.data, group_batches(ready.groups), jnp.array([7, 9])
    )
    error = jax.jit(make_matching_error(ready.task))
    pursuit, random = (
        np.median(error(starts.by_group(make(ready, method, 3)), points))
        for method in ("pursuit", "random")
    )
    assert pursuit < 0.5 * random


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="start='best'; choose one of pursuit, random"):
        make(ready, "best", 1)
    for items in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"items={items}"):
            make(ready, "random", items)


# Label logits


def test_soft_labels_start_at_themselves(rng):
    """0.8 took softmax(14 y), which says .9999 of a label of .6 and .4."""
    labels = jax.nn.softmax(2 * jnp.asarray(rng.normal(size=(50, 7))))
    logits = label_logits(labels)
    assert logits.shape == labels.shape
    np.testing.assert_allclose(jax.nn.softmax(logits), labels, atol=1e-5)
    np.testing.assert_allclose(
        jax.nn.softmax(label_logits([[0.6, 0.4, 0.0]])), [[0.6, 0.4, 0]], atol=1e-5
    )


def test_hard_labels_are_sharp():
    logits = label_logits(np.eye(4, dtype=np.float32))
    np.testing.assert_array_equal(logits, SHARPNESS * np.eye(4))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pursuit", "random"])
def test_items_start_with_the_labels_that_they_had(ready, method, rng):
    soft = jax.nn.softmax(3 * jnp.asarray(rng.normal(size=(150, 10)), jnp.float32))
    synset = starts.initial_synset(
        jax.random.key(2),
        ready.task,
        method,
        ready.run,
        ready.data._replace(y=soft),
        ready.groups,
        2,
        [9],
    )
    labels = np.asarray(SOFT_LABELS.batch(synset.items).y)
    assert labels.shape == (20, 10)
    for x, label in zip(synset.items.x, labels, strict=True):
        (row, *_) = np.flatnonzero((ready.data.x == x).all((1, 2, 3)))
        np.testing.assert_allclose(label, soft[row], atol=1e-5)


# By group and flat


def uneven(counts, seed=0):
    """A synset of as many items a group, each unlike the others."""
    draw, size = np.random.default_rng(seed), sum(counts)
    return ddm.Synset(
        items=ddm.Batch(
            {"image": jnp.asarray(draw.normal(size=(size, 2, 3)), jnp.float32)},
            jnp.asarray(draw.normal(size=(size, 4)), jnp.float32),
        ),
        group=jnp.repeat(jnp.arange(len(counts), dtype=jnp.int32), np.array(counts)),
        mass=jnp.asarray(draw.normal(size=size), jnp.float32),
        share=jnp.full(len(counts), 1 / len(counts)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(2, 2, 2), (3, 1, 2), (1, 4), (5, 5, 1, 2)])
def test_by_group_and_back(counts):
    synset = uneven(counts)
    groups = starts.by_group(synset)
    size = (len(counts), max(counts))
    assert groups.items.x["image"].shape == (*size, 2, 3)
    assert groups.items.y.shape == (*size, 4)
    assert groups.mass.shape == groups.group.shape == size
    first = np.cumsum(counts) - counts
    for k, count in enumerate(counts):
        np.testing.assert_array_equal(groups.mass[k, :count], synset.mass[first[k] :][:count])
        np.testing.assert_array_equal(groups.mass[k, count:], 0)
        np.testing.assert_array_equal(groups.group[k], [k] * count + [-1] * (size[1] - count))
        for place in range(size[1]):
            row = first[k] + min(place, count - 1)  # what fills up is a copy, and so is finite
            np.testing.assert_array_equal(groups.items.y[k, place], synset.items.y[row])
    back = starts.flat(groups, np.array(counts))
    assert jax.tree.structure(back) == jax.tree.structure(synset)
    jax.tree.map(np.testing.assert_array_equal, back, synset)
    if min(counts) == max(counts):
        jax.tree.map(np.testing.assert_array_equal, starts.flat(groups), synset)


@pytest.mark.slow
def test_what_fills_a_group_up_has_no_gradient(ready):
    """A group's gradient is that of its own items, whatever the others' number."""
    three = make(ready, "random", 3)
    kept = np.flatnonzero((np.arange(30) % 3 == 0) | (np.asarray(three.group) == 4))
    items, group, mass = take((three.items, three.group, three.mass), kept)
    few = ddm.Synset(items, group, mass, three.share)
    gradient = jax.vmap(make_synset_gradient(ready.task), (None, 0))
    got = gradient(ready.run.params, starts.by_group(few))
    for group, count in ((0, 1), (4, 3), (9, 1)):
        one = take(starts.by_group(three), group)
        alone = jax.tree.map(lambda leaf, n=count: leaf[:n] if leaf.ndim else leaf, one)
        want = make_synset_gradient(ready.task)(ready.run.params, alone)
        for a, b in zip(jax.tree.leaves(take(got, group)), jax.tree.leaves(want), strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_two_synsets_as_one():
    first, second = uneven((2, 1)), uneven((1, 3), 1)
    both = starts.join(first, second)
    np.testing.assert_array_equal(both.group, [0, 0, 1, 2, 3, 3, 3])
    np.testing.assert_array_equal(both.mass, [*first.mass, *second.mass])
    np.testing.assert_array_equal(both.items.y[3:], second.items.y)
    assert both.share.shape == (4,)
