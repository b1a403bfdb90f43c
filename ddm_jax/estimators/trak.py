"""TRAK: a kernel regression on the projected gradients of one or several networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.retraining import Train
from ddm_jax.gradients import ROWS, example_gradients, flatten, map_gradients
from ddm_jax.loo import random_masks
from ddm_jax.objectives import Output
from ddm_jax.parallel import device_vmap
from ddm_jax.pieces import map_pieces
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun, take


class TrakState(NamedTuple):
    params: Params  # leaves [M, ...]
    keys: Array  # [M], of the projections
    readout: Array  # [M, D, K]


def make_trak(
    task: Task,
    train: Train,
    *,
    models: int = 1,
    projection: int | None = 1024,
    damping: float = 1.0,
    output: Output | None = None,
) -> Estimator:
    """Make the estimator of Park et al., "TRAK", 2023, arXiv 2303.14186, eq. 13.

    With `phi_m(z) = R_m^T grad output(z; theta_m)` for the margin as output, `Phi_m` its rows
    over the training points, and `q_i = mean_m d loss_i / d(-output_i)` (one minus the
    probability of the label, for cross-entropy):

        score[i, q] = mean_m [ phi_m(q)^T (Phi_m^T Phi_m + ridge I)^-1 phi_m(i) ] * q_i

    summed over the points of a group. One model is the trained network itself; several are
    trained anew, each on a random half of the points, side by side. For another explained output
    than the margin, `phi_m(q)` is that output's gradient.

    Args:
        models: M, at least 1.
        projection: D, columns of the Gaussian R_m; None keeps all P parameters.
        damping: the ridge, in units of the mean diagonal of `Phi^T Phi`. The paper has none,
            which loses a third of the LDS on logistic regression; where D exceeds N it must be
            positive.

    Raises:
        ValueError: for a setting out of range, or (when fitted) no damping where D exceeds N.
    """
    for name, value, fine in (
        ("models", models, models >= 1),
        ("projection", projection, projection is None or projection >= 1),
        ("damping", damping, damping >= 0),
    ):
        if not fine:
            raise ValueError(f"{name}={value} is out of range; see make_trak")
    explained = task.output if output is None else output

    def projection_of(params: Params, key: Array) -> Callable[[Array], Array]:
        if projection is None:
            return lambda rows: rows
        matrix = jax.random.normal(key, (flatten(params).size, projection)) / projection**0.5
        return lambda rows: rows @ matrix

    def one_model(params: Params, key: Array, data: Batch) -> tuple[Array, Array]:
        """`(Phi^T Phi + ridge)^-1 Phi^T` [D, N], and d loss / d(-output) [N]."""
        project = projection_of(params, key)

        def of_piece(piece: Batch) -> tuple[Array, Array]:
            rows = example_gradients(task.output, params, piece)
            slopes = example_gradients(task.loss, params, piece)
            along = -jnp.sum(slopes * rows, 1) / jnp.maximum(jnp.sum(rows**2, 1), 1e-20)
            return project(rows), along

        size = max(ROWS // (8 * flatten(params).size), 1)
        features, along = map_pieces(of_piece, data, size)
        gram = features.T @ features
        ridge = damping * jnp.trace(gram) / len(gram)
        solved = jnp.linalg.solve(gram + ridge * jnp.eye(len(gram)), features.T)
        return solved, along

    @jax.jit
    def prepare(params: Params, keys: Array, data: Batch, groups: Array, like: Array) -> Array:
        solved, along = lax.map(lambda model: one_model(model[0], model[1], data), (params, keys))
        members = jax.nn.one_hot(groups, len(like))
        return solved @ (along.mean(0)[:, None] * members)

    train_each = device_vmap(lambda item, data: train(item["key"], data, item["keep"]).params)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> TrakState:
        groups = check_groups(groups, len(data.x))
        columns = projection or sum(leaf.size for leaf in jax.tree.leaves(run.params))
        if damping == 0 and columns > len(groups):
            raise ValueError(
                f"damping=0 with {columns} columns for {len(groups)} points has no solution; use a "
                "positive damping or a smaller projection"
            )
        mask_key, train_key, project_key = jax.random.split(key, 3)
        keys = jax.random.split(project_key, models)
        if models == 1:
            params = jax.tree.map(lambda leaf: leaf[None], run.params)
        else:
            keep = random_masks(mask_key, models, len(groups))
            items = {"keep": keep, "key": jax.random.split(train_key, models)}
            params = train_each(items, data)
        like = jnp.zeros(int(groups.max()) + 1)
        return TrakState(params, keys, prepare(params, keys, data, jnp.asarray(groups), like))

    @jax.jit
    def score(state: TrakState, query: Batch) -> Array:
        def one(total: Array, index: Array):
            params, key, readout = take(state, index)
            features = map_gradients(projection_of(params, key), explained, params, query)
            return total + (features @ readout).T, None

        total = jnp.zeros((state.readout.shape[-1], len(query.x)))
        return lax.scan(one, total, jnp.arange(models))[0] / models

    return Estimator(fit, score)
