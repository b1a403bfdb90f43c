"""Masks: who is kept, and how much; and the transformation that everything is about."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax.estimators.datamodel import ridge
from ddm_jax.masks import (
    check_masks,
    leave_one_out_masks,
    moved_share,
    pair_masks,
    point_weights,
    random_weights,
    subset_size,
)


@pytest.mark.slow
def test_masks():
    masks = leave_one_out_masks(3)
    np.testing.assert_array_equal(masks, [[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    halves = ddm.random_masks(jax.random.key(0), 50, 9)
    assert halves.shape == (50, 9)
    assert set(np.asarray(halves.sum(1))) == {4.0}
    assert (halves.mean(0) > 0.2).all()
    few = ddm.random_masks(jax.random.key(0), 5, 10, keep=0.01)
    assert set(np.asarray(few.sum(1))) == {1.0}


@pytest.mark.parametrize(
    ("num_groups", "keep", "size"),
    [(9, 0.5, 4), (10, 0.5, 5), (10, 0.01, 1), (10, 0.99, 9), (2, 0.9, 1), (3, 0.2, 1)],
)
def test_a_random_subset_keeps_some_and_never_all(num_groups, keep, size):
    assert subset_size(num_groups, keep) == size
    masks = ddm.random_masks(jax.random.key(1), 7, num_groups, keep)
    np.testing.assert_array_equal(masks.sum(1), np.full(7, size))
    assert ddm.random_masks(jax.random.key(1), 0, num_groups, keep).shape == (0, num_groups)


def test_leave_one_out_of_a_function_of_ones_own():
    """`scores[k] = response(1) - response(1 - e_k)`, by hand: a product of weights and a sum."""

    def outputs(masks, x):
        masks = np.asarray(masks)
        return np.stack([masks.prod(1) * x, masks @ np.array([1.0, 2.0, 4.0]) + x], 1)

    scores = ddm.leave_one_out(outputs, 3)(5.0)
    np.testing.assert_array_equal(scores, [[5, 1], [5, 2], [5, 4]])


def test_leave_one_out_of_a_linear_response_is_its_slope_and_traces(rng):
    slope = rng.normal(size=(4, 6)).astype(np.float32)
    scores = ddm.leave_one_out(lambda masks, slope: masks @ slope + 3.0, 4)
    plain, compiled = scores(slope), jax.jit(scores)(slope)
    assert plain.shape == compiled.shape == slope.shape
    np.testing.assert_allclose(plain, slope, atol=1e-5)
    np.testing.assert_allclose(compiled, slope, atol=1e-5)


def test_a_ridge_of_random_masks_recovers_a_linear_response(rng):
    truth = rng.normal(size=(8, 5))
    masks = np.asarray(ddm.random_masks(jax.random.key(0), 400, 8), np.float64)
    outputs = masks @ truth + 3.0
    with jax.enable_x64(True):
        centred = [jnp.asarray(a - a.mean(0)) for a in (masks, outputs)]
        got = np.asarray(ridge(*centred, 1e-6))
    # All masks keep four groups, so effects are known up to a shift a query.
    assert got.shape == truth.shape
    np.testing.assert_allclose(got - got.mean(0), truth - truth.mean(0), atol=1e-4)


def test_pairs():
    masks = pair_masks(5, 4, seed=1)
    assert masks.shape == (5, 5)
    assert masks[0].tolist() == [1] * 5
    assert (masks[1:].sum(1) == 3).all()
    assert len({tuple(row) for row in masks}) == 5
    assert len(pair_masks(4, 100)) == 1 + 6
    with pytest.raises(ValueError, match="num_groups=2"):
        pair_masks(2, 1)


def test_which_pairs_go_is_the_seeds():
    first, again, other = (pair_masks(9, 10, seed) for seed in (0, 0, 1))
    assert first.dtype == np.float32
    assert (first == again).all()
    assert (first != other).any()


def test_the_weight_of_a_point_is_its_groups():
    groups = ddm.as_groups([2, 0, 1, 0])
    weights = point_weights(jnp.array([0.0, 1.0, 2.5]), groups)
    np.testing.assert_array_equal(weights, [2.5, 0, 1, 0])


def test_the_background_has_weight_one():
    groups = ddm.as_groups([2, -1, 0, 1, -1, 0])
    keep = jnp.array([0.0, 1.0, 2.5])
    want = [2.5, 1, 0, 1, 1, 0]
    np.testing.assert_array_equal(point_weights(keep, groups), want)
    np.testing.assert_array_equal(jax.jit(point_weights)(keep, groups), want)
    np.testing.assert_array_equal(point_weights(np.array([0, 1, 2]), groups), [2, 1, 0, 1, 1, 0])


def test_where_there_is_a_background_no_group_need_be_kept():
    masks = check_masks([[0, 0], [2, 0]], 2, background=True)
    np.testing.assert_array_equal(masks, [[0, 0], [2, 0]])
    with pytest.raises(ValueError, match="the weights of a mask must be of"):
        check_masks([[1e7, 0]], 2, background=True)


@pytest.mark.slow
def test_random_weights_have_every_level_as_often():
    weights = np.asarray(random_weights(jax.random.key(0), 40, 8))
    assert weights.shape == (40, 8)
    for level in (0.0, 0.5, 1.0, 2.0):
        assert ((weights == level).sum(1) == 2).all()
    assert (weights.std(0) > 0.3).all()  # of every group
    few = np.asarray(random_weights(jax.random.key(1), 200, 2, (0.0, 0.0, 0.0, 3.0)))
    assert set(np.unique(few)) == {0.0, 3.0}
    assert (few.max(1) == 3).all()
    assert random_weights(jax.random.key(0), 0, 3).shape == (0, 3)


def test_masks_are_weights_of_at_least_zero():
    masks = check_masks([[2, 0], [0.25, 7]], 2)
    assert masks.dtype == jnp.float32
    np.testing.assert_array_equal(masks, [[2, 0], [0.25, 7]])
    traced = jax.jit(lambda m: check_masks(m, 2))(jnp.zeros((3, 2)))
    np.testing.assert_array_equal(traced, np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((2, 3)), r"masks have shape \(2, 3\); they must be \[R, 4\], R >= 1"),
        (np.ones(4), r"shape \(4,\)"),
        (np.ones((0, 4)), r"shape \(0, 4\)"),
        ([[1, 1, 1, 1], [0, 0, 0, 0]], "mask 1 keeps no group; keep at least one in every mask"),
        ([[2, 0, 1, -0.5]], "weights of at least 0: 1 where a group is kept, 0 where"),
        ([[1, 1, 1, np.nan]], "weights of at least 0"),
        ([[1, 1, 1, np.inf]], "weights of at least 0"),
    ],
)
def test_bad_masks_are_named(masks, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_masks(masks, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: leave_one_out_masks(1), "num_groups=1; it must be a whole number, at least 2"),
        (lambda: leave_one_out_masks(2.0), "num_groups=2.0"),
        (lambda: ddm.leave_one_out(lambda masks: masks, 1), "num_groups=1"),
        (lambda: ddm.random_masks(jax.random.key(0), 3, 1), "num_groups=1"),
        (lambda: ddm.random_masks(jax.random.key(0), -1, 3), "num_masks=-1"),
        (lambda: ddm.random_masks(jax.random.key(0), 3, 4, 0.0), "keep=0.0; .* above 0"),
        (lambda: ddm.random_masks(jax.random.key(0), 3, 4, 1.0), "keep=1.0; .* below 1"),
        (lambda: ddm.random_masks(jax.random.key(0), 3, 4, 5), "keep=5; .* below 1"),
        (lambda: ddm.random_masks(jax.random.key(0), 3, 4, float("nan")), "keep=nan"),
        (lambda: random_weights(jax.random.key(0), 3, 1), "num_groups=1"),
        (lambda: random_weights(jax.random.key(0), 3, 4, (1, -2)), "levels=-2; .* at least 0"),
        (lambda: random_weights(jax.random.key(0), 3, 4, (0, 0)), "one of them must be positive"),
    ],
)
def test_numbers_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("size", [1e-20, 1e37])
def test_weights_that_no_sum_can_hold_are_refused(size):
    with pytest.raises(ValueError, match="the weights of a mask must be of"):
        check_masks(np.full((1, 3), size), 3)


def test_what_moves_is_what_goes_and_what_is_counted_once_more():
    groups = ddm.as_groups([0, 0, 0, 1, 2, 2, -1, -1, -1, -1])
    masks = np.array([[1, 1, 1], [0, 1, 1], [1, 2, 0.5]])
    np.testing.assert_allclose(moved_share(masks, groups.shares()), [0, 0.3, 0.1])


def test_of_weights_the_ratios_alone_move_anything():
    """Half of one group and twice all others are one question; they had two answers."""
    shares = np.full(4, 0.25)
    half, double = np.array([[0.5, 1, 1, 1], [1, 2, 2, 2.0]])
    one, two, none = moved_share(np.stack([half, double, np.full(4, 2.0)]), shares)
    assert one == pytest.approx(two)
    assert one > 0
    assert none == pytest.approx(0)
