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
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ddm_jax
from ddm_jax import compare, filling, metrics, pipeline, store, truth
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
    filling.check_chunk(chunk)
    with alone(workdir):
        open_workdir(workdir, config)
        by_network = config.cluster.features == "network"
        target = pipeline.target_stage(plan, workdir, progress) if by_network else None
        groups = pipeline.groups_stage(plan, workdir, progress, target)
    found = _filled(plan, workdir, groups, progress, chunk)
    summary = {
        "networks": sum(array[..., 0].size for array in (found.full, found.single, found.subsets)),
        "seconds_per_network": found.seconds,
        "checksum": checksum(found),
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
    filling.check_chunk(chunk)
    keep = np.repeat(config.truth.keep, config.truth.subsets)
    compare.split_parts(keep, len(plan.split.test.x), config.seed)  # is there enough of both?
    with alone(workdir):
        open_workdir(workdir, config)
        target = pipeline.target_stage(plan, workdir, progress)
        groups = pipeline.groups_stage(plan, workdir, progress, target)
    return Ready(plan, target, groups, _filled(plan, workdir, groups, progress, chunk))


def checksum(found: Truth) -> str:
    """SHA-256 of all outputs, rounded to 3 decimals."""
    outputs = [array.ravel() for array in (found.full, found.single, found.subsets)]
    return store.checksum(np.concatenate(outputs))


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

    Writes compare.json after each estimator. One that was judged before on the same truth, with
    the same settings and code, is not judged again: an interrupted comparison goes on where it
    was, and others can be added to it. The table holds them all, those that were named first.

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
        "code": truth.source_digest(sorted(Path(ddm_jax.__file__).parent.rglob("*.py"))),
        "truth": checksum(found),
        "rows": [],
    }
    before = _judged_before(workdir, result)
    for name in names:
        if name in before:
            progress.say(f"judging {name}: done before")
            result["rows"] += before.pop(name)
            continue
        progress.say(f"judging {name}")
        begin = time.perf_counter()
        try:
            rows = compare.judge(name, plan, found, ready.target, ready.groups, progress.say)
            rows = [row | {"peak_gib": peak_gib()} for row in rows]
        except Exception as error:  # whatever it is, the others go on and the table shows it
            told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            progress.say(f"  {name} failed: {told}")
            rows = [{"estimator": name, "error": told}]
        result["rows"] += rows
        progress.say(f"  {time.perf_counter() - begin:.1f} s")
        _write(result | {"rows": result["rows"] + list(chain(*before.values()))}, workdir)
    result["rows"] += chain(*before.values())
    _write(result, workdir)
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
        ValueError: when it is damaged.
    """
    path = workdir / "compare.json"
    try:
        found = json.loads(path.read_text())
        if {"settings", "rows"} <= found.keys():
            return found
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is not what `ddm compare` writes; delete it to judge again")


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
                _seconds(row["offline_seconds"]),
                _seconds(row["online_seconds"]),
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
    before = filling.status(opened)
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


def _judged_before(workdir: Path, result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of estimators that were judged on the same things, without those that failed."""
    if not (workdir / "compare.json").exists():
        return {}
    same = ("settings", "versions", "code", "truth")
    old, new = read_comparison(workdir), json.loads(json.dumps(without_nan(result)))
    for told in (old, new):  # data may be moved
        told["settings"]["data"].pop("data_dir")
    if any(old.get(name) != new[name] for name in same):
        return {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in old["rows"]:
        if "error" not in row:
            rows.setdefault(row["estimator"], []).append(row)
    return rows


def _write(result: dict[str, Any], workdir: Path) -> None:
    from ddm_jax.figures import comparison_figure

    text = json.dumps(without_nan(result), indent=1) + "\n"
    store.write_whole(workdir / "compare.json", text.encode())
    head, lines = table(result)
    marked = [head, ["---"] * len(head), *lines]
    text = "".join("| " + " | ".join(line) + " |\n" for line in marked)
    text += "".join(f"\n{note}\n" for note in notes(result))
    (workdir / "compare.md").write_text(text)
    if any("error" not in row for row in result["rows"]):
        comparison_figure(result).savefig(workdir / "compare.png", dpi=150)


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def _interval(values: Sequence[Any]) -> str:
    """Without the zero before the point: every value is in [-1, 1]."""
    if not all(map(is_defined, values)):
        return "-"
    return "–".join(f"{value:.3f}".replace("0.", ".", 1) for value in values)
