"""What the benchmarks share: a partition with its truth from the store, and scored estimates.

A *partition* is one draw of everything: the split of the data, the clustering, the target
network, the random subsets and the seeds of the truth. The seeds of the truth are never the
target network's own. Truths are kept in work directories (`ddm truth` fills them too) and are
not computed again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import ddm_jax as ddm
from ddm_jax import config, evaluate
from ddm_jax.evaluate import Ready, peak_gib
from ddm_jax.loo import Response
from ddm_jax.plan import Plan
from ddm_jax.report import without_nan
from ddm_jax.workdir import Progress, versions

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parent.parent / "runs" / "benchmarks"


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def _track(what: str, total: int) -> Callable[[int, str], None]:
    told = time.perf_counter()

    def show(done: int, note: str) -> None:
        nonlocal told
        if time.perf_counter() - told > 30:
            told = time.perf_counter()
            say(f"  {done} of {total}, {note}")

    return show


PROGRESS = Progress(say, _track)


def prepare(
    preset: str, seed: int, *changes: str, data_dir: str | None = None, folder: Path | None = None
) -> Ready:
    """A partition of a preset, with its target network and its truth.

    Kept in `runs/benchmarks/<preset>-<seed>`, or in `folder`.
    """
    place = [f"data.data_dir={data_dir}"] if data_dir else []
    chosen = config.override(config.preset(preset), [f"seed={seed}", *place, *changes])
    say(f"{preset}, partition {seed}")
    return evaluate.prepare(chosen, folder or WORK / f"{preset}-{seed}", PROGRESS)


def cluster(plan: Plan, train: ddm.Batch | None = None) -> np.ndarray:
    """The groups of a plan's settings, of its own training data or of others in their place."""
    data = plan.split.train if train is None else train
    return ddm.make_groups(
        plan.config.cluster.method,
        features=data.x,
        labels=np.asarray(data.y).argmax(1),
        num_groups=plan.config.cluster.num_groups,
        seed=plan.config.seed,
    )


def real_response(ready: Ready, steps: int, optimizer: optax.GradientTransformation) -> Response:
    """Fine-tune on the real kept data, full batch: what a perfect synset would do."""
    task, explained = ready.plan.task, ready.plan.truth_output
    weight_decay = ready.plan.config.train.weight_decay

    def response(keep, params, data, groups, query):
        weights = keep[groups] / jnp.sum(keep[groups])

        def objective(params):
            penalty = optax.tree.norm(params, squared=True)
            return weights @ task.loss(params, data) + weight_decay / 2 * penalty

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(objective)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = lax.scan(step, (params, optimizer.init(params)), length=steps)
        return explained(params, query)

    return response


def distil(ready: Ready, items: int, **settings: Any) -> tuple[ddm.Synset, float]:
    """Distil a synset with the run's settings, or others; returns it and the offline seconds."""
    chosen = ready.plan.config.distill
    begin = time.perf_counter()
    estimator = ddm.make_ddm(
        ready.plan.task,
        items=items,
        **(
            {
                "part": chosen.part,
                "distill_rate": chosen.learning_rate,
                "distill_steps": chosen.steps,
                "distance": chosen.distance,
            }
            | settings
        ),
    )
    data = jax.device_put(ready.plan.split.train)
    state = estimator.fit(jax.random.key(0), ready.target, data, ready.groups)
    jax.block_until_ready(state)
    return state.synset, time.perf_counter() - begin


def online_sgd(ready: Ready, start: Any, synset: ddm.Synset) -> optax.GradientTransformation:
    """The online optimiser at the rate that the synset's curvature allows."""
    rate = float(ready.plan.stable_rate(start, synset))
    return optax.sgd(rate, ready.plan.config.online.momentum, nesterov=True)


def score_response(
    ready: Ready,
    response: Response,
    args: tuple[Any, ...],
    example_gradients: int,
    *,
    single: bool = True,
    **labels: Any,
) -> dict[str, Any]:
    """Score a response against the truth: single groups, subsets, and what it costs online.

    Without `single` for the subsets alone, where the work takes many minutes.
    """
    truth = ready.truth
    outputs = ddm.subset_outputs(response)
    row: dict[str, Any] = dict(labels)
    row["example_gradients"] = example_gradients
    row["share_of_retraining"] = example_gradients / ready.target.rows.size
    if single:
        masks = ddm.leave_one_out_masks(int(ready.groups.max()) + 1)
        kept, row["seconds_all_groups"] = timed(outputs, masks, *args)
        row |= score_effects(ready, kept[0] - kept[1:])
    halves, seconds = timed(outputs, truth.masks, *args)
    row["seconds_all_subsets"] = seconds
    row["seconds_share_of_retraining"] = seconds / len(truth.masks) / truth.seconds
    row |= score_subsets(ready, halves)
    say("  " + ", ".join(f"{k} {_short(v)}" for k, v in row.items() if "seconds" not in k))
    return row


