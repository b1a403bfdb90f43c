"""KNN-Shapley: the exact Shapley value of each point for a nearest-neighbour classifier."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.checks import check_integer, require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.pieces import map_pieces
from ddm_jax.compute.placement import in_batches
from ddm_jax.estimators._shared import flat_inputs
from ddm_jax.estimators.contract import make_estimator, require_queries_alone
from ddm_jax.gradients import group_sums
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun


class KNNShapleyState(NamedTuple):
    params: Params
    features: Array  # [N, F]
    labels: Array  # [N, C]
    groups: Groups


def make_knn_shapley(task: Task, *, neighbours: int = 5) -> Estimator:
    """Make the estimator of Jia et al., 2019, arXiv 1908.08619, theorem 1.

    The game's worth is the share of the query's class among its nearest neighbours in the
    penultimate features (the inputs, for a task without). With the points sorted by their
    distance to the query and `w_i = min(neighbours, i) / (neighbours i)`, from the farthest on:

        s_N = [y_N = y] w_N
        s_i = s_{i+1} + ([y_i = y] - [y_{i+1} = y]) w_i

    Points at the same distance, up to rounding, get the mean over all orders of them
    (`values_in_order`), so that how the points came does not matter. It explains being right,
    with its sign turned where `task.lower_is_better`. A group gets the sum of its points, over N
    as every score here is.

    Raises:
        ValueError: for fewer than one neighbour, or a task whose targets are no classes.
    """
    check_integer("neighbours", neighbours)
    require_distributions(task, "knn_shapley")
    require_queries_alone(task, "knn_shapley")
    represent = task.features or (lambda params, x: flat_inputs(x, "knn_shapley"))
    represent_all = in_batches(represent)
    sign = -1 if task.lower_is_better else 1

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> KNNShapleyState:
        params = at_least_float32(run.params)
        return KNNShapleyState(params, represent_all(params, data.x), data.y, groups)

    @compiled
    def score(state: KNNShapleyState, query: Batch) -> Array:
        def one(item: tuple[Array, Array]) -> Array:
            feature, label = item
            away = jnp.sum((state.features - feature) ** 2, 1)
            order = jnp.argsort(away)
            same = (state.labels @ label)[order]
            found = values_in_order(away[order], same, neighbours)
            values = jnp.zeros_like(found).at[order].set(found)
            values = jnp.where(jnp.isfinite(away).all(), values, jnp.nan)
            return sign * group_sums(values, state.groups)

        features = represent(state.params, query.x)
        return map_pieces(jax.vmap(one), (features, query.y), 16).T

    return make_estimator(task, fit, score, method="knn_shapley")


def values_in_order(away: Array, same: Array, neighbours: int) -> Array:
    """The Shapley values [N] of points in the order of their squared distances `away`.

    `same [N]` is 1 where a point has the query's class. Solved for each point, the recursion is

        s_i = w_i same_i + sum_{j > i} (w_j - w_{j-1}) same_j

    and in the mean over the orders of the n points at ranks a..b that are equally far, with W the
    mean of their weights and M the sum of their `same`,

        s_i = W same_i + (w_b - W) (M - same_i) / (n - 1) + sum_{j > b} (w_j - w_{j-1}) mean_j

    where `mean_j` is the mean of `same` over those that are as far as j.
    """
    count = len(away)
    rank = jnp.arange(1, count + 1)
    weight = (jnp.minimum(neighbours, rank) / (neighbours * rank)).astype(away.dtype)
    # Copies of a point are as far but for what the order of a sum rounds off.
    apart = away[1:] - away[:-1] > 8 * jnp.finfo(away.dtype).eps * away[1:]
    tie = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(apart)])

    def of_ties(values: Array) -> Array:
        return jax.ops.segment_sum(values, tie, count)[tie]

    size = of_ties(jnp.ones_like(away))
    last = jax.ops.segment_max(rank, tie, count)[tie] - 1
    weights, matches = of_ties(weight) / size, of_ties(same)
    steps = jnp.diff(weight, prepend=weight[:1]) * (matches / size)
    beyond = jnp.append(jnp.cumsum(steps[::-1])[::-1], 0.0)[last + 1]
    others = (matches - same) / jnp.maximum(size - 1, 1)
    return weights * same + (weight[last] - weights) * others + beyond
