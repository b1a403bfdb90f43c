"""What a run found: metrics, figures and one self-contained HTML page."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jinja2
import numpy as np

from ddm_jax import files
from ddm_jax.attribution import AXES, SIGN
from ddm_jax.metrics.intervals import LEVEL
from ddm_jax.run import check as checking
from ddm_jax.run import figures, passages
from ddm_jax.run.drawing import group_names, png
from ddm_jax.run.plan import Plan
from ddm_jax.run.settings import as_json
from ddm_jax.run.targets import performance
from ddm_jax.run.wording import in_seconds, is_defined, number, objective_in_words
from ddm_jax.run.workdir import KeptAnswer, kept_answers, versions
from ddm_jax.run.worth import cost_table, told_updates
from ddm_jax.synset import batch_size
from ddm_jax.types import length
from ddm_jax.updates import settled

if TYPE_CHECKING:
    from ddm_jax.run.jobs import Results

SHOWN_GROUPS = 5  # that help most, and as many that harm most
AGREEMENT = {
    "ddm": "DDM",
    "grad_dot": "grad-dot",
    "one_retraining": "one retraining",
    "perfect": "perfect predictor",
}


def summarise(plan: Plan, results: Results, seconds: dict[str, float]) -> dict[str, Any]:
    """The numbers of a run, JSON values only."""
    split, config, target = plan.split, plan.config, results.target
    synset, info, truth = results.synset.synset, results.synset.info, results.check.truth
    good = performance(split, plan.task, target.params)
    num_groups, update = len(synset.share), settled(results.tuning.update)
    pool = length(split.train) if results.tuning.pool == "data" else len(synset.mass)
    step_items = batch_size(pool, update.batch)
    classes = good.name == "accuracy"
    error = float(np.median(info.error))
    before = float(np.median(info.error_start))
    worse = int(np.sum(np.asarray(info.error) > np.asarray(info.error_start)))
    matching = f"Median matching error at held-out checkpoints: {error:.2g} "
    if config.distill.steps:
        matching += (
            f"(before distillation {before:.2g}; an empty synset has 1). It is worse than before "
            f"for {worse} of {num_groups} groups."
        )
    else:
        matching += (
            "(an empty synset has 1). Items were chosen and weighted, and nothing distilled."
        )
    return {
        "dataset": split.name,
        "settings": as_json(config),
        "sizes": {
            "training points": length(split.train),
            "queries": length(split.test),
            "groups": num_groups,
            "synset items": len(synset.mass),
            "items of an online step": step_items,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(target.params)),
            **({"flipped training labels": int(split.flipped.sum())} if classes else {}),
        },
        "performance": good._asdict(),
        # Of networks that say classes, as it was before there were others.
        **({"accuracy": {"train": good.train, "test": good.test}} if classes else {}),
        "objective": config.online.objective,
        "lower_is_better": plan.task.lower_is_better,
        "sign": SIGN,
        "axes": AXES,
        "matching_error": {
            "held_out_median": error,
            "held_out_median_before_distillation": before,
            "held_out_worst": float(np.max(info.error)),
            "groups_made_worse": worse,
        },
        "agreement": checking.agreement(results.check, results.groups),
        "seconds": seconds,
        "online_example_gradients": {
            "ddm": update.steps * step_items,
            "retraining": int((np.asarray(target.rows) >= 0).sum()),
        },
        "seconds_a_retrained_network": truth.seconds,
        "updates": told_updates(
            results.tuning, seconds, step_items, int((np.asarray(target.rows) >= 0).sum())
        ),
        "intervals": {
            "level": LEVEL,
            "single_groups_larger": float(
                (np.abs(results.attribution.scores) > results.attribution.half_widths).mean()
            ),
        },
        "groups": told_groups(results, plan.task.lower_is_better),
        **({"passages": told_passages(plan, results)} if are_documents(plan, results) else {}),
        "sentences": [
            good.sentence,
            f"Offline (clustering aside): {seconds['target']:.1f} s training, "
            f"{seconds['synset']:.1f} s distilling. Online: {seconds['attribution']:.1f} s for "
            f"{num_groups} held-out groups, compilation included. Retraining all of them takes "
            f"about {in_seconds(truth.seconds * (num_groups + 1))} a seed "
            f"({in_seconds(truth.seconds)} a network).",
            matching,
            *checking.told_sizes(results.check, results.groups),
        ],
    }


def told_groups(results: Results, lower_is_better: bool) -> list[dict[str, Any]]:
    """The groups that help the queries most and harm them most, on average; JSON values."""
    scores, wide = results.attribution.scores, results.attribution.half_widths
    names, sizes = group_names(results.attribution.groups), results.attribution.groups.sizes()
    help_ = (-1 if lower_is_better else 1) * scores
    order = np.argsort(-help_.mean(1), kind="stable")
    chosen = (
        order if len(order) <= 2 * SHOWN_GROUPS else [*order[:SHOWN_GROUPS], *order[-SHOWN_GROUPS:]]
    )
    sure = np.abs(scores) > wide
    return [
        {
            "group": names[each],
            "points": int(sizes[each]),
            "mean": float(scores[each].mean()),
            "helps": float((sure[each] & (help_[each] > 0)).mean()),
            "harms": float((sure[each] & (help_[each] < 0)).mean()),
        }
        for each in chosen
    ]


def groups_table(result: dict[str, Any]) -> list[list[str]]:
    """Groups from the most helpful to the most harmful; the head first."""
    sides = ("raises", "lowers") if ":" in result["objective"] else ("helps", "harms")
    lines = [["group", "points", "mean effect", *(f"queries it surely {side}" for side in sides)]]
    for row in result.get("groups", []):  # which older runs did not write
        shares = (f"{row[name]:.0%}" for name in ("helps", "harms"))
        lines.append([row["group"], f"{row['points']:,}", f"{row['mean']:+.3g}", *shares])
    return lines if len(lines) > 1 else []


def are_documents(plan: Plan, results: Results) -> bool:
    """Whether each query is a sequence of a document, which has words to show."""
    queries = results.attribution.scores.shape[1]
    return plan.split.tokenizer is not None and queries == length(plan.split.test)


def told_passages(plan: Plan, results: Results) -> list[dict[str, Any]]:
    """The queries with the largest effects, and the documents and passages behind them."""
    found = passages.explain_queries(
        plan.split,
        plan.task,
        results.target.params,
        results.synset.synset,
        results.attribution,
    )
    named = [("raised by", "raises"), ("lowered by", "lowers")]
    return [
        {
            "query": each.query,
            "text": each.text,
            "output": each.output,
            "rows": [
                {"what": what} | one._asdict()
                for what, side in named
                for one in getattr(each, side)
            ],
        }
        for each in found
    ]


def write(
    plan: Plan,
    workdir: Path,
    results: Results,
    seconds: dict[str, float],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write metrics.json, figures/*.png and report.html; returns the metrics as written."""
    result = files.plain(summarise(plan, results, seconds) | {"versions": versions()})
    files.write_json(workdir / "metrics.json", result)
    split, target, groups = plan.split, results.target, results.groups
    synset, info = results.synset.synset, results.synset.info
    error, before = np.asarray(info.error), np.asarray(info.error_start)
    drawn = {
        "agreement": figures.agreement_figure(results.check),
        "matrix": figures.matrix_figure(results.attribution, split),
        **(
            {}
            if are_documents(plan, results)
            else {"mistakes": figures.mistakes_figure(plan, target, results.attribution)}
        ),
        "synset": figures.synset_figure(plan, groups, synset, error),
        "matching": figures.matching_figure(error, before if plan.config.distill.steps else None),
        "groups": figures.groups_figure(plan, groups),
        "training": figures.training_figure(np.asarray(target.losses), np.asarray(target.steps)),
    }
    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        files.write_whole(folder / f"{name}.png", png(figure))
    rewrite(plan, workdir, say)
    return result


