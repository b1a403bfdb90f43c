"""What a user would do instead: retrain, on a schedule that is compressed as far as it can be."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax import metrics
from ddm_jax.estimators.retraining import retrained_outputs, retraining_response
from ddm_jax.judge.problem import Problem, trainer_of
from ddm_jax.judge.truth import truth_key
from ddm_jax.types import Batch, Groups

EPOCHS = (1, 2, 5, 10)  # of compressed schedules


class Rival(NamedTuple):
    """A retraining on a compressed schedule."""

    epochs: int
    share: float  # of a whole retraining
    agreement: float  # group LDS with retraining in full
    seconds: float  # a network


def short_retrainings(
    problem: Problem,
    masks: np.ndarray,
    retrained: np.ndarray,
    data: Batch,
    groups: Groups,
    query: Batch,
) -> list[Rival]:
    """Retrain in fewer epochs without what each mask leaves out, all masks in one call.

    Args:
        retrained: [R, Q] what networks say that were retrained in full, by other seeds.
    """
    key = jax.random.fold_in(truth_key(problem.seed), 3)  # no seed of the truth's
    found = []
    for epochs in (each for each in EPOCHS if each < problem.train.epochs):
        train = trainer_of(problem, epochs).train
        outputs = retrained_outputs(retraining_response(train, problem.task.output))

        def ask(masks: np.ndarray, outputs: Any = outputs) -> np.ndarray:
            keys = jnp.stack([key] * len(masks))
            return np.asarray(outputs(masks, keys, data, groups, query))

        each = metrics.per_query_correlation(ask(masks), retrained)
        begin = time.perf_counter()
        ask(masks)  # once more, without what was compiled
        seconds = (time.perf_counter() - begin) / len(masks)
        share = epochs / problem.train.epochs
        found.append(Rival(epochs, share, metrics.nan_mean(each), seconds))
    return found


def pays_after(offline: float, question: float, rival: float) -> float:
    """After how many questions a synset has cost less than a rival; infinite where never.

    Args:
        offline: seconds before the first question.
        question, rival: seconds a question of the synset and of the rival.
    """
    return offline / (rival - question) if rival > question else float("inf")
