"""What a run found: metrics, tables and one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
from collections.abc import Sequence
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

from ddm_jax.figures import (
    INK,
    agreement_figure,
    groups_figure,
    matching_figure,
    matrix_figure,
    mistakes_figure,
    synset_figure,
    training_figure,
)


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
            "pooled",
            single,
            grad_dot[check.groups],
            effects,
        ),
        _agreement(
            f"one group left out ({count} groups), per query, Spearman",
            "per query",
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
                "per query",
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
            "of them in an online step": min(items, config.online.step_items),
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


def _agreement(what, over, ddm, grad_dot, truth) -> dict[str, Any]:
    mean = truth.mean(0)
    if over == "pooled":
        ceiling = metrics.noise_ceiling(truth, "pearson", pooled=True)
        scores = [metrics.pooled_correlation(each, mean) for each in (ddm, grad_dot)]
        interval = (float("nan"), float("nan"))
    else:
        ceiling = metrics.noise_ceiling(truth)
        judged = [metrics.agreement(each, mean) for each in (ddm, grad_dot)]
        scores, interval = [each.mean for each in judged], judged[0].over_rows
    return {
        "what": what,
        "ddm": scores[0],
        "ddm_interval": list(interval),
        "grad_dot": scores[1],
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
    """Write metrics.json, figures/*.png and report.html; returns the metrics as written."""
    from ddm_jax.pipeline import versions

    result = without_nan(summarise(plan, target, groups, synset, check, seconds))
    result["versions"] = versions()
    (workdir / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
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
    rewrite(plan, workdir)
    return result


def rewrite(plan: Plan, workdir: Path) -> None:
    """Write report.html again from metrics.json, the figures and the answers that are there."""
    folder = workdir / "figures"
    result = json.loads((workdir / "metrics.json").read_text())
    pictures = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))}
    (workdir / "report.html").write_text(page(plan, result, pictures, answers(plan, workdir)))


def answers(plan: Plan, workdir: Path) -> list[tuple[str, str]]:
    """Titles and HTML of the answers (`ddm points` and others) that fit the run's settings."""
    from ddm_jax.workdir import fingerprint_of

    found = []
    for path in sorted((workdir / "answers").glob("*.json")):
        told = json.loads(path.read_text())
        if told["fingerprint"] != fingerprint_of(plan, "attribution"):
            continue
        head, *lines = told["table"]
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
            for line in lines
        )
        text = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in told["sentences"])
        table = f"<table><tr>{cells}</tr>{rows}</table>"
        shown = _image(path.with_suffix(".png").read_bytes())
        found.append((html.escape(told["title"]), text + table + shown))
    return found


def without_nan(value: Any) -> Any:
    """Replace what JSON has no word for by null."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def page(
    plan: Plan,
    result: dict[str, Any],
    pictures: dict[str, bytes],
    more: Sequence[tuple[str, str]] = (),
) -> str:
    """One HTML page with everything in it; `pictures` are PNG files by name, `more` sections."""
    config = plan.config
    rows = "".join(
        "<tr><td>{}</td>{}</tr>".format(
            html.escape(row["what"]),
            "".join(
                f"<td>{number(row[c])}{_interval(row) if c == 'ddm' else ''}</td>"
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
<p>Each number is a correlation with exact retraining, the mean of {config.check.seeds} seeds;
in brackets 95 % intervals over what was removed.
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
        *more,
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


def _interval(row: dict[str, Any]) -> str:
    low, high = row["ddm_interval"]
    return f" ({low:.2f} to {high:.2f})" if is_defined(low) and is_defined(high) else ""


def is_defined(value: float | None) -> bool:
    """Whether a number is there: neither NaN nor the null that stands for it in JSON."""
    return value is not None and bool(np.isfinite(value))


def number(value: float | None) -> str:
    """Three decimals, or that there is no number."""
    return f"{value:.3f}" if value is not None and is_defined(value) else "undefined"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _image(picture: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
