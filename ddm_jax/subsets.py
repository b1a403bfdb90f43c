"""What if these groups were gone, together? Any subsets, and how far effects add up."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddm_jax.loo import check_masks, make_finetune, stable_rate, subset_outputs
from ddm_jax.objectives import Output
from ddm_jax.types import Array, Batch, Params, Synset, Task


def counterfactual(
    params: Params,
    synset: Synset,
    keep_masks: Any,
    query: Batch | None = None,
    *,
    task: Task,
    output: Output | None = None,
    steps: int = 50,
    step_items: int | None = 5,
    learning_rate: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Any:
    """Networks without what each mask leaves out, or what they say of the queries.

    All masks in one compiled step (`loo.make_finetune`, "retain"), spread over the devices; it is
    compiled once for a task, its settings and these shapes.

    Args:
        params: the trained network.
        synset: K distilled groups.
        keep_masks: [R, K] or [K], 1 = kept. Parts in between keep so much of a group.
        query: what to ask; None returns the networks themselves.
        task, output: the network, and what is explained (default `task.output`).
        steps, step_items, learning_rate, momentum, weight_decay: as of `make_ddm`.

    Returns:
        outputs [R, Q], or without a query parameters with leaves [R, ...].

    Raises:
        ValueError: for masks that do not fit the synset, or a setting out of range.
    """
    groups = synset.share.shape[0]
    masks = check_masks(np.atleast_2d(keep_masks), groups)
    if steps < 1:
        raise ValueError(f"steps={steps}; it must be at least 1")
    if learning_rate is not None and not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate}; it must be positive")
    settings = (steps, step_items, momentum, weight_decay)
    if learning_rate is None:
        learning_rate = _stable(params, synset, task=task, settings=settings)
    rate = jnp.asarray(learning_rate, jnp.float32)
    explained = task.output if output is None else output
    return _answer(
        params, synset, masks, query, rate, task=task, output=explained, settings=settings
    )


@partial(jax.jit, static_argnames=("task", "settings"))
def _stable(params: Params, synset: Synset, *, task: Task, settings: tuple) -> Array:
    _, step_items, momentum, decay = settings
    return stable_rate(
        task, params, synset, momentum=momentum, weight_decay=decay, step_items=step_items
    )


@partial(jax.jit, static_argnames=("task", "output", "settings"))
def _answer(
    params: Params,
    synset: Synset,
    masks: Array,
    query: Batch | None,
    rate: Array,
    *,
    task: Task,
    output: Output,
    settings: tuple,
) -> Any:
    steps, step_items, momentum, decay = settings

    def response(
        keep: Array, rate: Array, params: Params, synset: Synset, query: Batch | None
    ) -> Any:
        finetune = make_finetune(
            task,
            steps=steps,
            optimizer=optax.sgd(rate, momentum or None, nesterov=True),
            weight_decay=decay,
            step_items=step_items,
        )
        moved = finetune(params, synset, keep)
        return moved if query is None else output(moved, query)

    return subset_outputs(response)(masks, rate, params, synset, query)


class Additivity(NamedTuple):
    """How well joint effects are the sums of single ones, over all subsets and queries.

    NaN where either is the same everywhere.
    """

    correlation: float  # Pearson, joint against summed effects
    slope: float  # of the joint effects on the summed: below one where effects overlap
    error: float  # |joint - summed|^2 / |joint|^2: 0 where they add up, 1 as bad as no effect


def additivity(masks: Any, outputs: Any, single: Any) -> Additivity:
    """Compare the joint effect of what each mask leaves out with the sum of single effects.

    The joint effect of mask r on query q is `outputs[0, q] - outputs[r, q]`, where mask 0 keeps
    everything; the sum is `(1 - masks_r) @ single`.

    Args:
        masks: [R, K], the first one all ones.
        outputs: [R, Q].
        single: [K, Q], the effect of having each group.

    Raises:
        ValueError: for shapes that do not fit, or a first mask that leaves something out.
    """
    masks, outputs, single = (np.asarray(each, np.float64) for each in (masks, outputs, single))
    if masks.ndim != 2 or len(masks) < 2 or not (masks[0] == 1).all():
        raise ValueError("masks must be [R, K] with R >= 2, the first one all ones")
    if outputs.shape != (len(masks), single.shape[1]) or len(single) != masks.shape[1]:
        raise ValueError(
            f"masks {masks.shape}, outputs {outputs.shape} and single {single.shape} do not fit; "
            "they must be [R, K], [R, Q] and [K, Q]"
        )
    joint = (outputs[:1] - outputs[1:]).ravel()
    summed = ((1 - masks[1:]) @ single).ravel()
    size = float(joint @ joint)
    if not np.ptp(joint) or not np.ptp(summed):
        return Additivity(float("nan"), float("nan"), float("nan"))
    return Additivity(
        correlation=float(np.corrcoef(joint, summed)[0, 1]),
        slope=float(joint @ summed / (summed @ summed)),
        error=float(((joint - summed) ** 2).sum() / size),
    )


def pair_masks(num_groups: int, count: int, seed: int = 0) -> np.ndarray:
    """Masks [1 + R, K]: everything, and without each of R random pairs of groups.

    All pairs where there are fewer than `count`.

    Raises:
        ValueError: for fewer than three groups, of which two could not go.
    """
    if num_groups < 3:
        raise ValueError(f"num_groups={num_groups}; leaving out two needs at least 3 groups")
    first, second = np.triu_indices(num_groups, 1)
    chosen = np.random.default_rng(seed).permutation(len(first))[:count]
    masks = np.ones((1 + len(chosen), num_groups), np.float32)
    rows = 1 + np.arange(len(chosen))
    masks[rows, first[chosen]] = 0
    masks[rows, second[chosen]] = 0
    return masks
