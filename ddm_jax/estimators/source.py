"""SOURCE: unrolled differentiation, approximated by a few stretches of constant curvature."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.checks import check_integer
from ddm_jax.compute.compiled import compiled
from ddm_jax.estimators._influence import drawn_order, make_draw
from ddm_jax.estimators._shared import holds_groups, require
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.gradients import (
    GroupBatches,
    as_params,
    example_gradients,
    flatten,
    gradient_products,
    group_batches,
    group_gradient_rows,
    group_sums,
    output_changes,
    output_gradients,
)
from ddm_jax.matching import at_least_float32
from ddm_jax.optimizers import decoupled_decay, setting
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun, length, take

EACH = 3  # checkpoints of a stretch that are used


class Stretch(NamedTuple):
    """One part of the training, with the curvature `U^T diag(s) U + weight_decay I` in it.

    Of an optimiser that multiplies gradients by P it is that of parameters `P^-1/2 theta`.
    """

    checkpoints: Params  # leaves [c, ...]
    directions: Array  # U [r, P], orthonormal
    curvature: Array  # s [r]
    time: Array  # the sum of its steps' learning rates, over one minus the momentum
    weight_decay: Array
    root: Array | None  # of P, [P]; None where gradients are not multiplied


class SourceState(NamedTuple):
    params: Params
    stretches: Stretch  # leaves [L, ...]
    data: Batch
    groups: Groups
    solved: Array | None  # [K, P]; None where the groups are the points


def make_source(task: Task, *, segments: int = 3, points: int = 200) -> Estimator:
    """Make the estimator of Bae, Lin, Lorraine & Grosse, 2024, arXiv 2405.12186, eq. 14.

    The trajectory is cut into L stretches (`cut`); in each, gradients and curvature are those of
    its kept checkpoints on average, and a difference in the parameters shrinks by `S_l =
    exp(-t_l H_l)` where `t_l` is the sum of the steps' learning rates over `1 - momentum`:

        score[k, q] = -<grad output_q, sum_l S_L ... S_{l+1} (I - S_l) H_l^-1 g_k^l>

    The paper's H_l is an EK-FAC approximation. Here it is the Fisher matrix of random points with
    labels drawn from the network, which has few directions and needs nothing of a network; all
    others have the run's weight decay alone.

    Adam and AdamW multiply gradients by `P_l = 1 / (sqrt(nu) + eps)`, of `nu` the second moments
    averaged over the stretch's checkpoints (the paper's appendix on other optimisers). Then
    `S_l = exp(-t_l (P_l H_l + weight_decay I))`, where H_l has no weight decay, and gradients are
    `P_l g_k^l`; both are computed in the symmetric form `P^1/2 H P^1/2`. Adam's momentum averages
    gradients, and does not lengthen t.

    Args:
        segments: L, at least 1; as many as there are checkpoints, where that is less.
        points: for each stretch's curvature, at least 1.

    Raises:
        ValueError: for a setting out of range, a task whose targets are no classes, or (in `fit`) a
            run by another optimiser than SGD, Adam or AdamW, by Adam with a weight decay in its
            gradients, with clipping, or without its steps, learning rates or second moments.
    """
    check_integer("segments", segments)
    check_integer("points", points)
    draw = make_draw(task, "source")

    def curvature(
        key: Array, checkpoints: Params, root: Array | None, data: Batch
    ) -> tuple[Array, Array]:
        """The leading eigenpairs of the Fisher matrix, averaged over the checkpoints."""
        number = length(checkpoints)

        def at(item: tuple[Params, Array]) -> Array:
            params, key = item
            draw_key, label_key = jax.random.split(key)
            each = max(points // number, 1)
            some = take(data, drawn_order(draw_key, data)[:each])
            return example_gradients(task.loss, params, draw(params, some, label_key))

        rows = lax.map(at, (checkpoints, jax.random.split(key, number)))
        rows = rows.reshape(-1, rows.shape[-1])
        rows = rows if root is None else rows * root
        rows = rows / len(rows) ** 0.5
        values, vectors = jnp.linalg.eigh(rows @ rows.T)
        real = values > 1e-6 * values[-1]
        scale = jnp.where(real, 1 / jnp.sqrt(jnp.where(real, values, 1.0)), 0.0)
        return (vectors * scale).T @ rows, jnp.where(real, values, 0.0)

    @compiled
    def prepare(
        key: Array,
        kept: Params,
        times: Array,
        weight_decay: Array,
        roots: Array | None,
        data: Batch,
    ) -> Stretch:
        def one(item: tuple[Array, Params, Array, Array | None]) -> Stretch:
            key, checkpoints, time, root = item
            curved = curvature(key, checkpoints, root, data)
            return Stretch(checkpoints, *curved, time, weight_decay, root)

        return lax.map(one, (jax.random.split(key, len(times)), kept, times, roots))

    @compiled
    def solve_groups(stretches: Stretch, data: Batch, batches: GroupBatches) -> Array:
        total = None
        for index in range(length(stretches)):
            stretch = take(stretches, index)
            each = lax.map(
                lambda params: group_gradient_rows(task, params, data, batches),
                stretch.checkpoints,
            )
            new = _within(stretch, each.mean(0))
            total = new if total is None else _through(stretch, total, forward=True) + new
        return total  # type: ignore[return-value]

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> SourceState:
        decay = _decay(run)
        index, times = cut(run, segments)
        params, kept = at_least_float32((run.params, take(run.checkpoints, index)))
        times = times / (1 - run.optimizer.get("momentum", 0.0)) / run.optimizer.accumulate
        roots = None if run.optimizer.name == "sgd" else _roots(run, index)
        stretches = prepare(key, kept, times, decay, roots, data)
        solved = None
        # Those of one stretch's checkpoints, and what was found so far.
        if holds_groups(groups, length(data), params, index.shape[1] + 1):
            solved = solve_groups(stretches, data, group_batches(groups))
        return SourceState(params, stretches, data, groups, solved)

    @compiled
    def score(state: SourceState, query: Batch) -> Array:
        if state.solved is not None:
            return -output_changes(task, state.params, query, as_params(state.solved, state.params))
        vectors = output_gradients(task, state.params, query)
        total = jnp.zeros(())
        for index in reversed(range(length(state.stretches))):
            stretch = take(state.stretches, index)
            asked = _within(stretch, vectors)

            def at(params: Params, asked: Array = asked) -> Array:
                return gradient_products(task.loss, params, state.data, asked)

            total = total + lax.map(at, stretch.checkpoints).mean(0)
            vectors = _through(stretch, vectors, forward=False)
        return -group_sums(total, state.groups)

    return make_estimator(task, fit, score, method="source")


def cut(run: TrainRun, segments: int) -> tuple[np.ndarray, Array]:
    """Cut a training into L stretches: the checkpoints `[L, c]` that stand for each, and its time.

    Each has as many kept checkpoints, up to one, and ends at the step of its last one; the first
    begins with the training. Its time is the sum of the learning rates of its own steps. Up to
    `EACH` of its checkpoints are taken, spread evenly.

    Raises:
        ValueError: for a run that does not know its steps or learning rates.
    """
    steps, rates = require(run, "steps", "source"), require(run, "learning_rates", "source")
    there = length(run.checkpoints)
    parts = np.array_split(np.arange(there), min(segments, there))
    few = min(min(map(len, parts)), EACH)
    index = [part[np.linspace(0, len(part) - 1, few).round().astype(int)] for part in parts]
    ends = np.asarray(steps)[[part[-1] for part in parts]]
    past = jnp.pad(jnp.cumsum(rates), (1, 0))[ends]
    return np.stack(index), jnp.diff(past, prepend=0)


def _decay(run: TrainRun) -> Array | float:
    """The weight decay of S_l.

    Raises:
        ValueError: for an optimiser, clipping or a decay that the formula is not of.
    """
    spec, others = run.optimizer, "use metagradient or trak"
    if spec.own or spec.name not in ("sgd", "adam", "adamw"):
        others = "use trak" if spec.own else others
        raise ValueError(f"source holds for SGD, Adam and AdamW, and not for {spec.name}: {others}")
    if spec.clip is not None:
        raise ValueError(
            f"source needs the size of each step, which clip={spec.clip:g} changes: {others}"
        )
    if spec.name == "sgd":
        return run.weight_decay
    if float(run.weight_decay) != 0:
        raise ValueError(
            f"source holds for decoupled weight decay, and this run of {spec.name} has "
            f"{float(run.weight_decay):g} in its gradients: train with adamw, or {others}"
        )
    return jnp.float32(decoupled_decay(spec))


def _roots(run: TrainRun, index: np.ndarray) -> Array:
    """The root of Adam's P in each stretch, `[L, P]`."""
    eps, inside = setting(run.optimizer, "eps"), setting(run.optimizer, "eps_root")

    def of_stretch(index: np.ndarray) -> Array:
        squares = take(require(run, "second_moments", "source"), index)
        mean = jax.tree.map(lambda nu: jnp.mean(nu.astype(jnp.float32), 0), squares)
        return 1 / jnp.sqrt(jnp.sqrt(flatten(mean) + inside) + eps)

    return jnp.stack([of_stretch(each) for each in index])


