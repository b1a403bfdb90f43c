"""The stage that chooses how the updates go: what it computes, and what it keeps of that."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax import metrics, tuning
from ddm_jax.distill import Loop
from ddm_jax.estimators.ddm import find_stable
from ddm_jax.judge.rivals import EPOCHS, Rival, short_retrainings
from ddm_jax.judge.truth import read_truth
from ddm_jax.run import check as checking
from ddm_jax.run.jobs import Job
from ddm_jax.run.settings import Config
from ddm_jax.tuning import Pool, Tried
from ddm_jax.types import length
from ddm_jax.updates import UpdateSettings


class Tuning(NamedTuple):
    """How the updates of a run go, and why."""

    update: UpdateSettings
    pool: Pool = "synset"  # what the steps take
    tried: tuple[Tried, ...] = ()
    costs: tuple[Tried, ...] = ()
    other: Tried | None = None  # the best of the other pool
    rivals: tuple[Rival, ...] = ()
    one_retraining: float = float("nan")  # agreement of one seed with the others
    seconds_a_retraining: float = float("nan")
    stable: float | None = None  # the stable rate of the updates, on what their steps take


def of_synset(tuning: Tuning) -> tuple[UpdateSettings, float | None]:
    """How updates go that must take the synset's items, whatever was chosen; their stable rate."""
    if tuning.pool == "synset":
        return tuning.update, tuning.stable
    other = tuning.other
    return (tuning.update, None) if other is None else (other.update, other.stable)


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
        real=(data, results.groups) if config.tune.real_data else None,
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
        kept["finalist"][place] = number < tuned.finalists
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
    costs = len(tuning.shares(_fixed(job.plan.config), job.plan.config.tune.share))
    epochs = [each for each in EPOCHS if each < job.plan.config.train.epochs]
    return {
        "agreement": np.full(count, np.nan, np.float32),
        "finalist": np.zeros(count, np.int8),
        "chosen": np.int32(0),
        "costs": np.zeros((costs if chosen else 1, 3), np.float32),
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
        return Tuning(fixed, stable=stable if np.isfinite(stable) else None)
    gradients, share = _retraining_gradients(job), config.tune.share
    choices = _choices(job)

    def tried(
        place: Any, share: float, agreement: Any, seconds: Any = np.nan, stable: Any = np.nan
    ) -> Tried:
        pool, recipe = choices[int(place)]
        items = _items(job, pool)
        update = tuning.at_share(recipe, fixed, share, gradients, items)
        cost = tuning.example_gradients(update, items) / gradients
        known = float(stable) if np.isfinite(stable) else None
        return Tried(update, pool, cost, float(agreement), float(seconds), known)

    costs = tuple(
        tried(kept["chosen"], each, *told)
        for each, told in zip(tuning.shares(fixed, share), np.asarray(kept["costs"]), strict=True)
    )
    chosen = costs[_cost(kept, config)]
    opened = checking.open_truth(plan, plan.tune, job.workdir / "tuning", job.results.groups)
    found = read_truth(plan.tune, opened)
    # As the others are judged: against the mean of all seeds, of which it is none.
    alike = metrics.noise_ceiling(found.subsets).reliability
    one = float(np.sqrt(max(alike, 0) * metrics.spearman_brown(max(alike, 0), config.tune.seeds)))
    epochs = [each for each in EPOCHS if each < config.train.epochs]
    return Tuning(
        update=chosen.update,
        pool=chosen.pool,
        tried=tuple(
            tried(place, share if finalist else min(share, tuning.FIRST_SHARE), agreement)
            for place, (agreement, finalist) in enumerate(
                zip(kept["agreement"], kept["finalist"], strict=True)
            )
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
    config = job.plan.config
    cost, allowed = _cost(kept, config), config.tune.share
    less = tuning.shares(_fixed(config), allowed)[cost] < allowed
    return (kept["chosen"], np.int32(cost)) if less else kept["chosen"]


def _cost(kept: dict[str, Any], config: Config) -> int:
    """The place of the chosen cost among those that are told."""
    nominal = tuning.shares(_fixed(config), config.tune.share)
    return tuning.best_cost(np.asarray(kept["costs"])[:, 0].tolist(), nominal, config.tune.share)


def _fixed(config: Config) -> UpdateSettings:
    """The settings of the updates, without what they explain."""
    names = [field.name for field in dataclasses.fields(UpdateSettings)]
    return UpdateSettings(**{name: getattr(config.online, name) for name in names})


def _retraining_gradients(job: Job) -> int:
    return int((np.asarray(job.results.target.rows) >= 0).sum())


def _pools(job: Job) -> list[Pool]:
    return ["synset", "data"] if job.plan.config.tune.real_data else ["synset"]


def _items(job: Job, pool: Pool) -> int:
    """How many items a pool has."""
    return length(job.results.synset.synset.items if pool == "synset" else job.plan.split.train)


def _choices(job: Job) -> list[tuple[Pool, UpdateSettings]]:
    """What there is to choose from, without the cost."""
    config, gradients = job.plan.config, _retraining_gradients(job)
    share = min(config.tune.share, tuning.FIRST_SHARE)
    return [
        (pool, _recipe(update))
        for pool in _pools(job)
        for update in tuning.recipes(
            _fixed(config), job.results.synset, _items(job, pool), gradients, share
        )
    ]


def _recipe(update: UpdateSettings) -> UpdateSettings:
    return dataclasses.replace(update, steps=None, batch=None)


def _told(tried: Tried) -> tuple[float, float, float]:
    """Agreement, seconds and the stable rate; NaN where it is given."""
    return tried.agreement, tried.seconds, np.nan if tried.stable is None else tried.stable
