"""How much a synset shows of the training data: distances to the nearest training points.

A synset is made from gradients of the training data and often starts from members of it. Nothing
here proves that it is private; a small distance shows that it is not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Exposure(NamedTuple):
    """For each of the K M synthetic items, in the order of `synset.x.reshape(K * M, ...)`."""

    nearest: np.ndarray  # [K M] the nearest training point
    distance: np.ndarray  # [K M] how far it is (root mean square over the features)
    typical: float  # the median distance of a training point to its nearest other one
    copies: float  # the part of the items that is nearer to a training point than a tenth of that


def nearest_training_points(items: Any, data: Any) -> Exposure:
    """Find the training point nearest to each synthetic item.

    Args:
        items: [K, M, ...], the inputs of a synset.
        data: [N, ...], the training inputs, N >= 2.

    Raises:
        ValueError: for shapes that do not fit.
    """
    from sklearn.neighbors import NearestNeighbors

    items, data = np.asarray(items), np.asarray(data)
    if items.ndim < 3 or items.shape[2:] != data.shape[1:] or len(data) < 2:
        raise ValueError(
            f"items have shape {items.shape} and data {data.shape}; they must be [K, M, ...] and "
            "[N, ...] with inputs of one shape and N >= 2"
        )
    flat = data.reshape(len(data), -1)
    scale = flat.shape[1] ** 0.5
    search = NearestNeighbors(n_neighbors=2).fit(flat)
    own = search.kneighbors(flat)[0][:, 1] / scale
    far, near = search.kneighbors(items.reshape(-1, flat.shape[1]), n_neighbors=1)
    typical = float(np.median(own))
    distance = far[:, 0] / scale
    return Exposure(near[:, 0], distance, typical, float((distance < 0.1 * typical).mean()))


def membership_by_distance(items: Any, members: Any, others: Any) -> float:
    """AUC of telling training points from others by their distance to the nearest item.

    0.5: the items do not say who was in the training data. `unlearn.membership_auc` with the
    distance to the synset in the place of the network's loss: what somebody could try who has the
    synset alone.

    Args:
        items: [K, M, ...], the inputs of a synset.
        members: [N, ...] training inputs.
        others: [Q, ...] inputs of the same kind that were not trained on.

    Raises:
        ValueError: for shapes that do not fit.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import NearestNeighbors

    items, members, others = np.asarray(items), np.asarray(members), np.asarray(others)
    same = items.shape[2:] == members.shape[1:] == others.shape[1:]
    if items.ndim < 3 or not same or not (len(members) and len(others)):
        raise ValueError(
            f"items have shape {items.shape}, members {members.shape} and others {others.shape}; "
            "they must be [K, M, ...], [N, ...] and [Q, ...] with inputs of one shape, none empty"
        )
    search = NearestNeighbors(n_neighbors=1).fit(items.reshape(-1, members[0].size))
    near = [search.kneighbors(each.reshape(len(each), -1))[0][:, 0] for each in (members, others)]
    told = np.r_[np.ones(len(members)), np.zeros(len(others))]
    return float(roc_auc_score(told, -np.concatenate(near)))
