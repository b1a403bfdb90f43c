import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import compilations

import ddm_jax as ddm
from ddm_jax import blocks as blocks_of
from ddm_jax.compute import memory
from ddm_jax.distill import make_blockwise, make_distiller
from ddm_jax.gradients import group_batches
from ddm_jax.matching import make_match_points, make_matching_error
from ddm_jax.synset import by_group, flat
from ddm_jax.types import take

INDICES = (5, 6, 8, 9)


def settings(steps, **others):
    return ddm.DistillSettings(steps=steps, learning_rate=0.02, points_per_step=2, **others)


def all_at_once(ready, synset, steps, distance="squared"):
    """The reference: every group in one program."""
    points = make_match_points(ready.task)(
        ready.run.checkpoints, ready.data, group_batches(ready.groups), jnp.array(INDICES)
    )
    made = make_distiller(ready.task, settings(steps, distance=distance))
    start = by_group(synset)
    state, losses = jax.jit(made.advance, static_argnums=3)(
        jax.random.key(4), made.start(start), points, steps
    )
    counts = np.bincount(synset.group)
    error = make_matching_error(ready.task)(state.synset, points)
    return flat(state.synset, counts), losses, error


def close(got, want, **tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10])
def test_blocks_hold_every_row_once_and_every_group_first_once(ready, count):
    blocks = blocks_of.group_blocks(ready.groups, count, 7)
    each = -(-10 // count)
    assert blocks.members.shape == blocks.first.shape == (count, each)
    np.testing.assert_array_equal(np.sort(blocks.members[blocks.first]), np.arange(10))
    weight = np.zeros(150)
    for members, first, rows, valid, owner in zip(*blocks[:5], strict=True):
        for row, is_valid, who in zip(rows, valid, owner, strict=True):
            assert (ready.groups.ids[row[is_valid > 0]] == members[who]).all()
            np.add.at(weight, row, is_valid * first[who])
    np.testing.assert_array_equal(weight, np.ones(150))
    assert blocks.total == 150
    assert blocks.num_groups == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "distance"),
    [(1, "whitened"), (1, "squared"), (3, "squared"), (4, "squared"), (8, "squared")],
)
def test_blocks_on_devices_and_in_rounds_equal_all_groups_at_once(ready, synset, count, distance):
    """Four devices: 3 and 4 blocks take one round, 8 take two, the last with repeated groups."""
    want, want_losses, want_error = all_at_once(ready, synset, 60, distance)
    blocks = blocks_of.group_blocks(ready.groups, count)
    made = make_blockwise(ready.task, settings(60, distance=distance), blocks)
    host = jax.tree.map(np.asarray, ready.data)
    got, losses = made.distil(jax.random.key(4), synset, ready.run, host, INDICES)
    assert losses.shape == want_losses.shape == (60,)
    np.testing.assert_allclose(losses, want_losses, rtol=2e-3)
    close(got, want, rtol=1e-2, atol=2e-3)
    moved = np.abs(np.asarray(got.items.x) - np.asarray(synset.items.x))
    assert moved.max() > 0.1  # by far more
    error = made.errors(got, ready.run, host, INDICES)
    assert error.shape == want_error.shape == (4, 10)
    np.testing.assert_allclose(error, want_error, rtol=2e-2)


@pytest.mark.slow
def test_a_loop_that_stops_and_goes_on_gives_the_same_bits(ready, synset):
    blocks = blocks_of.group_blocks(ready.groups, 8)
    arguments = (jax.random.key(4), synset, ready.run, ready.data, INDICES)
    want = make_blockwise(ready.task, settings(70), blocks).distil(*arguments)
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
        make_blockwise(ready.task, settings(70), blocks).distil(*arguments, stops)
    got = make_blockwise(ready.task, settings(70), blocks).distil(*arguments, goes_on)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def give(monkeypatch, limit):
    """Let every device have so many bytes."""
    for module in (memory, blocks_of):
        monkeypatch.setattr(module, "device_memory", lambda: limit)


def test_as_many_rounds_as_memory_asks_for(ready, monkeypatch):
    size = 4 * 4 * sum(leaf.size for leaf in jax.tree.leaves(ready.run.params))

    def needed(limit, num_groups=10, data_bytes=0, distance="squared"):
        give(monkeypatch, limit)
        return blocks_of.blocks_needed(
            num_groups, 4, ready.run.params, data_bytes, distance, "float32"
        )

    assert needed(2**40) == 4
    assert needed(2**40, num_groups=3) == 3
    # A quarter of the memory, shared by four devices, for gradients.
    assert needed(4 * size) == 12  # one group a device: three rounds of four
    assert needed(4 * 2 * size) == 8
    assert needed(2**40, data_bytes=2**42) == 4 * 3  # not more than a group a device
    with pytest.raises(ValueError, match="gradient of one group at 4 checkpoints"):
        needed(4 * size - 4)
    assert needed(2**40, distance="whitened") == 1
    with pytest.raises(ValueError, match=r"distance='whitened' .* use distance='squared'"):
        needed(9 * size, distance="whitened")


