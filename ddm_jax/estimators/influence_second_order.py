"""Second-order group influence: one Newton step on the data that is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddm_jax.checks import check_choice, check_integer, require_distributions
from ddm_jax.compute.pieces import value_and_gradient
from ddm_jax.compute.placement import device_vmap
from ddm_jax.estimators._influence import (
    Solved,
    conjugate_gradient,
    mean_weights,
    warn_of_solves,
    what_is_left,
)
from ddm_jax.estimators.contract import joint_estimator
from ddm_jax.gradients import (
    check_damping,
    curvature_diagonal,
    flatten,
    gauss_newton_product,
    hessian_product,
    unflatten,
    vectors_at_once,
)
from ddm_jax.masks import check_masks, point_weights
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun

CURVATURES = {"hessian": hessian_product, "gauss_newton": gauss_newton_product}


class InfluenceSecondOrderState(NamedTuple):
    params: Params
    data: Batch
    groups: Groups
    weight_decay: Array


def make_influence_second_order(
    task: Task, *, damping: float = 0.01, iterations: int = 30, curvature: str = "hessian"
) -> Estimator:
    """Make the group influence function with the Hessian of what is kept, for any subset.

    With G and G', H and H' the gradients and Hessians of the mean loss over all points and over
    those that are kept, the trained network moves by a Newton step

        theta' - theta = (H' + (weight_decay + damping) I)^-1 (G - G')

    with the run's weight decay. At the optimum of the training objective `G = -weight_decay *
    theta`, and this is the Newton step of the kept points' objective: exact leave-group-out for a
    ridge regression. Subtracting G elsewhere is what pairs the change with the network that keeps
    everything, which stays where it is. Effects of groups that are gone together do not add up.
    The outputs are those of the moved network; the papers take their derivative along the step.

    Koh, Ang, Teo & Liang, "On the accuracy of influence functions for measuring group effects",
    2019, arXiv 1905.13289 (their one-step Newton approximation); Basu, You & Feizi, "On
    second-order group influence functions for black-box predictions", 2020, arXiv 1911.00418,
    who expand the same inverse. Solved by conjugate gradients (`_influence.conjugate_gradient`):
    R masks cost `R * (iterations + 1)` Hessian-vector products, online, so K = N is slow.

    Args:
        damping: at least 0.
        iterations: of conjugate gradients, at least 1.
        curvature: "hessian", as in the papers, or "gauss_newton", which is never indefinite and
            the same for a softmax of linear logits; for classification.

    Raises:
        ValueError: for a setting out of range, "gauss_newton" for a task whose targets are no
            classes, or (in `fit`) neither damping nor weight decay.

    Warns:
        UserWarning: where a solve diverged.
    """
    check_damping(damping)
    check_integer("iterations", iterations)
    check_choice("curvature", curvature, tuple(CURVATURES))
    if curvature == "gauss_newton":
        require_distributions(task, "influence_second_order with curvature='gauss_newton'")
    curvature_product = CURVATURES[curvature]
    of_losses = value_and_gradient(lambda params, batch, w: w @ task.loss(params, batch))

    def response(keep: Array, state: InfluenceSecondOrderState, query: Batch):
        params, data, groups, weight_decay = state
        diagonal = curvature_diagonal(damping, weight_decay)
        kept = point_weights(keep, groups)
        weights = kept / jnp.sum(kept)

        def product(vector: Array) -> Array:
            return curvature_product(task, params, data, weights, vector)

        _, slope = of_losses(params, data, mean_weights(data) - weights)
        change = flatten(slope)
        move = conjugate_gradient(product, diagonal, change, iterations)
        left = what_is_left(product(move) + diagonal * move, change)
        moved = jax.tree.map(jnp.add, params, unflatten(params)(move))
        return task.output(moved, query), left

    shapes = jax.eval_shape(task.init, jax.random.key(0))
    on_cpu = jax.default_backend() == "cpu"
    mapped = device_vmap(response, chunk=vectors_at_once(shapes) if on_cpu else None)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> InfluenceSecondOrderState:
        curvature_diagonal(damping, run.weight_decay)  # refuses zero, before anything compiles
        params = at_least_float32(run.params)
        return InfluenceSecondOrderState(params, data, groups, run.weight_decay)

    def outputs(state: InfluenceSecondOrderState, masks: Any, query: Batch) -> Array:
        count, background = state.groups.count, bool(state.groups.background)
        checked = check_masks(masks, count, background=background)
        found, left = mapped(checked, state, query)
        warn_of_solves("influence_second_order", Solved(left, jnp.zeros_like(left)))
        return found

    return joint_estimator(
        task, fit, outputs, lambda state: state.groups.count, method="influence_second_order"
    )
