"""The truth store: rows that are done stay done, whoever fills them and whatever kills the filler.

`_outputs` stands for retraining: what a row holds says which row it is. The tests that need several
processes run `WRITER`, a process that fills a store of 5 * `MANY` rows slowly.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ddm_jax.files import digest
from ddm_jax.judge import filling, store
from ddm_jax.judge.store import Row

IDENTITY = {"seed": 0, "model.hidden": [8, 4], "data": "12ab", "program on cpu": "34cd"}
MASKS = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1]], np.float32)
SEEDS = (3, 3, 3, 2, 1)
# Seed by seed, the order in which rows are taken.
ROWS = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 2)]
ROWS = [Row(*row) for row in [*ROWS, (2, 2)]]
MANY = 16  # seeds of every mask, for several processes


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No test here cuts the power, and waiting for the disk takes most of their seconds."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def _open(folder: Path, seeds=SEEDS, outputs=5, masks=MASKS, **changes) -> store.Store:
    seeds = np.broadcast_to(seeds, len(masks))
    return store.open_store(folder, IDENTITY | changes, masks, seeds, outputs)


def _outputs(masks, seeds) -> np.ndarray:
    """Exact in float32, so that no order of the work can change a bit."""
    return 100.0 * masks[:, None] + 10.0 * seeds[:, None] + np.arange(5) / 8


def _recorder(fail_at: Row | None = None, error: BaseException | float = np.nan):
    """A compute that may fail at a row, and the calls that it gets: the rows of each."""
    calls: list[list[Row]] = []

    def compute(masks, seeds):
        assert masks.shape == seeds.shape
        asked = [Row(*row) for row in zip(masks.tolist(), seeds.tolist(), strict=True)]
        calls.append(asked)
        outputs = _outputs(masks, seeds)
        for index, row in enumerate(asked):
            if row in asked[:index]:
                outputs[index] = np.nan  # a repeat that fills up the batch; nobody may keep it
            if row == fail_at:
                if isinstance(error, BaseException):
                    raise error
                outputs[index, 2] = error
        return outputs

    return compute, calls


def _rows(calls) -> list[Row]:
    """What was asked, without the repeats that fill up a batch."""
    return [row for call in calls for row in dict.fromkeys(call)]


def _full(folder: Path) -> store.Store:
    opened = _open(folder)
    assert filling.fill(opened, _outputs) == 12
    return opened


def _done(opened: store.Store) -> list[Row]:
    return [row for row in store.declared(opened) if store.is_done(opened, row)]


def _files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder, and when it was written."""
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _row_files(opened: store.Store) -> dict[Row, list[tuple[bytes, int]]]:
    """The files of every row that is done, and when they were written."""
    return {
        row: [(file.read_bytes(), file.stat().st_mtime_ns) for file in store.paths(opened, row)]
        for row in _done(opened)
    }


def test_what_is_filled_is_read(tmp_path):
    opened = _open(tmp_path / "truth")
    assert filling.fill(opened, _outputs) == 12
    outputs = store.read(opened)
    assert outputs.shape == (3, 5, 5)
    assert outputs.dtype == np.float32
    np.testing.assert_array_equal(outputs[1, 3], [310, 310.125, 310.25, 310.375, 310.5])
    undeclared = [(1, 4), (2, 3), (2, 4)]
    for seed in range(3):
        for mask in range(5):
            if (seed, mask) in undeclared:
                assert np.isnan(outputs[seed, mask]).all()
            else:
                np.testing.assert_array_equal(outputs[seed, mask, 0], 100 * mask + 10 * seed)
    assert opened.masks.shape == (5, 3)
    np.testing.assert_array_equal(opened.masks, MASKS)


