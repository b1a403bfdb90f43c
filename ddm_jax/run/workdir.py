"""A work directory: results that are kept, partial ones that are picked up, and what fits them.

Each stage keeps its result under its own name, with what it was made with: settings, digests of its
inputs, what is computed, and versions. It is made again where one of them differs, and says which.
A long stage keeps a partial result beside it (`<stage>.partial`). One process at a time works on
the stages.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import numpy as np

import ddm_jax
from ddm_jax import checkpoints, files
from ddm_jax.distill import Step
from ddm_jax.run import settings, settings_file
from ddm_jax.run.settings import Config

CONFIG, LOCK, ANSWERS = "config.json", "lock", "answers"
SAVE_SECONDS = 20.0  # how often a long stage keeps a partial result
# The command that does the stage of a section again.
COMMANDS = {
    "model": "train",
    "train": "train",
    "cluster": "cluster",
    "distill": "distill",
    "online": "tune",
    "tune": "tune",
    "check": "check",
}
COMPUTES = ("jax", "flax", "optax")  # packages whose version is a part of what is computed


class Progress(NamedTuple):
    """Where messages and progress go; the command line passes its own."""

    say: Callable[[str], None]
    track: Callable[[str, int], Callable[[int, str], None]]  # (what, total) -> (done, note)


SILENT = Progress(lambda text: None, lambda what, total: lambda done, note: None)


@dataclass(frozen=True)
class Made:
    """What a result was made with."""

    settings: dict[str, Any]
    inputs: dict[str, str]  # digests by name
    programs: dict[str, str]  # what is computed, on each platform; see `judge.program`
    versions: dict[str, str]

    def changes(self, new: Made) -> list[str]:
        """What differs from `new`, in words."""
        said = _changed(self.settings, new.settings)
        said += [f"its input {name}" for name in _differ(self.inputs, new.inputs)]
        same = self.programs.keys() & new.programs.keys()  # convolutions differ by platform
        said += (
            ["what it computes"] if any(self.programs[p] != new.programs[p] for p in same) else []
        )
        return said + _changed(self.versions, new.versions)


def _differ(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in _differ(old, new)]


@contextlib.contextmanager
def alone(workdir: Path, progress: Progress = SILENT) -> Iterator[None]:
    """Wait until no other process works on this directory, and keep it for this one.

    Raises:
        ValueError: where files cannot be kept there, or others lie there.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file; use another --workdir")
    checkpoints.check_folder(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    others = [file for file in workdir.iterdir() if not file.name.startswith((LOCK, CONFIG))]
    if others and not (workdir / CONFIG).exists():
        raise ValueError(f"{workdir} is not empty and holds no run; use another --workdir")
    lock = filelock.FileLock(workdir / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        progress.say(f"another process works in {workdir}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def open_workdir(workdir: Path, config: Config) -> None:
    """Make the work directory a run's, or check that it is one with the same settings.

    Raises:
        ValueError: when it holds a run with other settings, naming them.
    """
    path = workdir / CONFIG
    if path.exists():
        changed = settings.differences(settings_file.load(path), config)
        # Data may be moved; what they are is part of what every stage was made with. The truth
        # store knows itself what it was made with.
        changed = [c for c in changed if not c.startswith(("data.data_dir ", "truth."))]
        if changed:
            name = changed[0].split(" ")[0]
            command = COMMANDS.get(name.split(".")[0])
            of_study = config.model.kind == settings.GIVEN
            study = " --study FILE" if of_study else ""
            mend = (
                ""
                if command is None
                else (
                    ", or change them with the command of their stage: "
                    f"`ddm {command} --workdir {workdir}{study} --set {name}=...`"
                )
            )
            raise ValueError(
                f"{workdir} was made with other settings ({'; '.join(changed)}); use another "
                f"{'workdir' if of_study else '--workdir'}{mend}"
            )
        return
    settings_file.save(config, path)


def read_config(workdir: Path) -> Config:
    """Read the settings of a run.

    Raises:
        ValueError: where the folder holds none, or its settings were edited.
    """
    if not (workdir / CONFIG).exists():
        raise ValueError(f"{workdir} holds no run; start one with `ddm run --workdir {workdir}`")
    return settings_file.load(workdir / CONFIG)


def stale(path: Path, made: Made) -> list[str] | None:
    """What has changed since the result there was made; None where there is no result.

    Raises:
        ValueError: when it is damaged.
    """
    if not checkpoints.exists(path):
        return None
    try:
        return Made(**checkpoints.metadata(path)["made"]).changes(made)
    except ValueError:
        if b'"sum":' in (path / checkpoints.MANIFEST).read_bytes():
            return ["it is of version 0.8"]
        raise


def keep(
    path: Path,
    made: Made,
    what: str,
    like: Any,
    compute: Callable[[Callable], Any],
    progress: Progress,
    identity: Callable[[Any], Any] = lambda kept: kept,
) -> tuple[Any, dict[str, Any]]:
    """Load a stage's result, or compute and save it; `like` has its structure and shapes.

    Returns what is kept beside it too: the "digest" of its `identity`, and its "seconds".

    `compute(loop)` may run its loop as `loop(carry, total, step)`, where
    `step(carry, position) -> (carry, position, note)`; the carry is kept on disk every
    SAVE_SECONDS and when the loop is interrupted.
    """
    partial = path.with_name(f"{path.name}.partial")
    changes = stale(path, made)
    if changes == []:
        progress.say(f"{what}: done before")
        return checkpoints.load(path, like), checkpoints.metadata(path)
    progress.say(f"{what}: again, for {'; '.join(changes)}" if changes else what)
    begin = time.perf_counter()
    before = 0.0

    def loop(carry: Any, total: int, step: Step) -> Any:
        nonlocal before
        position = 0
        if stale(partial, made) == []:
            if checkpoints.fits(partial, carry):
                carry = jax.tree.map(
                    lambda old, new: np.array(new) if isinstance(old, np.ndarray) else new,
                    carry,
                    checkpoints.load(partial, carry),
                )
                kept = checkpoints.metadata(partial)
                position, before = kept["position"], kept["seconds"]
                progress.say(f"  picking up at {position} of {total}")
            else:
                progress.say("  what was kept was cut for another number of devices: starting over")
        show = progress.track(what, total)

        def save() -> None:
            seconds = before + time.perf_counter() - begin
            told = {"made": asdict(made), "position": position, "seconds": seconds}
            checkpoints.save(partial, carry, told)

        saved = time.perf_counter()
        try:
            while position < total:
                carry, position, note = step(carry, position)
                show(position, note)
                if time.perf_counter() - saved > SAVE_SECONDS and position < total:
                    save()
                    saved = time.perf_counter()
        except KeyboardInterrupt:
            if position:
                save()
            raise
        return carry

    result = jax.block_until_ready(compute(loop))
    seconds = before + time.perf_counter() - begin
    told = {
        "made": asdict(made),
        "digest": digest(identity(result)),
        "seconds": seconds,
        "versions": versions(),
    }
    checkpoints.save(path, result, told)
    checkpoints.remove(partial)
    progress.say(f"  {seconds:.1f} s")
    return result, told


def digest(tree: Any) -> str:
    """The digest of the arrays of a pytree."""

    def numbers(leaf: Any) -> Any:
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if key else leaf

    return files.digest(*map(numbers, jax.tree.leaves(tree)))


@dataclass(frozen=True)
class KeptAnswer:
    """An answer of `ddm points` and others, as it is kept beside the run."""

    title: str
    sentences: list[str]
    table: list[list[str]]
    attribution: str  # the digest of the attribution that it was found beside
    command: str
    versions: dict[str, str]
    sums: dict[str, str]  # SHA-256 of the files beside it, by their endings


def kept_answers(
    workdir: Path, say: Callable[[str], None] = lambda text: None
) -> list[tuple[KeptAnswer, bytes]]:
    """The answers that fit the run's attribution, each with its picture (PNG).

    One that is damaged is named and left out.
    """
    current = checkpoints.metadata(workdir / "attribution")["digest"]
    found = []
    for path in sorted((workdir / ANSWERS).glob("*.json")):
        try:
            answer = files.read_json(path, KeptAnswer)
            content = {ending: path.with_suffix(ending).read_bytes() for ending in answer.sums}
            for ending, sum_ in answer.sums.items():
                if hashlib.sha256(content[ending]).hexdigest() != sum_:
                    raise ValueError(f"{path.with_suffix(ending)} is damaged")
        except (OSError, ValueError) as error:
            say(f"the answer {path.stem} is left out: {error}")
            continue
        if answer.attribution == current:
            found.append((answer, content[".png"]))
    return found


def versions() -> dict[str, str]:
    """Versions of what computes, and the device."""
    names = (*COMPUTES, "orbax-checkpoint", "numpy")
    return {
        "ddm_jax": ddm_jax.__version__,
        "python": platform.python_version(),
        **{name: packages.version(name) for name in names},
        "device": jax.devices()[0].device_kind,
    }