def score_effects(ready: Ready, scores: np.ndarray) -> dict[str, Any]:
    """Leave-one-group-out agreement of effects [K, Q]."""
    effects = ready.truth.effects().mean(0)
    found = ddm.metrics.leave_one_out_correlation(scores, effects)
    return {
        "rho": found.mean,
        "rho_over_queries": found.over_queries,
        "rho_over_rows": found.over_rows,
        "rho_undefined": found.undefined,
        "pearson": ddm.metrics.pooled_correlation(scores, effects),
    }


def score_subsets(ready: Ready, predicted: np.ndarray) -> dict[str, Any]:
    """Group LDS of predicted outputs [R, Q]."""
    found = ddm.metrics.linear_datamodeling_score(predicted, ready.truth.subsets.mean(0))
    return {
        "group_lds": found.mean,
        "group_lds_over_queries": found.over_queries,
        "group_lds_over_rows": found.over_rows,
        "group_lds_undefined": found.undefined,
    }


def score_ceilings(ready: Ready) -> list[dict[str, Any]]:
    """One exact retraining against the mean of the others, and a perfect predictor."""
    truth = ready.truth
    lds, rho = (ddm.metrics.noise_ceiling(runs) for runs in (truth.subsets, truth.effects()))
    pearson = ddm.metrics.noise_ceiling(truth.effects(), "pearson", pooled=True)
    one: dict[str, Any] = {
        "estimator": "one exact retraining",
        "group_lds": lds.one_run,
        "rho": rho.one_run,
        "pearson": pearson.one_run,
        "example_gradients": ready.target.rows.size,
        "share_of_retraining": 1.0,
        "seconds_share_of_retraining": 1.0,
        "seconds_all_groups": truth.seconds * (len(truth.single[0]) + 1),
    }
    best: dict[str, Any] = {
        "estimator": "perfect predictor",
        "group_lds": lds.perfect,
        "group_lds_over_rows": lds.interval,
        "rho": rho.perfect,
        "rho_over_rows": rho.interval,
        "pearson": pearson.perfect,
        "runs": {"single": rho.runs, "subsets": lds.runs},
        "reliability": {"single": rho.reliability, "subsets": lds.reliability},
    }
    say(f"  ceilings: {one} {best}")
    return [one, best]


def score_grad_dot(ready: Ready) -> dict[str, Any]:
    """Grad-dot, added up over the kept groups for the subsets."""
    estimator = ddm.make_grad_dot(ready.plan.task, ready.plan.truth_output)
    data, query = jax.device_put((ready.plan.split.train, ready.plan.split.test))
    state = estimator.fit(jax.random.key(0), ready.target, data, ready.groups)
    scores, seconds = timed(estimator.score, state, query)
    row: dict[str, Any] = {"estimator": "grad-dot", "seconds_all_groups": seconds}
    row |= score_effects(ready, scores)
    return row | score_subsets(ready, ddm.metrics.additive_outputs(scores, ready.truth.masks))


def additive_row(ready: Ready) -> dict[str, Any]:
    """Adding up the true single effects: the best that an additive prediction can do."""
    effects = ready.truth.effects().mean(0)
    predicted = ddm.metrics.additive_outputs(effects, ready.truth.masks)
    row: dict[str, Any] = {"estimator": "adding up the true single effects"}
    return row | score_subsets(ready, predicted)


def timed(fn: Callable[..., Any], *args: Any) -> tuple[np.ndarray, float]:
    """Result and seconds: of a second call, without compilation, unless the first one is long."""
    begin = time.perf_counter()
    result = np.asarray(fn(*args))
    first = time.perf_counter() - begin
    if first > 20:
        return result, first
    begin = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return result, time.perf_counter() - begin


def average(partitions: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Average the numbers of corresponding rows over partitions, and keep their range."""
    rows = []
    for same in zip(*partitions, strict=True):
        row: dict[str, Any] = {}
        for name, value in same[0].items():
            if isinstance(value, float):
                row[name] = float(np.mean([other[name] for other in same]))
                row[f"{name}_range"] = [f(other[name] for other in same) for f in (min, max)]
            elif not isinstance(value, tuple | list | dict):
                row[name] = value
        rows.append(row)
    return rows


def write(name: str, quick: bool, settings: dict[str, Any], partitions: dict[int, Any]) -> None:
    """Write the rows of all partitions, and their average."""
    content = {
        "settings": settings,
        "mean": average(list(partitions.values())),
        "partitions": {str(seed): rows for seed, rows in partitions.items()},
    }
    write_json(name, quick, content)


def write_json(name: str, quick: bool, content: dict[str, Any], part: str = "") -> None:
    """Write results/<name><part>.json (or <name>_quick.json) with what it was measured by."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{'_quick' if quick else part}.json"
    told = {
        "command": " ".join(["python", f"benchmarks/{name}.py", *_public_arguments()]),
        "commit": _commit(),
        "versions": versions(),
        "cores": len(os.sched_getaffinity(0)),
        "peak_gib": peak_gib(),
    }
    path.write_text(json.dumps(without_nan(told | content), indent=1) + "\n")
    say(f"wrote {path}")


def _public_arguments() -> list[str]:
    words = sys.argv[1:]
    if "--data-dir" in words:
        words[words.index("--data-dir") + 1] = "DIR"
    return words


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = git("status", "--porcelain", "--", "../ddm_jax", "*.py")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(_short(part) for part in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