def test_a_store_has_two_files_a_row_and_nothing_half_written(tmp_path):
    opened = _full(tmp_path / "truth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["truth"]
    names = {path.name for path in opened.folder.iterdir()}
    assert names == {"truth.json", "masks.npy", "rows", "lock"}
    files = sorted(path.name for path in (opened.folder / "rows").iterdir())
    assert files == sorted(
        f"{mask:05d}-{seed:04d}.{kind}" for mask, seed in ROWS for kind in ("npy", "json")
    )
    assert store.paths(opened, Row(3, 1)).values.name == "00003-0001.npy"


def test_rows_are_taken_seed_by_seed(tmp_path):
    opened, (compute, calls) = _open(tmp_path / "truth"), _recorder()
    filling.fill(opened, compute, chunk=1)
    assert _rows(calls) == ROWS
    assert store.declared(opened) == ROWS


def test_status_counts_rows(tmp_path):
    opened = _open(tmp_path / "truth")
    empty = filling.status(opened)
    assert empty[:3] == (0, 12, 0)
    assert np.isnan(empty.seconds_per_row)
    for row, seconds in zip(ROWS[:3], (1.0, 30.0, 2.0), strict=True):
        store.write_row(opened, row, np.ones(5), seconds)
    assert filling.status(opened) == (3, 12, 0, 2.0)
    with pytest.raises(ValueError, match="lacks 9 of 12 rows"):
        store.read(opened)


def test_a_full_store_computes_nothing(tmp_path):
    opened, (compute, calls) = _full(tmp_path / "truth"), _recorder()
    before = _files(opened.folder)
    assert filling.fill(_open(tmp_path / "truth"), compute) == 0
    assert calls == []
    assert _files(opened.folder) == before


def test_a_relative_path_serves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = _full(Path("runs/truth"))
    monkeypatch.chdir("/")
    assert len(_done(opened)) == 12


def test_chunks_of_any_size_leave_the_same_files(tmp_path):
    values = {}
    for chunk in (1, 3, 7, None):
        opened, (compute, calls) = _open(tmp_path / str(chunk)), _recorder()
        assert filling.fill(opened, compute, chunk=chunk) == 12
        assert _rows(calls) == ROWS
        values[chunk] = [store.paths(opened, row).values.read_bytes() for row in ROWS]
        assert len(_done(opened)) == 12
    assert values[1] == values[3] == values[7] == values[None]


@pytest.mark.parametrize(
    ("chunk", "sizes"), [(1, [1] * 12), (3, [3] * 4), (5, [5] * 3), (7, [7] * 2), (20, [20])]
)
def test_compute_sees_one_batch_size(tmp_path, chunk, sizes):
    opened, (compute, calls) = _open(tmp_path / "truth"), _recorder()
    filling.fill(opened, compute, chunk=chunk)
    assert list(map(len, calls)) == sizes


# The second call is timed, since the first one compiles; from the third on batches are larger.
@pytest.mark.parametrize(
    ("enough", "least", "sizes"),
    [(0.0, 1, [1] * 12), (1e6, 1, [1, 1, 64]), (0.0, 4, [4] * 3), (1e6, 5, [5, 5, 60])],
)
def test_without_a_chunk_short_rows_are_batched(tmp_path, monkeypatch, enough, least, sizes):
    monkeypatch.setattr(filling, "ENOUGH_SECONDS", enough)
    opened, (compute, calls) = _open(tmp_path / "truth"), _recorder()
    assert filling.fill(opened, compute, least=least) == 12
    assert list(map(len, calls)) == sizes
    assert _rows(calls) == ROWS


def test_progress_is_told_as_the_rows_that_are_done(tmp_path):
    opened, told = _open(tmp_path / "truth"), []
    store.write_row(opened, Row(0, 0), np.ones(5), 1.0)
    filling.fill(opened, _outputs, chunk=5, tell=lambda done, note: told.append((done, note)))
    assert told == [(6, "5 here"), (11, "10 here"), (12, "11 here")]


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), SystemExit(1)])
def test_a_compute_that_raises_keeps_what_was_done(tmp_path, error):
    opened = _open(tmp_path / "truth")
    with pytest.raises(type(error)):
        filling.fill(opened, _recorder(Row(2, 1), error)[0], chunk=2)
    assert _done(opened) == ROWS[:6]
    before, (compute, calls) = _row_files(opened), _recorder()
    assert filling.status(opened).claimed == 0
    # Another chunk: only what is missing is computed.
    assert filling.fill(_open(tmp_path / "truth"), compute, chunk=4) == 6
    assert _rows(calls) == ROWS[6:]
    assert list(map(len, calls)) == [4, 4]
    assert before.items() <= _row_files(opened).items()
    assert store.read(opened)[1, 2, 0] == 210


