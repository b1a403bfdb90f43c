"""Where a synset starts: noise, random members, the members nearest the centre, or a pursuit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.optimize import lsq_linear

from ddm_jax.streaming import over_rows
from ddm_jax.types import Array, Batch, Params, Synset, Task, TrainRun, take

STARTS = ("pursuit", "random", "central", "noise")

# Label logits of a fresh item. A trained network is certain (p = .9999), so a softer label would
# be a large error by itself.
SHARPNESS = 14.0

SKETCH_SIZE = 512
SKETCH_POINTS = 4


def initial_synset(
    key: Array,
    task: Task,
    method: str,
    run: TrainRun,
    data: Batch,
    groups: np.ndarray,
    items: int,
    indices: Sequence[int],
) -> Synset:
    """Make the synset that distillation starts from, on the host.

    Args:
        method: "pursuit" (gradient matching pursuit over four of the checkpoints `indices`),
            "random" (random members), "central" (members nearest the group's mean) or "noise".
        groups: [N] integers 0..K-1.
        items: M, at least 1.
        indices: checkpoints of `run` at which the synset will be matched.

    Raises:
        ValueError: for an unknown method or fewer than one item.
    """
    if items < 1:
        raise ValueError(f"items={items}; a group needs at least 1 synthetic item")
    num_groups = int(np.max(groups)) + 1
    if method == "random":
        return random_members(key, data, groups, num_groups, items)
    if method == "central":
        return central_members(data, groups, num_groups, items)
    if method == "noise":
        return noise(key, data, groups, num_groups, items)
    if method != "pursuit":
        raise ValueError(f"unknown start {method!r}; choose one of {', '.join(STARTS)}")
    sketch = make_gradient_sketch(task, SKETCH_SIZE)
    chosen = np.asarray(indices)[
        np.unique(np.linspace(0, len(indices) - 1, SKETCH_POINTS).round().astype(int))
    ]
    draws = jax.vmap(lambda index: jax.random.fold_in(key, index))(chosen)
    points = take(run.checkpoints, chosen)

    def all_points(rows: Batch, *at: Any) -> Array:
        return jnp.concatenate(lax.map(lambda one: sketch(*one, rows), at), 1)

    sketches = over_rows(all_points, data, draws, points)
    return gradient_pursuit(sketches, data, groups, num_groups, items)


def group_share(groups: np.ndarray, num_groups: int) -> Array:
    """The part of the training set in each group, `|D_k| / N`, [K], sums to one."""
    counts = np.bincount(np.asarray(groups), minlength=num_groups)
    return jnp.asarray(counts / counts.sum(), jnp.float32)


def _from_rows(data: Batch, rows: np.ndarray, mass: np.ndarray, share: Array) -> Synset:
    labels = jnp.asarray(data.y[rows])
    return Synset(
        x=jnp.asarray(data.x[rows]),  # these rows alone, where the data are on the host
        y=SHARPNESS * labels,
        mass=jnp.asarray(mass, jnp.float32),
        share=share,
    )


def _members(groups: np.ndarray, num_groups: int) -> list[np.ndarray]:
    return [np.flatnonzero(np.asarray(groups) == k) for k in range(num_groups)]


def random_members(
    key: Array, data: Batch, groups: np.ndarray, num_groups: int, items: int
) -> Synset:
    """M random members of each group (repeated where the group is smaller), mass 1/M each."""
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    draw = np.random.default_rng(seed)
    rows = np.stack(
        [np.resize(draw.permutation(members), items) for members in _members(groups, num_groups)]
    )
    mass = np.full((num_groups, items), 1 / items)
    return _from_rows(data, rows, mass, group_share(groups, num_groups))


def central_members(data: Batch, groups: np.ndarray, num_groups: int, items: int) -> Synset:
    """The M members nearest the mean of each group (repeated where fewer), mass 1/M each."""
    flat = np.asarray(data.x).reshape(len(data.x), -1)
    rows = []
    for members in _members(groups, num_groups):
        away = np.linalg.norm(flat[members] - flat[members].mean(0), axis=1)
        rows.append(np.resize(members[np.argsort(away, kind="stable")], items))
    mass = np.full((num_groups, items), 1 / items)
    return _from_rows(data, np.stack(rows), mass, group_share(groups, num_groups))


def noise(key: Array, data: Batch, groups: np.ndarray, num_groups: int, items: int) -> Synset:
    """Gaussian noise with the training set's mean and deviation per channel.

    The label of an item is the group's own mixture of labels, sharpened to `SHARPNESS` where the
    group is pure. Shows no training image at the start.
    """
    x = jnp.asarray(data.x)
    axes = tuple(range(x.ndim - 1))
    shape = (num_groups, items, *x.shape[1:])
    noisy = jnp.mean(x, axes) + jnp.std(x, axes) * jax.random.normal(key, shape)
    labels = np.asarray(data.y)
    mixture = np.stack([labels[members].mean(0) for members in _members(groups, num_groups)])
    logits = np.log(np.maximum(mixture, np.exp(-SHARPNESS)))
    return Synset(
        x=noisy,
        y=jnp.asarray(np.repeat((logits - logits.min(1, keepdims=True))[:, None], items, 1)),
        mass=jnp.full((num_groups, items), 1 / items),
        share=group_share(groups, num_groups),
    )


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
        signs = jax.random.rademacher(key, (-(-count // size) * size,), jnp.float32)
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
    sketches: np.ndarray, data: Batch, groups: np.ndarray, num_groups: int, items: int
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
    for members in _members(groups, num_groups):
        chosen, weights = pursue(np.asarray(sketches, np.float64)[members], items)
        rows.append(members[chosen])
        mass.append(weights / len(members))
    return _from_rows(data, np.stack(rows), np.stack(mass), group_share(groups, num_groups))
