"""A finished run, read back, and the answers that are kept beside it.

<workdir>/answers/<name>.json   what was found, with <name>.npz (arrays) and <name>.png (figure)

Each is a page of report.html as long as the run's settings are those that it was found with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ddm_jax import checkpoint, pipeline, report
from ddm_jax import config as settings
from ddm_jax.attribution import Attribution
from ddm_jax.plan import Plan, make_plan
from ddm_jax.types import TrainRun
from ddm_jax.workdir import DEPENDS, SILENT, Progress, fingerprint_of, versions

ANSWERS = "answers"


class Finished(NamedTuple):
    """A finished run, read back."""

    workdir: Path
    plan: Plan
    target: TrainRun
    groups: np.ndarray  # [N]
    synset: pipeline.SynsetResult
    attribution: Attribution


class Answer(NamedTuple):
    """What a question found."""

    title: str
    sentences: list[str]
    table: list[list[str]]  # the first row is the head
    figure: Figure
    arrays: dict[str, Any]


def open_finished(workdir: Path, progress: Progress = SILENT) -> Finished:
    """Read a finished run.

    Raises:
        ValueError: where the folder holds none, or one whose stages are not all done.
    """
    if not (workdir / "config.json").exists():
        raise ValueError(f"{workdir} holds no run; start one with `ddm run --workdir {workdir}`")
    plan = make_plan(settings.load(workdir / "config.json"))
    for stage in DEPENDS:
        if stage == "check":
            continue
        path = workdir / stage
        if not checkpoint.exists(path) or (
            checkpoint.metadata(path)["fingerprint"] != fingerprint_of(plan, stage)
        ):
            raise ValueError(
                f"{workdir}: the stage {stage!r} is not done with these settings; finish the run "
                f"with `ddm run --workdir {workdir}`"
            )
    if not (workdir / "metrics.json").exists():
        raise ValueError(f"{workdir} has no report yet; `ddm run --workdir {workdir}` writes it")
    target = pipeline.target_stage(plan, workdir, progress)
    groups = pipeline.groups_stage(plan, workdir, progress, target)
    synset = pipeline.synset_stage(plan, workdir, progress, target, groups)
    attribution = pipeline.attribution_stage(plan, workdir, progress, target, groups, synset)
    return Finished(workdir, plan, target, groups, synset, attribution)


def keep(run: Finished, name: str, answer: Answer) -> Answer:
    """Write an answer into the work directory, and make it a page of the report."""
    folder = run.workdir / ANSWERS
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", **answer.arrays)
    answer.figure.savefig(folder / f"{name}.png", dpi=110)
    told = {
        "title": answer.title,
        "sentences": answer.sentences,
        "table": answer.table,
        "fingerprint": fingerprint_of(run.plan, "attribution"),
        "command": " ".join(["ddm", *sys.argv[1:]]),
        "versions": versions(),
    }
    (folder / f"{name}.json").write_text(json.dumps(report.without_nan(told), indent=1) + "\n")
    report.rewrite(run.plan, run.workdir)
    return answer
