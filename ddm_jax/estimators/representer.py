"""Representer points: the last layer as a sum over training points."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ddm_jax.checks import check_integer, check_number, require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import in_batches
from ddm_jax.estimators._shared import task_features
from ddm_jax.estimators.contract import make_estimator, require_queries_alone
from ddm_jax.matching import at_least_float32
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun


class RepresenterState(NamedTuple):
    params: Params
    weights: Array  # [K, F, C], what each group adds to the last layer


def make_representer(task: Task, *, l2: float = 1e-3, steps: int = 200) -> Estimator:
    """Make the estimator RPS-L2 of Yeh et al., 2018, arXiv 1811.09720.

    The last layer is fitted anew on the penultimate features f with softmax cross-entropy and
    `l2 |W|^2`; where its gradient is zero, `W = sum_i f_i alpha_i^T` with `alpha_i = (y_i - p_i)
    / (2 l2 N)`. The score is what a group adds to the logit of the query's class:
    `sum_{i in D_k} alpha_{i, y_q} <f_i, f_q>`. It explains being right, with its sign turned where
    `task.lower_is_better`.

    Args:
        l2: factor of the squared weights, positive.
        steps: of L-BFGS.

    Raises:
        ValueError: for an `l2` that is not positive, no steps, a task without features, or one
            whose targets are no classes.
    """
    check_number("l2", l2, above=0)
    check_integer("steps", steps)
    require_distributions(task, "representer")
    require_queries_alone(task, "representer")
    features = task_features(task, "representer")
    features_of = in_batches(features)
    sign = -1 if task.lower_is_better else 1

    @compiled
    def explain(found: Array, labels: Array, groups: Groups) -> Array:
        found = _with_bias(found)

        def objective(weights: Array) -> Array:
            losses = optax.softmax_cross_entropy(found @ weights, labels)
            return jnp.mean(losses) + l2 * jnp.sum(weights**2)

        weights = jnp.zeros((found.shape[1], labels.shape[1]), found.dtype)
        optimizer = optax.lbfgs()

        def step(carry, _):
            weights, state = carry
            value, slope = jax.value_and_grad(objective)(weights)
            updates, state = optimizer.update(
                slope, state, weights, value=value, grad=slope, value_fn=objective
            )
            return (optax.apply_updates(weights, updates), state), None

        (weights, _), _ = lax.scan(step, (weights, optimizer.init(weights)), length=steps)
        alpha = (labels - jax.nn.softmax(found @ weights)) / (2 * l2 * len(found))
        parts = found[:, :, None] * alpha[:, None, :]
        return jax.ops.segment_sum(sign * parts, jnp.asarray(groups.ids), groups.count)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> RepresenterState:
        params = at_least_float32(run.params)
        found = features_of(params, data.x)
        return RepresenterState(params, explain(found, data.y, groups))

    @compiled
    def score(state: RepresenterState, query: Batch) -> Array:
        found = _with_bias(features(state.params, query.x))
        return jnp.einsum("kfc,qf,qc->kq", state.weights, found, query.y)

    return make_estimator(task, fit, score, method="representer")


def _with_bias(features: Array) -> Array:
    return jnp.concatenate([features, jnp.ones((len(features), 1), features.dtype)], 1)
