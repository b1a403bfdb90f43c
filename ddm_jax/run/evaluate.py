"""The truth of a work directory, and estimators compared on it: fill, judge, write.

<workdir>/truth/        the truth store, filled by `ddm truth` (any number of processes)
<workdir>/compare.json  the scores of `ddm compare`, with compare.md and compare.png
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from ddm_jax import files
from ddm_jax.judge import compare, filling, scoring, truth
from ddm_jax.judge.truth import Truth
from ddm_jax.run import settings, settings_file
from ddm_jax.run.answer_figures import comparison_figure
from ddm_jax.run.check import filled, open_truth
from ddm_jax.run.drawing import png
from ddm_jax.run.plan import Plan, check_distillation_fits, make_plan
from ddm_jax.run.settings import Config
from ddm_jax.run.stages import Results, bring
from ddm_jax.run.wording import in_seconds, is_defined, number
from ddm_jax.run.workdir import (
    COMPUTES,
    CONFIG,
    SILENT,
    Made,
    Progress,
    alone,
    open_workdir,
    versions,
)
from ddm_jax.types import Groups, TrainRun, length

TRUTH = "truth"  # the folder of the store


class Ready(NamedTuple):
    """A work directory with everything that judging takes."""

    plan: Plan
    target: TrainRun
    groups: Groups
    truth: Truth


class Comparison(TypedDict):
    """What compare.json holds."""

    dataset: str
    command: str
    settings: dict[str, Any]
    seconds_per_retraining: float
    versions: dict[str, str]
    truth: str  # its checksum
    rows: list[dict[str, Any]]


class ComparisonError(ValueError):
    """Estimators that failed; the scores of the others are written."""


def fill_truth(
    config: Config | Plan, workdir: Path, progress: Progress = SILENT, chunk: int | None = None
) -> dict[str, Any]:
    """Fill the truth store of a work directory, and say how noisy the truth is.

    Any number of processes may do this at once. Returns the ceilings of each score, the checksum
    of the outputs and the seconds a network, as written to truth/summary.json.

    Raises:
        ValueError: when the work directory or the store was made with other settings.
    """
    _, found = _ready(_plan(config), workdir, ("groups",), progress, chunk)
    summary = {
        "networks": sum(array[..., 0].size for array in (found.full, found.single, found.subsets)),
        "seconds_per_network": found.seconds,
        "truth": truth.checksum(found),
        "ceilings": scoring.ceilings(found),
        "versions": versions(),
    }
    files.write_json(workdir / TRUTH / "summary.json", summary)
    return summary


def prepare(
    config: Config | Plan,
    workdir: Path,
    progress: Progress = SILENT,
    chunk: int | None = None,
) -> Ready:
    """Train the target network, cut the groups and fill the truth, where that is not done.

    Raises:
        ValueError: when the work directory or the store was made with other settings.
    """
    plan = _plan(config)
    chosen = plan.config.truth
    keep = np.repeat(chosen.keep, chosen.subsets)
    compare.split_parts(keep, length(plan.split.test), plan.config.seed)  # enough of both?
    found, judged = _ready(plan, workdir, ("target", "groups"), progress, chunk)
    return Ready(plan, found.target, found.groups, judged)


def compare_estimators(
    config: Config | Plan,
    workdir: Path,
    names: Sequence[str],
    progress: Progress = SILENT,
    chunk: int | None = None,
) -> dict[str, Any]:
    """Judge estimators on the truth of a work directory, which is filled where it is not.

    Writes compare.json after each estimator. One that was judged before on the same truth, with
    the same settings, and computes the same, is not judged again: an interrupted comparison goes
    on where it was, and others can be added to it. The table holds them all, those that were named
    first.

    Raises:
        ValueError: for a wrong name or setting, before any work.
        ComparisonError: when estimators failed; they stand in the table with their error.
    """
    plan = _plan(config)
    compare.check_estimators(names, plan.truth, plan.split.test)
    if "ddm" in names:
        check_distillation_fits(plan)
    ready = prepare(plan, workdir, progress, chunk)
    given = (plan.truth, ready.target, plan.split.train, plan.split.test, ready.groups)
    result: dict[str, Any] = {
        "dataset": plan.split.name,
        "command": " ".join(["ddm", *sys.argv[1:]]),
        "settings": settings.as_json(plan.config),
        "seconds_per_retraining": ready.truth.seconds,
        "versions": versions(),
        "truth": truth.checksum(ready.truth),
        "rows": [],
    }
    before = _judged_before(workdir, result, progress.say)
    for name in names:
        kept = before.get(name, [])
        if kept and kept[0]["program"] == compare.program_of(name, *given):
            progress.say(f"judging {name}: done before")
            result["rows"] += kept
            continue
        progress.say(f"judging {name}" + (": again, it computes something else" if kept else ""))
        begin = time.perf_counter()
        problem, run, data, query, groups = given
        try:
            rows = compare.judge(
                name, problem, ready.truth, run, data, query, groups, say=progress.say
            )
        except Exception as error:  # whatever it is, the others go on and the table shows it
            told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            progress.say(f"  {name} failed: {told}")
            rows = [{"estimator": name, "error": told}]
        result["rows"] += rows
        progress.say(f"  {time.perf_counter() - begin:.1f} s")
        _write(result, workdir, progress)
    result = _write(result, workdir, progress)
    failed = [f"{row['estimator']} ({row['error']})" for row in result["rows"] if "error" in row]
    if failed:
        raise ComparisonError(
            f"{len(failed)} of {len(names)} estimators failed: {'; '.join(failed)}; the scores of "
            f"the others are in {workdir / 'compare.md'}"
        )
    return result


def read_comparison(workdir: Path) -> dict[str, Any]:
    """Read what `compare_estimators` wrote.

    Raises:
        ValueError: when it is damaged or was edited.
    """
    mend = "delete it to judge again"
    return files.read_json(workdir / "compare.json", Comparison, mend)


def _plan(config: Config | Plan) -> Plan:
    return config if isinstance(config, Plan) else make_plan(config)


def _ready(
    plan: Plan, workdir: Path, wanted: Sequence[str], progress: Progress, chunk: int | None
) -> tuple[Results, Truth]:
    """Bring stages up to date, and fill the truth."""
    filling.check_chunk(chunk)
    with alone(workdir, progress):
        open_workdir(workdir, plan.config)
        found = bring(plan, workdir, wanted, progress)
        opened = open_truth(plan, plan.truth, workdir / TRUTH, found.groups)
        # The settings of the truth may be others than before, as it was not refused.
        settings_file.save(plan.config, workdir / CONFIG)
    return found, filled(plan, plan.truth, opened, found.groups, progress, chunk)


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of a comparison, ready to print; `notes` go below."""
    head = ["estimator", "score", "value", "95 % queries", "95 % removals", "ceiling"]
    head += ["of ceiling", "offline", "online"]
    lines = []
    for row in result["rows"]:
        if "error" in row:
            lines.append([row["estimator"], "FAILED", *[""] * (len(head) - 2)])
            continue
        share = row["share_of_ceiling"]
        lines.append(
            [
                row["estimator"],
                row["score"],
                number(row["value"]),
                _interval(row["over_queries"]),
                _interval(row["over_rows"]),
                number(row["ceiling"]),
                f"{share:.0%}" if is_defined(share) else "-",
                in_seconds(row["offline_seconds"]),
                in_seconds(row["online_seconds"]),
            ]
        )
    return head, lines


