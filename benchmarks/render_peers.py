"""The README's tables about other libraries, for `render_tables.py`."""

from __future__ import annotations

from typing import Any

import cells


def torch_steps(result: dict[str, Any]) -> str:
    """Milliseconds a step beside PyTorch's forms."""
    items = {"fine-tune": "B", "matching": "M"}

    def milliseconds(row: dict[str, Any], *forms: str) -> str:
        took = [row["milliseconds"][form] for form in forms if form in row["milliseconds"]]
        return f"{took[0]:.3g}" if took else ""

    columns = {
        "": lambda row: row["network"],
        "step": lambda row: f"{row['step']}, {items[row['step']]}={row['size']}, K={row['models']}",
        "JAX, ms": lambda row: milliseconds(row, "jax"),
        "PyTorch: loop": lambda row: milliseconds(row, "loop"),
        "stacked / channels last": lambda row: milliseconds(row, "stacked", "loop, channels last"),
        "vmap": lambda row: milliseconds(row, "vmap"),
        "JAX / best PyTorch": lambda row: f"{row['ratio_to_best']:.2f}",
        "median": lambda row: f"{row['median_ratio_to_best']:.2f}",
        "GFLOP/s": lambda row: f"{row['gflops_a_second']:.0f}",
        "of matrix peak": lambda row: f"{row['share_of_peak']:.0%}",
        "compilation": lambda row: cells.seconds(row["compile_seconds"]),
    }
    peaks = [row["peak_gflops_a_second"] for row in result["rows"]]
    note = (
        f"\n\nMinimum of {result['settings']['rounds']} interleaved rounds on one thread, PyTorch "
        f"{result['settings']['torch']}; the matrix product beside each row ran at "
        f"{min(peaks):.0f} to {max(peaks):.0f} GFLOP/s. "
    )
    return cells.table(columns, result["rows"]) + note + cells.machine(result)


def peers(result: dict[str, Any]) -> str:
    """Point LDS of other libraries' attributors, and what they cost."""
    names = {"dattri-lr": "logistic regression", "dattri-mlp": "MLP"}

    def name(row: dict[str, Any]) -> str:
        chosen = f", damping {row['damping']:g}" if "damping" in row else ""
        return f"{names[row['preset']]}: {row['estimator']}{chosen}"

    def unless_failed(cell: Any) -> Any:
        return lambda row: "" if "error" in row else cell(row)

    columns = {
        "": name,
        "one run": unless_failed(lambda row: cells.score(row["value_one_run"])),
        "four runs": lambda row: (
            f"failed: {row['error']}" if "error" in row else cells.score(row["value"])
        ),
        "of ceiling": unless_failed(lambda row: cells.of_ceiling(row["value"], row["ceiling"])),
        "95 % over halves": unless_failed(lambda row: cells.interval(row["over_rows"])),
        "like our grad-dot": unless_failed(lambda row: cells.score(row.get("agreement_with_ours"))),
        "offline": unless_failed(lambda row: cells.seconds(row["offline_seconds"])),
        "online": unless_failed(lambda row: cells.seconds(row["online_seconds"])),
    }
    judged = next(row for row in result["rows"] if "error" not in row)
    versions = ", ".join(f"{library} {number}" for library, number in result["peers"].items())
    note = (
        f"\n\n{judged['counterfactuals']} halves, {judged['queries']} queries; the others chose "
        f"the damping. {versions}, one thread. "
    )
    return cells.table(columns, result["rows"]) + note + cells.machine(result)
