"""The stage that chooses how the updates go: what it computes, and what it keeps of that."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax import metrics, recipes, tuning
from ddm_jax.distill import Loop
from ddm_jax.estimators import pools
from ddm_jax.estimators.ddm import DDMState, find_stable
from ddm_jax.estimators.pools import Pool
from ddm_jax.judge.rivals import EPOCHS, Rival, short_retrainings
from ddm_jax.judge.truth import read_truth
from ddm_jax.run import check as checking
from ddm_jax.run.jobs import Job
from ddm_jax.run.plan import Plan
from ddm_jax.run.settings import Config
from ddm_jax.tuning import Tried
from ddm_jax.types import length
from ddm_jax.updates import UpdateSettings


class Tuning(NamedTuple):
    """How the updates of a run go, and why."""

    update: UpdateSettings
    state: DDMState  # what they go with
    pool: Pool = "synset"  # what the steps take
    tried: tuple[Tried, ...] = ()
    costs: tuple[Tried, ...] = ()
    other: Tried | None = None  # the best of the other kind, with or without the training data
    rivals: tuple[Rival, ...] = ()
    one_retraining: float = float("nan")  # agreement of one seed with the others
    seconds_a_retraining: float = float("nan")
    stable: float | None = None  # the stable rate of the updates, on what their steps take


class WithoutData(NamedTuple):
    """How updates go that must not take the training data."""

    update: UpdateSettings
    stable: float | None
    state: DDMState


def without_data(made: Any, plan: Plan) -> WithoutData:
    """How updates go that must not take the training data, whatever was chosen.

    Args:
        made: what the stages of a run made: `Results` or `Finished`.
    """
    chosen = made.tuning
    if chosen.pool != "data":
        return WithoutData(chosen.update, chosen.stable, chosen.state)
    if (other := chosen.other) is None:
        return WithoutData(chosen.update, None, made.synset)
    return WithoutData(other.update, other.stable, _state_of(other.pool, made, plan))


def _state_of(pool: Pool, made: Any, plan: Plan) -> DDMState:
    return pools.state_of(pool, made.synset, plan.task, plan.split.train, made.groups)


def tune_updates(job: Job, loop: Loop) -> dict[str, Any]:
    """Retrain on some subsets, and choose the updates that order them best."""
    plan, results, config = job.plan, job.results, job.plan.config
    if plan.tune is None:
        kept = like_tuning(job)
        stable = find_stable(plan.task, _fixed(config), results.synset)
        kept["costs"][0, 2] = np.nan if stable is None else stable
        return kept
    found = checking.retrained(
        plan, plan.tune, job.workdir / "tuning", results.groups, job.progress
    )
    data, query = jax.device_put((plan.split.train, plan.split.test))
    tuned = tuning.tune(
        plan.task,
        results.synset,
        found.masks,
        found.subsets,
        query,
        gradients=_retraining_gradients(job),
        share=config.tune.share,
        fixed=_fixed(config),
        real=(data, results.groups),
        pools=config.tune.pools,
        say=job.progress.say,
    )
    rivals = short_retrainings(
        plan.tune, found.masks, found.subsets.mean(0), data, results.groups, query
    )
    for rival in rivals:
        job.progress.say(
            f"  retraining in {rival.epochs} of {config.train.epochs} epochs: {rival.agreement:.3f}"
        )
    choices = _choices(job)
    kept = like_tuning(job)
    for number, tried in enumerate(tuned.tried):
        place = choices.index((tried.pool, _recipe(tried.update)))
        kept["agreement"][place] = tried.agreement
        kept["round"][place] = 2 if number < tuned.finalists else 1
    kept["chosen"] = np.int32(choices.index((tuned.pool, _recipe(tuned.update))))
    kept["costs"] = np.asarray([_told(each) for each in tuned.costs], np.float32)
    if (other := tuned.other) is not None:
        kept["other"] = np.int32(choices.index((other.pool, _recipe(other.update))))
        kept["other_told"] = np.asarray(_told(other), np.float32)
    for place, rival in enumerate(rivals):
        kept["rivals"][place] = rival.agreement, rival.seconds
    return kept


def like_tuning(job: Job) -> dict[str, Any]:
    """The shapes of `tune_updates`, and what it keeps where nothing is chosen."""
    # At least one row of each: what has none cannot be kept.
    chosen = job.plan.tune is not None
    count = len(_choices(job)) if chosen else 1
    costs = len(_nominal(job)) if chosen else 1
    epochs = [each for each in EPOCHS if each < job.plan.config.train.epochs]
    return {
        "agreement": np.full(count, np.nan, np.float32),
        "round": np.zeros(count, np.int8),  # the last one that it was tried in; 0 for none
        "chosen": np.int32(0),
        "costs": np.zeros((costs, 3), np.float32),
        "other": np.int32(-1),
        "other_told": np.full(3, np.nan, np.float32),
        "rivals": np.zeros((max(len(epochs), 1), 2), np.float32),
    }


def tuning_of(job: Job, kept: dict[str, Any]) -> Tuning:
    """What was chosen, in the words of the settings."""
    plan, config = job.plan, job.plan.config
    fixed = _fixed(config)
    if plan.tune is None:
        stable = float(kept["costs"][0, 2])
        return Tuning(fixed, job.results.synset, stable=stable if np.isfinite(stable) else None)
    gradients, share = _retraining_gradients(job), config.tune.share
    choices = _choices(job)

    def tried(
        place: Any, share: float, agreement: Any, seconds: Any = np.nan, stable: Any = np.nan
    ) -> Tried:
        pool, recipe = choices[int(place)]
        items = _items(job, pool)
        update = recipes.at_share(recipe, fixed, share, gradients, items)
        cost = recipes.example_gradients(update, items) / gradients
        known = float(stable) if np.isfinite(stable) else None
        return Tried(update, pool, cost, float(agreement), float(seconds), known)

    costs = tuple(
        tried(kept["chosen"], each, *told)
        for each, told in zip(_nominal(job), np.asarray(kept["costs"]), strict=True)
    )
    chosen = costs[_cost(job, kept)]
    opened = checking.open_truth(plan, plan.tune, job.workdir / "tuning", job.results.groups)
    found = read_truth(plan.tune, opened)
    # As the others are judged: against the mean of all seeds, of which it is none.
    alike = metrics.noise_ceiling(found.subsets).reliability
    one = float(np.sqrt(max(alike, 0) * metrics.spearman_brown(max(alike, 0), config.tune.seeds)))
    epochs = [each for each in EPOCHS if each < config.train.epochs]
    return Tuning(
        update=chosen.update,
        state=_state_of(chosen.pool, job.results, plan),
        pool=chosen.pool,
        tried=tuple(
            tried(place, share if last == 2 else min(share, tuning.FIRST_SHARE), agreement)
            for place, (agreement, last) in enumerate(
                zip(kept["agreement"], kept["round"], strict=True)
            )
            if last
        ),
        costs=costs,
        other=tried(kept["other"], share, *kept["other_told"]) if kept["other"] >= 0 else None,
        rivals=tuple(
            Rival(each, each / config.train.epochs, *map(float, row))
            for each, row in zip(epochs, kept["rivals"], strict=False)
        ),
        one_retraining=one,
        seconds_a_retraining=_seconds_in_full(kept["rivals"], epochs, config, found.seconds),
        stable=chosen.stable,
    )


def _seconds_in_full(
    rivals: np.ndarray, epochs: list[int], config: Config, measured: float
) -> float:
    """Of a retraining, without compilation: as an epoch of the longest compressed one takes."""
    if not epochs:
        return measured
    longest = len(epochs) - 1
    return float(rivals[longest, 1]) / epochs[longest] * config.train.epochs


def of_choice(job: Job, kept: dict[str, Any]) -> Any:
    """What later stages depend on: what was chosen, not what it took."""
    if job.plan.tune is None:
        return kept["chosen"]
    cost = _cost(job, kept)
    less = _nominal(job)[cost] < job.plan.config.tune.share
    return (kept["chosen"], np.int32(cost)) if less else kept["chosen"]


def _cost(job: Job, kept: dict[str, Any]) -> int:
    """The place of the chosen cost among those that are told."""
    agreement = np.asarray(kept["costs"])[:, 0].tolist()
    return tuning.best_cost(agreement, _nominal(job), job.plan.config.tune.share)


def _nominal(job: Job) -> list[float]:
    """The costs that are told."""
    config = job.plan.config
    return recipes.shares(_fixed(config), config.tune.share, _retraining_gradients(job))


def _fixed(config: Config) -> UpdateSettings:
    """The settings of the updates, without what they explain."""
    names = [field.name for field in dataclasses.fields(UpdateSettings)]
    return UpdateSettings(**{name: getattr(config.online, name) for name in names})


def _retraining_gradients(job: Job) -> int:
    return int((np.asarray(job.results.target.rows) >= 0).sum())


def _items(job: Job, pool: Pool) -> int:
    """How many items a pool has."""
    return length(job.plan.split.train if pool == "data" else job.results.synset.synset.items)


def _choices(job: Job) -> list[tuple[Pool, UpdateSettings]]:
    """What there is to choose from, without the cost."""
    config, gradients = job.plan.config, _retraining_gradients(job)
    share = min(config.tune.share, tuning.FIRST_SHARE)
    return [
        (pool, _recipe(update))
        for pool in config.tune.pools
        for update in recipes.every_recipe(
            _fixed(config), job.results.synset, _items(job, pool), gradients, share
        )
    ]


def _recipe(update: UpdateSettings) -> UpdateSettings:
    return dataclasses.replace(update, steps=None, batch=None)


def _told(tried: Tried) -> tuple[float, float, float]:
    """Agreement, seconds and the stable rate; NaN where it is given."""
    return tried.agreement, tried.seconds, np.nan if tried.stable is None else tried.stable
