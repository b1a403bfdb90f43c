"""What the benchmarks of agreement share: a partition with its truth, and scored estimates.

The seeds of the truth are never the target network's own. Truths are kept in work directories
(`ddm truth` fills them too) and are not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import say
from jax import lax

import ddm_jax as ddm
from ddm_jax import metrics
from ddm_jax.estimators import make_grad_dot
from ddm_jax.estimators.ddm import DDMState
from ddm_jax.judge.problem import Problem
from ddm_jax.masks import leave_one_out_masks, point_weights
from ddm_jax.online import Response, subset_outputs, trajectory_point
from ddm_jax.run import evaluate
from ddm_jax.run import settings as config
from ddm_jax.run.evaluate import Ready
from ddm_jax.run.plan import Plan, make_plan
from ddm_jax.run.workdir import Progress
from ddm_jax.train import TrainState, make_step
from ddm_jax.types import Estimator, Groups, length
from ddm_jax.updates import settled

Row = dict[str, Any]
Outputs = Callable[[Any], Any]  # masks [R, K] -> [R, Q]

# The updates by which the results were measured, where a script says nothing else. `ddm run`
# chooses its own; here they are fixed, so that the same script measures the same again.
STEP_ITEMS = 5  # of each group on average, in a step: a batch is so many for each of K groups
UPDATES: dict[str, Any] = {"steps": 50, "schedule": "constant", "momentum": 0.9, "rewind": 0.0}
OF_PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"rewind": 0.75},
    "mnist": {"steps": 100, "momentum": 0.95},
    "mnist-convnet": {"momentum": 0.95},
    "mnist-60k": {"steps": 25},
    "images": {"momentum": 0.95},
    "cifar10-convnet": {"momentum": 0.95},
}


def _track(what: str, total: int) -> Callable[[int, str], None]:
    shown = time.perf_counter()

    def show(done: int, note: str) -> None:
        nonlocal shown
        if time.perf_counter() - shown > 30:
            shown = time.perf_counter()
            say(f"  {done} of {total}, {note}")

    return show


PROGRESS = Progress(say, _track)


def settings_of(
    options: argparse.Namespace, preset: str, seed: int, *changes: str
) -> config.Config:
    """A preset's settings for a partition; the script's own QUICK settings come last."""
    place = [] if preset == "digits" else options.changes
    chosen = config.override(config.preset(preset), [f"seed={seed}", *place, *changes])
    known = UPDATES | {"batch": STEP_ITEMS * groups_of(chosen)} | OF_PRESETS.get(preset, {})
    left_open = {
        name: value for name, value in known.items() if getattr(chosen.online, name) is None
    }
    return dataclasses.replace(chosen, online=dataclasses.replace(chosen.online, **left_open))


def groups_of(chosen: config.Config) -> int:
    """K, where groups and not single points are left out."""
    cut = chosen.cluster
    return int(np.load(str(cut.file)).max()) + 1 if cut.method == "file" else cut.num_groups


def at_cost(chosen: config.Config) -> config.Config:
    """The settings without steps and batch, which candidates then have as many as are allowed."""
    return dataclasses.replace(
        chosen, online=dataclasses.replace(chosen.online, steps=None, batch=None)
    )


def plan_of(options: argparse.Namespace, preset: str, seed: int, *changes: str) -> Plan:
    """The same, built."""
    return make_plan(settings_of(options, preset, seed, *changes))


def prepare(
    options: argparse.Namespace, preset: str, seed: int, *changes: str, name: str | None = None
) -> Ready:
    """A partition of a preset, with its target network and its truth, in `work/<name>-<seed>`."""
    say(f"{name or preset}, partition {seed}")
    chosen = settings_of(options, preset, seed, *changes)
    return evaluate.prepare(chosen, options.work / f"{name or preset}-{seed}", PROGRESS)


def placed(ready: Ready | Plan) -> tuple[ddm.Batch, ddm.Batch]:
    """Training and test data on the device."""
    plan = ready if isinstance(ready, Plan) else ready.plan
    return jax.device_put((plan.split.train, plan.split.test))


def problem_of(ready: Ready, **distill: Any) -> Problem:
    """What the truth judges, distilled with other settings."""
    problem = ready.plan.truth
    return problem._replace(distill=dataclasses.replace(problem.distill, **distill))


def cluster(plan: Plan, train: ddm.Batch | None = None) -> Groups:
    """The groups of a plan's settings, of its own training data or of others in their place."""
    data = plan.split.train if train is None else train
    return ddm.make_groups(
        plan.config.cluster.method,
        features=data.x,
        labels=np.asarray(data.y).argmax(1),
        num_groups=plan.config.cluster.num_groups,
        seed=plan.config.seed,
    )


