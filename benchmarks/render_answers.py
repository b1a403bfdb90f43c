"""Tables of points, hierarchy, additivity and unlearning."""

from __future__ import annotations

from typing import Any

import cells


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
        "within": lambda row: "" if row["method"] == "retraining" else f"{row['within']} of 3",
        "KLOM": lambda row: f"{row['klom']:.1f}",
        "time of retraining": lambda row: cells.share(row.get("share_of_retraining")),
    }
    seeds = result["settings"]["seeds"]
    note = (
        f"\n\nMeans and standard deviations of {seeds} networks; KLOM from half of them "
        "(retraining: one half against the other). "
    )
    return cells.table(columns, result["rows"]) + note + cells.machine(result)
