"""Checkpoints: what is read is what was saved, or an error that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax import checkpoint


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


def _files(path: Path) -> list[Path]:
    return [f for f in sorted(path.rglob("*")) if f.is_file() and f.name != checkpoint.MANIFEST]


def test_round_trip_with_a_typed_key(tmp_path):
    checkpoint.save(tmp_path / "state", _state(3))
    loaded = checkpoint.load(tmp_path / "state", _state(0))
    assert isinstance(loaded, State)
    _assert_equal(loaded, _state(3))
    np.testing.assert_array_equal(
        jax.random.normal(loaded.key, 4), jax.random.normal(jax.random.key(3), 4)
    )


def test_shapes_alone_serve_as_the_target(tmp_path):
    checkpoint.save(tmp_path / "state", _state(3))
    shapes = jax.eval_shape(lambda: _state(0)._replace(losses=jnp.zeros(5)))
    _assert_equal(checkpoint.load(tmp_path / "state", shapes), _state(3))


def test_a_bare_array_round_trips(tmp_path):
    checkpoint.save(tmp_path / "groups", np.arange(5, dtype=np.int32))
    loaded = checkpoint.load(tmp_path / "groups", jax.ShapeDtypeStruct((5,), np.int32))
    assert loaded.shape == (5,)
    np.testing.assert_array_equal(loaded, [0, 1, 2, 3, 4])


def test_metadata_round_trip(tmp_path):
    checkpoint.save(tmp_path / "state", _state(), {"position": 3, "fingerprint": "ab"})
    assert checkpoint.metadata(tmp_path / "state") == {"position": 3, "fingerprint": "ab"}
    checkpoint.save(tmp_path / "state", _state())
    assert checkpoint.metadata(tmp_path / "state") == {}


def test_one_flipped_byte_in_any_file_is_detected(tmp_path):
    path = tmp_path / "state"
    checkpoint.save(path, _state())
    files = [f for f in _files(path) if f.stat().st_size]
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(checkpoint.DamagedCheckpointError, match="is damaged") as caught:
            checkpoint.load(path, _state())
        assert str(file.relative_to(path)) in str(caught.value)
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    _assert_equal(checkpoint.load(path, _state()), _state())


@pytest.mark.parametrize("damage", ["truncate", "delete", "add"])
def test_truncated_missing_and_extra_files_are_detected(tmp_path, damage):
    path = tmp_path / "state"
    checkpoint.save(path, _state())
    file = max(_files(path), key=lambda f: f.stat().st_size)
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "delete":
        file.unlink()
    else:
        file = path / "tree" / "stray"
        file.write_text("x")
    with pytest.raises(
        checkpoint.DamagedCheckpointError, match="delete the folder and run"
    ) as caught:
        checkpoint.load(path, _state())
    assert str(file.relative_to(path)) in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", '{"files": {}}'])
def test_a_missing_or_damaged_manifest_is_detected(tmp_path, text):
    path = tmp_path / "state"
    checkpoint.save(path, _state())
    manifest = path / checkpoint.MANIFEST
    manifest.unlink() if text is None else manifest.write_text(text)
    for read in (checkpoint.metadata, lambda p: checkpoint.load(p, _state())):
        with pytest.raises(
            checkpoint.DamagedCheckpointError, match=r"manifest.json cannot be read"
        ):
            read(path)


def test_changed_metadata_are_detected(tmp_path):
    path = tmp_path / "state"
    checkpoint.save(path, _state(), {"position": 3})
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    manifest["metadata"]["position"] = 4
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.DamagedCheckpointError, match="damaged"):
        checkpoint.metadata(path)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: s._replace(losses=np.zeros(6, np.float32)),
        lambda s: s._replace(params={"kernel": jnp.zeros((3, 2)), "bias": s.params["bias"]}),
        lambda s: s._replace(params={"kernel": s.params["kernel"]}),
        lambda s: s._replace(params={**s.params, "more": jnp.zeros(1)}),
    ],
)
def test_another_shape_or_structure_is_refused(tmp_path, wrong):
    checkpoint.save(tmp_path / "state", _state())
    with pytest.raises(checkpoint.DamagedCheckpointError, match="does not fit this run") as caught:
        checkpoint.load(tmp_path / "state", wrong(_state()))
    assert "\n" not in str(caught.value)


def test_whether_a_checkpoint_fits_is_told_without_reading_it(tmp_path):
    checkpoint.save(tmp_path / "c", {"a": np.zeros((2, 3))}, {})
    assert checkpoint.fits(tmp_path / "c", {"a": np.ones((2, 3))})
    assert not checkpoint.fits(tmp_path / "c", {"a": np.ones((4, 3))})
    assert not checkpoint.fits(tmp_path / "c", {"b": np.ones((2, 3))})


def test_saving_again_replaces_and_leaves_nothing_beside(tmp_path):
    checkpoint.save(tmp_path / "state", _state(1))
    checkpoint.save(tmp_path / "state", _state(2))
    _assert_equal(checkpoint.load(tmp_path / "state", _state()), _state(2))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


class _Crash(BaseException):
    pass


@pytest.mark.parametrize("crash_at", [0, 1, 2])
def test_a_crash_while_replacing_leaves_a_whole_checkpoint(tmp_path, monkeypatch, crash_at):
    """0: before the first rename; 1: between the two; 2: after both, before the clean-up."""
    path = tmp_path / "state"
    checkpoint.save(path, _state(1))
    rename, renames = Path.rename, []

    def crashing(self, target):
        # orbax renames inside its own folder; only the checkpoint's own renames count.
        if self.parent != tmp_path:
            return rename(self, target)
        if len(renames) == crash_at:
            raise _Crash
        renames.append(self)
        return rename(self, target)

    def crashing_clean_up(*_, **__):
        if len(renames) == 2:
            raise _Crash

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crashing)
        if crash_at == 2:
            patch.setattr(checkpoint.shutil, "rmtree", crashing_clean_up)
        with pytest.raises(_Crash):
            checkpoint.save(path, _state(2))
    assert len(renames) == crash_at
    assert checkpoint.exists(path)
    _assert_equal(checkpoint.load(path, _state()), _state(2 if crash_at == 2 else 1))
    checkpoint.save(path, _state(3))
    _assert_equal(checkpoint.load(path, _state()), _state(3))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_crash_while_writing_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "state"
    checkpoint.save(path, _state(1))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sums", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            checkpoint.save(path, _state(2))
    assert checkpoint.exists(path)
    _assert_equal(checkpoint.load(path, _state()), _state(1))


def test_exists_and_remove(tmp_path):
    path = tmp_path / "state"
    assert not checkpoint.exists(path)
    checkpoint.save(path, _state())
    assert checkpoint.exists(path)
    path.with_name("state.new").mkdir()
    path.with_name("state.old").mkdir()
    checkpoint.remove(path)
    assert not checkpoint.exists(path)
    assert list(tmp_path.iterdir()) == []
    checkpoint.remove(path)


def test_a_relative_path_serves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(Path("runs/state"), _state(4))
    _assert_equal(checkpoint.load(Path("runs/state"), _state()), _state(4))
