"""KNN-Shapley: the exact Shapley value of each point for a nearest-neighbour classifier."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.data_values import check_classes
from ddm_jax.gradients import group_sums
from ddm_jax.parallel import in_batches
from ddm_jax.pieces import map_pieces
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun


class KNNShapleyState(NamedTuple):
    params: Params
    features: Array  # [N, F]
    labels: Array  # [N, C]
    groups: Array  # [N]
    like: Array  # [K], for its size


def make_knn_shapley(task: Task, *, neighbours: int = 5) -> Estimator:
    """Make the estimator of Jia et al., 2019, arXiv 1908.08619, theorem 1.

    The game's worth is the share of the query's class among its nearest neighbours in the
    penultimate features (the inputs, for a task without). With the points sorted by their
    distance to the query, from the farthest on:

        s_N = [y_N = y] / N
        s_i = s_{i+1} + ([y_i = y] - [y_{i+1} = y]) / neighbours * min(neighbours, i) / i

    It explains being right, whatever the output is. A group gets the sum of its points, over N
    as every score here is.

    Raises:
        ValueError: for fewer than one neighbour.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}; it must be at least 1")
    represent = task.features or (lambda params, x: x.reshape(len(x), -1))
    represent_all = in_batches(represent)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> KNNShapleyState:
        groups = check_groups(groups, len(data.x))
        check_classes(data, "KNN-Shapley")
        features = represent_all(run.params, data.x)
        like = jnp.zeros(int(groups.max()) + 1)
        return KNNShapleyState(run.params, features, data.y, jnp.asarray(groups), like)

    @jax.jit
    def score(state: KNNShapleyState, query: Batch) -> Array:
        count = len(state.features)
        rank = jnp.arange(1, count + 1)
        step = jnp.minimum(neighbours, rank) / (neighbours * rank)

        def one(item: tuple[Array, Array]) -> Array:
            feature, label = item
            order = jnp.argsort(jnp.sum((state.features - feature) ** 2, 1))
            same = (state.labels @ label)[order]
            last = same[-1:] / count * jnp.minimum(neighbours, count) / neighbours
            change = (same[:-1] - same[1:]) * step[:-1]
            values = jnp.cumsum(jnp.concatenate([last, change[::-1]]))[::-1]
            return group_sums(jnp.zeros(count).at[order].set(values), state.groups, len(state.like))

        features = represent(state.params, query.x)
        return map_pieces(jax.vmap(one), (features, query.y), 16).T

    return Estimator(fit, score)
