"""Items: how the examples of a task become a synset's, and which parts of them may be optimised.

A synset serves any loss. What can be optimised is: floating-point inputs, soft labels, real
targets. What cannot, such as tokens, categories and masks, stays as it was found, and stands for
its group with a learnt mass.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.types import Batch, Items, Task

# Label logits of a fresh item. A trained network is certain (p = .9999), so a softer label would
# be a large error by itself.
SHARPNESS = 14.0
MASS = "mass"


def label_logits(labels: Any) -> np.ndarray:
    """Logits whose softmax is the given distribution, [..., C].

    Chances below `exp(-SHARPNESS)` count as that: a one-hot label becomes SHARPNESS times itself.
    """
    labels = np.asarray(labels)
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(labels), -SHARPNESS)
    return logits - logits.min(-1, keepdims=True)


def _with_logits(examples: Batch) -> Batch:
    return Batch(examples.x, jnp.asarray(label_logits(examples.y), examples.y.dtype))


def _with_labels(leaves: Batch) -> Batch:
    return Batch(leaves.x, jax.nn.softmax(leaves.y))


SOFT_LABELS = Items(_with_logits, _with_labels, ("x", "y"))

# Labels at a sigmoid of half of that are as certain as classes at a softmax of it.
LABEL_SHARPNESS = SHARPNESS / 2


def _with_label_logits(examples: Batch) -> Batch:
    """Labels as the logits of their chances, not beyond `+-LABEL_SHARPNESS`."""
    y = jnp.asarray(examples.y)
    y = y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(jnp.float32)
    logits = jnp.log(y) - jnp.log1p(-y)
    return Batch(examples.x, jnp.clip(logits, -LABEL_SHARPNESS, LABEL_SHARPNESS))


def _with_chances(leaves: Batch) -> Batch:
    return Batch(leaves.x, jax.nn.sigmoid(leaves.y))


SOFT_MULTI_HOT = Items(_with_label_logits, _with_chances, ("x", "y"))


def items_of(task: Task) -> Items:
    """How a task's items are made: its own `Items`, or what its targets ask for.

    Rows over classes become soft labels, optimised as logits. Any other target is kept.
    """
    if task.items is not None:
        return task.items
    return SOFT_LABELS if task.targets == "distribution" else Items()


def leaf_names(items: Batch) -> list[str]:
    """The names of an item's leaves, in the order of `jax.tree.leaves`: "x", "y", "x.image"."""
    paths = jax.tree_util.tree_leaves_with_path(items)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]


def is_under(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a leaf is one of the parts, or inside of one."""
    return any(name == part or name.startswith(part + ".") for part in parts)


def free_leaves(task: Task, items: Batch, learn: tuple[str, ...]) -> list[bool]:
    """Which leaves of the items are optimised: those that are free, and to be learnt.

    Raises:
        ValueError: for a name in `learn` that is no part of an item, or a part such as "x.tokens"
            that cannot be optimised.
    """
    names, free = leaf_names(items), items_of(task).free
    able = [
        is_under(name, free) and jnp.issubdtype(leaf.dtype, jnp.floating)
        for name, leaf in zip(names, jax.tree.leaves(items), strict=True)
    ]
    for part in learn:
        if part == MASS or part in ("x", "y"):
            continue
        inside = [ok for name, ok in zip(names, able, strict=True) if is_under(name, (part,))]
        if not inside:
            raise ValueError(
                f"distill.learn names {part!r}; an item has {', '.join([*names, MASS])}"
            )
        if not any(inside):
            raise ValueError(
                f"distill.learn names {part!r}, which stays as it was found: it is no "
                f"floating-point leaf that this task's items leave free ({', '.join(free)})"
            )
    return [ok and is_under(name, learn) for name, ok in zip(names, able, strict=True)]


def get_leaves(items: Batch, chosen: list[bool]) -> list[Any]:
    """The chosen leaves."""
    return [leaf for leaf, ok in zip(jax.tree.leaves(items), chosen, strict=True) if ok]


def put_leaves(items: Batch, chosen: list[bool], values: list[Any]) -> Batch:
    """The items with the chosen leaves replaced."""
    leaves, structure = jax.tree.flatten(items)
    given = iter(values)
    put = [next(given) if ok else leaf for leaf, ok in zip(leaves, chosen, strict=True)]
    return jax.tree.unflatten(structure, put)


def leaf_units(items: Batch) -> list[Any]:
    """What one unit of a learning rate means in each leaf: scalars, 0 where it cannot learn.

    Leaves of order one move in units of one, others (ages, prices) in those of their deviation.
    """
    units = []
    for leaf in jax.tree.leaves(items):
        spread = 0.0
        if jnp.issubdtype(leaf.dtype, jnp.floating) and np.size(leaf):
            spread = float(np.std(np.asarray(leaf, np.float32)))
        ordinary = not spread or 0.1 <= spread <= 10
        units.append(np.float32(1.0 if ordinary else spread))
    return units
