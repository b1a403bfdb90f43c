import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax import matching
from ddm_jax.gradients import group_batches, make_group_gradients
from ddm_jax.matching import make_match_points, make_matching_error, make_synset_gradient
from ddm_jax.synset import by_group
from ddm_jax.types import take


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("size", [1, 4, 64])
def test_group_batches_cover_every_row_once(size):
    groups = np.array([2, 0, 2, 2, 1, 2, 2, 0])
    batches = group_batches(ddm.as_groups(groups), size)
    assert batches.count == 3
    rows, valid = np.asarray(batches.rows), np.asarray(batches.valid)
    assert rows.shape == valid.shape
    np.testing.assert_array_equal(np.sort(rows[valid > 0]), np.arange(8))
    for piece, owner in enumerate(np.asarray(batches.owner)):
        assert (groups[rows[piece]] == owner).all()


@pytest.mark.slow
def test_group_gradients_equal_a_loop_and_add_up_to_the_whole(ready):
    gradients = jax.jit(make_group_gradients(ready.task))(
        ready.run.params, ready.data, group_batches(ready.groups, 7)
    )
    total = np.zeros_like(flat(take(gradients, 0)))
    for group in range(10):
        members = np.flatnonzero(ready.groups.ids == group)
        want = jax.grad(lambda p, m: ready.task.loss(p, take(ready.data, m)).sum() / 150)(
            ready.run.params, members
        )
        got = flat(take(gradients, group))
        assert got.shape == flat(want).shape
        np.testing.assert_allclose(got, flat(want), atol=1e-6)
        total += got
    whole = jax.grad(lambda p: ready.task.loss(p, ready.data).mean())(ready.run.params)
    np.testing.assert_allclose(total, flat(whole), atol=1e-6)


@pytest.mark.slow
def test_group_gradients_under_vmap_and_pmap_equal_a_loop(ready):
    gradients = make_group_gradients(ready.task)
    batches = group_batches(ready.groups)
    points = take(ready.run.checkpoints, slice(0, 4))
    each = [gradients(take(points, t), ready.data, batches) for t in range(4)]
    want = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    by_vmap = jax.vmap(gradients, (0, None, None))(points, ready.data, batches)
    by_pmap = jax.pmap(gradients, in_axes=(0, None, None))(points, ready.data, batches)
    for got in (by_vmap, by_pmap):
        assert flat(got).shape == flat(want).shape
        np.testing.assert_allclose(flat(got), flat(want), atol=1e-6)


def real_synset(ready):
    """Every member of every group as an item, by group: h_k is g_k exactly."""
    ids, sizes = np.asarray(ready.groups.ids), ready.groups.sizes()
    rows = np.argsort(ids, kind="stable")
    return by_group(
        ddm.Synset(
            items=ddm.Batch(ready.data.x[rows], jnp.log(ready.data.y[rows] + 1e-30)),
            group=jnp.asarray(ids[rows]),
            mass=jnp.asarray(1 / sizes[ids[rows]], jnp.float32),
            share=jnp.asarray(sizes / 150, jnp.float32),
        )
    )


def test_synset_gradient_of_the_real_members_is_the_group_gradient(ready):
    batches = group_batches(ready.groups)
    g = make_group_gradients(ready.task)(ready.run.params, ready.data, batches)
    h = jax.vmap(make_synset_gradient(ready.task), (None, 0))(ready.run.params, real_synset(ready))
    assert flat(g).shape == flat(h).shape
    np.testing.assert_allclose(flat(g), flat(h), atol=1e-6)


def test_reversing_the_masses_reverses_the_gradient(ready, synset):
    gradient = make_synset_gradient(ready.task)
    one = take(by_group(synset), 0)
    forward = gradient(ready.run.params, one)
    reverse = gradient(ready.run.params, one._replace(mass=-one.mass))
    assert flat(forward).shape == flat(reverse).shape
    np.testing.assert_allclose(flat(forward), -flat(reverse), atol=1e-7)


def test_squared_distance_by_hand():
    g = {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]]), "bias": jnp.array([3.0, 4.0])}
    h = {"kernel": jnp.array([[1.0, 0.0], [0.0, -2.0]]), "bias": jnp.array([6.0, 8.0])}
    np.testing.assert_allclose(matching.squared_distance(g, h), 16 + 25, rtol=1e-6)
    np.testing.assert_allclose(matching.squared_distance(g, g), 0.0, atol=1e-6)


def test_balance_weights_make_an_empty_synset_cost_one():
    gradients = {"w": jnp.array([[[1.0, 0.0], [0.0, 3.0]], [[0.1, 0.0], [0.0, 0.1]]])}
    points = matching.MatchPoints(None, gradients, None, None)
    norms = np.array([[1.0, 9.0], [0.01, 0.01]])
    found = matching.distance_norms(points, "squared")
    np.testing.assert_allclose(found, norms, rtol=1e-5)
    for balance in (0.0, 0.5, 1.0):
        weights = np.asarray(matching.balance_weights(found, balance))
        assert weights.shape == norms.shape
        np.testing.assert_allclose((weights * norms).sum(1), [1, 1], rtol=1e-3)
    np.testing.assert_allclose(matching.balance_weights(found, 0.0)[0], [0.1, 0.1], rtol=1e-3)
    np.testing.assert_allclose(matching.balance_weights(found, 1.0)[0], [0.5, 0.5 / 9], rtol=1e-3)