@pytest.mark.slow
def test_less_memory_gives_the_same_synset(ready, monkeypatch):
    """What a user sees: the estimator, with hardly any memory."""
    estimator = ddm.make_ddm(
        ready.task, ddm.DistillSettings(items=2, steps=20), ddm.UpdateSettings(steps=2)
    )
    arguments = (jax.random.key(1), ready.run, ready.data, ready.groups)
    want = estimator.fit(*arguments).synset
    size = 4 * 8 * sum(leaf.size for leaf in jax.tree.leaves(ready.run.params))
    give(monkeypatch, 4 * size)
    blocks = blocks_of.plan_blocks(
        ready.groups, 8, ready.run.params, ready.data, "squared", "float32"
    )
    assert len(blocks.members) == 12
    got = estimator.fit(*arguments).synset
    close(got, want, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_rounds_after_the_first_compile_nothing(ready, synset):
    """Three rounds of four blocks: points, start and steps have the same shapes in each."""
    blocks = blocks_of.group_blocks(ready.groups, 12)
    made = make_blockwise(ready.task, settings(50), blocks)
    counts = []

    def loop(carry, total, step):
        position, kept = 0, [carry]

        def once():
            kept[0], kept[1:] = step(kept[0], position)[0], []

        while position < total:
            counts.append(compilations(once))
            position += 50
        return kept[0]

    made.distil(jax.random.key(4), synset, ready.run, ready.data, INDICES, loop)
    assert len(counts) == 3
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


@pytest.mark.slow
def test_gradients_in_bfloat16_give_nearly_the_same_synset(ready, synset):
    blocks = blocks_of.group_blocks(ready.groups, 4)
    found = {}
    for precision in ("float32", "bfloat16"):
        made = make_blockwise(ready.task, settings(100, precision=precision), blocks)
        got, _ = made.distil(jax.random.key(4), synset, ready.run, ready.data, INDICES)
        exact = make_blockwise(ready.task, settings(100), blocks)
        found[precision] = exact.errors(got, ready.run, ready.data, INDICES)
    start = exact.errors(synset, ready.run, ready.data, INDICES).mean()
    full, half = found["float32"].mean(), found["bfloat16"].mean()
    assert full != half
    assert abs(full - half) < 0.02 * abs(start - full)


@pytest.mark.slow
def test_bfloat16_takes_half_the_memory(ready, monkeypatch):
    size = 4 * 4 * sum(leaf.size for leaf in jax.tree.leaves(ready.run.params))
    give(monkeypatch, 4 * size)
    arguments = (10, 4, ready.run.params, 0, "squared")
    assert blocks_of.blocks_needed(*arguments, "float32") == 12
    assert blocks_of.blocks_needed(*arguments, "bfloat16") == 8
    kept = make_match_points(ready.task, precision="bfloat16")(
        ready.run.checkpoints, ready.data, group_batches(ready.groups), jnp.array([9])
    ).gradients
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("bfloat16")}
    with pytest.raises(ValueError, match="precision='float16'; choose one of float32, bfloat16"):
        make_match_points(ready.task, precision="float16")


@pytest.mark.slow
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
    estimator = ddm.make_ddm(
        ready.task, ddm.DistillSettings(items=2, steps=20), ddm.UpdateSettings(steps=2)
    )
    want = estimator.fit(jax.random.key(1), ready.run, ready.data, ready.groups).synset
    got = estimator.fit(jax.random.key(1), ready.run, host, ready.groups).synset
    assert most
    np.testing.assert_allclose(got.items.x, want.items.x, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_data_are_arguments_and_never_constants_of_a_program(ready, synset):
    """What a program closes over is compiled into it: slow, and twice in memory."""
    points = make_match_points(ready.task)
    batches = group_batches(ready.groups)
    made = make_distiller(ready.task, settings(3))
    finetune = ddm.make_finetune(ready.task, steps=3, optimizer=optax.sgd(0.1))
    matched = points(ready.run.checkpoints, ready.data, batches, jnp.array([8, 9]))
    for fn, *arguments in (
        (ready.train, jax.random.key(0), ready.data, jnp.ones(150)),
        (points, ready.run.checkpoints, ready.data, batches, jnp.array([8, 9])),
        (lambda *a: made.advance(*a, 3), jax.random.key(0), made.start(by_group(synset)), matched),
        (finetune, ready.run.params, synset, jnp.ones(10)),
    ):
        consts = jax.make_jaxpr(fn)(*arguments).consts
        assert sum(np.size(const) for const in consts) < 100, fn


@pytest.mark.slow
def test_blocks_of_uneven_groups_equal_all_groups_at_once(ready, synset):
    """Groups of two items and of one; three blocks, and the flat synset comes back as it was."""
    kept = np.flatnonzero((np.arange(20) % 2 == 0) | (np.asarray(synset.group) % 3 == 0))
    items, group, mass = take((synset.items, synset.group, synset.mass), kept)
    few = ddm.Synset(items, group, mass, synset.share)
    want, want_losses, want_error = all_at_once(ready, few, 30)
    made = make_blockwise(ready.task, settings(30), blocks_of.group_blocks(ready.groups, 3))
    got, losses = made.distil(jax.random.key(4), few, ready.run, ready.data, INDICES)
    np.testing.assert_array_equal(got.group, few.group)
    np.testing.assert_array_equal(got.share, few.share)
    close(got, want, rtol=1e-2, atol=2e-3)
    np.testing.assert_allclose(losses, want_losses, rtol=2e-3)
    error = made.errors(got, ready.run, ready.data, INDICES)
    np.testing.assert_allclose(error, want_error, rtol=2e-2)
    moved = np.abs(np.asarray(got.items.x - few.items.x)).max((1, 2, 3))
    assert moved.shape == (14,)
    assert (moved > 0.01).all()
