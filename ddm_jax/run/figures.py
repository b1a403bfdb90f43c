"""The figures of a report, each a function of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np
from matplotlib.figure import Figure

from ddm_jax.attribution import Attribution
from ddm_jax.cluster import flat_features
from ddm_jax.items import items_of
from ddm_jax.run import targets
from ddm_jax.run.drawing import (
    BLUE,
    GREY,
    INK,
    RED,
    SHOWN_QUERIES,
    SMALL,
    Row,
    Shown,
    TextFigure,
    diagonal,
    draw_rows,
    example,
    fewer,
    filled,
    gallery,
    group_names,
    make_log,
    member_pictures,
    nearest,
    one_panel,
    point_picture,
    query_pictures,
    spread_groups,
    whole_ticks,
)
from ddm_jax.run.wording import objective_in_words
from ddm_jax.types import length, take

if TYPE_CHECKING:
    from ddm_jax.data import Split
    from ddm_jax.run.check import Check
    from ddm_jax.run.plan import Plan
    from ddm_jax.types import Groups, Synset, TrainRun

LONGEST, LETTER = 40, 0.065  # letters of an upright name, and inches of each


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
        diagonal(axes, predicted, true, "equal")
        axes.set_title(title.format(len(predicted)), fontsize=10)
        axes.set(xlabel=f"{label}: DDM", ylabel=f"{label}:\nretraining (mean of seeds)")
    return figure


def matrix_figure(attribution: Attribution, split: Split) -> Figure:
    """The attribution matrix as a heat map, queries sorted by what they are."""
    scores, queries = attribution.scores, length(split.test)
    figure, axes = one_panel(9, 4.5, "outputs", "group left out")
    if scores.shape[1] == queries:
        order, ticks, by = targets.order(split, queries)
        scores = scores[:, order]
        axes.set_xlabel(f"{queries} queries{by}")
        if ticks:
            for edge in targets.edges(split)[1:-1]:
                axes.axvline(edge - 0.5, color=INK, linewidth=0.3)
            places, names = zip(*ticks, strict=True)
            axes.set_xticks(places, names, rotation=0 if len(max(names, key=len)) < 3 else 45)
    whole_ticks(axes.yaxis)
    if (groups := attribution.groups.names) is not None:
        axes.set_yticks(range(len(groups)), groups, fontsize=max(3, min(9, 180 / len(groups))))
    reach = float(np.percentile(np.abs(scores), 99)) or 1.0
    blue_helps = "RdBu_r" if attribution.metadata.get("lower_is_better") else "RdBu"
    drawn = axes.imshow(
        scores, cmap=blue_helps, vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest"
    )
    objective = objective_in_words(split, str(attribution.metadata.get("objective")))
    figure.colorbar(drawn, ax=axes, extend="both", label=f"{objective}: with - without")
    return figure


def mistakes_figure(plan: Plan, target: TrainRun, attribution: Attribution) -> Figure:
    """The worst answers beside members of the groups that harmed and helped them most.

    Of classes and labels those that are wrong; of numbers the ones that are farthest off.
    """
    split, scores = plan.split, attribution.scores
    per_query = scores.shape[1] == length(split.test)
    worst = np.zeros(0, int)
    if per_query:
        worst = targets.worst(split, plan.task, target.params, split.test)
    said = targets.said_of(split, plan.task, target.params, worst)
    if split.classes and per_query:
        wrong = [said[query] != targets.label(split, split.test.y[query]) for query in worst]
        worst = worst[np.asarray(wrong, bool)]
    if not len(worst):
        figure = TextFigure(figsize=(9, 0.6))
        text = "No query is misclassified." if per_query else "The objective is not per query."
        figure.text(0.02, 0.4, text)
        return figure
    helps = -scores if plan.task.lower_is_better else scores
    names, members = group_names(attribution.groups), fewer(split, 4)
    flat = flat_features(split.train.x), flat_features(split.test.x)
    rows = []
    for query in worst[:SHOWN_QUERIES]:
        row = query_pictures(split, query, said[query])
        order = np.argsort(helps[:, query], kind="stable")
        few = min(2, len(order) // 2)  # no group on both sides
        for colour, chosen in ((RED, order[:few]), (BLUE, order[::-1][:few])):
            for group in chosen:
                inside = attribution.members(group)
                near = nearest(flat[0], inside, flat[1][query])[:members]
                if (helps[group, query] < 0) != (colour == RED):
                    near = near[:0]  # fewer than two harmed it, or helped
                titles = [f"{names[group]}: {scores[group, query]:+.2g}", *[""] * members]
                shown = zip(near, titles, strict=False)
                row += filled([point_picture(split, *each, colour) for each in shown], members)
        rows.append(row)
    return gallery(rows, width=0.62, titles="left")


def synset_figure(plan: Plan, groups: Groups, synset: Synset, error: np.ndarray) -> Figure:
    """Synthetic items beside real members, for groups spread over the matching error [K]."""
    split, names = plan.split, group_names(groups)
    examples = jax.tree.map(np.asarray, items_of(plan.task).batch(synset.items))
    mass = np.asarray(synset.mass)
    owner = np.asarray(synset.group)
    most = min(int(np.bincount(owner[owner >= 0]).max()), fewer(split, 5))
    rows = []
    for group in np.argsort(error, kind="stable")[spread_groups(groups.count)]:
        items = np.flatnonzero(owner == group)
        heaviest = items[np.argsort(-np.abs(mass[items]))][:most]
        shown = []
        for item in heaviest:
            one = take(examples, item)
            named = targets.label(split, one.y)
            title = f"{named}, {mass[item]:.2g}" if named else f"{mass[item]:.2g}"
            shown.append(Shown(example(split, one.x), title, BLUE))
        told = f"{names[group]}\nerror {error[group]:.2g}"
        rows.append([*filled(shown, most), told, *member_pictures(split, groups, group, 5)])
    return gallery(rows)


def matching_figure(error: np.ndarray, before: np.ndarray | None) -> Figure:
    """Matching error [K] of each group at held-out checkpoints, with that before distillation.

    Args:
        before: None where nothing was distilled.
    """
    figure, axes = one_panel(9, 3, "groups, best matched first", "|g - h|² / |g|²")
    order = np.argsort(error, kind="stable")
    if before is not None:
        axes.plot(before[order], "o", markersize=3.5, color=GREY, label="before")
    now = "chosen items" if before is None else "distilled"
    axes.plot(error[order], "o", markersize=3.5, color=BLUE, label=now)
    axes.axhline(1, color=RED, linewidth=0.8, label="an empty synset")
    make_log(axes, "y")
    whole_ticks(axes.xaxis)
    axes.legend(**SMALL, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))  # above the data
    return figure


def groups_figure(plan: Plan, groups: Groups) -> Figure:
    """The sizes of the groups, and members of some of them."""
    sizes, names, shown = groups.sizes(), group_names(groups), spread_groups(groups.count)
    rows: list[Row] = [
        [
            f"{names[group]}\n{sizes[group]} point{'' if sizes[group] == 1 else 's'}",
            *member_pictures(plan.split, groups, group, 10),
        ]
        for group in shown
    ]
    upright = groups.names is not None and len(names) > 8
    labels = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    written = LETTER * max(map(len, labels)) if upright else 0.0
    heights = (2 + written, 0.8 * len(shown))
    figure = TextFigure(figsize=(9, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = above.subplots()
    axes.bar(np.arange(len(sizes)), sizes, color=BLUE)
    whole_ticks(axes.xaxis)
    axes.set(xlabel="group", ylabel="training points")
    if groups.names is not None:
        axes.set_xticks(range(len(names)), labels, fontsize=7, rotation=90 if upright else 0)
    draw_rows(below, rows)
    return figure


def training_figure(losses: np.ndarray, steps: np.ndarray) -> Figure:
    """The training loss by step, and its mean between the checkpoints after `steps` [T]."""
    figure, axes = one_panel(9, 2.8, "step", "training loss")
    axes.plot(losses, color=GREY, linewidth=0.6, label="batch")
    ends = np.r_[0, steps]
    mean = np.add.reduceat(losses, ends[:-1]) / np.diff(ends)
    axes.plot((ends[:-1] + ends[1:]) / 2, mean, color=BLUE, label="mean between checkpoints")
    make_log(axes, "y")
    axes.legend(**SMALL)
    return figure