def distil(ready: Ready, **changes: Any) -> tuple[DDMState, float]:
    """The state of DDM with the run's settings, or others, and the offline seconds."""
    problem = problem_of(ready, **changes)
    estimator = ddm.make_ddm(problem.task, problem.distill)
    data = jax.device_put(ready.plan.split.train)
    return harness.once(estimator.fit, jax.random.key(0), ready.target, data, ready.groups)


def updated(ready: Ready, state: DDMState, **changes: Any) -> Outputs:
    """`outputs(masks)` of DDM with the run's updates, or others."""
    problem = ready.plan.truth
    update = dataclasses.replace(problem.update, **changes)
    made = ddm.make_ddm(problem.task, problem.distill, update)
    assert made.outputs is not None
    _, query = placed(ready)
    return lambda masks: made.outputs(state, masks, query)  # type: ignore[misc]


def real_response(problem: Problem, steps: int) -> Response:
    """Fine-tune on the real kept data, full batch: what a perfect synset would do."""
    rate, momentum = problem.train.learning_rate, settled(problem.update).momentum
    optimizer = optax.chain(
        optax.add_decayed_weights(problem.train.weight_decay),
        optax.sgd(rate, momentum, nesterov=True),
    )
    step = make_step(problem.task, optimizer)

    def response(keep, params, data, groups, query):
        every, weights = jnp.arange(length(data)), point_weights(keep, groups)
        state = TrainState(
            params, optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key(0)
        )
        state, _ = lax.scan(lambda at, _: step(at, every, data, weights), state, length=steps)
        return problem.task.output(state.params, query)

    return response


def score_outputs(
    ready: Ready, outputs: Outputs, example_gradients: int, *, single: bool = True, **labels: Any
) -> Row:
    """Score outputs against the truth: single groups, subsets, and what they cost online.

    Without `single` for the subsets alone, where the work takes many minutes.
    """
    truth = ready.truth
    row: Row = dict(labels)
    row["example_gradients"] = example_gradients
    row["share_of_retraining"] = example_gradients / ready.target.rows.size
    if single:
        masks = leave_one_out_masks(ready.groups.count)
        kept, row["seconds_all_groups"] = harness.timed(outputs, masks)
        kept = np.asarray(kept)
        row |= score_effects(ready, kept[0] - kept[1:])
    halves, row["seconds_all_subsets"] = harness.timed(outputs, truth.masks)
    each = row["seconds_all_subsets"] / len(truth.masks)
    row["seconds_share_of_retraining"] = each / truth.seconds
    row |= score_subsets(ready, np.asarray(halves))
    say(harness.told(row))
    return row


def score_effects(ready: Ready, scores: Any) -> Row:
    """Leave-one-group-out agreement of effects [K, Q]."""
    scores = np.asarray(scores)[ready.truth.groups]
    effects = ready.truth.effects().mean(0)
    found = metrics.leave_one_out_correlation(scores, effects)
    return {
        "rho": found.mean,
        "rho_over_queries": found.over_queries,
        "rho_over_rows": found.over_rows,
        "rho_undefined": found.undefined,
        "pearson": metrics.pooled_correlation(scores, effects),
    }


def score_subsets(ready: Ready, predicted: np.ndarray) -> Row:
    """Group LDS of predicted outputs [R, Q]."""
    found = metrics.linear_datamodeling_score(predicted, ready.truth.subsets.mean(0))
    return {
        "group_lds": found.mean,
        "group_lds_over_queries": found.over_queries,
        "group_lds_over_rows": found.over_rows,
        "group_lds_undefined": found.undefined,
    }


def score_additive(ready: Ready, scores: Any) -> Row:
    """Group LDS of effects [K, Q] that are added up."""
    return score_subsets(ready, metrics.additive_outputs(np.asarray(scores), ready.truth.masks))


def score_ceilings(ready: Ready) -> list[Row]:
    """One exact retraining against the mean of the others, and a perfect predictor."""
    truth = ready.truth
    lds, rho = (metrics.noise_ceiling(runs) for runs in (truth.subsets, truth.effects()))
    pearson = metrics.noise_ceiling(truth.effects(), "pearson", pooled=True)
    one: Row = {
        "estimator": "one exact retraining",
        "group_lds": lds.one_run,
        "rho": rho.one_run,
        "pearson": pearson.one_run,
        "example_gradients": ready.target.rows.size,
        "share_of_retraining": 1.0,
        "seconds_share_of_retraining": 1.0,
        "seconds_all_groups": truth.seconds * (len(truth.single[0]) + 1),
    }
    best: Row = {
        "estimator": "perfect predictor",
        "group_lds": lds.perfect,
        "group_lds_over_rows": lds.interval,
        "rho": rho.perfect,
        "rho_over_rows": rho.interval,
        "pearson": pearson.perfect,
        "runs": {"single": rho.runs, "subsets": lds.runs},
        "reliability": {"single": rho.reliability, "subsets": lds.reliability},
    }
    for row in (one, best):
        say(harness.told(row))
    return [one, best]


