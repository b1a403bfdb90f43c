"""Online: counterfactual networks from the trained one and the synset, for any subset of groups.

A *response* maps which groups are kept to outputs on queries:

    retraining: response(keep, key, data, groups, query)  = output(train(key, data, keep[groups]))
    ddm:        response(keep, params, synset, query)     = output(finetune(params, synset, keep))

and `leave_one_out(response, K)(*args) = response(1) - response(1 - e_k)` for every k at once.
Both runs of a difference share everything but the mask, so the drift of the fine-tune cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ddm_jax.gradients import flatten, hessian_products
from ddm_jax.matching import synset_batch
from ddm_jax.objectives import Output
from ddm_jax.parallel import chunked_vmap, device_vmap
from ddm_jax.pieces import value_and_gradient
from ddm_jax.types import Array, Batch, Params, Synset, Task, take

Finetune = Callable[[Params, Synset, Array], Params]
Response = Callable[..., Array]
UPDATES = ("retain", "forget")


def make_finetune(
    task: Task,
    *,
    update: str = "retain",
    steps: int,
    optimizer: optax.GradientTransformation,
    weight_decay: float = 0.0,
    step_items: int | None = None,
) -> Finetune:
    """Make `finetune(params, synset, keep [K]) -> params`, which traces whole.

    Each step follows a gradient made of the synset's groups:

    - "retain": descend on what is kept, `sum_k keep_k h_k / sum_k keep_k share_k +
      weight_decay * theta`, the synset's form of the training objective without the left-out
      groups. It repairs what forgetting alone would break.
    - "forget": descend on the reversed synsets of what is left out, `-sum_k (1 - keep_k) h_k`;
      the paper's literal update. Needs only the synsets of the left-out groups, and only a few
      small steps: it has no minimum.

    A step may take some of each group's items, all of them in turn (`deal_items`). Every mask
    meets the same items at the same step, so what they differ by is small and shared, and cancels
    in a difference of responses: a larger synset then costs no more online.

    Args:
        update: "retain" or "forget".
        steps: at least 0.
        optimizer: any optax optimiser, for example `optax.sgd(0.3, 0.9, nesterov=True)`.
        weight_decay: the training objective's; unused by "forget".
        step_items: how many items of each group a step takes, at least 1; None takes all.

    Raises:
        ValueError: for an unknown update, negative steps, or no items.
    """
    if update not in UPDATES:
        raise ValueError(f"unknown update {update!r}; choose one of {', '.join(UPDATES)}")
    if steps < 0:
        raise ValueError(f"steps={steps}; it must be at least 0")
    if step_items is not None and step_items < 1:
        raise ValueError(f"step_items={step_items}; a step takes at least 1 of each group")
    decay = weight_decay if update == "retain" else 0.0
    of_losses = value_and_gradient(lambda params, batch, mass: mass @ task.loss(params, batch))

    def finetune(params: Params, synset: Synset, keep: Array) -> Params:
        if keep.shape != synset.share.shape:
            raise ValueError(
                f"keep has shape {keep.shape}; a synset of {len(synset.share)} groups needs "
                f"{synset.share.shape}"
            )
        factor = keep / (keep @ synset.share) if update == "retain" else keep - 1.0
        batches, mass = synset_batches(synset, factor, step_items)

        def step(carry, turn: Array):
            params, state = carry
            batch, weights = take((batches, mass), turn)
            _, gradient = of_losses(params, batch, weights)
            slope = jax.tree.map(lambda g, p: g + decay * p, gradient, params)
            updates, state = optimizer.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), None

        turns = jnp.arange(steps) % len(mass)
        # Whoever differentiates through it keeps a network a step, and not what each step computed.
        return lax.scan(jax.checkpoint(step), (params, optimizer.init(params)), turns)[0][0]

    return finetune


def deal_items(synset: Synset, step_items: int | None) -> Synset:
    """Deal the M items of each group into B batches of m <= step_items: leaves `[B, K, m, ...]`.

    `B = ceil(M / step_items)` and `m = ceil(M / B)`. The heaviest items go round the batches
    first, there and back, and each group begins one batch further on, so that batches weigh
    alike. Masses are B times as large: a batch stands for the whole, and the mean of all batches
    is the synset.
    """
    groups, count = synset.mass.shape
    turns = -(-count // min(step_items or count, count))
    if turns == 1:
        return jax.tree.map(lambda leaf: leaf[None], synset)
    size = -(-count // turns)
    batch, group, slot = np.ogrid[:turns, :groups, :size]
    place = (batch - group) % turns
    rank = slot * turns + np.where(slot % 2, turns - 1 - place, place)  # [B, K, m]
    heaviest = jnp.argsort(-jnp.abs(synset.mass), 1)
    rows = heaviest[group, np.minimum(rank, count - 1)]
    x, y, mass = (leaf[group, rows] for leaf in (synset.x, synset.y, synset.mass))
    mass = jnp.where(rank < count, turns * mass, 0.0)
    return Synset(x, y, mass, jnp.broadcast_to(synset.share, (turns, groups)))


def synset_batches(synset: Synset, factor: Array, step_items: int | None) -> tuple[Batch, Array]:
    """The B batches of `deal_items` as examples `[B, K * m, ...]`, and the weight of each.

    A weight is `factor_k share_k mass_km`, for one factor a group.
    """
    dealt = deal_items(synset, step_items)
    turns = dealt.mass.shape[0]
    batches = synset_batch(
        dealt.x.reshape(turns, -1, *dealt.x.shape[3:]),
        dealt.y.reshape(turns, -1, dealt.y.shape[-1]),
    )
    return batches, ((factor * synset.share)[:, None] * dealt.mass).reshape(turns, -1)


def stable_rate(
    task: Task,
    params: Params,
    synset: Synset,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    step_items: int | None = None,
    iterations: int = 20,
) -> Array:
    """Half of the highest stable learning rate of Nesterov SGD on the whole synset.

    Where the sharpest curvature is `lambda`, the method is stable up to `(2 + 2 m) /
    ((1 + 2 m) lambda)` for the momentum m (Cohen et al., "Gradient descent on neural networks
    typically occurs at the edge of stability", 2021, arXiv 2103.00065, eq. 1). `lambda` is the
    largest eigenvalue of the Hessian of the synset's objective at `params`, by power iteration,
    at the cost of about one counterfactual; where a step takes `step_items` of each group, that
    of the sharpest of their batches. Half leaves room for masks whose objective is sharper; a
    rate a few times lower leaves the answer unfinished after the same steps.
    """
    factor = jnp.ones_like(synset.share) / jnp.sum(synset.share)
    start = jax.random.normal(jax.random.key(0), flatten(params).shape)

    def sharpness(batch_and_mass: tuple[Batch, Array]) -> Array:
        def step(carry, _):
            vector, _ = carry
            (curved,) = hessian_products(task, params, *batch_and_mass, vector[None])
            size = jnp.linalg.norm(curved)
            return (curved / jnp.maximum(size, 1e-12), size), None

        carry = (start / jnp.linalg.norm(start), jnp.zeros(()))
        return lax.scan(step, carry, length=iterations)[0][1]

    sharpest = jnp.max(lax.map(sharpness, synset_batches(synset, factor, step_items)))
    limit = (2 + 2 * momentum) / (1 + 2 * momentum)
    return 0.5 * limit / jnp.maximum(sharpest + weight_decay, 1e-3)


def ddm_response(finetune: Finetune, output: Output) -> Response:
    """Make `response(keep [K], params, synset, query) -> [Q]` of the distilled datamodel."""

    def response(keep: Array, params: Params, synset: Synset, query: Batch) -> Array:
        return output(finetune(params, synset, keep), query)

    return response


def leave_one_out_masks(num_groups: int) -> Array:
    """The K + 1 masks of leave-one-out: everything kept, then each group left out in turn."""
    return jnp.concatenate([jnp.ones((1, num_groups)), 1.0 - jnp.eye(num_groups)])


def subset_size(num_groups: int, keep: float) -> int:
    """Groups that a random subset keeps: `round(keep * K)`, at least 1 and at most K - 1."""
    return min(max(round(keep * num_groups), 1), max(num_groups - 1, 1))


def random_masks(key: Array, num_masks: int, num_groups: int, keep: float = 0.5) -> Array:
    """R masks that each keep `round(keep * K)` random groups, at least 1 and at most K - 1."""
    size = subset_size(num_groups, keep)
    order = jax.vmap(lambda k: jax.random.permutation(k, num_groups))(
        jax.random.split(key, num_masks)
    )
    return (order < size).astype(jnp.float32)


def check_masks(masks: Any, num_groups: int) -> Array:
    """Check subset masks `[R, K]` and return them as float32.

    Raises:
        ValueError: for a wrong shape, values outside [0, 1], or a mask that keeps nothing.
    """
    masks = np.asarray(masks, np.float32)
    if masks.ndim != 2 or masks.shape[1] != num_groups or len(masks) == 0:
        raise ValueError(f"masks have shape {masks.shape}; they must be [R, {num_groups}], R >= 1")
    if not ((masks >= 0) & (masks <= 1)).all():
        raise ValueError("masks must be 1 where a group is kept and 0 where it is left out")
    empty = np.flatnonzero(masks.sum(1) == 0)
    if empty.size:
        raise ValueError(f"mask {empty[0]} keeps no group; keep at least one in every mask")
    return jnp.asarray(masks)


def subset_outputs(response: Response, **placement: Any) -> Callable[..., Array]:
    """Make `outputs(masks [R, K], *args) -> [R, Q]`: the response to each subset, in one step.

    `placement` goes to `parallel.device_vmap`.

    Raises:
        ValueError: (when called) for masks that `check_masks` refuses, before anything compiles.
    """
    mapped = device_vmap(response, **placement)

    def outputs(masks: Any, *args: Any) -> Array:
        if not isinstance(masks, jax.core.Tracer):
            masks = check_masks(masks, np.shape(masks)[-1])
        return mapped(masks, *args)

    return outputs


def leave_one_out(response: Response, num_groups: int, **placement: Any) -> Callable[..., Array]:
    """Make `scores(*args) -> [K, Q]`, where `scores[k] = response(1) - response(1 - e_k)`.

    Positive where having group k raises the output. All K held-out groups and the reference run
    in ONE compiled step; `placement` goes to `parallel.device_vmap`.

    Raises:
        ValueError: for fewer than two groups: without the only one nothing would be kept.
    """
    check_num_groups(num_groups)
    outputs = subset_outputs(response, **placement)

    def scores(*args: Any) -> Array:
        kept = outputs(leave_one_out_masks(num_groups), *args)
        return kept[0] - kept[1:]

    return scores


def check_num_groups(num_groups: int) -> None:
    """Raise a ValueError for fewer than two groups."""
    if num_groups < 2:
        raise ValueError(f"num_groups={num_groups}; leave-one-out needs at least 2 groups")


def response_slopes(response: Response, num_groups: int) -> Callable[..., Array]:
    """Make `slopes(*args) -> [K, Q]`, `d response / d keep_k` where every group is kept.

    To first order what `leave_one_out` measures, by one reverse sweep through the updates for each
    query: two to four updates' time, whatever K is. Large effects come out of another size, the
    order is much the same. At a rate above the stable one (`stable_rate`) the derivative explodes.

    Raises:
        ValueError: for fewer than two groups.
    """
    check_num_groups(num_groups)

    @jax.jit
    def slopes(*args: Any) -> Array:
        outputs, pull = jax.vjp(lambda keep: response(keep, *args), jnp.ones(num_groups))
        return chunked_vmap(lambda one: pull(one)[0])(jnp.eye(len(outputs))).T

    return slopes


def ridge_datamodel(masks: Any, outputs: Any, strength: float = 1.0) -> np.ndarray:
    """Fit outputs as a linear function of masks: the paper's random-subset design.

    `min_{b, s} sum_r |outputs_r - b - masks_r s|^2 + strength |s|^2` (Ilyas et al.,
    "Datamodels", 2022, arXiv 2202.00622, with ridge for lasso).

    Args:
        masks: [R, K], for example `random_masks`.
        outputs: [R, Q], the response to each mask.
        strength: of the ridge penalty, positive.

    Returns:
        scores [K, Q], the effect of keeping each group.
    """
    from sklearn.linear_model import Ridge

    if strength <= 0:
        raise ValueError(f"strength={strength}; it must be positive")
    masks = check_masks(masks, np.shape(masks)[-1])
    return Ridge(alpha=strength).fit(np.asarray(masks), np.asarray(outputs)).coef_.T


def trajectory_point(checkpoints: Params, rewind: float) -> Params:
    """The checkpoint a part `rewind` of the training before its end: 0 is the trained network.

    Starting the online stage a little before the end gives the fine-tune room to go where a
    retraining would have gone; the reference run starts there too. `checkpoints` are a
    `TrainRun`'s, leaves `[T, ...]`; `rewind` is in [0, 1).
    """
    check_rewind(rewind)
    count = jax.tree.leaves(checkpoints)[0].shape[0]
    index = max(count - 1 - round(rewind * count), 0)
    return take(checkpoints, index)


def check_rewind(rewind: float) -> None:
    """Raise a ValueError for a `rewind` outside [0, 1)."""
    if not 0 <= rewind < 1:
        raise ValueError(f"rewind={rewind}; it must be in [0, 1)")
