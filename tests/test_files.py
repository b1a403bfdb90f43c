"""Files: what is read is what was written, whole, or one line that says why not."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddm_jax import checkpoints, files


class State(NamedTuple):
    key: Any
    params: dict
    step: Any
    losses: np.ndarray


def _state(seed: int = 0) -> State:
    return State(
        key=jax.random.key(seed),
        params={"kernel": jnp.arange(6.0).reshape(2, 3) + seed, "bias": jnp.ones(3, jnp.bfloat16)},
        step=jnp.int32(7),
        losses=np.linspace(0, 1, 5, dtype=np.float32),
    )


def _assert_equal(a: State, b: State) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(left, right)


def _damaged(read, *arguments, match="is damaged"):
    with pytest.raises(files.DamagedFileError, match=match) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    assert "; delete it and run the same command again" in str(caught.value)
    return str(caught.value)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# whole files


def test_a_file_is_written_and_replaced_and_nothing_is_left_beside_it(tmp_path):
    for content in (b"one", b"", b"two\n"):
        files.write_whole(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
        assert _names(tmp_path) == ["file"]


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, fault):
    """A full disk, or an interrupt."""
    files.write_whole(tmp_path / "file", b"before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if fault == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before"
    assert _names(tmp_path) == ["file"]


def test_links_folders_and_pipes_are_refused(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, match in (
        ("link", "is a link"),
        ("dangling", "is a link"),
        ("folder", "no regular file"),
        ("pipe", "no regular file"),
    ):
        with pytest.raises(ValueError, match=match):
            files.write_whole(tmp_path / name, b"new")
    assert (tmp_path / "target").read_text() == "mine"
    assert _names(tmp_path) == ["dangling", "folder", "link", "pipe", "target"]


def test_many_writers_of_one_file_leave_one_whole(tmp_path):
    """Each has a temporary name of its own."""
    contents = [bytes([number]) * 200_000 for number in range(8)]
    threads = [
        threading.Thread(target=files.write_whole, args=(tmp_path / "file", content))
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert _names(tmp_path) == ["file"]


# JSON


@dataclass(frozen=True)
class Told:
    epochs: int
    rate: float
    check: bool
    hidden: tuple[int, ...]


TOLD = {"epochs": 8, "rate": 0.1, "check": False, "hidden": [64, 32]}


def test_json_round_trip_with_numpys_numbers_and_null_for_what_is_not_finite(tmp_path):
    value = {
        "a": {"ü": [1, 2.5, True, None], "b": (1, "\udcff")},
        "nan": float("nan"),
        "float32": np.float32(0.5),
        "array": np.asarray([[1.0, np.inf]]),
        "int": np.int64(3),
    }
    files.write_json(tmp_path / "file.json", value)
    assert files.read_json(tmp_path / "file.json") == {
        "a": {"ü": [1, 2.5, True, None], "b": [1, "\udcff"]},
        "nan": None,
        "float32": 0.5,
        "array": [[1.0, None]],
        "int": 3,
    }


def test_json_is_read_as_a_dataclass(tmp_path):
    files.write_json(tmp_path / "file.json", TOLD)
    assert files.read_json(tmp_path / "file.json", Told) == Told(8, 0.1, False, (64, 32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": "8"},
        {"epochs": 8.5},
        {"check": "false"},
        {"check": 1},
        {"hidden": [1, "2"]},
        None,
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path, wrong):
    value = {"epochs": 8} if wrong is None else TOLD | wrong
    files.write_json(tmp_path / "file.json", value)
    told = _damaged(files.read_json, tmp_path / "file.json", Told, match="is not as declared")
    assert next(iter(wrong or {"rate": 0})) in told


def test_a_flipped_bit_anywhere_in_json_is_found(tmp_path):
    """Also in a digit: `epochs` 8 became 9 without a word once."""
    path = tmp_path / "file.json"
    files.write_json(path, TOLD)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        _damaged(files.read_json, path)
    path.write_bytes(whole)
    assert files.read_json(path) == TOLD


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b"\xff", b"[" * 100_000])
def test_what_is_no_such_json_is_damaged(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    _damaged(files.read_json, tmp_path / "file.json")


def test_a_missing_file_is_named(tmp_path):
    for read in (files.read_json, lambda path: files.read_arrays(path, {})):
        with pytest.raises(FileNotFoundError, match=r"^there is no file .*file$"):
            read(tmp_path / "file")


# arrays

KINDS = {"scores": ("float32", 2), "ids": ("any", 1)}
ARRAYS = {"scores": np.eye(3, dtype=np.float32), "ids": np.asarray(["a", "bc", "d"])}


def test_arrays_round_trip_and_are_an_npz(tmp_path):
    files.write_arrays(tmp_path / "file.npz", ARRAYS, {"seed": np.int64(3)})
    arrays, metadata = files.read_arrays(tmp_path / "file.npz", KINDS)
    assert metadata == {"seed": 3}
    assert list(arrays) == ["scores", "ids"]
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(array, ARRAYS[name])
    with np.load(tmp_path / "file.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["scores"], np.eye(3))


def test_a_flipped_bit_anywhere_in_an_array_file_is_found(tmp_path):
    path = tmp_path / "file.npz"
    files.write_arrays(path, ARRAYS)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        _damaged(files.read_arrays, path, KINDS)
    for cut in (b"", whole[:-1], whole[:100], whole + b"x"):
        path.write_bytes(cut)
        _damaged(files.read_arrays, path, KINDS)


@pytest.mark.parametrize(
    "kinds",
    [
        {"scores": ("float64", 2), "ids": ("any", 1)},
        {"scores": ("float32", 1), "ids": ("any", 1)},
        {"scores": ("float32", 2)},
        KINDS | {"more": ("any", 1)},
    ],
)
def test_other_arrays_than_declared_are_refused(tmp_path, kinds):
    files.write_arrays(tmp_path / "file.npz", ARRAYS)
    _damaged(files.read_arrays, tmp_path / "file.npz", kinds, match="is not as declared")


def test_arrays_of_objects_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="bad holds Python objects"):
        files.write_arrays(tmp_path / "file.npz", {"bad": np.asarray([None, 1])})
    assert _names(tmp_path) == []


# checkpoints


def _all_files(path: Path) -> list[Path]:
    return [file for file in sorted(path.rglob("*")) if file.is_file()]


def test_round_trip_with_a_typed_key(tmp_path):
    checkpoints.save(tmp_path / "state", _state(3))
    loaded = checkpoints.load(tmp_path / "state", _state(0))
    assert isinstance(loaded, State)
    assert isinstance(loaded.losses, np.ndarray)
    assert isinstance(loaded.params["bias"], jax.Array)
    _assert_equal(loaded, _state(3))
    np.testing.assert_array_equal(
        jax.random.normal(loaded.key, 4), jax.random.normal(jax.random.key(3), 4)
    )


def test_shapes_alone_serve_as_the_target(tmp_path):
    checkpoints.save(tmp_path / "state", _state(3))
    shapes = jax.eval_shape(lambda: _state(0)._replace(losses=jnp.zeros(5)))
    _assert_equal(checkpoints.load(tmp_path / "state", shapes), _state(3))


def test_a_bare_array_round_trips(tmp_path):
    checkpoints.save(tmp_path / "groups", np.arange(5, dtype=np.int32))
    loaded = checkpoints.load(tmp_path / "groups", jax.ShapeDtypeStruct((5,), np.int32))
    np.testing.assert_array_equal(loaded, [0, 1, 2, 3, 4])


def test_sharded_arrays_round_trip(tmp_path):
    """Their shards became files of their own, and the checkpoint was called damaged."""
    mesh = Mesh(np.asarray(jax.devices()), "k")
    place = NamedSharding(mesh, PartitionSpec("k"))
    rows = np.arange(3.0 * len(mesh.devices), dtype=np.float32).reshape(-1, 3)
    sharded = {
        "a": jax.device_put(rows, place),
        "b": jax.device_put(rows, NamedSharding(mesh, PartitionSpec())),
        "key": jax.device_put(jax.random.split(jax.random.key(1), len(rows)), place),
    }
    checkpoints.save(tmp_path / "state", sharded)
    again = checkpoints.load(tmp_path / "state", sharded)
    assert again["a"].sharding == place
    for like in (sharded, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), sharded)):
        loaded = checkpoints.load(tmp_path / "state", like)
        np.testing.assert_array_equal(loaded["a"], rows)
        np.testing.assert_array_equal(loaded["b"], rows)
        keys = (jax.random.key_data(each["key"]) for each in (loaded, sharded))
        np.testing.assert_array_equal(*keys)


def test_metadata_round_trip(tmp_path):
    checkpoints.save(tmp_path / "state", _state(), {"position": 3, "fingerprint": "ab"})
    assert checkpoints.metadata(tmp_path / "state") == {"position": 3, "fingerprint": "ab"}
    checkpoints.save(tmp_path / "state", _state())
    assert checkpoints.metadata(tmp_path / "state") == {}


def test_one_flipped_byte_in_any_file_is_found(tmp_path):
    path = tmp_path / "state"
    checkpoints.save(path, _state())
    for file in _all_files(path):
        whole = file.read_bytes()
        for place in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
            if whole:
                file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
                assert file.name in _damaged(checkpoints.load, path, _state())
        file.write_bytes(whole)
    _assert_equal(checkpoints.load(path, _state()), _state())


@pytest.mark.parametrize("damage", ["truncate", "delete", "add", "link"])
def test_truncated_missing_extra_and_linked_files_are_found(tmp_path, damage):
    path = tmp_path / "state"
    checkpoints.save(path, _state())
    file = max(_all_files(next(path.glob("tree-*"))), key=lambda f: f.stat().st_size)
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "add":
        file = file.with_name("stray")
        file.write_text("x")
    else:
        file.rename(tmp_path / "elsewhere")
        if damage == "link":
            file.symlink_to(tmp_path / "elsewhere")
    assert file.name in _damaged(checkpoints.load, path, _state())


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", '{"files": {}}'])
def test_a_missing_or_damaged_manifest_is_found(tmp_path, text):
    path = tmp_path / "state"
    checkpoints.save(path, _state())
    manifest = path / checkpoints.MANIFEST
    manifest.unlink() if text is None else manifest.write_text(text)
    for read in (checkpoints.metadata, lambda path: checkpoints.load(path, _state())):
        assert "manifest.json" in _damaged(read, path, match="has no|is damaged")


def test_changed_metadata_are_found(tmp_path):
    path = tmp_path / "state"
    checkpoints.save(path, _state(), {"position": 3})
    manifest = json.loads((path / checkpoints.MANIFEST).read_text())
    manifest["metadata"]["position"] = 4
    (path / checkpoints.MANIFEST).write_text(json.dumps(manifest))
    _damaged(checkpoints.metadata, path)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: s._replace(losses=np.zeros(6, np.float32)),
        lambda s: s._replace(losses=np.zeros(5, np.int32)),
        lambda s: s._replace(params={"kernel": jnp.zeros((3, 2)), "bias": s.params["bias"]}),
        lambda s: s._replace(params={"kernel": s.params["kernel"]}),
        lambda s: s._replace(params={**s.params, "more": jnp.zeros(1)}),
    ],
)
def test_another_shape_type_or_structure_is_refused(tmp_path, wrong):
    checkpoints.save(tmp_path / "state", _state())
    wrong = wrong(_state())
    _damaged(checkpoints.load, tmp_path / "state", wrong, match="does not fit this run")
    assert checkpoints.fits(tmp_path / "state", _state())
    assert not checkpoints.fits(tmp_path / "state", wrong)


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path):
    for seed in (1, 2):
        checkpoints.save(tmp_path / "state", _state(seed))
        _assert_equal(checkpoints.load(tmp_path / "state", _state()), _state(seed))
    assert _names(tmp_path) == ["state"]
    assert len(_names(tmp_path / "state")) == 2  # the arrays and the manifest


@pytest.mark.parametrize("place", ["_write_tree", "_sums", "write_whole"])
def test_a_crash_while_saving_leaves_the_old_one(tmp_path, monkeypatch, place):
    path = tmp_path / "state"

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files if place == "write_whole" else checkpoints, place, crash)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(path, _state(1))
    assert not checkpoints.exists(path)
    assert _names(tmp_path) == []
    checkpoints.save(path, _state(1))
    with monkeypatch.context() as patch:
        patch.setattr(files if place == "write_whole" else checkpoints, place, crash)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(path, _state(2))
    _assert_equal(checkpoints.load(path, _state()), _state(1))
    assert len(_names(path)) == 2


def test_what_a_killed_process_left_goes_after_a_day(tmp_path):
    path = tmp_path / "state"
    checkpoints.save(path, _state(1))
    for name in ("tree-new", "tree-old.orbax-checkpoint-tmp"):
        (path / name).mkdir()
    os.utime(path / "tree-old.orbax-checkpoint-tmp", (0, 0))
    checkpoints.save(path, _state(2))
    assert "tree-new" in _names(path)  # perhaps being written
    assert len(_names(path)) == 3
    _assert_equal(checkpoints.load(path, _state()), _state(2))


def test_two_savers_at_once_leave_a_whole_checkpoint(tmp_path, monkeypatch):
    """They shared one temporary name."""
    path, write, others = tmp_path / "state", checkpoints._write_tree, [_state(2)]
    checkpoints.save(path, _state(3))

    def write_both(folder, arrays):
        write(folder, arrays)
        if others:
            checkpoints.save(path, others.pop())

    monkeypatch.setattr(checkpoints, "_write_tree", write_both)
    checkpoints.save(path, _state(1))
    _assert_equal(checkpoints.load(path, _state()), _state(1))
    assert len(_names(path)) == 2


@pytest.mark.filterwarnings("ignore")
def test_a_path_that_orbax_writes_elsewhere_is_refused(tmp_path, monkeypatch):
    """A backslash put the arrays outside the work directory, and all was called well."""
    path = tmp_path / "w\\x" / "state"
    with pytest.raises(ValueError, match="has a backslash in its path") as caught:
        checkpoints.save(path, _state())
    assert "\n" not in str(caught.value)
    assert _names(tmp_path) == []
    # And whatever else there may be: what was written is read back before it counts.
    monkeypatch.setattr(checkpoints, "check_folder", lambda path: None)
    with pytest.raises(OSError, match="cannot be written") as caught:
        checkpoints.save(path, _state())
    assert "\n" not in str(caught.value)
    assert not checkpoints.exists(path)


@pytest.mark.parametrize("path", ["a b", "w[/red]x", "ü%20?#&", "'\"|", "new\nline", "$x^2$"])
def test_other_paths_serve(tmp_path, path):
    checkpoints.save(tmp_path / path / "state", _state(2))
    _assert_equal(checkpoints.load(tmp_path / path / "state", _state()), _state(2))


def test_links_and_files_in_the_place_of_a_checkpoint_are_refused(tmp_path):
    checkpoints.save(tmp_path / "other", _state(1))
    (tmp_path / "link").symlink_to(tmp_path / "other")
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(ValueError, match="is a link or a file"):
            checkpoints.save(tmp_path / name, _state(2))
    with pytest.raises(ValueError, match="is a link"):
        checkpoints.remove(tmp_path / "link")
    _assert_equal(checkpoints.load(tmp_path / "other", _state()), _state(1))


def test_exists_and_remove(tmp_path):
    path = tmp_path / "state"
    assert not checkpoints.exists(path)
    checkpoints.save(path, _state())
    assert checkpoints.exists(path)
    for _ in range(2):
        checkpoints.remove(path)
        assert not checkpoints.exists(path)
        assert _names(tmp_path) == []


def test_a_relative_path_serves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(Path("runs/state"), _state(4))
    _assert_equal(checkpoints.load(Path("runs/state"), _state()), _state(4))


def test_a_file_in_a_folder_that_is_not_there_is_refused(tmp_path):
    """The name of a file that nobody had heard of was not found, after all of the work."""
    place = tmp_path / "nowhere" / "model.ddm"
    with pytest.raises(ValueError, match=r"model\.ddm: there is no folder .*nowhere; make it"):
        files.write_whole(place, b"x")
    with pytest.raises(ValueError, match="is no regular file"):
        files.check_destination(tmp_path)
    files.check_destination(tmp_path / "model.ddm")
