"""A whole run in seconds, for the tests that need one; compiled and made once a test session."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ddm_jax import config, offline, pipeline
from ddm_jax.config import Config
from ddm_jax.pipeline import CheckResult, Plan, SynsetResult
from ddm_jax.plan import make_plan
from ddm_jax.types import TrainRun
from ddm_jax.workdir import SILENT, Progress

TINY = (
    "data.train_size=120",
    "data.test_size=40",
    "model.hidden=8",
    "train.epochs=4",
    "train.batch_size=40",
    "cluster.num_groups=10",
    "distill.items=1",
    "distill.steps=60",
    "online.steps=5",
    "online.masks=30",
    "check.groups=2",
    "check.subsets=2",
    "check.seeds=2",
)
CHUNK = 20  # distillation steps a dispatch, of 60


def tiny_config(*changes: str) -> Config:
    return config.override(config.preset("digits"), (*TINY, *changes))


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Keep compiled programs: every run of these tests would compile the same ones again."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    # JAX looks for the folder once, at its first compilation.
    compilation_cache.reset_cache()
    yield Path(settings["jax_compilation_cache_dir"])
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compile_once) -> Path:
    """The work directory of a finished run; read only."""
    return _finished(tmp_path_factory.getbasetemp())


@cache
def _finished(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "STEPS_AT_ONCE", CHUNK)
        pipeline.run(tiny_config(), folder / "finished")
    return folder / "finished"


class Stages(NamedTuple):
    """What a finished run holds, in the order of `report.summarise`'s arguments."""

    plan: Plan
    target: TrainRun
    groups: np.ndarray
    synset: SynsetResult
    check: CheckResult


def read_stages(workdir: Path) -> Stages:
    """Load every stage of a finished run; one that would compute again raises."""

    def say(text: str) -> None:
        if "done before" not in text:
            raise AssertionError(text)

    progress = Progress(say, SILENT.track)
    plan = make_plan(config.load(workdir / "config.json"))
    target = pipeline.target_stage(plan, workdir, progress)
    groups = pipeline.groups_stage(plan, workdir, progress, target)
    synset = pipeline.synset_stage(plan, workdir, progress, target, groups)
    check = pipeline.check_stage(plan, workdir, progress, target, groups, synset)
    return Stages(plan, target, groups, synset, check)
