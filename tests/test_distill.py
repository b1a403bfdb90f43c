import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm
from ddm_jax.distill import make_distiller
from ddm_jax.gradients import group_batches
from ddm_jax.matching import make_match_points, make_matching_error, trajectory_indices
from ddm_jax.synset import by_group, flat, initial_synset
from ddm_jax.types import take


@pytest.fixture(scope="module")
def points(ready):
    return make_match_points(ready.task)(
        ready.run.checkpoints, ready.data, group_batches(ready.groups), jnp.array([5, 6, 8, 9])
    )


@pytest.fixture(scope="module")
def start(synset):
    """Two items of each group, side by side."""
    return by_group(synset)


def made(ready, chunk=None, **settings):
    # So many steps that the rate does not fall in these few.
    settings = ddm.DistillSettings(**({"learning_rate": 0.01, "steps": 10**6} | settings))
    return make_distiller(ready.task, settings, chunk=chunk)


def distil(ready, points, start, steps=40, key=0, **settings):
    distiller = made(ready, **settings)
    advance = jax.jit(distiller.advance, static_argnums=3)
    return advance(jax.random.key(key), distiller.start(start), points, steps)


@pytest.mark.slow
def test_distillation_lowers_the_error_where_it_was_not_trained(ready, points, start):
    held_out = make_match_points(ready.task)(
        ready.run.checkpoints, ready.data, group_batches(ready.groups), jnp.array([7])
    )
    state, losses = distil(ready, points, start, 300)
    error = jax.jit(make_matching_error(ready.task))
    before, after = np.median(error(start, held_out)), np.median(error(state.synset, held_out))
    assert losses.shape == (300,)
    assert int(state.step) == 300
    assert after < 0.6 * before


@pytest.mark.parametrize("learn", [("x",), ("y",), ("mass",), ("x", "y", "mass")])
def test_only_what_is_learnt_moves(ready, points, start, learn):
    state, _ = distil(ready, points, start, 3, learn=learn)
    for name in ("x", "y", "mass", "share", "group"):
        before, after = (
            getattr(some.items if name in ("x", "y") else some, name)
            for some in (start, state.synset)
        )
        assert before.shape == after.shape
        assert bool((before == after).all()) == (name not in learn)


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["whitened", "squared"])
def test_every_distance_is_lowered(ready, points, start, distance):
    _, losses = distil(ready, points, start, 100, distance=distance, points_per_step=4)
    assert losses[-10:].mean() < 0.93 * losses[0]


@pytest.mark.slow
def test_groups_do_not_touch_each_other(ready, points, start):
    x = start.items.x.at[0].set(0.3)
    changed = start._replace(items=start.items._replace(x=x))
    one, _ = distil(ready, points, start, 5)
    other, _ = distil(ready, points, changed, 5)
    assert one.synset.items.x.shape == other.synset.items.x.shape
    np.testing.assert_allclose(one.synset.items.x[1:], other.synset.items.x[1:], atol=1e-6)
    assert jnp.abs(one.synset.items.x[0] - other.synset.items.x[0]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [3, 10])
def test_chunks_and_jit_change_nothing(ready, points, start, chunk):
    one, a = distil(ready, points, start, 4)
    other, b = distil(ready, points, start, 4, chunk=chunk)
    with jax.disable_jit():
        distiller = made(ready)
        _, c = distiller.advance(jax.random.key(0), distiller.start(start), points, 2)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-4)
    np.testing.assert_allclose(a[:2], c, rtol=1e-4)
    np.testing.assert_allclose(one.synset.items.x, other.synset.items.x, atol=1e-4)


@pytest.mark.slow
def test_in_pieces_is_bitwise_the_same_as_in_other_pieces_of_that_size(ready, points, start):
    distiller = made(ready)
    advance = jax.jit(distiller.advance, static_argnums=3)
    key, state = jax.random.key(4), distiller.start(start)
    for _ in range(3):
        state, _ = advance(key, state, points, 5)
    again = distiller.start(start)
    for _ in range(3):
        # Through the host, as a checkpoint goes.
        again = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), again)
        again, _ = advance(key, again, points, 5)
    np.testing.assert_array_equal(state.synset.items.x, again.synset.items.x)
    whole, _ = distil(ready, points, start, 15, key=4)
    np.testing.assert_allclose(state.synset.items.x, whole.synset.items.x, atol=1e-5)


