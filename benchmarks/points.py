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
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import protocol

import ddm_jax as ddm
from ddm_jax import estimators
from ddm_jax.evaluate import Ready

CLUSTERS = 50
SETTINGS = {
    "digits": {"damping": 0.01, "window": (0.25, 1.0), "checkpoints": 8},
    "dattri-mlp": {"damping": 0.003, "window": (0.0, 0.25), "checkpoints": 4},
}
POINTS = ("cluster.method=point", "truth.leave_one_out=false")
QUICK = ("data.train_size=300", "data.test_size=200", "truth.subsets=8", "truth.subset_seeds=2")


def score(ready: Ready, scores: np.ndarray, **labels: Any) -> dict[str, Any]:
    """LDS of additive scores of points [N, Q], by the mean truth and by single runs of it."""
    truth = ready.truth
    row = dict(labels) | protocol.score_subsets(
        ready, ddm.metrics.additive_outputs(scores, truth.masks)
    )
    predicted = ddm.metrics.additive_outputs(scores, truth.masks)
    each = [ddm.metrics.linear_datamodeling_score(predicted, run).mean for run in truth.subsets]
    row["one_run"] = float(np.mean(each))
    protocol.say(f"  {row['estimator']}: LDS {row['group_lds']:.3f}, one run {row['one_run']:.3f}")
    return row


