"""Forget groups of data from a trained network with the synset alone, and how well it forgot.

Nothing here reads the training data. What is reached is a network that behaves like one retrained
without the groups, as far as the measures below can see; it is no proof that nothing of them is
left in the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ddm_jax.loo import make_finetune
from ddm_jax.types import Array, Params, Synset, Task

ABSENT = 0.01  # of a class left: it is gone
CAREFUL = 0.05  # of the stable rate, where a class goes as a whole
FIRST = 2.0  # times that, for the parameters of that class alone
BINS = 20  # of the histograms of KLOM
FLOOR = 1e-5  # least probability of a bin


def make_forget(
    task: Task,
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    weight_decay: float = 0.0,
    step_items: int | None = None,
    amount: float = 1.0,
) -> Callable[[Params, Params, Synset, Array], Params]:
    """Make `forget(params, start, synset, keep [K]) -> params`, which traces whole.

    `params` is the trained network, `start` where the updates u of `loo.make_finetune` ("retain")
    begin, and 1 keeps every group. Where something of every class stays:

        params + amount (u(start, synset, keep) - u(start, synset, 1))

    What the updates do when nothing is gone, of a synset that is no full stand-in for the data,
    thereby cancels, as it does in a score; what is left is what the groups' absence does.

    Kept groups do not tell the network that a class is gone as a whole: on them it is right
    already. So where less than ABSENT of a class is left, the items of the forgotten groups of
    that class stay, relabelled by

        softmax(log p(x) + log left),   left_c = 0 for a class that is gone, else 1

    the trained network's own second choice: a network that never saw a class does not name it.
    At first only those parameters move that reach no other class's output (`own_parameters`): the
    network stops naming the class and says all else as before, for any input, which no few items
    could ensure of the others. Then all move, as they do from the first in a network that has no
    such parameters. Each takes `steps`, the first at FIRST times the rate. The result is the
    update itself, no difference.

    Needs no training data. Settings are those of `make_finetune`, with the rate and the start of
    `where_to_start`.

    Args:
        amount: how far to go, positive. Few steps undo only a part of what the groups did;
            `calibrated_amount` says by how much.

    Raises:
        ValueError: for an amount that is not positive.
    """
    if not amount > 0:
        raise ValueError(f"amount={amount}; it must be positive")
    finetune = make_finetune(
        task,
        steps=steps,
        optimizer=optimizer,
        weight_decay=weight_decay,
        step_items=step_items,
    )

    def without_class(params: Params, start: Params, synset: Synset, factor: Array, gone: Array):
        own = own_parameters(task, params, synset, gone)
        none = ~jnp.any(jnp.array([jnp.any(leaf != 0) for leaf in jax.tree.leaves(own)]))
        own = jax.tree.map(lambda leaf: jnp.where(none, 1.0, leaf), own)
        narrow = make_finetune(
            task,
            steps=steps,
            optimizer=optax.chain(
                optimizer,
                optax.stateless(
                    lambda change, _: jax.tree.map(lambda c, o: FIRST * o * c, change, own)
                ),
            ),
            weight_decay=weight_decay,
            step_items=step_items,
        )
        return finetune(narrow(start, synset, factor), synset, factor)

    def forget(params: Params, start: Params, synset: Synset, keep: Array) -> Params:
        gone = classes_gone(class_frequency(synset), keep)
        relabelled, factor = relabel_forgotten(task, params, synset, keep)

        def difference() -> Params:
            moved = finetune(start, relabelled, factor)
            drift = finetune(start, synset, jnp.ones_like(factor))
            return jax.tree.map(lambda p, m, d: p + amount * (m - d), params, moved, drift)

        return lax.cond(
            jnp.any(gone),
            lambda: without_class(params, start, relabelled, factor, gone),
            difference,
        )

    return forget


def calibrated_amount(estimated: Any, retrained: Any) -> float:
    """How far to forget, from what retraining without some groups did: the amount with which

        sum_{k q} t_kq (t_kq - amount estimated_kq) = 0

    for the effects t of retraining: along them the network then goes as far as retraining goes.
    `t t` is taken of different seeds, whose noise is not the same, and so are errors of the
    estimates no reason to go less far, as in a regression on them. One where it is not positive:
    such estimates say nothing.

    Args:
        estimated: effects of some groups [G, Q], as of `loo.leave_one_out`.
        retrained: the same by retraining, for S seeds of two or more, [S, G, Q].

    Raises:
        ValueError: for shapes that do not fit, one seed, or effects that are not finite.
    """
    estimated, retrained = np.asarray(estimated, float), np.asarray(retrained, float)
    if retrained.shape[1:] != estimated.shape or len(retrained) < 2 or not estimated.size:
        raise ValueError(
            f"estimated effects have shape {estimated.shape} and retrained ones "
            f"{retrained.shape}; they must be [G, Q] and [S, G, Q], of two seeds or more"
        )
    if not (np.isfinite(estimated).all() and np.isfinite(retrained).all()):
        raise ValueError("the effects hold NaN or infinity")
    seeds, mean = len(retrained), retrained.mean(0)
    pairs = (seeds**2 * (mean**2).sum() - (retrained**2).sum()) / (seeds * (seeds - 1))
    along = (mean * estimated).sum()
    return float(pairs / along) if pairs > 0 and along > 0 else 1.0


def relabel_forgotten(
    task: Task, params: Params, synset: Synset, keep: Array
) -> tuple[Synset, Array]:
    """The synset and the factor of each group [K] that `make_forget` descends on."""
    frequency = class_frequency(synset)
    absent = classes_gone(frequency, keep)
    stays = (1 - keep) * absent[jnp.argmax(frequency, 1)]  # [K]
    flat = synset.x.reshape(-1, *synset.x.shape[2:])
    logits = task.apply(params, flat).reshape(synset.y.shape)
    corrected = jax.nn.log_softmax(jnp.where(absent, -1e4, jax.nn.log_softmax(logits)))
    changed = stays[:, None] > 0
    y = jnp.where(changed[..., None], corrected, synset.y)
    mass = jnp.where(changed, jnp.maximum(synset.mass, 0.0), synset.mass)
    return synset._replace(y=y, mass=mass), keep + stays


def own_parameters(task: Task, params: Params, synset: Synset, classes: Array) -> Params:
    """1 for each parameter that acts on the outputs of the given classes [C] alone, else 0.

    As a class's own column and bias of a last linear layer. They are found by what they do, for
    any network: on the synset's items, the gradient of a random sum of the other outputs is exactly
    zero there, that of these outputs is not. All 0 for a network whose outputs share everything,
    such as one that ends in a normalisation over classes.
    """
    flat = synset.x.reshape(-1, *synset.x.shape[2:])
    weights = jax.random.normal(jax.random.key(0), (len(flat), len(classes)))

    def slope(outputs: Array) -> Params:
        return jax.grad(lambda p: jnp.sum(task.apply(p, flat) * weights * outputs))(params)

    ours, others = slope(1.0 * classes), slope(1.0 - classes)
    return jax.tree.map(lambda a, b: 1.0 * ((a != 0) & (b == 0)), ours, others)


def where_to_start(synset: Synset, keep: Any, rate: float, rewind: float) -> tuple[float, float]:
    """The learning rate and the rewind (`loo.trajectory_point`) to forget with.

    Those given, where every class stays. Where one goes as a whole its items are all wrong at
    first, with a curvature near zero that rises on the way: the rate that is stable at the trained
    network (`loo.stable_rate`) is not there, and a network of 60,000 MNIST images is lost at it.
    CAREFUL of it from the trained network itself lands nearest to retraining.
    """
    gone = classes_gone(class_frequency(synset), jnp.asarray(keep))
    return (CAREFUL * rate, 0.0) if bool(jnp.any(gone)) else (rate, rewind)


def class_frequency(synset: Synset) -> Array:
    """How much of each class the items of each group stand for, [K, C]."""
    labels = jax.nn.softmax(synset.y)  # [K, M, C]
    weights = synset.share[:, None] * jnp.maximum(synset.mass, 0.0)
    return jnp.einsum("km,kmc->kc", weights, labels)


def classes_gone(frequency: Array, keep: Array) -> Array:
    """Which classes [C] were there and are left to less than ABSENT, for frequencies [K, C]."""
    whole = jnp.sum(frequency, 0)
    return (whole > 0) & (keep @ frequency < ABSENT * whole)


class Unlearned(NamedTuple):
    """How a network, or the mean of several, answers after forgetting; accuracies in [0, 1]."""

    forgotten: float  # accuracy on the forgotten training points
    kept: float  # accuracy on the kept ones
    test: float
    membership: float  # AUC of telling forgotten points from test points by their loss


def judge(losses: Any, right: Any, forgotten: Any, test_losses: Any, test_right: Any) -> Unlearned:
    """Measure one network from its loss and correctness on each training and test point.

    Args:
        losses, right: [N], of the training points.
        forgotten: [N] bool.
        test_losses, test_right: of test points, [Q] each; of losses and of correctness they may be
            others, as those of the forgotten classes alone for the attack.

    Raises:
        ValueError: where nothing, or everything, was forgotten.
    """
    forgotten = np.asarray(forgotten, bool)
    if not forgotten.any() or forgotten.all():
        raise ValueError("forgotten must name some of the training points, and not all")
    right = np.asarray(right, np.float64)
    return Unlearned(
        forgotten=float(right[forgotten].mean()),
        kept=float(right[~forgotten].mean()),
        test=float(np.mean(test_right)),
        membership=membership_auc(np.asarray(losses)[forgotten], test_losses),
    )


def membership_auc(member_losses: Any, other_losses: Any) -> float:
    """AUC of a loss-threshold attack: a point with a lower loss is said to be a member.

    0.5: they cannot be told apart. Yeom et al., "Privacy risk in machine learning", 2018, arXiv
    1709.01604. Compare it with the same attack on a network that was retrained without the
    points: hard points are no members and have a high loss all the same.
    """
    from sklearn.metrics import roc_auc_score

    members, others = np.asarray(member_losses), np.asarray(other_losses)
    truth = np.r_[np.ones(len(members)), np.zeros(len(others))]
    return float(roc_auc_score(truth, -np.r_[members, others]))


def klom(unlearned: Any, retrained: Any) -> np.ndarray:
    """KL divergence of margins: [Q], one for each point, over several networks of each kind.

    `KL(unlearned || retrained)` of the histograms of the margin over seeds, with BINS bins over the
    range of both. 0: indistinguishable. Georgiev et al., "Attribute-to-delete: machine unlearning
    via datamodel matching", 2024, arXiv 2410.23232. A few networks make it large already: print
    that of one half of the retrained networks against the other beside it.

    Args:
        unlearned, retrained: [seeds, Q] margins.

    Raises:
        ValueError: for shapes that do not fit, or margins that are not finite.
    """
    unlearned, retrained = np.asarray(unlearned, float), np.asarray(retrained, float)
    if unlearned.ndim != 2 or unlearned.shape[1:] != retrained.shape[1:]:
        raise ValueError(
            f"margins have shapes {unlearned.shape} and {retrained.shape}; they must be [seeds, Q] "
            "for the same Q"
        )
    for name, margins in (("unlearned", unlearned), ("retrained", retrained)):
        if not np.isfinite(margins).all():
            raise ValueError(f"some of the {name} margins are not finite: a network diverged")
    low = np.minimum(unlearned.min(0), retrained.min(0))
    width = np.maximum(np.maximum(unlearned.max(0), retrained.max(0)) - low, 1e-9)

    def histogram(margins: np.ndarray) -> np.ndarray:
        place = np.minimum(((margins - low) / width * BINS).astype(int), BINS - 1)
        counts = (place[:, :, None] == np.arange(BINS)).mean(0) + FLOOR
        return counts / counts.sum(1, keepdims=True)

    p, q = histogram(unlearned), histogram(retrained)
    return (p * np.log(p / q)).sum(1)
