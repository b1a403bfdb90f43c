import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax.compute import memory, pieces
from ddm_jax.train import make_trainer


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


def allow(monkeypatch, examples, params, batch, objective=objective):
    """Let a piece have so many examples."""
    each = pieces.bytes_an_example(objective, params, batch)
    monkeypatch.setitem(memory.BUDGETS, "examples", memory.Budget(examples * each, 2**30, 1))


def test_bytes_an_example_are_what_its_gradient_keeps():
    """x (3), tanh (20) and the residual (2) in float32, and some of them twice."""
    params, batch, _ = problem(4)
    found = pieces.bytes_an_example(objective, params, batch)
    assert 4 * (3 + 20 + 2) <= found <= 4 * 3 * (3 + 20 + 2)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 5, 12, 13])
def test_a_gradient_in_pieces_equals_the_whole(monkeypatch, count):
    arguments = problem(count)
    want = jax.value_and_grad(objective)(*arguments)
    allow(monkeypatch, 4, *arguments[:2])
    traced = jax.make_jaxpr(pieces.value_and_gradient(objective))(*arguments)
    assert ("scan" in str(traced)) == (count > 4)
    got = pieces.value_and_gradient(objective)(*arguments)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_pieces_of_low_precision_add_up_in_float32(monkeypatch, dtype):
    """400 pieces with a gradient of 1 each: a sum in bfloat16 stays at 256."""

    def along(params, batch, weights):
        return weights @ (batch.x @ params).astype(jnp.float32)

    params, batch = jnp.zeros(1, dtype), ddm.Batch(jnp.ones((400, 1), dtype), jnp.zeros((400, 0)))
    monkeypatch.setattr(pieces, "examples_a_piece", lambda count, each: 1)
    value, gradient = jax.jit(pieces.value_and_gradient(along))(params, batch, jnp.ones(400))
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    assert gradient[0] == 400


@pytest.mark.slow
def test_doubles_stay_doubles(monkeypatch):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), problem(13))
        want = jax.value_and_grad(objective)(*wide)
        allow(monkeypatch, 4, *wide[:2])
        got = pieces.value_and_gradient(objective)(*wide)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.dtype == b.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("count", [4, 13])
def test_examples_may_be_of_any_kind(monkeypatch, count):
    """Nested, with integers, arrays on the host and a key for each example, and without targets."""

    def noisy(params, batch, weights):
        noise = jax.vmap(jax.random.normal)(batch.x["keys"])
        return weights @ (jnp.sum(params[batch.x["tokens"]] ** 2, (1, 2)) * noise)

    rng = np.random.default_rng(0)
    tokens = rng.integers(5, size=(count, 3))
    batch = ddm.Batch({"tokens": tokens, "keys": jax.random.split(jax.random.key(0), count)}, None)
    params, weights = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32), jnp.ones(count)
    want = jax.value_and_grad(noisy)(params, batch, weights)
    allow(monkeypatch, 4, params, batch, noisy)
    got = jax.jit(pieces.value_and_gradient(noisy))(params, batch, weights)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_mapped_pieces_equal_the_whole(size):
    keys = jax.random.split(jax.random.key(0), 7)
    x = {"a": np.arange(21.0).reshape(7, 3), "b": jnp.arange(7), "keys": keys}

    def each(x):
        return {"sum": x["a"].sum(1) + x["b"], "drawn": jax.vmap(jax.random.bits)(x["keys"])}

    got = pieces.map_pieces(each, x, size)
    assert got["sum"].shape == got["drawn"].shape == (7,)
    np.testing.assert_array_equal(got["sum"], x["a"].sum(1) + x["b"])
    np.testing.assert_array_equal(got["drawn"], jax.vmap(jax.random.bits)(keys))


@pytest.mark.slow
def test_small_networks_are_not_cut_and_convolutions_are():
    def scans(module, shape, batch):
        task = ddm.classification(module, shape)
        train = make_trainer(task, steps=1, batch_size=batch, learning_rate=0.1)
        data = ddm.Batch(jnp.zeros((batch, *shape)), jnp.ones((batch, 10)) / 10)
        state = jax.eval_shape(train.start, jax.random.key(0))
        rows = jnp.zeros((1, batch), jnp.int32)
        return str(jax.make_jaxpr(train.advance)(state, rows, data, jnp.ones(batch))).count("scan[")

    assert scans(ddm.models.MLP(10, (128, 64)), (28, 28, 1), 100) == 1  # over the steps alone
    assert scans(ddm.models.ConvNet(10, 32), (28, 28, 1), 10) == 1
    assert scans(ddm.models.ConvNet(10, 32), (28, 28, 1), 100) == 2
