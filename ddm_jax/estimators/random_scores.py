"""Random scores: what any estimator must beat."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.pieces import map_pieces
from ddm_jax.estimators.contract import make_estimator, require_queries_alone
from ddm_jax.types import Array, Batch, Estimator, Groups, Task, TrainRun


class RandomState(NamedTuple):
    key: Array
    names: Array  # [N] uint32
    groups: Groups


def make_random(task: Task) -> Estimator:
    """Make the estimator whose score of a point and a query is a standard normal number.

    Drawn from the key and the contents of both, so that asking again, for others beside it, or
    with the points in another order, gives the same. Groups get the sum of their points.
    """

    require_queries_alone(task, "random")

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> RandomState:
        return RandomState(key, _names(data), groups)

    @compiled
    def score(state: RandomState, query: Batch) -> Array:
        def draw(key: Array, name: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(key, name), dtype=jnp.float32)

        def one(name: Array) -> Array:
            key = jax.random.fold_in(state.key, name)
            each = jax.vmap(lambda n: draw(key, n))(state.names)
            return jax.ops.segment_sum(each, jnp.asarray(state.groups.ids), state.groups.count)

        return map_pieces(jax.vmap(one), _names(query), 16).T

    return make_estimator(task, fit, score, method="random")


def _names(batch: Batch) -> Array:
    """A number for each example, by all of its bits: uint32 [B].

    A sum of the pixels would not do: hundreds of digits share one.
    """
    leaves = jax.tree.leaves(batch)
    flat = [jnp.asarray(leaf, jnp.float32).reshape(len(leaf), -1) for leaf in leaves]
    bits = lax.bitcast_convert_type(jnp.concatenate(flat, 1), jnp.uint32)
    # The low bits of a pixel are mostly zero, and a product carries upwards only.
    bits = bits ^ (bits >> 16)
    factors = jax.random.bits(jax.random.key(0), bits.shape[1:], jnp.uint32) | 1
    return jnp.sum(bits * factors, 1, dtype=jnp.uint32)
