"""Representer points: the last layer as a sum over training points."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.data_values import check_classes
from ddm_jax.estimators.representation import task_features
from ddm_jax.parallel import in_batches
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun


class RepresenterState(NamedTuple):
    params: Params
    weights: Array  # [K, F, C], what each group adds to the last layer


def make_representer(task: Task, *, l2: float = 1e-3, steps: int = 200) -> Estimator:
    """Make the estimator RPS-L2 of Yeh et al., 2018, arXiv 1811.09720.

    The last layer is fitted anew on the penultimate features f with softmax cross-entropy and
    `l2 |W|^2`; where its gradient is zero, `W = sum_i f_i alpha_i^T` with `alpha_i = (y_i - p_i)
    / (2 l2 N)`. The score is what a group adds to the logit of the query's class:
    `sum_{i in D_k} alpha_{i, y_q} <f_i, f_q>`. For an output that is larger where the query is
    told better.

    Args:
        l2: factor of the squared weights, positive.
        steps: of L-BFGS.

    Raises:
        ValueError: for an `l2` that is not positive, no steps, or a task without features.
    """
    for name, value in (("l2", l2), ("steps", steps)):
        if not value > 0:
            raise ValueError(f"{name}={value}; it must be positive")
    features = task_features(task, "the representer method")
    features_of = in_batches(features)

    @jax.jit
    def explain(found: Array, labels: Array, groups: Array, like: Array) -> Array:
        found = _with_bias(found)

        def objective(weights: Array) -> Array:
            losses = optax.softmax_cross_entropy(found @ weights, labels)
            return jnp.mean(losses) + l2 * jnp.sum(weights**2)

        weights = jnp.zeros((found.shape[1], labels.shape[1]))
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
        return jax.ops.segment_sum(parts, groups, len(like))

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> RepresenterState:
        groups = check_groups(groups, len(data.x))
        check_classes(data, "the representer method")
        found = features_of(run.params, data.x)
        like = jnp.zeros(int(groups.max()) + 1)
        return RepresenterState(run.params, explain(found, data.y, jnp.asarray(groups), like))

    @jax.jit
    def score(state: RepresenterState, query: Batch) -> Array:
        found = _with_bias(features(state.params, query.x))
        return jnp.einsum("kfc,qf,qc->kq", state.weights, found, query.y)

    return Estimator(fit, score)


def _with_bias(features: Array) -> Array:
    return jnp.concatenate([features, jnp.ones((len(features), 1))], 1)
