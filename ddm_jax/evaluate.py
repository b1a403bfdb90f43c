"""The truth of a work directory, and estimators compared on it: fill, judge, write.

<workdir>/truth/        the truth store, filled by `ddm truth` (any number of processes)
<workdir>/compare.json  the scores of `ddm compare`, with compare.md and compare.png
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddm_jax import compare, metrics, pipeline, store, truth
from ddm_jax import config as settings
from ddm_jax.config import Config
from ddm_jax.plan import Plan, make_plan
from ddm_jax.report import is_defined, number, without_nan
from ddm_jax.truth import Truth
from ddm_jax.types import TrainRun
from ddm_jax.workdir import SILENT, Progress, alone, open_workdir, versions

TRUTH = "truth"  # the folder of the store


class Ready(NamedTuple):
    """A work directory with everything that judging takes."""

    plan: Plan
    target: TrainRun
    groups: np.ndarray  # [N]
    truth: Truth


class ComparisonError(ValueError):
    """Estimators that failed; the scores of the others are written."""


def fill_truth(
    config: Config, workdir: Path, progress: Progress = SILENT, chunk: int | None = None
) -> dict[str, Any]:
    """Fill the truth store of a work directory, and say how noisy the truth is.

    Any number of processes may do this at once. Returns the ceilings of each score, the checksum
    of the outputs and the seconds a network, as written to truth/summary.json.

    Raises:
        ValueError: when the work directory or the store was made with other settings.
    """
    plan = make_plan(config)
    with alone(workdir):
        open_workdir(workdir, config)
        by_network = config.cluster.features == "network"
        target = pipeline.target_stage(plan, workdir, progress) if by_network else None
        groups = pipeline.groups_stage(plan, workdir, progress, target)
    found = _filled(plan, workdir, groups, progress, chunk)
    outputs = [found.full, found.single, found.subsets]
    summary = {
        "networks": sum(array[..., 0].size for array in outputs),
        "seconds_per_network": found.seconds,
        "checksum": store.checksum(np.concatenate([array.ravel() for array in outputs])),
        "ceilings": ceilings(found),
        "versions": versions(),
    }
    text = json.dumps(without_nan(summary), indent=1) + "\n"
    store.write_whole(workdir / TRUTH / "summary.json", text.encode())
    return summary


def prepare(
    config: Config, workdir: Path, progress: Progress = SILENT, chunk: int | None = None
) -> Ready:
    """Train the target network, cut the groups and fill the truth, where that is not done.

    Raises:
        ValueError: when the work directory or the store was made with other settings.
    """
    plan = make_plan(config)
    with alone(workdir):
        open_workdir(workdir, config)
        target = pipeline.target_stage(plan, workdir, progress)
        groups = pipeline.groups_stage(plan, workdir, progress, target)
    keep = truth.declare(plan, int(groups.max()) + 1).keep
    compare.split_parts(keep[keep > 0], len(plan.split.test.x), config.seed)  # enough of both?
    return Ready(plan, target, groups, _filled(plan, workdir, groups, progress, chunk))


def ceilings(found: Truth) -> dict[str, dict[str, Any]]:
    """The ceiling of every score that a truth allows, over all its rows and queries."""
    every = compare.Part(np.arange(len(found.keep)), np.arange(found.subsets.shape[-1]))
    told = {}
    for score in compare.score_names(found):
        runs = compare.true_runs(found, score, every)
        told[score] = compare.ceiling_row(metrics.noise_ceiling(runs))
    return told


def compare_estimators(
    config: Config,
    workdir: Path,
    names: Sequence[str],
    progress: Progress = SILENT,
    chunk: int | None = None,
) -> dict[str, Any]:
    """Judge estimators on the truth of a work directory, which is filled where it is not.

    Writes compare.json after each estimator, so that an interrupted comparison keeps what it has.

    Raises:
        ValueError: for a wrong name or setting, before any work.
        ComparisonError: when estimators failed; they stand in the table with their error.
    """
    compare.check_estimators(names, make_plan(config))
    ready = prepare(config, workdir, progress, chunk)
    plan, found = ready.plan, ready.truth
    result: dict[str, Any] = {
        "dataset": config.data.name,
        "command": " ".join(["ddm", *sys.argv[1:]]),
        "settings": dataclasses.asdict(config),
        "seconds_per_retraining": found.seconds,
        "versions": versions(),
        "rows": [],
    }
    for name in names:
        progress.say(f"judging {name}")
        begin = time.perf_counter()
        try:
            rows = compare.judge(name, plan, found, ready.target, ready.groups, progress.say)
        except Exception as error:  # whatever it is, the others go on and the table shows it
            told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            progress.say(f"  {name} failed: {told}")
            rows = [{"estimator": name, "error": told}]
        result["rows"] += rows
        result["peak_gib"] = peak_gib()
        progress.say(f"  {time.perf_counter() - begin:.1f} s")
        _write(result, workdir)
    failed = [f"{row['estimator']} ({row['error']})" for row in result["rows"] if "error" in row]
    if failed:
        raise ComparisonError(
            f"{len(failed)} of {len(names)} estimators failed: {'; '.join(failed)}; the scores of "
            f"the others are in {workdir / 'compare.md'}"
        )
    return result


def read_comparison(workdir: Path) -> dict[str, Any]:
    """Read what `compare_estimators` wrote."""
    return json.loads((workdir / "compare.json").read_text())


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of a comparison, ready to print."""
    head = ["estimator", "score", "value", "95 % queries", "95 % removals", "ceiling"]
    head += ["offline", "online", "settings chosen"]
    lines = []
    for row in result["rows"]:
        if "error" in row:
            lines.append([row["estimator"], "FAILED", *[""] * (len(head) - 3), row["error"]])
            continue
        undefined = f" ({row['undefined']} undefined)" if row["undefined"] else ""
        lines.append(
            [
                row["estimator"],
                row["score"],
                number(row["value"]) + undefined,
                _interval(row["over_queries"]),
                _interval(row["over_rows"]),
                number(row["ceiling"]),
                _seconds(row["offline_seconds"]),
                _seconds(row["online_seconds"]),
                f"{_settings(row)} (best of {row['candidates']} on the tuning part)"
                if row["candidates"] > 1
                else "-",
            ]
        )
    return head, lines


