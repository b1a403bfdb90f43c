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
    columns = _group_columns(result) | {
        "all 50 groups": lambda row: _seconds(row.get("seconds_all_groups")),
    }
    return _table(columns, result["mean"]) + _footer(result)


def mnist(result: dict[str, Any]) -> str:
    """Single groups and halves."""
    return _table(_group_columns(result), result["mean"]) + _footer(result)


def _group_columns(result: dict[str, Any]) -> dict[str, Any]:
    (best,) = (row for row in result["mean"] if row["estimator"] == "perfect predictor")
    return {
        "": _name,
        "rho": lambda row: _ranged(row, "rho"),
        "of ceiling": lambda row: _of_ceiling(row.get("rho"), best["rho"]),
        "Pearson, all": lambda row: _score(row.get("pearson")),
        "group LDS": lambda row: _ranged(row, "group_lds"),
        "of ceiling ": lambda row: _of_ceiling(row.get("group_lds"), best["group_lds"]),
        "example gradients": lambda row: _share(row.get("share_of_retraining")),
        "seconds": lambda row: _share(row.get("seconds_share_of_retraining")),
    }


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


def dattri(result: dict[str, Any]) -> str:
    """Point LDS with one run a half and with four."""
    names = {"dattri-lr": "logistic regression", "dattri-mlp": "MLP"}
    columns = {
        "": lambda row: f"{names[row['preset']]}: {row['estimator'].replace('_', '-')}",
        "published, one run": lambda row: _score(row.get("published_one_run")),
        "one run": lambda row: _score(row["value_one_run"]),
        "four runs": lambda row: _score(row["value"]),
        "of ceiling": lambda row: _of_ceiling(row["value"], row["ceiling"]),
        "95 % over halves": lambda row: _interval(row["over_rows"]),
    }
    seconds = ", ".join(
        f"{names[row['preset']]} {_seconds(row['seconds_per_retraining'])}"
        for row in result["rows"]
        if "seconds_per_retraining" in row
    )
    note = f"\n\n50 halves, 500 queries. A retraining took: {seconds}. "
    return _table(columns, result["rows"]) + note + _machine(result)


def convnets(result: dict[str, Any]) -> str:
    """Ceilings and scores of both data sets."""
    names = {"mnist-convnet": "MNIST 5,000", "cifar10-convnet": "CIFAR-10 10,000"}
    rows = []
    for preset, found in result["presets"].items():
        for score, row in found["ceilings"].items():
            rows.append(
                {"what": f"{names[preset]}, {score}", "estimator": "one exact retraining"}
                | {"value": row["one_retraining"], "online_seconds": None}
                | {"ceiling": row["ceiling"], "interval": row["ceiling_interval"]}
                | {"runs": row["runs"], "needed": row["runs_for_ceiling_0.8"]}
                | {"seconds": found["seconds_per_retraining"]}
            )
        for row in found["rows"]:
            rows.append(row | {"what": f"{names[preset]}, {row['score']}"})
    columns = {
        "": lambda row: f"{row['what']}: {row['estimator'].replace('_', '-')}",
        "Spearman": lambda row: _score(row["value"]),
        "95 % over removals": lambda row: _interval(row["over_rows"]) if "over_rows" in row else "",
        "ceiling": lambda row: _score(row["ceiling"]),
        "of ceiling": lambda row: _of_ceiling(row["value"], row["ceiling"]),
        "runs": lambda row: str(row["runs"]),
        "runs for a ceiling of .8": lambda row: str(row["needed"]) if "needed" in row else "",
        "offline": lambda row: _seconds(row.get("offline_seconds")),
        "online": lambda row: (
            f"{_seconds(row['seconds'])} a network"
            if "seconds" in row
            else f"{_seconds(row['online_seconds'])} for {row['counterfactuals']}"
        ),
    }
    note = f"\n\nPartition {result['partition']}. "
    return _table(columns, sorted(rows, key=lambda row: row["what"])) + note + _machine(result)


def mislabelled(result: dict[str, Any]) -> str:
    """AUC, average precision and what is found after inspecting a tenth, by case and noise."""
    columns = {
        "": lambda row: f"{row['case']}: {row['estimator']}",
        "uniform: AUC": lambda row: _score(row["uniform"]["auc"]),
        "average precision": lambda row: _score(row["uniform"]["average_precision"]),
        "found in 10 %": lambda row: f"{row['uniform']['found_0.1']:.0%}",
        "nearest class: AUC": lambda row: _score(row.get("nearest", {}).get("auc")),
        "average precision ": lambda row: _score(row.get("nearest", {}).get("average_precision")),
        "found in 10 % ": lambda row: (
            f"{row['nearest']['found_0.1']:.0%}" if "nearest" in row else ""
        ),
        "offline": lambda row: _seconds(row["uniform"].get("offline_seconds")),
        "online": lambda row: _seconds(row["uniform"].get("online_seconds")),
    }
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in result["rows"]:
        key = (row["case"], row["estimator"])
        rows.setdefault(key, {"case": key[0], "estimator": key[1]})[row["noise"]] = row
    partitions = ", ".join(map(str, result["settings"]["partitions"]))
    note = f"\n\nPartitions: {partitions}. "
    return _table(columns, list(rows.values())) + note + _machine(result)


def removal(result: dict[str, Any]) -> str:
    """Flips and the ends of the removal curves."""
    curves = {row["estimator"]: row for row in result["curves"]}
    removed = result["settings"]["removed"]
    columns: dict[str, Any] = {"groups chosen by": lambda row: row["estimator"]}
    for k in removed:
        columns[f"flipped without {k}"] = lambda row, k=k: f"{row[f'flipped_{k}']:.0%}"
    columns["accuracy without the worst 10 %"] = lambda row: _percent(
        curves[row["estimator"]]["without_worst"][2]
    )
    columns["on the best 50 % alone"] = lambda row: _percent(
        curves[row["estimator"]]["without_worst"][5]
    )
    columns["without the best 50 %"] = lambda row: _percent(
        curves[row["estimator"]]["without_best"][5]
    )
    columns["offline"] = lambda row: _seconds(row.get("offline_seconds"))
    columns["online"] = lambda row: _seconds(row.get("online_seconds"))
    whole = result["curves"][0]["without_worst"][0]
    partitions = ", ".join(map(str, result["partitions"]))
    note = f"\n\nPartitions: {partitions}. With everything the noisy networks reach {whole:.1%}. "
    return _table(columns, result["brittleness"]) + note + _machine(result)


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
    return (
        f"\n\nPartition{'s' * (len(result['partitions']) > 1)} {partitions}. Offline: {told}. "
        + (_machine(result))
    )


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


def _ranged(row: dict[str, Any], name: str) -> str:
    if row.get(name) is None:
        return ""
    low, high = row[f"{name}_range"]
    return _score(row[name]) + (f" ({low:.2f}–{high:.2f})" if low < high else "")


def _interval(values: list[float]) -> str:
    return "–".join(f"{value:.2f}" for value in values)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _of_ceiling(value: float | None, ceiling: float) -> str:
    return "" if value is None else f"{value / ceiling:.0%}"


def _share(value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:,.0f} %" if value >= 1 else f"{100 * value:.3g} %"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2g} s" if value < 10 else f"{value:.0f} s"


TABLES = {
    "digits_protocol": digits,
    "mnist_groups": mnist,
    "runs": runs,
    "dattri_protocol": dattri,
    "convnet_groups": convnets,
    "mislabelled": mislabelled,
    "digits_removal": removal,
    "kill_store": kills,
    "digits_truth": truth,
}


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
