"""Clustering: cut the training set into K groups."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

from ddm_jax.checks import check_choice, check_integer
from ddm_jax.types import Groups

BACKGROUND = "-1"  # among names; None is the same
METHODS = ("class_kmeans", "kmeans", "random", "class", "point")


def make_groups(
    method: str,
    *,
    features: np.ndarray,
    num_groups: int,
    labels: np.ndarray | None = None,
    seed: int = 0,
) -> Groups:
    """Assign each training point to a group.

    Args:
        method: "class_kmeans" (k-means inside each class, the paper's choice; the K groups are
            shared out evenly, larger classes first), "kmeans" (over the whole set), "random"
            (equal sizes up to one), "class" (one group a class), "point" (one group a point:
            per-point attribution).
        features: [N, ...], flattened; pixels or penultimate features.
        num_groups: K; for "class" and "point" it follows from the data and is ignored.
        labels: [N] integer classes, of "class_kmeans" and "class".
        seed: of k-means and of the random groups.

    Returns:
        `Groups`, all of 0..K-1 occur.

    Raises:
        ValueError: for an unknown method, a K that the data cannot fill, or an empty group.
    """
    check_choice("method", method, METHODS)
    if labels is None:
        if method in ("class_kmeans", "class"):
            raise ValueError(
                f"method={method!r} needs labels= [N]; without classes choose kmeans or random"
            )
        labels = np.zeros(len(features), np.int32)
    labels = np.asarray(labels)
    features = np.asarray(features, np.float32).reshape(len(labels), -1)
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {labels.shape}; give classes [N], as y.argmax(1) is")
    size = len(labels)
    if method == "point":
        return as_groups(np.arange(size))
    _, dense = np.unique(labels, return_inverse=True)
    if method == "class":
        return as_groups(dense)
    check_num_groups(method, labels, num_groups)
    if method == "random":
        order = np.random.default_rng(seed).permutation(size)
        ids = np.empty(size, np.int32)
        ids[order] = np.arange(size) % num_groups
        return as_groups(ids)
    if method == "kmeans":
        return as_groups(_kmeans(features, num_groups, seed), count=num_groups)

    ids = np.empty(size, np.int32)
    first = 0
    for index, share in enumerate(_class_shares(labels, num_groups)):
        members = np.flatnonzero(dense == index)
        ids[members] = first + _kmeans(features[members], int(share), seed)
        first += int(share)
    return as_groups(ids, count=num_groups)


def flat_features(x: Any) -> np.ndarray:
    """Inputs as rows of numbers, [N, F]: one array as it is, all leaves of others side by side."""
    leaves = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(x)]
    return leaves[0] if len(leaves) == 1 else np.concatenate(leaves, 1)


def check_num_groups(method: str, labels: np.ndarray, num_groups: int) -> None:
    """Check that the data can fill K groups, which needs no features.

    Raises:
        ValueError: for a K out of range, or one that leaves a class without its groups.
    """
    if method in ("class", "point"):
        return
    check_integer("num_groups", num_groups, 2, len(labels))
    if method == "class_kmeans":
        _class_shares(labels, num_groups)


def _class_shares(labels: np.ndarray, num_groups: int) -> np.ndarray:
    present, counts = np.unique(labels, return_counts=True)
    if num_groups < len(present):
        raise ValueError(
            f"num_groups={num_groups}; class_kmeans needs at least one for each of the "
            f"{len(present)} classes (use kmeans or random for fewer)"
        )
    share = np.full(len(present), num_groups // len(present))
    share[np.argsort(-counts, kind="stable")[: num_groups % len(present)]] += 1
    for index in np.flatnonzero(share > counts):
        raise ValueError(
            f"num_groups={num_groups} asks for {share[index]} groups of class "
            f"{present[index]}, which has {counts[index]} points; lower it"
        )
    return share


def _kmeans(features: np.ndarray, num_groups: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is an error below
        labels = KMeans(num_groups, n_init=4, random_state=seed).fit(features).labels_
    found = len(np.unique(labels))
    if found < num_groups:
        raise ValueError(
            f"k-means finds {found} different groups among {len(features)} points with duplicated "
            f"rows, and {num_groups} are asked for; lower num_groups, or group at random"
        )
    return labels


def is_missing(value: Any) -> bool:
    """Whether the name of a group is None, NaN or pandas' NA."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):  # NA says neither, nor does an array
        return np.ndim(value) == 0