def fitted_scores(ready: Ready, estimator: Estimator) -> tuple[np.ndarray, float]:
    """Scores [K, Q] of the target network, and the online seconds."""
    data, query = placed(ready)
    state = estimator.fit(jax.random.key(0), ready.target, data, ready.groups)
    scores, seconds = harness.timed(estimator.score, state, query)
    return np.asarray(scores), seconds


# Tables of groups: digits_protocol.py and mnist_groups.py


class GroupTable(NamedTuple):
    """What a table of groups compares."""

    preset: str
    changes: tuple[str, ...] = ()  # to the preset
    items: tuple[int, ...] = (1, 5)  # M of each synset
    updates: tuple[tuple[int, float], ...] = ((50, 0.0),)  # steps and rewind
    real: tuple[tuple[int, float], ...] = ((50, 0.0),)  # the same on the real kept data
    real_single: bool = True  # the real data for single groups too
    forget: tuple[int, ...] = ()  # steps of the literal update, with the most items
    undistilled: Mapping[str, Any] = MappingProxyType(
        {}
    )  # further settings of the synset that is not distilled
    undistilled_updates: tuple[tuple[int, float], ...] = ((50, 0.0),)


def group_rows(options: argparse.Namespace, table: GroupTable, seed: int) -> list[Row]:
    """All rows of a table for one partition."""
    ready = prepare(options, table.preset, seed, *table.changes)
    problem, run = ready.plan.truth, ready.target
    data, query = placed(ready)
    rows = score_ceilings(ready)
    effects = ready.truth.effects().mean(0)
    rows.append({"estimator": "adding up the true single effects"} | score_additive(ready, effects))
    scores, seconds = fitted_scores(ready, make_grad_dot(problem.task))
    rows.append(
        {"estimator": "grad-dot", "seconds_all_groups": seconds}
        | score_effects(ready, scores)
        | score_additive(ready, scores)
    )

    def real(steps: int, rewind: float) -> None:
        start = trajectory_point(run.checkpoints, rewind)
        respond = subset_outputs(real_response(problem, steps))
        rows.append(
            score_outputs(
                ready,
                lambda masks: respond(masks, start, data, ready.groups, query),
                steps * length(data),
                single=table.real_single,
                estimator="real kept data",
                rewind=rewind,
                steps=steps,
            )
        )

    def distilled(name: str, items: int, state: DDMState, seconds: float, **how: Any) -> None:
        count = ready.groups.count
        batch = min(settled(problem.update).batch, items * count)
        # Forgetting touches only the groups that are left out: one of them, or half.
        used = batch // count if how.get("update") == "forget" else batch
        rows.append(
            score_outputs(
                ready,
                updated(ready, state, **how),
                how["steps"] * used,
                estimator=name,
                items=items,
                groups=count,
                batch=batch,
                offline_seconds=seconds,
                **{"update": "retain"} | how,
            )
        )

    for steps, rewind in table.real:
        real(steps, rewind)
    most = max(table.items)
    for items in table.items:
        found = distil(ready, items=items)
        for steps, rewind in table.updates:
            distilled("DDM", items, *found, steps=steps, rewind=rewind)
        for steps in table.forget if items == most else ():
            literal = {"update": "forget", "learning_rate": problem.train.learning_rate}
            distilled("DDM", items, *found, steps=steps, rewind=0.0, momentum=0.0, **literal)
    for start in ("pursuit", "random"):
        found = distil(ready, items=most, steps=0, start=start, **table.undistilled)
        for steps, rewind in table.undistilled_updates:
            name = f"undistilled, {start} start"
            distilled(name, most, *found, steps=steps, rewind=rewind)
    return rows


def write_group_table(options: argparse.Namespace, full: GroupTable, quick: GroupTable) -> None:
    """Measure a table on every partition, and write it and its mean."""
    table = quick if options.quick else full
    partitions = {seed: group_rows(options, table, seed) for seed in options.partitions}
    content = {
        "settings": table._asdict() | {"undistilled": dict(table.undistilled)},
        "mean": harness.average(list(partitions.values())),
        "partitions": {str(seed): rows for seed, rows in partitions.items()},
    }
    harness.write(options, content)
