"""What influence functions share: from a way to solve with the curvature to an estimator.

    score[k, q] = -g_k^T (H + damping I)^-1 grad output_q(theta)

at the trained network, with `g_k = (1/N) sum_{i in D_k} grad loss_i` and H the Hessian of the
training objective, weight decay included, or what stands in for it. To first order, removing
group k moves the parameters by `(H + damping I)^-1 g_k`. Koh & Liang, "Understanding black-box
predictions via influence functions", 2017, arXiv 1703.04730.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.checks import is_concrete, require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.estimators._shared import holds_groups
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.estimators.grad_dot import GradDotState, make_along
from ddm_jax.gradients import (
    as_params,
    check_damping,
    curvature_diagonal,
    gradient_products,
    group_batches,
    group_gradient_rows,
    group_sums,
    output_gradients,
)
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun, length, take

Factor = Callable[[Array, Params, Batch, Array], Any]  # key, params, data, weight decay
Solve = Callable[[Params, Batch, Any, Array], Array]  # ..., curvature, [V, P] -> [V, P]


class Solved(NamedTuple):
    """How V solves went."""

    left: Array  # [V], `what_is_left`; 0 where nobody looked
    along: Array  # [V], `v (H + damping I)^-1 v`


class InfluenceState(NamedTuple):
    """Where groups are not held. Otherwise `(H + damping I)^-1 g_k` is a `GradDotState`."""

    params: Params
    curvature: Any  # what `solve` takes
    data: Batch
    groups: Groups  # of `data`


def make_influence(
    task: Task,
    factor: Factor,
    solve: Solve,
    *,
    damping: float,
    method: str,
    image: Solve | None = None,
) -> Estimator:
    """Make an influence function of `solve(params, data, curvature, vectors [V, P]) -> [V, P]`.

    With fewer groups than points it is the groups' gradients that are solved for, offline: K
    solves, and then a score is the derivative of all outputs along K directions. Where every
    point is a group, or K gradients do not fit, it is the gradients of the Q queries, online; the
    points' own gradients are multiplied with the results in pieces, and nothing of size N x P is
    held.

    Args:
        factor: `(key, params, data, weight_decay) -> curvature`, any arrays that `solve` needs;
            once, offline. It finds the data in an order drawn from the key that no order of the
            points changes, so that "the first m" is a random choice.
        solve: `(H + damping I)^-1 v` for each of the vectors; it finds the same order.
        damping: at least 0; where it and the run's weight decay are both zero `fit` refuses.
        method: the name of the estimator, by which is warned of a solve that goes uphill,
            `v (H + damping I)^-1 v < 0`: the matrix is indefinite there.
        image: `(H + damping I) x`, called as `solve` is: a solve that leaves more than it was
            asked for is warned of too.

    Raises:
        ValueError: for a damping out of range.
    """
    check_damping(damping)
    along_moves = make_along(task)
    prepare = compiled(factor)

    def solve_and_look(params: Params, data: Batch, curvature: Any, vectors: Array):
        solved = solve(params, data, curvature, vectors)
        left = jnp.zeros(len(vectors))
        if image is not None:
            left = what_is_left(image(params, data, curvature, solved), vectors)
        return solved, Solved(left, jnp.sum(vectors * solved, -1))

    @compiled
    def group_moves(params: Params, data: Batch, curvature: Any, batches: Any):
        rows = group_gradient_rows(task, params, data, batches)
        moves, found = solve_and_look(params, data, curvature, rows)
        return as_params(moves, params), found

    def fit(
        key: Array, run: TrainRun, data: Batch, groups: Groups
    ) -> InfluenceState | GradDotState:
        curvature_diagonal(damping, run.weight_decay)  # refuses zero, before anything compiles
        order = np.asarray(drawn_order(key, data))
        data, ids = take(data, order), np.asarray(groups.ids)[order]
        params = at_least_float32(run.params)
        curvature = prepare(key, params, data, run.weight_decay)
        groups = Groups(ids, groups.count)
        if not holds_groups(groups, len(ids), params):
            return InfluenceState(params, curvature, data, groups)
        batches = group_batches(groups)
        moves, found = group_moves(params, data, curvature, batches)
        warn_of_solves(method, found)
        return GradDotState(params, moves)

    @compiled
    def score_points(state: InfluenceState, query: Batch):
        wanted = output_gradients(task, state.params, query)
        solved, found = solve_and_look(state.params, state.data, state.curvature, wanted)
        products = gradient_products(task.loss, state.params, state.data, solved)
        return -group_sums(products, state.groups), found

    def score(state: InfluenceState | GradDotState, query: Batch) -> Array:
        if isinstance(state, GradDotState):
            return along_moves(state, query)
        scores, found = score_points(state, query)
        warn_of_solves(method, found)
        return scores

    return make_estimator(task, fit, score, method=method)


def what_is_left(image: Array, vectors: Array) -> Array:
    """`|v - (H + damping I) x| / |v|` of V solves, [V]: 0 where solved, 1 as bad as x = 0."""
    missing = jnp.linalg.norm(vectors - image, axis=-1)
    return missing / jnp.maximum(jnp.linalg.norm(vectors, axis=-1), 1e-30)


def warn_of_solves(method: str, found: Solved) -> None:
    """Warn of solves that diverged, and of those of a saddle; nothing while traced."""
    if not is_concrete(found):
        return
    left = np.nan_to_num(np.asarray(found.left), nan=np.inf)
    diverged, uphill = left > 1, np.asarray(found.along) < 0
    if diverged.any():
        warnings.warn(
            f"{method}: {diverged.sum()} of {left.size} solves diverged, the worst leaves "
            f"{left.max():.1e} times what was asked, so its scores mean nothing; raise the damping",
            stacklevel=4,
        )
    elif uphill.any():
        warnings.warn(
            f"{method}: {uphill.sum()} of {left.size} solves go uphill: the curvature is negative "
            "there, beyond the damping, and the scores are those of a saddle; raise the damping",
            stacklevel=4,
        )


@compiled
def drawn_order(key: Array, data: Batch) -> Array:
    """A random order [N] of the points that is theirs, in whatever order they come.

    They are sorted along a random direction first, and then permuted.
    """
    sort_key, order_key = jax.random.split(key)
    leaves = jax.tree.leaves(data)
    flat = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)
    direction = jax.random.normal(sort_key, flat.shape[1:], jnp.float32)
    place = jnp.sum(flat * direction, 1)
    return jnp.argsort(place)[jax.random.permutation(order_key, len(place))]


def make_draw(task: Task, method: str) -> Callable[[Params, Batch, Array], Batch]:
    """Make `draw(params, batch, key)`, the batch with targets drawn from what the network says.

    Labels are drawn from its softmax: the same ones in floats of any size.

    Raises:
        ValueError: for a task that draws none, and is none of classes.
    """
    if task.draw is not None:
        return task.draw
    apply = require_distributions(task, method)

    def draw(params: Params, batch: Batch, key: Array) -> Batch:
        logits = apply(params, batch.x)
        labels = jax.random.categorical(key, logits.astype(jnp.float32))
        return Batch(batch.x, jax.nn.one_hot(labels, logits.shape[-1], dtype=batch.y.dtype))

    return draw


def conjugate_gradient(
    product: Callable[[Array], Array], diagonal: float | Array, vector: Array, iterations: int
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
    count = length(data)
    return jnp.full((count,), 1 / count)
