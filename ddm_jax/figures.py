"""The figures of a report, each a function of results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from matplotlib.figure import Figure

from ddm_jax.attribution import Attribution
from ddm_jax.parallel import in_batches

if TYPE_CHECKING:
    from ddm_jax.pipeline import CheckResult, Plan, SynsetResult
    from ddm_jax.types import TrainRun

INK, BLUE, RED, GREY = "#222222", "#2f6db3", "#c8452f", "#9aa0a6"
MARKERS = "os^Dv"  # where there are more estimators than colours
PALETTE = (BLUE, RED, "#3a7d44", "#7b52ab", "#b8860b", "#008080", "#b0307c", "#555555")
SHOWN_GROUPS = 12
SHOWN_QUERIES = 4


def agreement_figure(check: CheckResult) -> Figure:
    """Predicted against retrained effects, for single groups and for random halves."""
    count = len(check.groups)
    retrained = np.asarray(check.retrained).mean(0)
    predicted = np.asarray(check.predicted)
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _scatter(
        left,
        predicted[0] - predicted[1 : 1 + count],
        retrained[0] - retrained[1 : 1 + count],
        f"One of {count} groups left out",
    )
    if len(retrained) > 1 + count:
        _scatter(
            right,
            predicted[0] - predicted[1 + count :],
            retrained[0] - retrained[1 + count :],
            f"Half of the groups left out, {len(retrained) - 1 - count} times",
        )
    else:
        right.set_axis_off()
    return figure


def _scatter(axes, predicted: np.ndarray, truth: np.ndarray, title: str) -> None:
    axes.scatter(predicted.ravel(), truth.ravel(), s=6, alpha=0.25, color=BLUE, linewidths=0)
    low = min(predicted.min(), truth.min())
    high = max(predicted.max(), truth.max())
    axes.plot([low, high], [low, high], color=GREY, linewidth=1, label="equal")
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.axvline(0, color=GREY, linewidth=0.5)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("effect of having it: DDM")
    axes.set_ylabel("effect of having it: retraining (mean of seeds)")
    axes.legend(frameon=False, fontsize=8)


def matrix_figure(attribution: Attribution, labels: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """The attribution matrix as a heat map, queries sorted by class."""
    scores = attribution.scores
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    if scores.shape[1] == len(labels):
        order = np.argsort(labels, kind="stable")
        scores = scores[:, order]
        edges = np.searchsorted(labels[order], np.arange(len(classes) + 1))
        for edge in edges[1:-1]:
            axes.axvline(edge - 0.5, color=INK, linewidth=0.3)
        middle = (edges[:-1] + edges[1:]) / 2
        axes.set_xticks(middle, classes, rotation=0 if len(max(classes, key=len)) < 3 else 45)
        axes.set_xlabel(f"{len(labels)} queries, sorted by class")
    else:
        axes.set_xlabel("outputs")
    reach = float(np.percentile(np.abs(scores), 99)) or 1.0
    drawn = axes.imshow(
        scores, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest"
    )
    axes.set_ylabel("group left out")
    figure.colorbar(
        drawn,
        ax=axes,
        extend="both",
        label=f"{attribution.metadata.get('objective')}: with - without",
    )
    return figure


def mistakes_figure(plan: Plan, target: TrainRun, attribution: Attribution) -> Figure:
    """Misclassified queries beside members of the groups that hurt and helped them most."""
    split = plan.split
    logits = np.asarray(in_batches(plan.task.apply)(target.params, split.test.x))
    labels = split.test.y.argmax(1)
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    per_query = attribution.scores.shape[1] == len(labels)
    if not len(wrong) or not per_query:
        figure = Figure(figsize=(9, 0.6))
        text = "No query is misclassified." if per_query else "The objective is not per query."
        figure.text(0.02, 0.4, text)
        return figure
    # The most confident mistakes first.
    wrong = wrong[np.argsort(logits[wrong, labels[wrong]] - logits[wrong].max(1))][:SHOWN_QUERIES]
    # A raised loss hurts; for every other objective more is better.
    sign = -1.0 if plan.config.online.objective == "loss" else 1.0
    kinds, members = 2, 4
    figure = Figure(figsize=(11, 0.95 * len(wrong)), layout="constrained")
    grid = figure.subplots(len(wrong), 2 + 2 * kinds * members, squeeze=False)
    for row, query in enumerate(wrong):
        guess = split.classes[logits[query].argmax()]
        grid[row, 0].set_axis_off()
        grid[row, 0].text(
            1.0,
            0.5,
            f"{split.classes[labels[query]]},\ntaken for\n{guess}",
            ha="right",
            va="center",
            fontsize=8,
        )
        picture(grid[row, 1], split.pixels(split.test.x[query]), INK)
        order = np.argsort(sign * attribution.scores[:, query], kind="stable")
        chosen = [*order[:kinds], *order[::-1][:kinds]]
        for place, group in enumerate(chosen):
            rows = _nearest(split.train.x, attribution.members(group), split.test.x[query], members)
            colour = RED if place < kinds else BLUE
            for n in range(members):
                axes = grid[row, 2 + place * members + n]
                if n < len(rows):
                    picture(axes, split.pixels(split.train.x[rows[n]]), colour)
                else:
                    axes.set_axis_off()
            grid[row, 2 + place * members].set_title(
                f"group {group}: {attribution.scores[group, query]:+.2f}",
                fontsize=7,
                loc="left",
                color=colour,
            )
    return figure


def _nearest(x: np.ndarray, members: np.ndarray, query: np.ndarray, count: int) -> np.ndarray:
    away = ((x[members] - query) ** 2).reshape(len(members), -1).sum(1)
    return members[np.argsort(away, kind="stable")[:count]]


def synset_figure(plan: Plan, groups: np.ndarray, result: SynsetResult) -> Figure:
    """Synthetic items beside real members, for groups spread over the matching error."""
    split, synset = plan.split, result.synset
    shown = np.linspace(0, len(result.error) - 1, min(SHOWN_GROUPS, len(result.error)))
    order = np.argsort(result.error, kind="stable")[shown.round().astype(int)]
    items, members = min(synset.x.shape[1], 5), 5
    figure = Figure(figsize=(9, 0.95 * len(order)), layout="constrained")
    grid = figure.subplots(len(order), items + members + 1, squeeze=False)
    soft = np.asarray(jax.nn.softmax(synset.y))
    for row, group in enumerate(order):
        by_mass = np.argsort(-np.abs(np.asarray(synset.mass[group])))[:items]
        for n, item in enumerate(by_mass):
            axes = grid[row, n]
            picture(axes, split.pixels(np.asarray(synset.x[group, item])), BLUE)
            label = split.classes[soft[group, item].argmax()]
            axes.set_title(f"{label}, {float(synset.mass[group, item]):.2g}", fontsize=7)
        grid[row, items].set_axis_off()
        grid[row, items].text(
            0.5,
            0.5,
            f"group {group}\nerror {float(result.error[group]):.3f}",
            ha="center",
            va="center",
            fontsize=7,
        )
        rows = np.flatnonzero(groups == group)[:members]
        for n in range(members):
            axes = grid[row, items + 1 + n]
            if n < len(rows):
                picture(axes, split.pixels(split.train.x[rows[n]]))
                axes.set_title(split.classes[split.train.y[rows[n]].argmax()], fontsize=7)
            else:
                axes.set_axis_off()
    return figure


def matching_figure(result: SynsetResult) -> Figure:
    """Matching error of each group at held-out checkpoints, before and after distillation."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(np.asarray(result.error), kind="stable")
    place = np.arange(len(order))
    axes.scatter(place, np.asarray(result.error_start)[order], s=14, color=GREY, label="before")
    axes.scatter(place, np.asarray(result.error)[order], s=14, color=BLUE, label="distilled")
    axes.axhline(1, color=RED, linewidth=0.8, label="an empty synset")
    axes.set_yscale("log")
    axes.set_xlabel("groups, best matched first")
    axes.set_ylabel("|g - h|² / |g|²")
    axes.legend(frameon=False, fontsize=8)
    return figure


