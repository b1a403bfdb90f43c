import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ddm_jax as ddm
from ddm_jax import gradients
from ddm_jax.matching import group_batches


@pytest.fixture(scope="module")
def tiny(ready):
    few = ddm.Batch(ready.data.x[:7], ready.data.y[:7])
    flat, unravel = ravel_pytree(ready.run.params)
    return few, flat, unravel


def test_rows_are_the_gradients_of_each_example(ready, tiny):
    few, flat, unravel = tiny
    got = gradients.example_gradients(ready.task.loss, ready.run.params, few)
    want = jax.jacobian(lambda v: ready.task.loss(unravel(v), few))(flat)
    assert got.shape == want.shape == (7, flat.size)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_products_are_the_same_in_pieces(ready, tiny, monkeypatch):
    few, flat, _ = tiny
    vectors = jax.random.normal(jax.random.key(0), (3, flat.size))
    rows = gradients.example_gradients(ready.task.loss, ready.run.params, few)
    for size in (gradients.ROWS, 4 * flat.size * 2, 1):
        monkeypatch.setattr(gradients, "ROWS", size)
        got = gradients.gradient_products(ready.task.loss, ready.run.params, few, vectors)
        assert got.shape == (7, 3)
        np.testing.assert_allclose(got, rows @ vectors.T, atol=1e-4)


def test_group_rows_are_sums_over_n(ready):
    rows = gradients.example_gradients(ready.task.loss, ready.run.params, ready.data)
    got = gradients.group_gradient_rows(
        ready.task, ready.run.params, ready.data, group_batches(ready.groups, 10), 10
    )
    want = gradients.group_sums(rows, jnp.asarray(ready.groups), 10)
    by_hand = np.stack([np.asarray(rows)[ready.groups == k].sum(0) / 150 for k in range(10)])
    assert got.shape == want.shape == by_hand.shape == (10, rows.shape[1])
    np.testing.assert_allclose(want, by_hand, atol=1e-6)
    np.testing.assert_allclose(got, by_hand, atol=1e-6)


def test_hessian_products_are_those_of_the_whole_matrix(ready, tiny):
    few, flat, unravel = tiny
    weights = jnp.array([0.0, 1.0, 2.0, 0.5, 0.25, 0.0, 1.0])
    vectors = jax.random.normal(jax.random.key(1), (2, flat.size))
    matrix = jax.hessian(lambda v: weights @ ready.task.loss(unravel(v), few))(flat)
    got = gradients.hessian_products(ready.task, ready.run.params, few, weights, vectors)
    assert got.shape == (2, flat.size)
    assert np.abs(matrix).max() > 0.01
    np.testing.assert_allclose(got, vectors @ matrix, atol=1e-4)


def test_a_regression_task_has_squared_errors_by_hand():
    import flax.linen as nn

    class Line(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x)

    task = ddm.regression(Line(), (1,))
    params = {"Dense_0": {"kernel": jnp.array([[2.0, 0.0]]), "bias": jnp.array([0.0, 1.0])}}
    batch = ddm.Batch(jnp.array([[1.0], [3.0]]), jnp.array([[1.0, 1.0], [6.0, 4.0]]))
    loss = task.loss(params, batch)
    assert loss.shape == (2,)
    np.testing.assert_allclose(loss, [0.5, 4.5])
    np.testing.assert_allclose(task.output(params, batch), [-0.5, -4.5])
    assert task.apply(params, batch.x).shape == (2, 2)
