"""Density support: how much of the training data near a query a group provides. Experimental."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.checks import check_number, require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.pieces import map_pieces
from ddm_jax.estimators._shared import flat_inputs
from ddm_jax.estimators.contract import make_estimator, require_queries_alone
from ddm_jax.gradients import group_sums, wide
from ddm_jax.types import Array, Batch, Estimator, Groups, Task, TrainRun


class DensitySupportState(NamedTuple):
    x: Array  # [N, F]
    y: Array  # [N, C]
    groups: Groups
    width: Array  # of the kernel


def make_density_support(task: Task, *, bandwidth: float = 0.5) -> Estimator:
    """Make the estimator `(1/N) sum_{i in D_k} (2 <y_i, y_q> - 1) exp(-|x_i - x_q|^2 / 2 w^2)`.

    No network is asked: it explains being right, with its sign turned where
    `task.lower_is_better`. Experimental: the idea that performance near a point needs a density of
    training inputs there, of the rho-gap of learning-based control (Lederer, Capone, Umlauft &
    Hirche, 2020, arXiv 2005.12062), brought to classification.

    Args:
        bandwidth: w in units of the root mean square distance of training inputs, positive.

    Raises:
        ValueError: for a bandwidth that is not positive, or a task whose targets are no classes.
    """
    check_number("bandwidth", bandwidth, above=0)
    require_distributions(task, "density_support")
    require_queries_alone(task, "density_support")
    sign = -1 if task.lower_is_better else 1

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> DensitySupportState:
        x = jnp.asarray(flat_inputs(data.x, "density_support"))
        x = x.astype(wide(x.dtype))
        # The squared distance between two draws is twice the variance.
        width = bandwidth * jnp.sqrt(2 * jnp.sum(jnp.var(x, 0)))
        return DensitySupportState(x, data.y.astype(wide(data.y.dtype)), groups, width)

    @compiled
    def score(state: DensitySupportState, query: Batch) -> Array:
        def one(item: tuple[Array, Array]) -> Array:
            x, y = item
            near = jnp.exp(-jnp.sum((state.x - x) ** 2, 1) / (2 * state.width**2))
            return group_sums((2 * state.y @ y - 1) * near, state.groups)

        inputs = flat_inputs(query.x, "density_support")
        return sign * map_pieces(jax.vmap(one), (inputs, query.y), 16).T

    return make_estimator(task, fit, score, method="density_support")
