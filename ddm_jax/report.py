"""What a run found: metrics, tables, figures and one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from matplotlib.figure import Figure

from ddm_jax import metrics
from ddm_jax.attribution import AXES, SIGN, Attribution
from ddm_jax.parallel import in_batches

if TYPE_CHECKING:
    from ddm_jax.pipeline import CheckResult, Plan, SynsetResult
    from ddm_jax.types import TrainRun

INK, BLUE, RED, GREY = "#222222", "#2f6db3", "#c8452f", "#9aa0a6"
SHOWN_GROUPS = 12
SHOWN_QUERIES = 4


def summarise(
    plan: Plan,
    target: TrainRun,
    groups: np.ndarray,
    synset: SynsetResult,
    check: CheckResult,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The numbers of a run, JSON values only."""
    split, config = plan.split, plan.config
    apply = in_batches(plan.task.apply)

    def accuracy(batch) -> float:
        hits = np.asarray(apply(target.params, batch.x)).argmax(1) == batch.y.argmax(1)
        return float(hits.mean())

    count = len(check.groups)
    retrained = np.asarray(check.retrained)
    effects = retrained[:, :1] - retrained[:, 1 : 1 + count]
    predicted = np.asarray(check.predicted)
    single = predicted[0] - predicted[1 : 1 + count]
    grad_dot = np.asarray(check.grad_dot)
    agreement = [
        _agreement(
            f"one group left out ({count} groups), all pairs, Pearson",
            metrics.pooled_correlation,
            single,
            grad_dot[check.groups],
            effects,
        ),
        _agreement(
            f"one group left out ({count} groups), per query, Spearman",
            metrics.leave_one_out_correlation,
            single,
            grad_dot[check.groups],
            effects,
        ),
    ]
    if len(check.masks) - 1 - count >= 2:
        halves = slice(1 + count, None)
        agreement.append(
            _agreement(
                f"half of the groups left out ({len(check.masks) - 1 - count} halves), LDS",
                metrics.linear_datamodeling_score,
                predicted[halves],
                np.asarray(check.masks)[halves] @ grad_dot,
                retrained[:, halves],
            )
        )
    networks = retrained.shape[0] * retrained.shape[1]
    one = seconds["check"] / networks
    num_groups = len(synset.error)
    offline = seconds["synset"]
    online = seconds["attribution"]
    items = config.distill.items
    result = {
        "dataset": config.data.name,
        "sizes": {
            "training points": len(split.train.x),
            "queries": len(split.test.x),
            "groups": num_groups,
            "synset items a group": items,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(target.params)),
            "flipped training labels": int(split.flipped.sum()),
        },
        "accuracy": {"train": accuracy(split.train), "test": accuracy(split.test)},
        "objective": config.online.objective,
        "sign": SIGN,
        "axes": AXES,
        "matching_error": {
            "held_out_median": float(np.median(synset.error)),
            "held_out_median_before_distillation": float(np.median(synset.error_start)),
            "held_out_worst": float(np.max(synset.error)),
            "groups_made_worse": int(np.sum(synset.error > synset.error_start)),
        },
        "agreement": agreement,
        "seconds": seconds,
        "online_example_gradients": {
            "ddm": config.online.steps * num_groups * items,
            "retraining": int(target.rows.size),
        },
        "seconds_a_retrained_network": one,
    }
    result["sentences"] = [
        f"The network is right on {result['accuracy']['test']:.1%} of {len(split.test.x)} queries "
        f"({result['accuracy']['train']:.1%} of {len(split.train.x)} training points).",
        f"Offline (clustering aside): {seconds['target']:.1f} s training, {offline:.1f} s "
        f"distilling. Online: {online:.1f} s for {num_groups} held-out groups, compilation "
        f"included. Retraining all of them takes about {one * (num_groups + 1):.0f} s a seed "
        f"({one:.2f} s a network).",
        f"Median matching error at held-out checkpoints: "
        f"{result['matching_error']['held_out_median']:.3f} "
        f"(before distillation {np.median(synset.error_start):.3f}; an empty synset has 1).",
    ]
    return result


def _agreement(what, score, ddm, grad_dot, truth) -> dict[str, Any]:
    ceiling = metrics.noise_ceiling(truth, score)
    mean = truth.mean(0)
    return {
        "what": what,
        "ddm": score(ddm, mean),
        "grad_dot": score(grad_dot, mean),
        "one_retraining": ceiling.one_run,
        "perfect": ceiling.perfect,
    }


