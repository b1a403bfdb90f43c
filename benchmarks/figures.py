"""Draw docs/comparison.png and docs/quality.png from benchmarks/results/*.json.

python benchmarks/figures.py
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from render import GROUPS, RESULTS, ROOT, Result, Row, by_estimator, load


def comparison(result: Result) -> Figure:
    """Share of the ceiling against online seconds a removal, a panel a protocol of groups."""
    measured = {
        case: [row for row in by_estimator(result, case, "LDS").values() if "value" in row]
        for case in GROUPS
    }
    shown = [case for case, rows in measured.items() if len(rows) > 2]
    lines = -(-len(shown) // 2)
    figure = Figure(figsize=(11, 6.4 * lines), layout="constrained")
    panels = figure.subplots(lines, 2, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, case in zip(panels.flat, shown, strict=False):
        for row in measured[case]:
            colour = "#c44e52" if row["estimator"] == "ddm" else "#4c72b0"
            axes.plot(_cost(row), row["share_of_ceiling"], "o", color=colour)
        _label(axes, measured[case])
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


def _cost(row: Row) -> float:
    return row["online_seconds"] / row["counterfactuals"]


def _label(axes: Any, rows: list[Row]) -> None:
    """Names beside the panel at the height of their marks, moved down where they would overlap."""
    free = 1.04
    for row in sorted(rows, key=lambda row: -row["share_of_ceiling"]):
        height = min(row["share_of_ceiling"], free)
        free = height - 0.025
        axes.annotate(
            row["estimator"].replace("_", "-"),
            (_cost(row), row["share_of_ceiling"]),
            (1.02, height),
            textcoords=axes.get_yaxis_transform(),
            fontsize=7,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.8", "linewidth": 0.4},
            annotation_clip=False,
        )


def quality(result: Result) -> Figure:
    """Removal and keep curves, a panel a case and kind."""
    cases = list(dict.fromkeys(row["case"] for row in result["curves"]))
    kinds = {
        "uniform": "a tenth flipped to any class",
        "nearest": "a tenth flipped to the nearest class",
        "nothing": "nothing spoilt",
    }
    figure = Figure(figsize=(12, 3.7 * len(cases)), layout="constrained")
    panels = figure.subplots(len(cases), len(kinds), squeeze=False)
    for line, case in zip(panels, cases, strict=True):
        for axes, (kind, title) in zip(line, kinds.items(), strict=True):
            fractions = result["settings"]["useless" if kind == "nothing" else "without"]
            for row in result["curves"]:
                if (row["case"], row["kind"]) != (case, kind):
                    continue
                style: dict[str, Any] = {"linewidth": 2.4 if row["order"][0] == "*" else 1.2}
                if row["order"] in ("random", "the flipped ones"):
                    style |= {
                        "color": "0.5",
                        "linestyle": ":" if row["order"] == "random" else "--",
                    }
                values = [row[f"without_{part:g}"] for part in fractions]
                axes.plot(fractions, values, label=row["order"].strip("*"), **style)
            axes.set_title(f"{case}: {title}", fontsize=10)
            axes.set_xlabel("part of the training data removed")
            axes.set_ylabel("test accuracy")
            axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    for draw, dpi in ((comparison, 120), (quality, 110)):
        result = load(RESULTS / f"{draw.__name__}.json")
        draw(result).savefig(ROOT / "docs" / f"{draw.__name__}.png", dpi=dpi)