def notes(result: dict[str, Any]) -> list[str]:
    """What the table has no room for: settings, classes, constant queries, errors."""
    told = []
    for row in result["rows"]:
        if "error" in row:
            told.append(f"{row['estimator']}, FAILED: {row['error']}")
            continue
        parts = []
        if row["candidates"] > 1:
            chosen = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
            parts.append(f"{chosen} (best of {row['candidates']} on the tuning part)")
        if "own_class" in row:
            parts += [
                f"{groups} {number(row[name])} (ceiling {number(row[f'{name}_ceiling'])})"
                for groups, name in (
                    ("groups of the query's class", "own_class"),
                    ("of other classes", "other_class"),
                )
            ]
        if row["undefined"]:
            parts.append(f"{row['undefined']} constant queries left out")
        if parts:
            told.append(f"{row['estimator']}, {row['score']}: {'; '.join(parts)}")
    return told


def _judged_before(
    workdir: Path, result: dict[str, Any], say: Callable[[str], None] = lambda text: None
) -> dict[str, list[dict[str, Any]]]:
    """The rows of estimators that were judged on the same things, without those that failed."""
    if not (workdir / "compare.json").exists():
        return {}
    old = read_comparison(workdir)
    if changes := _made(old).changes(_made(files.plain(result))):
        say(f"judging anew, for {'; '.join(changes)}")
        return {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in old["rows"]:
        if "error" not in row:
            rows.setdefault(row["estimator"], []).append(row)
    return rows


def _made(result: dict[str, Any]) -> Made:
    """What a comparison was made with, beside what each estimator computes."""
    chosen = {
        f"{section}.{name}" if isinstance(told, dict) else section: value
        for section, told in result["settings"].items()
        for name, value in (told.items() if isinstance(told, dict) else [("", told)])
    }
    # Data may be moved, and a run's own check has nothing to do with it.
    chosen = {n: v for n, v in chosen.items() if not n.startswith(("data.data_dir", "check."))}
    versions = {name: result["versions"].get(name) for name in COMPUTES}
    return Made(chosen, {"truth": result["truth"]}, {}, versions)


def _write(result: dict[str, Any], workdir: Path, progress: Progress) -> dict[str, Any]:
    """Write a comparison, with the rows of other estimators that are there and fit."""
    with alone(workdir, progress):
        ours = {row["estimator"] for row in result["rows"]}
        others = _judged_before(workdir, result)
        rows = [row for name, each in others.items() if name not in ours for row in each]
        result = result | {"rows": result["rows"] + rows}
        files.write_json(workdir / "compare.json", result)
        head, lines = table(result)
        marked = [head, ["---"] * len(head), *lines]
        text = "".join("| " + " | ".join(line) + " |\n" for line in marked)
        text += "".join(f"\n{note}\n" for note in notes(result))
        files.write_whole(workdir / "compare.md", text.encode())
        if any("error" not in row for row in result["rows"]):
            files.write_whole(workdir / "compare.png", png(comparison_figure(result), 150))
    return result


def _interval(values: Sequence[Any]) -> str:
    """Without the zero before the point: every value is in [-1, 1]."""
    if not all(map(is_defined, values)):
        return "-"
    return "–".join(f"{value:.3f}".replace("0.", ".", 1) for value in values)
