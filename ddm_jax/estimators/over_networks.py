"""Averages over several target networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddm_jax.estimators.ddm import DDMState, distilled_run
from ddm_jax.types import Array, Batch, Estimator, Groups, State, TrainRun


def over_networks(estimator: Estimator, *, one_synset: bool = False) -> Estimator:
    """An estimator of several target networks, which says what they say on average.

    Retraining is random: its truth is a mean over seeds, and one network knows its own seed alone.
    The `fit` of what is made here takes a list of E runs of one recipe with different keys in place
    of a run, and fits each by itself; scores and outputs are means over the networks. Both stages
    cost E times as much; with E times fewer steps online as much as before, and on small and noisy
    problems the answer is better for it.

        runs = [train(jax.random.key(seed), data, weights) for seed in range(4)]
        estimator = over_networks(make_ddm(task), one_synset=True)
        state = estimator.fit(key, runs, data, groups)

    Args:
        one_synset: of the distilled datamodel: one synset serves all networks, distilled at the
            checkpoints of all in turn, at the cost of one.

    Raises:
        ValueError: (in `fit`) for a single run or none, or one synset of another estimator.
    """

    def fit(key: Array, runs: Sequence[TrainRun], data: Batch, groups: Groups) -> tuple[State, ...]:
        if isinstance(runs, TrainRun) or not all(isinstance(run, TrainRun) for run in runs):
            raise ValueError("over_networks takes a list of runs: [train(key, ...) for each key]")
        if not runs:
            raise ValueError("over_networks takes at least one run, and the list is empty")
        if not one_synset:
            return tuple(
                estimator.fit(jax.random.fold_in(key, number), run, data, groups)
                for number, run in enumerate(runs)
            )
        state = estimator.fit(key, in_turn(runs), data, groups)
        if not isinstance(state, DDMState):
            raise ValueError("one_synset=True is for make_ddm, whose state has a synset")
        return tuple(distilled_run(run, state.synset, state.info) for run in runs)

    def score(states: tuple[State, ...], query: Batch) -> Array:
        return _mean([estimator.score(state, query) for state in states])

    if estimator.outputs is None:
        return Estimator(fit, score)  # type: ignore[arg-type]
    of_subsets = estimator.outputs

    def outputs(states: tuple[State, ...], masks: Any, query: Batch) -> Array:
        return _mean([of_subsets(state, masks, query) for state in states])

    return Estimator(fit, score, outputs)  # type: ignore[arg-type]


def in_turn(runs: Sequence[TrainRun]) -> TrainRun:
    """Several trainings as one, with their checkpoints in turn: the first of each, the second, ...

    Raises:
        ValueError: for runs with different numbers of checkpoints, or of different networks.
    """
    shapes = {str(jax.tree.map(jnp.shape, run.checkpoints)) for run in runs}
    if len(shapes) > 1:
        raise ValueError("the runs have checkpoints of different shapes; train them by one recipe")

    def mix(*leaves: Any) -> Array:
        return jnp.stack(leaves, 1).reshape(-1, *leaves[0].shape[1:])

    checkpoints = jax.tree.map(mix, *(run.checkpoints for run in runs))
    # What belongs to the steps of one of them would not fit.
    return runs[-1]._replace(
        checkpoints=checkpoints, second_moments=None, steps=None, learning_rates=None, rows=None
    )


def _mean(each: Sequence[Array]) -> Array:
    return jnp.mean(jnp.stack(each), 0)