def with_background(groups: Groups) -> Groups:
    """The groups with what is in none of them as one more, the last."""
    if not groups.background:
        return groups
    ids = np.asarray(groups.ids)
    return Groups(np.where(ids < 0, groups.count, ids).astype(np.int32), groups.count + 1)


def as_groups(
    ids: Any,
    num_points: int | None = None,
    *,
    count: int | None = None,
    names: tuple[str, ...] | None = None,
) -> Groups:
    """Check groups of one's own, [N] integers 0..K-1; what are `Groups` already pass.

    Where only a part of the training set is asked about, the rest is its *background*, -1: always
    in the training and in N, in no group, and no score is of it. K is the number of asked groups.

    Args:
        ids: the group of each training point, -1 or None for the background; or its name: groups
            are then in the names' order.
        num_points: N, where it is known.
        count: K; default the largest id and one.
        names: of the K groups.

    Raises:
        ValueError: for a wrong length, values that are no integers in -1..K-1, an empty group, or
            fewer than two groups, of which none could be left out.
    """
    if isinstance(ids, Groups):
        if num_points is not None and len(ids.ids) != num_points:
            raise ValueError(f"groups are of {len(ids.ids)} points, and there are {num_points}")
        return ids
    kind = getattr(ids, "dtype", None)
    of_pandas = kind is not None and not isinstance(kind, np.dtype)  # texts, categories
    if isinstance(ids, list | tuple) or str(kind) == "object" or (of_pandas and np.iterable(ids)):
        ids = [-1 if is_missing(each) else each for each in ids]
    ids = np.asarray(ids)
    wanted = (num_points,) if num_points is not None else ("N",)
    if ids.ndim != 1 or num_points not in (None, len(ids)):
        raise ValueError(f"groups have shape {ids.shape}; they must be ({wanted[0]},)")
    if ids.dtype.kind == "U" and names is None:
        found, places = np.unique(ids[ids != BACKGROUND], return_inverse=True)
        ids = np.where(ids == BACKGROUND, -1, 0)
        ids[ids == 0] = places
        names = tuple(found.tolist())
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"groups are {ids.dtype}; they must be integers 0..K-1, as "
            "np.unique(groups, return_inverse=True)[1] makes them"
        )
    if len(ids) == 0:
        raise ValueError("there are no points to group; pass at least one")
    if ids.min() < -1:
        raise ValueError(
            f"group {ids.min()} is negative; groups must be integers 0..K-1, and -1 for the "
            "background"
        )
    if ids.max() < 0:
        raise ValueError("all points are background, -1; number the groups that are asked about")
    count = int(ids.max()) + 1 if count is None else count
    if ids.max() >= count:
        raise ValueError(f"group {ids.max()} is out of range; {count} groups are 0..{count - 1}")
    if count < 2:
        raise ValueError("there is one group; at least 2 are needed, of which one can be left out")
    if count > len(ids):
        raise ValueError(f"{count} groups of {len(ids)} points; number the groups without gaps")
    empty = np.flatnonzero(Groups(ids, count).sizes() == 0)
    if empty.size:
        raise ValueError(
            f"group {empty[0]} is empty ({empty.size} of {count} groups are); number the groups "
            "0..K-1 without gaps, or ask for fewer of them"
        )
    if names is None:
        return Groups(ids.astype(np.int32), count)
    known = () if isinstance(names, str) else tuple(map(str, names))
    if len(known) != count or len(set(known)) != count:
        raise ValueError(f"names={names!r}; give {count} different ones, one for each group")
    return Groups(ids.astype(np.int32), count, known)
