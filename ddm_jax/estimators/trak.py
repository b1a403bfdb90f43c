"""TRAK: a kernel regression on the projected gradients of one or several networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax import objectives
from ddm_jax.checks import check_integer, check_number, require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.memory import device_memory
from ddm_jax.compute.pieces import map_pieces
from ddm_jax.compute.placement import device_vmap
from ddm_jax.estimators._shared import sum_over
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.gradients import example_gradients, flatten, output_gradients, rows_at_once
from ddm_jax.masks import random_masks
from ddm_jax.matching import at_least_float32
from ddm_jax.objectives import Output
from ddm_jax.train import Train
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun, length


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
    margin: Output | None = None,
) -> Estimator:
    """Make the estimator of Park et al., "TRAK", 2023, arXiv 2303.14186, eq. 13.

    With `phi_m(z) = R_m^T grad margin(z; theta_m)`, `Phi_m` its rows over the training points,
    and `q_i = mean_m d loss_i / d(-margin_i)` (one minus the probability of the label, for
    cross-entropy):

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
        margin: `(params, batch) -> [B]`, of the training points; default `objectives.margin`, or
            the task's output where its targets are no classes.

    Raises:
        ValueError: for a setting out of range, a task of sets without classes and `margin`, or (in
            `fit`) no damping where D exceeds N, or a projection that does not fit.
    """
    check_integer("models", models)
    check_number("damping", damping, least=0)
    if projection is not None:
        check_integer("projection", projection)
    if margin is None:
        classes = task.targets == "distribution"
        if task.of_sets and not classes:
            raise ValueError("trak needs `margin`, an output of single points, for a task of sets")
        margin = task.output
        if classes:
            margin = objectives.margin(require_distributions(task, "trak"))
    of_point = margin

    def projection_of(params: Params, key: Array) -> Callable[[Array], Array]:
        if projection is None:
            return lambda rows: rows
        flat = flatten(params)
        matrix = jax.random.normal(key, (flat.size, projection), jnp.float32) / projection**0.5
        return lambda rows: rows @ matrix.astype(rows.dtype)

    def one_model(params: Params, key: Array, data: Batch) -> tuple[Array, Array]:
        """`(Phi^T Phi + ridge)^-1 Phi^T` [D, N], and d loss / d(-output) [N]."""
        project = projection_of(params, key)

        def of_piece(piece: Batch) -> tuple[Array, Array]:
            rows = example_gradients(of_point, params, piece)
            slopes = example_gradients(task.loss, params, piece)
            along = -jnp.sum(slopes * rows, 1) / jnp.maximum(jnp.sum(rows**2, 1), 1e-20)
            return project(rows), along

        size = max(rows_at_once(params) // 2, 1)
        features, along = map_pieces(of_piece, data, size)
        gram = features.T @ features
        ridge = damping * jnp.trace(gram) / len(gram)
        unit = jnp.eye(len(gram), dtype=gram.dtype)
        return jnp.linalg.solve(gram + ridge * unit, features.T), along

    @compiled
    def prepare(params: Params, keys: Array, data: Batch, groups: Groups) -> Array:
        solved, along = lax.map(lambda model: one_model(model[0], model[1], data), (params, keys))
        members = jax.nn.one_hot(jnp.asarray(groups.ids), groups.count, dtype=along.dtype)
        return solved @ (along.mean(0)[:, None] * members)

    train_each = device_vmap(lambda item, data: train(item["key"], data, item["keep"]).params)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> TrakState:
        count = length(data)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(run.params))
        columns = projection or parameters
        # Drawn, and as it is multiplied with.
        if projection is not None and 4 * 4 * parameters * projection > device_memory():
            raise ValueError(
                f"projection={projection} of {parameters:,} parameters takes "
                f"{16 * parameters * projection / 2**30:.0f} GiB, and there are "
                f"{device_memory() / 2**30:.0f}; lower it"
            )
        if damping == 0 and columns > count:
            raise ValueError(
                f"damping=0 with {columns} columns for {count} points has no solution; use a "
                "positive damping or a smaller projection"
            )
        mask_key, train_key, project_key = jax.random.split(key, 3)
        keys = jax.random.split(project_key, models)
        if models == 1:
            params = jax.tree.map(lambda leaf: leaf[None], run.params)
        else:
            keep = random_masks(mask_key, models, count)
            items = {"keep": keep, "key": jax.random.split(train_key, models)}
            params = train_each(items, data)
        params = at_least_float32(params)
        return TrakState(params, keys, prepare(params, keys, data, groups))

    @compiled
    def score(state: TrakState, query: Batch) -> Array:
        def one(model: TrakState) -> Array:
            project = projection_of(model.params, model.keys)
            features = output_gradients(task, model.params, query, project)
            return (features @ model.readout).T

        return sum_over(one, state) / models

    return make_estimator(task, fit, score, method="trak")
