"""The tables of comparison.json, and its figure: score against online cost.

python benchmarks/render_comparison.py    # writes docs/comparison.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cells
import numpy as np

ROOT = Path(__file__).parent.parent
GROUPS = {  # protocols of groups
    "digits": "digits, MLP",
    "mnist": "MNIST, MLP",
    "mnist-convnet": "MNIST, ConvNet",
    "cifar10-convnet": "CIFAR-10, ConvNet",
}
POINTS = {"dattri-lr": "MNIST, logistic", "dattri-mlp": "MNIST, MLP"}
WRONG = ("mislabelled digits", "mislabelled MNIST, logistic")
# Read off the figures of dattri's paper (arXiv 2410.04555), one run a half.
PUBLISHED = {
    ("influence_exact", "dattri-lr"): 0.798,
    ("influence_cg", "dattri-lr"): 0.798,
    ("influence_cg", "dattri-mlp"): 0.256,
    ("influence_lissa", "dattri-lr"): 0.787,
    ("influence_lissa", "dattri-mlp"): 0.136,
    ("influence_arnoldi", "dattri-lr"): 0.310,
    ("influence_arnoldi", "dattri-mlp"): 0.087,
    ("tracin", "dattri-lr"): 0.330,
    ("tracin", "dattri-mlp"): 0.144,
    ("grad_dot", "dattri-lr"): 0.327,
    ("grad_dot", "dattri-mlp"): 0.100,
    ("grad_cos", "dattri-lr"): 0.191,
    ("grad_cos", "dattri-mlp"): 0.122,
    ("representer", "dattri-lr"): 0.188,
    ("representer", "dattri-mlp"): 0.093,
    ("trak", "dattri-lr"): 0.413,
    ("trak", "dattri-mlp"): 0.112,
    ("trak_10", "dattri-lr"): 0.643,
    ("trak_10", "dattri-mlp"): 0.331,
}


def name_of(row: dict[str, Any]) -> str:
    """An estimator's name in words."""
    return row["estimator"].replace("_", "-")


def main_table(result: dict[str, Any]) -> str:
    """An estimator a row: LDS of every protocol, and what all halves cost online on MNIST."""
    found = {case: _by_estimator(result, case, "LDS") for case in (*GROUPS, *POINTS)}
    shown = {case: rows for case, rows in found.items() if rows}
    every = list(dict.fromkeys(name for rows in shown.values() for name in rows))

    def of(name: str, case: str) -> dict[str, Any]:
        return shown[case].get(name, {})

    def reach(name: str) -> float:
        shares = [of(name, case).get("share_of_ceiling") for case in GROUPS if case in shown]
        known = [value for value in shares if value is not None]
        return -sum(known) / len(known) if known else 1.0

    # Values of data as such say nothing of a query: they are near zero here.
    names = [name for name in every if name == "random" or reach(name) < -0.1]
    columns: dict[str, Any] = {"": lambda name: name.replace("_", "-")}
    for case in shown:
        kind = "" if case in GROUPS else "points, "
        title = f"{kind}{(GROUPS | POINTS)[case]}"
        columns[title] = lambda name, case=case: _scored(of(name, case))
    if "mnist" in shown:
        columns["offline, MNIST"] = lambda name: cells.seconds(
            of(name, "mnist").get("offline_seconds")
        )
        columns["online, a half"] = lambda name: _each(of(name, "mnist"))
    ceilings: dict[str, Any] = {"": "perfect predictor"}
    for case, rows in shown.items():
        ceilings[case] = next((r["ceiling"] for r in rows.values() if "ceiling" in r), None)
    body = cells.table(columns, sorted(names, key=reach))  # type: ignore[arg-type]
    top = " | ".join(cells.score(ceilings[case]) for case in shown)
    rest = " |" * (len(columns) - len(shown) - 1)
    head, line, *lines = body.split("\n")
    body = "\n".join([head, line, f"| *perfect predictor* | {top} |{rest}", *lines])
    return body + f"\n\nPartition {result['partition']}. " + cells.machine(result)


