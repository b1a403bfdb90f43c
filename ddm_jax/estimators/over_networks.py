"""Averages over several target networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddm_jax.types import Array, Batch, Estimator, Groups, State, TrainRun


def over_networks(estimator: Estimator) -> Estimator:
    """An estimator of several target networks, which says what they say on average.

    Retraining is random: its truth is a mean over seeds, and one network knows its own seed alone.
    The `fit` of what is made here takes a list of E runs of one recipe with different keys in place
    of a run, and fits each by itself; scores and outputs are means over the networks. Both stages
    cost E times as much.

        runs = [train(jax.random.key(seed), data, weights) for seed in range(4)]
        estimator = over_networks(make_ddm(task))
        state = estimator.fit(key, runs, data, groups)

    Raises:
        ValueError: (in `fit`) for a single run or none.
    """

    def fit(key: Array, runs: Sequence[TrainRun], data: Batch, groups: Groups) -> tuple[State, ...]:
        if (
            isinstance(runs, TrainRun)
            or not all(isinstance(run, TrainRun) for run in runs)
            or not runs
        ):
            raise ValueError("over_networks takes a list of runs: [train(key, ...) for each key]")
        return tuple(
            estimator.fit(jax.random.fold_in(key, number), run, data, groups)
            for number, run in enumerate(runs)
        )

    def score(states: tuple[State, ...], query: Batch) -> Array:
        return _mean([estimator.score(state, query) for state in states])

    if estimator.outputs is None:
        return Estimator(fit, score)  # type: ignore[arg-type]
    of_subsets = estimator.outputs

    def outputs(states: tuple[State, ...], masks: Any, query: Batch) -> Array:
        return _mean([of_subsets(state, masks, query) for state in states])

    return Estimator(fit, score, outputs)  # type: ignore[arg-type]


def _mean(each: Sequence[Array]) -> Array:
    return jnp.mean(jnp.stack(each), 0)