def write(
    plan: Plan,
    workdir: Path,
    target: TrainRun,
    groups: np.ndarray,
    synset: SynsetResult,
    attribution: Attribution,
    check: CheckResult,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Write metrics.json, figures/*.png and report.html; returns the metrics."""
    from ddm_jax.pipeline import versions

    result = summarise(plan, target, groups, synset, check, seconds)
    result["versions"] = versions()
    (workdir / "metrics.json").write_text(json.dumps(_without_nan(result), indent=2) + "\n")
    every = plan.config.train.checkpoint_every * len(target.losses) // plan.config.train.epochs
    figures = {
        "agreement": agreement_figure(check),
        "matrix": matrix_figure(attribution, plan.split.test.y.argmax(1), plan.split.classes),
        "mistakes": mistakes_figure(plan, target, attribution),
        "synset": synset_figure(plan, groups, synset),
        "matching": matching_figure(synset),
        "groups": groups_figure(plan, groups),
        "training": training_figure(np.asarray(target.losses), every),
    }
    pictures = {name: _png(figure) for name, figure in figures.items()}
    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        (folder / f"{name}.png").write_bytes(picture)
    (workdir / "report.html").write_text(page(plan, result, pictures))
    return result


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


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
        _picture(grid[row, 1], split.pixels(split.test.x[query]), INK)
        order = np.argsort(sign * attribution.scores[:, query], kind="stable")
        chosen = [*order[:kinds], *order[::-1][:kinds]]
        for place, group in enumerate(chosen):
            rows = _nearest(split.train.x, attribution.members(group), split.test.x[query], members)
            colour = RED if place < kinds else BLUE
            for n in range(members):
                axes = grid[row, 2 + place * members + n]
                if n < len(rows):
                    _picture(axes, split.pixels(split.train.x[rows[n]]), colour)
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
            _picture(axes, split.pixels(np.asarray(synset.x[group, item])), BLUE)
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
                _picture(axes, split.pixels(split.train.x[rows[n]]))
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
                _picture(grid[row, n + 1], split.pixels(split.train.x[rows[n]]))
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


def _picture(axes, pixels: np.ndarray, colour: str | None = None) -> None:
    grey = pixels.shape[-1] == 1
    axes.imshow(pixels[..., 0] if grey else pixels, cmap="gray_r" if grey else None, vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour or GREY)
        spine.set_linewidth(1.2 if colour else 0.4)


def page(plan: Plan, result: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """One HTML page with everything in it; `pictures` are PNG files by name."""
    config = plan.config
    rows = "".join(
        "<tr><td>{}</td>{}</tr>".format(
            html.escape(row["what"]),
            "".join(
                f"<td>{_number(row[c])}</td>"
                for c in ("ddm", "grad_dot", "one_retraining", "perfect")
            ),
        )
        for row in result["agreement"]
    )
    sizes = ", ".join(f"{value:,} {name}" for name, value in result["sizes"].items())
    times = "".join(
        f"<tr><td>{name}</td><td>{value:.1f} s</td></tr>"
        for name, value in result["seconds"].items()
    )
    chosen = html.escape(json.dumps(dataclasses.asdict(config), indent=2))
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    cost = result["online_example_gradients"]
    sections = [
        (
            "Can it be trusted?",
            f"""<table><tr><th>what was removed</th><th>DDM</th><th>grad-dot</th>
<th>one retraining</th><th>perfect predictor</th></tr>{rows}</table>
<p>Each number is a correlation with exact retraining, the mean of {config.check.seeds} seeds.
<i>One retraining</i> is a single exact retraining against the mean of the others;
<i>perfect predictor</i> is the most that anything could score against a truth this noisy
(Spearman-Brown). Above the diagonal of the figure, retraining finds a larger effect than DDM
does.</p>"""
            + _image(pictures["agreement"]),
        ),
        (
            "Attribution matrix",
            f"<p>{html.escape(AXES)}; {html.escape(SIGN)} "
            f"(<code>{config.online.objective}</code>). "
            "Colours saturate at the 99th percentile.</p>" + _image(pictures["matrix"]),
        ),
        (
            "Mistakes and where they come from",
            "<p>The most confident mistakes. Red: members of the two groups that hurt the query "
            "most; blue: of the two that helped most; in each group the members nearest to the "
            "query. The number is the score.</p>" + _image(pictures["mistakes"]),
        ),
        (
            "Synset",
            "<p>Blue frames: distilled items with their likeliest label and mass, heaviest first; "
            "beside them real members of the group. Groups run from the best to the worst matched."
            "</p>" + _image(pictures["synset"]),
        ),
        (
            "Matching error",
            "<p>How far the gradient of each group's synset is from the group's own, at "
            "checkpoints that distillation did not see.</p>" + _image(pictures["matching"]),
        ),
        ("Groups", _image(pictures["groups"])),
        ("Training", _image(pictures["training"])),
        (
            "Cost",
            f"<table><tr><th>stage</th><th>compilation included</th></tr>{times}</table>"
            f"<p>One counterfactual costs {cost['ddm']:,} example gradients online; retraining "
            f"costs {cost['retraining']:,}.</p>",
        ),
        (
            "Settings",
            f"<details><summary>config.json</summary><pre>{chosen}</pre></details>"
            f"<p>{html.escape(versions)}</p>",
        ),
    ]
    body = "".join(f"<h2>{title}</h2>{text}" for title, text in sections)
    sentences = "".join(f"<p>{html.escape(text)}</p>" for text in result["sentences"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ddm: {html.escape(config.data.name)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: {INK};
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100% }} table {{ border-collapse: collapse }}
td, th {{ padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right }}
td:first-child, th:first-child {{ text-align: left }} pre {{ font-size: 13px }}
</style></head><body>
<h1>{html.escape(config.data.name)}: which training data did it</h1>
<p>{html.escape(sizes)}.</p>{sentences}{body}
</body></html>
"""


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "undefined"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _image(picture: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
