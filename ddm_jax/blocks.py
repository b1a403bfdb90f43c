"""Groups cut into blocks, one a device, in as many rounds as memory asks for.

Groups are coupled by nothing but the weights of their errors, which need one number a group and
checkpoint, and by the points that a step draws, which come from its own key. So a block of groups
can be distilled without the others, with the rows of its own groups alone: what a device holds is
`4 * T * k * P` bytes of gradients for the k groups of its block, and their share of the data.
Data that stay on the host are read a block at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax.compute.memory import bytes_of, device_memory, refuse_larger
from ddm_jax.gradients import GroupBatches, group_batches
from ddm_jax.matching import PRECISIONS
from ddm_jax.types import Batch, Groups, take


class GroupBlocks(NamedTuple):
    """K groups cut into n blocks of k, each with the rows of its own groups; on the host."""

    members: np.ndarray  # [n, k] groups
    first: np.ndarray  # [n, k] bool: False where a group is repeated, to fill a block up
    rows: np.ndarray  # [n, J, c] training rows, in pieces of one group each
    valid: np.ndarray  # [n, J, c] float32, 0 where a piece is filled up
    owner: np.ndarray  # [n, J] int32, which of the block's k groups a piece belongs to
    total: int  # N

    @property
    def num_groups(self) -> int:
        """K."""
        return int(self.members[-1, -1]) + 1


class Block(NamedTuple):
    """What a device gets to see of the training set: the rows of k groups."""

    data: Batch  # [J * c, ...]
    batches: GroupBatches


def group_blocks(groups: Groups, count: int, size: int = 64) -> GroupBlocks:
    """Cut K groups into `count` blocks of `ceil(K / count)` groups."""
    ids = np.asarray(groups.ids)
    each = -(-groups.count // count)
    firsts = np.minimum(np.arange(count) * each, groups.count - each)
    cut = []
    for first in firsts:
        mine = np.flatnonzero((ids >= first) & (ids < first + each))
        batches = jax.tree.map(np.asarray, group_batches(Groups(ids[mine] - first, each), size))
        cut.append((mine[batches.rows], batches.valid, batches.owner))
    pieces, width = (max(rows.shape[axis] for rows, _, _ in cut) for axis in (0, 1))

    def fill(a: np.ndarray) -> np.ndarray:
        shape = (pieces, width)[: a.ndim]
        widths = [(0, want - have) for want, have in zip(shape, a.shape, strict=True)]
        return np.pad(a, widths)  # row 0 of the data, with weight 0

    members = firsts[:, None] + np.arange(each)
    rows, valid, owner = (np.stack([fill(a) for a in arrays]) for arrays in zip(*cut, strict=True))
    return GroupBlocks(
        members=members,
        first=members >= (np.arange(count) * each)[:, None],
        rows=rows,
        valid=valid,
        owner=owner,
        total=len(ids),
    )


def read_block(blocks: GroupBlocks, some: slice, data: Batch) -> Block:
    """The rows of some blocks' groups, leaves `[n, ...]`; of the data these alone are read."""
    rows = blocks.rows[some]
    each = rows.reshape(len(rows), -1)
    local = np.broadcast_to(np.arange(each.shape[1], dtype=np.int32), each.shape)
    batches = GroupBatches(
        rows=local.reshape(rows.shape),
        valid=blocks.valid[some],
        owner=blocks.owner[some],
        total=np.full(len(rows), blocks.total, np.int32),
        count=blocks.members.shape[1],
    )
    return Block(take(data, each), batches)


def plan_blocks(
    groups: Groups, points: int, params: Any, data: Batch, distance: str, precision: str
) -> GroupBlocks:
    """Cut the groups into blocks: one a device, or several where memory is short.

    A device may be filled to a quarter with gradients at T `points`, and to a quarter with data.
    The distance "whitened" compares all groups, which then are one block.

    Raises:
        ValueError: where one block does not fit, saying how to need less.
    """
    size = bytes_of(data)
    count = blocks_needed(groups.count, points, params, size, distance, precision)
    return group_blocks(groups, count)


def blocks_needed(
    num_groups: int, points: int, params: Any, data_bytes: int, distance: str, precision: str
) -> int:
    """The number of blocks of `plan_blocks`; of `params` only the shapes matter."""
    devices = min(jax.device_count(), num_groups)
    one = PRECISIONS[precision] * points * sum(leaf.size for leaf in jax.tree.leaves(params))
    if distance == "whitened":
        refuse_larger(
            f"distance='whitened' with gradients of {num_groups:,} groups at {points} checkpoints",
            one * num_groups,
            "use distance='squared' (distill.distance), fewer groups or fewer checkpoints "
            "(distill.part, train.checkpoint_every)",
        )
        return 1
    refuse_larger(
        f"the gradient of one group at {points} checkpoints",
        one,
        "use a smaller distill.part, a larger train.checkpoint_every or distill.precision=bfloat16",
        part=4,
    )
    share = device_memory() // 4
    rounds = max(-(-num_groups // (share // one * devices)), -(-data_bytes // (share * devices)))
    return devices * min(rounds, -(-num_groups // devices))
