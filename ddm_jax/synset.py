"""The synset: one view of it by groups, and where it starts.

It starts as noise, random members, or a gradient matching pursuit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.optimize import lsq_linear

from ddm_jax.checks import check_choice, check_integer
from ddm_jax.compute.streaming import over_rows
from ddm_jax.items import free_leaves, items_of
from ddm_jax.types import Array, Batch, Groups, Params, Synset, Task, TrainRun, length, take

STARTS = ("pursuit", "random", "noise")

SKETCH_SIZE = 512
SKETCH_POINTS = 4


def by_group(synset: Synset) -> Synset:
    """The items of each group side by side: leaves `[K, M, ...]`, `group [K, M]`, `mass [K, M]`.

    M is the largest number that a group has; the others are filled up with copies of mass zero
    whose group is -1. The background, where there is one, is one more group, the last.
    Runs on the host, as M depends on the values of `group`.
    """
    place_of, share = np.asarray(synset.group), synset.share
    if synset.background is not None:
        place_of = np.where(place_of < 0, len(share), place_of)
        share = jnp.append(share, synset.background)
    counts = np.bincount(place_of, minlength=len(share))
    place = np.arange(counts.max())
    rows = (np.cumsum(counts) - counts)[:, None] + np.minimum(place, counts[:, None] - 1)
    part = take(Batch(synset.items, (jnp.asarray(place_of), synset.mass)), rows)
    group, mass = part.y
    if counts.min() < counts.max():
        real = place < counts[:, None]
        group, mass = jnp.where(real, group, -1), mass * real
    return Synset(part.x, group, mass, share)


def flat(groups: Synset, counts: np.ndarray | None = None) -> Synset:
    """The inverse of `by_group`; `counts [K]` are the items of each group, default all M."""
    shape = groups.mass.shape
    if counts is None:
        counts = np.full(shape[0], shape[1])
    rows = np.flatnonzero((np.arange(shape[1]) < np.asarray(counts)[:, None]).ravel())

    def one(leaf: Any) -> Any:
        return leaf.reshape(-1, *leaf.shape[2:])[rows]

    items, group, mass = jax.tree.map(one, (groups.items, groups.group, groups.mass))
    return Synset(items, group, mass, groups.share)


def background_share(synset: Synset) -> Array | float:
    """The part of the training set that is in no group."""
    return 0.0 if synset.background is None else synset.background


def deal(synset: Synset, batch: int | None, steps: int) -> Array:
    """Which items each step takes out of the pool of all, rows `[S, b]`; -1 where not full.

    A pass deals all I items into `ceil(I / batch)` batches, so that every item has its turn, and
    each pass deals them anew. Batches weigh alike: of the items in the order of what they stand
    for, `share_k |mass|`, as many as there are batches at a time go one to each. The draws depend
    on the synset's shape and on nothing else, so that every mask meets the same items at the same
    step, and what they differ by cancels in a difference of answers.

    Args:
        batch: B, the most items of a step, at least 1; None takes all.
        steps: S.
    """
    items = length(synset.items)
    turns = batches_of(items, batch)
    if turns == 1:
        return jnp.broadcast_to(jnp.arange(items, dtype=jnp.int32), (steps, items))
    size, passes = batch_size(items, batch), -(-steps // turns)
    order = jnp.argsort(-jnp.abs(item_weights(synset, jnp.ones_like(synset.share)))).astype("int32")
    strata = jnp.pad(order, (0, turns * size - items), constant_values=-1).reshape(size, turns)
    draws = jax.random.uniform(jax.random.key(0), (passes, size, turns), jnp.float32)
    dealt = jnp.take_along_axis(strata[None], jnp.argsort(draws), 2)
    return jnp.swapaxes(dealt, 1, 2).reshape(-1, size)[:steps]


def batches_of(items: int, batch: int | None) -> int:
    """How many batches a pass over I items has."""
    return -(-items // min(batch or items, items))


def batch_size(items: int, batch: int | None) -> int:
    """How many of I items a step takes: the batches of a pass are of one size."""
    return -(-items // batches_of(items, batch))


def item_weights(synset: Synset, factor: Array, background: Array | float = 1.0) -> Array:
    """`factor_k share_k mass_m` of each item, [I], for one factor a group and the background's."""
    own = background_share(synset) * background  # group -1 is the last one
    return jnp.append(factor * synset.share, own)[synset.group] * synset.mass


def take_batch(examples: Batch, weights: Array, rows: Array, turns: int) -> tuple[Batch, Array]:
    """The examples of a step and the weight of each; a batch stands for the whole, `turns` times.

    So the mean over the batches of a pass is the whole synset.
    """
    return take(examples, rows), turns * jnp.where(rows < 0, 0.0, weights[rows])