def protocol_table(result: dict[str, Any], case: str) -> str:
    """Everything that is known of one protocol of groups or points."""
    rows = result["protocols"].get(case, {"rows": []})["rows"]
    order = [("value" in r, r.get("score", ""), r.get("value") or -1.0) for r in rows]
    rows = [row for _, row in sorted(zip(order, rows, strict=True), key=lambda p: p[0])][::-1]
    columns = {
        "": name_of,
        "score": lambda row: row.get("score", row.get("error", "")),
        "value": lambda row: cells.score(row.get("value")),
        "95 % over queries": lambda row: _interval(row.get("over_queries")),
        "95 % over removals": lambda row: _interval(row.get("over_rows")),
        "ceiling": lambda row: cells.score(row.get("ceiling")),
        "of ceiling": lambda row: _percent(row.get("share_of_ceiling")),
    }
    if case in POINTS:
        columns |= {
            "one run": lambda row: cells.score(row.get("value_one_run")),
            "published, one run": lambda row: cells.score(PUBLISHED.get((row["estimator"], case))),
        }
    columns |= {
        "settings": lambda row: ", ".join(f"{k} {v}" for k, v in row.get("settings", {}).items()),
        "offline": lambda row: cells.seconds(row.get("offline_seconds")),
        "online": lambda row: cells.seconds(row.get("online_seconds")),
        "online GFLOP": lambda row: _short(row.get("online_gflop")),
        "peak memory": lambda row: f"{row['peak_gib']:.1f} GiB" if "peak_gib" in row else "",
    }
    taken = result["protocols"].get(case, {}).get("seconds_per_retraining")
    note = f"\n\nOne retraining takes {cells.seconds(taken)}. " if taken else "\n\n"
    needed = {r["score"]: r["runs_for_ceiling_0.8"] for r in rows if "runs_for_ceiling_0.8" in r}
    if needed:
        told = ", ".join(f"{runs} ({score})" for score, runs in sorted(needed.items()))
        note += f"Runs that a ceiling of .8 takes: {told}. "
    return cells.table(columns, rows) + note + cells.machine(result)


def wrong_labels(result: dict[str, Any]) -> str:
    """AUC and average precision of both cases."""
    found = {case: _by_estimator(result, case, "") for case in WRONG}
    found = {case: rows for case, rows in found.items() if rows}
    names = list(dict.fromkeys(name for rows in found.values() for name in rows))
    names.sort(key=lambda name: -max(found[case].get(name, {}).get("auc", 0.0) for case in found))
    columns: dict[str, Any] = {"": lambda name: name.replace("_", "-")}
    for number, case in enumerate(found):
        title, gap = case.removeprefix("mislabelled "), " " * number
        columns[f"{title}: AUC"] = lambda name, case=case: cells.score(
            found[case].get(name, {}).get("auc")
        )
        columns[f"average precision{gap}"] = lambda name, case=case: cells.score(
            found[case].get(name, {}).get("average_precision")
        )
        columns[f"seconds{gap}"] = lambda name, case=case: cells.seconds(
            found[case].get(name, {}).get("seconds")
        )
        columns[f"settings{gap}"] = lambda name, case=case: ", ".join(
            f"{k} {v}" for k, v in found[case].get(name, {}).get("settings", {}).items()
        )
    return cells.table(columns, names) + "\n\n" + cells.machine(result)  # type: ignore[arg-type]


