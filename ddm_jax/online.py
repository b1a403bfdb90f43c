"""Online: counterfactual networks from the trained one and the synset, for any subset of groups.

A *response* maps which groups are kept to outputs on queries:

    retraining: response(keep, key, data, groups, query)  = output(train(key, data, keep[groups]))
    ddm:        response(keep, params, synset, query)     = output(finetune(params, synset, keep))

and `masks.leave_one_out` makes `response(1) - response(1 - e_k)` of it, for every k at once. Both
runs of a difference share everything but the mask, so the drift of the fine-tune cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ddm_jax.checks import check_choice, check_integer, check_number
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.pieces import value_and_gradient
from ddm_jax.compute.placement import device_vmap, in_batches
from ddm_jax.items import items_of
from ddm_jax.masks import check_masks
from ddm_jax.objectives import Output
from ddm_jax.rates import Preconditioner, adaptive_scale, deflation, stable_rate, with_momentum
from ddm_jax.synset import background_share, batches_of, deal, item_weights, take_batch
from ddm_jax.types import Array, Batch, Params, Synset, Task, length, take
from ddm_jax.updates import Pace, Settled, UpdateSettings, pace_of, settled, update_rule

Finetune = Callable[[Params, Synset, Array], Params]
Response = Callable[..., Array]
UPDATES = ("retain", "forget")


def make_finetune(
    task: Task,
    *,
    update: str = "retain",
    steps: int,
    optimizer: optax.GradientTransformation,
    weight_decay: Array | float = 0.0,
    batch: int | None = None,
    residual: Params | None = None,
) -> Finetune:
    """Make `finetune(params, synset, keep [K]) -> params`, which traces whole.

    Each step follows a gradient made of the synset's groups:

    - "retain": descend on what is kept, `sum_k keep_k h_k / sum_k keep_k share_k +
      weight_decay * theta`, the synset's form of the training objective without the left-out
      groups. It repairs what forgetting alone would break. The background is always kept, and
      counted among both sums.
    - "forget": descend on the reversed synsets of what is left out, `-sum_k (1 - keep_k) h_k`;
      the paper's literal update. Needs only the synsets of the left-out groups, and only a few
      small steps: it has no minimum.

    A step may take a batch out of the items of all groups, all of them in turn (`synset.deal`).
    Every mask meets the same items at the same step, so what they differ by is small and shared,
    and cancels in a difference of responses: a larger synset, or more groups, then cost no more
    online.

    Args:
        update: "retain" or "forget".
        steps: at least 0.
        optimizer: any optax optimiser, for example `optax.sgd(0.3, 0.9, nesterov=True)`.
        weight_decay: the training objective's; unused by "forget".
        batch: how many items a step takes at most, at least 1; None takes all.
        residual: what the items leave of the gradient of each group, leaves `[K, ...]`, the
            background's last where there is one; it is added to `h_k` at every step.

    Raises:
        ValueError: for an unknown update, negative steps, or no items.
    """
    check_choice("update", update, UPDATES)
    check_integer("steps", steps, 0)
    if batch is not None:
        check_integer("batch", batch)
    decay = weight_decay if update == "retain" else 0.0
    of_losses = value_and_gradient(lambda params, some, mass: mass @ task.loss(params, some))

    def finetune(params: Params, synset: Synset, keep: Array) -> Params:
        if keep.shape != synset.share.shape:
            raise ValueError(
                f"keep has shape {keep.shape}; a synset of {len(synset.share)} groups needs "
                f"{synset.share.shape}"
            )
        factor, own = keep - 1.0, jnp.zeros(())
        if update == "retain":
            own = 1 / (keep @ synset.share + background_share(synset))
            factor = keep * own
        examples = items_of(task).batch(synset.items)
        weights, turns = item_weights(synset, factor, own), batches_of(length(examples), batch)
        every = jnp.append(factor, own)
        left = jax.tree.map(lambda leaf: jnp.tensordot(every[: len(leaf)], leaf, 1), residual)

        def step(carry, rows: Array):
            params, state = carry
            _, gradient = of_losses(params, *take_batch(examples, weights, rows, turns))
            if left is not None:
                gradient = jax.tree.map(lambda g, r: g + r.astype(g.dtype), gradient, left)
            slope = jax.tree.map(lambda g, p: g + (decay * p).astype(g.dtype), gradient, params)
            updates, new = optimizer.update(slope, state, params)
            # A momentum that is an array makes more of small floats.
            state = jax.tree.map(lambda leaf, was: leaf.astype(was.dtype), new, state)
            return (optax.apply_updates(params, updates), state), None

        # Whoever differentiates through it keeps a network a step, and not what each step computed.
        dealt, begin = deal(synset, batch, steps), (params, optimizer.init(params))
        return lax.scan(jax.checkpoint(step), begin, dealt)[0][0]

    return finetune


def ddm_response(finetune: Finetune, output: Output) -> Response:
    """Make `response(keep [K], params, synset, query) -> [Q]` of the distilled datamodel."""

    def response(keep: Array, params: Params, synset: Synset, query: Batch) -> Array:
        return output(finetune(params, synset, keep), query)

    return response


def subset_outputs(response: Response, **placement: Any) -> Callable[..., Array]:
    """Make `outputs(masks [R, K], *args) -> [R, Q]`: the response to each subset, in one step.

    `placement` goes to `compute.placement.device_vmap`.

    Raises:
        ValueError: (when called) for masks that `check_masks` refuses, before anything compiles.
    """
    mapped = device_vmap(response, **placement)

    def outputs(masks: Any, *args: Any) -> Array:
        return mapped(check_masks(masks, jnp.shape(masks)[-1]), *args)

    return outputs


def check_moments(optimizer: str | None, second_moments: Any) -> None:
    """Check that updates find the moments that they ask for.

    Raises:
        ValueError: for "preconditioned" updates after a training that kept none.
    """
    if optimizer == "preconditioned" and second_moments is None:
        raise ValueError(
            "online.optimizer='preconditioned' needs the squared gradients of a training by "
            "Adam's kind, and this run has none; use online.optimizer='sgd'"
        )


class Taken(NamedTuple):
    """What the updates take over from the training, and from the curvature where they start."""

    weight_decay: Array  # the factor of `|theta|^2 / 2` in the objective
    preconditioner: Preconditioner | None
    decoupled_decay: Array  # of AdamW's kind
    residual: Params | None = None  # what the items leave of each group's gradient, see `corrected`


def make_taken(task: Task, optimizer: str | None) -> Callable[..., Taken]:
    """Make `taken(params, synset, weight_decay, second_moments, decoupled_decay) -> Taken`."""

    @compiled
    def deflated(params: Params, synset: Synset, decay: Array) -> Preconditioner:
        return deflation(task, params, synset, decay)

    def taken(
        params: Params, synset: Synset, weight_decay: Any, moments: Any, decoupled: Any
    ) -> Taken:
        decay, decoupled = (jnp.asarray(each, jnp.float32) for each in (weight_decay, decoupled))
        if optimizer == "deflated":
            return Taken(decay, deflated(params, synset, decay), jnp.zeros_like(decoupled))
        if optimizer == "sgd" or moments is None:
            return Taken(decay, None, decoupled)
        return Taken(decay, adaptive_scale(moments), decoupled)

    return taken


def make_updates(task: Task, update: str, steps: int, batch: int | None) -> Callable[..., Any]:
    """Make `updated(masks, pace, taken, params, synset, query)`, all masks in one compiled step.

    What decides its shapes is given here, and all else when it is called. Outputs `[R, Q]`, or
    networks where the query is None.
    """

    def response(
        keep: Array, pace: Pace, taken: Taken, params: Params, synset: Synset, query: Batch | None
    ) -> Any:
        finetune = make_finetune(
            task,
            update=update,
            steps=steps,
            optimizer=update_rule(pace, taken.preconditioner, taken.decoupled_decay),
            weight_decay=taken.weight_decay,
            batch=batch,
            residual=taken.residual,
        )
        moved = finetune(params, synset, keep)
        return moved if query is None else task.output(moved, query)

    return device_vmap(response)


def make_rate(task: Task, batch: int | None) -> Callable[..., Array]:
    """Make `rate(params, synset, taken, trained=None)`, stable without momentum at both."""

    @compiled
    def rate_of(params: Params, synset: Synset, taken: Taken) -> Array:
        return stable_rate(
            task,
            params,
            synset,
            momentum=0.0,
            weight_decay=taken.weight_decay,
            batch=batch,
            preconditioner=taken.preconditioner,
            decoupled=taken.decoupled_decay,
        )

    def rate(params: Params, synset: Synset, taken: Taken, trained: Params | None = None) -> Array:
        found = rate_of(params, synset, taken)
        return found if trained is None else jnp.minimum(found, rate_of(trained, synset, taken))

    return rate


class Parts(NamedTuple):
    """What counterfactuals are compiled of; those of unlike settings may share theirs."""

    taken: Callable[..., Any]  # by the optimizer, as `make_taken`
    rate: Callable[..., Any]  # by the batch, as `make_rate`
    updates: Callable[..., Any]  # by update, steps and batch, as `make_updates`


def make_parts(task: Task) -> Parts:
    """The parts of a task, each made once for what it is made by."""
    return Parts(*(cache(partial(make, task)) for make in (make_taken, make_rate, make_updates)))


class Begin(NamedTuple):
    """What updates find where they begin; those of other rates, momenta and steps find the same."""

    taken: Taken
    rate: Array | None  # stable without momentum; None where a rate is given


def make_begin(chosen: Settled, parts: Parts) -> Callable[..., Begin]:
    """Make `begin(params, synset, weight_decay, moments, decoupled_decay, trained, ...)`.

    As of `make_counterfactual`; it costs some power iterations, and Lanczos' of deflated steps.
    `stable` is the rate where it was found before, for just these; a `residual` changes none.
    """
    taken_of, stable_of = parts.taken(chosen.optimizer), parts.rate(chosen.batch)

    def begin(
        params: Params,
        synset: Synset,
        weight_decay: Any,
        second_moments: Params | None,
        decoupled_decay: Any,
        trained: Params | None,
        stable: float | None = None,
        residual: Params | None = None,
    ) -> Begin:
        check_moments(chosen.optimizer, second_moments)
        taken = taken_of(params, synset, weight_decay, second_moments, decoupled_decay)
        whole = taken._replace(residual=residual)
        if chosen.learning_rate is not None:
            return Begin(whole, None)
        if stable is not None:
            return Begin(whole, jnp.asarray(stable, jnp.float32))
        return Begin(whole, stable_of(params, synset, taken, trained))

    return begin


def make_counterfactual(
    task: Task, update: UpdateSettings | None = None, parts: Parts | None = None
) -> Callable[..., Any]:
    """Make `counterfactual(params, synset, masks, query=None, weight_decay=0.0, **taken)`.

    Networks without what each mask leaves out, or what they say of the queries: all masks in ONE
    compiled step (`make_finetune`), spread over the devices. `masks [R, K]` or `[K]` are weights:
    1 kept, 0 gone. Returns outputs `[R, Q]` of `task.output`, or without a query parameters with
    leaves `[R, ...]`. The updates start at `params`, which for `update.rewind` the caller takes
    from the trajectory (`trajectory_point`); the weight decay is the training objective's. After a
    training of Adam's kind, `second_moments` are a point of the run's and `decoupled_decay` is the
    decay that AdamW adds to its steps. `trained` is the trained network, where the updates start
    before it: the curvature of an adapter that begins at zero is small there, and grows. `begin`
    is what `make_begin` finds there, where it is known already.

    Args:
        parts: `make_parts(task)`, shared by counterfactuals of several settings.

    Raises:
        ValueError: (when called) for masks that do not fit the synset, or updates that need
            moments which are not there.
    """
    chosen = settled(update or UpdateSettings())
    parts = make_parts(task) if parts is None else parts
    begin_of = make_begin(chosen, parts)
    updated = parts.updates(chosen.update, chosen.steps, chosen.batch)

    def counterfactual(
        params: Params,
        synset: Synset,
        masks: Any,
        query: Batch | None = None,
        weight_decay: Any = 0.0,
        *,
        second_moments: Params | None = None,
        decoupled_decay: Any = 0.0,
        trained: Params | None = None,
        begin: Begin | None = None,
    ) -> Any:
        if np.ndim(masks) == 1:
            masks = jnp.asarray(masks)[None]
        there = synset.background is not None
        masks = check_masks(masks, len(synset.share), background=there)
        if begin is None:
            begin = begin_of(params, synset, weight_decay, second_moments, decoupled_decay, trained)
        rate: Any = chosen.learning_rate
        if begin.rate is not None:
            rate = chosen.rate_factor * begin.rate * with_momentum(chosen.momentum)
        return updated(masks, pace_of(chosen, rate), begin.taken, params, synset, query)

    return counterfactual


def trajectory_point(checkpoints: Params, rewind: float) -> Params:
    """The checkpoint a part `rewind` of the training before its end: 0 is the trained network.

    Starting the online stage a little before the end gives the fine-tune room to go where a
    retraining would have gone; the reference run starts there too. `checkpoints` are a
    `TrainRun`'s, leaves `[T, ...]`; `rewind` is in [0, 1).
    """
    check_number("rewind", rewind, least=0, below=1)
    count = length(checkpoints)
    index = max(count - 1 - round(rewind * count), 0)
    return take(checkpoints, index)


def explained_outputs(task: Task, params: Params, query: Batch) -> Array:
    """What one network says of all queries, `task.output`, [Q]: in pieces, but of a set whole."""
    return make_explained_outputs(task)(params, query)


def make_explained_outputs(task: Task) -> Callable[[Params, Batch], Array]:
    """Make `explained_outputs(params, query)`, for several networks compiled once."""
    return compiled(task.output) if task.of_sets else in_batches(task.output)
