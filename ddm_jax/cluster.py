"""Clustering: cut the training set into K groups, int32 [N]."""

from __future__ import annotations

import numpy as np

METHODS = ("class_kmeans", "kmeans", "random", "class", "point")


def make_groups(
    method: str,
    *,
    features: np.ndarray,
    labels: np.ndarray,
    num_groups: int,
    seed: int = 0,
) -> np.ndarray:
    """Assign each training point to a group.

    Args:
        method: "class_kmeans" (k-means inside each class, the paper's choice; the K groups are
            shared out evenly, larger classes first), "kmeans" (over the whole set), "random"
            (equal sizes up to one), "class" (one group a class), "point" (one group a point:
            per-point attribution).
        features: [N, ...], flattened; pixels or penultimate features.
        labels: [N] integer classes.
        num_groups: K; for "class" and "point" it follows from the data and is ignored.
        seed: of k-means and of the random groups.

    Returns:
        groups int32 [N], all of 0..K-1 occur.

    Raises:
        ValueError: for an unknown method, a K that the data cannot fill, or an empty group.
    """
    features = np.asarray(features, np.float32).reshape(len(labels), -1)
    labels = np.asarray(labels)
    size = len(labels)
    if method == "point":
        return np.arange(size, dtype=np.int32)
    _, dense = np.unique(labels, return_inverse=True)
    if method == "class":
        return dense.astype(np.int32)
    if method not in METHODS:
        raise ValueError(f"unknown clustering {method!r}; choose one of {', '.join(METHODS)}")
    check_num_groups(method, labels, num_groups)
    if method == "random":
        order = np.random.default_rng(seed).permutation(size)
        groups = np.empty(size, np.int32)
        groups[order] = np.arange(size) % num_groups
        return groups
    if method == "kmeans":
        return check_groups(_kmeans(features, num_groups, seed), size, num_groups)

    groups = np.empty(size, np.int32)
    first = 0
    for index, share in enumerate(_class_shares(labels, num_groups)):
        members = np.flatnonzero(dense == index)
        groups[members] = first + _kmeans(features[members], int(share), seed)
        first += int(share)
    return check_groups(groups, size, num_groups)


def check_num_groups(method: str, labels: np.ndarray, num_groups: int) -> None:
    """Check that the data can fill K groups, which needs no features.

    Raises:
        ValueError: for a K out of range, or one that leaves a class without its groups.
    """
    if method in ("class", "point"):
        return
    size = len(labels)
    if not 1 <= num_groups <= size:
        raise ValueError(f"num_groups={num_groups}; it must be in 1..{size}, the training points")
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

    model = KMeans(num_groups, n_init=4, random_state=seed).fit(features)
    return model.labels_


def check_groups(groups: np.ndarray, num_points: int, num_groups: int | None = None) -> np.ndarray:
    """Check a user's own groups and return them as int32 [N].

    Raises:
        ValueError: for a wrong length, values that are no integers in 0..K-1, or an empty group.
    """
    groups = np.asarray(groups)
    if groups.shape != (num_points,):
        raise ValueError(
            f"groups have shape {groups.shape}; {num_points} points need ({num_points},)"
        )
    if not np.issubdtype(groups.dtype, np.integer):
        raise ValueError(f"groups are {groups.dtype}; they must be integers 0..K-1")
    if num_points == 0:
        raise ValueError("there are no points to group; pass at least one")
    if groups.min() < 0:
        raise ValueError(f"group {groups.min()} is negative; groups must be integers 0..K-1")
    count = int(groups.max()) + 1 if num_groups is None else num_groups
    if groups.max() >= count:
        raise ValueError(f"group {groups.max()} is out of range; {count} groups are 0..{count - 1}")
    sizes = np.bincount(groups, minlength=count)
    empty = np.flatnonzero(sizes == 0)
    if empty.size:
        raise ValueError(
            f"group {empty[0]} is empty ({empty.size} of {count} groups are); number the groups "
            "0..K-1 without gaps, or ask for fewer of them"
        )
    return groups.astype(np.int32)
