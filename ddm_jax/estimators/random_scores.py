"""Random scores: what any estimator must beat."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.types import Array, Batch, Estimator, TrainRun


class RandomState(NamedTuple):
    keys: Array  # [K]


def make_random() -> Estimator:
    """Make the estimator whose scores are drawn from a normal distribution.

    A query's scores depend on the query, so that asking again, or for others beside it, gives
    the same.
    """

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> RandomState:
        groups = check_groups(groups, len(data.x))
        # Named by their first point's pixels: as every estimator's, rows follow their groups.
        names = jnp.sum(jnp.abs(data.x.reshape(len(data.x), -1)), 1) * 1000
        sums = jax.ops.segment_max(names, jnp.asarray(groups), int(groups.max()) + 1)
        return RandomState(jax.vmap(lambda s: jax.random.fold_in(key, s))(sums.astype(jnp.uint32)))

    @jax.jit
    def score(state: RandomState, query: Batch) -> Array:
        names = jnp.sum(jnp.abs(query.x.reshape(len(query.x), -1)), 1) * 1000

        def one(key: Array, name: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(key, name))

        of_group = jax.vmap(one, (None, 0))
        return jax.vmap(of_group, (0, None))(state.keys, names.astype(jnp.uint32))

    return Estimator(fit, score)
