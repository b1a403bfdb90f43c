import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ddm_jax as ddm
from ddm_jax import models


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


def test_loss_is_cross_entropy_by_hand():
    task = ddm.Task(None, lambda p, x: x @ p, None, None)
    real = ddm.classification(models.Logistic(2), (2,))
    params = jax.tree.map(jnp.zeros_like, real.init(jax.random.key(0)))
    batch = ddm.Batch(jnp.ones((1, 2)), jnp.array([[1.0, 0.0]]))
    assert task.features is None
    np.testing.assert_allclose(real.loss(params, batch), [np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(real.output(params, batch), [0.0], atol=1e-6)


class WithBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x))


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x).sum()


def test_bad_networks_are_refused_by_name():
    with pytest.raises(ValueError, match="batch_stats"):
        ddm.classification(WithBatchNorm(), (4,))
    with pytest.raises(ValueError, match=r"must be \(1, C\)"):
        ddm.classification(Flat(), (4,))
    with pytest.raises(ValueError, match="unknown model 'vgg'"):
        models.make_module("vgg", 10)
    with pytest.raises(ValueError, match="depth <= 3"):
        ddm.classification(models.ConvNet(10, depth=4), (8, 8, 1))
    with pytest.raises(ValueError, match="norm='batch'"):
        ddm.classification(models.ConvNet(10, norm="batch"), (8, 8, 1))
