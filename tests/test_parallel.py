import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations

import ddm_jax as ddm
from ddm_jax.compute import memory, placement
from ddm_jax.compute.placement import chunked_vmap, device_vmap, in_batches
from ddm_jax.masks import leave_one_out_masks
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


def check_equal(got, size):
    want = loop(size, *SHARED)
    assert got["a"].shape == want["a"].shape == (size, 4)
    np.testing.assert_allclose(got["a"], want["a"], atol=1e-6)
    np.testing.assert_array_equal(got["b"], want["b"])


# K in {1, D - 1, D, D + 1, 3 D + 2} for each number of devices D, and some more.
SIZES = [(d, k) for d in (1, 2, 3, 4) for k in sorted({1, d - 1, d, d + 1, 3 * d + 2} - {0})]


@pytest.mark.slow
@pytest.mark.parametrize("engine", placement.ENGINES)
@pytest.mark.parametrize(("count", "size"), [*SIZES, (4, 2), (4, 7), (4, 8), (4, 9)])
def test_device_vmap_equals_a_loop_for_every_k_and_number_of_devices(engine, count, size):
    mapped = device_vmap(fn, devices=jax.local_devices()[:count], engine=engine)
    check_equal(mapped(items(size), *SHARED), size)


@pytest.mark.parametrize("engine", placement.ENGINES)
def test_the_routes_give_the_same_bits_where_each_device_maps_in_turn(engine):
    one = device_vmap(fn, devices=jax.local_devices()[:1])(items(14), *SHARED)
    some = device_vmap(fn, engine=engine)(items(14), *SHARED)
    np.testing.assert_array_equal(some["a"], one["a"])


@pytest.mark.parametrize("size", [3, 8])
def test_it_runs_inside_jit_and_under_grad(size):
    mapped = device_vmap(lambda v, scale: jnp.sum(v**2) * scale)
    x = jax.random.normal(jax.random.key(0), (size, 3))
    got = jax.jit(jax.grad(lambda x, scale: jnp.sum(mapped(x, scale))))(x, 2.0)
    assert got.shape == (size, 3)
    np.testing.assert_allclose(got, 4 * x, rtol=1e-6)


@pytest.mark.slow
def test_arguments_that_were_replicated_stay_where_they_are():
    shared = placement.replicate(SHARED)
    assert len(shared[0].devices()) == 4
    assert jax.device_put(shared[0], shared[0].sharding) is shared[0]
    check_equal(device_vmap(fn)(items(8), *shared), 8)
    check_equal(device_vmap(fn)(items(1), *shared), 1)  # on one of them only
    check_equal(device_vmap(fn)(items(5), *shared), 5)


@pytest.mark.parametrize("size", [8, 9])
def test_donated_items_are_used_up(size):
    mapped = device_vmap(lambda v, by: v * by, donate=True)
    x = placement.replicate(jnp.ones((size, 1000)))
    x = mapped(x, 2.0)
    again = mapped(x, 3.0)
    np.testing.assert_array_equal(again, np.full((size, 1000), 6.0, np.float32))
    if size == 8:
        assert x.is_deleted()


@pytest.mark.slow
def test_as_many_run_side_by_side_as_fit_into_memory(monkeypatch):
    """Each item needs 4 MB on its way: with 1 GB they all run at once, with 20 MB only some."""

    def wide(item):
        return jnp.sum(jnp.sort(jnp.outer(item, item).ravel()) ** 2)

    x = jnp.ones((8, 1000)) * jnp.arange(8.0)[:, None] / 1000
    want = jnp.stack([wide(item) for item in x])
    real, chosen = placement.chunked_vmap, []
    for limit in (2**30, 20 * 2**20, 1):
        monkeypatch.setattr(memory, "device_memory", lambda limit=limit: limit)
        tried = []
        monkeypatch.setattr(
            placement, "chunked_vmap", lambda f, c, tried=tried: (tried.append(c), real(f, c))[1]
        )
        mapped = device_vmap(wide, devices=jax.local_devices()[:1], chunk="fit")
        np.testing.assert_allclose(mapped(x), want, rtol=1e-5)
        chosen.append(tried[-1])
    assert chosen[0] == 8 > chosen[1] > chosen[2] == 1


