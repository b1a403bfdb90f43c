import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax import parallel
from ddm_jax.parallel import chunked_vmap, device_vmap, in_batches
from ddm_jax.types import take


def fn(item, matrix, offset):
    return {"a": jnp.tanh(matrix @ item["v"]) + offset, "b": item["s"] * 2}


def items(size):
    keys = jax.random.split(jax.random.key(size), 2)
    return {"v": jax.random.normal(keys[0], (size, 3)), "s": jnp.arange(size)}


def loop(size, *shared):
    one = [fn(take(items(size), i), *shared) for i in range(size)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *one)


SHARED = (jnp.arange(12.0).reshape(4, 3) / 10, 0.5)


def test_there_are_four_devices():
    assert jax.local_device_count() == 4


@pytest.mark.parametrize(
    ("count", "size"), [(1, 5), (2, 3), (3, 7), *((4, size) for size in (1, 2, 3, 4, 5, 7, 8, 9))]
)
def test_device_vmap_equals_a_loop_for_every_k_and_number_of_devices(count, size):
    mapped = device_vmap(fn, devices=jax.local_devices()[:count])
    got, want = mapped(items(size), *SHARED), loop(size, *SHARED)
    assert got["a"].shape == want["a"].shape == (size, 4)
    np.testing.assert_allclose(got["a"], want["a"], atol=1e-6)
    np.testing.assert_array_equal(got["b"], want["b"])


@pytest.mark.parametrize("chunk", [2, 5, 100])
def test_chunks_equal_a_loop(chunk):
    got, want = device_vmap(fn, chunk=chunk)(items(5), *SHARED), loop(5, *SHARED)
    assert got["a"].shape == want["a"].shape
    np.testing.assert_allclose(got["a"], want["a"], atol=1e-6)


def test_a_serial_map_is_the_default_on_a_cpu_and_vmap_is_not_used():
    jaxpr = str(jax.make_jaxpr(chunked_vmap(lambda v: v @ v))(jnp.ones((3, 4))))
    assert "scan" in jaxpr
    assert "scan" not in str(
        jax.make_jaxpr(chunked_vmap(lambda v: v @ v, chunk=3))(jnp.ones((3, 4)))
    )


def test_a_second_call_compiles_nothing():
    traces = []

    def counted(item, offset):
        traces.append(1)
        return item + offset

    for devices in (jax.local_devices()[:1], jax.local_devices()):
        mapped = device_vmap(counted, devices=devices)
        mapped(jnp.arange(8.0), 1.0)
        before = len(traces)
        mapped(jnp.arange(8.0) + 1, 2.0)
        assert len(traces) == before > 0


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_training_gives_the_same_bits_however_many_run_side_by_side(ready, devices, size):
    """Among others or alone on its device: a resumed run may cut its work otherwise."""

    loss = ddm.objectives.make_objective("loss", ready.task.apply)

    def one(item, data, groups, query):
        run = ready.train(item["key"], data, item["keep"][groups])
        return run.key, loss(run.params, query)

    mapped = device_vmap(one, devices=jax.local_devices()[:devices])
    keys = jnp.repeat(jax.random.key(1)[None], 9)
    all_items = {"key": keys, "keep": ddm.leave_one_out_masks(10)[:9]}
    shared = (ready.data, jnp.asarray(ready.groups), ready.query)
    together = mapped(all_items, *shared)
    some = mapped(jax.tree.map(lambda leaf: leaf[:size], all_items), *shared)
    assert some[0].dtype == keys.dtype
    assert some[1].shape == (size, 50)
    np.testing.assert_array_equal(some[1], together[1][:size])


@pytest.mark.parametrize("size", [1, 3])
def test_gradients_go_through_a_map(size):
    def total(x):
        return jnp.sum(chunked_vmap(lambda v: {"cube": v**3})(x)["cube"])

    x = jnp.arange(1.0, 1 + 2 * size).reshape(size, 2)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(x), 3 * x**2, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_batches_equal_the_whole(size):
    x = jax.random.normal(jax.random.key(0), (7, 3))
    got = in_batches(lambda matrix, x: x @ matrix, size)(SHARED[0].T, x)
    assert got.shape == (7, 4)
    np.testing.assert_allclose(got, x @ SHARED[0].T, atol=1e-6)


def test_the_device_has_some_memory():
    found = parallel.device_memory()
    assert found is None or 2**27 < found < 2**50


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="chunk=0"):
        device_vmap(fn, chunk=0)(items(2), *SHARED)
    with pytest.raises(ValueError, match="devices is empty"):
        device_vmap(fn, devices=[])
    with pytest.raises(ValueError, match=r"leading axes \[2, 3\]"):
        device_vmap(fn)({"v": jnp.ones((2, 3)), "s": jnp.ones(3)}, *SHARED)