@pytest.mark.parametrize(
    ("crash_at", "done"), [(12, 2), (13, 2), (14, 2), (15, 2), (16, 2), (18, 3)]
)
def test_a_crash_at_any_step_of_writing_a_row_leaves_it_missing(
    tmp_path, monkeypatch, crash_at, done
):
    """A row is six steps: of its outputs and then of its done mark, sync, name, sync the folder."""
    opened, steps = _open(tmp_path / "truth"), []
    sync, replace = os.fsync, Path.replace

    def crashing(step):
        def run(*args):
            if len(steps) == crash_at:
                raise KeyboardInterrupt
            steps.append(step)
            return step(*args)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crashing(sync))
        patch.setattr(Path, "replace", crashing(replace))
        with pytest.raises(KeyboardInterrupt):
            filling.fill(opened, _outputs, chunk=6)
    assert steps[:6] == [sync, replace, sync] * 2
    assert _done(opened) == ROWS[:done]
    compute, calls = _recorder()
    filling.fill(opened, compute, chunk=1)
    assert _rows(calls) == ROWS[done:]
    assert store.read(opened).shape == (3, 5, 5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "seed 0 -> 1"),
        ({"model.hidden": [8]}, r"model.hidden \[8, 4\] -> \[8\]"),
        ({"data": "ffff"}, 'data "12ab" -> "ffff"'),
        ({"program on cpu": "ffff"}, 'program on cpu "34cd" -> "ffff"'),
        ({"truth.paired": True}, "truth.paired null -> true"),
        ({"masks": 1 - MASKS}, "masks "),
        ({"masks": MASKS[:4]}, "masks "),
        ({"outputs": 6}, "outputs 5 -> 6"),
    ],
)
def test_a_store_made_with_something_else_is_refused_by_name(tmp_path, changes, told):
    opened = _full(tmp_path / "truth")
    before = _files(opened.folder)
    seeds = 9  # more, which must not be declared either
    with pytest.raises(ValueError, match=f"was made with something else .{told}") as caught:
        _open(tmp_path / "truth", seeds, **changes)
    assert ";" not in str(caught.value).split(")")[0]  # nothing else is named
    assert _files(opened.folder) == before
    assert len(_done(_open(tmp_path / "truth"))) == 12


def test_everything_that_differs_is_named(tmp_path):
    _full(tmp_path / "truth")
    with pytest.raises(ValueError, match=r'\(data "12ab" -> "x"; outputs 5 -> 6; seed 0 -> 2\)'):
        _open(tmp_path / "truth", outputs=6, data="x", seed=2)


def test_more_seeds_extend_a_store_and_keep_its_rows(tmp_path):
    opened = _full(tmp_path / "truth")
    before, (compute, calls) = _row_files(opened), _recorder()
    more = _open(tmp_path / "truth", (4, 3, 3, 3, 1))
    assert filling.fill(more, compute) == 2
    assert _rows(calls) == [(3, 2), (0, 3)]
    assert before.items() <= _row_files(more).items()
    outputs = store.read(more)
    assert outputs.shape == (4, 5, 5)
    assert outputs[3, 0, 0] == 30
    np.testing.assert_array_equal(store.inspect_store(tmp_path / "truth").seeds, [4, 3, 3, 3, 1])


def test_more_seeds_of_one_mask_and_fewer_of_another_forget_none(tmp_path):
    _full(tmp_path / "truth")
    mixed = _open(tmp_path / "truth", (1, 5, 3, 2, 1))
    assert filling.status(mixed)[:3] == (10, 12, 0)
    np.testing.assert_array_equal(mixed.seeds, [1, 5, 3, 2, 1])
    np.testing.assert_array_equal(store.inspect_store(mixed.folder).seeds, [3, 5, 3, 2, 1])


def test_fewer_seeds_read_a_part(tmp_path):
    opened = _full(tmp_path / "truth")
    before = _files(opened.folder)
    fewer = _open(tmp_path / "truth", 1)
    assert filling.status(fewer)[:3] == (5, 5, 0)
    assert filling.fill(fewer, _recorder()[0]) == 0
    part = store.read(fewer)
    assert part.shape == (1, 5, 5)
    np.testing.assert_array_equal(part, store.read(opened)[:1])
    assert _files(opened.folder) == before
    np.testing.assert_array_equal(store.inspect_store(opened.folder).seeds, SEEDS)


