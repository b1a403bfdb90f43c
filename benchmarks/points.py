"""Single points from the synset, judged on random halves of the training points.

Digits: 40 halves of the points, 8 retrainings each. dattri's MLP: 50 halves, 4 retrainings each.
Damping, window and items were chosen on partition 1 (SETTINGS); partitions 10 and on are reported.
*One run* judges by a single retraining a half, as dattri does. The truth is the loss; *by margin*
is minus the influence on the margin: a query's loss has a gradient of almost nothing on the
networks that know it well, so those networks have no say in a mean over networks.

    python benchmarks/points.py --data-dir DIR [--quick] [--partitions 10 11 12]
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import harness
import jax
import numpy as np
import protocol
from harness import say

from ddm_jax import estimators, metrics, objectives
from ddm_jax.distill import DistillSettings
from ddm_jax.estimators import make_grad_dot, make_synset_influence
from ddm_jax.run.evaluate import Ready

SETTINGS = {
    "digits": {"damping": 0.01, "window": (0.25, 1.0), "checkpoints": 8},
    "dattri-mlp": {"damping": 0.003, "window": (0.0, 0.25), "checkpoints": 4},
}
DISTILL = DistillSettings()
PROTOCOLS = ("digits", "dattri-mlp")
POINTS = ("cluster.method=point", "truth.leave_one_out=false")
QUICK = ("data.train_size=300", "data.test_size=200", "truth.subsets=8", "truth.subset_seeds=2")


def score(ready: Ready, scores: Any, **labels: Any) -> dict[str, Any]:
    """LDS of additive scores of points [N, Q], by the mean truth and by single runs of it."""
    predicted = metrics.additive_outputs(np.asarray(scores), ready.truth.masks)
    row = dict(labels) | protocol.score_subsets(ready, predicted)
    runs = ready.truth.subsets
    each = [metrics.linear_datamodeling_score(predicted, run).mean for run in runs]
    row["one_run"] = float(np.mean(each))
    say(harness.told(row))
    return row


def synset_rows(ready: Ready, variants: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Synset influence in several forms; `distill` and `margin` are the script's own settings."""
    problem, train = ready.plan.truth, ready.plan.trainer.train
    data, query = protocol.placed(ready)
    rows = []
    for name, settings in variants.items():
        own = dict(settings)
        changes = {"items": 5, "steps": 1000} | own.pop("distill", {})
        by_margin = own.pop("margin", False)
        task = objectives.explain(problem.task, "margin") if by_margin else problem.task
        distill = dataclasses.replace(DISTILL, **changes)
        estimator = make_synset_influence(task, train, distill, **own)
        key = jax.random.key(0)
        state, offline = harness.once(estimator.fit, key, ready.target, data, ready.groups)
        scores, online = harness.once(estimator.score, state, query)
        # The loss, which is the truth, falls as the margin rises.
        scores = -scores if by_margin else scores
        seconds = {"offline_seconds": offline, "online_seconds": online}
        rows.append(score(ready, scores, estimator=name, **seconds))
    return rows


def rivals(ready: Ready) -> list[dict[str, Any]]:
    """Other estimators of the trained network, at dampings chosen on partition 1."""
    task, train = ready.plan.truth.task, ready.plan.trainer.train
    made = {
        "Gauss-Newton of 500 points": estimators.make_gauss_newton(task, damping=0.01),
        "TRAK-1": estimators.make_trak(task, train, projection=2048, damping=1.0),
        "grad-dot": make_grad_dot(task),
    }
    return [
        score(ready, protocol.fitted_scores(ready, estimator)[0], estimator=name)
        for name, estimator in made.items()
    ]


def ceilings(ready: Ready) -> dict[str, Any]:
    """A single retraining against the mean of the others, and a perfect predictor."""
    found = metrics.noise_ceiling(ready.truth.subsets)
    say(f"  one retraining {found.one_run:.3f}, perfect {found.perfect:.3f}")
    return {
        "estimator": "perfect predictor",
        "group_lds": found.perfect,
        "one_run": metrics.ceiling_of(found.reliability, 1),
    }


def digits(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """All forms on digits."""
    changes = (*POINTS, *(QUICK if options.quick else ()))
    ready = protocol.prepare(options, "digits", seed, *changes, name="digits-points")
    base = SETTINGS["digits"]
    variants: dict[str, dict[str, Any]] = {
        "synset, M=5": base,
        "synset, M=1": base | {"distill": {"items": 1}},
        "synset, M=5, undistilled": base | {"distill": {"steps": 0}},
        "synset, M=5, trained network alone": base | {"checkpoints": 1},
        "synset, M=1, trained network alone": base | {"checkpoints": 1, "distill": {"items": 1}},
        "synset, M=5, layer by layer": base | {"blocks": "layer"},
        "synset, M=5, empirical Fisher": base | {"curvature": "fisher", "damping": 0.003},
    }
    if options.quick:
        variants = {"synset, M=1": base | {"distill": {"items": 1, "steps": 50}}}
    rows = synset_rows(ready, variants)
    return [*rows, *([] if options.quick else rivals(ready)), ceilings(ready)]


def dattri(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """One network and ten on dattri's MLP protocol."""
    ready = protocol.prepare(options, "dattri-mlp", seed)
    base = SETTINGS["dattri-mlp"]
    by_margin = base | {"margin": True}
    variants = {"synset, M=5": base, "synset, M=5, by margin": by_margin}
    if options.networks > 1:
        name = f"by margin, {options.networks} networks"
        several = by_margin | {"networks": options.networks}
        variants[f"synset, M=1, {name}"] = several | {"distill": {"items": 1}}
        variants[f"synset, M=5, {name}"] = several
    return [*synset_rows(ready, variants), ceilings(ready)]


def main() -> None:
    """Run both protocols and write the results, each to a file of its own."""
    options = harness.arguments(
        __doc__,
        quick="300 digits",
        data=True,
        networks={"type": int, "default": 10, "help": "of dattri's MLP, at most"},
        protocols={"nargs": "+", "default": PROTOCOLS, "choices": PROTOCOLS},
    )
    if "digits" in options.protocols:
        rows = harness.average([digits(options, seed) for seed in options.partitions])
        harness.write(options, {"settings": SETTINGS["digits"], "digits": rows})
    if "dattri-mlp" in options.protocols and options.data_dir and not options.quick:
        options.partitions = options.partitions[:1]
        rows = dattri(options, options.partitions[0])
        content = {"settings": SETTINGS["dattri-mlp"], "rows": rows}
        harness.write(options, content, "_dattri")


if __name__ == "__main__":
    main()