@pytest.mark.parametrize("chunk", [1, "fit"])
@pytest.mark.parametrize("engine", placement.ENGINES)
def test_one_compilation_for_each_shape(engine, chunk):
    mapped = device_vmap(fn, engine=engine, chunk=chunk)
    ready = jax.block_until_ready((items(8), items(12)))
    for some in ready:  # the small programs that move arguments about, which all calls share
        device_vmap(lambda item, *shared: item["v"], engine=engine)(some, *SHARED)
    assert compilations(lambda: mapped(ready[0], *SHARED)) == 1
    assert compilations(lambda: mapped(ready[0], *SHARED)) == 0
    assert compilations(lambda: mapped(ready[1], *SHARED)) == 1
    assert compilations(lambda: mapped(ready[1], *SHARED)) == 0


WORKER = """
import sys
import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
import jax.numpy as jnp

import ddm_jax as ddm
from ddm_jax.estimators.retraining import retraining_response
from ddm_jax.masks import leave_one_out_masks

assert jax.device_count() == 4 and jax.local_device_count() == 2

split = ddm.data.load("digits", train_size=100, test_size=20)
task = ddm.classification(ddm.models.MLP(10, (8,)), (8, 8, 1))
train = ddm.make_train(task, steps=20, batch_size=50, learning_rate=0.3)
groups = ddm.as_groups(np.arange(100) // 10)
response = retraining_response(train, task.output)
masks = np.asarray(leave_one_out_masks(10))
arguments = (jax.random.key(0), split.train, groups, split.test)
for size in (1, 3, 4, 5, 11):
    found = ddm.subset_outputs(response)(masks[:size], *arguments)
    one = ddm.subset_outputs(response, devices=jax.local_devices()[:1])(masks[:size], *arguments)
    assert found.shape == (size, 20) and found.is_fully_addressable or found.is_fully_replicated
    np.testing.assert_array_equal(np.asarray(found), np.asarray(one))
    if sys.argv[2] == "0":
        print("size", size, flush=True)
try:
    ddm.device_vmap(lambda v: v, engine="pmap")
except ValueError as error:
    assert "one process" in str(error)
else:
    raise AssertionError("pmap over two processes must be refused")
"""


@pytest.mark.slow
def test_two_processes_share_the_items_and_both_get_all_results():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(port), str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    told = [line for line in outputs[0][0].splitlines() if line.startswith("size ")]
    assert told == ["size 1", "size 3", "size 4", "size 5", "size 11"]


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


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_training_gives_the_same_bits_however_many_run_side_by_side(ready, devices, size):
    """Among others or alone on its device: a resumed run may cut its work otherwise."""

    loss = ddm.objectives.explain(ready.task, "loss").output

    def one(item, data, groups, query):
        run = ready.train(item["key"], data, item["keep"][groups])
        return run.key, loss(run.params, query)

    mapped = device_vmap(one, devices=jax.local_devices()[:devices])
    keys = jnp.repeat(jax.random.key(1)[None], 9)
    all_items = {"key": keys, "keep": leave_one_out_masks(10)[:9]}
    shared = (ready.data, jnp.asarray(ready.groups.ids), ready.query)
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


def test_a_function_is_compiled_once_however_often_it_is_mapped_in_batches():
    x = jax.block_until_ready(jax.random.normal(jax.random.key(0), (7, 3)))

    def forward(matrix, x):
        return x @ matrix

    assert compilations(lambda: in_batches(forward, 2)(SHARED[0].T, x)) > 0
    assert compilations(lambda: in_batches(forward, 2)(SHARED[0].T, x)) == 0


def test_items_that_do_not_belong_together_are_refused_inside_jit_too():
    uneven = {"v": jnp.ones((2, 3)), "s": jnp.ones(3)}
    for mapped in (jax.jit(device_vmap(lambda item: item)), jax.jit(chunked_vmap(lambda i: i))):
        with pytest.raises(ValueError, match=r"leading axes \[2, 3\]"):
            mapped(uneven)
    with pytest.raises(ValueError, match=r"leading axes \[0\]"):
        device_vmap(lambda number: number)(1.0)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="chunk=0"):
        device_vmap(fn, chunk=0)(items(2), *SHARED)
    with pytest.raises(ValueError, match="chunk='all'"):
        device_vmap(fn, chunk="all")
    with pytest.raises(ValueError, match="engine='mpi'"):
        device_vmap(fn, engine="mpi")
    with pytest.raises(ValueError, match="devices is empty"):
        device_vmap(fn, devices=[])
    with pytest.raises(ValueError, match=r"leading axes \[2, 3\]"):
        device_vmap(fn)({"v": jnp.ones((2, 3)), "s": jnp.ones(3)}, *SHARED)