def rewrite(plan: Plan, workdir: Path, say: Callable[[str], None] = lambda text: None) -> None:
    """Write report.html again from metrics.json, the figures and the answers that are there.

    Raises:
        ValueError: where metrics.json is damaged.
    """
    mend = f"`ddm report --workdir {workdir}` writes it again"
    result = files.read_json(workdir / "metrics.json", mend=mend)
    pictures = {path.stem: path.read_bytes() for path in (workdir / "figures").glob("*.png")}
    # A file name may hold bytes that are no text.
    text = page(plan, result, pictures, kept_answers(workdir, say)).encode(errors="replace")
    files.write_whole(workdir / "report.html", text)


def page(
    plan: Plan,
    result: dict[str, Any],
    pictures: dict[str, bytes],
    answers: Sequence[tuple[KeptAnswer, bytes]] = (),
) -> str:
    """One HTML page with everything in it; `pictures` are PNG files by name."""

    def embedded(content: bytes) -> str:
        return base64.b64encode(content).decode()

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    times = [[name, f"{value:.1f} s"] for name, value in result["seconds"].items()]
    now = as_json(plan.config)
    then = result.get("settings", now)  # which older runs did not write
    told = result | {
        "config": plan.config,
        "targets": plan.split.targets,
        # Of what the network says of one class or number neither more nor less is better.
        "neither": ":" in plan.config.online.objective,
        "objective_in_words": objective_in_words(plan.split, result["objective"]),
        "settings": json.dumps(then, indent=2),
        # The truth of `ddm truth` is no part of the report.
        "changed": sorted(name for name in now if name != "truth" and now[name] != then.get(name)),
        "agreement": agreement_table(result),
        "costs": cost_table(result),
        "group_lines": groups_table(result),
        "times": [["stage", "compilation included"], *times],
        "pictures": {name: embedded(content) for name, content in pictures.items()},
        "answers": [asdict(told) | {"picture": embedded(image)} for told, image in answers],
    }
    return environment.from_string(template).render(told)


def agreement_table(result: dict[str, Any]) -> list[list[str]]:
    """How well DDM agrees with retraining, beside what bounds it; the head first."""
    lines = [["what was removed", *AGREEMENT.values()]]
    for row in result["agreement"]:
        low, high = row["ddm_interval"]
        interval = f" ({low:.2f} to {high:.2f})" if is_defined(low) and is_defined(high) else ""
        ddm, *others = (number(row[name]) for name in AGREEMENT)
        lines.append([row["what"], ddm + interval, *others])
    return lines
