"""The figures of the answers and of a comparison, each a function of results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from ddm_jax.run.drawing import (
    BLUE,
    GREY,
    INK,
    MARKERS,
    PALETTE,
    RED,
    SMALL,
    Row,
    TextFigure,
    diagonal,
    fewer,
    gallery,
    make_log,
    one_panel,
    point_picture,
    query_pictures,
    whole_ticks,
)

if TYPE_CHECKING:
    from ddm_jax.data import Split


def points_figure(
    split: Split,
    queries: np.ndarray,
    guesses: dict[int, str],
    order: np.ndarray,
    scores: np.ndarray,
    shown: int,
) -> Figure:
    """Queries beside the training points that helped (blue) and harmed (red) them most.

    Args:
        order: training points [N, queries], the most helpful first, as `scores` say.
    """
    rows, shown = [], fewer(split, shown)
    for place, query in enumerate(queries[:8]):
        row = query_pictures(split, query, guesses[query], f"query {query}\n")
        for colour, chosen in ((BLUE, order[:shown]), (RED, order[::-1][:shown])):
            for point in chosen[:, place]:
                value = f"  {scores[point, place]:+.2g}"
                row.append(point_picture(split, point, colour=colour, after=value))
        rows.append(row)
    return gallery(rows)


def ranked_figure(split: Split, found: dict[str, np.ndarray], shown: int) -> Figure:
    """The points with the lowest values of each ranking, with their given labels."""
    rows: list[Row] = []
    shown = fewer(split, shown)
    for name, values in found.items():
        worst = np.argsort(values, kind="stable")[:shown]
        colours = [RED if flipped else GREY for flipped in split.flipped[worst]]
        shown_points = zip(worst, colours, strict=True)
        rows.append(
            [name, *(point_picture(split, row, colour=colour) for row, colour in shown_points)]
        )
    return gallery(rows)


def effects_figure(joint: np.ndarray, summed: np.ndarray) -> Figure:
    """Joint effects of several groups against the sum of their single ones."""
    labels = "sum of the single effects, by the updates", "effect of all of them together"
    figure, axes = one_panel(4.6, 4, *labels)
    axes.scatter(summed, joint, s=8, alpha=0.4, color=BLUE, linewidths=0)
    diagonal(axes, summed, joint, "they add up")
    return figure


def changes_figure(changes: np.ndarray, wide: np.ndarray | None, objective: str) -> Figure:
    """The changes of all queries from the lowest to the highest, with their error bars."""
    figure, axes = one_panel(4.6, 4, "queries, sorted", f"change of the {objective}")
    order, place = np.argsort(changes, kind="stable"), np.arange(len(changes))
    if wide is not None:
        low, high = (changes[order] + sign * wide[order] for sign in (-1, 1))
        axes.vlines(place, low, high, color=GREY, alpha=0.4, linewidth=1)
    axes.scatter(place, changes[order], s=8, color=BLUE, linewidths=0, zorder=3)
    axes.axhline(0, color=INK, linewidth=0.8)
    return figure


def bars_figure(values: dict[str, Any], measures: list[str]) -> Figure:
    """A group of bars for each measure, a colour for each network."""
    figure, axes = one_panel(7, 3.2)
    width = 0.8 / len(values)
    for place, (name, found) in enumerate(values.items()):
        left = np.arange(len(measures)) + (place - (len(values) - 1) / 2) * width
        axes.bar(left, found, width, label=name, color=PALETTE[place])
        for x, value in zip(left, found, strict=True):
            axes.text(x, value + 0.01, f"{value:.2f}", ha="center", fontsize=7)
    axes.set_xticks(range(len(measures)), measures)
    axes.set_ylim(0, 1.12 * max(1.0, *(float(max(found)) for found in values.values())))
    axes.legend(**SMALL, ncols=3, loc="upper center")
    return figure


def profiles_figure(first: np.ndarray, second: np.ndarray, one: str, two: str) -> Figure:
    """How much each of two networks relies on each group."""
    figure = TextFigure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    place = np.arange(len(first))
    left.bar(place - 0.2, first, 0.4, color=BLUE, label=one)
    left.bar(place + 0.2, second, 0.4, color=RED, label=two)
    whole_ticks(left.xaxis)
    left.set(xlabel="group", ylabel="share of all effects")
    left.legend(**SMALL)
    right.scatter(first, second, s=14, color=INK)
    diagonal(right, np.zeros(1), 1.05 * np.maximum(first, second), None)
    right.set(xlabel=one, ylabel=two)
    return figure


def comparison_figure(result: dict[str, Any]) -> Figure:
    """Score against cost, a panel for each score; hollow: online alone, full: with offline."""
    rows = [row for row in result["rows"] if "error" not in row]
    scores = list(dict.fromkeys(row["score"] for row in rows))
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    # The legend stands below the panels, in four columns.
    height = 4.4 + 0.22 * (len(names) // 4 + 1)
    figure = TextFigure(figsize=(4.6 * len(scores), height), layout="constrained")
    panels = figure.subplots(1, len(scores), squeeze=False)[0]
    for axes, score in zip(panels, scores, strict=True):
        shown = [row for row in rows if row["score"] == score]
        low = 0.0
        for row in shown:
            online, value = row["online_seconds"], np.float64(row["value"])
            total = row["offline_seconds"] + online
            reach = np.abs(np.asarray(row["over_rows"], float) - value)[:, None]
            turn, place = divmod(names.index(row["estimator"]), len(PALETTE))
            colour, marker = PALETTE[place], MARKERS[turn % len(MARKERS)]
            axes.plot([online, total], [value, value], color=colour, linewidth=0.8)
            axes.plot(online, value, marker, markerfacecolor="white", color=colour)
            axes.errorbar(
                total,
                value,
                np.nan_to_num(reach),
                fmt=marker,
                color=colour,
                capsize=3,
                label=row["estimator"],
            )
            low = min(low, value)
        ceiling = np.float64(shown[0]["ceiling"])
        axes.axhline(ceiling, color=INK, linewidth=0.8, linestyle="--", label="perfect predictor")
        make_log(axes, "x")
        axes.set_ylim(low - 0.05, 1.05)
        axes.set_title(f"{score}: {shown[0]['counterfactuals']} removals", fontsize=10)
        axes.set_xlabel("seconds: online (hollow), with offline (full)")
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("Spearman correlation with retraining")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
