"""What the group benchmarks share: a problem, its truth from retraining, and scored estimates.

A *partition* is one draw of everything: the split of the data, the clustering, the target
network, the random halves and the seeds of the truth. The seeds of the truth are never the
target network's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import ddm_jax as ddm
from ddm_jax.loo import Response
from ddm_jax.train import Trainer
from ddm_jax.workdir import versions

RESULTS = Path(__file__).parent / "results"


class Problem(NamedTuple):
    """One partition of a protocol, before any counterfactual."""

    task: ddm.Task
    trainer: Trainer
    weight_decay: float
    data: ddm.Batch
    query: ddm.Batch
    groups: np.ndarray  # [N]
    num_groups: int
    halves: jax.Array  # [R, K] random halves of the groups
    truth_keys: jax.Array  # [S]
    run: ddm.TrainRun  # the target network


class Truth(NamedTuple):
    """Outputs (test losses) of exact retraining, and what it cost."""

    full: np.ndarray  # [S, Q]
    single: np.ndarray  # [S, K, Q] without each group; K = 0 where it was not asked for
    halves: np.ndarray  # [S, R, Q]
    seconds: float  # a network, compilation apart


def make_problem(
    split: ddm.data.Split,
    task: ddm.Task,
    trainer: Trainer,
    *,
    weight_decay: float,
    num_groups: int,
    num_halves: int,
    num_seeds: int,
    seed: int,
) -> Problem:
    """Cluster inside each class and train the target network."""
    groups = ddm.make_groups(
        "class_kmeans",
        features=split.train.x,
        labels=split.train.y.argmax(1),
        num_groups=num_groups,
        seed=seed,
    )
    target_key, halves_key, truth_key = jax.random.split(jax.random.key(seed), 3)
    data = jax.device_put(split.train)
    run = jax.jit(trainer.train)(target_key, data, jnp.ones(len(groups)))
    return Problem(
        task=task,
        trainer=trainer,
        weight_decay=weight_decay,
        data=data,
        query=jax.device_put(split.test),
        groups=groups,
        num_groups=num_groups,
        halves=ddm.random_masks(halves_key, num_halves, num_groups),
        truth_keys=jax.random.split(truth_key, num_seeds),
        run=run,
    )


def loss_output(problem: Problem):
    """What is explained in these protocols: the test loss."""
    return ddm.objectives.loss(problem.task.apply)


def retrain(problem: Problem, single: bool) -> Truth:
    """Retrain exactly for all of the groups (if `single`) and all halves, with every seed."""
    response = ddm.retraining_response(problem.trainer.train, loss_output(problem))
    outputs = ddm.subset_outputs(response)
    leave_out = ddm.leave_one_out_masks(problem.num_groups)[: None if single else 1]
    masks = jnp.concatenate([leave_out, problem.halves])
    rest = (problem.data, jnp.asarray(problem.groups), problem.query)
    every, seconds = [], 0.0
    for number, key in enumerate(problem.truth_keys):
        begin = time.perf_counter()
        every.append(np.asarray(outputs(masks, key, *rest)))
        seconds = time.perf_counter() - begin  # of the last seed: compiled by then
        say(f"  truth: seed {number + 1} of {len(problem.truth_keys)}, {seconds:.0f} s")
    stacked = np.stack(every)
    cut = len(leave_out)
    return Truth(stacked[:, 0], stacked[:, 1:cut], stacked[:, cut:], seconds / len(masks))


def real_response(
    problem: Problem, steps: int, optimizer: optax.GradientTransformation
) -> Response:
    """Fine-tune on the real kept data, full batch: what a perfect synset would do."""
    explained = loss_output(problem)

    def response(keep, params, data, groups, query):
        weights = keep[groups] / jnp.sum(keep[groups])

        def objective(params):
            penalty = optax.tree.norm(params, squared=True)
            return weights @ problem.task.loss(params, data) + problem.weight_decay / 2 * penalty

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(objective)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = lax.scan(step, (params, optimizer.init(params)), length=steps)
        return explained(params, query)

    return response


def distil(
    problem: Problem,
    items: int,
    *,
    part: float,
    rate: float,
    steps: int,
    distance: str = "squared",
    start: str = "pursuit",
) -> tuple[ddm.Synset, float]:
    """Distil a synset; returns it and the offline seconds, compilation included."""
    begin = time.perf_counter()
    estimator = ddm.make_ddm(
        problem.task,
        items=items,
        part=part,
        distill_rate=rate,
        distill_steps=steps,
        distance=distance,
        start=start,
    )
    state = estimator.fit(jax.random.key(0), problem.run, problem.data, problem.groups)
    jax.block_until_ready(state)
    return state.synset, time.perf_counter() - begin


def score_response(
    problem: Problem,
    truth: Truth,
    response: Response,
    args: tuple[Any, ...],
    example_gradients: int,
    *,
    repeat: bool = True,
    **labels: Any,
) -> dict[str, Any]:
    """Score a response against the truth: single groups, halves, and what it costs online.

    Without `repeat` the seconds include compilation: for work that takes minutes anyway.
    """
    outputs = ddm.subset_outputs(response)
    row: dict[str, Any] = dict(labels)
    row["example_gradients"] = example_gradients
    row["share_of_retraining"] = example_gradients / problem.run.rows.size
    if truth.single.shape[1]:
        masks = ddm.leave_one_out_masks(problem.num_groups)
        kept, row["seconds_all_groups"], row["compile_seconds"] = _timed(
            outputs, masks, *args, repeat=repeat
        )
        row |= score_effects(truth, kept[0] - kept[1:])
    halves, row["seconds_all_halves"], compiling = _timed(
        outputs, problem.halves, *args, repeat=repeat
    )
    row.setdefault("compile_seconds", compiling)
    row["seconds_share_of_retraining"] = (
        row["seconds_all_halves"] / len(problem.halves) / truth.seconds
    )
    row |= score_halves(truth, halves)
    say("  " + ", ".join(f"{k} {_short(v)}" for k, v in row.items() if "seconds" not in k))
    return row


def score_effects(truth: Truth, scores: np.ndarray) -> dict[str, Any]:
    """Leave-one-group-out agreement of effects [K, Q]."""
    effects = (truth.full[:, None] - truth.single).mean(0)
    each = ddm.metrics.per_query_correlation(scores, effects)
    return {
        "rho": float(np.nanmean(each)),
        "rho_interval": ddm.metrics.mean_interval(each),
        "pearson": ddm.metrics.pooled_correlation(scores, effects),
    }


def score_halves(truth: Truth, predicted: np.ndarray) -> dict[str, Any]:
    """Group LDS of predicted outputs [R, Q]."""
    each = ddm.metrics.per_query_correlation(predicted, truth.halves.mean(0))
    return {
        "group_lds": float(np.nanmean(each)),
        "group_lds_interval": ddm.metrics.mean_interval(each),
    }


def score_ceilings(problem: Problem, truth: Truth) -> list[dict[str, Any]]:
    """One exact retraining against the mean of the others, and a perfect predictor."""
    lds = ddm.metrics.noise_ceiling(truth.halves)
    one: dict[str, Any] = {"estimator": "one exact retraining", "group_lds": lds.one_run}
    best: dict[str, Any] = {"estimator": "perfect predictor", "group_lds": lds.perfect}
    one["example_gradients"] = problem.run.rows.size
    one["share_of_retraining"] = one["seconds_share_of_retraining"] = 1.0
    if truth.single.shape[1]:
        effects = truth.full[:, None] - truth.single
        rho = ddm.metrics.noise_ceiling(effects, ddm.metrics.leave_one_out_correlation)
        pearson = ddm.metrics.noise_ceiling(effects, ddm.metrics.pooled_correlation)
        one |= {"rho": rho.one_run, "pearson": pearson.one_run}
        best |= {"rho": rho.perfect, "pearson": pearson.perfect}
        one["seconds_all_groups"] = truth.seconds * (problem.num_groups + 1)
    say(f"  ceilings: {one} {best}")
    return [one, best]


def score_grad_dot(problem: Problem, truth: Truth) -> dict[str, Any]:
    """Grad-dot, added up over the kept groups for the halves."""
    estimator = ddm.make_grad_dot(problem.task, loss_output(problem))
    state = estimator.fit(jax.random.key(0), problem.run, problem.data, problem.groups)
    scores, seconds, compiling = _timed(estimator.score, state, problem.query)
    row: dict[str, Any] = {"estimator": "grad-dot", "seconds_all_groups": seconds}
    row["compile_seconds"] = compiling
    if truth.single.shape[1]:
        row |= score_effects(truth, scores)
    return row | score_halves(truth, np.asarray(problem.halves) @ scores)


def additive_row(problem: Problem, truth: Truth) -> dict[str, Any]:
    """Adding up the true single effects: the best that an additive prediction can do."""
    effects = (truth.full[:, None] - truth.single).mean(0)
    predicted = np.asarray(problem.halves) @ effects
    return {"estimator": "adding up the true single effects"} | score_halves(truth, predicted)


def _timed(
    fn: Callable[..., Any], *args: Any, repeat: bool = True
) -> tuple[np.ndarray, float, float]:
    """Result, seconds of a second call, and how much longer the first one took."""
    begin = time.perf_counter()
    result = np.asarray(fn(*args))
    first = time.perf_counter() - begin
    if not repeat:
        return result, first, 0.0
    begin = time.perf_counter()
    jax.block_until_ready(fn(*args))
    again = time.perf_counter() - begin
    return result, again, max(first - again, 0.0)


def average(partitions: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Average the numbers of corresponding rows over partitions."""
    rows = []
    for same in zip(*partitions, strict=True):
        row: dict[str, Any] = {}
        for name, value in same[0].items():
            if isinstance(value, float):
                row[name] = float(np.mean([other[name] for other in same]))
            elif not name.endswith("_interval"):
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


def write_json(name: str, quick: bool, content: dict[str, Any]) -> None:
    """Write results/<name>.json (or <name>_quick.json) with what it was measured by."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{'_quick' if quick else ''}.json"
    told = {
        "command": " ".join(["python", f"benchmarks/{name}.py", *_public_arguments()]),
        "commit": _commit(),
        "versions": versions(),
        "cores": len(os.sched_getaffinity(0)),
    }
    path.write_text(json.dumps(told | content, indent=1) + "\n")
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


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(_short(part) for part in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
