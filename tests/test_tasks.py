"""A flax module becomes a task: its loss, its output, and how it is trained."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax import models


class Line(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


def test_loss_is_cross_entropy_by_hand():
    real = ddm.classification(models.Logistic(2), (2,))
    params = jax.tree.map(jnp.zeros_like, real.init(jax.random.key(0)))
    batch = ddm.Batch(jnp.ones((1, 2)), jnp.array([[1.0, 0.0]]))
    assert ddm.classification(Line(), (1,)).features is None
    np.testing.assert_allclose(real.loss(params, batch), [np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(real.output(params, batch), [0.0], atol=1e-6)


def test_a_regression_task_has_squared_errors_by_hand():
    task = ddm.regression(Line(), (1,))
    params = {"Dense_0": {"kernel": jnp.array([[2.0, 0.0]]), "bias": jnp.array([0.0, 1.0])}}
    batch = ddm.Batch(jnp.array([[1.0], [3.0]]), jnp.array([[1.0, 1.0], [6.0, 4.0]]))
    loss = task.loss(params, batch)
    assert loss.shape == (2,)
    np.testing.assert_allclose(loss, [0.5, 4.5])
    np.testing.assert_allclose(task.output(params, batch), [-0.5, -4.5])
    assert task.apply(params, batch.x).shape == (2, 2)
    assert task.targets == "any"
    assert ddm.classification(Line(), (1,)).targets == "distribution"


# What is random in training


@pytest.fixture(scope="module")
def pictures():
    x = jax.random.normal(jax.random.key(1), (20, 8, 8, 1))
    return ddm.Batch(x, jax.nn.one_hot(jnp.arange(20) % 10, 10))


def test_dropout_is_random_in_training_alone(pictures):
    task = ddm.classification(models.MLP(10, (32,), dropout=0.5), (8, 8, 1))
    plain = ddm.classification(models.MLP(10, (32,)), (8, 8, 1))
    params = task.init(jax.random.key(0))
    one, again, other = (task.training_loss(params, pictures, jax.random.key(k)) for k in (0, 0, 1))
    assert one.shape == again.shape == other.shape == (20,)
    np.testing.assert_array_equal(one, again)
    assert jnp.abs(one - other).min() > 0, "every example has a mask of its own draw"
    for deterministic in (task.loss, plain.loss):
        assert deterministic(params, pictures).shape == (20,)
    np.testing.assert_array_equal(task.loss(params, pictures), plain.loss(params, pictures))
    np.testing.assert_array_equal(task.output(params, pictures), plain.output(params, pictures))
    np.testing.assert_array_equal(
        task.features(params, pictures.x), plain.features(params, pictures.x)
    )
    assert jnp.abs(one - task.loss(params, pictures)).max() > 0.01


class Louder(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return (3.0 if train else 1.0) * nn.Dense(10)(x.reshape(len(x), -1))


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        if train:
            x = x + jax.random.normal(self.make_rng("dropout"), x.shape)
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_ones_own_module_is_told_that_it_is_trained(pictures):
    task = ddm.classification(Louder(), (8, 8, 1))
    params = task.init(jax.random.key(0))
    got = task.training_loss(params, pictures, jax.random.key(1))
    want = task.loss(jax.tree.map(lambda leaf: 3 * leaf, params), pictures)
    assert got.shape == want.shape == (20,)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert jnp.abs(got - task.loss(params, pictures)).max() > 0.1


def test_ones_own_module_gets_a_key_in_training(pictures):
    task = ddm.classification(Noisy(), (8, 8, 1))
    params = task.init(jax.random.key(0))
    one, other = (task.training_loss(params, pictures, jax.random.key(k)) for k in (0, 1))
    assert one.shape == other.shape == (20,)
    assert jnp.abs(one - other).min() > 0
    assert task.loss(params, pictures).shape == (20,)


# One flag a class, as networks have it.
class Train(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train))


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, training: bool):
        return nn.Dense(10)(nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not training))


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, x, *, is_training):
        return nn.Dense(10)(nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not is_training))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dense(10)(nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=deterministic))


@pytest.mark.slow
@pytest.mark.parametrize("module", [Train(), Training(), IsTraining(), Deterministic()])
def test_dropout_is_switched_on_for_training_whatever_its_flag_is_called(module, pictures):
    """0.8 knew `train` alone, and trained the others without their dropout."""
    task = ddm.classification(module, (8, 8, 1))
    params = task.init(jax.random.key(0))
    one, other = (task.training_loss(params, pictures, jax.random.key(k)) for k in (0, 1))
    assert one.shape == other.shape == (20,)
    assert jnp.abs(one - other).min() > 0
    plain = ddm.classification(models.Logistic(10), (8, 8, 1))
    np.testing.assert_allclose(task.loss(params, pictures), plain.loss(params, pictures), rtol=1e-5)

    def trained(task):
        train = ddm.make_train(task, steps=3, batch_size=20, learning_rate=0.1)
        return jax.jit(train)(jax.random.key(0), pictures, jnp.ones(20)).params

    kernels = [trained(each)["Dense_0"]["kernel"] for each in (task, plain)]
    assert kernels[0].shape == kernels[1].shape
    assert jnp.abs(kernels[0] - kernels[1]).max() > 1e-3, "it is trained with dropout"


class Always(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.Dropout(0.25, deterministic=True)(x))


class Nowhere(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.Dropout(0.0, deterministic=True)(x))


def test_dropout_that_nothing_switches_on_is_refused():
    message = (
        r"dropout \(0\.25\) and nothing to switch it on .* train, training, is_training, determ"
    )
    for make in (ddm.classification, ddm.regression):
        with pytest.raises(ValueError, match=message):
            make(Always(), (4,))
    assert ddm.classification(Nowhere(), (4,)).training_loss is None


# What is refused


class WithBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x))


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x).sum()


def test_modules_that_are_no_classifiers_are_refused_by_name():
    with pytest.raises(ValueError, match="batch_stats"):
        ddm.classification(WithBatchNorm(), (4,))
    with pytest.raises(ValueError, match=r"must be \(1, C\)"):
        ddm.classification(Flat(), (4,))
