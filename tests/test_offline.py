import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import compilations

import ddm_jax as ddm
from ddm_jax import offline, parallel
from ddm_jax.matching import make_matching_error

INDICES = (5, 6, 8, 9)


def distiller(ready, distance="squared"):
    return ddm.make_distiller(
        ready.task, optimizer=optax.adam(0.02), distance=distance, points_per_step=2
    )


def all_at_once(ready, synset, steps, distance="squared"):
    """The reference: every group in one program."""
    points = ddm.make_match_points(ready.task, 10)(
        ready.run.checkpoints,
        ready.data,
        ddm.group_batches(ready.groups, 10),
        jnp.array(INDICES),
    )
    made = distiller(ready, distance)
    state, losses = jax.jit(made.advance, static_argnums=3)(
        jax.random.key(4), made.start(synset), points, steps
    )
    return state.synset, losses, make_matching_error(ready.task)(state.synset, points)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10])
def test_blocks_hold_every_row_once_and_every_group_first_once(ready, count):
    blocks = offline.group_blocks(ready.groups, 10, count, 7)
    each = -(-10 // count)
    assert blocks.members.shape == blocks.first.shape == (count, each)
    np.testing.assert_array_equal(np.sort(blocks.members[blocks.first]), np.arange(10))
    weight = np.zeros(150)
    for members, first, rows, valid, owner in zip(*blocks[:5], strict=True):
        for row, is_valid, who in zip(rows, valid, owner, strict=True):
            assert (ready.groups[row[is_valid > 0]] == members[who]).all()
            np.add.at(weight, row, is_valid * first[who])
    np.testing.assert_array_equal(weight, np.ones(150))
    assert blocks.total == 150


@pytest.mark.parametrize(
    ("count", "distance"),
    [(1, "whitened"), (1, "squared"), (3, "squared"), (4, "squared"), (8, "layer_cosine")],
)
def test_blocks_on_devices_and_in_rounds_equal_all_groups_at_once(ready, synset, count, distance):
    """Four devices: 3 and 4 blocks take one round, 8 take two, the last with repeated groups."""
    want, want_losses, want_error = all_at_once(ready, synset, 60, distance)
    blocks = offline.group_blocks(ready.groups, 10, count)
    made = offline.make_blockwise(ready.task, distiller(ready, distance), blocks)
    host = jax.tree.map(np.asarray, ready.data)
    got, losses = made.distil(jax.random.key(4), synset, ready.run, host, INDICES, 60)
    assert losses.shape == want_losses.shape == (60,)
    np.testing.assert_allclose(losses, want_losses, rtol=2e-3)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-3)
    assert np.abs(np.asarray(got.x) - np.asarray(synset.x)).max() > 0.1  # it moved, by far more
    error = made.errors(got, ready.run, host, INDICES)
    assert error.shape == want_error.shape == (4, 10)
    np.testing.assert_allclose(error, want_error, rtol=2e-2)


def test_a_loop_that_stops_and_goes_on_gives_the_same_bits(ready, synset):
    blocks = offline.group_blocks(ready.groups, 10, 8)
    arguments = (jax.random.key(4), synset, ready.run, ready.data, INDICES, 70)
    want = offline.make_blockwise(ready.task, distiller(ready), blocks).distil(*arguments)
    kept = []

    def stops(carry, total, step):
        assert total == 2 * 70
        position = 0
        while position < 120:  # in the middle of the second round
            carry, position, _ = step(carry, position)
        kept.append((jax.tree.map(np.array, carry), position))
        raise KeyboardInterrupt

    def goes_on(carry, total, step):
        carry, position = kept[0]
        while position < total:
            carry, position, _ = step(carry, position)
        return carry

    with pytest.raises(KeyboardInterrupt):
        offline.make_blockwise(ready.task, distiller(ready), blocks).distil(*arguments, stops)
    got = offline.make_blockwise(ready.task, distiller(ready), blocks).distil(*arguments, goes_on)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def test_as_many_rounds_as_memory_asks_for(ready, monkeypatch):
    made = distiller(ready)
    size = 4 * 4 * sum(leaf.size for leaf in jax.tree.leaves(ready.run.params))

    def needed(limit, num_groups=10, data_bytes=0, distance="squared"):
        monkeypatch.setattr(offline, "device_memory", lambda: limit)
        return offline.blocks_needed(
            distiller(ready, distance), 4, num_groups, ready.run.params, data_bytes
        )

    assert made.distance == "squared"
    assert needed(None) == 4
    assert needed(2**40) == 4
    assert needed(2**40, num_groups=3) == 3
    # A quarter of the memory, shared by four devices, for gradients.
    assert needed(16 * size) == 12  # one group a device: three rounds of four
    assert needed(16 * 2 * size) == 8
    assert needed(2**40, data_bytes=2**40) == 4 * 3  # not more than a group a device
    with pytest.raises(ValueError, match="gradients of one group at 4 checkpoints"):
        needed(15 * size)
    assert needed(2**40, distance="whitened") == 1
    with pytest.raises(ValueError, match=r"distance='whitened' .* use distance='squared'"):
        needed(9 * size, distance="whitened")


