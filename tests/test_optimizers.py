"""Optimisers by name: what is accepted, what they compute, and the squares that they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm
from ddm_jax.optimizers import (
    as_optimizer,
    coupled_decay,
    decoupled_decay,
    second_moments,
    setting,
    transformation,
)
from ddm_jax.types import Optimizer

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.ones((2, 3))}
SLOPES = {"a": jnp.array([3.0, 4.0]), "b": jnp.zeros((2, 3))}


def walk(rule, steps=3, params=PARAMS):
    """Some steps along gradients that grow; the parameters and the state."""
    state = rule.init(params)
    for number in range(1, steps + 1):
        slopes = jax.tree.map(lambda leaf, n=number: n * leaf, SLOPES)
        updates, state = rule.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_same(one, two):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), one, two)


@pytest.mark.parametrize("name", ["adam", "adamw", "lion", "rmsprop", "adagrad", "adafactor"])
def test_a_name_is_the_function_of_optax(name):
    got, _ = walk(transformation(as_optimizer(name), 0.1))
    decay = {"weight_decay": 0.0} if name in ("adamw", "lion") else {}
    want, _ = walk(getattr(optax, name)(0.1, **decay))
    assert np.abs(got["a"] - PARAMS["a"]).max() > 0.01
    assert_same(got, want)


def test_settings_and_decay_go_where_they_belong():
    decoupled = as_optimizer({"name": "adamw", "b1": 0.8}, weight_decay=0.3)
    assert decoupled == Optimizer("adamw", (("b1", 0.8), ("weight_decay", 0.3)))
    assert coupled_decay(decoupled, 0.3) == 0.0
    got, _ = walk(transformation(decoupled, 0.1))
    assert_same(got, walk(optax.adamw(0.1, b1=0.8, weight_decay=0.3))[0])
    coupled = as_optimizer("adam", weight_decay=0.3)
    assert coupled == Optimizer("adam")
    assert coupled_decay(coupled, 0.3) == 0.3
    got, _ = walk(transformation(coupled, 0.1, 0.3))
    assert_same(got, walk(optax.chain(optax.add_decayed_weights(0.3), optax.adam(0.1)))[0])
    assert as_optimizer(decoupled) == as_optimizer(decoupled, weight_decay=0.3) == decoupled
    assert setting(decoupled, "b1") == 0.8
    assert setting(decoupled, "b2") == 0.999
    assert setting(decoupled, "decay") is None


def test_sgd_is_said_in_one_way():
    plain = [as_optimizer(), as_optimizer("sgd", momentum=0.0), as_optimizer({"name": "sgd"})]
    plain += [as_optimizer(Optimizer()), as_optimizer({"name": "sgd", "momentum": None})]
    assert set(plain) == {Optimizer()}
    heavy = as_optimizer("sgd", momentum=0.9)
    assert heavy == as_optimizer({"name": "sgd", "momentum": 0.9}) == as_optimizer(heavy)
    assert heavy.get("momentum") == 0.9
    nesterov = as_optimizer({"name": "sgd", "nesterov": True}, momentum=0.9)
    got, _ = walk(transformation(nesterov, 0.1))
    assert_same(got, walk(optax.sgd(0.1, 0.9, nesterov=True))[0])


def test_clipping_comes_before_the_decay_by_hand():
    spec = as_optimizer("sgd", clip=2.5)
    got, _ = walk(transformation(spec, 0.1, 0.5), steps=1)
    # The gradient (3, 4) has norm 5, and is halved; the decay is not.
    np.testing.assert_allclose(got["a"], [1 - 0.1 * (1.5 + 0.5), -2 - 0.1 * (2 - 1)], rtol=1e-6)


def test_an_accumulated_update_is_one_of_the_mean_gradient():
    spec = as_optimizer("adam", accumulate=3)
    got, state = walk(transformation(spec, lambda update: 0.1 / (1 + update)), steps=7)
    rule = optax.adam(lambda update: 0.1 / (1 + update))
    want, kept = PARAMS, rule.init(PARAMS)
    for mean in (2.0, 5.0):  # of 1..3 and 4..6; the seventh waits
        slopes = jax.tree.map(lambda leaf, n=mean: n * leaf, SLOPES)
        updates, kept = rule.update(slopes, kept, want)
        want = optax.apply_updates(want, updates)
    assert_same(got, want)
    assert_same(second_moments(spec, state, PARAMS), second_moments(spec, kept, PARAMS))


@pytest.mark.parametrize("spec", [{"name": "adamw", "b2": 0.9}, "lamb", "nadam"])
@pytest.mark.parametrize("changes", [{}, {"clip": 1e6}, {"accumulate": 1, "weight_decay": 0.1}])
def test_squares_are_the_weighted_mean_of_what_was_seen(spec, changes):
    spec = as_optimizer(spec, **changes)
    _, state = walk(transformation(spec, 0.0))
    b2 = spec.get("b2", 0.999)
    weights = b2 ** np.array([2, 1, 0])
    want = (weights * np.array([1, 4, 9])).sum() / weights.sum() * np.array([9.0, 16.0])
    got = second_moments(spec, state, PARAMS)
    assert jax.tree.structure(got) == jax.tree.structure(PARAMS)
    np.testing.assert_allclose(got["a"], want, rtol=1e-4)
    np.testing.assert_array_equal(got["b"], 0)


@pytest.mark.parametrize("name", ["sgd", "lion", "adagrad", "adafactor"])
def test_others_keep_no_squares(name):
    spec = as_optimizer(name)
    assert second_moments(spec, transformation(spec, 0.1).init(PARAMS), PARAMS) is None


def test_rmsprop_divides_by_what_it_has():
    spec = as_optimizer("rmsprop")
    _, state = walk(transformation(spec, 0.0), steps=1)
    np.testing.assert_allclose(
        second_moments(spec, state, PARAMS)["a"], 0.1 * np.array([9.0, 16.0]), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamm"}, "optimizer='adamm'; it must be the name of an optimiser of optax"),
        ({"optimizer": "scale"}, "optimizer='scale'; .* such as sgd, adam, adamw, lion"),
        ({"optimizer": 3}, "optimizer=3; it must be"),
        ({"optimizer": {"b1": 0.9}}, "optimizer=None; it must be"),
        ({"optimizer": "lbfgs"}, "optimizer='lbfgs' cannot train here .*no more than gradients"),
        ({"optimizer": {"name": "adam", "beta": 1}}, "beta=1; the settings of adam are b1, b2"),
        ({"optimizer": {"name": "adam", "learning_rate": 1}}, "learning_rate=1 among the settings"),
        ({"optimizer": {"name": "adamw", "mask": np.ones(1)}}, "a setting of adamw must be a numb"),
        ({"optimizer": {"name": "adam", "b1": float("nan")}}, "b1=nan; it must be a finite"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum=0.9; adam has no momentum: leave it 0"),
        ({"optimizer": optax.adam(0.1)}, "needs a name to be told by: pass name='mine'"),
        ({"optimizer": optax.adam(0.1), "name": "mine", "momentum": 0.5}, "momentum=0.5; the tran"),
        ({"optimizer": "adam", "name": "mine"}, "name='mine' is for an optax.GradientTransform"),
        ({"optimizer": Optimizer("mine", own=True)}, "'mine' is its user's own: pass the optax"),
        (
            {"optimizer": {"name": "adamw", "weight_decay": 0.1}, "weight_decay": 0.2},
            "weight_decay is 0.1 in optimizer= and 0.2 beside it: give it once",
        ),
        ({"momentum": 1.0}, "momentum=1"),
        ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"clip": 0.0}, "clip=0"),
        ({"accumulate": 0}, "accumulate=0"),
    ],
)
def test_what_is_none_is_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as told:
        as_optimizer(**settings)
    assert "\n" not in str(told.value)


def test_ones_own_transformation_goes_by_its_name():
    own = optax.chain(optax.clip(1.0), optax.adam(0.1))
    spec = as_optimizer(own, name="mine", weight_decay=0.1)
    assert spec == Optimizer("mine", own=True)
    assert coupled_decay(spec, 0.1) == 0.1
    got, state = walk(transformation(spec, None, 0.1, own))
    assert_same(got, walk(optax.chain(optax.add_decayed_weights(0.1), own))[0])
    assert second_moments(spec, state, PARAMS) is not None
    with pytest.raises(ValueError, match="'mine' is its user's own, and cannot be made"):
        transformation(spec, 0.1)


def test_a_spec_is_hashed_compared_and_has_no_leaves():
    spec = as_optimizer("adamw", weight_decay=0.1)
    assert hash(spec) == hash(as_optimizer({"name": "adamw", "weight_decay": np.float64(0.1)}))
    assert jax.tree.leaves(spec) == []
    assert ddm.TrainRun(None, None, None).optimizer == Optimizer()


@pytest.mark.parametrize("name", ["adamax", "adamaxw"])
def test_the_largest_gradients_are_no_squares(name):
    spec = as_optimizer(name)
    params = {"w": jnp.ones(2)}
    rule = transformation(spec, 0.1)
    _, state = rule.update({"w": jnp.full(2, 0.1)}, rule.init(params), params)
    assert second_moments(spec, state, params) is None


@pytest.mark.parametrize("name", ["lars", "adadelta"])
def test_a_decay_that_goes_into_the_gradient_is_the_objectives(name):
    """And is added once, by optax."""
    spec = as_optimizer(name, weight_decay=0.5)
    assert coupled_decay(spec, 0.5) == 0.5
    assert decoupled_decay(spec) == 0
    params, gradient = {"w": jnp.full(2, 2.0)}, {"w": jnp.ones(2)}
    given = transformation(spec, 0.1, coupled_decay(spec, 0.5))
    plain = getattr(optax, name)(0.1, weight_decay=0.5)
    for rule in (given, plain):
        step, _ = rule.update(gradient, rule.init(params), params)
        np.testing.assert_allclose(
            step["w"], plain.update(gradient, plain.init(params), params)[0]["w"]
        )
    beside = as_optimizer("adamw", weight_decay=0.5)
    assert (coupled_decay(beside, 0.5), decoupled_decay(beside)) == (0, 0.5)
    assert (coupled_decay(as_optimizer("adam"), 0.5), decoupled_decay(as_optimizer("adam"))) == (
        0.5,
        0,
    )
