"""Exact retraining behind the two functions of an estimator: the ground truth, at full cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.loo import leave_one_out_masks, retraining_response, subset_outputs
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Task, TrainRun


class RetrainingState(NamedTuple):
    keys: Array  # [seeds]
    data: Batch
    groups: Array  # [N]
    num_groups: int


def make_retraining(
    task: Task,
    train: Callable[[Array, Batch, Array], TrainRun],
    *,
    seeds: int = 1,
    output: Output | None = None,
) -> Estimator:
    """Make the estimator that trains `seeds * (K + 1)` networks anew when it is asked.

    `score[k, q]` is the mean over seeds of the paired change `output(train on all) -
    output(train without group k)`: both runs of a pair share their key, so they share
    initialisation and batch order.

    Raises:
        ValueError: for fewer than one seed.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}; it must be at least 1")
    outputs = subset_outputs(retraining_response(train, task.output if output is None else output))

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> RetrainingState:
        groups = check_groups(groups, len(data.x))
        count = int(groups.max()) + 1
        return RetrainingState(jax.random.split(key, seeds), data, jnp.asarray(groups), count)

    def score(state: RetrainingState, query: Batch) -> Array:
        masks = leave_one_out_masks(state.num_groups)
        each = [outputs(masks, key, state.data, state.groups, query) for key in state.keys]
        kept = jnp.mean(jnp.stack(each), 0)
        return kept[0] - kept[1:]

    return Estimator(fit, score)
