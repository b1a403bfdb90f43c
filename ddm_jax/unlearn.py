"""Forget groups of data from a trained network with the synset alone.

Nothing here reads the training data: what the items leave of the groups' gradients is in the state,
where it is corrected. What is reached is a network that behaves like one retrained
without the groups, as far as the measures of `metrics.forgetting` can see; it is no proof that
nothing of them is left in the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ddm_jax.checks import check_number, require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.masks import check_masks
from ddm_jax.online import (
    explained_outputs,
    make_begin,
    make_finetune,
    make_parts,
    trajectory_point,
)
from ddm_jax.rates import with_momentum
from ddm_jax.synset import background_share
from ddm_jax.types import Array, Batch, Params, Synset, Task
from ddm_jax.updates import UpdateSettings, pace_of, settled, update_rule

ABSENT = 0.01  # of a class left: it is gone
CAREFUL = 0.05  # of the stable rate, where a class goes as a whole
FIRST = 2.0  # times that, for the parameters of that class alone
MOST = 16.0  # times what the updates do: nothing is forgotten further


def make_forget(
    task: Task,
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    weight_decay: float = 0.0,
    batch: int | None = None,
    amount: float = 1.0,
    residual: Params | None = None,
) -> Callable[[Params, Params, Synset, Array], Params]:
    """Make `forget(params, start, synset, keep [K]) -> params`, which traces whole.

    `params` is the trained network, `start` where the updates u of `online.make_finetune`
    ("retain") begin, and 1 keeps every group. Where something of every class stays:

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
            `calibrated_amount` says how far retraining goes.
        residual: as of `online.make_finetune`; where a class is gone it is left out.

    Raises:
        ValueError: for an amount that is not positive and finite.
    """
    check_number("amount", amount, above=0)
    finetune, whole = (
        make_finetune(
            task,
            steps=steps,
            optimizer=optimizer,
            weight_decay=weight_decay,
            batch=batch,
            residual=left,
        )
        for left in (None, residual)
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
            batch=batch,
        )
        return finetune(narrow(start, synset, factor), synset, factor)

    def forget(params: Params, start: Params, synset: Synset, keep: Array) -> Params:
        def difference(relabelled: Synset, factor: Array) -> Params:
            moved = whole(start, relabelled, factor)
            drift = whole(start, synset, jnp.ones_like(factor))
            return jax.tree.map(lambda p, m, d: p + amount * (m - d), params, moved, drift)

        if task.targets != "distribution":
            return difference(synset, keep)
        gone = classes_gone(class_frequency(synset), keep)
        relabelled, factor = relabel_forgotten(task, params, synset, keep)
        return lax.cond(
            jnp.any(gone),
            lambda: without_class(params, start, relabelled, factor, gone),
            lambda: difference(relabelled, factor),
        )

    return forget


class Forgotten(NamedTuple):
    """A network without some groups."""

    params: Params
    careful: bool  # a class went as a whole: the update itself was taken, and no `amount` of it


def make_forget_groups(task: Task, state: Any, update: UpdateSettings) -> Callable[..., Forgotten]:
    """Make `forget(keep [K], amount=1.0) -> Forgotten`, with a distilled run and its updates.

    `make_forget` with the rate and the start that the run's own updates have, at a constant rate.
    It is compiled at the first call, for any groups and amount.

    Args:
        state: of `make_ddm(...).fit`, or a card's.
        update: of `tune`, or a card's.

    Raises:
        ValueError: for updates of the kind "forget", which are no difference; (when called) for
            masks that keep nothing or do not fit, or as `make_forget`.
    """
    if update.update != "retain":
        raise ValueError(
            f"update={update.update!r}; groups are forgotten by the difference of two updates of "
            "the kind 'retain' (--set online.update=retain)"
        )
    # Deflated steps go far, and what forgets goes carefully.
    online = settled(update)._replace(schedule="constant")
    if online.optimizer == "deflated":
        online = online._replace(optimizer=None)
    synset, decay = state.synset, state.weight_decay
    trained = trajectory_point(state.checkpoints, 0.0)
    begin = make_begin(online, make_parts(task))

    def beginning(rewind: float) -> tuple[Any, ...]:
        start, moments = trajectory_point(state.checkpoints, rewind), state.second_moments
        moments = None if moments is None else trajectory_point(moments, rewind)
        taken, stable = begin(
            start, synset, decay, moments, state.decoupled_decay, trained if rewind else None
        )
        rate: Any = online.learning_rate
        if stable is not None:
            rate = stable * with_momentum(online.momentum)
        return start, rate, taken.preconditioner, taken.decoupled_decay

    usual = beginning(online.rewind)

    @compiled
    def moved(residual: Params | None, rule: Any, *at: Any) -> Params:
        rate, *rest = rule
        return make_forget(
            task,
            steps=online.steps,
            optimizer=update_rule(pace_of(online, rate), *rest),
            weight_decay=float(decay),
            batch=online.batch,
            residual=residual,
        )(*at)

    def forget(keep: Any, amount: float = 1.0) -> Forgotten:
        check_number("amount", amount, above=0)
        there = synset.background is not None
        masks = np.atleast_2d(keep)
        if len(masks) != 1:
            raise ValueError(f"keep has shape {masks.shape}; one network forgets, pass [K]")
        keep = check_masks(masks, len(synset.share), background=there)[0]
        careful, rewind = 1.0, online.rewind
        if task.targets == "distribution":  # of numbers, labels, documents no class can be gone
            careful, rewind = where_to_start(synset, keep, 1.0, online.rewind)
        start, rate, *rest = usual if careful == 1.0 else beginning(rewind)
        # Arguments: K networks as constants of a program would be compiled into it.
        params = moved(state.residual, (careful * rate, *rest), trained, start, synset, keep)
        if careful == 1.0:
            params = along(trained, params, amount)
        return Forgotten(params, careful != 1.0)

    return forget


def forget_groups(
    task: Task, state: Any, keep: Any, update: UpdateSettings, amount: float = 1.0
) -> Forgotten:
    """Forget what `keep` [K] leaves out: `make_forget_groups(task, state, update)(keep, amount)`.

    Raises:
        ValueError: as `make_forget_groups`.
    """
    return make_forget_groups(task, state, update)(keep, amount)


def along(params: Params, moved: Params, amount: Any) -> Params:
    """The point `amount` times as far from `params` as `moved`."""
    return jax.tree.map(lambda p, m: (p + amount * (m - p)).astype(p.dtype), params, moved)


def calibrated_amount(
    task: Task, params: Params, moved: Sequence[Params], query: Batch, retrained: Any
) -> float:
    """How far to forget, from what retraining without each of some groups did.

    For a group g the amount is where the network that forgot it has moved as far as retraining,
    along the effects t of retraining:

        sum_q t_gq (f_q(params + amount_g (moved_g - params)) - f_q(params)) = sum_q t_gq t_gq

    found by bisection, for outputs do not change in proportion to the amount; `t t` is taken of
    different seeds, whose noise is not the same. What comes back is the median over groups: one
    that the network knew by heart does not speak for all. Groups say nothing that retraining did
    not move, or whose network diverged or moved against retraining; one that no amount up to MOST
    moves as far counts as MOST. Where none says anything the amount is one.

    Args:
        moved: the networks that forgot a group each, at an amount of one: `make_forget`.
        query: Q examples.
        retrained: change of their outputs by retraining without each, of S seeds, [S, G, Q].

    Raises:
        ValueError: for shapes that do not fit, one seed, or effects that are not finite.
    """
    retrained = np.asarray(retrained, float)
    fits = retrained.ndim == 3 and retrained.shape[1] == len(moved) and retrained.size
    if not fits or len(retrained) < 2:
        raise ValueError(
            f"retrained has shape {retrained.shape}; it must be [S, {len(moved)}, Q], of two seeds "
            "or more"
        )
    if not np.isfinite(retrained).all():
        raise ValueError("the effects hold NaN or infinity")
    before = np.asarray(explained_outputs(task, params, query), float)
    if before.shape != retrained.shape[2:]:
        raise ValueError(f"{before.size} outputs, and effects of {retrained.shape[2]} queries")
    seeds, found = len(retrained), []
    for each, effect in zip(moved, np.moveaxis(retrained, 1, 0), strict=True):
        mean = effect.mean(0)
        wanted = (seeds**2 * (mean**2).sum() - (effect**2).sum()) / (seeds * (seeds - 1))

        def reached(amount: float, each: Params = each, mean: np.ndarray = mean) -> float:
            there = np.asarray(explained_outputs(task, along(params, each, amount), query), float)
            # A network that is lost is too far.
            return float(mean @ (there - before)) if np.isfinite(there).all() else np.inf

        if wanted <= 0 or not 0 < reached(1.0) < np.inf:
            continue
        low, high = 0.0, MOST
        while high - low > 0.01 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if reached(middle) < wanted else (low, middle)
        found.append((low + high) / 2)
    return float(np.median(found)) if found else 1.0


def relabel_forgotten(
    task: Task, params: Params, synset: Synset, keep: Array
) -> tuple[Synset, Array]:
    """The synset and the factor of each group [K] that `make_forget` descends on."""
    frequency = class_frequency(synset)
    absent = classes_gone(frequency, keep)
    stays = (1 - keep) * absent[jnp.argmax(frequency[: len(keep)], 1)]  # [K]
    logits = require_distributions(task, "forgetting a class")(params, synset.items.x)
    corrected = jax.nn.log_softmax(jnp.where(absent, -1e4, jax.nn.log_softmax(logits)))
    changed = jnp.append(stays > 0, False)[synset.group]  # the background is group -1
    y = jnp.where(changed[:, None], corrected, synset.items.y)
    mass = jnp.where(changed, jnp.maximum(synset.mass, 0.0), synset.mass)
    return synset._replace(items=synset.items._replace(y=y), mass=mass), keep + stays


def own_parameters(task: Task, params: Params, synset: Synset, classes: Array) -> Params:
    """1 for each parameter that acts on the outputs of the given classes [C] alone, else 0.

    As a class's own column and bias of a last linear layer. They are found by what they do, for
    any network: on the synset's items, the gradient of a random sum of the other outputs is exactly
    zero there, that of these outputs is not. All 0 for a network whose outputs share everything,
    such as one that ends in a normalisation over classes.
    """
    apply, x = require_distributions(task, "forgetting a class"), synset.items.x
    weights = jax.random.normal(jax.random.key(0), synset.items.y.shape, jnp.float32)

    def slope(outputs: Array) -> Params:
        return jax.grad(lambda p: jnp.sum(apply(p, x) * weights * outputs))(params)

    ours, others = slope(1.0 * classes), slope(1.0 - classes)
    return jax.tree.map(lambda a, b: 1.0 * ((a != 0) & (b == 0)), ours, others)


def where_to_start(synset: Synset, keep: Any, rate: float, rewind: float) -> tuple[float, float]:
    """The learning rate and the rewind (`online.trajectory_point`) to forget with.

    Those given, where every class stays. Where one goes as a whole its items are all wrong at
    first, with a curvature near zero that rises on the way: the rate that is stable at the trained
    network (`online.stable_rate`) is not there, and a network of 60,000 MNIST images is lost at it.
    CAREFUL of it from the trained network itself lands nearest to retraining.
    """
    gone = classes_gone(class_frequency(synset), jnp.asarray(keep))
    return (CAREFUL * rate, 0.0) if bool(jnp.any(gone)) else (rate, rewind)


def class_frequency(synset: Synset) -> Array:
    """How much of each class the items of each group and the background stand for, [K + 1, C]."""
    labels = jax.nn.softmax(synset.items.y)
    share = jnp.append(synset.share, background_share(synset))
    weights = share[synset.group] * jnp.maximum(synset.mass, 0.0)
    groups = jnp.where(synset.group < 0, len(synset.share), synset.group)
    return jax.ops.segment_sum(weights[:, None] * labels, groups, len(share))


def classes_gone(frequency: Array, keep: Array) -> Array:
    """Which classes [C] were there and are left to less than ABSENT, of frequencies [K + 1, C]."""
    whole = jnp.sum(frequency, 0)
    return (whole > 0) & (jnp.append(keep, 1.0) @ frequency < ABSENT * whole)
