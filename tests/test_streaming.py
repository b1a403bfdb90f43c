import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax.compute import memory, streaming
from ddm_jax.train import make_trainer


class Reads(np.ndarray):
    """An array on the host that remembers how many rows were read at a time."""

    most = 0

    def __getitem__(self, index):
        found = np.asarray(self)[index]
        Reads.most = max(Reads.most, np.size(index) if isinstance(index, np.ndarray) else len(self))
        return found


@pytest.fixture
def host(ready):
    """The training set on the host, which is never put on a device as a whole."""
    Reads.most = 0
    return ddm.Batch(*(np.asarray(leaf).view(Reads) for leaf in ready.data))


@pytest.mark.slow
@pytest.mark.parametrize("last_batch", ["drop", "keep"])
def test_training_from_the_host_gives_the_same_bits(ready, host, monkeypatch, last_batch):
    trainer = make_trainer(
        ready.task, steps=14, batch_size=40, learning_rate=0.3, momentum=0.5, last_batch=last_batch
    )
    key, weights = jax.random.key(5), jnp.linspace(0.0, 2.0, 150)
    rows = trainer.batches(key, 150)
    advance = jax.jit(trainer.advance)
    want, want_losses = advance(trainer.start(key), rows, ready.data, weights)
    # A quarter of it holds 125 rows: three steps at a time.
    limit = 4 * memory.bytes_of(ready.data) * 125 // 150
    monkeypatch.setattr(streaming, "device_memory", lambda: limit)
    got, losses = streaming.read_as_needed(advance, host, 40)(trainer.start(key), rows, weights)
    assert Reads.most == 120
    assert losses.shape == want_losses.shape == (14,)
    np.testing.assert_array_equal(losses, want_losses)
    for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(want.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_data_that_fit_are_put_on_the_device_once(ready):
    trainer = make_trainer(ready.task, steps=3, batch_size=40, learning_rate=0.3)
    seen = []

    def advance(state, rows, data, weights):
        seen.append(data)
        return state, jnp.zeros(len(rows))

    run = streaming.read_as_needed(advance, jax.tree.map(np.asarray, ready.data), 40)
    for _ in range(2):
        run(None, trainer.batches(jax.random.key(0), 150), jnp.ones(150))
    assert seen[0].x is seen[1].x
    assert isinstance(seen[0].x, jax.Array)


def test_examples_of_any_kind_are_read_a_part_at_a_time(monkeypatch):
    """Nested, with integers, and nothing in `y`."""
    data = ddm.Batch({"a": np.arange(12.0), "b": np.arange(24).reshape(12, 2)}, None)
    monkeypatch.setattr(streaming, "device_memory", lambda: 4 * memory.bytes_of(data) // 2)

    def advance(state, rows, data, weights):
        told = data.x["a"] + data.x["b"].sum(1)
        return state + weights.sum(), told[rows].sum(1)

    rows = np.random.default_rng(0).permutation(12).reshape(4, 3)
    got = streaming.read_as_needed(advance, data, 3)(0.0, rows, np.ones(12))
    want = advance(0.0, rows, data, np.ones(12))
    assert got[0] == want[0]
    np.testing.assert_array_equal(got[1], want[1])
    found = streaming.over_rows(lambda rows, by: by * rows["b"].sum(1)[:, None], data.x, 2.0)
    np.testing.assert_array_equal(found[:, 0], 2.0 * data.x["b"].sum(1))


@pytest.mark.parametrize("limit", [2**40, 8 * 10 * 16])
def test_a_pass_over_all_rows_equals_the_whole(monkeypatch, limit):
    """Four devices; the last limit lets each read ten rows of four floats at a time."""
    x = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float32).view(Reads)
    Reads.most = 0
    monkeypatch.setattr(streaming, "device_memory", lambda: limit)
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    got = streaming.over_rows(lambda rows, by: rows[0] @ by, (x,), matrix)
    assert got.shape == (150, 3)
    np.testing.assert_allclose(got, np.asarray(x) @ matrix, rtol=1e-5, atol=1e-5)
    assert Reads.most == (40 if limit == 8 * 10 * 16 else 4 * 38)
