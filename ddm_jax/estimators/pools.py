"""What the steps of a distilled run take: a pool.

Its synset's items; these and what they leave of each group's gradient; or all of its training data.
A step costs the same with each, and the first two answer without the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddm_jax.checks import check_batch
from ddm_jax.cluster import as_groups, with_background
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.memory import bytes_of, refuse_larger
from ddm_jax.estimators.ddm import DDMState
from ddm_jax.gradients import GroupBatches, group_batches, make_group_gradients
from ddm_jax.items import items_of
from ddm_jax.matching import at_least_float32
from ddm_jax.online import trajectory_point
from ddm_jax.synset import all_members, item_weights
from ddm_jax.types import Array, Batch, Groups, Params, Synset, Task, length

Pool = Literal["synset", "corrected", "data"]
POOLS: tuple[Pool, ...] = get_args(Pool)


def check_pools(pools: Any) -> tuple[Pool, ...]:
    """Which pools to try, in the order of POOLS; that of the synset is always one of them.

    Raises:
        ValueError: for what names none, or not that of the synset.
    """
    given = tuple(pools) if isinstance(pools, Iterable) and not isinstance(pools, str) else None
    names = f"name some of {', '.join(POOLS)}, of which synset must be one"
    if given is None:
        raise ValueError(f"pools={pools!r}; it must be a tuple of names: {names}")
    if "synset" not in given or any(each not in POOLS for each in given):
        raise ValueError(f"pools={','.join(map(str, given))}; {names}")
    return tuple(each for each in POOLS if each in given)


def state_of(pool: Pool, state: DDMState, task: Task, data: Batch, groups: Groups) -> DDMState:
    """What the steps of a pool go with, of a distilled run and its data."""
    if pool == "synset":
        return state._replace(residual=None)
    return (corrected if pool == "corrected" else on_all_data)(state, task, data, groups)


def on_all_data(state: DDMState, task: Task, data: Batch, groups: Groups) -> DDMState:
    """The same run with all of its training data in place of the synset.

    What updates reach with it is what a perfect synset would; a step costs the same.

    Raises:
        ValueError: for data and groups that are not those of the synset.
    """
    groups = same_groups(state, task, data, groups)
    return state._replace(synset=all_members(task, data, groups), residual=None)


def corrected(state: DDMState, task: Task, data: Batch, groups: Groups) -> DDMState:
    """The same run, whose steps add what the items leave of each group's gradient.

    A step descends on `sum_k keep_k (h_k + r_k)` with

        r_k = g_k(theta_T) - h_k(theta_T),

    `g_k` the gradient of group k, `h_k` that of its items and theta_T the trained network. To first
    order it is then exact what taking a group away does, whatever its items are, and these serve
    for the curvature; a step costs the same. It is worth most where items are examples that were
    chosen and not learnt, as of texts. Where they match well already it changes nothing, and with
    one or two items a group many steps go astray: no item holds them along most directions. The
    control variate of Johnson & Zhang, "Accelerating stochastic gradient descent using predictive
    variance reduction", NIPS 2013, at the end of the training and for each group.

    Costs one pass over the data, and K numbers a parameter.

    Raises:
        ValueError: for data and groups that are not those of the synset, gradients that are not
            finite, or where K numbers a parameter do not fit into memory.
    """
    groups = same_groups(state, task, data, groups)
    params = at_least_float32(trajectory_point(state.checkpoints, 0.0))
    whole = with_background(groups)
    refuse_larger(
        f"a correction of {whole.count} groups",
        3 * whole.count * bytes_of(params),
        "correct fewer groups, or use the synset alone",
    )
    gradients = compiled(make_group_gradients(task))
    exact = gradients(params, jax.device_put(data), group_batches(whole))
    of_items = gradients(params, *_items_by_group(state.synset, task, whole.count))
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((exact, of_items))):
        raise ValueError("the groups' gradients are not finite at the trained network: it diverged")
    return state._replace(residual=jax.tree.map(jnp.subtract, exact, of_items))


def unmatched(state: DDMState, task: Task) -> np.ndarray:
    """What part of each group's gradient the items leave, `|r_k|^2 / |h_k + r_k|^2`, [K].

    Args:
        state: of `corrected`; a background that is in no group is its last row.

    Raises:
        ValueError: for a state that is not corrected.
    """
    if state.residual is None:
        raise ValueError("this state is not corrected; make it with `pools.corrected`")
    count = len(jax.tree.leaves(state.residual)[0])
    params = at_least_float32(trajectory_point(state.checkpoints, 0.0))
    batch, items = _items_by_group(state.synset, task, count)

    def part(residual: Params) -> Array:
        of_items = make_group_gradients(task)(params, batch, items)
        exact = jax.tree.map(jnp.add, of_items, residual)
        left, whole = (jax.vmap(optax.tree.norm)(each) for each in (residual, exact))
        return left**2 / jnp.maximum(whole**2, jnp.finfo(whole.dtype).tiny)

    return np.asarray(compiled(part)(state.residual))


def _items_by_group(synset: Synset, task: Task, count: int) -> tuple[Batch, GroupBatches]:
    """The items and which are whose, weighted as where every group is kept."""
    owner = np.asarray(synset.group)
    items = group_batches(Groups(np.where(owner < 0, len(synset.share), owner), count))
    weights = item_weights(synset, jnp.ones(len(synset.share)))
    items = replace(items, valid=items.valid * weights[items.rows], total=jnp.float32(1))
    return items_of(task).batch(synset.items), items


def same_groups(state: DDMState, task: Task, data: Batch, groups: Groups) -> Groups:
    """The groups, checked with their data: they must be able to be those of the synset.

    Raises:
        ValueError: for a state of something else, data that do not fit the task, or groups of
            other sizes.
    """
    if not isinstance(state, DDMState):
        raise ValueError(
            f"the state is a {type(state).__name__}; pass what `make_ddm(...).fit` made"
        )
    check_batch(task, data, "the training data")
    groups, synset = as_groups(groups, length(data)), state.synset
    ids = np.asarray(groups.ids)
    share = np.bincount(ids[ids >= 0], minlength=groups.count) / len(ids)
    same = share.shape == synset.share.shape and np.allclose(share, synset.share, atol=1e-6)
    if not same or (synset.background is None) != bool((ids >= 0).all()):
        raise ValueError(
            "these groups are not those that the synset was distilled of: their shares of the data "
            "differ; pass the same data and groups"
        )
    return groups