def join(first: Synset, second: Synset) -> Synset:
    """Two synsets as one, with the groups of the second after those of the first."""
    if first.background is not None or second.background is not None:
        raise ValueError("synsets with a background cannot be joined; give every point a group")
    second = second._replace(group=second.group + len(first.share))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def initial_synset(
    key: Array,
    task: Task,
    method: str,
    run: TrainRun,
    data: Batch,
    groups: Groups,
    items: int,
    indices: Sequence[int],
) -> Synset:
    """Make the synset that distillation starts from, M items a group, on the host.

    Args:
        method: "pursuit" (gradient matching pursuit over four of the checkpoints `indices`),
            "random" (random members) or "noise" (random members whose floating-point inputs are
            noise).
        items: M, at least 1.
        indices: checkpoints of `run` at which the synset will be matched; the pursuit's alone.

    Raises:
        ValueError: for an unknown method or fewer than one item.
    """
    check_integer("items", items)
    check_choice("start", method, STARTS)
    if method == "random":
        return random_members(key, task, data, groups, items)
    if method == "noise":
        return noise(key, task, data, groups, items)
    sketch = make_gradient_sketch(task, SKETCH_SIZE)
    chosen = np.asarray(indices)[
        np.unique(np.linspace(0, len(indices) - 1, SKETCH_POINTS).round().astype(int))
    ]
    draws = jax.vmap(lambda index: jax.random.fold_in(key, index))(chosen)
    points = take(run.checkpoints, chosen)

    def all_points(rows: Batch, *at: Any) -> Array:
        return jnp.concatenate(lax.map(lambda one: sketch(*one, rows), at), 1)

    sketches = over_rows(all_points, data, draws, points)
    return gradient_pursuit(sketches, task, data, groups, items)


def _members(groups: Groups) -> list[np.ndarray]:
    return [np.flatnonzero(np.asarray(groups.ids) == k) for k in range(groups.count)]


def _from_rows(
    task: Task, data: Batch, groups: Groups, rows: np.ndarray, mass: np.ndarray
) -> Synset:
    """Training points as items, `rows [K, M]` with their masses."""
    # These rows alone, where the data are on the host.
    examples = jax.tree.map(lambda leaf: jnp.asarray(leaf[rows.ravel()]), data)
    return Synset(
        items=items_of(task).start(examples),
        group=jnp.repeat(jnp.arange(groups.count, dtype=jnp.int32), rows.shape[1]),
        mass=jnp.asarray(mass.ravel(), jnp.float32),
        share=jnp.asarray(groups.shares(), jnp.float32),
    )


def random_members(key: Array, task: Task, data: Batch, groups: Groups, items: int) -> Synset:
    """M random members of each group (repeated where the group is smaller), mass 1/M each."""
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1, jnp.int32))
    draw = np.random.default_rng(seed)
    rows = np.stack([np.resize(draw.permutation(members), items) for members in _members(groups)])
    return _from_rows(task, data, groups, rows, np.full(rows.shape, 1 / items))


def all_members(task: Task, data: Batch, groups: Groups) -> Synset:
    """The real data as a synset: every training point an item, of equal mass in its group.

    What updates reach with it is what a perfect synset would.
    """
    ids, count = np.asarray(groups.ids), groups.count
    place = np.where(ids < 0, count, ids)  # the background comes last
    order = np.argsort(place, kind="stable")
    sizes = np.bincount(place, minlength=count + 1)
    return Synset(
        items=items_of(task).start(jax.tree.map(lambda leaf: jnp.asarray(leaf[order]), data)),
        group=jnp.asarray(ids[order], jnp.int32),
        mass=jnp.asarray(1 / sizes[place[order]], jnp.float32),
        share=jnp.asarray(sizes[:count] / len(ids), jnp.float32),
        background=jnp.float32(sizes[count] / len(ids)) if sizes[count] else None,
    )


