"""Density support: how much of the training data near a query a group provides. Experimental."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.data_values import check_classes
from ddm_jax.gradients import group_sums
from ddm_jax.pieces import map_pieces
from ddm_jax.types import Array, Batch, Estimator, TrainRun


class DensitySupportState(NamedTuple):
    x: Array  # [N, F]
    y: Array  # [N, C]
    groups: Array  # [N]
    like: Array  # [K], for its size
    width: Array  # of the kernel


def make_density_support(*, bandwidth: float = 0.5) -> Estimator:
    """Make the estimator `(1/N) sum_{i in D_k} (2 <y_i, y_q> - 1) exp(-|x_i - x_q|^2 / 2 w^2)`.

    No network is asked. Experimental: the idea that performance near a point needs a density of
    training inputs there, of the rho-gap of learning-based control (Lederer, Capone, Umlauft &
    Hirche, 2020, arXiv 2005.12062), brought to classification.

    Args:
        bandwidth: w in units of the root mean square distance of training inputs, positive.

    Raises:
        ValueError: for a bandwidth that is not positive.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth={bandwidth}; it must be positive")

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> DensitySupportState:
        groups = check_groups(groups, len(data.x))
        check_classes(data, "density support")
        x = data.x.reshape(len(data.x), -1)
        # The squared distance between two draws is twice the variance.
        width = bandwidth * jnp.sqrt(2 * jnp.sum(jnp.var(x, 0)))
        like = jnp.zeros(int(groups.max()) + 1)
        return DensitySupportState(x, data.y, jnp.asarray(groups), like, width)

    @jax.jit
    def score(state: DensitySupportState, query: Batch) -> Array:
        def one(item: tuple[Array, Array]) -> Array:
            x, y = item
            near = jnp.exp(-jnp.sum((state.x - x) ** 2, 1) / (2 * state.width**2))
            side = 2 * state.y @ y - 1
            return group_sums(side * near, state.groups, len(state.like))

        inputs = query.x.reshape(len(query.x), -1)
        return map_pieces(jax.vmap(one), (inputs, query.y), 16).T

    return Estimator(fit, score)
