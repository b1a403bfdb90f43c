"""The figures of a report, of the answers and of a comparison, each a function of results."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure, FigureBase
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, MaxNLocator

from ddm_jax.attribution import Attribution
from ddm_jax.compute.placement import in_batches

if TYPE_CHECKING:
    from ddm_jax.data import Split
    from ddm_jax.run.check import Check
    from ddm_jax.run.plan import Plan
    from ddm_jax.types import Groups, Synset, TrainRun

INK, BLUE, RED, GREY = "#222222", "#2f6db3", "#c8452f", "#9aa0a6"
MARKERS = "os^Dv"  # where there are more estimators than colours
PALETTE = (BLUE, RED, "#3a7d44", "#7b52ab", "#b8860b", "#008080", "#b0307c", "#555555")
SHOWN_GROUPS = 12
SHOWN_QUERIES = 4
SMALL = {"frameon": False, "fontsize": 8}  # legends


class TextFigure(Figure):
    """A figure whose text is text: a class may be called `$\\frac$`."""

    def draw(self, renderer) -> None:
        for text in self.findobj(Text):
            text.set_parse_math(False)
        with matplotlib.rc_context({"text.parse_math": False}):  # of ticks that are made here
            super().draw(renderer)


class Shown(NamedTuple):
    """A picture of a gallery."""

    pixels: np.ndarray  # [H, W, D] in [0, 1]
    title: str = ""
    colour: str | None = None  # of its frame


Row = list[Shown | str]  # of a gallery: pictures and texts


def png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def group_names(groups: Groups) -> Sequence[str]:
    """The names of the groups where they have some, else their numbers."""
    return groups.names or [f"group {k}" for k in range(groups.count)]


def agreement_figure(check: Check) -> Figure:
    """Predicted against retrained effects of single groups, and outputs of random halves."""
    figure = TextFigure(figsize=(9, 4), layout="constrained")
    truth = check.truth
    alone = check.scores[truth.groups], truth.effects().mean(0), "Each of {} groups left out, alone"
    halves = check.predicted[1:], truth.subsets.mean(0), "Half of the groups left out, {} times"
    # Predictions of outputs hold up to a constant a query.
    halves = tuple(part - part.sum(0) / max(len(part), 1) for part in halves[:2]) + halves[2:]
    labels = "effect of having it", "output, around its mean"
    panels = figure.subplots(1, 2)
    for axes, (predicted, true, title), label in zip(panels, (alone, halves), labels, strict=True):
        if not len(predicted):
            axes.set_axis_off()
            continue
        axes.scatter(predicted.ravel(), true.ravel(), s=6, alpha=0.25, color=BLUE, linewidths=0)
        axes.axhline(0, color=GREY, linewidth=0.5)
        axes.axvline(0, color=GREY, linewidth=0.5)
        _diagonal(axes, predicted, true, "equal")
        axes.set_title(title.format(len(predicted)), fontsize=10)
        axes.set(xlabel=f"{label}: DDM", ylabel=f"{label}:\nretraining (mean of seeds)")
    return figure


def matrix_figure(attribution: Attribution, labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """The attribution matrix as a heat map, queries sorted by class."""
    scores = attribution.scores
    figure, axes = _axes(9, 4.5, "outputs", "group left out")
    if scores.shape[1] == len(labels):
        order = np.argsort(labels, kind="stable")
        scores = scores[:, order]
        edges = np.searchsorted(labels[order], np.arange(len(classes) + 1))
        for edge in edges[1:-1]:
            axes.axvline(edge - 0.5, color=INK, linewidth=0.3)
        middle = (edges[:-1] + edges[1:]) / 2
        axes.set_xticks(middle, classes, rotation=0 if len(max(classes, key=len)) < 3 else 45)
        axes.set_xlabel(f"{len(labels)} queries, sorted by class")
    _count(axes.yaxis)
    if (names := attribution.groups.names) is not None:
        axes.set_yticks(range(len(names)), names, fontsize=max(3, min(9, 180 / len(names))))
    reach = float(np.percentile(np.abs(scores), 99)) or 1.0
    blue_helps = "RdBu_r" if attribution.metadata.get("lower_is_better") else "RdBu"
    drawn = axes.imshow(
        scores, cmap=blue_helps, vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest"
    )
    objective = attribution.metadata.get("objective")
    figure.colorbar(drawn, ax=axes, extend="both", label=f"{objective}: with - without")
    return figure


def mistakes_figure(plan: Plan, target: TrainRun, attribution: Attribution) -> Figure:
    """Misclassified queries beside members of the groups that harmed and helped them most."""
    split, scores = plan.split, attribution.scores
    logits = np.asarray(in_batches(plan.task.apply)(target.params, split.test.x))
    labels = split.test.y.argmax(1)
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    per_query = scores.shape[1] == len(labels)
    if not len(wrong) or not per_query:
        figure = TextFigure(figsize=(9, 0.6))
        text = "No query is misclassified." if per_query else "The objective is not per query."
        figure.text(0.02, 0.4, text)
        return figure
    # The most confident mistakes first.
    wrong = wrong[np.argsort(logits[wrong, labels[wrong]] - logits[wrong].max(1))][:SHOWN_QUERIES]
    helps = -scores if plan.task.lower_is_better else scores
    names, members = group_names(attribution.groups), 4
    rows = []
    for query in wrong:
        row = _query(split, query, logits[query].argmax())
        order = np.argsort(helps[:, query], kind="stable")
        for colour, chosen in ((RED, order[:2]), (BLUE, order[::-1][:2])):
            for group in chosen:
                inside = attribution.members(group)
                nearest = _nearest(split.train.x, inside, split.test.x[query])[:members]
                titles = [f"{names[group]}: {scores[group, query]:+.2f}", *[""] * members]
                shown = zip(nearest, titles, strict=False)
                row += _filled([_point(split, *each, colour) for each in shown], members)
        rows.append(row)
    return _gallery(rows, width=0.62, titles="left")


def synset_figure(plan: Plan, groups: Groups, synset: Synset, error: np.ndarray) -> Figure:
    """Synthetic items beside real members, for groups spread over the matching error [K]."""
    split, names = plan.split, group_names(groups)
    labels, mass = np.asarray(synset.items.y).argmax(1), np.asarray(synset.mass)
    owner = np.asarray(synset.group)
    most = min(int(np.bincount(owner).max()), 5)
    rows = []
    for group in np.argsort(error, kind="stable")[_spread(groups.count)]:
        items = np.flatnonzero(owner == group)
        heaviest = items[np.argsort(-np.abs(mass[items]))][:most]
        shown = [
            Shown(
                split.pixels(np.asarray(synset.items.x[item])),
                f"{split.classes[labels[item]]}, {mass[item]:.2g}",
                BLUE,
            )
            for item in heaviest
        ]
        told = f"{names[group]}\nerror {error[group]:.2g}"
        rows.append([*_filled(shown, most), told, *_members(split, groups, group, 5)])
    return _gallery(rows)


def matching_figure(error: np.ndarray, before: np.ndarray) -> Figure:
    """Matching error [K] of each group at held-out checkpoints, with that before distillation."""
    figure, axes = _axes(9, 3, "groups, best matched first", "|g - h|² / |g|²")
    order = np.argsort(error, kind="stable")
    axes.plot(before[order], "o", markersize=3.5, color=GREY, label="before")
    axes.plot(error[order], "o", markersize=3.5, color=BLUE, label="distilled")
    axes.axhline(1, color=RED, linewidth=0.8, label="an empty synset")
    _make_log(axes, "y")
    _count(axes.xaxis)
    axes.legend(**SMALL, loc="lower right")  # the line of an empty synset runs above
    return figure


def groups_figure(plan: Plan, groups: Groups) -> Figure:
    """The sizes of the groups, and members of some of them."""
    sizes, names, shown = groups.sizes(), group_names(groups), _spread(groups.count)
    rows: list[Row] = [
        [f"{names[group]}\n{sizes[group]} points", *_members(plan.split, groups, group, 10)]
        for group in shown
    ]
    figure = TextFigure(figsize=(9, 2 + 0.8 * len(shown)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(2, 0.8 * len(shown)), squeeze=False)[:, 0]
    axes = above.subplots()
    axes.bar(np.arange(len(sizes)), sizes, color=BLUE)
    _count(axes.xaxis)
    axes.set(xlabel="group", ylabel="training points")
    _draw_rows(below, rows)
    return figure


def training_figure(losses: np.ndarray, steps: np.ndarray) -> Figure:
    """The training loss by step, and its mean between the checkpoints after `steps` [T]."""
    figure, axes = _axes(9, 2.8, "step", "training loss")
    axes.plot(losses, color=GREY, linewidth=0.6, label="batch")
    ends = np.r_[0, steps]
    mean = np.add.reduceat(losses, ends[:-1]) / np.diff(ends)
    axes.plot((ends[:-1] + ends[1:]) / 2, mean, color=BLUE, label="mean between checkpoints")
    _make_log(axes, "y")
    axes.legend(**SMALL)
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
        _make_log(axes, "x")
        axes.set_ylim(low - 0.05, 1.05)
        axes.set_title(f"{score}: {shown[0]['counterfactuals']} removals", fontsize=10)
        axes.set_xlabel("seconds: online (hollow), with offline (full)")
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("Spearman correlation with retraining")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def points_figure(
    split: Split,
    queries: np.ndarray,
    guesses: np.ndarray,
    order: np.ndarray,
    scores: np.ndarray,
    shown: int,
) -> Figure:
    """Queries beside the training points that helped (blue) and harmed (red) them most.

    Args:
        order: training points [N, queries], the most helpful first, as `scores` say.
    """
    rows = []
    for place, query in enumerate(queries[:8]):
        row = _query(split, query, guesses[place], f"query {query}\n")
        for colour, chosen in ((BLUE, order[:shown]), (RED, order[::-1][:shown])):
            for point in chosen[:, place]:
                value = f"  {scores[point, place]:+.2g}"
                row.append(_point(split, point, colour=colour, after=value))
        rows.append(row)
    return _gallery(rows)


def ranked_figure(split: Split, found: dict[str, np.ndarray], shown: int) -> Figure:
    """The points with the lowest values of each ranking, with their given labels."""
    rows: list[Row] = []
    for name, values in found.items():
        worst = np.argsort(values, kind="stable")[:shown]
        colours = [RED if flipped else GREY for flipped in split.flipped[worst]]
        shown_points = zip(worst, colours, strict=True)
        rows.append([name, *(_point(split, row, colour=colour) for row, colour in shown_points)])
    return _gallery(rows)


def effects_figure(joint: np.ndarray, summed: np.ndarray) -> Figure:
    """Joint effects of several groups against the sum of their single ones."""
    labels = "sum of the single effects", "effect of all of them together"
    figure, axes = _axes(4.6, 4, *labels)
    axes.scatter(summed, joint, s=8, alpha=0.4, color=BLUE, linewidths=0)
    _diagonal(axes, summed, joint, "they add up")
    return figure


def bars_figure(values: dict[str, Any], measures: list[str]) -> Figure:
    """A group of bars for each measure, a colour for each network."""
    figure, axes = _axes(7, 3.2)
    width = 0.8 / len(values)
    for place, (name, found) in enumerate(values.items()):
        left = np.arange(len(measures)) + (place - (len(values) - 1) / 2) * width
        axes.bar(left, found, width, label=name, color=PALETTE[place])
        for x, value in zip(left, found, strict=True):
            axes.text(x, value + 0.01, f"{value:.2f}", ha="center", fontsize=7)
    axes.set_xticks(range(len(measures)), measures)
    axes.set_ylim(0, 1.12)
    axes.legend(**SMALL, ncols=3, loc="upper center")
    return figure


def profiles_figure(first: np.ndarray, second: np.ndarray, one: str, two: str) -> Figure:
    """How much each of two networks relies on each group."""
    figure = TextFigure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    place = np.arange(len(first))
    left.bar(place - 0.2, first, 0.4, color=BLUE, label=one)
    left.bar(place + 0.2, second, 0.4, color=RED, label=two)
    _count(left.xaxis)
    left.set(xlabel="group", ylabel="share of all effects")
    left.legend(**SMALL)
    right.scatter(first, second, s=14, color=INK)
    _diagonal(right, np.zeros(1), 1.05 * np.maximum(first, second), None)
    right.set(xlabel=one, ylabel=two)
    return figure


def _axes(width: float, height: float, xlabel: str = "", ylabel: str = "") -> tuple[Figure, Any]:
    figure = TextFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(subplot_kw={"xlabel": xlabel, "ylabel": ylabel})


def _gallery(rows: Sequence[Row], width: float = 0.85, titles: Any = "center") -> Figure:
    """Rows of pictures and texts."""
    size = (width * max(map(len, rows)) + 0.4, 1.0 * len(rows) + 0.1)
    figure = TextFigure(figsize=size, layout="constrained")
    _draw_rows(figure, rows, titles)
    return figure


def _draw_rows(figure: FigureBase, rows: Sequence[Row], titles: Any = "center") -> None:
    """Draw a gallery; a text that begins a row stands at its first picture."""
    grid = figure.subplots(len(rows), max(map(len, rows)), squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for place, (axes, shown) in enumerate(zip(line, _filled(row, len(line)), strict=True)):
            if isinstance(shown, str):
                axes.set_axis_off()
                at, side = (0.5, "center") if place else (1.0, "right")
                axes.text(at, 0.5, shown, ha=side, va="center", fontsize=8)
                continue
            grey = shown.pixels.shape[-1] == 1
            pixels = shown.pixels[..., 0] if grey else shown.pixels
            axes.imshow(pixels, cmap="gray_r" if grey else None, vmin=0, vmax=1)
            colour = INK if shown.colour in (None, GREY) else shown.colour
            axes.set_title(shown.title, fontsize=7, loc=titles, color=colour)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color(shown.colour or GREY)
                spine.set_linewidth(1.2 if shown.colour else 0.4)


def _filled(row: Sequence[Shown | str], count: int) -> Row:
    return [*row, *[""] * (count - len(row))]


def _members(split: Split, groups: Groups, group: int, count: int) -> Row:
    """The first members of a group, with their labels."""
    rows = np.flatnonzero(np.asarray(groups.ids) == group)[:count]
    return _filled([_point(split, row) for row in rows], count)


def _point(
    split: Split, row: int, title: str | None = None, colour: str | None = None, after: str = ""
) -> Shown:
    """A training point, by default under its label."""
    if title is None:
        title = split.classes[split.train.y[row].argmax()] + after
    return Shown(split.pixels(split.train.x[row]), title, colour)


def _query(split: Split, query: Any, said: Any, head: str = "") -> Row:
    """The first two places of a row: what a query is, and was taken for, and its picture."""
    wanted = split.test.y[query].argmax()
    mistake = f",\ntaken for\n{split.classes[said]}" if said != wanted else ""
    pixels = split.pixels(split.test.x[query])
    return [f"{head}{split.classes[wanted]}{mistake}", Shown(pixels, "", INK)]


def _spread(count: int) -> np.ndarray:
    """Places of groups to show, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(SHOWN_GROUPS, count)).round().astype(int))


def _nearest(x: np.ndarray, members: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Members of a group, those nearest to the query first."""
    away = ((x[members] - query) ** 2).reshape(len(members), -1).sum(1)
    return members[np.argsort(away, kind="stable")]


def _diagonal(axes, one: np.ndarray, two: np.ndarray, label: str | None) -> None:
    ends = [min(one.min(), two.min()), max(one.max(), two.max())]
    axes.plot(ends, ends, color=GREY, linewidth=1, label=label)
    if label is not None:
        axes.legend(**SMALL)


def _count(axis) -> None:
    """Put ticks at whole numbers alone."""
    axis.set_major_locator(MaxNLocator(integer=True))


def _make_log(axes, which: str) -> None:
    """Make the axis "x" or "y" logarithmic, with ticks in plain text."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