def test_less_memory_gives_the_same_synset(ready, synset, monkeypatch):
    """What a user sees: the estimator, with hardly any memory."""
    estimator = ddm.make_ddm(ready.task, items=2, distill_steps=20, steps=2)
    arguments = (jax.random.key(1), ready.run, ready.data, ready.groups)
    want = estimator.fit(*arguments).synset
    size = 4 * 8 * sum(leaf.size for leaf in jax.tree.leaves(ready.run.params))
    monkeypatch.setattr(offline, "device_memory", lambda: 16 * size)
    monkeypatch.setattr(parallel, "device_memory", lambda: 100_000)
    blocks = offline.plan_blocks(distiller(ready), ready.groups, 8, ready.run.params, ready.data)
    assert len(blocks.members) == 12
    got = estimator.fit(*arguments).synset
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)


def test_rounds_after_the_first_compile_nothing(ready, synset):
    """Three rounds of four blocks: points, start and steps have the same shapes in each."""
    blocks = offline.group_blocks(ready.groups, 10, 12)
    made = offline.make_blockwise(ready.task, distiller(ready), blocks)
    counts = []

    def loop(carry, total, step):
        position, kept = 0, [carry]

        def once():
            kept[0], kept[1:] = step(kept[0], position)[0], []

        while position < total:
            counts.append(compilations(once))
            position += 50
        return kept[0]

    made.distil(jax.random.key(4), synset, ready.run, ready.data, INDICES, 50, loop)
    assert len(counts) == 3
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def test_gradients_in_bfloat16_give_nearly_the_same_synset(ready, synset):
    blocks = offline.group_blocks(ready.groups, 10, 4)
    found = {}
    for precision in ("float32", "bfloat16"):
        made = offline.make_blockwise(ready.task, distiller(ready), blocks, 0, precision)
        got, _ = made.distil(jax.random.key(4), synset, ready.run, ready.data, INDICES, 100)
        exact = offline.make_blockwise(ready.task, distiller(ready), blocks)
        found[precision] = exact.errors(got, ready.run, ready.data, INDICES)
    start = exact.errors(synset, ready.run, ready.data, INDICES).mean()
    full, half = found["float32"].mean(), found["bfloat16"].mean()
    assert full != half
    assert abs(full - half) < 0.02 * abs(start - full)


def test_bfloat16_takes_half_the_memory(ready, monkeypatch):
    size = 4 * 4 * sum(leaf.size for leaf in jax.tree.leaves(ready.run.params))
    monkeypatch.setattr(offline, "device_memory", lambda: 16 * size)
    arguments = (distiller(ready), 4, 10, ready.run.params, 0)
    assert offline.blocks_needed(*arguments) == 12
    assert offline.blocks_needed(*arguments, "bfloat16") == 8
    kept = ddm.make_match_points(ready.task, 10, precision="bfloat16")(
        ready.run.checkpoints, ready.data, ddm.group_batches(ready.groups, 10), jnp.array([9])
    ).gradients
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("bfloat16")}
    with pytest.raises(ValueError, match="precision='float16'; choose one of float32, bfloat16"):
        ddm.make_ddm(ready.task, precision="float16")


def test_rows_are_read_from_a_file_a_block_at_a_time(ready, tmp_path, monkeypatch):
    """A `numpy.memmap` serves as data: nothing reads it as a whole."""
    np.save(tmp_path / "x.npy", np.asarray(ready.data.x))
    most = []

    class Reads(np.memmap):
        def __getitem__(self, index):
            most.append(np.size(index))
            return np.asarray(super().__getitem__(index))

        def __array__(self, *args, **kwargs):
            raise AssertionError("read as a whole")

    opened = np.load(tmp_path / "x.npy", mmap_mode="r").view(Reads)
    host = ddm.Batch(opened, np.asarray(ready.data.y))
    estimator = ddm.make_ddm(ready.task, items=2, distill_steps=20, steps=2)
    want = estimator.fit(jax.random.key(1), ready.run, ready.data, ready.groups).synset
    got = estimator.fit(jax.random.key(1), ready.run, host, ready.groups).synset
    assert most
    np.testing.assert_allclose(got.x, want.x, rtol=1e-2, atol=1e-3)


def test_data_are_arguments_and_never_constants_of_a_program(ready, synset):
    """What a program closes over is compiled into it: slow, and twice in memory."""
    points = ddm.make_match_points(ready.task, 10)
    batches = ddm.group_batches(ready.groups, 10)
    made = distiller(ready)
    finetune = ddm.make_finetune(ready.task, steps=3, optimizer=optax.sgd(0.1))
    matched = points(ready.run.checkpoints, ready.data, batches, jnp.array([8, 9]))
    for fn, *arguments in (
        (ready.train, jax.random.key(0), ready.data, jnp.ones(150)),
        (points, ready.run.checkpoints, ready.data, batches, jnp.array([8, 9])),
        (lambda *a: made.advance(*a, 3), jax.random.key(0), made.start(synset), matched),
        (finetune, ready.run.params, synset, jnp.ones(10)),
    ):
        consts = jax.make_jaxpr(fn)(*arguments).consts
        assert sum(np.size(const) for const in consts) < 100, fn
