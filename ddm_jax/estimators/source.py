"""SOURCE: unrolled differentiation, approximated by a few stretches of constant curvature."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.influence import drawn_order
from ddm_jax.estimators.replay import check_momentum
from ddm_jax.gradients import (
    as_params,
    example_gradients,
    gradient_products,
    group_gradient_rows,
    group_sums,
    output_changes,
)
from ddm_jax.matching import GroupBatches, group_batches
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun, take


class Stretch(NamedTuple):
    """One part of the training, with the curvature `U^T diag(s) U + weight_decay I` in it."""

    checkpoints: Params  # leaves [c, ...]
    directions: Array  # U [r, P], orthonormal
    curvature: Array  # s [r]
    time: Array  # learning rate times steps


class SourceState(NamedTuple):
    params: Params
    stretches: Stretch  # leaves [L, ...]
    data: Batch
    groups: Array  # [N]
    solved: Array | None  # [K, P]; None where the groups are the points


def make_source(
    task: Task,
    *,
    segments: int = 3,
    points: int = 200,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    output: Output | None = None,
) -> Estimator:
    """Make the estimator of Bae, Lin, Lorraine & Grosse, 2024, arXiv 2405.12186, eq. 14.

    The trajectory is cut into L stretches; in each, gradients and curvature are those of its
    kept checkpoints on average, and a difference in the parameters shrinks by `S_l = exp(-t_l
    H_l)` where `t_l` is the learning rate times the steps, over `1 - momentum`:

        score[k, q] = -<grad output_q, sum_l S_L ... S_{l+1} (I - S_l) H_l^-1 g_k^l>

    The paper's H_l is an EK-FAC approximation. Here it is the Fisher matrix of random points with
    labels drawn from the network, which has few directions and needs nothing of a network; all
    others have the weight decay alone.

    Args:
        segments: L, at least 1.
        points: for each stretch's curvature, at least 1.
        momentum, weight_decay: of the training run.

    Raises:
        ValueError: for a setting out of range.
    """
    check_momentum(momentum)
    for name, value in (("segments", segments), ("points", points)):
        if value < 1:
            raise ValueError(f"{name}={value}; it must be at least 1")
    explained = task.output if output is None else output

    def curvature(key: Array, checkpoints: Params, data: Batch) -> tuple[Array, Array]:
        """The leading eigenpairs of the Fisher matrix, averaged over the checkpoints."""

        def at(item: tuple[Params, Array]) -> Array:
            params, key = item
            draw_key, label_key = jax.random.split(key)
            each = max(points // number, 1)
            x = take(data.x, drawn_order(draw_key, data)[:each])
            logits = task.apply(params, x)
            drawn = jax.nn.one_hot(jax.random.categorical(label_key, logits), logits.shape[1])
            return example_gradients(task.loss, params, Batch(x, drawn))

        number = len(jax.tree.leaves(checkpoints)[0])
        rows = lax.map(at, (checkpoints, jax.random.split(key, number)))
        rows = rows.reshape(-1, rows.shape[-1])
        rows = rows / len(rows) ** 0.5
        values, vectors = jnp.linalg.eigh(rows @ rows.T)
        real = values > 1e-6 * values[-1]
        scale = jnp.where(real, 1 / jnp.sqrt(jnp.where(real, values, 1.0)), 0.0)
        return (vectors * scale).T @ rows, jnp.where(real, values, 0.0)

    def through(stretch: Stretch, vectors: Array) -> Array:
        """`S_l v` for vectors `[V, P]`."""
        return _spectral(lambda s: jnp.exp(-stretch.time * s), stretch, vectors)

    def within(stretch: Stretch, vectors: Array) -> Array:
        """`(I - S_l) H_l^-1 v`, which is `t_l v` where there is no curvature."""

        def factor(s: Array) -> Array:
            return -jnp.expm1(-stretch.time * s) / jnp.maximum(s, 1e-12)

        flat = lambda s: jnp.where(s > 1e-12, factor(s), stretch.time)  # noqa: E731
        return _spectral(flat, stretch, vectors)

    def _spectral(function, stretch: Stretch, vectors: Array) -> Array:
        rest = function(jnp.asarray(weight_decay))
        inside = function(stretch.curvature + weight_decay) - rest
        along = vectors @ stretch.directions.T
        return rest * vectors + (along * inside) @ stretch.directions

    @jax.jit
    def prepare(key: Array, kept: Params, rates: Array, steps: Array, data: Batch) -> Stretch:
        def one(item) -> Stretch:
            key, checkpoints, rate = item
            directions, values = curvature(key, checkpoints, data)
            time = rate * steps / (1 - momentum)
            return Stretch(checkpoints, directions, values, time)

        return lax.map(one, (jax.random.split(key, len(rates)), kept, rates))

    @jax.jit
    def solve_groups(stretches: Stretch, data: Batch, batches: GroupBatches, like: Array) -> Array:
        def one(total: Array | None, stretch: Stretch):
            def at(params: Params) -> Array:
                return group_gradient_rows(task, params, data, batches, len(like))

            gradients = lax.map(at, stretch.checkpoints).mean(0)
            new = within(stretch, gradients)
            return new if total is None else through(stretch, total) + new

        total = None
        for index in range(len(stretches.time)):
            total = one(total, take(stretches, index))
        return total  # type: ignore[return-value]

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> SourceState:
        groups = check_groups(groups, len(data.x))
        count, there = int(groups.max()) + 1, len(jax.tree.leaves(run.checkpoints)[0])
        number = min(segments, there)
        each = there // number
        few = min(each, 3)
        # The last checkpoints that cut evenly, a few from each stretch.
        index = there - number * each + np.arange(number * each).reshape(number, each)
        index = index[:, np.linspace(0, each - 1, few).round().astype(int)]
        steps = len(run.learning_rates)
        rates = run.learning_rates[: steps // number * number].reshape(number, -1).mean(1)
        kept = take(run.checkpoints, index)
        length = jnp.asarray(steps / number, jnp.float32)
        stretches = prepare(key, kept, rates, length, data)
        solved = None
        if count < len(groups):
            batches, like = group_batches(groups, count), jnp.zeros(count)
            solved = solve_groups(stretches, data, batches, like)
        return SourceState(run.params, stretches, data, jnp.asarray(groups), solved)

    @jax.jit
    def score(state: SourceState, query: Batch) -> Array:
        if state.solved is not None:
            return -output_changes(
                explained, state.params, query, as_params(state.solved, state.params)
            )
        vectors = example_gradients(explained, state.params, query)
        total = jnp.zeros((len(state.groups), len(query.x)))
        for index in reversed(range(len(state.stretches.time))):
            stretch = take(state.stretches, index)
            asked = within(stretch, vectors)

            def at(params: Params, asked: Array = asked) -> Array:
                return gradient_products(task.loss, params, state.data, asked)

            total = total + lax.map(at, stretch.checkpoints).mean(0)
            vectors = through(stretch, vectors)
        return -group_sums(total, state.groups, len(state.groups))

    return Estimator(fit, score)
