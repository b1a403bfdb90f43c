"""Render the README's tables from benchmarks/results/*.json.

python benchmarks/render_tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def render(readme: str) -> str:
    """Replace what stands between `<!-- table: name -->` and `<!-- end -->`."""

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        path = RESULTS / f"{name}.json"
        body = TABLES[name](json.loads(path.read_text())) if path.exists() else "not measured yet"
        return f"<!-- table: {name} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, readme, flags=re.DOTALL)


def digits(result: dict[str, Any]) -> str:
    """Single groups and halves."""
    columns = {
        "": _name,
        "rho": lambda row: _score(row.get("rho")),
        "Pearson, all": lambda row: _score(row.get("pearson")),
        "group LDS": lambda row: _score(row.get("group_lds")),
        "example gradients": lambda row: _share(row.get("share_of_retraining")),
        "seconds": lambda row: _share(row.get("seconds_share_of_retraining")),
        "all 50 groups": lambda row: _seconds(row.get("seconds_all_groups")),
    }
    return _table(columns, result["mean"]) + _footer(result)


def mnist(result: dict[str, Any]) -> str:
    """Halves."""
    columns = {
        "": _name,
        "group LDS": lambda row: _score(row.get("group_lds")),
        "example gradients": lambda row: _share(row.get("share_of_retraining")),
        "seconds": lambda row: _share(row.get("seconds_share_of_retraining")),
    }
    return _table(columns, result["mean"]) + _footer(result)


def runs(result: dict[str, Any]) -> str:
    """Whole commands."""

    def agreement(row: dict[str, Any], what: str) -> str:
        each = row[what]
        return " / ".join(_score(each[c]) for c in ("ddm", "grad_dot", "one_retraining"))

    columns = {
        "command": lambda row: f"`{row['command']}`",
        "test accuracy": lambda row: f"{row['test_accuracy']:.1%}",
        "one group out, Pearson: DDM / grad-dot / one retraining": lambda row: agreement(
            row, "single"
        ),
        "half out, LDS: same": lambda row: agreement(row, "halves"),
        "offline": lambda row: _seconds(row["offline_seconds"]),
        "online, all groups": lambda row: _seconds(row["online_seconds"]),
        "one retraining": lambda row: _seconds(row["retraining_seconds"]),
        "whole command": lambda row: _seconds(row["wall_seconds"]),
        "peak memory": lambda row: f"{row['peak_gib']:.1f} GiB",
    }
    rows = [{"command": _command(name)} | row for name, row in result["runs"].items()]
    note = "\n\nSeconds of stages include compilation. "
    return _table(columns, rows) + note + _machine(result)


def _command(name: str) -> str:
    return "ddm run" if name == "digits" else f"ddm run mnist --preset {name}"


def _name(row: dict[str, Any]) -> str:
    parts = [row["estimator"]]
    if row.get("items"):
        parts.append(f"M={row['items']}")
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
    told = ", ".join(f"{_seconds(value)} for M={items}" for items, value in offline.items())
    partitions = ", ".join(result["partitions"])
    return f"\n\nPartitions {partitions}. Offline: {told}. {_machine(result)}"


def _machine(result: dict[str, Any]) -> str:
    versions = result["versions"]
    cores = result["cores"]
    return (
        f"Measured on {cores} {versions['device']} core{'s' if cores > 1 else ''} with JAX "
        f"{versions['jax']}, commit {result['commit']}: `{result['command']}`."
    )


def _table(columns: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    head = "| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns)
    lines = ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return "\n".join([head, *lines])


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:,.0f} %" if value >= 1 else f"{100 * value:.3g} %"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2g} s" if value < 10 else f"{value:.0f} s"


TABLES = {"digits_protocol": digits, "mnist_groups": mnist, "runs": runs}


def main() -> None:
    """Rewrite README.md, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    old = path.read_text()
    new = render(old)
    if check and old != new:
        sys.exit("README.md differs from benchmarks/results; run benchmarks/render_tables.py")
    if not check:
        path.write_text(new)


if __name__ == "__main__":
    main()
