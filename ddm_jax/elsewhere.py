"""A training that was done elsewhere becomes a `TrainRun`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.checks import check_like
from ddm_jax.optimizers import as_optimizer, coupled_decay
from ddm_jax.optimizers import second_moments as moments_of
from ddm_jax.types import Array, Optimizer, Params, TrainRun, length


def make_run(
    params: Params,
    checkpoints: Any = None,
    steps: Any = None,
    learning_rates: Any = None,
    rows: Any = None,
    *,
    optimizer: Any = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    name: str | None = None,
    clip: float | None = None,
    accumulate: int = 1,
    second_moments: Any = None,
    optimizer_state: Any = None,
    start: Params | None = None,
    key: Array | None = None,
) -> TrainRun:
    """Make the `TrainRun` of a training that was done elsewhere, from what it kept.

    `make_run(params)` is enough for the distilled datamodel and for what looks at the trained
    network alone; a method that needs another part says which.

        run = make_run(params, [early, late], steps=[500, 900], learning_rates=0.1, rows=rows)

    Args:
        params: the trained parameters.
        checkpoints: parameters on the way, in the order of training: a list of T pytrees, or one
            with leaves `[T, ...]`. Where the last one is not `params`, those come after it.
            Default: `params` alone.
        steps: [T], how many steps led to each checkpoint; the last is S.
        learning_rates: of each step, [S], or one number for all.
        rows: [S, B], the training points of each step's batch; -1 where a batch is not full.
        optimizer, momentum, weight_decay, name, clip, accumulate: as `make_trainer` takes them.
        second_moments: of an optimiser of Adam's kind, at each checkpoint, as `checkpoints`:
            `nu / (1 - b2^n)`.
        optimizer_state: the optax state at each checkpoint, a list of T (or the one, where T is
            1), in place of `second_moments`.
        start: the parameters at which the first step began.
        key: of `make_train`, which a replay of a random training loss needs; default
            `jax.random.key(0)`.

    Raises:
        ValueError: for parts that do not fit each other, or numbers that are not finite.
    """
    spec = as_optimizer(
        optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        clip=clip,
        accumulate=accumulate,
        name=name,
    )
    params = jax.tree.map(jnp.asarray, params)
    check_like("params", params, params, "its own")
    path = params if checkpoints is None else checkpoints
    path = _stacked("checkpoints", [path] if checkpoints is None else path, params)
    ends = jax.tree.map(lambda leaf, last: bool((leaf[-1] == last).all()), path, params)
    added = not all(jax.tree.leaves(ends))
    if added:
        same = jax.tree.map(
            lambda leaf, last: (leaf == last).reshape(len(leaf), -1).all(1), path, params
        )
        earlier = np.flatnonzero(np.all(jax.tree.leaves(same), 0))
        if earlier.size:
            raise ValueError(
                f"checkpoint {earlier[0]} of {length(path)} is params, which come last: give the "
                "checkpoints in the order of training"
            )
        path = jax.tree.map(lambda leaf, last: jnp.concatenate([leaf, last[None]]), path, params)
    count = length(path)
    taken = None if rows is None else _check_rows(rows)
    total = None if taken is None else len(taken)
    reached = None if steps is None else np.asarray(steps)
    if reached is not None:
        if reached.dtype.kind not in "iu" or reached.shape != (count,):
            told = "; params are one more than those given, and come last" if added else ""
            raise ValueError(
                f"steps have shape {reached.shape} and type {reached.dtype}; they must be whole "
                f"numbers, one for each of {count} checkpoints{told}"
            )
        if reached.min() < 0 or (np.diff(reached) <= 0).any():
            raise ValueError(f"steps={reached.tolist()}; they must grow, from 0 or more")
        if total is not None and reached[-1] != total:
            raise ValueError(
                f"steps end at {reached[-1]}, and rows have {total} steps: they must end together"
            )
        total = int(reached[-1])
    rates = None
    if learning_rates is not None:
        rates = np.asarray(learning_rates, np.float32)
        if rates.ndim == 0 and total is not None:
            rates = np.full(total, rates, np.float32)
        if rates.ndim != 1 or (total is not None and rates.shape != (total,)):
            wanted = (
                "one for each step: pass steps= or rows= too" if total is None else f"[{total}]"
            )
            raise ValueError(f"learning_rates have shape {rates.shape}; they must be {wanted}")
        if not (np.isfinite(rates) & (rates >= 0)).all():
            raise ValueError("learning_rates must be finite and at least 0")
    if start is not None:
        start = jax.tree.map(jnp.asarray, start)
        check_like("start", start, params, "params'")
    if optimizer_state is not None:
        if second_moments is not None:
            raise ValueError("second_moments= and optimizer_state= say the same: pass one of them")
        second_moments = _moments_of(spec, optimizer_state, params, count)
    if second_moments is not None:
        second_moments = _stacked("second_moments", second_moments, params, count)
        if spec.name == "sgd":
            raise ValueError(
                "second_moments= are of an optimiser of Adam's kind, and optimizer='sgd': name the "
                "one that trained"
            )
        if min(float(jnp.min(leaf)) for leaf in jax.tree.leaves(second_moments)) < 0:
            raise ValueError("second_moments are negative; they are means of squared gradients")
    return TrainRun(
        key=jax.random.key(0) if key is None else key,
        params=params,
        checkpoints=path,
        steps=None if reached is None else jnp.asarray(reached, jnp.int32),
        learning_rates=None if rates is None else jnp.asarray(rates),
        rows=None if taken is None else jnp.asarray(taken),
        weight_decay=jnp.asarray(coupled_decay(spec, weight_decay), jnp.float32),
        start=start,
        second_moments=second_moments,
        optimizer=spec,
    )


def _stacked(what: str, trees: Any, params: Params, count: int | None = None) -> Params:
    """A list of pytrees like the parameters, or one with leaves [T, ...], as the latter."""
    theirs, ours = (str(jax.tree.structure(each)) for each in (trees, params))
    whole = theirs == ours and all(
        np.ndim(leaf) == np.ndim(like) + 1
        for leaf, like in zip(jax.tree.leaves(trees), jax.tree.leaves(params), strict=True)
    )
    if not whole:
        if not isinstance(trees, list | tuple) or not trees:
            raise ValueError(
                f"{what} must be a list of pytrees like params, or one whose leaves have a first "
                f"axis more; got {type(trees).__name__}"
            )
        for index, tree in enumerate(trees):
            check_like(f"{what}[{index}]", tree, params, "params'")
        trees = jax.tree.map(lambda *leaves: jnp.stack(list(map(jnp.asarray, leaves))), *trees)
    found = length(trees)
    if found == 0 or count not in (None, found):
        raise ValueError(f"there are {found} {what}; there must be {count or 'at least one'}")
    check_like(what, trees, params, "params'", found)
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), trees, params)


def _check_rows(rows: Any) -> np.ndarray:
    """The rows of batches [S, B] as int32."""
    found = np.asarray(rows)
    if found.ndim != 2 or found.dtype.kind not in "iu" or found.size == 0:
        raise ValueError(
            f"rows have shape {found.shape} and type {found.dtype}; they must be whole numbers "
            "[S, B], the points of each batch, filled up with -1"
        )
    if found.min() < -1:
        raise ValueError(f"rows hold {found.min()}; a point is 0 or more, and -1 is none")
    return found.astype(np.int32)


def _moments_of(spec: Optimizer, states: Any, params: Params, count: int) -> list[Params]:
    """The second moments in one optax state a checkpoint."""
    several = states if isinstance(states, list) else [states]
    if len(several) != count:
        raise ValueError(
            f"optimizer_state has {len(several)} states for {count} checkpoints; pass a list with "
            "one for each, or params alone"
        )
    found = [moments_of(spec, state, params) for state in several]
    if any(each is None for each in found):
        raise ValueError(
            f"optimizer_state holds no running mean of squared gradients of all of params; the "
            f"optimiser {spec.name} may need none: leave it out, or pass second_moments="
        )
    return found