def noise(key: Array, task: Task, data: Batch, groups: Groups, items: int) -> Synset:
    """Random members whose inputs are noise: it shows no training input at the start.

    Gaussian noise with the training set's mean and deviation per channel, in each floating-point
    input that the task leaves free; the others stay the member's. Where targets are distributions
    an item's label is the group's own mixture of them.

    Raises:
        ValueError: where no input can be noise.
    """
    synset = random_members(key, task, data, groups, items)
    free = free_leaves(task, Batch(data.x, None), ("x",))
    if not any(free):
        raise ValueError(
            "start='noise' needs floating-point inputs, and these stay as they are found; choose "
            "start='pursuit' or 'random'"
        )

    def noisy(key: Array, leaf: Any) -> Array:
        x = jnp.asarray(leaf)
        axes = tuple(range(x.ndim - 1)) or (0,)
        shape = (groups.count * items, *x.shape[1:])
        draws = jax.random.normal(key, shape, jnp.float32)
        return (jnp.mean(x, axes) + jnp.std(x, axes) * draws).astype(x.dtype)

    leaves, structure = jax.tree.flatten(data.x)
    found = jax.tree.leaves(synset.items.x)
    one = len(leaves) == 1
    x = [
        noisy(key if one else jax.random.fold_in(key, n), leaf) if ok else member
        for n, (leaf, member, ok) in enumerate(zip(leaves, found, free, strict=True))
    ]
    y = synset.items.y
    if task.targets == "distribution":
        labels = np.asarray(data.y)
        mixture = np.stack([labels[members].mean(0) for members in _members(groups)])
        mixed = Batch(None, jnp.asarray(np.repeat(mixture, items, 0), data.y.dtype))
        y = items_of(task).start(mixed).y
    return synset._replace(items=Batch(jax.tree.unflatten(structure, x), y))


def make_gradient_sketch(task: Task, size: int) -> Callable[..., Array]:
    """Make `sketch(key, params, data) -> [N, size]`: inner products of per-example gradients.

    A count sketch: each parameter has a random sign and falls into bucket `index mod size`, so
    `<sketch_i, sketch_j>` estimates `<grad loss_i, grad loss_j>` without bias and costs one
    pass over the gradient (Charikar, Chen & Farach-Colton, 2002).
    """

    def one(params: Params, signs: Array, example: Batch) -> Array:
        def loss(params):
            return task.loss(params, jax.tree.map(lambda leaf: leaf[None], example))[0]

        leaves = jax.tree.leaves(jax.grad(loss)(params))
        flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
        flat = jnp.pad(flat, (0, signs.size - flat.size)) * signs
        return flat.reshape(-1, size).sum(0)

    def sketch(key: Array, params: Params, data: Batch) -> Array:
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        # As `rademacher` draws them, and the same with 64 bits enabled.
        draws = jax.random.uniform(key, (-(-count // size) * size,), jnp.float32)
        signs = jnp.where(draws < 0.5, 1.0, -1.0).astype(jnp.float32)
        return lax.map(lambda example: one(params, signs, example), data, batch_size=16)

    return sketch


def pursue(features: np.ndarray, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose rows of one group, with weights in [0, n], that best add up to the sum of all rows.

    Matching pursuit with bounded least squares: each round takes the row that alone would
    reduce the squared residual most, and refits all weights. The bound says that no member may
    stand for more than the whole group; without it a member with almost no gradient is blown up a
    thousandfold for pointing the right way, and its curvature with it.

    Args:
        features: [n, F] sketched gradients of the members.
        items: M, the number to choose.

    Returns:
        members [M] and weights [M] in units of one example. A group of n < M members gets all
        of them, repeated with the weight shared out.
    """
    bound = float(len(features))
    if len(features) < features.shape[1]:  # the same inner products in n coordinates
        features = np.asarray(np.linalg.qr(features.T, mode="r")).T
    target = features.sum(0)
    size = np.maximum((features**2).sum(1), 1e-300)
    chosen: list[int] = []
    weights = np.zeros(0)
    residual = target
    for _ in range(min(items, len(features))):
        along = features @ residual
        step = np.clip(along / size, 0.0, bound)
        gain = step * (2 * along - step * size)
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        weights = lsq_linear(features[chosen].T, target, bounds=(0.0, bound)).x
        residual = target - weights @ features[chosen]
    copies = np.resize(np.arange(len(chosen)), items)
    members = np.asarray(chosen)[copies]
    return members, weights[copies] / np.bincount(copies)[copies]


def gradient_pursuit(
    sketches: np.ndarray, task: Task, data: Batch, groups: Groups, items: int
) -> Synset:
    """Members chosen by gradient matching pursuit, which starts where distillation should end.

    Random members miss the few hard examples that carry nearly all the gradient of a trained
    network; the pursuit finds them. Killamsetty et al., "GRAD-MATCH", 2021, arXiv 2103.00123,
    choose training subsets so; here it is done inside each group and over several points of the
    trajectory at once.

    Args:
        sketches: [N, F] gradient sketches (`make_gradient_sketch`), those of several points of
            the trajectory side by side.
    """
    rows, mass = [], []
    for members in _members(groups):
        # These rows alone: all of them as doubles, once a group, took most of the time.
        chosen, weights = pursue(np.asarray(sketches[members], np.float64), items)
        rows.append(members[chosen])
        mass.append(weights / len(members))
    return _from_rows(task, data, groups, np.stack(rows), np.stack(mass))
