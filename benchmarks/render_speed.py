"""The tables about speed and memory, for `render_tables.py`."""

from __future__ import annotations

from typing import Any

import cells
import cost_model


def convolutions(result: dict[str, Any]) -> str:
    """Milliseconds of each form of a layer."""
    by_case: dict[tuple[str, str], dict[str, float]] = {}
    for row in result["layers"]:
        models, batch, height, depth, width = row["layer"]
        layer = f"{height}x{height}, {depth} to {width}, B={batch}, K={models}"
        by_case.setdefault((layer, row["order"]), {})[row["form"]] = 1000 * row["seconds"]
    rows = [{"layer": case[0], "order": case[1]} | forms for case, forms in by_case.items()]
    forms = [name for name in rows[0] if name not in ("layer", "order")]
    columns: dict[str, Any] = {"layer": lambda row: row["layer"], "": lambda row: row["order"]}
    for form in forms:
        columns[form] = lambda row, form=form: _fastest(row, form, forms)
    cut = ", ".join(
        f"width {row['width']} in pieces of {row['piece']}: {1000 * row['pieces_seconds']:.0f} ms "
        f"for {1000 * row['whole_seconds']:.0f}"
        for row in result["pieces"]
    )
    note = f"\n\nMilliseconds for all K models. A gradient step of a batch of 100, {cut}. "
    return cells.table(columns, rows) + note + cells.machine(result)


def _fastest(row: dict[str, Any], form: str, forms: list[str]) -> str:
    best = min(row[name] for name in forms)
    text = f"{row[form]:.3g}"
    return f"**{text}**" if row[form] == best else text


def cost(result: dict[str, Any]) -> str:
    """DDM against retraining at the agreement that it reaches."""

    def rival(row: dict[str, Any]) -> str:
        found = row["rival"]
        unit = "epoch" if found["epochs"] == 1 else "epochs"
        return f"{found['epochs']} {unit}, {found['lds']:.3f}"

    columns = {
        "N": lambda row: f"{row['points']:,}",
        "K": lambda row: f"{row['groups']:,}",
        "M": lambda row: str(row["items"]),
        "LDS: DDM": lambda row: cells.score(row["lds"]),
        "one retraining": lambda row: cells.score(row["retraining"]["lds"]),
        "cheapest retraining as good": rival,
        "offline": lambda row: cells.seconds(row["offline_seconds"]),
        "online, each": lambda row: f"{1000 * row['online_seconds']:.3g} ms",
        "retraining, each": lambda row: f"{1000 * row['retraining']['seconds']:.3g} ms",
        "online: times less": lambda row: f"{row['online_ratio']:.2g}",
        "than the cheapest": lambda row: f"{row['online_ratio_rival']:.2g}",
        "in total: times less": lambda row: f"{row['total_ratio']:.2g}",
        "than the cheapest ": lambda row: f"{row['total_ratio_rival']:.2g}",
    }
    note = (
        f"\n\n{result['halves']} halves, truth of {result['seeds']} seeds. Totals are for leaving "
        f"out each group, with the offline stage. Partition {result['partition']}. "
    )
    return cells.table(columns, result["rows"]) + note + cells.machine(result)


def scaling(result: dict[str, Any]) -> str:
    """Seconds and memory of each case."""
    names = {"mlp": "MLP 784-{width}-64-10", "convnet": "ConvNet of width {width}"}

    def expected(row: dict[str, Any]) -> str:
        return f"{(row['start_bytes'] + sum(row['expected_bytes'].values())) / 2**20:,.0f}"

    columns = {
        "varied": lambda row: row["varied"],
        "network": lambda row: names[row["model"]].format(width=row["width"]),
        "D": lambda row: str(row["devices"]),
        "N": lambda row: f"{row['points']:,}",
        "K": lambda row: f"{row['groups']:,}",
        "M": lambda row: str(row["items"]),
        "Q": lambda row: f"{row['queries']:,}",
        "P": lambda row: f"{row['num_params']:,}",
        "a distillation step": lambda row: f"{1000 * row['distill_step_seconds']:.3g} ms",
        "compilation": lambda row: cells.seconds(row["distill_compile_seconds"]),
        "all updates": lambda row: cells.seconds(row["online_seconds"]),
        "compilation ": lambda row: cells.seconds(row["online_compile_seconds"]),
        "peak MiB": lambda row: f"{row['peak_bytes'] / 2**20:,.0f}",
        "expected MiB": expected,
    }
    note = f"\n\nUpdates of {result['steps']} steps, T = 8. "
    return cells.table(columns, result["rows"]) + note + cells.machine(result)


def rates(result: dict[str, Any]) -> str:
    """What the cost model was fitted to."""
    fitted = cost_model.fit_rates(result["rows"], result["steps"])
    rows = [{"stage": name} | values for name, values in fitted.items()]
    columns = {
        "network, stage": lambda row: row["stage"],
        "reached, GFLOP/s": lambda row: f"{row['gflops_a_second']:.0f}",
        "cases off by at most": lambda row: f"{row['off_by']:.1f} times",
    }
    return cells.table(columns, rows) + "\n\nMedian over the cases on one device."


def predictions(result: dict[str, Any]) -> str:
    """Work that cannot be run here, by the model alone."""
    rows = []
    for name, work in cost_model.CASES.items():
        for machine in cost_model.MACHINES:
            took = cost_model.seconds(work, machine)
            held = cost_model.stored(work)
            rows.append(
                {
                    "case": f"{name}; {machine.name}",
                    "training": took["training"] / machine.devices,
                    "offline": took["start"] + took["gradients"] + took["distillation"],
                    "online": took["updates"] + took["queries"],
                    "retraining": took["retraining"],
                    "gradients": held["gradients"],
                    "rounds": cost_model.rounds(work, machine),
                }
            )
    columns = {
        "": lambda row: row["case"],
        "target, data parallel": lambda row: _duration(row["training"]),
        "offline": lambda row: _duration(row["offline"]),
        "all updates": lambda row: _duration(row["online"]),
        "retraining for each group": lambda row: _duration(row["retraining"]),
        "times less online": lambda row: f"{row['retraining'] / row['online']:,.0f}",
        "gradients": lambda row: f"{row['gradients'] / 1e12:.2g} TB",
        "rounds": lambda row: str(row["rounds"]),
    }
    return cells.table(columns, rows)


def _duration(seconds: float) -> str:
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (2 * 86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86400:,.0f} days"
