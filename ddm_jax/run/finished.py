"""A finished run, read back, and the answers that are kept beside it.

<workdir>/answers/<name>.json   what was found, with <name>.npz (arrays) and <name>.png (figure)

Each is a page of report.html as long as the run's attribution is the one that it was found beside.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ddm_jax import checkpoints, files
from ddm_jax.attribution import Attribution
from ddm_jax.estimators.ddm import DDMState
from ddm_jax.run import report
from ddm_jax.run.check import Check
from ddm_jax.run.choosing import Tuning
from ddm_jax.run.drawing import png
from ddm_jax.run.plan import Plan, plan_with
from ddm_jax.run.stages import NotDoneError, Results, bring
from ddm_jax.run.workdir import (
    ANSWERS,
    SILENT,
    KeptAnswer,
    Progress,
    alone,
    read_config,
    versions,
)
from ddm_jax.types import Groups, TrainRun


class Finished(NamedTuple):
    """A finished run, read back."""

    workdir: Path
    plan: Plan
    target: TrainRun
    groups: Groups
    synset: DDMState
    tuning: Tuning
    attribution: Attribution
    check: Check | None = None  # None where it has none that fits


class Answer(NamedTuple):
    """What a question found."""

    title: str
    sentences: list[str]
    table: list[list[str]]  # the first row is the head
    figure: Figure
    arrays: dict[str, Any]


def open_finished(
    workdir: Path, progress: Progress = SILENT, given: Plan | None = None
) -> Finished:
    """Read a finished run.

    Args:
        given: the plan of the study that the run is of, where its data and task came from Python.

    Raises:
        ValueError: where the folder holds none, or one whose stages are not all done.
    """
    plan = plan_with(read_config(workdir), given)
    try:
        found = bring(plan, workdir, ("check",), progress, compute=False)
    except NotDoneError:
        found = bring(plan, workdir, ("attribution",), progress, compute=False)
    if not (workdir / "metrics.json").exists():
        raise ValueError(f"{workdir} has no report yet; `ddm run --workdir {workdir}` writes it")
    return finished_of(workdir, plan, found)


def finished_of(workdir: Path, plan: Plan, found: Results) -> Finished:
    """A run of which the stages have been brought up to date."""
    names = ("target", "groups", "synset", "tuning", "attribution", "check")
    return Finished(workdir, plan, *(getattr(found, name) for name in names))


def keep(run: Finished, name: str, answer: Answer, progress: Progress = SILENT) -> Answer:
    """Write an answer into the work directory, and make it a page of the report."""
    folder = run.workdir / ANSWERS
    with alone(run.workdir, progress):
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.json"
        files.write_arrays(path.with_suffix(".npz"), answer.arrays)
        files.write_whole(path.with_suffix(".png"), png(answer.figure))
        told = KeptAnswer(
            title=answer.title,
            sentences=answer.sentences,
            table=answer.table,
            attribution=checkpoints.metadata(run.workdir / "attribution")["digest"],
            command=" ".join(["ddm", *sys.argv[1:]]),
            versions=versions(),
            sums={
                ending: hashlib.sha256(path.with_suffix(ending).read_bytes()).hexdigest()
                for ending in (".npz", ".png")
            },
        )
        files.write_json(path, asdict(told))
        report.rewrite(run.plan, run.workdir, progress.say)
    return answer