def test_the_offset_takes_real_gradients_earlier_than_synthetic_ones(ready):
    batches = group_batches(ready.groups)
    indices = jnp.array([4, 8, 9])
    plain = make_match_points(ready.task)(ready.run.checkpoints, ready.data, batches, indices)
    later = make_match_points(ready.task, offset=2)(
        ready.run.checkpoints, ready.data, batches, indices
    )
    for a, b in zip(
        jax.tree.leaves(plain.gradients), jax.tree.leaves(later.gradients), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    for leaf, kept in zip(
        jax.tree.leaves(later.params), jax.tree.leaves(ready.run.checkpoints), strict=True
    ):
        np.testing.assert_array_equal(leaf, kept[jnp.array([6, 9, 9])])


def test_which_checkpoints_are_held_out():
    assert trajectory_indices(10, 1.0) == ([1, 2, 3, 4, 6, 7, 8, 9], [0, 5])
    assert trajectory_indices(10, 0.3) == ([8, 9], [7])
    assert trajectory_indices(2, 0.5) == ([1], [0])
    fit, held_out = trajectory_indices(40, 0.75)
    assert 39 in fit
    assert sorted(fit + held_out) == list(range(10, 40))


@pytest.mark.slow
def test_literal_reversal_with_hard_labels_fails_where_signed_masses_work(ready, points):
    """The negative control: match -g_k with positive masses and fixed hard labels."""
    literal = points._replace(gradients=jax.tree.map(jnp.negative, points.gradients))
    start = by_group(
        initial_synset(
            jax.random.key(1), ready.task, "random", ready.run, ready.data, ready.groups, 2, [9]
        )
    )
    hard, _ = distil(ready, literal, start, 300, learn=("x",))
    signed, _ = distil(
        ready, literal, start._replace(mass=-start.mass), 300, learn=("x", "y", "mass")
    )
    error = jax.jit(make_matching_error(ready.task))
    hard_error = np.median(error(hard.synset, literal))
    signed_error = np.median(error(signed.synset, literal))
    assert hard_error > 0.8  # an empty synset has 1
    assert signed_error < 0.2

    # Descending on the synset of a group should undo the group; `forget` descends on the
    # reversed masses, so the literal synset enters with its sign flipped.
    finetune = ddm.make_finetune(ready.task, update="forget", steps=3, optimizer=optax.sgd(0.5))
    response = ddm.ddm_response(finetune, ready.task.output)
    scores = ddm.leave_one_out(ddm.subset_outputs(response), 10)

    def undone(synset):
        synset = flat(synset._replace(mass=-synset.mass))
        return scores(ready.run.params, synset, ready.query)

    retraining = ddm.make_retraining(ready.task, ready.train, seeds=2)
    truth = retraining.score(
        retraining.fit(jax.random.key(9), ready.run, ready.data, ready.groups), ready.query
    )
    own = np.asarray(ready.query.y).argmax(1), np.arange(50)
    assert (np.asarray(truth)[own] > 0).mean() > 0.9
    assert (np.asarray(undone(signed.synset))[own] > 0).mean() > 0.9
    assert (np.asarray(undone(hard.synset))[own] > 0).mean() < 0.3


@pytest.mark.slow
def test_uneven_groups_are_distilled_as_even_ones_are(ready, points, start):
    """Group 0 has one item, the others two; and what fills group 0 up is never touched."""
    few = flat(start, np.array([1] + [2] * 9))
    whole, _ = distil(ready, points, start, 20)
    some, _ = distil(ready, points, by_group(few), 20)
    for a, b in zip(
        jax.tree.leaves((whole.synset.items, whole.synset.mass)),
        jax.tree.leaves((some.synset.items, some.synset.mass)),
        strict=True,
    ):
        assert a.shape == b.shape
        np.testing.assert_allclose(a[1:], b[1:], rtol=1e-5, atol=1e-5)
    # The one item of group 0 goes where it goes in a synset of one item a group.
    first = flat(start, np.ones(10, int))
    alone, _ = distil(ready, points, by_group(first), 20)
    for a, b in zip(
        jax.tree.leaves((alone.synset.items, alone.synset.mass)),
        jax.tree.leaves((some.synset.items, some.synset.mass)),
        strict=True,
    ):
        np.testing.assert_allclose(a[0, 0], b[0, 0], rtol=1e-5, atol=1e-5)
    assert float(some.synset.mass[0, 1]) == 0
    filled = jax.tree.map(lambda leaf: leaf[0, 1], (by_group(few).items, some.synset.items))
    jax.tree.map(np.testing.assert_array_equal, *filled)
    moved = np.abs(np.asarray(some.synset.items.x - by_group(few).items.x)).max((2, 3, 4))
    assert (moved.ravel()[np.arange(20) != 1] > 0.01).all()


def test_wrong_points_are_named(ready):
    with pytest.raises(ValueError, match="part=0"):
        trajectory_indices(10, 0)
    with pytest.raises(ValueError, match="offset=-1"):
        make_match_points(ready.task, offset=-1)
    with pytest.raises(ValueError, match=r"offset=99; it must be a whole number, in 0\.\.9"):
        make_match_points(ready.task, offset=99)(
            ready.run.checkpoints, ready.data, group_batches(ready.groups), jnp.array([9])
        )
    with pytest.raises(ValueError, match=r"distill\.offset=99; it must be a whole number, in 0"):
        ddm.make_ddm(ready.task, ddm.DistillSettings(offset=99)).fit(
            jax.random.key(0), ready.run, ready.data, ready.groups
        )


def test_take_indexes_every_leaf():
    assert take({"a": np.arange(3), "b": np.arange(6).reshape(3, 2)}, 1)["b"].tolist() == [2, 3]
