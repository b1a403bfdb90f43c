"""A part of a task's parameters learns, and the rest stays as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.checks import is_concrete
from ddm_jax.tasks.paths import leaves_by_path, nested, put, some_paths
from ddm_jax.types import Array, Params, Task

Trainable = str | tuple[str, ...] | list[str] | Callable[[str], bool]


def freeze(task: Task, params: Params, trainable: Trainable) -> Task:
    """A task whose params are the trainable leaves of `params` alone; the rest is closed over.

    Gradients, curvatures, checkpoints and updates are of these leaves. The frozen rest is held
    once, as an argument of every program. Every training starts at the given values of the
    trainable leaves, whatever its key.

        tuned = ddm.freeze(task, run.params, "head/*")
        merge(run.params, tuned_run.params)     # all of them, in the structure of run.params

    Args:
        params: of the task, any pytree; trained elsewhere, or `task.init(key)`. An NNX module
            or its state serves as well.
        trainable: a glob or several over the paths of the leaves, "/"-joined ("head/*", "*lora*";
            `*` matches "/" too), or a predicate of the path.

    Returns:
        The task; its params are a plain dict of dicts with the trainable leaves.

    Raises:
        ValueError: for params that are not the task's, a pattern that matches no path, or where
            nothing is trainable.
    """
    leaves = leaves_by_path(jax.tree.map(jnp.asarray, as_plain(params)))
    _check_shapes(task, leaves)
    names = {"/".join(path): path for path in leaves}
    if len(names) < len(leaves):
        raise ValueError(
            'two parameters have the same path, as {"a": {"b": ...}} and {"a/b": ...} have: rename '
            "one of them"
        )
    if callable(trainable):
        chosen = [name for name in names if trainable(name)]
    else:
        patterns = (trainable,) if isinstance(trainable, str) else tuple(trainable)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"trainable={pattern!r} matches no parameter; there are {some_paths(leaves)}"
                )
        chosen = [name for name in names if any(fnmatchcase(name, each) for each in patterns)]
    if not chosen:
        raise ValueError(f"nothing is trainable; there are {some_paths(leaves)}")
    start = nested({names[name]: leaves[names[name]] for name in chosen})
    whole = jax.tree.unflatten(jax.tree.structure(as_plain(params)), leaves.values())

    def of_whole(fn: Any) -> Any:
        """The same function, of the trainable leaves."""
        return fn and (lambda some, *rest: fn(put(whole, some), *rest))

    def init(key: Array) -> Params:
        return start

    return task._replace(
        init=init,
        loss=of_whole(task.loss),
        output=of_whole(task.output),
        apply=of_whole(task.apply),
        features=of_whole(task.features),
        training_loss=of_whole(task.training_loss),
        draw=of_whole(task.draw),
    )


def as_plain(params: Any) -> Any:
    """Params as they are; of an NNX module or its state as its task has them."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(params, nnx.Module | nnx.State):
        return params
    from ddm_jax.tasks.nnx import as_params

    return as_params(nnx.state(params, nnx.Param) if isinstance(params, nnx.Module) else params)


def merge(whole: Any, params: Params) -> Any:
    """A model or a params pytree with the trained values in `params` in their places.

    The way back from a task's params: from those of `freeze` to all parameters, and from those of
    an equinox or NNX model to the model.

    Args:
        whole: params of any structure, an equinox module or an NNX one (which is copied).
        params: a plain dict of dicts with leaves at the same paths.

    Raises:
        ValueError: for a path that `whole` does not have.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(whole, nnx.Module):
        from ddm_jax.tasks.nnx import put_values

        return put_values(whole, params)
    return put(whole, params)


def _check_shapes(task: Task, leaves: dict[tuple[str, ...], Any]) -> None:
    want = leaves_by_path(jax.eval_shape(task.init, jax.random.key(0)))
    if set(want) != set(leaves):
        raise ValueError(
            f"the params are not of this task: they have {some_paths(leaves)}, and the task "
            f"{some_paths(want)}"
        )
    for path, leaf in leaves.items():
        if is_concrete(leaf) and not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise ValueError(f"{'/'.join(path)} is not finite; give parameters that are")
        if leaf.shape != want[path].shape:
            raise ValueError(
                f"the params are not of this task: {'/'.join(path)} is {leaf.shape} for "
                f"{want[path].shape}"
            )
