"""Render the tables of README.md and docs/ from benchmarks/results/*.json.

python benchmarks/render_tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cells
import render_answers
import render_comparison
import render_peers
import render_speed

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def render(page: str) -> str:
    """Replace what stands between `<!-- table: name -->` and `<!-- end -->`.

    `name` is a result's, or `result.view` for another view of it.
    """

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        path = RESULTS / f"{name.partition('.')[0]}.json"
        body = TABLES[name](json.loads(path.read_text())) if path.exists() else "not measured yet"
        return f"<!-- table: {name} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w.-]+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def digits(result: dict[str, Any]) -> str:
    """Single groups and halves."""
    columns = _group_columns(result) | {
        "all 50 groups": lambda row: cells.seconds(row.get("seconds_all_groups")),
    }
    return cells.table(columns, result["mean"]) + _footer(result)


def mnist(result: dict[str, Any]) -> str:
    """Single groups and halves."""
    return cells.table(_group_columns(result), result["mean"]) + _footer(result)


def _group_columns(result: dict[str, Any]) -> dict[str, Any]:
    (best,) = (row for row in result["mean"] if row["estimator"] == "perfect predictor")
    return {
        "": _name,
        "rho": lambda row: cells.ranged(row, "rho"),
        "of ceiling": lambda row: cells.of_ceiling(row.get("rho"), best["rho"]),
        "Pearson, all": lambda row: cells.score(row.get("pearson")),
        "group LDS": lambda row: cells.ranged(row, "group_lds"),
        "of ceiling ": lambda row: cells.of_ceiling(row.get("group_lds"), best["group_lds"]),
        "example gradients": lambda row: cells.share(row.get("share_of_retraining")),
        "seconds": lambda row: cells.share(row.get("seconds_share_of_retraining")),
    }


def runs(result: dict[str, Any]) -> str:
    """Whole commands."""

    def agreement(row: dict[str, Any], what: str) -> str:
        each = row[what]
        return " / ".join(cells.score(each[c]) for c in ("ddm", "grad_dot", "one_retraining"))

    columns = {
        "command": lambda row: f"`{row['command']}`",
        "test accuracy": lambda row: f"{row['test_accuracy']:.1%}",
        "one group out, Pearson: DDM / grad-dot / one retraining": lambda row: agreement(
            row, "single"
        ),
        "half out, LDS: same": lambda row: agreement(row, "halves"),
        "offline": lambda row: cells.seconds(row["offline_seconds"]),
        "online, all groups": lambda row: cells.seconds(row["online_seconds"]),
        "one retraining": lambda row: cells.seconds(row["retraining_seconds"]),
        "retraining all / online": lambda row: (
            f"{row['retraining_seconds'] * (row['groups'] + 1) / row['online_seconds']:.2g}"
        ),
        "whole command": lambda row: cells.seconds(row["wall_seconds"]),
        "peak memory": lambda row: f"{row['peak_gib']:.1f} GiB",
    }
    rows = [{"command": _command(name)} | row for name, row in result["runs"].items()]
    note = (
        "\n\nSeconds of stages include compilation; one retraining is the check stage by its "
        "networks, all devices busy, with the few predictions of the check in it. "
    )
    return cells.table(columns, rows) + note + cells.machine(result)


def removal(result: dict[str, Any]) -> str:
    """Flips and the ends of the removal curves."""
    curves = {row["estimator"]: row for row in result["curves"]}
    removed = result["settings"]["removed"]
    columns: dict[str, Any] = {"groups chosen by": lambda row: row["estimator"]}
    for k in removed:
        columns[f"flipped without {k}"] = lambda row, k=k: f"{row[f'flipped_{k}']:.0%}"
    columns["accuracy without the worst 10 %"] = lambda row: cells.percent(
        curves[row["estimator"]]["without_worst"][2]
    )
    columns["on the best 50 % alone"] = lambda row: cells.percent(
        curves[row["estimator"]]["without_worst"][5]
    )
    columns["without the best 50 %"] = lambda row: cells.percent(
        curves[row["estimator"]]["without_best"][5]
    )
    columns["offline"] = lambda row: cells.seconds(row.get("offline_seconds"))
    columns["online"] = lambda row: cells.seconds(row.get("online_seconds"))
    whole = result["curves"][0]["without_worst"][0]
    partitions = ", ".join(map(str, result["partitions"]))
    note = f"\n\nPartitions: {partitions}. With everything the noisy networks reach {whole:.1%}. "
    return cells.table(columns, result["brittleness"]) + note + cells.machine(result)


def kills(result: dict[str, Any]) -> str:
    """One sentence."""
    found = result["result"]
    return (
        f"`{result['command']}`: {found['kills']} times, {found['processes']} processes at a time "
        f"were killed at a random moment, {found['kills_while_filling']} of them in the middle of "
        f"filling {found['rows']:,} rows: {found['rows_lost']} rows lost, "
        f"{found['rows_repeated']} computed twice, outputs "
        f"{'equal' if found['equal_bits'] else 'NOT equal'} to an undisturbed process's bit by bit."
    )


def truth(result: dict[str, Any]) -> str:
    """One sentence."""
    means = result["truth"]["mean_loss"]
    losses = ", ".join(f"{value:.3f} ({what})" for what, value in means.items())
    return (
        f"`ddm truth digits` ends with the checksum `{result['truth']['checksum']}` on JAX "
        f"{result['versions']['jax']}: of every output, rounded to 3 decimals. Their mean loss is "
        f"{losses}."
    )


def _command(name: str) -> str:
    return "ddm run" if name == "digits" else f"ddm run mnist --preset {name}"


def _name(row: dict[str, Any]) -> str:
    parts = [row["estimator"]]
    if row.get("items"):
        parts.append(f"M={row['items']}")
        if row.get("step_items", row["items"]) < row["items"]:
            parts.append(f"{row['step_items']} a step")
    if row.get("update") == "forget":
        parts.append("forget")
    if row.get("steps"):
        parts.append(f"{row['steps']} step{'s' if row['steps'] > 1 else ''}")
    if row.get("rewind"):
        parts.append(f"rewound {row['rewind']:.0%}")
    return ", ".join(parts)


def _footer(result: dict[str, Any]) -> str:
    offline = {
        row["items"]: row["offline_seconds"]
        for row in result["mean"]
        if row["estimator"] == "DDM" and row.get("offline_seconds")
    }
    told = ", ".join(f"{cells.seconds(value)} for M={items}" for items, value in offline.items())
    partitions = ", ".join(result["partitions"])
    return (
        f"\n\nPartition{'s' * (len(result['partitions']) > 1)} {partitions}. Offline: {told}. "
        + (cells.machine(result))
    )


TABLES = {
    "digits_protocol": digits,
    "mnist_groups": mnist,
    "runs": runs,
    "quality": render_answers.wrong_labels,
    "quality.images": render_answers.bad_images,
    "quality.removal": render_answers.removal_curves,
    "quality.keep": render_answers.keep_curves,
    "label_errors": render_answers.label_errors,
    "digits_removal": removal,
    "kill_store": kills,
    "digits_truth": truth,
    "torch_steps": render_peers.torch_steps,
    "peers": render_peers.peers,
    "convolutions": render_speed.convolutions,
    "comparison": render_comparison.main_table,
    "comparison.partitions": render_comparison.partitions,
    "comparison.mislabelled": render_comparison.wrong_labels,
    "points": render_answers.points,
    "hierarchy": render_answers.hierarchy,
    "hierarchy.additivity": render_answers.additivity,
    "unlearning": render_answers.unlearning,
    "unlearning_mnist": render_answers.unlearning,
    "networks": render_answers.likeness,
    "networks.transfer": render_answers.transfer,
    "privacy": render_answers.privacy,
    "cost": render_speed.cost,
    "scaling": render_speed.scaling,
    "scaling.rates": render_speed.rates,
    "scaling.predictions": render_speed.predictions,
}

for _case in (*render_comparison.GROUPS, *render_comparison.POINTS):
    TABLES[f"comparison.{_case}"] = partial(render_comparison.protocol_table, case=_case)


def main() -> None:
    """Rewrite the pages, or with --check say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        old = path.read_text()
        new = render(old)
        if check and old != new:
            sys.exit(f"{path.name} differs from benchmarks/results; run render_tables.py")
        if not check:
            path.write_text(new)


if __name__ == "__main__":
    main()
