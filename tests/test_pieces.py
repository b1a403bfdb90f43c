import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax import pieces


def objective(params, batch, weights):
    hidden = jnp.tanh(batch.x @ params["in"])
    return weights @ jnp.sum((hidden @ params["out"] - batch.y) ** 2, 1)


def problem(count):
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        "in": jax.random.normal(keys[0], (3, 20)),
        "out": jax.random.normal(keys[1], (20, 2)),
    }
    x, y = jax.random.normal(keys[2], (count, 3)), jax.random.normal(keys[3], (count, 2))
    batch = ddm.Batch(x, y)
    return params, batch, jax.random.uniform(keys[4], (count,))


def test_bytes_an_example_are_what_its_gradient_keeps():
    """x (3), tanh (20) and the residual (2) in float32, and some of them twice."""
    params, batch, _ = problem(4)
    found = pieces.bytes_an_example(objective, params, batch)
    assert 4 * (3 + 20 + 2) <= found <= 4 * 3 * (3 + 20 + 2)


@pytest.mark.parametrize(
    ("count", "each", "size"),
    [(100, 1, 100), (100, 2**20, 6), (100, 2**19, 12), (7, 2**21, 2), (7, 2**22, 1), (5, 2**30, 1)],
)
def test_pieces_are_as_few_as_fit_and_about_equal(count, each, size):
    assert pieces.piece_size(count, each) == size


@pytest.mark.parametrize("count", [1, 5, 12, 13])
def test_a_gradient_in_pieces_equals_the_whole(monkeypatch, count):
    arguments = problem(count)
    want = jax.value_and_grad(objective)(*arguments)
    monkeypatch.setattr(pieces, "CACHE", 4 * pieces.bytes_an_example(objective, *arguments[:2]))
    traced = jax.make_jaxpr(pieces.value_and_gradient(objective))(*arguments)
    assert ("scan" in str(traced)) == (count > 4)
    got = pieces.value_and_gradient(objective)(*arguments)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_mapped_pieces_equal_the_whole(size):
    x = {"a": jnp.arange(21.0).reshape(7, 3), "b": jnp.arange(7.0)}
    got = pieces.map_pieces(lambda x: {"sum": x["a"].sum(1) + x["b"]}, x, size)["sum"]
    assert got.shape == (7,)
    np.testing.assert_array_equal(got, x["a"].sum(1) + x["b"])


def test_small_networks_are_not_cut_and_convolutions_are():
    def scans(module, shape, batch):
        task = ddm.classification(module, shape)
        train = ddm.make_trainer(task, steps=1, batch_size=batch, learning_rate=0.1)
        data = ddm.Batch(jnp.zeros((batch, *shape)), jnp.ones((batch, 10)) / 10)
        state = jax.eval_shape(train.start, jax.random.key(0))
        rows = jnp.zeros((1, batch), jnp.int32)
        return str(jax.make_jaxpr(train.advance)(state, rows, data, jnp.ones(batch))).count("scan[")

    assert scans(ddm.models.MLP(10, (128, 64)), (28, 28, 1), 100) == 1  # over the steps alone
    assert scans(ddm.models.ConvNet(10, 32), (28, 28, 1), 10) == 1
    assert scans(ddm.models.ConvNet(10, 32), (28, 28, 1), 100) == 2
