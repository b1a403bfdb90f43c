"""Which labels can be trusted, by networks that are trained for it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from ddm_jax.checks import check_integer, require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import device_vmap, in_batches
from ddm_jax.train import Train
from ddm_jax.types import Array, Batch, Task, TrainRun, length, take
from ddm_jax.values._contract import Values, make_values
from ddm_jax.values.kernel import kernel_margins

PLANTED = 0.1  # of the labels, flipped on purpose to learn what a wrong one looks like
TINY = 1e-6
UNSEEN = 0.2  # of a point, for a pair of classes that none of the suspects shows


def data_oob(task: Task, train: Train, *, models: int = 20) -> Values:
    """Make the value of Kwon & Zou, 2023, arXiv 2304.07718, eq. 3.

    The mean, over the networks trained on bootstrap samples without point i, of whether they
    tell it right. A sample's counts are the training weights. A point that is in all samples
    gets the mean value of the others.

    Raises:
        ValueError: for fewer than two models, or a task whose targets are no classes.
    """
    check_integer("models", models, 2)
    apply = require_distributions(task, "data_oob")

    def one(key: Array, data: Batch) -> tuple[Array, Array]:
        draw_key, train_key = jax.random.split(key)
        size = length(data)
        drawn = jax.random.randint(draw_key, (size,), 0, size, jnp.int32)
        counts = jnp.zeros(size, jnp.float32).at[drawn].add(1.0)
        params = train(train_key, data, counts).params
        right = jnp.argmax(apply(params, data.x), -1) == jnp.argmax(data.y, -1)
        outside = counts == 0
        return (right & outside).astype(jnp.float32), outside.astype(jnp.float32)

    every = device_vmap(one)

    def values(key: Array, run: TrainRun, data: Batch) -> Array:
        right, outside = every(jax.random.split(key, models), data)
        seen = outside.sum(0)
        mean = right.sum() / jnp.maximum(outside.sum(), 1.0)
        return jnp.where(seen > 0, right.sum(0) / jnp.maximum(seen, 1.0), mean)

    return make_values(task, values)


def label_quality(task: Task, train: Train) -> Values:
    """Make the value: the log odds that a label is right, for a tenth of wrong ones.

    Which sign of a wrong label can be trusted depends on the data: on digits a kernel that knows
    no network, on colour photographs also the trained network's own loss. So a tenth of the labels
    is flipped on purpose, one more network is trained on that, and a logistic regression learns
    from the flips how much each sign (`label_signs`) is worth. Labels are flipped the way the most
    suspect ones seem to have been: from the class that the network names instead to the one given.
    The planted flips take no part in the values, which are of the network given. The key fixes the
    flips and the further network.

    Args:
        train: `train(key, data, weights [N]) -> TrainRun`, as it trained the run.

    Raises:
        ValueError: for a task whose targets are no classes, or (when called) fewer than ten points.
    """
    require_distributions(task, "label_quality")
    retrain = compiled(train)

    def values(key: Array, run: TrainRun, data: Batch) -> np.ndarray:
        from sklearn.linear_model import LogisticRegression

        size, classes = data.y.shape
        flip_key, train_key = jax.random.split(key)
        signs = label_signs(task, run, data)
        labels = np.asarray(data.y).argmax(1)
        count = max(round(PLANTED * size), 1)
        suspects = np.argsort(signs.mean(1), kind="stable")[:count]
        confusion = np.full((classes, classes), UNSEEN)
        np.add.at(confusion, (_second_guess(task, run, data)[suspects], labels[suspects]), 1.0)
        np.fill_diagonal(confusion, 0.0)
        draw = np.random.default_rng(np.asarray(jax.random.bits(flip_key, (4,), "uint32")))
        planted = np.isin(np.arange(size), draw.permutation(size)[:count])
        flipped = labels.copy()
        for point in np.flatnonzero(planted):
            likely = confusion[labels[point]]
            flipped[point] = draw.choice(classes, p=likely / likely.sum())
        changed = Batch(data.x, jnp.eye(classes, dtype=data.y.dtype)[flipped])
        again = retrain(train_key, changed, jnp.ones(size))
        learnt = LogisticRegression().fit(label_signs(task, again, changed), ~planted)
        return learnt.decision_function(signs)

    return make_values(task, values, need=10)


def label_signs(task: Task, run: TrainRun, data: Batch) -> np.ndarray:
    """Two signs that a label is right, `[N, 2]`, each of mean 0 and deviation 1.

    By its rank, minus the loss of the trained network; and `kernel_margins`.
    """
    losses = np.asarray(in_batches(task.loss)(run.params, data), np.float64)
    margins = kernel_margins(task)(run.key, run, data)
    signs = np.stack([rankdata(-losses), margins], 1)
    return (signs - signs.mean(0)) / np.maximum(signs.std(0), TINY)


def _second_guess(task: Task, run: TrainRun, data: Batch) -> np.ndarray:
    """The class other than the given one that is likeliest over the trajectory, [N]."""
    apply = in_batches(require_distributions(task, "label_quality"))
    likely = sum(
        np.asarray(jax.nn.softmax(apply(take(run.checkpoints, point), data.x)))
        for point in range(length(run.checkpoints))
    )
    return np.where(np.asarray(data.y) > 0, -1.0, likely).argmax(1)
