"""Cells of the README's tables."""

from __future__ import annotations

from typing import Any


def machine(result: dict[str, Any]) -> str:
    """What measured a result."""
    versions = result["versions"]
    cores = result["cores"]
    return (
        f"Measured on {cores} {versions['device']} core{'s' if cores > 1 else ''} with JAX "
        f"{versions['jax']}, commit {result['commit']}: `{result['command']}`."
    )


def table(columns: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A Markdown table of rows, by `cell(row)` of each column."""
    head = "| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns)
    lines = ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return "\n".join([head, *lines])


def ranged(row: dict[str, Any], name: str) -> str:
    """A mean score and its range over partitions."""
    if row.get(name) is None:
        return ""
    low, high = row[f"{name}_range"]
    return score(row[name]) + (f" ({low:.2f}–{high:.2f})" if low < high else "")


def interval(values: list[float]) -> str:
    """Two ends."""
    return "–".join(f"{value:.2f}" for value in values)


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{value:.1%}"


def score(value: float | None) -> str:
    """Three decimals, nothing for None."""
    return "" if value is None else f"{value:.3f}"


def of_ceiling(value: float | None, ceiling: float) -> str:
    """A score as a share of its ceiling."""
    return "" if value is None else f"{value / ceiling:.0%}"


def share(value: float | None) -> str:
    """A cost as a share of retraining."""
    if value is None:
        return ""
    return f"{100 * value:,.0f} %" if value >= 1 else f"{100 * value:.3g} %"


def seconds(value: float | None) -> str:
    """Two digits of seconds."""
    return "" if value is None else f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