def groups_figure(plan: Plan, groups: np.ndarray) -> Figure:
    """The sizes of the groups, and members of some of them."""
    split = plan.split
    sizes = np.bincount(groups)
    shown = np.unique(np.linspace(0, len(sizes) - 1, min(SHOWN_GROUPS, len(sizes))).astype(int))
    members = 10
    figure = Figure(figsize=(9, 2 + 0.62 * len(shown)), layout="constrained")
    layout = figure.add_gridspec(len(shown) + 3, members + 1)
    axes = figure.add_subplot(layout[:3, :])
    axes.bar(np.arange(len(sizes)), sizes, color=BLUE)
    axes.set_xlabel("group")
    axes.set_ylabel("training points")
    grid = np.array(
        [
            [figure.add_subplot(layout[3 + r, c]) for c in range(members + 1)]
            for r in range(len(shown))
        ]
    )
    for row, group in enumerate(shown):
        rows = np.flatnonzero(groups == group)
        grid[row, 0].set_axis_off()
        grid[row, 0].text(
            0.5, 0.5, f"group {group}\n{len(rows)} points", ha="center", va="center", fontsize=7
        )
        for n in range(members):
            if n < len(rows):
                picture(grid[row, n + 1], split.pixels(split.train.x[rows[n]]))
            else:
                grid[row, n + 1].set_axis_off()
    return figure


