"""What influence functions share: from a way to solve with the curvature to an estimator.

    score[k, q] = -g_k^T (H + damping I)^-1 grad output_q(theta)

at the trained network, with `g_k = (1/N) sum_{i in D_k} grad loss_i` and H the Hessian of the
training objective, weight decay included, or what stands in for it. To first order, removing
group k moves the parameters by `(H + damping I)^-1 g_k`. Koh & Liang, "Understanding black-box
predictions via influence functions", 2017, arXiv 1703.04730.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.grad_dot import GradDotState, make_grad_dot
from ddm_jax.gradients import gradient_products, group_gradient_rows, output_gradients
from ddm_jax.matching import group_batches
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun, take

Factor = Callable[[Array, Params, Batch], Any]  # key, params, data -> curvature
Solve = Callable[[Params, Batch, Any, Array], Array]  # ..., curvature, [V, P] -> [V, P]


class InfluenceState(NamedTuple):
    """Where every point is a group. Otherwise `(H + damping I)^-1 g_k` is a `GradDotState`."""

    params: Params
    curvature: Any  # what `solve` takes
    data: Batch
    rows: Array  # [K], where in `data` the point of group k is


def make_influence(
    task: Task, factor: Factor, solve: Solve, output: Output | None = None
) -> Estimator:
    """Make an influence function of `solve(params, data, curvature, vectors [V, P]) -> [V, P]`.

    With fewer groups than points it is the groups' gradients that are solved for, offline: K
    solves, and then a score is the derivative of all outputs along K directions. Where every
    point is a group, it is the gradients of the Q queries, online; the points' own gradients are
    multiplied with the results in pieces, and nothing of size N x P is held.

    Args:
        factor: `(key, params, data) -> curvature`, any arrays that `solve` needs; once, offline.
            It finds the data in an order drawn from the key that no order of the points
            changes, so that "the first m" is a random choice.
        solve: `(H + damping I)^-1 v` for each of the vectors; it finds the same order.
        output: what is explained; default `task.output`.
    """
    explained = task.output if output is None else output
    along_moves = make_grad_dot(task, output)
    prepare = jax.jit(factor)
    group_rows = jax.jit(partial(group_gradient_rows, task), static_argnames="num_groups")

    @jax.jit
    def group_moves(params: Params, data: Batch, curvature: Any, rows: Array) -> Params:
        return jax.vmap(ravel_pytree(params)[1])(solve(params, data, curvature, rows))

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> InfluenceState | GradDotState:
        groups = check_groups(groups, len(data.x))
        count = int(groups.max()) + 1
        order = np.asarray(drawn_order(key, data))
        data, groups = take(data, order), groups[order]
        curvature = prepare(key, run.params, data)
        if count == len(groups):
            rows = jnp.asarray(np.argsort(groups))
            return InfluenceState(run.params, curvature, data, rows)
        batches = group_batches(groups, count)
        gradients = group_rows(run.params, data, batches, num_groups=count)
        return GradDotState(run.params, group_moves(run.params, data, curvature, gradients))

    @jax.jit
    def score_points(state: InfluenceState, query: Batch) -> Array:
        wanted = output_gradients(explained, state.params, query)
        solved = solve(state.params, state.data, state.curvature, wanted)
        products = gradient_products(task.loss, state.params, state.data, solved)
        return -products[state.rows] / len(products)

    def score(state: InfluenceState | GradDotState, query: Batch) -> Array:
        if isinstance(state, GradDotState):
            return along_moves.score(state, query)
        return score_points(state, query)

    return Estimator(fit, score)


@jax.jit
def drawn_order(key: Array, data: Batch) -> Array:
    """A random order [N] of the points that is theirs, in whatever order they come.

    They are sorted along a random direction first, and then permuted.
    """
    sort_key, order_key = jax.random.split(key)
    flat = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in data], 1)
    place = jnp.sum(flat * jax.random.normal(sort_key, flat.shape[1:]), 1)
    return jnp.argsort(place)[jax.random.permutation(order_key, len(place))]


def conjugate_gradient(
    product: Callable[[Array], Array], diagonal: float, vector: Array, iterations: int
) -> Array:
    """`x ~ (H + diagonal I)^-1 v` for `product(p) = H p`, from zero, in so many iterations. `[P]`.

    H may be indefinite, as the Hessian of a network is: it stops before a direction along which
    `H + diagonal I` curves down, but for the first one, along which it takes H for zero.
    """
    start = vector @ vector

    def step(carry, count: Array):
        x, residual, direction, size = carry
        image = product(direction)
        own = diagonal * (direction @ direction)
        bend = direction @ image + own
        goes = (size > 1e-14 * start) & ((bend > 0) | (count == 0))
        length = jnp.where(goes, size / jnp.where(bend > 0, bend, jnp.maximum(own, 1e-30)), 0.0)
        left = residual - length * (image + diagonal * direction)
        rest = left @ left
        turn = left + rest / jnp.where(goes, size, 1.0) * direction
        ahead = jnp.where(goes & (bend > 0), turn, direction)
        return (x + length * direction, left, ahead, jnp.where(goes, rest, size)), None

    begin = (jnp.zeros_like(vector), vector, vector, start)
    (x, *_), _ = lax.scan(step, begin, jnp.arange(iterations))
    return x


def mean_weights(data: Batch) -> Array:
    """The weight [N] of each point in the training objective, `1/N`."""
    count = len(data.x)
    return jnp.full((count,), 1 / count)


def check_at_least_one(**settings: int) -> None:
    """Raise a ValueError for a setting below one, by name."""
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name}={value}; it must be at least 1")


def check_labels(data: Batch) -> None:
    """Check that labels are distributions over classes, which a Fisher matrix is made from.

    Raises:
        ValueError: for rows of `data.y` that do not sum to one, as in a regression.
    """
    if not np.allclose(np.sum(np.asarray(data.y), 1), 1, atol=1e-3):
        raise ValueError(
            "the rows of data.y do not sum to one; the Fisher matrix is of a softmax over classes"
        )