def _through(stretch: Stretch, vectors: Array, *, forward: bool) -> Array:
    """`S_l v` for vectors `[V, P]`; of those of queries, which go backwards, `S_l^T v`."""
    root = stretch.root
    if root is not None:
        vectors = vectors / root if forward else vectors * root
    moved = _spectral(lambda s: jnp.exp(-stretch.time * s), stretch, vectors)
    if root is not None:
        moved = moved * root if forward else moved / root
    return moved


def _within(stretch: Stretch, vectors: Array) -> Array:
    """`(I - S_l) H_l^-1 v`, which is `t_l v` where there is no curvature.

    With P it is `(I - S_l) (P H_l + weight_decay I)^-1 P v`.
    """

    def factor(s: Array) -> Array:
        curved = -jnp.expm1(-stretch.time * s) / jnp.maximum(s, 1e-12)
        return jnp.where(s > 1e-12, curved, stretch.time)

    if stretch.root is None:
        return _spectral(factor, stretch, vectors)
    return stretch.root * _spectral(factor, stretch, stretch.root * vectors)


def _spectral(function, stretch: Stretch, vectors: Array) -> Array:
    rest = function(stretch.weight_decay)
    inside = function(stretch.curvature + stretch.weight_decay) - rest
    along = vectors @ stretch.directions.T
    return rest * vectors + (along * inside) @ stretch.directions