def _flip(content: bytes, index: int) -> bytes:
    changed = bytearray(content)
    changed[index] ^= 1
    return bytes(changed)


DAMAGES = {
    "a flipped byte of the outputs": ("values", lambda content: _flip(content, -3)),
    "a flipped byte of their header": ("values", lambda content: _flip(content, 20)),
    "truncated outputs": ("values", lambda content: content[:-1]),
    "empty outputs": ("values", lambda content: b""),
    "missing outputs": ("values", None),
    "a flipped byte of the mark": ("mark", lambda content: _flip(content, 30)),
    "a truncated mark": ("mark", lambda content: content[:-1]),
    "an empty mark": ("mark", lambda content: b""),
    "a mark of something else": ("mark", lambda content: b'{"seconds": 1.0}'),
    "a mark that is no text": ("mark", lambda content: b"\xff\xfe" + content),
    "a missing mark": ("mark", None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_row_is_not_done_and_computed_again(tmp_path, damage):
    opened, row = _full(tmp_path / "truth"), Row(1, 1)
    before, (which, change) = _row_files(opened), DAMAGES[damage]
    file = getattr(store.paths(opened, row), which)
    file.unlink() if change is None else file.write_bytes(change(file.read_bytes()))
    assert not store.is_done(opened, row)
    assert filling.status(opened)[:3] == (11, 12, 0)
    with pytest.raises(ValueError, match="lacks 1 of 12 rows"):
        store.read(opened)
    compute, calls = _recorder()
    assert filling.fill(opened, compute, chunk=3) == 1
    assert _rows(calls) == [row]
    after = _row_files(opened)
    assert after[row][0][0] == before.pop(row)[0][0]
    assert before.items() <= after.items()
    np.testing.assert_array_equal(store.read(opened)[1, 1], [110, 110.125, 110.25, 110.375, 110.5])


def test_the_done_mark_of_another_row_does_not_serve(tmp_path):
    opened = _full(tmp_path / "truth")
    mine, other = (store.paths(opened, row) for row in ROWS[:2])
    mine.mark.write_bytes(other.mark.read_bytes())
    assert _done(opened) == ROWS[1:]


def test_half_written_files_never_count_and_old_ones_go(tmp_path):
    opened = _open(tmp_path / "truth")
    filling.fill(opened, _recorder()[0], chunk=12)
    rows = opened.folder / "rows"
    fresh = [rows / "00000-0000.npy.new-7", rows / "00000-0000.json.new-7"]
    old = [rows / "00001-0000.npy.new-8", rows / "00001-0000.json.new-8"]
    for left_over in fresh + old:
        left_over.write_bytes(store.paths(opened, Row(2, 0)).values.read_bytes())
    for left_over in old:
        os.utime(left_over, (time.time() - 90, time.time() - 90))
    for row in ROWS[:2]:
        store.paths(opened, row).mark.rename(f"{store.paths(opened, row).mark}.new-9")
    compute, calls = _recorder()
    assert _done(opened) == ROWS[2:]
    assert filling.fill(opened, compute, chunk=2) == 2
    assert _rows(calls) == ROWS[:2]
    assert all(path.exists() for path in fresh)  # their writer may still be at it
    assert not any(path.exists() for path in old)
    assert store.read(opened)[0, 0, 0] == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"identity": {}}', "\\", "{}"])
def test_a_damaged_manifest_is_told(tmp_path, text):
    opened = _full(tmp_path / "truth")
    (opened.folder / "truth.json").write_text(text)
    for read in (store.inspect_store, _open):
        with pytest.raises(ValueError, match=r"is damaged .*; delete the folder and fill it again"):
            read(opened.folder)
    assert len(_row_files(opened)) == 12


@pytest.mark.parametrize(
    "change",
    [
        None,
        lambda content: _flip(content, -1),
        lambda content: _flip(content, 0),
        lambda content: content[:-4],
        lambda content: content[:20],
    ],
)
def test_damaged_masks_are_told(tmp_path, change):
    opened = _full(tmp_path / "truth")
    masks = opened.folder / "masks.npy"
    masks.unlink() if change is None else masks.write_bytes(change(masks.read_bytes()))
    for read in (store.inspect_store, _open):
        with pytest.raises(ValueError, match=r"is damaged .*; delete the folder and fill it again"):
            read(opened.folder)


def test_an_edited_manifest_is_told(tmp_path):
    """A store of version 0.8, whose manifest has no checksum, is read all the same."""
    opened = _full(tmp_path / "truth")
    manifest = opened.folder / "truth.json"
    edited = manifest.read_text().replace('"seed": 0', '"seed": 1')
    manifest.write_text(edited)
    with pytest.raises(ValueError, match=r"is damaged .*its checksum is wrong"):
        store.inspect_store(opened.folder)
    told = json.loads(edited)
    del told["checksum"]
    manifest.write_text(json.dumps(told))
    assert store.inspect_store(opened.folder).identity["seed"] == 1


@pytest.mark.parametrize("name", ["", "truth.json", "masks.npy", "rows", "rows/00001-0001.npy"])
def test_a_link_is_refused(tmp_path, name):
    """Nothing is read from or written to where it points."""
    opened = _full(tmp_path / "truth")
    path = opened.folder / name if name else opened.folder
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    before = _files(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"is a link; a truth store has none"):
        filling.fill(_open(tmp_path / "truth"), _outputs)
    assert path.is_symlink()
    assert _files(tmp_path / "elsewhere") == before


def test_a_folder_that_is_no_store_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no truth store"):
        _open(folder)
    with pytest.raises(ValueError, match="holds no truth store; `ddm truth` makes one"):
        store.inspect_store(folder)
    assert [path.name for path in folder.iterdir()] == ["chapter.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_an_empty_folder_serves(tmp_path):
    (tmp_path / "truth").mkdir()
    assert len(_done(_full(tmp_path / "truth"))) == 12
    with pytest.raises(ValueError, match="holds no truth store"):
        store.inspect_store(tmp_path / "other")


@pytest.mark.parametrize("chunk", [1, 3, 12])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused_by_mask_and_seed(tmp_path, chunk, value):
    opened = _open(tmp_path / "truth")
    with pytest.raises(ValueError, match=r"mask 3 with seed 1 diverged.*not finite"):
        filling.fill(opened, _recorder(Row(3, 1), value)[0], chunk=chunk)
    assert _done(opened) == ROWS[:8]
    assert filling.status(opened).claimed == 0


def test_outputs_of_a_wrong_shape_are_refused(tmp_path):
    opened = _open(tmp_path / "truth")
    with pytest.raises(ValueError, match=r"outputs have shape \(4,\); a row is \(5,\)"):
        filling.fill(opened, lambda masks, seeds: _outputs(masks, seeds)[:, 1:])
    with pytest.raises(ValueError, match=r"outputs have shape \(5, 1\); a row is \(5,\)"):
        filling.fill(opened, lambda masks, seeds: _outputs(masks, seeds)[..., None])
    assert _done(opened) == []


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_below_one_is_refused(tmp_path, chunk):
    with pytest.raises(ValueError, match=f"chunk={chunk}; it must be a whole number, at least 1"):
        filling.fill(_open(tmp_path / "truth"), _outputs, chunk=chunk)


@pytest.mark.parametrize(
    ("masks", "seeds", "told"),
    [
        (MASKS, [3, 3, 3, 2, 0], "must be in 1..10000"),
        (MASKS, [3, 3, 3, 2, 10001], "must be in 1..10000"),
        (MASKS[:0], [], "must be in 1..10000"),
        (MASKS, [3, 3, 3, 2], r"masks \(5, 3\) need one number of seeds each, not \(4,\)"),
        (MASKS[0], [3, 3, 3], r"masks \(3,\) need"),
    ],
)
def test_bad_masks_and_seeds_are_refused_and_make_nothing(tmp_path, masks, seeds, told):
    with pytest.raises(ValueError, match=told):
        store.open_store(tmp_path / "truth", IDENTITY, masks, np.array(seeds), 5)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_may_have_ten_thousand_seeds(tmp_path):
    opened = _open(tmp_path / "truth", (10_000, 1), masks=MASKS[:2])
    assert len(store.declared(opened)) == 10_001
    store.write_row(opened, Row(0, 9999), np.ones(5), 1.0)
    assert store.paths(opened, Row(0, 9999)).values.name == "00000-9999.npy"
    assert store.is_done(opened, Row(0, 9999))
    assert not store.is_done(opened, Row(1, 0))


def test_a_digest_tells_values_shapes_and_types_apart():
    numbers = np.arange(6, dtype=np.float32)
    found = {
        digest(numbers),
        digest(numbers.reshape(2, 3)),
        digest(numbers.astype(np.int32)),
        digest(numbers, numbers),
        digest(numbers[::-1]),
    }
    assert len(found) == 5
    assert digest(numbers.reshape(2, 3).T) == digest(numbers.reshape(2, 3).T.copy())


def test_a_checksum_rounds():
    assert store.checksum(np.array([1.0, -2.0])) == store.checksum(np.array([1.0001, -1.9999]))
    assert store.checksum(np.array([1.0, -2.0])) != store.checksum(np.array([1.001, -2.0]))
    assert store.checksum(np.array([0.0])) == store.checksum(np.array([-0.0001]))
    assert store.checksum(np.array([1.234]), 1) == store.checksum(np.array([1.2]), 1)


def test_another_process_that_makes_the_store_first_wins(tmp_path, monkeypatch):
    write_manifest = store._write_manifest

    def slowly(*args):
        write_manifest(*args)
        monkeypatch.undo()
        # Every process writes under its own number first.
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 999_999)
            _full(tmp_path / "truth")

    monkeypatch.setattr(store, "_write_manifest", slowly)
    opened = _open(tmp_path / "truth")
    assert len(_done(opened)) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["truth"]


def test_without_byte_locks_a_row_has_a_file(tmp_path, monkeypatch):
    """As on Windows. A row that another one holds is left to it, and taken when it is given up."""
    monkeypatch.setattr(filling, "fcntl", None)
    opened = _open(tmp_path / "truth")
    with filling._Locks(opened) as ours, filling._Locks(opened) as other:
        assert ours.take(Row(1, 0))
        assert ours.take(Row(0, 0))
        assert not other.take(Row(1, 0))
        assert other.take(Row(2, 0))
        assert filling.status(opened)[:3] == (0, 12, 3)
        ours.give(Row(1, 0))
        ours.give(Row(2, 0))  # which is not ours
        assert other.take(Row(1, 0))
        assert not ours.take(Row(2, 0))
    assert filling.status(opened)[:3] == (0, 12, 0)
    assert filling.fill(opened, _outputs, chunk=5) == 12
    assert store.read(opened)[1, 2, 0] == 210


# What follows needs other processes.

WRITER = """
import os, sys, time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import test_store
from ddm_jax.judge import filling, store

folder, name, chunk, pause = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
log = os.open(folder.with_name("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def compute(masks, seeds):
    for mask, seed in dict.fromkeys(zip(masks.tolist(), seeds.tolist())):
        os.write(log, f"{name} {mask} {seed}\\n".encode())
        time.sleep(pause)
    return test_store._outputs(masks, seeds)

folder.with_name(f"ready-{name}").touch()
while not folder.with_name(f"go-{name}").exists():
    time.sleep(0.001)
opened = test_store._open(folder, test_store.MANY)
if chunk:
    filling.fill(opened, compute, chunk=chunk)
"""


def _wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited a minute in vain"
        time.sleep(0.005)


@pytest.fixture
def start(tmp_path):
    """Start `WRITER` on tmp_path/truth; it imports, and waits for `_go` before it begins."""
    started = []
    script = tmp_path / "writer.py"
    script.write_text(WRITER)

    def process(name: str, chunk: int, pause: float) -> subprocess.Popen:
        tests, folder = Path(__file__).parent, tmp_path / "truth"
        command = [sys.executable, script, tests, folder, name, chunk, pause]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        started.append(subprocess.Popen([str(part) for part in command], env=environment))
        return started[-1]

    yield process
    for left_over in started:
        left_over.kill()
        left_over.wait()


def _go(tmp_path: Path, *names: str) -> None:
    for name in names:
        _wait_for((tmp_path / f"ready-{name}").exists)
    for name in names:
        (tmp_path / f"go-{name}").touch()


def _log(tmp_path: Path) -> list[tuple[str, Row]]:
    """Who began which row, in order."""
    path = tmp_path / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(name, Row(int(mask), int(seed))) for name, mask, seed in map(str.split, lines)]


