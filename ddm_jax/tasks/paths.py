"""The leaves of a pytree by their paths: "Dense_0/kernel", "layers/0/weight"."""

from __future__ import annotations

from typing import Any

import jax

Path = tuple[str, ...]


def leaves_by_path(tree: Any) -> dict[Path, Any]:
    """The leaves of a pytree by their paths, in the order of `jax.tree.leaves`."""
    return {
        tuple(jax.tree_util.keystr((part,), simple=True) for part in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def nested(leaves: dict[Path, Any]) -> dict[str, Any]:
    """Leaves by their paths as a plain dict of dicts, which every file and every tool takes."""
    found: dict[str, Any] = {}
    for path, leaf in leaves.items():
        place = found
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = leaf
    return found


def put(tree: Any, parts: Any) -> Any:
    """The pytree with the leaves in `parts` in the places of those that have their paths.

    Raises:
        ValueError: for a path that the tree does not have.
    """
    leaves, given = leaves_by_path(tree), leaves_by_path(parts)
    for path in given:
        if path not in leaves:
            raise ValueError(f"there is no {'/'.join(path)!r} among {some_paths(leaves)}")
    return jax.tree.unflatten(jax.tree.structure(tree), (leaves | given).values())


def some_paths(paths: Any) -> str:
    """A few paths, for an error."""
    names = ["/".join(path) for path in paths]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} others" if len(names) > 6 else "")