def peak_gib() -> float:
    """The most memory that this process held, GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _filled(
    plan: Plan, workdir: Path, groups: np.ndarray, progress: Progress, chunk: int | None
) -> Truth:
    opened = truth.open_truth(plan, workdir / TRUTH, groups)
    # The settings of the truth may be others than before, as it was not refused.
    settings.save(plan.config, workdir / "config.json")
    before = store.status(opened)
    if before.done < before.declared:
        what = f"retraining {before.declared - before.done} of {before.declared} networks"
        progress.say(what)
        show = progress.track(what, before.declared)
        begin = time.perf_counter()

        def tell(done: int, note: str) -> None:
            rate = (time.perf_counter() - begin) / max(done - before.done, 1)
            show(done, f"{note}, {rate * (before.declared - done):.0f} s left")

        truth.fill(plan, opened, groups, chunk, tell)
        progress.say(f"  {time.perf_counter() - begin:.1f} s")
    else:
        progress.say(f"{before.declared} retrained networks: done before")
    return truth.read_truth(plan, opened)


def _write(result: dict[str, Any], workdir: Path) -> None:
    from ddm_jax.figures import comparison_figure

    (workdir / "compare.json").write_text(json.dumps(without_nan(result), indent=1) + "\n")
    head, lines = table(result)
    marked = [head, ["---"] * len(head), *lines]
    text = "".join("| " + " | ".join(line) + " |\n" for line in marked)
    (workdir / "compare.md").write_text(text)
    if any("error" not in row for row in result["rows"]):
        comparison_figure(result).savefig(workdir / "compare.png", dpi=150)


def _settings(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row["settings"].items())


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def _interval(values: Sequence[Any]) -> str:
    """Without the zero before the point: every value is in [-1, 1]."""
    if not all(map(is_defined, values)):
        return "-"
    return "–".join(f"{value:.3f}".replace("0.", ".", 1) for value in values)
