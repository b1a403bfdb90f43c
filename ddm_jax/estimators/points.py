"""Single points from the synset: influence functions with the synset's curvature.

The synset is tiny, so its curvature at a network is a matrix of low rank, and an influence function
that uses it in place of the Hessian of the training objective costs one small system of equations
(Woodbury) and a product with each point's gradient. A synset of K groups thereby answers for all N
points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from ddm_jax.checks import check_choice, check_integer, count_outputs
from ddm_jax.compute.memory import bytes_of, refuse_larger
from ddm_jax.compute.pieces import map_pieces
from ddm_jax.estimators._shared import sum_over
from ddm_jax.gradients import (
    check_damping,
    curvature_diagonal,
    every_label,
    example_gradients,
    fisher_root,
    flatten,
    gradient_products,
    map_gradients,
    output_gradients,
    rows_at_once,
)
from ddm_jax.items import items_of
from ddm_jax.synset import batches_of, deal, item_weights, take_batch
from ddm_jax.types import Array, Batch, Params, Synset, Task, length, take

CURVATURES = ("gauss_newton", "fisher")
BLOCKS = ("whole", "layer")

PointInfluence = Callable[..., Array]  # params, synset, data, query, weight_decay=0.0 -> [N, Q]


def make_point_influence(task: Task, **settings: Any) -> PointInfluence:
    """Make `influence(params, synset, data, query, weight_decay=0.0) -> [N, Q]`.

        score[i, q] = -(1/N) grad loss_i^T (G_S + d I)^-1 grad output_q

    with `d = weight_decay + damping`, the weight decay that of training, and `G_S = J^T J` the
    curvature of the synset's objective, J of R rows: by Woodbury

        (G_S + d I)^-1 v = (v - J^T (J J^T + d I)^-1 J v) / d

    - "gauss_newton": rows `sqrt(w_m p_c) grad loss(x_m, e_c)`, R = I C: the Gauss-Newton matrix of
      softmax cross-entropy, where w_m = share_k max(mass_m, 0) and p are the network's own
      predictions. Labels of the items do not matter.
    - "fisher": rows `sqrt(w_m) grad loss(x_m, softmax(y_m))`, R = I: the empirical Fisher matrix. C
      times cheaper and clearly worse.

    Points come in pieces; N x P numbers are never held, R x P are. It traces whole.

    Args:
        damping: at least 0, by default .01; with the weight decay it must be positive.
        curvature: "gauss_newton", the default, or "fisher".
        blocks: "whole", the default, or "layer": the curvature between layers is left out.

    Raises:
        ValueError: for a setting out of range, "gauss_newton" for a task whose targets are no
            classes, or (when called) no damping and no weight decay, or a synset of too many items.
    """
    of_items = _make_influence_of_items(task, **settings)

    def influence(
        params: Params, synset: Synset, data: Batch, query: Batch, weight_decay: Any = 0.0
    ) -> Array:
        weights = item_weights(synset, jnp.ones_like(synset.share))
        examples = items_of(task).batch(synset.items)
        return of_items(params, examples, weights, data, query, weight_decay)

    return influence


def make_trajectory_influence(
    task: Task, *, batch: int | None = 250, **settings: Any
) -> PointInfluence:
    """Make `influence(points, synset, data, query, weight_decay=0.0)`: the mean over T networks.

    `points` has leaves `[T, ...]`, for example `spread_points` of a run. At a trained network the
    gradients of well-learnt points are almost nothing, and an influence taken there alone says
    little of them; taken along the trajectory it knows what they did before. Each network takes
    `batch` of the synset's items in turn (`synset.deal`).

    `settings` are those of `make_point_influence`.
    """
    of_items = _make_influence_of_items(task, **settings)

    def influence(
        points: Params, synset: Synset, data: Batch, query: Batch, weight_decay: Any = 0.0
    ) -> Array:
        weights = item_weights(synset, jnp.ones_like(synset.share))
        examples, count = items_of(task).batch(synset.items), length(points)
        turns = batches_of(length(examples), batch)

        def at(item: tuple[Params, Array]) -> Array:
            params, rows = item
            some = take_batch(examples, weights, rows, turns)
            return of_items(params, *some, data, query, weight_decay)

        return sum_over(at, (points, deal(synset, batch, count))) / count

    return influence


def _make_influence_of_items(
    task: Task,
    *,
    damping: float = 0.01,
    curvature: str = "gauss_newton",
    blocks: str = "whole",
) -> Callable[..., Array]:
    """Make `influence(params, items [I], weights [I], data, query, weight_decay) -> [N, Q]`."""
    check_damping(damping)
    check_choice("curvature", curvature, CURVATURES)
    check_choice("blocks", blocks, BLOCKS)
    if curvature == "gauss_newton" and task.targets != "distribution":
        raise ValueError(
            "the influence of single points by curvature='gauss_newton' needs classes, and this "
            f"task has targets={task.targets!r}: take curvature='fisher', or a method that holds "
            "for any loss, such as influence_cg"
        )

    def influence(
        params: Params, items: Batch, weights: Array, data: Batch, query: Batch, weight_decay: Any
    ) -> Array:
        count_outputs(task, query)  # refuses an output of another shape
        diagonal = curvature_diagonal(damping, weight_decay)
        rows = curvature_rows(task, params, items, weights, curvature)
        cuts = layer_cuts(params) if blocks == "layer" else []
        parts = jnp.split(rows, cuts, 1)

        def solve(rows: Array, vectors: Array) -> Array:
            """`(J^T J + d I)^-1 v` for rows J `[R, P]` and vectors `[V, P]`."""
            system = rows @ rows.T + diagonal * jnp.eye(len(rows), dtype=rows.dtype)
            amount = cho_solve(cho_factor(system, lower=True), rows @ vectors.T)
            return (vectors - amount.T @ rows) / diagonal

        def of_queries(query: Batch) -> Array:
            wanted = jnp.split(output_gradients(task, params, query), cuts, 1)
            solved = [solve(part, some) for part, some in zip(parts, wanted, strict=True)]
            products = gradient_products(task.loss, params, data, jnp.concatenate(solved, 1))
            return -products.T / length(data)

        if task.of_sets:
            return of_queries(query).T  # one output of all queries, such as an accuracy
        return map_pieces(of_queries, query, 4 * rows_at_once(params)).T

    return influence


def curvature_rows(
    task: Task, params: Params, items: Batch, weights: Array, curvature: str
) -> Array:
    """The rows J of `make_point_influence`, `[R, P]`; negative weights count as zero.

    Raises:
        ValueError: where they would take more than a quarter of a device's memory.
    """
    weights = jnp.maximum(weights, 0.0)
    classes = items.y.shape[1] if curvature == "gauss_newton" else 1
    count = len(weights) * classes
    refuse_larger(
        f"the curvature of {len(weights)} synset items",
        count * bytes_of(jax.eval_shape(flatten, params)),
        "take fewer items at a time (batch)",
        part=4,
    )
    if curvature == "fisher":
        rows = map_gradients(lambda some: some, task.loss, params, items)
        return jnp.sqrt(weights)[:, None] * rows

    def of_item(x: Any) -> Array:
        alone = jax.tree.map(lambda leaf: leaf[None], x)
        return example_gradients(fisher_root(task), params, every_label(alone, classes))

    rows = lax.map(of_item, items.x, batch_size=rows_at_once(params))
    return jnp.sqrt(jnp.repeat(weights, classes))[:, None] * rows.reshape(count, -1)


def spread_points(
    checkpoints: Params, count: int, window: tuple[float, float] = (0.25, 1.0)
) -> Params:
    """`count` checkpoints, spread evenly over a window of the training, its end included.

    All of the window where it has fewer. `window` is in parts of the training, 0 its start.

    Raises:
        ValueError: for a count below one or a window that is none.
    """
    begin, end = window
    check_integer("checkpoints", count)
    if not 0 <= begin < end <= 1:
        raise ValueError(f"window={window}; it must be (begin, end) with 0 <= begin < end <= 1")
    kept = length(checkpoints)
    last = max(round(end * kept), 1)
    inside = max(last - round(begin * kept), 1)
    steps = np.arange(min(count, inside)) * inside / min(count, inside)
    return take(checkpoints, last - 1 - np.floor(steps[::-1]).astype(int))


def layer_cuts(params: Params) -> list[int]:
    """Where one layer ends and the next begins in the flat parameters.

    Leaves that share all of their path but its last step are a layer: a kernel and its bias.
    """
    cuts, place, before = [], 0, None
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        layer = path[:-1]
        if before is not None and layer != before:
            cuts.append(place)
        before, place = layer, place + leaf.size
    return cuts