def test_whitening_equals_the_closed_form(rng):
    """e^T (I + F / lambda)^-1 e with F of fewer groups than directions."""
    flat = rng.normal(size=(5, 12)).astype(np.float32) * np.array([3, 1, 1, 0.3, 0.1])[:, None]
    gradients = {"a": jnp.asarray(flat[:, :4].reshape(5, 2, 2)), "b": jnp.asarray(flat[:, 4:])}
    directions, shrinkage = matching.leading_directions(gradients)
    u = np.concatenate([np.asarray(directions[n]).reshape(5, -1) for n in ("a", "b")], 1)
    assert u.shape == (5, 12)
    np.testing.assert_allclose(u @ u.T, np.eye(5), atol=1e-3)
    covariance = flat.T @ flat
    damping = matching.WHITENING * np.mean((flat**2).sum(1))
    error = rng.normal(size=12).astype(np.float32)
    want = error @ np.linalg.inv(np.eye(12) + covariance / damping) @ error
    tree = {"a": jnp.asarray(error[:4].reshape(2, 2)), "b": jnp.asarray(error[4:])}
    got = error @ error - matching.shared_part(tree, directions, shrinkage)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-3)


@pytest.mark.slow
def test_an_empty_synset_costs_one_when_whitened(ready):
    points = make_match_points(ready.task)(
        ready.run.checkpoints, ready.data, group_batches(ready.groups), jnp.array([3, 9])
    )
    weights = matching.balance_weights(matching.distance_norms(points, "whitened"), 0.5)
    for t in range(2):
        point = take(points, t)
        shared = jax.vmap(matching.shared_part, (0, None, None))(
            point.gradients, point.directions, point.shrinkage
        )
        cost = matching.squared_norms(point.gradients) - shared
        assert cost.shape == weights[t].shape == (10,)
        assert (cost > 0).all()
        np.testing.assert_allclose(weights[t] @ cost, 1.0, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("distance", sorted(matching.DISTANCES))
def test_the_matching_loss_under_vmap_and_pmap_equals_a_loop(ready, synset, distance):
    points = make_match_points(ready.task)(
        ready.run.checkpoints, ready.data, group_batches(ready.groups), jnp.array([9])
    )
    point = take(points, 0)
    weights = matching.balance_weights(matching.distance_norms(points, distance), 0.5)[0]
    slope = jax.value_and_grad(ddm.make_matching_loss(ready.task, distance), allow_int=True)
    items = take((by_group(synset), point.gradients, weights), slice(0, 4))
    each = [jax.jit(slope)(*take(items, k), point) for k in range(4)]
    want, want_slope = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    for mapped in (
        jax.vmap(slope, (0, 0, 0, None)),
        jax.pmap(slope, in_axes=(0, 0, 0, None)),
    ):
        got, got_slope = mapped(*items, point)
        assert got.shape == want.shape == (4,)
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)
        moved, expected = got_slope.items.x, want_slope.items.x
        assert moved.shape == expected.shape
        np.testing.assert_allclose(moved, expected, rtol=1e-2, atol=1e-4)


def test_matching_error_is_zero_for_the_real_members_and_one_for_nothing(ready):
    points = make_match_points(ready.task)(
        ready.run.checkpoints, ready.data, group_batches(ready.groups), jnp.array([8, 9])
    )
    error = jax.jit(make_matching_error(ready.task))
    real = real_synset(ready)
    perfect, empty = error(real, points), error(real._replace(mass=real.mass * 0), points)
    assert perfect.shape == empty.shape == (2, 10)
    np.testing.assert_allclose(perfect, np.zeros((2, 10)), atol=1e-4)
    np.testing.assert_allclose(empty, np.ones((2, 10)), rtol=1e-4)


@pytest.mark.slow
def test_the_slope_of_the_matching_loss_is_right_to_second_order(ready, synset):
    """The gradient of a gradient, against finite differences in double precision."""
    with jax.enable_x64(True):
        double = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)  # noqa: E731
        params, one = double(ready.run.params), double(take(by_group(synset), 3))
        other = double(take(by_group(synset), 4))
        gradient = make_synset_gradient(ready.task)

        def loss(x):
            moved = one._replace(items=one.items._replace(x=x))
            return matching.squared_distance(gradient(params, other), gradient(params, moved))

        x = one.items.x
        slope = jax.grad(loss)(x)
        way = jax.random.normal(jax.random.key(0), x.shape, jnp.float64)
        step = 1e-6
        numeric = (loss(x + step * way) - loss(x - step * way)) / (2 * step)
        np.testing.assert_allclose(jnp.sum(slope * way), numeric, rtol=1e-4)


def test_hard_labels_cannot_reverse_the_last_layer(ready):
    """The trap of the literal objective: with one hard label a class, whatever the input.

    The last bias has the gradient p - e_c for the group and for every item of its class, and
    (p - e_c) (q - e_c) > 0: no positive mass can point the other way.
    """
    bias = lambda tree: np.asarray(tree["Dense_1"]["bias"])  # noqa: E731
    g = make_group_gradients(ready.task)(ready.run.params, ready.data, group_batches(ready.groups))
    gradient = make_synset_gradient(ready.task)
    for group in range(10):
        x = 3 * jax.random.normal(jax.random.key(group), (1, 8, 8, 1))
        y = jnp.log(jnp.eye(10)[None, group] + 1e-30)
        one = ddm.Synset(ddm.Batch(x, y), jnp.zeros(1, jnp.int32), jnp.ones(1), jnp.ones(()))
        h = gradient(ready.run.params, one)
        assert bias(take(g, group)) @ bias(h) > 0