def partitions(result: dict[str, Any]) -> str:
    """Mean and range over the partitions of each protocol that was measured on several."""
    others = sorted(ROOT.glob("benchmarks/results/comparison_[0-9]*.json"))
    every = [result, *(json.loads(path.read_text()) for path in others)]
    measured = {case: [one for one in every if case in one["protocols"]] for case in GROUPS}
    found = {
        (case, score): [_by_estimator(one, case, score) for one in several]
        for case, several in measured.items()
        for score in ("leave-one-out", "LDS")
        if len(several) > 1
    }

    def values(name: str, key: tuple[str, str], field: str = "value") -> list[float]:
        """Of an estimator that was judged on all of the protocol's partitions."""
        each = [rows.get(name, {}).get(field) for rows in found[key]]
        return [] if None in each else each  # type: ignore[return-value]

    names = {name: None for rows in found.values() for name in rows[-1]}
    order = [name for name in names if any(values(name, key) for key in found)]
    order.sort(key=lambda name: -sum(v for key in found for v in values(name, key)))
    columns: dict[str, Any] = {"": lambda name: name.replace("_", "-")}
    for case, score in found:
        title = f"{GROUPS[case]}: {'halves' if score == 'LDS' else 'one group'}"
        columns[title] = lambda name, key=(case, score): _mean_and_range(values(name, key))
    head, line, *lines = cells.table(columns, order).split("\n")  # type: ignore[arg-type]
    best = [np.mean([v for name in order for v in values(name, key, "ceiling")]) for key in found]
    top = " | ".join(cells.score(float(value)) for value in best)
    body = "\n".join([head, line, f"| *perfect predictor* | {top} |", *lines])
    told = "; ".join(
        f"{GROUPS[case]}: {', '.join(str(one['partition']) for one in several)}"
        for case, several in measured.items()
        if len(several) > 1
    )
    return f"{body}\n\nPartitions: {told}. {cells.machine(every[-1])}"


def figure(result: dict[str, Any]) -> Any:
    """Share of the ceiling against online seconds a removal, a panel a protocol of groups."""
    from matplotlib.figure import Figure

    measured = {
        case: [r for r in _by_estimator(result, case, "LDS").values() if "value" in r]
        for case in GROUPS
    }
    shown = [case for case, rows in measured.items() if len(rows) > 2]
    lines = -(-len(shown) // 2)
    figure = Figure(figsize=(11, 6.4 * lines), layout="constrained")
    panels = figure.subplots(lines, 2, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, case in zip(panels.flat, shown, strict=False):
        rows = measured[case]
        for row in rows:
            cost = row["online_seconds"] / row["counterfactuals"]
            colour = "#c44e52" if row["estimator"] == "ddm" else "#4c72b0"
            axes.plot(cost, row["share_of_ceiling"], "o", color=colour)
        _label(axes, rows)
        axes.axhline(1.0, color="0.4", linewidth=0.8, linestyle="--")
        taken = result["protocols"][case].get("seconds_per_retraining")
        if taken:
            axes.axvline(taken, color="0.4", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_ylim(-0.1, 1.05)
        axes.set_title(GROUPS[case])
        axes.set_xlabel("online seconds a removal")
        axes.grid(alpha=0.2)
    for axes in panels[:, 0]:
        axes.set_ylabel("LDS as a share of the ceiling")
    return figure


def _label(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Names beside the panel at the height of their marks, moved down where they would overlap."""
    free = 1.04
    for row in sorted(rows, key=lambda row: -row["share_of_ceiling"]):
        cost = row["online_seconds"] / row["counterfactuals"]
        height = min(row["share_of_ceiling"], free)
        free = height - 0.025
        axes.annotate(
            name_of(row),
            (cost, row["share_of_ceiling"]),
            (1.02, height),
            textcoords=axes.get_yaxis_transform(),
            fontsize=7,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.8", "linewidth": 0.4},
            annotation_clip=False,
        )


def _by_estimator(result: dict[str, Any], case: str, score: str) -> dict[str, dict[str, Any]]:
    rows = result["protocols"].get(case, {"rows": []})["rows"]
    return {r["estimator"]: r for r in rows if "error" in r or score in r.get("score", "")}


def _scored(row: dict[str, Any]) -> str:
    if "error" in row:
        return "too slow" if "minutes" in row["error"] else "refused"
    return cells.score(row.get("value"))


def _mean_and_range(values: list[float]) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.3f} ({min(values):.2f}–{max(values):.2f})"


def _each(row: dict[str, Any]) -> str:
    if "online_seconds" not in row:
        return ""
    return cells.seconds(row["online_seconds"] / row["counterfactuals"])


def _interval(values: list[float] | None) -> str:
    return cells.interval(values) if values and None not in values else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    path = ROOT / "benchmarks" / "results" / "comparison.json"
    figure(json.loads(path.read_text())).savefig(ROOT / "docs" / "comparison.png", dpi=120)