def training_figure(losses: np.ndarray, every: int) -> Figure:
    """The training loss by step, and its mean over each checkpoint interval."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses, color=GREY, linewidth=0.6, label="batch")
    whole = losses[len(losses) % every :].reshape(-1, every).mean(1)
    place = len(losses) % every + every * (np.arange(len(whole)) + 0.5)
    axes.plot(place, whole, color=BLUE, label="mean between checkpoints")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.legend(frameon=False, fontsize=8)
    return figure


def comparison_figure(result: dict[str, Any]) -> Figure:
    """Score against cost, a panel for each score; hollow: online alone, full: with offline."""
    rows = [row for row in result["rows"] if "error" not in row]
    scores = list(dict.fromkeys(row["score"] for row in rows))
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    # The legend stands below the panels, in four columns.
    height = 4.4 + 0.22 * (len(names) // 4 + 1)
    figure = Figure(figsize=(4.6 * len(scores), height), layout="constrained")
    panels = figure.subplots(1, len(scores), squeeze=False)[0]
    for axes, score in zip(panels, scores, strict=True):
        shown = [row for row in rows if row["score"] == score]
        low = 0.0
        for row in shown:
            online, value = row["online_seconds"], _or_nan(row["value"])
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
        ceiling = _or_nan(shown[0]["ceiling"])
        axes.axhline(ceiling, color=INK, linewidth=0.8, linestyle="--", label="perfect predictor")
        axes.set_xscale("log")
        axes.set_ylim(low - 0.05, 1.05)
        axes.set_title(f"{score}: {shown[0]['counterfactuals']} removals", fontsize=10)
        axes.set_xlabel("seconds: online (hollow), with offline (full)")
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("Spearman correlation with retraining")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _or_nan(value: float | None) -> float:
    """JSON has null for what is undefined."""
    return float("nan") if value is None else value


def picture(axes, pixels: np.ndarray, colour: str | None = None) -> None:
    """Show an image without axes, in a frame of a colour."""
    grey = pixels.shape[-1] == 1
    axes.imshow(pixels[..., 0] if grey else pixels, cmap="gray_r" if grey else None, vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour or GREY)
        spine.set_linewidth(1.2 if colour else 0.4)
