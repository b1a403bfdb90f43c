import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ddm_jax as ddm
from ddm_jax import models


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 7), (3, 2, 7), (3, 2, 8), (1, 2, 8)])
def test_convolution_equals_lax_conv_with_its_gradients(size, stride, side):
    layer = models.Convolution(5, size=size, stride=stride)
    x = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    params = layer.init(jax.random.key(1), x)
    border = (size - 1) // 2

    def ours(params, x):
        return layer.apply(params, x)

    def theirs(params, x):
        inner = params["params"]
        out = lax.conv_general_dilated(
            x,
            inner["kernel"],
            (stride, stride),
            ((border, border), (border, border)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out + inner["bias"]

    got, want = ours(params, x), theirs(params, x)
    assert got.shape == want.shape == (2, -(-side // stride), -(-side // stride), 5)
    np.testing.assert_allclose(got, want, atol=1e-5)
    mine = jax.grad(lambda p: jnp.sum(jnp.sin(ours(p, x))))(params)
    other = jax.grad(lambda p: jnp.sum(jnp.sin(theirs(p, x))))(params)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_average_pool_by_hand_drops_an_odd_edge():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(models.average_pool(x), [[[[2.0]]]])


NETWORKS = [
    ("logistic", {}),
    ("mlp", {"hidden": (7, 5)}),
    ("convnet", {"width": 4, "depth": 2}),
    ("convnet", {"width": 4, "depth": 3, "norm": "group"}),
    ("resnet", {"width": 4, "blocks": (1, 1)}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), NETWORKS)
def test_network_gives_logits_and_features_and_keeps_examples_apart(name, settings):
    task = ddm.classification(models.make_module(name, 6, **settings), (9, 9, 2))
    params = jax.jit(task.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 9, 9, 2))
    logits = task.apply(params, x)
    assert logits.shape == (3, 6)
    assert task.features(params, x).shape[0] == 3
    alone = jnp.concatenate([task.apply(params, x[i : i + 1]) for i in range(3)])
    assert alone.shape == logits.shape
    np.testing.assert_allclose(logits, alone, atol=1e-5)
    y = jax.nn.one_hot(jnp.array([0, 3, 5]), 6)
    gradient = jax.grad(lambda p: task.loss(p, ddm.Batch(x, y)).sum())(params)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["Dense_0"]))


@pytest.mark.parametrize(("name", "settings"), NETWORKS)
def test_without_dropout_training_is_not_random(name, settings):
    task = ddm.classification(models.make_module(name, 6, **settings), (9, 9, 2))
    assert task.training_loss is None


def test_dropout_leaves_logits_right_on_average():
    module = models.MLP(2, (200,), dropout=0.5)
    x = jnp.ones((1, 3))
    params = module.init(jax.random.key(0), x)

    def dropped(key):
        return module.apply(params, x, train=True, rngs={"dropout": key})

    mean = jax.vmap(dropped)(jax.random.split(jax.random.key(1), 4000)).mean(0)
    want = module.apply(params, x)
    assert mean.shape == want.shape == (1, 2)
    np.testing.assert_allclose(mean, want, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "fan_in"),
    [
        (models.Logistic(10, initial="uniform"), {"Dense_0": 64}),
        (
            models.MLP(10, (20, 16), initial="uniform"),
            {"Dense_0": 64, "Dense_1": 20, "Dense_2": 16},
        ),
    ],
)
def test_uniform_starts_fill_pytorchs_range(module, fan_in):
    task = ddm.classification(module, (8, 8, 1))
    params = jax.jit(jax.vmap(task.init))(jax.random.split(jax.random.key(0), 100))
    assert set(params) == set(fan_in)
    for layer, size in fan_in.items():
        bound = size**-0.5
        assert params[layer]["kernel"].shape[:2] == (100, size)
        for leaf in params[layer].values():
            # At least 1,000 draws a leaf.
            assert bound >= jnp.abs(leaf).max() > 0.99 * bound
            np.testing.assert_allclose(leaf.mean(), 0.0, atol=0.08 * bound)
            np.testing.assert_allclose(leaf.std(), bound / 3**0.5, rtol=0.05)
        # Each leaf has a draw of its own.
        assert params[layer]["bias"].shape == params[layer]["kernel"][:, 0].shape
        assert jnp.abs(params[layer]["bias"] - params[layer]["kernel"][:, 0]).max() > 0.1 * bound


@pytest.mark.parametrize("make", [models.Logistic, models.MLP])
def test_biases_start_at_zero_by_default(make):
    params = ddm.classification(make(10), (8, 8, 1)).init(jax.random.key(0))
    for layer in params.values():
        np.testing.assert_array_equal(layer["bias"], 0.0)


def test_bad_networks_are_refused_by_name():
    with pytest.raises(ValueError, match="model='vgg'; choose one of logistic, mlp"):
        models.make_module("vgg", 10)
    with pytest.raises(ValueError, match="depth <= 3"):
        ddm.classification(models.ConvNet(10, depth=4), (8, 8, 1))
    for make in (models.Logistic, models.MLP):
        with pytest.raises(ValueError, match="initial='he'; choose one of lecun, uniform"):
            ddm.classification(make(10, initial="he"), (4,))
    with pytest.raises(ValueError, match="norm='batch'"):
        ddm.classification(models.ConvNet(10, norm="batch"), (8, 8, 1))
