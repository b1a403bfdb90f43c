import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm
from ddm_jax.types import take


@pytest.fixture(scope="module")
def points(ready):
    return ddm.make_match_points(ready.task, 10)(
        ready.run.checkpoints,
        ready.data,
        ddm.group_batches(ready.groups, 10),
        jnp.array([5, 6, 8, 9]),
    )


def distil(ready, points, synset, steps=40, key=0, **settings):
    settings = {"optimizer": optax.adam(0.01)} | settings
    distiller = ddm.make_distiller(ready.task, **settings)
    advance = jax.jit(distiller.advance, static_argnums=3)
    return advance(jax.random.key(key), distiller.start(synset), points, steps)


def test_distillation_lowers_the_error_where_it_was_not_trained(ready, points, synset):
    held_out = ddm.make_match_points(ready.task, 10)(
        ready.run.checkpoints, ready.data, ddm.group_batches(ready.groups, 10), jnp.array([7])
    )
    state, losses = distil(ready, points, synset, 300)
    error = jax.jit(ddm.make_matching_error(ready.task))
    before, after = np.median(error(synset, held_out)), np.median(error(state.synset, held_out))
    assert losses.shape == (300,)
    assert int(state.step) == 300
    assert after < 0.6 * before


@pytest.mark.parametrize("learn", [("x",), ("y",), ("mass",), ("x", "y", "mass")])
def test_only_what_is_learnt_moves(ready, points, synset, learn):
    state, _ = distil(ready, points, synset, 3, learn=learn)
    for name in ("x", "y", "mass", "share"):
        before, after = getattr(synset, name), getattr(state.synset, name)
        assert before.shape == after.shape
        assert bool((before == after).all()) == (name not in learn)


@pytest.mark.parametrize("distance", ["whitened", "squared", "layer_cosine", "row_cosine"])
def test_every_distance_is_lowered(ready, points, synset, distance):
    _, losses = distil(ready, points, synset, 100, distance=distance, points_per_step=4)
    assert losses[-10:].mean() < 0.93 * losses[0]


def test_groups_do_not_touch_each_other(ready, points, synset):
    changed = synset._replace(x=synset.x.at[0].set(0.3))
    one, _ = distil(ready, points, synset, 5)
    other, _ = distil(ready, points, changed, 5)
    assert one.synset.x.shape == other.synset.x.shape
    np.testing.assert_allclose(one.synset.x[1:], other.synset.x[1:], atol=1e-6)
    assert jnp.abs(one.synset.x[0] - other.synset.x[0]).max() > 0.01


@pytest.mark.parametrize("chunk", [3, 10])
def test_chunks_and_jit_change_nothing(ready, points, synset, chunk):
    one, a = distil(ready, points, synset, 4)
    other, b = distil(ready, points, synset, 4, chunk=chunk)
    with jax.disable_jit():
        distiller = ddm.make_distiller(ready.task, optimizer=optax.adam(0.01))
        _, c = distiller.advance(jax.random.key(0), distiller.start(synset), points, 2)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-4)
    np.testing.assert_allclose(a[:2], c, rtol=1e-4)
    np.testing.assert_allclose(one.synset.x, other.synset.x, atol=1e-4)


def test_in_pieces_is_bitwise_the_same_as_in_other_pieces_of_that_size(ready, points, synset):
    distiller = ddm.make_distiller(ready.task, optimizer=optax.adam(0.01))
    advance = jax.jit(distiller.advance, static_argnums=3)
    key, state = jax.random.key(4), distiller.start(synset)
    for _ in range(3):
        state, _ = advance(key, state, points, 5)
    again = distiller.start(synset)
    for _ in range(3):
        # Through the host, as a checkpoint goes.
        again = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), again)
        again, _ = advance(key, again, points, 5)
    np.testing.assert_array_equal(state.synset.x, again.synset.x)
    whole, _ = distil(ready, points, synset, 15, key=4)
    np.testing.assert_allclose(state.synset.x, whole.synset.x, atol=1e-5)


def test_the_offset_takes_real_gradients_earlier_than_synthetic_ones(ready):
    batches = ddm.group_batches(ready.groups, 10)
    indices = jnp.array([4, 8, 9])
    plain = ddm.make_match_points(ready.task, 10)(
        ready.run.checkpoints, ready.data, batches, indices
    )
    later = ddm.make_match_points(ready.task, 10, offset=2)(
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
    assert ddm.trajectory_indices(10, 1.0) == ([1, 2, 3, 4, 6, 7, 8, 9], [0, 5])
    assert ddm.trajectory_indices(10, 0.3) == ([8, 9], [7])
    assert ddm.trajectory_indices(2, 0.5) == ([1], [0])
    fit, held_out = ddm.trajectory_indices(40, 0.75)
    assert 39 in fit
    assert sorted(fit + held_out) == list(range(10, 40))


def test_literal_reversal_with_hard_labels_fails_where_signed_masses_work(ready, points):
    """The negative control: match -g_k with positive masses and fixed hard labels."""
    literal = points._replace(gradients=jax.tree.map(jnp.negative, points.gradients))
    start = ddm.initial_synset(
        jax.random.key(1), ready.task, "random", ready.run, ready.data, ready.groups, 2, [9]
    )
    hard, _ = distil(ready, literal, start, 300, learn=("x",))
    signed, _ = distil(
        ready, literal, start._replace(mass=-start.mass), 300, learn=("x", "y", "mass")
    )
    error = jax.jit(ddm.make_matching_error(ready.task))
    hard_error = np.median(error(hard.synset, literal))
    signed_error = np.median(error(signed.synset, literal))
    assert hard_error > 0.8  # an empty synset has 1
    assert signed_error < 0.2

    # Descending on the synset of a group should undo the group; `forget` descends on the
    # reversed masses, so the literal synset enters with its sign flipped.
    finetune = ddm.make_finetune(ready.task, update="forget", steps=3, optimizer=optax.sgd(0.5))
    scores = ddm.leave_one_out(ddm.ddm_response(finetune, ready.task.output), 10)

    def undone(synset):
        return scores(ready.run.params, synset._replace(mass=-synset.mass), ready.query)

    retraining = ddm.make_retraining(ready.task, ready.train, seeds=2)
    truth = retraining.score(
        retraining.fit(jax.random.key(9), ready.run, ready.data, ready.groups), ready.query
    )
    own = np.asarray(ready.query.y).argmax(1), np.arange(50)
    assert (np.asarray(truth)[own] > 0).mean() > 0.9
    assert (np.asarray(undone(signed.synset))[own] > 0).mean() > 0.9
    assert (np.asarray(undone(hard.synset))[own] > 0).mean() < 0.3


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"distance": "l1"}, "unknown distance 'l1'"),
        ({"balance": 1.5}, "balance=1.5"),
        ({"learn": ("z",)}, "learn=.*'z'"),
        ({"learn": ()}, "learn="),
        ({"points_per_step": 0}, "points_per_step=0"),
    ],
)
def test_wrong_settings_are_named(ready, wrong, match):
    with pytest.raises(ValueError, match=match):
        ddm.make_distiller(ready.task, optimizer=optax.adam(0.1), **wrong)


def test_wrong_points_are_named(ready):
    with pytest.raises(ValueError, match="part=0"):
        ddm.trajectory_indices(10, 0)
    with pytest.raises(ValueError, match="offset=-1"):
        ddm.make_match_points(ready.task, 10, offset=-1)


def test_take_indexes_every_leaf():
    assert take({"a": np.arange(3), "b": np.arange(6).reshape(3, 2)}, 1)["b"].tolist() == [2, 3]
