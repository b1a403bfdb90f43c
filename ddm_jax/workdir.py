"""A work directory: results that are kept, partial ones that are picked up, and what fits them.

Each stage keeps its result under its own name, with a fingerprint of the settings and the data it
depends on, and is not redone while that fits. A long stage keeps a partial result beside it
(`<stage>.partial`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import ddm_jax
from ddm_jax import checkpoint
from ddm_jax import config as settings
from ddm_jax.config import Config
from ddm_jax.plan import Plan, read_groups

# What each stage's result depends on, besides the seed: the sections of the settings.
DEPENDS = {
    "target": ("data", "model", "train"),
    "groups": ("data", "model", "train", "cluster"),
    "synset": ("data", "model", "train", "cluster", "distill"),
    "attribution": ("data", "model", "train", "cluster", "distill", "online"),
    "check": ("data", "model", "train", "cluster", "distill", "online", "check"),
}

STAGES = (*DEPENDS, "report")
LOCK = "lock"
SAVE_SECONDS = 20.0  # how often a long stage keeps a partial result


class Progress(NamedTuple):
    """Where messages and progress go; the command line passes its own."""

    say: Callable[[str], None]
    track: Callable[[str, int], Callable[[int, str], None]]  # (what, total) -> (done, note)


SILENT = Progress(lambda text: None, lambda what, total: lambda done, note: None)


def open_workdir(workdir: Path, config: Config) -> None:
    """Make the work directory, or check that it was made with the same settings.

    Raises:
        ValueError: when it holds a run with other settings, naming them.
    """
    path = workdir / "config.json"
    if path.exists():
        changed = settings.differences(settings.load(path), config)
        # Data may be moved; what they are is part of every stage's fingerprint. The truth store
        # knows itself what it was made with.
        changed = [c for c in changed if not c.startswith(("data.data_dir ", "truth."))]
        if changed:
            raise ValueError(
                f"{workdir} was made with other settings ({'; '.join(changed)}); use another "
                "--workdir, or change them with the command of their stage, for example "
                f"`ddm distill --workdir {workdir} --set distill.items=2`"
            )
        return
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file; use another --workdir")
    if workdir.exists() and any(path.name != LOCK for path in workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run; use another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    settings.save(config, path)


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Wait until no other process prepares this work directory, and keep it for this one."""
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file; use another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_stage_change(stage: str, old: Config, new: Config) -> None:
    """Check that a stage's command changes the settings of that stage or of later ones only.

    Raises:
        ValueError: naming the settings that belong to an earlier stage.
    """
    names = list(STAGES)
    earlier = DEPENDS[names[names.index(stage) - 1]] if names.index(stage) else ("data",)
    wrong = [
        change
        for change in settings.differences(old, new)
        if change.split(" ")[0].split(".")[0] in (*earlier, "seed")
    ]
    if wrong:
        raise ValueError(
            f"{'; '.join(wrong)}: that belongs to a stage before this one; use the command of "
            "that stage, or a new --workdir"
        )


Resume = Callable[[Any, int, Callable[[Any, int], tuple[Any, int, str]]], Any]


def keep_stage(
    plan: Plan,
    workdir: Path,
    name: str,
    what: str,
    like: Any,
    compute: Callable[[Resume], Any],
    progress: Progress,
) -> Any:
    """Load a stage's result, or compute and save it; `like` has its structure and shapes.

    `compute(resume)` may run its loop as `resume(carry, total, step)`, where
    `step(carry, position) -> (carry, position, note)`; the carry is kept on disk every
    SAVE_SECONDS and when the loop is interrupted.
    """
    path, partial = workdir / name, workdir / f"{name}.partial"
    fingerprint = fingerprint_of(plan, name)
    if checkpoint.exists(path) and checkpoint.metadata(path)["fingerprint"] == fingerprint:
        progress.say(f"{what}: done before")
        return checkpoint.load(path, like)
    progress.say(what)
    begin = time.perf_counter()
    before = 0.0

    def resume(carry: Any, total: int, step: Callable) -> Any:
        nonlocal before
        position = 0
        if checkpoint.exists(partial):
            kept = checkpoint.metadata(partial)
            same = kept["fingerprint"] == fingerprint
            if same and not checkpoint.fits(partial, carry):
                progress.say("  what was kept was cut for another number of devices: starting over")
            elif same:
                carry = jax.tree.map(
                    lambda old, new: np.array(new) if isinstance(old, np.ndarray) else new,
                    carry,
                    checkpoint.load(partial, carry),
                )
                position, before = kept["position"], kept["seconds"]
                progress.say(f"  picking up at {position} of {total}")
        show = progress.track(what, total)

        def keep() -> None:
            seconds = before + time.perf_counter() - begin
            checkpoint.save(
                partial,
                carry,
                {"fingerprint": fingerprint, "position": position, "seconds": seconds},
            )

        saved = time.perf_counter()
        try:
            while position < total:
                carry, position, note = step(carry, position)
                show(position, note)
                if time.perf_counter() - saved > SAVE_SECONDS and position < total:
                    keep()
                    saved = time.perf_counter()
        except KeyboardInterrupt:
            if position:
                keep()
            raise
        return carry

    result = jax.block_until_ready(compute(resume))
    seconds = before + time.perf_counter() - begin
    checkpoint.save(
        path, result, {"fingerprint": fingerprint, "seconds": seconds, "versions": versions()}
    )
    checkpoint.remove(partial)
    progress.say(f"  {seconds:.1f} s")
    return result


def fingerprint_of(plan: Plan, name: str) -> str:
    """What a stage's result depends on: its settings and the data themselves."""
    sections = {s: dataclasses.asdict(getattr(plan.config, s)) for s in DEPENDS[name]}
    # Where the data lies does not matter, what they are does.
    sections["data"].pop("data_dir")
    digest = hashlib.sha256(json.dumps([plan.config.seed, sections]).encode())
    if "cluster" in sections and plan.config.cluster.method == "file":
        digest.update(read_groups(plan.config.cluster.file).tobytes())
    for array in (*plan.split.train, *plan.split.test):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def stage_seconds(workdir: Path) -> dict[str, float]:
    """Seconds of each finished stage, compilation included."""
    done = {name: workdir / name for name in DEPENDS if checkpoint.exists(workdir / name)}
    return {name: checkpoint.metadata(path)["seconds"] for name, path in done.items()}


def versions() -> dict[str, str]:
    """Versions of what computes, and the device."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
    return {
        "ddm_jax": ddm_jax.__version__,
        "python": platform.python_version(),
        **{name: packages.version(name) for name in names},
        "device": jax.devices()[0].device_kind,
    }