def _assert_whole(opened: store.Store) -> None:
    outputs = store.read(opened)
    assert outputs.shape == (16, 5, 5)
    expected = [_outputs(np.arange(5), np.full(5, seed)) for seed in range(16)]
    np.testing.assert_array_equal(outputs, expected)


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_loses_nothing_that_was_done(tmp_path, start):
    opened, rng = _open(tmp_path / "truth", MANY), np.random.default_rng(0)
    before, begun, lost = {}, 0, 0
    for name, chunk in zip("abcd", (1, 5, 3, 8), strict=True):
        writer = start(name, chunk, 0.02)
        _go(tmp_path, name)
        enough = begun + int(rng.integers(2, 10))
        _wait_for(lambda enough=enough: len(_log(tmp_path)) >= enough)
        time.sleep(rng.uniform(0, 0.04))
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
        here = [row for _, row in _log(tmp_path)[begun:]]
        assert not set(here) & set(before)  # what was done is never computed again
        done = _row_files(opened)
        assert before.items() <= done.items()
        assert set(done) <= set(before) | set(here)
        unfinished = len(here) - (len(done) - len(before))
        assert 0 <= unfinished <= chunk
        assert filling.status(opened)[:3] == (len(done), 80, 0)
        before, begun, lost = done, begun + len(here), lost + unfinished
    assert 0 < len(before) < 80
    assert lost > 0
    last = start("last", 7, 0.0)
    _go(tmp_path, "last")
    assert last.wait(60) == 0
    here = [row for _, row in _log(tmp_path)[begun:]]
    assert len(here) == len(set(here)) == 80 - len(before)
    assert not set(here) & set(before)
    assert before.items() <= _row_files(opened).items()
    _assert_whole(opened)


