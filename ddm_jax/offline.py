"""Offline, at any size: groups distilled a block a device, in as many rounds as memory asks for.

Groups are coupled by nothing but the weights of their errors, which need one number a group and
checkpoint, and by the points that a step draws, which come from its own key. So a block of groups
can be distilled without the others, with the rows of its own groups alone: what a device holds is
`4 * T * k * P` bytes of gradients for the k groups of its block, and their share of the data.
Data that stay on the host are read a block at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.distill import PRECISIONS, Distiller, make_match_points
from ddm_jax.matching import GroupBatches, MatchPoints, group_batches, make_matching_error
from ddm_jax.parallel import device_memory, device_vmap
from ddm_jax.streaming import bytes_of
from ddm_jax.types import Array, Batch, Synset, Task, TrainRun, take

STEPS_AT_ONCE = 50  # distillation steps a dispatch

Step = Callable[[Any, int], tuple[Any, int, str]]  # carry, position -> carry, position, note
Loop = Callable[[Any, int, Step], Any]  # carry, total, step -> carry


class GroupBlocks(NamedTuple):
    """K groups cut into n blocks of k, each with the rows of its own groups; on the host."""

    members: np.ndarray  # [n, k] groups
    first: np.ndarray  # [n, k] bool: False where a group is repeated, to fill a block up
    rows: np.ndarray  # [n, J, c] training rows, in pieces of one group each
    valid: np.ndarray  # [n, J, c] float32, 0 where a piece is filled up
    owner: np.ndarray  # [n, J] int32, which of the block's k groups a piece belongs to
    total: int  # N


class Block(NamedTuple):
    """What a device gets to see of the training set: the rows of k groups."""

    data: Batch  # [J * c, ...]
    batches: GroupBatches


def straight_through(carry: Any, total: int, step: Step) -> Any:
    """Run a loop from its beginning to its end; a `Loop` that saves or shows takes its place."""
    position = 0
    while position < total:
        carry, position, _ = step(carry, position)
    return carry


def group_blocks(groups: np.ndarray, num_groups: int, count: int, size: int = 64) -> GroupBlocks:
    """Cut K groups into `count` blocks of `ceil(K / count)` groups."""
    groups = np.asarray(groups)
    each = -(-num_groups // count)
    firsts = np.minimum(np.arange(count) * each, num_groups - each)
    cut = []
    for first in firsts:
        mine = np.flatnonzero((groups >= first) & (groups < first + each))
        batches = jax.tree.map(np.asarray, group_batches(groups[mine] - first, each, size))
        cut.append(batches._replace(rows=mine[batches.rows]))
    pieces, width = (max(batches.rows.shape[i] for batches in cut) for i in (0, 1))

    def fill(a: np.ndarray) -> np.ndarray:
        shape = (pieces, width)[: a.ndim]
        widths = [(0, want - have) for want, have in zip(shape, a.shape, strict=True)]
        return np.pad(a, widths)  # row 0 of the data, with weight 0

    members = firsts[:, None] + np.arange(each)
    return GroupBlocks(
        members=members,
        first=members >= (np.arange(count) * each)[:, None],
        rows=np.stack([fill(batches.rows) for batches in cut]),
        valid=np.stack([fill(batches.valid) for batches in cut]),
        owner=np.stack([fill(batches.owner) for batches in cut]),
        total=len(groups),
    )


def plan_blocks(
    distiller: Distiller,
    groups: np.ndarray,
    points: int,
    params: Any,
    data: Batch,
    precision: str = "float32",
) -> GroupBlocks:
    """Cut the groups into blocks: one a device, or several where memory is short.

    A device may be filled to a quarter with gradients at T `points`, and to a quarter with data.
    The distance "whitened" compares all groups, which then are one block.

    Raises:
        ValueError: where one block does not fit, saying how to need less.
    """
    num_groups = int(np.max(groups)) + 1
    count = blocks_needed(distiller, points, num_groups, params, bytes_of(data), precision)
    return group_blocks(groups, num_groups, count)


def blocks_needed(
    distiller: Distiller,
    points: int,
    num_groups: int,
    params: Any,
    data_bytes: int,
    precision: str = "float32",
) -> int:
    """The number of blocks of `plan_blocks`; of `params` only the shapes matter."""
    devices = min(jax.device_count(), num_groups)
    limit = device_memory()
    one = PRECISIONS[precision] * points * sum(leaf.size for leaf in jax.tree.leaves(params))
    if distiller.distance == "whitened":
        if limit is not None and one * num_groups > limit:
            raise ValueError(
                f"distance='whitened' holds the gradients of {num_groups:,} groups at {points} "
                f"checkpoints at once, {one * num_groups / 2**30:.0f} GiB, and there are "
                f"{limit / 2**30:.0f}: use distance='squared' (distill.distance), fewer groups or "
                "fewer checkpoints (distill.part, train.checkpoint_every)"
            )
        return 1
    if limit is None:
        return devices
    # The devices of a CPU are one memory.
    share = limit // 4 // (devices if jax.default_backend() == "cpu" else 1)
    if one > share:
        raise ValueError(
            f"the gradients of one group at {points} checkpoints take {one / 2**30:.2f} GiB, and "
            f"a device has {share / 2**30:.2f} for them: use a smaller distill.part, a larger "
            "train.checkpoint_every or distill.precision=bfloat16"
        )
    rounds = max(-(-num_groups // (share // one * devices)), -(-data_bytes // (share * devices)))
    return devices * min(rounds, -(-num_groups // devices))


class Blockwise(NamedTuple):
    """The offline stage, a block of groups on each device."""

    # key, start, run, data, indices, steps, loop -> synset, losses [max(S, 1)]
    distil: Callable[..., tuple[Synset, np.ndarray]]
    errors: Callable[..., np.ndarray]  # synset, run, data, indices -> [T, K]


def make_blockwise(
    task: Task,
    distiller: Distiller,
    blocks: GroupBlocks,
    offset: int = 0,
    precision: str = "float32",
) -> Blockwise:
    """Make `distil` and `errors` for the groups of `blocks`, see `plan_blocks`.

    `distil(key, start, run, data, indices, steps, loop)` takes `steps` steps of `distiller` for
    every group, matching at the checkpoints `indices`, and equals its `advance` over all groups
    at once to rounding. `errors(synset, run, data, indices)` is `matching.make_matching_error`.
    `offset` is the s of the paper's objective, in checkpoints, and `precision` that of the matched
    gradients, both as in `distill.make_match_points`. `loop` runs
    `step(carry, position)`, and may save and show what it likes between steps.
    """
    count, each = blocks.members.shape
    num_groups = int(blocks.members.max()) + 1
    at_once = min(jax.device_count(), count)
    rounds = [slice(first, first + at_once) for first in range(0, count, at_once)]
    match_points = make_match_points(
        task,
        each,
        offset,
        directions=distiller.distance == "whitened",
        precision=precision,
    )
    points_of = device_vmap(
        lambda block, checkpoints, indices: match_points(
            checkpoints, block.data, block.batches, indices
        ),
        chunk=1,
    )
    start_of = device_vmap(distiller.start, chunk=1)
    norms_of = device_vmap(distiller.norms, chunk=1)
    error_of = device_vmap(lambda item: make_matching_error(task)(*item), chunk=1)

    def points(some: slice, run: TrainRun, data: Batch, indices: Any) -> MatchPoints:
        """The points of a round: the rows of its groups alone are read."""
        rows = blocks.rows[some]
        flat = rows.reshape(len(rows), -1)
        local = np.broadcast_to(np.arange(flat.shape[1], dtype=np.int32), flat.shape)
        batches = GroupBatches(
            rows=local.reshape(rows.shape),
            valid=blocks.valid[some],
            owner=blocks.owner[some],
            total=np.full(len(rows), blocks.total, np.int32),
        )
        # What the run has beside its checkpoints need not travel.
        return points_of(Block(take(data, flat), batches), run.checkpoints, jnp.asarray(indices))

    def distil(
        key: Array,
        start: Synset,
        run: TrainRun,
        data: Batch,
        indices: Any,
        steps: int,
        loop: Loop = straight_through,
    ) -> tuple[Synset, np.ndarray]:
        norms = np.zeros((len(indices), num_groups), np.float32)
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
                state = start_of(take(synset, members))
            size = min(STEPS_AT_ONCE, steps - done)
            part = np.moveaxis(weights[:, members] * first, 1, 0)
            state, new = advance[size]((state, held, part), key)
            new = np.asarray(new).sum(0)
            losses[done : done + size] += new
            if done + size == steps:
                for kept, leaf in zip(synset, state.synset, strict=True):
                    kept[members[first]] = np.asarray(leaf)[first]
            return (synset, state, losses), position + size, f"matching loss {np.mean(new):.4f}"

        whole = jax.tree.map(np.array, start)
        state = start_of(take(whole, blocks.members[rounds[0]]))
        carry = (whole, state, np.zeros(max(steps, 1), np.float32))
        synset, _, losses = loop(carry, steps * len(rounds), step)
        return jax.tree.map(jnp.asarray, synset), losses

    def errors(synset: Synset, run: TrainRun, data: Batch, indices: Any) -> np.ndarray:
        found = np.zeros((len(indices), num_groups), np.float32)
        for some in rounds:
            members = blocks.members[some]
            item = (take(synset, members), points(some, run, data, indices))
            for mine, error in zip(members, np.asarray(error_of(item)), strict=True):
                found[:, mine] = error
        return found

    return Blockwise(distil, errors)
