"""Offline: distil a small synset of each group by reverse gradient matching, on any devices.

The loss of a step is `sum_k weight_k d(g_k(theta_t), h_k(theta_{t+s}))` at points drawn from the
reversed trajectory (`matching` has the gradients and distances, `synset` the starts). Groups are
coupled by nothing but their weights, which depend on the real gradients alone: `blocks` of them are
distilled on each device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from pydantic import AfterValidator, Field

from ddm_jax.blocks import GroupBlocks, read_block
from ddm_jax.checks import settings
from ddm_jax.compute.memory import at_once
from ddm_jax.compute.pieces import bytes_an_example
from ddm_jax.compute.placement import chunked_vmap, device_vmap
from ddm_jax.items import (
    MASS,
    free_leaves,
    get_leaves,
    is_under,
    items_of,
    leaf_units,
    put_leaves,
)
from ddm_jax.matching import (
    MatchPoints,
    at_least_float32,
    balance_weights,
    distance_norms,
    make_match_points,
    make_matching_error,
    make_matching_loss,
)
from ddm_jax.synset import by_group, flat
from ddm_jax.types import Array, Batch, Params, Synset, Task, TrainRun, take

LEARNABLE = ("x", "y", MASS)
STEPS_AT_ONCE = 50  # distillation steps a dispatch

Step = Callable[[Any, int], tuple[Any, int, str]]  # carry, position -> carry, position, note
Loop = Callable[[Any, int, Step], Any]  # carry, total, step -> carry


def _check_learn(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not is_under(name, LEARNABLE):
            raise ValueError(
                f"distill.learn names {name!r}; name x, y, mass, or a part of an item as x.image"
            )
    return names


@settings("distill")
class DistillSettings:
    """Offline: the synset and how it is matched.

    - `items`: M, synthetic items a group; `start`: where they start, `synset.initial_synset`.
    - `distance`: "squared"; "whitened" (squared error, less along the directions that all groups
      share, see `matching.leading_directions`: better where a synset is small for its task, at
      several times the cost for large networks).
    - `balance`: how the groups' squared errors are weighted, 0 (by size) to 1 (relative errors
      group by group); see `matching.balance_weights`.
    - `learn`: what is optimised, where the task leaves it free (`types.Items`): inputs "x",
      targets "y", "mass", or a part of an item such as "x.image". The rest stays as it starts.
    - `part`: the late part of the trajectory that is matched; `offset`: the s of the paper's
      objective, in checkpoints.
    - `optimizer`, `learning_rate`, `steps`: with a cosine to zero; one rate serves inputs, label
      logits and masses, each in units of its own (`items.leaf_units`).
    - `points_per_step`: trajectory points a step.
    - `precision`: of the gradients to match; "bfloat16" takes half the memory.
    """

    items: Annotated[int, Field(ge=1, le=100_000)] = 10
    start: Literal["pursuit", "random", "noise"] = "pursuit"
    distance: Literal["squared", "whitened"] = "squared"
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    learn: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_check_learn)] = LEARNABLE
    part: Annotated[float, Field(gt=0, le=1)] = 0.75
    offset: Annotated[int, Field(ge=0)] = 0
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 0.005
    steps: Annotated[int, Field(ge=0)] = 3000
    points_per_step: Annotated[int, Field(ge=1)] = 1
    precision: Literal["float32", "bfloat16"] = "float32"


class Free(NamedTuple):
    """What distillation may change of a synset by group."""

    leaves: list[Array]  # [K, M, ...] of the items that are optimised, see `items.free_leaves`
    mass: Array  # [K, M]


class DistillState(NamedTuple):
    """What distillation carries from one step to the next."""

    synset: Synset  # by group
    scale: Free  # what one unit of the optimiser means in each leaf; 0 freezes it
    optimizer: Any
    step: Array  # int32


class Distiller(NamedTuple):
    """Reverse gradient matching as pure functions of a synset `by_group`."""

    start: Callable[..., DistillState]  # synset, `leaf_units` of all groups (default: its own)
    advance: Callable[..., tuple[DistillState, Array]]
    norms: Callable[[MatchPoints], Array]  # -> [T, K], see `matching.distance_norms`
    weights: Callable[[Array], Array]  # norms of all groups [T, K] -> weights [T, K]


def make_distiller(
    task: Task, settings: DistillSettings | None = None, *, chunk: int | None = None
) -> Distiller:
    """Make the functions that distil a synset.

    `start(synset, units=None) -> state`, with what `items.leaf_units` says of all groups where
    these are not all. `advance(key, state, points, steps) -> state, losses [steps]` takes
    steps (their number is static) on `sum_k weight_k d(g_k, h_k)`, each at `points_per_step`
    points drawn with `fold_in(key, step)`, so that a resumed run draws what it would have drawn.
    Where these groups are not all, their `weights [T, K]` among all are its last argument.

    Masses are optimised in units of their group's mean absolute mass at the start: a group whose
    gradient lives in few hard examples has masses far below 1/M, which one step of a shared
    learning rate would otherwise wipe out.

    Args:
        chunk: groups side by side; default `groups_together`.
    """
    settings = settings or DistillSettings()
    schedule = optax.cosine_decay_schedule(settings.learning_rate, max(settings.steps, 1))
    optimizer = {"adam": optax.adam, "sgd": optax.sgd}[settings.optimizer](schedule)
    matching_loss = make_matching_loss(task, settings.distance)

    def free_of(synset: Synset) -> tuple[list[bool], Free]:
        chosen = free_leaves(task, synset.items, settings.learn)
        return chosen, Free(get_leaves(synset.items, chosen), synset.mass)

    def with_free(synset: Synset, chosen: list[bool], free: Free) -> Synset:
        items = put_leaves(synset.items, chosen, free.leaves)
        return synset._replace(items=items, mass=free.mass)

    def start(synset: Synset, units: list[Any] | None = None) -> DistillState:
        chosen, free = free_of(synset)
        units = leaf_units(synset.items) if units is None else units
        real = synset.group >= 0  # the others fill a group up
        size = jnp.mean(jnp.abs(synset.mass), 1, keepdims=True)
        size = size / jnp.mean(real, 1, keepdims=True)
        mass = jnp.where(real, size, 0.0)
        if MASS not in settings.learn:
            mass = jnp.zeros_like(mass)
        each = [unit for unit, ok in zip(units, chosen, strict=True) if ok]
        scale = Free(
            [jnp.full_like(leaf, unit) for leaf, unit in zip(free.leaves, each, strict=True)], mass
        )
        moments = optimizer.init(at_least_float32(free))  # float16 has no room for Adam's
        return DistillState(synset, scale, moments, jnp.zeros((), jnp.int32))

    def loss_and_gradient(synset: Synset, points: MatchPoints, weights: Array, chosen: Array):
        def at_point(t: Array):
            point = take(points, t)

            def one_group(item):
                part, gradient, weight = item

                chosen, free = free_of(part)

                def loss(free: Free) -> Array:
                    moved = with_free(part, chosen, free)
                    return matching_loss(moved, gradient, weight, point)

                return jax.value_and_grad(loss)(free)

            together = chunk or groups_together(task, point.params, synset)
            items = (synset, point.gradients, weights[t])
            losses, slopes = chunked_vmap(one_group, together)(items)
            return jnp.sum(losses), slopes

        losses, slopes = lax.map(at_point, chosen)
        return jnp.mean(losses), jax.tree.map(lambda leaf: jnp.mean(leaf, 0), slopes)

    def norms(points: MatchPoints) -> Array:
        return distance_norms(points, settings.distance)

    def weights_of(norms: Array) -> Array:
        return balance_weights(norms, settings.balance)

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
        each = min(settings.points_per_step, count)

        def step(state: DistillState, _):
            draw = jax.random.fold_in(key, state.step)
            chosen = jax.random.choice(draw, count, (each,), replace=False)
            loss, slope = loss_and_gradient(state.synset, points, weights, chosen)
            leaves, free = free_of(state.synset)
            slope = at_least_float32(jax.tree.map(jnp.multiply, slope, state.scale))
            updates, moved = optimizer.update(slope, state.optimizer, free)
            updates = jax.tree.map(jnp.multiply, updates, state.scale)
            synset = with_free(state.synset, leaves, optax.apply_updates(free, updates))
            return DistillState(synset, state.scale, moved, state.step + 1), loss

        return lax.scan(step, state, length=steps)

    return Distiller(start, advance, norms, weights_of)


def groups_together(task: Task, params: Params, synset: Synset) -> int:
    """How many groups a matching step takes side by side.

    On a CPU one where a network keeps much for each item, as one with convolutions does, and up
    to five where it keeps little: a matrix product with the one row of M = 1 is slow. Elsewhere
    as many as fit.
    """
    items = items_of(task).batch(take(synset.items, 0))
    kept = bytes_an_example(lambda p, b, mass: mass @ task.loss(p, b), params, items)
    return at_once("groups", kept * synset.mass.shape[1])


def straight_through(carry: Any, total: int, step: Step) -> Any:
    """Run a loop from its beginning to its end; a `Loop` that saves or shows takes its place."""
    position = 0
    while position < total:
        carry, position, _ = step(carry, position)
    return carry


class Blockwise(NamedTuple):
    """The offline stage, a block of groups on each device."""

    # key, start, run, data, indices, loop -> synset, losses [max(S, 1)]
    distil: Callable[..., tuple[Synset, np.ndarray]]
    errors: Callable[..., np.ndarray]  # synset, run, data, indices -> [T, K]


def make_blockwise(task: Task, settings: DistillSettings, blocks: GroupBlocks) -> Blockwise:
    """Make `distil` and `errors` for the groups of `blocks`, see `blocks.plan_blocks`.

    `distil(key, start, run, data, indices, loop)` takes the settings' steps for every group,
    matching at the checkpoints `indices`, and equals `Distiller.advance` over all groups at once to
    rounding. `errors(synset, run, data, indices)` is `matching.make_matching_error`. `loop` runs
    `step(carry, position)`, and may save and show what it likes between steps.
    """
    distiller, steps = make_distiller(task, settings), settings.steps
    count = len(blocks.members)
    at_once = min(jax.device_count(), count)
    rounds = [slice(first, first + at_once) for first in range(0, count, at_once)]
    match_points = make_match_points(
        task,
        settings.offset,
        directions=settings.distance == "whitened",
        precision=settings.precision,
    )
    points_of = device_vmap(
        lambda block, checkpoints, indices: match_points(
            checkpoints, block.data, block.batches, indices
        ),
        chunk=1,
    )
    start_of = device_vmap(distiller.start, chunk=1)  # of each block, with the units of all
    norms_of = device_vmap(distiller.norms, chunk=1)
    error_of = device_vmap(lambda item: make_matching_error(task)(*item), chunk=1)

    def points(some: slice, run: TrainRun, data: Batch, indices: Any) -> MatchPoints:
        """The points of a round. What the run has beside its checkpoints need not travel."""
        return points_of(read_block(blocks, some, data), run.checkpoints, jnp.asarray(indices))

    def distil(
        key: Array,
        start: Synset,
        run: TrainRun,
        data: Batch,
        indices: Any,
        loop: Loop = straight_through,
    ) -> tuple[Synset, np.ndarray]:
        norms = np.zeros((len(indices), blocks.num_groups), np.float32)
        held: MatchPoints | None = None  # the points of one round, while it lasts
        held_round = -1
        for number, some in enumerate(rounds):
            held = None  # before the next ones are made
            held, held_round = points(some, run, data, indices), number
            for members, found in zip(
                blocks.members[some], np.asarray(norms_of(held)), strict=True
            ):
                norms[:, members] = found
        weights = np.asarray(distiller.weights(jnp.asarray(norms)))
        advance = {
            size: device_vmap(
                lambda item, key, size=size: distiller.advance(key, *item[:2], size, item[2]),
                chunk=1,
            )
            for size in {min(STEPS_AT_ONCE, steps), steps % STEPS_AT_ONCE}
        }

        def step(carry, position: int):
            nonlocal held, held_round
            synset, state, losses = carry
            number, done = divmod(position, steps)
            some = rounds[number]
            members, first = blocks.members[some], blocks.first[some]
            if number != held_round:
                held = None
                held, held_round = points(some, run, data, indices), number
            if done == 0:
                state = start_of(take(synset, members), units)
            size = min(STEPS_AT_ONCE, steps - done)
            part = np.moveaxis(weights[:, members] * first, 1, 0)
            state, new = advance[size]((state, held, part), key)
            new = np.asarray(new).sum(0)
            losses[done : done + size] += new
            if done + size == steps:
                moved = jax.tree.leaves(state.synset)
                for kept, leaf in zip(jax.tree.leaves(synset), moved, strict=True):
                    kept[members[first]] = np.asarray(leaf)[first]
            return (synset, state, losses), position + size, f"matching loss {np.mean(new):.4f}"

        whole = jax.tree.map(np.array, by_group(start))
        units = leaf_units(start.items)
        state = start_of(take(whole, blocks.members[rounds[0]]), units)
        carry = (whole, state, np.zeros(max(steps, 1), np.float32))
        synset, _, losses = loop(carry, steps * len(rounds), step)
        counts = np.bincount(np.asarray(start.group), minlength=blocks.num_groups)
        return jax.tree.map(jnp.asarray, flat(synset, counts)), losses

    def errors(synset: Synset, run: TrainRun, data: Batch, indices: Any) -> np.ndarray:
        found = np.zeros((len(indices), blocks.num_groups), np.float32)
        groups = by_group(synset)
        for some in rounds:
            members = blocks.members[some]
            item = (take(groups, members), points(some, run, data, indices))
            for mine, error in zip(members, np.asarray(error_of(item)), strict=True):
                found[:, mine] = error
        return found

    return Blockwise(distil, errors)