@pytest.mark.slow
def test_two_writers_share_the_rows_and_compute_each_once(tmp_path, start):
    one, other = start("one", 3, 0.02), start("other", 2, 0.02)
    _go(tmp_path, "one", "other")  # which make the store too
    assert (one.wait(60), other.wait(60)) == (0, 0)
    rows = [row for _, row in _log(tmp_path)]
    assert len(rows) == len(set(rows)) == 80
    assert {name for name, _ in _log(tmp_path)} == {"one", "other"}
    opened = store.inspect_store(tmp_path / "truth")
    _assert_whole(opened)
    assert filling.status(opened)[:3] == (80, 80, 0)


@pytest.mark.slow
def test_the_rows_of_a_killed_writer_are_finished_by_the_other(tmp_path, start):
    opened = _open(tmp_path / "truth", MANY)
    stuck, other = start("stuck", 5, 60.0), start("other", 7, 0.0)
    _go(tmp_path, "stuck")
    _wait_for(lambda: "stuck" in {name for name, _ in _log(tmp_path)})
    _go(tmp_path, "other")
    _wait_for(lambda: len(_done(opened)) == 75)
    assert filling.status(opened)[:3] == (75, 80, 5)
    time.sleep(0.6)  # longer than a look for what others left
    assert other.poll() is None
    assert len(_done(opened)) == 75
    stuck.kill()
    assert other.wait(60) == 0
    _assert_whole(opened)
    assert filling.status(opened)[:3] == (80, 80, 0)
    assert [name for name, _ in _log(tmp_path)].count("other") == 80


def test_status_counts_the_rows_that_another_process_holds(tmp_path, start):
    opened = _open(tmp_path / "truth", MANY)
    holder = start("holder", 6, 60.0)
    _go(tmp_path, "holder")
    _wait_for(lambda: _log(tmp_path))
    for _ in range(2):  # looking does not take them away
        assert filling.status(opened)[:3] == (0, 80, 6)
    assert filling.status(_open(tmp_path / "truth", 1))[:3] == (0, 5, 5)
    holder.kill()
    holder.wait()
    assert filling.status(opened)[:3] == (0, 80, 0)


def test_two_processes_that_make_one_store_both_get_it(tmp_path, start):
    one, other = start("one", 0, 0.0), start("other", 0, 0.0)
    _go(tmp_path, "one", "other")
    assert (one.wait(60), other.wait(60)) == (0, 0)
    assert not list(tmp_path.glob("truth.new-*"))
    opened = store.inspect_store(tmp_path / "truth")
    assert opened.seeds.shape == (5,)
    np.testing.assert_array_equal(opened.seeds, 16)
    assert filling.status(opened)[:3] == (0, 80, 0)
