"""Tables of points, hierarchy, additivity, unlearning and data quality; the figure of the last.

python benchmarks/render_answers.py    # writes docs/quality.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cells

ROOT = Path(__file__).parent.parent


def _partitions(result: dict[str, Any]) -> str:
    told = ", ".join(map(str, result["partitions"]))
    return f"Partition{'s' * (len(result['partitions']) > 1)} {told}."


def points(result: dict[str, Any]) -> str:
    """LDS of single points."""
    columns = {
        "": lambda row: row["estimator"],
        "LDS": lambda row: (
            cells.ranged(row, "group_lds")
            if "group_lds_range" in row
            else cells.score(row["group_lds"])
        ),
        "judged by one run": lambda row: cells.score(row.get("one_run")),
        "offline": lambda row: cells.seconds(row.get("offline_seconds")),
        "online": lambda row: cells.seconds(row.get("online_seconds")),
    }
    parts = [
        "Digits, 1,000 points:\n\n" + cells.table(columns, result["digits"]),
    ]
    if "dattri" in result:
        title = f"dattri's MLP, 5,000 points, partition {result['partitions'][0]} (published: "
        title += "TRAK-50 .446, the best of one network .256; both judged by one run):\n\n"
        parts.append(title + cells.table(columns, result["dattri"]))
    return "\n\n".join(parts) + f"\n\n{_partitions(result)} " + cells.machine(result)


def hierarchy(result: dict[str, Any]) -> str:
    """The flat matrix and opened nodes."""
    columns = {
        "": lambda row: row["estimator"],
        "updates a query": lambda row: f"{row['updates']:.0f}",
        "LDS": lambda row: cells.ranged(row, "group_lds"),
        "one leaf out, Pearson": lambda row: cells.ranged(row, "pearson"),
        "one leaf out, rho": lambda row: cells.ranged(row, "rho"),
    }
    rows = [row for row in result["hierarchy"] if "updates" in row]
    return cells.table(columns, rows) + f"\n\n{_partitions(result)} " + cells.machine(result)


def additivity(result: dict[str, Any]) -> str:
    """How far effects add up, and what predicts the retrained joint effects."""
    columns = {
        "gone together": lambda row: row["subsets"],
        "by": lambda row: row["by"],
        "joint with summed, Pearson": lambda row: cells.ranged(row, "correlation"),
        "slope": lambda row: cells.ranged(row, "slope"),
        "to the retrained joint effect: sum": lambda row: cells.ranged(row, "sum_to_truth"),
        "datamodel": lambda row: cells.ranged(row, "datamodel_to_truth"),
        "directly": lambda row: cells.ranged(row, "joint_to_truth"),
    }
    table = cells.table(columns, result["additivity"])
    return table + f"\n\n{_partitions(result)} " + cells.machine(result)


def unlearning(result: dict[str, Any]) -> str:
    """Accuracies after forgetting, beside retraining."""

    def value(row: dict[str, Any], name: str) -> str:
        return f"{row[name]:.3f} ± {row[f'{name}_deviation']:.3f}"

    columns = {
        "forgotten": lambda row: f"{row['case']} ({row['partition']}): {row['gone']}",
        "by": lambda row: row["method"],
        "accuracy: forgotten": lambda row: value(row, "forgotten"),
        "kept": lambda row: value(row, "kept"),
        "test": lambda row: value(row, "test"),
        "membership AUC": lambda row: value(row, "membership"),
        "within": lambda row: f"{row['within']} of 3",
        "KLOM": lambda row: f"{row['klom']:.1f}",
        "time of retraining": lambda row: cells.share(row.get("share_of_retraining")),
    }
    seeds = result["settings"]["seeds"]
    note = (
        f"\n\nMeans and standard deviations of {seeds} networks; KLOM from half of them "
        "(retraining: one half against the other, for *within* too). "
    )
    return cells.table(columns, result["rows"]) + note + cells.machine(result)


def wrong_labels(result: dict[str, Any]) -> str:
    """Average precision for flipped labels."""
    return _detection(result, ("uniform", "nearest"))


def bad_images(result: dict[str, Any]) -> str:
    """Average precision for spoilt and copied images."""
    return _detection(result, ("blurred", "noisy", "occluded", "copied"))


def _detection(result: dict[str, Any], kinds: tuple[str, ...]) -> str:
    found = {(row["case"], row["kind"], row["score"]): row for row in result["detection"]}
    names = list(dict.fromkeys(score for _, kind, score in found if kind in kinds))
    names = [name for name in names if name != "*least influential*"]  # for the keep curves
    columns: dict[str, Any] = {"": lambda row: row["score"]}
    for case in dict.fromkeys(case for case, _, _ in found):
        for kind in kinds:
            best = max(
                found[case, kind, name]["average_precision"]
                for name in names
                if (case, kind, name) in found
            )

            def cell(row: dict[str, Any], key: tuple[str, str] = (case, kind), best=best) -> str:
                there = found.get((*key, row["score"]))
                told = cells.score(there and there["average_precision"])
                return f"**{told}**" if there and there["average_precision"] == best else told

            columns[f"{case}: {kind}"] = cell
    rows = [{"score": name} for name in names]
    return cells.table(columns, rows) + f"\n\n{_by_case(result)} " + cells.machine(result)


def label_errors(result: dict[str, Any]) -> str:
    """How many of the real errors are among the labels that one looks at first."""
    errors = result["rows"][0]["errors"]
    columns: dict[str, Any] = {"": lambda row: row["score"]}
    for count in result["settings"]["looked_at"]:
        columns[f"among the first {count}"] = lambda row, key=f"among_{count}": (
            f"{row[key]:.1f} of {errors}"
        )
    columns["average precision"] = lambda row: cells.score(row["average_precision"])
    columns["AUC"] = lambda row: cells.score(row["auc"])
    columns["time"] = lambda row: cells.seconds(row["seconds"])
    return (
        cells.table(columns, result["rows"]) + f"\n\n{_partitions(result)} " + cells.machine(result)
    )


def removal_curves(result: dict[str, Any]) -> str:
    """Test accuracy without the most suspect points."""
    return _curves(result, ("uniform", "nearest"), result["settings"]["without"])


def keep_curves(result: dict[str, Any]) -> str:
    """Test accuracy without the least useful points."""
    return _curves(result, ("nothing",), result["settings"]["useless"])


def _curves(result: dict[str, Any], kinds: tuple[str, ...], fractions: list[float]) -> str:
    columns: dict[str, Any] = {
        "": lambda row: f"{row['case']}{_spoilt(row)}: {row['order']}",
        **{
            f"without {part:.0%}": lambda row, part=part: cells.percent(row[f"without_{part:g}"])
            for part in fractions
        },
    }
    rows = [row for row in result["curves"] if row["kind"] in kinds]
    note = f"\n\nMeans of {result['settings']['seeds']} networks. {_by_case(result)} "
    return cells.table(columns, rows) + note + cells.machine(result)


def _spoilt(row: dict[str, Any]) -> str:
    return "" if row["kind"] == "nothing" else f", {row['kind']}"


def _by_case(result: dict[str, Any]) -> str:
    seeds = {row["case"]: row["partitions"] for row in result["detection"]}
    told = "; ".join(f"{case}: {', '.join(map(str, each))}" for case, each in seeds.items())
    return f"Partitions: {told}."


def likeness(result: dict[str, Any]) -> str:
    """How alike two networks are, by the distilled datamodel and by retraining."""
    columns: dict[str, Any] = {"": lambda row: f"{row['first']} and {row['second']}"}
    for key, told in (
        ("per_query", "effects of a query, rho"),
        ("profile", "what matters overall, rho"),
        ("top", f"{result['settings']['top']} most helpful groups shared"),
    ):
        for how, by in (("ddm", "distilled"), ("exact", "retrained")):
            form = cells.percent if key == "top" else cells.score
            columns[f"{told}: {by}"] = lambda row, name=f"{how}_{key}", form=form: form(row[name])
    table = cells.table(columns, result["likeness"])
    chance = result["likeness"][0]["ddm_chance"]
    note = f"\n\nUnrelated networks share {chance:.0%} of those groups. {_partitions(result)} "
    return table + note + cells.machine(result)


def transfer(result: dict[str, Any]) -> str:
    """A synset of one network (rows) serving another (columns): rho and LDS."""
    found = {(row["synset"], row["network"]): row for row in result["transfer"]}
    names = list(result["settings"]["networks"])
    columns: dict[str, Any] = {"synset of": lambda row: row["name"]}
    for name in names:
        columns[f"updates {name}"] = lambda row, name=name: " / ".join(
            cells.score(found[row["name"], name][key]) for key in ("rho", "group_lds")
        )
    rows = [{"name": name} for name in names]
    note = f"\n\nOne group out, rho / halves, LDS. {_partitions(result)} "
    return cells.table(columns, rows) + note + cells.machine(result)


def privacy(result: dict[str, Any]) -> str:
    """What the items show, by their start."""
    columns = {
        "": lambda row: f"{row['case']}: {row['start']}, {row['how']}",
        "distance to the nearest training image": lambda row: cells.score(row["distance"]),
        "copies": lambda row: cells.percent(row["copies"]),
        "AUC of telling training from test": lambda row: cells.ranged(row, "membership"),
        "one group out, rho": lambda row: cells.score(row.get("rho")),
        "halves, LDS": lambda row: cells.score(row.get("group_lds")),
    }
    items = result["settings"]["items"]
    note = (
        f"\n\nM={items}. Distances in units of the median distance from a training image to its "
        f"nearest other one; copies are within a tenth of that. {_partitions(result)} "
    )
    return cells.table(columns, result["rows"]) + note + cells.machine(result)


def quality_figure(result: dict[str, Any]) -> Any:
    """Removal and keep curves, a panel a case and kind."""
    from matplotlib.figure import Figure

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
            name = "useless" if kind == "nothing" else "without"
            fractions = result["settings"][name]
            rows = [r for r in result["curves"] if (r["case"], r["kind"]) == (case, kind)]
            for row in rows:
                style: dict[str, Any] = {"linewidth": 1.2}
                if row["order"].startswith("*"):
                    style = {"linewidth": 2.4}
                if row["order"] in ("random", "the flipped ones"):
                    style = {"linewidth": 1.2, "color": "0.5"}
                    style["linestyle"] = ":" if row["order"] == "random" else "--"
                values = [row[f"without_{part:g}"] for part in fractions]
                axes.plot(fractions, values, label=row["order"].strip("*"), **style)
            axes.set_title(f"{case}: {title}", fontsize=10)
            axes.set_xlabel("part of the training data removed")
            axes.set_ylabel("test accuracy")
            axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    path = ROOT / "benchmarks" / "results" / "quality.json"
    quality_figure(json.loads(path.read_text())).savefig(ROOT / "docs" / "quality.png", dpi=110)
