"""A whole run in seconds, for the tests that need one; compiled and made once a test session."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from ddm_jax import distill
from ddm_jax.run import settings as config
from ddm_jax.run import settings_file, stages
from ddm_jax.run.jobs import Results
from ddm_jax.run.plan import Plan, make_plan
from ddm_jax.run.settings import Config

TINY = (
    "data.train_size=120",
    "data.test_size=40",
    "model.hidden=8",
    "train.epochs=4",
    "train.batch_size=40",
    "cluster.num_groups=10",
    "distill.items=1",
    "distill.steps=60",
    # Nothing is chosen, which would retrain many networks; `test_pipeline` has a run that does.
    "tune.subsets=0",
    "online.steps=5",
    "online.batch=50",
    "online.momentum=0.9",
    "online.rewind=0.75",
    "check.groups=2",
    "check.subsets=2",
    "check.seeds=2",
)
CHUNK = 20  # distillation steps a dispatch, of 60


def tiny_config(*changes: str) -> Config:
    return config.override(config.preset("digits"), (*TINY, *changes))


@pytest.fixture(scope="session")
def compile_once() -> Path:
    """Where compiled programs are kept, for processes that compile the same ones again."""
    return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The work directory of a finished run; read only."""
    return _finished(tmp_path_factory.getbasetemp())


@cache
def _finished(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "STEPS_AT_ONCE", CHUNK)
        stages.run(tiny_config(), folder / "finished")
    return folder / "finished"


class Stages(NamedTuple):
    """What a finished run holds."""

    plan: Plan
    results: Results


def read_stages(workdir: Path) -> Stages:
    """Load every stage of a finished run; one that would compute again raises."""
    plan = make_plan(settings_file.load(workdir / "config.json"))
    return Stages(plan, stages.bring(plan, workdir, ("check",), compute=False))
