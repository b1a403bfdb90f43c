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

from ddm_jax.cluster import check_groups
from ddm_jax.gradients import (
    ROWS,
    check_diagonal,
    every_label,
    example_gradients,
    fisher_root,
    flatten,
    gradient_products,
    map_gradients,
    output_gradients,
)
from ddm_jax.loo import deal_items
from ddm_jax.matching import synset_batch
from ddm_jax.objectives import Output
from ddm_jax.pieces import map_pieces
from ddm_jax.types import Array, Batch, Params, Synset, Task, take

CURVATURES = ("gauss_newton", "fisher")
BLOCKS = ("whole", "layer")
LARGEST = 2**32  # bytes of the synset's gradients that are held


def make_point_influence(
    task: Task,
    *,
    damping: float = 0.01,
    weight_decay: float = 0.0,
    curvature: str = "gauss_newton",
    blocks: str = "whole",
    output: Output | None = None,
) -> Callable[[Params, Synset, Batch, Batch], Array]:
    """Make `point_influence(params, synset, data, query) -> [N, Q]`, which traces whole.

        score[i, q] = -(1/N) grad loss_i^T (G_S + d I)^-1 grad output_q

    with `d = weight_decay + damping` and `G_S = J^T J` the curvature of the synset's objective, J
    of R rows: by Woodbury

        (G_S + d I)^-1 v = (v - J^T (J J^T + d I)^-1 J v) / d

    - "gauss_newton": rows `sqrt(w_km p_c) grad loss(x_km, e_c)`, R = K M C: the Gauss-Newton matrix
      of softmax cross-entropy, where w_km = share_k max(mass_km, 0) and p are the network's own
      predictions. Labels of the items do not matter.
    - "fisher": rows `sqrt(w_km) grad loss(x_km, softmax(y_km))`, R = K M: the empirical Fisher
      matrix. C times cheaper and clearly worse.

    Points come in pieces; N x P numbers are never held, R x P are.

    Args:
        damping: at least 0; with weight_decay it must be positive.
        curvature: "gauss_newton" or "fisher".
        blocks: "whole", or "layer": the curvature between layers is left out.
        output: what is explained; default `task.output`.

    Raises:
        ValueError: for a setting out of range, or (when traced) a synset of too many items.
    """
    diagonal = check_diagonal(damping, weight_decay)
    for name, value, allowed in (
        ("curvature", curvature, CURVATURES),
        ("blocks", blocks, BLOCKS),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}; choose one of {', '.join(allowed)}")
    explained = task.output if output is None else output

    def solve(rows: Array, vectors: Array) -> Array:
        """`(J^T J + d I)^-1 v` for rows J `[R, P]` and vectors `[V, P]`."""
        system = rows @ rows.T + diagonal * jnp.eye(len(rows))
        amount = cho_solve(cho_factor(system, lower=True), rows @ vectors.T)
        return (vectors - amount.T @ rows) / diagonal

    def point_influence(params: Params, synset: Synset, data: Batch, query: Batch) -> Array:
        rows = curvature_rows(task, params, synset, curvature)
        cuts = layer_cuts(params) if blocks == "layer" else []
        parts = jnp.split(rows, cuts, 1)

        def of_queries(query: Batch) -> Array:
            wanted = jnp.split(output_gradients(explained, params, query), cuts, 1)
            solved = [solve(part, some) for part, some in zip(parts, wanted, strict=True)]
            products = gradient_products(task.loss, params, data, jnp.concatenate(solved, 1))
            return -products.T / len(data.x)

        if jax.eval_shape(explained, params, query).shape != (len(query.x),):
            return of_queries(query).T  # one output of all queries, such as an accuracy
        return map_pieces(of_queries, query, max(4 * ROWS // (4 * rows.shape[1]), 1)).T

    return point_influence


def curvature_rows(task: Task, params: Params, synset: Synset, curvature: str) -> Array:
    """The rows J of `make_point_influence`, `[R, P]`.

    Raises:
        ValueError: where they would take more than LARGEST bytes.
    """
    batch = synset_batch(
        synset.x.reshape(-1, *synset.x.shape[2:]), synset.y.reshape(-1, synset.y.shape[-1])
    )
    weights = jnp.maximum(synset.share[:, None] * synset.mass, 0.0).ravel()
    classes = batch.y.shape[1]
    count = len(weights) * (classes if curvature == "gauss_newton" else 1)
    parameters = flatten(params).size
    size = 4 * count * parameters
    if size > LARGEST:
        raise ValueError(
            f"the curvature of {len(weights)} synset items takes {size / 2**30:.1f} GiB, and "
            f"{LARGEST / 2**30:.0f} at most; take fewer items of each group (step_items)"
        )
    if curvature == "fisher":
        rows = map_gradients(lambda some: some, task.loss, params, batch)
        return jnp.sqrt(weights)[:, None] * rows

    def of_item(x: Array) -> Array:
        return example_gradients(fisher_root(task), params, every_label(x[None], classes))

    rows = lax.map(of_item, batch.x, batch_size=max(ROWS // (4 * parameters), 1))
    return jnp.sqrt(jnp.repeat(weights, classes))[:, None] * rows.reshape(count, -1)


def make_trajectory_influence(
    task: Task, *, step_items: int | None = 5, **settings: Any
) -> Callable[[Params, Synset, Batch, Batch], Array]:
    """Make `influence(points, synset, data, query) -> [N, Q]`: the mean over T networks.

    `points` has leaves `[T, ...]`, for example `spread_points` of a run. At a trained network the
    gradients of well-learnt points are almost nothing, and an influence taken there alone says
    little of them; taken along the trajectory it knows what they did before. Each network takes
    `step_items` of each group's synset items in turn (`loo.deal_items`).

    `settings` are those of `make_point_influence`.
    """
    point_influence = make_point_influence(task, **settings)

    def influence(points: Params, synset: Synset, data: Batch, query: Batch) -> Array:
        dealt = deal_items(synset, step_items)
        count, turns = jax.tree.leaves(points)[0].shape[0], len(dealt.mass)

        def add(total: Array, index: Array):
            some = take(dealt, index % turns)
            return total + point_influence(take(points, index), some, data, query), None

        like = jax.eval_shape(point_influence, take(points, 0), take(dealt, 0), data, query)
        total = lax.scan(add, jnp.zeros(like.shape), jnp.arange(count))[0]
        return total / count

    return influence


def spread_points(
    checkpoints: Params, count: int, window: tuple[float, float] = (0.25, 1.0)
) -> Params:
    """`count` checkpoints, spread evenly over a window of the training, its end included.

    All of the window where it has fewer. `window` is in parts of the training, 0 its start.

    Raises:
        ValueError: for a count below one or a window that is none.
    """
    begin, end = window
    if count < 1:
        raise ValueError(f"checkpoints={count}; it must be at least 1")
    if not 0 <= begin < end <= 1:
        raise ValueError(f"window={window}; it must be (begin, end) with 0 <= begin < end <= 1")
    kept = jax.tree.leaves(checkpoints)[0].shape[0]
    last = max(round(end * kept), 1)
    inside = max(last - round(begin * kept), 1)
    steps = np.arange(min(count, inside)) * inside / min(count, inside)
    return take(checkpoints, last - 1 - np.floor(steps[::-1]).astype(int))


def share_out(points: Any, effects: Any, groups: np.ndarray, weight: float = 1.0) -> np.ndarray:
    """Points that add up to their groups' measured effects: `[N, Q]`.

    `points_i + weight (effects_k - sum_{j in D_k} points_j) / |D_k|` for i in group k. With a
    weight of one the points of each group add up to its effect, as the online stage measured it;
    with zero nothing is changed. Within a group points keep their differences.

    Args:
        points: [N, Q], of `make_point_influence`.
        effects: [K, Q], an attribution matrix for the same queries.
        groups: [N].
        weight: in [0, 1].

    Raises:
        ValueError: for shapes that do not fit, an empty group or a weight out of range.
    """
    points, effects = np.asarray(points), np.asarray(effects)
    groups = check_groups(groups, len(points))
    if points.shape != (len(groups), *effects.shape[1:]) or groups.max() + 1 != len(effects):
        raise ValueError(
            f"points have shape {points.shape} and effects {effects.shape}; they must be [N, Q] "
            f"and [K, Q], for N={len(groups)} and K={groups.max() + 1}"
        )
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}; it must be in [0, 1]")
    sums = np.zeros_like(effects)
    np.add.at(sums, groups, points)
    missing = (effects - sums) / np.bincount(groups)[:, None]
    return points + weight * missing[groups]


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