def synset_rows(ready: Ready, variants: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Synset influence in several forms."""
    plan = ready.plan
    data, query = jax.device_put((plan.split.train, plan.split.test))
    rows = []
    for name, settings in variants.items():
        estimator = estimators.make_synset_influence(
            plan.task,
            plan.trainer.train,
            weight_decay=plan.config.train.weight_decay,
            **({"output": plan.truth_output} | settings),
        )
        begin = time.perf_counter()
        state = estimator.fit(jax.random.key(0), ready.target, data, np.arange(len(data.x)))
        jax.block_until_ready(state)
        fitted = time.perf_counter()
        scores = np.asarray(estimator.score(state, query))
        if "output" in settings:  # a margin: the loss, which is the truth, falls as it rises
            scores = -scores
        seconds = {
            "offline_seconds": fitted - begin,
            "online_seconds": time.perf_counter() - fitted,
        }
        rows.append(score(ready, scores, estimator=name, **seconds))
    return rows


def mixtures(ready: Ready, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The measured effects of groups, shared out, and with the points' own differences."""
    plan = ready.plan
    data, query = jax.device_put((plan.split.train, plan.split.test))
    config = plan.config
    groups = ddm.make_groups(
        "class_kmeans",
        features=plan.split.train.x,
        labels=plan.split.train.y.argmax(1),
        num_groups=CLUSTERS,
    )
    measured = ddm.make_ddm(
        plan.task,
        items=5,
        part=config.distill.part,
        distance=config.distill.distance,
        weight_decay=config.train.weight_decay,
        rewind=config.online.rewind,
        output=plan.truth_output,
    )
    state = measured.fit(jax.random.key(0), ready.target, data, groups)
    effects = np.asarray(measured.score(state, query))
    influence = ddm.make_trajectory_influence(
        plan.task,
        damping=settings["damping"],
        weight_decay=config.train.weight_decay,
        output=plan.truth_output,
    )
    some = ddm.spread_points(ready.target.checkpoints, settings["checkpoints"], settings["window"])
    points = np.asarray(jax.jit(influence)(some, state.synset, data, query))
    nothing = np.zeros_like(points)
    return [
        score(ready, ddm.share_out(nothing, effects, groups), estimator="groups shared out evenly"),
        *(
            score(
                ready, ddm.share_out(points, effects, groups, weight), estimator=f"both, {weight}"
            )
            for weight in (0.05, 0.2, 1.0)
        ),
    ]


def rivals(ready: Ready) -> list[dict[str, Any]]:
    """Other estimators of the trained network, at dampings chosen on partition 1."""
    plan = ready.plan
    data, query = jax.device_put((plan.split.train, plan.split.test))
    decay = plan.config.train.weight_decay
    made = {
        "Gauss-Newton of 500 points": estimators.make_gauss_newton(
            plan.task, damping=0.01, weight_decay=decay, output=plan.truth_output
        ),
        "TRAK-1": estimators.make_trak(
            plan.task, plan.trainer.train, projection=2048, damping=1.0, output=plan.truth_output
        ),
        "grad-dot": ddm.make_grad_dot(plan.task, plan.truth_output),
    }
    rows = []
    for name, estimator in made.items():
        state = estimator.fit(jax.random.key(0), ready.target, data, np.arange(len(data.x)))
        rows.append(score(ready, np.asarray(estimator.score(state, query)), estimator=name))
    return rows


def ceilings(ready: Ready) -> dict[str, Any]:
    """A single retraining against the mean of the others, and a perfect predictor."""
    found = ddm.metrics.noise_ceiling(ready.truth.subsets)
    protocol.say(f"  one retraining {found.one_run:.3f}, perfect {found.perfect:.3f}")
    return {
        "estimator": "perfect predictor",
        "group_lds": found.perfect,
        "one_run": ddm.metrics.ceiling_of(found.reliability, 1),
    }


def digits(seed: int, quick: bool) -> list[dict[str, Any]]:
    """All forms on digits."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run" if quick else protocol.WORK / f"digits-points-{seed}"
        changes = (*POINTS, *(QUICK if quick else ()))
        ready = protocol.prepare("digits", seed, *changes, folder=place)
        base = SETTINGS["digits"]
        variants: dict[str, dict[str, Any]] = {
            "synset, M=5": base | {"items": 5},
            "synset, M=1": base | {"items": 1},
            "synset, M=5, undistilled": base | {"items": 5, "distill_steps": 0},
            "synset, M=5, trained network alone": base | {"checkpoints": 1},
            "synset, M=1, trained network alone": base | {"checkpoints": 1, "items": 1},
            "synset, M=5, layer by layer": base | {"blocks": "layer"},
            "synset, M=5, empirical Fisher": base | {"curvature": "fisher", "damping": 0.003},
        }
        if quick:
            variants = {"synset, M=1": base | {"items": 1, "distill_steps": 50}}
        rows = synset_rows(ready, variants)
        if not quick:
            rows += mixtures(ready, base) + rivals(ready)
        return [*rows, ceilings(ready)]


def dattri(seed: int, data_dir: str) -> list[dict[str, Any]]:
    """One network and ten on dattri's MLP protocol."""
    ready = protocol.prepare("dattri-mlp", seed, data_dir=data_dir)
    base = SETTINGS["dattri-mlp"]
    by_margin = base | {"output": ready.plan.task.output}
    variants = {
        "synset, M=5": base,
        "synset, M=5, by margin": by_margin,
        "synset, M=1, by margin, ten networks": by_margin | {"items": 1, "networks": 10},
        "synset, M=5, by margin, ten networks": by_margin | {"networks": 10},
    }
    return [*synset_rows(ready, variants), ceilings(ready)]


def main() -> None:
    """Run both protocols and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="where TFDS keeps prepared data")
    parser.add_argument("--quick", action="store_true", help="300 digits")
    parser.add_argument("--partitions", type=int, nargs="+", default=[10, 11, 12])
    options = parser.parse_args()
    chosen = options.partitions[: 1 if options.quick else None]
    content: dict[str, Any] = {
        "settings": SETTINGS,
        "partitions": chosen,
        "digits": protocol.average([digits(seed, options.quick) for seed in chosen]),
    }
    protocol.write_json("points", options.quick, content)
    if options.data_dir and not options.quick:
        content["dattri"] = dattri(chosen[0], options.data_dir)
        protocol.write_json("points", options.quick, content)


if __name__ == "__main__":
    main()
