"""Data quality: which training points are mislabelled, odd, redundant or harmful. Scores [N].

Larger is worse everywhere, whatever the units: the scores rank points for a look at them. None of
them sees which points are really bad.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from scipy.stats import rankdata

from ddm_jax.estimators.complexity_gap import wide_network_kernel
from ddm_jax.estimators.retraining import Train
from ddm_jax.parallel import in_batches
from ddm_jax.types import Array, Batch, Task, TrainRun, take

PLANTED = 0.1  # of the labels, flipped on purpose to learn what a wrong one looks like
BLOCK = 10_000  # points of one kernel: 400 MB a matrix
DAMPING = 0.03  # of the kernel, in units of its diagonal
LEFT_OUT = 0.2  # of the points at most, from the kernel's training, as suspects
ROUNDS = 3  # of leaving suspects out
TINY = 1e-6
UNSEEN = 0.2  # of a point, for a pair of classes that none of the suspects shows


def mislabelled(task: Task, train: Train, run: TrainRun, data: Batch, key: Array) -> np.ndarray:
    """How suspect each label is, [N]: the log odds that it is wrong, for a tenth of wrong ones.

    Which sign of a wrong label can be trusted depends on the data: on digits a kernel that knows
    no network, on colour photographs also the trained network's own loss. So a tenth of the labels
    is flipped on purpose, one more network is trained on that, and a logistic regression learns
    from the flips how much each sign (`label_signs`) is worth. Labels are flipped the way the most
    suspect ones seem to have been: from the class that the network names instead to the one given.
    The planted flips take no part in the scores, which are of the network given.

    Args:
        train: `train(key, data, weights [N]) -> TrainRun`, as it trained `run`.
        data: labels one-hot, of two classes or more.
        key: fixes the flips and the further network.

    Raises:
        ValueError: for fewer than two classes or ten points, or targets that are no classes.
    """
    size, classes = _check_classes(data.x, data.y)
    flip_key, train_key = jax.random.split(key)
    signs = label_signs(task, run, data)
    labels = np.asarray(data.y).argmax(1)
    count = max(round(PLANTED * size), 1)
    suspects = np.argsort(-signs.mean(1), kind="stable")[:count]
    confusion = np.full((classes, classes), UNSEEN)
    np.add.at(confusion, (_second_guess(task, run, data)[suspects], labels[suspects]), 1.0)
    np.fill_diagonal(confusion, 0.0)
    draw = np.random.default_rng(np.asarray(jax.random.bits(flip_key, (4,), "uint32")))
    planted = np.isin(np.arange(size), draw.permutation(size)[:count])
    flipped = labels.copy()
    for point in np.flatnonzero(planted):
        likely = confusion[labels[point]]
        flipped[point] = draw.choice(classes, p=likely / likely.sum())
    changed = Batch(data.x, jnp.eye(classes)[flipped])
    again = jax.jit(train)(train_key, changed, jnp.ones(size))

    from sklearn.linear_model import LogisticRegression

    learnt = LogisticRegression().fit(label_signs(task, again, changed), planted)
    return learnt.decision_function(signs)


def label_signs(task: Task, run: TrainRun, data: Batch) -> np.ndarray:
    """Two signs that a label is wrong, `[N, 2]`, each of mean 0 and deviation 1.

    By its rank, the loss of the trained network; and minus `kernel_margins`.
    """
    losses = np.asarray(in_batches(task.loss)(run.params, data))
    margins = kernel_margins(data.x, data.y)
    signs = np.stack([rankdata(losses), -margins], 1)
    return (signs - signs.mean(0)) / np.maximum(signs.std(0), TINY)


def kernel_margins(x: Any, y: Any) -> np.ndarray:
    """By how much a kernel that has not seen point i prefers its label to all others, [N].

    Ridge regression of the labels with `wide_network_kernel`, predicting each point from the
    others, in closed form: `f_i = y_i - (A y)_i / A_ii` with `A = (H + damping)^-1`; the margin is
    the label's output less the largest other, about -1 to 1. Wrong labels also mislead the kernel
    about others, so ROUNDS times the points whose label it contradicts, LEFT_OUT of all at most,
    are left out of its training and all points are judged again. On points dealt into blocks of
    BLOCK at most, each with its own kernel: of 4,000 ten seconds on one core, of 10,000 two minutes
    and 2 GB. Where few labels are wrong, larger blocks find more of them.

    Args:
        x: inputs [N, ...].
        y: labels one-hot [N, C].

    Raises:
        ValueError: for fewer than two classes or ten points, targets that are no classes, or
            inputs that are not finite.
    """
    size, _ = _check_classes(x, y)
    _checked(x, np.asarray(y).argmax(1))
    blocks = np.arange(size) % -(-size // BLOCK)
    x, y = np.asarray(x), np.asarray(y)
    margins = np.empty(size)
    for block in range(blocks.max() + 1):
        inside = blocks == block
        margins[inside] = _kernel_margins(x[inside], y[inside])
    return margins


def _check_classes(x: Any, y: Any) -> tuple[int, int]:
    """The numbers of points and of classes."""
    size, classes = len(x), np.shape(y)[-1] if np.ndim(y) == 2 else 0
    if classes < 2 or size < 10 or len(y) != size:
        raise ValueError(
            f"{size} points with targets of shape {np.shape(y)}; at least 10 points are "
            "needed, with targets [N, C] of at least two classes"
        )
    return size, classes


@jax.jit
def _kernel_margins(x: Array, y: Array) -> Array:
    kernel = wide_network_kernel(x)
    size = len(x)
    index = jnp.arange(size)
    most = max(int(LEFT_OUT * size), 1)

    def margins(trained: Array) -> Array:
        # A point with a huge damping has no say in the others, and they predict it all the same.
        damped = kernel + jnp.diag(jnp.where(trained, 0.5 * DAMPING, 1e4))
        inverse = cho_solve(cho_factor(damped), jnp.eye(size))
        share = jnp.sum(y * trained[:, None], 0) / jnp.sum(trained)
        away = y - share
        predicted = y - (inverse @ away) / jnp.diag(inverse)[:, None]
        own = jnp.sum(jnp.where(y > 0, predicted, 0), 1)
        return own - jnp.max(jnp.where(y > 0, -jnp.inf, predicted), 1)

    def clean(_: int, found: Array) -> Array:
        bound = jnp.minimum(jnp.sort(found)[most], 0.0)
        return margins(found >= bound)

    return jax.lax.fori_loop(0, ROUNDS, clean, margins(index >= 0))


def _second_guess(task: Task, run: TrainRun, data: Batch) -> np.ndarray:
    """The class other than the given one that is likeliest over the trajectory, [N]."""
    apply = in_batches(task.apply)
    points = jax.tree.leaves(run.checkpoints)[0].shape[0]
    likely = sum(
        np.asarray(jax.nn.softmax(apply(take(run.checkpoints, point), data.x)))
        for point in range(points)
    )
    return np.where(np.asarray(data.y) > 0, -1.0, likely).argmax(1)


def low_quality(features: Any, labels: Any, neighbours: int = 10) -> np.ndarray:
    """How odd each point is among those with its label, [N], at least 0.

    `hypot(max(z_far, 0), z_sharp)`, in units of the typical deviation from the class's median.
    z_far: the log of the mean distance to `neighbours` others of the class (fewer where it is
    smaller), high for what is noisy, occluded or of no class. z_sharp, for images: the log of the
    mean squared difference of neighbouring pixels, low for what is blurred, high for noise. A
    point that is alone with its label is infinitely odd.

    Args:
        features: images [N, H, W] or [N, H, W, D], or vectors [N, F], as a network's features.
        labels: [N] integers.

    Raises:
        ValueError: for lengths that differ, features that are not finite or no neighbours.
    """
    flat, labels = _checked(features, labels)
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}; it must be at least 1")
    far = _distances(flat, labels, neighbours).mean(1)
    odd = np.maximum(_deviation(np.log(far + TINY), labels), 0.0)
    images = np.asarray(features)
    if images.ndim >= 3:
        steps = sum(np.square(np.diff(images, axis=axis)).mean((1, 2)) for axis in (1, 2))
        sharpness = np.log(steps.reshape(len(images), -1).mean(1) + TINY)
        odd = np.hypot(odd, _deviation(sharpness, labels))
    return odd


def redundant(features: Any, labels: Any) -> np.ndarray:
    """How near each point is to another with its label, [N]: minus the distance to the nearest.

    Zero for an exact duplicate, negative for all others.

    Raises:
        ValueError: for lengths that differ or features that are not finite.
    """
    flat, labels = _checked(features, labels)
    return -_distances(flat, labels, 1)[:, 0]


def harmful(points: Any, lower_is_better: bool = False) -> np.ndarray:
    """How much each point lowers the mean output of the queries, [N].

    Args:
        points: [N, Q], as of `points.make_point_influence`; the queries should be others than
            those on which the result is judged.
        lower_is_better: where the output is a loss.
    """
    mean = np.asarray(points, np.float64).mean(1)
    return mean if lower_is_better else -mean


def _deviation(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Deviation from the median of the class, in units of the typical one; inf where not finite."""
    away = np.full(len(values), np.inf)
    finite = np.isfinite(values)
    for label in np.unique(labels[finite]):
        inside = finite & (labels == label)
        away[inside] = values[inside] - np.median(values[inside])
    typical = np.median(np.abs(away[finite])) if finite.any() else 0.0
    return away / max(float(typical), TINY)


def _checked(features: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features), np.asarray(labels)
    if labels.ndim != 1 or len(features) != len(labels):
        raise ValueError(
            f"features have shape {features.shape} and labels {labels.shape}; they must be "
            "[N, ...] and [N]"
        )
    flat = features.reshape(len(features), -1)
    wrong = np.flatnonzero(~np.isfinite(flat).all(1))
    if wrong.size:
        raise ValueError(f"{wrong.size} features hold NaN or infinity, the first is {wrong[0]}")
    return flat, labels


def _distances(flat: np.ndarray, labels: np.ndarray, neighbours: int) -> np.ndarray:
    """Distances [N, neighbours] to the nearest other points of the same class; inf where none."""
    from sklearn.neighbors import NearestNeighbors

    found = np.full((len(flat), neighbours), np.inf)
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        count = min(neighbours, len(inside) - 1)
        if count:
            near = NearestNeighbors(n_neighbors=count).fit(flat[inside]).kneighbors()[0]
            found[inside, :count] = near
            found[inside, count:] = near[:, -1:]
    return found
