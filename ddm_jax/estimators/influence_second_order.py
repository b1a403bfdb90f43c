"""Second-order group influence: one Newton step on the data that is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.influence import (
    check_at_least_one,
    check_labels,
    conjugate_gradient,
    mean_weights,
)
from ddm_jax.gradients import (
    check_diagonal,
    flatten,
    gauss_newton_product,
    hessian_product,
    vectors_at_once,
)
from ddm_jax.loo import check_masks, leave_one_out_masks, subset_outputs
from ddm_jax.objectives import Output
from ddm_jax.pieces import value_and_gradient
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun

CURVATURES = {"hessian": hessian_product, "gauss_newton": gauss_newton_product}


class InfluenceSecondOrderState(NamedTuple):
    params: Params
    data: Batch
    groups: Array  # [N]
    sizes: Array  # [K]


def make_influence_second_order(
    task: Task,
    *,
    damping: float = 0.01,
    iterations: int = 30,
    curvature: str = "hessian",
    weight_decay: float = 0.0,
    output: Output | None = None,
) -> Estimator:
    """Make the group influence function with the Hessian of what is kept, for any subset.

    With G and G', H and H' the gradients and Hessians of the mean loss over all points and over
    those that are kept, the trained network moves by a Newton step

        theta' - theta = (H' + (weight_decay + damping) I)^-1 (G - G')

    At the optimum of the training objective `G = -weight_decay * theta`, and this is the Newton
    step of the kept points' objective: exact leave-group-out for a ridge regression. Subtracting
    G elsewhere is what pairs the change with the network that keeps everything, which stays
    where it is. Effects of groups that are gone together do not add up. The outputs are those of
    the moved network; the papers take their derivative along the step.

    Koh, Ang, Teo & Liang, "On the accuracy of influence functions for measuring group effects",
    2019, arXiv 1905.13289 (their one-step Newton approximation); Basu, You & Feizi, "On
    second-order group influence functions for black-box predictions", 2020, arXiv 1911.00418,
    who expand the same inverse. Solved by conjugate gradients (`influence.conjugate_gradient`):
    R masks cost `R * iterations` Hessian-vector products, online, so K = N is slow.

    Args:
        damping: at least 0.
        iterations: of conjugate gradients, at least 1.
        curvature: "hessian", as in the papers, or "gauss_newton", which is never indefinite and
            the same for a softmax of linear logits; for classification.
        weight_decay: of the training objective.
        output: what is explained; default `task.output`.

    Raises:
        ValueError: for a setting out of range.
    """
    diagonal = check_diagonal(damping, weight_decay)
    check_at_least_one(iterations=iterations)
    if curvature not in CURVATURES:
        raise ValueError(f"curvature={curvature!r}; choose one of {', '.join(CURVATURES)}")
    curvature_product = CURVATURES[curvature]
    explained = task.output if output is None else output
    of_losses = value_and_gradient(lambda params, batch, w: w @ task.loss(params, batch))

    def response(keep: Array, state: InfluenceSecondOrderState, query: Batch) -> Array:
        params, data, groups, _ = state
        kept = keep[groups]
        weights = kept / jnp.sum(kept)

        def product(vector: Array) -> Array:
            return curvature_product(task, params, data, weights, vector)

        _, change = of_losses(params, data, mean_weights(data) - weights)
        move = ravel_pytree(params)[1](
            conjugate_gradient(product, diagonal, flatten(change), iterations)
        )
        return explained(jax.tree.map(jnp.add, params, move), query)

    shapes = jax.eval_shape(task.init, jax.random.key(0))
    on_cpu = jax.default_backend() == "cpu"
    mapped = subset_outputs(response, chunk=vectors_at_once(shapes) if on_cpu else None)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> InfluenceSecondOrderState:
        groups = check_groups(groups, len(data.x))
        if curvature == "gauss_newton":
            check_labels(data)
        sizes = jnp.asarray(np.bincount(groups))
        return InfluenceSecondOrderState(run.params, data, jnp.asarray(groups), sizes)

    def outputs(state: InfluenceSecondOrderState, masks: Any, query: Batch) -> Array:
        return mapped(check_masks(masks, len(state.sizes)), state, query)

    def score(state: InfluenceSecondOrderState, query: Batch) -> Array:
        kept = outputs(state, leave_one_out_masks(len(state.sizes)), query)
        return kept[0] - kept[1:]

    return Estimator(fit, score, outputs)
