"""The figures of `answers`, each a function of results."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ddm_jax.data import Split
from ddm_jax.figures import BLUE, GREY, INK, PALETTE, RED, picture


def points_figure(
    split: Split,
    queries: np.ndarray,
    guesses: np.ndarray,
    order: np.ndarray,
    scores: np.ndarray,
    shown: int,
    labels: np.ndarray,
) -> Figure:
    """Queries beside the training points that helped (blue) and hurt (red) them most."""
    rows = min(len(queries), 8)
    figure = Figure(figsize=(1.6 + 0.85 * 2 * shown, 1.05 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, 2 + 2 * shown, squeeze=False)
    wanted = split.test.y.argmax(1)
    for row in range(rows):
        query = queries[row]
        grid[row, 0].set_axis_off()
        text = f"query {query}\n{split.classes[wanted[query]]}"
        if guesses[row] != wanted[query]:
            text += f",\ntaken for {split.classes[guesses[row]]}"
        grid[row, 0].text(1.0, 0.5, text, ha="right", va="center", fontsize=8)
        picture(grid[row, 1], split.pixels(split.test.x[query]), INK)
        chosen = [*order[:shown, row], *order[::-1][:shown, row]]
        for place, point in enumerate(chosen):
            axes = grid[row, 2 + place]
            colour = BLUE if place < shown else RED
            picture(axes, split.pixels(split.train.x[point]), colour)
            axes.set_title(
                f"{split.classes[labels[point]]}  {scores[point, row]:+.2g}",
                fontsize=7,
                color=colour,
            )
    return figure


def ranked_figure(split: Split, found: dict[str, np.ndarray], shown: int) -> Figure:
    """The worst points of each ranking, with their given labels."""
    figure = Figure(figsize=(1.4 + 0.8 * shown, 1.05 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), shown + 1, squeeze=False)
    labels = split.train.y.argmax(1)
    for row, (name, values) in enumerate(found.items()):
        grid[row, 0].set_axis_off()
        grid[row, 0].text(1.0, 0.5, name, ha="right", va="center", fontsize=9)
        for place, point in enumerate(np.argsort(-values, kind="stable")[:shown]):
            axes = grid[row, 1 + place]
            bad = bool(split.flipped[point])
            picture(axes, split.pixels(split.train.x[point]), RED if bad else GREY)
            axes.set_title(split.classes[labels[point]], fontsize=7, color=RED if bad else INK)
    return figure


def effects_figure(joint: np.ndarray, summed: np.ndarray) -> Figure:
    """Joint effects of several groups against the sum of their single ones."""
    figure = Figure(figsize=(4.6, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(summed, joint, s=8, alpha=0.4, color=BLUE, linewidths=0)
    ends = [min(joint.min(), summed.min()), max(joint.max(), summed.max())]
    axes.plot(ends, ends, color=GREY, linewidth=1, label="they add up")
    axes.set_xlabel("sum of the single effects")
    axes.set_ylabel("effect of all of them together")
    axes.legend(frameon=False, fontsize=8)
    return figure


def bars_figure(values: dict[str, Any], measures: list[str]) -> Figure:
    """A group of bars for each measure, a colour for each network."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(values)
    for place, (name, found) in enumerate(values.items()):
        left = np.arange(len(measures)) + (place - (len(values) - 1) / 2) * width
        axes.bar(left, found, width, label=name, color=PALETTE[place])
        for x, value in zip(left, found, strict=True):
            axes.text(x, value + 0.01, f"{value:.2f}", ha="center", fontsize=7)
    axes.set_xticks(range(len(measures)), measures)
    axes.set_ylim(0, 1.12)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    return figure


def profiles_figure(first: np.ndarray, second: np.ndarray, one: str, two: str) -> Figure:
    """How much each of two networks relies on each group."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    place = np.arange(len(first))
    left.bar(place - 0.2, first, 0.4, color=BLUE, label=one)
    left.bar(place + 0.2, second, 0.4, color=RED, label=two)
    left.set_xlabel("group")
    left.set_ylabel("share of all effects")
    left.legend(frameon=False, fontsize=8)
    right.scatter(first, second, s=14, color=INK)
    end = 1.05 * max(first.max(), second.max())
    right.plot([0, end], [0, end], color=GREY, linewidth=1)
    right.set_xlabel(one)
    right.set_ylabel(two)
    return figure
