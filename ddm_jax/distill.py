"""Offline: distil one small synset per group by reverse gradient matching.

The loss of a step is `sum_k weight_k d(g_k(theta_t), h_k(theta_{t+s}))` at points drawn from the
reversed trajectory (`matching.py` has the gradients and distances, `synset.py` the starts).
Groups are coupled by nothing but their weights, which depend on the real gradients alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ddm_jax.matching import (
    GroupBatches,
    MatchPoints,
    balance_weights,
    distance_norms,
    leading_directions,
    make_group_gradients,
    make_matching_loss,
)
from ddm_jax.parallel import chunked_vmap
from ddm_jax.pieces import bytes_an_example
from ddm_jax.types import Array, Batch, Params, Synset, Task, take

LEARNABLE = ("x", "y", "mass")
PRECISIONS = {"float32": 4, "bfloat16": 2}  # of matched gradients, and the bytes of a number


class DistillState(NamedTuple):
    """What distillation carries from one step to the next."""

    synset: Synset
    scale: Synset  # what one unit of the optimiser means in each leaf; 0 freezes it
    optimizer: Any
    step: Array  # int32


class Distiller(NamedTuple):
    """Reverse gradient matching as pure functions."""

    start: Callable[[Synset], DistillState]
    advance: Callable[..., tuple[DistillState, Array]]
    norms: Callable[[MatchPoints], Array]  # -> [T, K], see `matching.distance_norms`
    weights: Callable[[Array], Array]  # norms of all groups [T, K] -> weights [T, K]
    distance: str


def make_distiller(
    task: Task,
    *,
    optimizer: optax.GradientTransformation,
    distance: str = "squared",
    balance: float = 0.5,
    learn: Sequence[str] = LEARNABLE,
    points_per_step: int = 1,
    chunk: int | None = None,
) -> Distiller:
    """Make the functions that distil a synset.

    `start(synset) -> state`. `advance(key, state, points, steps) -> state, losses [steps]` takes
    steps (their number is static) on `sum_k weight_k d(g_k, h_k)`, each at `points_per_step`
    points drawn with `fold_in(key, step)`, so that a resumed run draws what it would have drawn.
    Where these groups are not all, their `weights [T, K]` among all are its last argument.

    Masses are optimised in units of their group's mean absolute mass at the start: a group whose
    gradient lives in few hard examples has masses far below 1/M, which one step of a shared
    learning rate would otherwise wipe out.

    Args:
        optimizer: any optax optimiser; one learning rate serves inputs, label logits and masses.
        distance: "squared"; "whitened" (squared error, less along the directions that all groups
            share, see `matching.leading_directions`: better where a synset is small for its
            task, at several times the cost for large networks); "layer_cosine" or
            "row_cosine", which are blind to the size of a group.
        balance: how the groups' squared errors are weighted, 0 (by size) to 1 (relative errors
            group by group); see `matching.balance_weights`. The cosines weigh groups alike.
        learn: which of "x", "y" and "mass" are optimised; the others stay frozen.
        points_per_step: trajectory points a step, at least 1.
        chunk: groups side by side; default `groups_together`.

    Raises:
        ValueError: for a setting out of range.
    """
    if not 0 <= balance <= 1:
        raise ValueError(f"balance={balance}; it must be in [0, 1]")
    unknown = sorted(set(learn) - set(LEARNABLE))
    if unknown or not learn:
        raise ValueError(f"learn={tuple(learn)}; name one or more of {', '.join(LEARNABLE)}")
    if points_per_step < 1:
        raise ValueError(f"points_per_step={points_per_step}; it must be at least 1")
    matching_loss = make_matching_loss(task, distance)

    def start(synset: Synset) -> DistillState:
        unit = {name: jnp.ones_like(getattr(synset, name)) for name in ("x", "y")}
        size = jnp.mean(jnp.abs(synset.mass), 1, keepdims=True)
        unit["mass"] = jnp.broadcast_to(size, synset.mass.shape)
        frozen = [name for name in LEARNABLE if name not in learn]
        unit |= {name: jnp.zeros_like(unit[name]) for name in frozen}
        scale = Synset(**unit, share=jnp.zeros_like(synset.share))
        return DistillState(synset, scale, optimizer.init(synset), jnp.zeros((), jnp.int32))

    def loss_and_gradient(synset: Synset, points: MatchPoints, weights: Array, chosen: Array):
        def at_point(t: Array):
            point = take(points, t)

            def one_group(item):
                return jax.value_and_grad(matching_loss)(*item, point)

            together = chunk or groups_together(task, point.params, synset)
            items = (synset, point.gradients, weights[t])
            losses, slopes = chunked_vmap(one_group, together)(items)
            return jnp.sum(losses), slopes

        losses, slopes = lax.map(at_point, chosen)
        return jnp.mean(losses), jax.tree.map(lambda leaf: jnp.mean(leaf, 0), slopes)

    def norms(points: MatchPoints) -> Array:
        return distance_norms(points, distance)

    def weights_of(norms: Array) -> Array:
        return balance_weights(norms, balance)

    def advance(
        key: Array,
        state: DistillState,
        points: MatchPoints,
        steps: int,
        weights: Array | None = None,
    ):
        if weights is None:
            weights = weights_of(norms(points))
        count = weights.shape[0]

        def step(state: DistillState, _):
            draw = jax.random.fold_in(key, state.step)
            chosen = jax.random.choice(draw, count, (min(points_per_step, count),), replace=False)
            loss, slope = loss_and_gradient(state.synset, points, weights, chosen)
            slope = jax.tree.map(jnp.multiply, slope, state.scale)
            updates, moved = optimizer.update(slope, state.optimizer, state.synset)
            updates = jax.tree.map(jnp.multiply, updates, state.scale)
            synset = optax.apply_updates(state.synset, updates)
            return DistillState(synset, state.scale, moved, state.step + 1), loss

        return lax.scan(step, state, length=steps)

    return Distiller(start, advance, norms, weights_of, distance)


def groups_together(task: Task, params: Params, synset: Synset) -> int | None:
    """How many groups a matching step takes side by side.

    On a CPU one where a network keeps much for each item, as one with convolutions does, and up
    to five where it keeps little: a matrix product with the one row of M = 1 is slow. Elsewhere
    None, all of them.
    """
    if jax.default_backend() != "cpu":
        return None
    items = Batch(synset.x[0], synset.y[0])
    kept = bytes_an_example(lambda p, b, mass: mass @ task.loss(p, b), params, items)
    return min(max(2**20 // max(kept * synset.x.shape[1], 1), 1), 5)


def trajectory_indices(
    checkpoints: int, part: float, hold_out_every: int = 5
) -> tuple[list[int], list[int]]:
    """Which of T checkpoints to match at, and which to hold out to judge the match.

    The last `part` (0, 1] of the trajectory, at least two checkpoints where there are two. Every
    `hold_out_every`-th of them, counted from the end, is held out; the trained network never is.
    """
    if not 0 < part <= 1:
        raise ValueError(f"part={part}; it must be in (0, 1]")
    late = list(
        range(checkpoints - min(checkpoints, max(2, round(part * checkpoints))), checkpoints)
    )
    held_out = [i for n, i in enumerate(reversed(late), 1) if n % hold_out_every == 0]
    if not held_out and len(late) > 1:
        held_out = [late[0]]
    return [i for i in late if i not in held_out], sorted(held_out)


def make_match_points(
    task: Task,
    num_groups: int,
    offset: int = 0,
    *,
    directions: bool = True,
    precision: str = "float32",
) -> Callable[[Params, Batch, GroupBatches, Array], MatchPoints]:
    """Make `match_points(checkpoints, data, batches, indices [T']) -> MatchPoints`.

    The real gradients are taken at the checkpoints `indices` of a run and are to be reproduced
    `offset` checkpoints later (the s of the paper's objective), at most at the trained network.
    The `directions` that all groups share are for the distance "whitened" alone, and cost several
    passes over the gradients. With the `precision` "bfloat16" the gradients are computed and added
    up in float32, and kept in half the memory: each number is off by at most 0.4 %, far below the
    error at which distillation ends.

    Raises:
        ValueError: for a negative offset or an unknown precision.
    """
    if offset < 0:
        raise ValueError(f"offset={offset}; it must be at least 0 checkpoints")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}; choose one of {', '.join(PRECISIONS)}")
    group_gradients = make_group_gradients(task, num_groups)

    def match_points(checkpoints: Params, data: Batch, batches: GroupBatches, indices: Array):
        last = jax.tree.leaves(checkpoints)[0].shape[0] - 1

        def at(index: Array):
            gradients = group_gradients(take(checkpoints, index), data, batches)
            kept = gradients
            if precision != "float32":
                kept = jax.tree.map(lambda leaf: leaf.astype(precision), gradients)
            if directions:
                return kept, *leading_directions(gradients)
            none = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape[1:])), gradients)
            return kept, none, jnp.zeros(0)

        later = jnp.minimum(indices + offset, last)
        return MatchPoints(take(checkpoints, later), *lax.map(at, indices))

    return match_points
