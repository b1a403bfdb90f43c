"""Encoded ensembles: to ablate a group, average the members that never saw it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.checks import check_integer
from ddm_jax.compute.compiled import compiled
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.estimators.subset_networks import (
    SubsetNetworks,
    make_subset_networks,
    network_outputs,
)
from ddm_jax.train import Train
from ddm_jax.types import Array, Batch, Estimator, Task


def make_encoded_ensemble(task: Task, train: Train, *, members: int = 20) -> Estimator:
    """Make the estimator of Dai & Gifford, 2023, arXiv 2306.02174.

    Every group has a code: a distinct set of half of the members, those that are trained with
    it. The score is the mean output of all members less the mean of those that never saw the
    group. Where many groups are gone together no member is without all of them, and effects add up.

    Args:
        members: networks to train, even, with at least K distinct halves.

    Raises:
        ValueError: for an odd number of members or fewer than two, or (when fitted) more groups
            than codes.
    """
    check_integer("members", members, 2)
    if members % 2:
        raise ValueError(f"members={members}; it must be even, as each group is in half of them")
    fit = make_subset_networks(train, lambda key, count: codes(key, members, count))

    @compiled
    def score(state: SubsetNetworks, query: Batch) -> Array:
        outputs = network_outputs(task.output, state.params, query)
        unseen = 1 - state.masks
        return outputs.mean(0) - unseen.T @ outputs / unseen.sum(0)[:, None]

    return make_estimator(task, fit, score, method="encoded_ensemble")


def codes(key: Array, members: int, num_groups: int) -> Array:
    """Which group each member sees, `[members, K]`: columns are distinct halves of the members.

    Raises:
        ValueError: for more groups than there are codes.
    """
    most = int(np.prod([(members - i) / (i + 1) for i in range(members // 2)]).round())
    if num_groups > most:
        raise ValueError(
            f"members={members} make {most} codes; {num_groups} groups need more members"
        )
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    found: dict[tuple[int, ...], None] = {}
    while len(found) < num_groups:
        half = draw.permutation(members)[: members // 2]
        found[tuple(sorted(half.tolist()))] = None
    seen = np.zeros((members, num_groups), np.float32)
    for group, code in enumerate(found):
        seen[list(code), group] = 1
    return jnp.asarray(seen)
