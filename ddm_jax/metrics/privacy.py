"""How much a synset shows of the training data: distances to the nearest training points.

A synset is made from gradients of the training data and often starts from members of it. Nothing
here proves that it is private; a small distance shows that it is not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ddm_jax.metrics.forgetting import membership_auc


class Exposure(NamedTuple):
    """For each of the I synthetic items, in their order."""

    nearest: np.ndarray  # [I] the nearest training point
    distance: np.ndarray  # [I] how far it is (root mean square over the features)
    typical: float  # the median distance of a training point to its nearest other one
    copies: float  # the part of the items that is nearer to a training point than a tenth of that


def nearest_training_points(items: Any, data: Any) -> Exposure:
    """Find the training point nearest to each synthetic item.

    Args:
        items: [I, ...], the inputs of a synset, `synset.items.x`.
        data: [N, ...], the training inputs, N >= 2.

    Raises:
        ValueError: for shapes that do not fit.
    """
    items, data = _flat(items, data)
    if len(data) < 2:
        raise ValueError(f"there are {len(data)} training points; at least 2 are needed")
    scale = data.shape[1] ** 0.5
    search = _search(data)
    own = search.kneighbors(data, n_neighbors=2)[0][:, 1] / scale
    far, near = search.kneighbors(items)
    typical = float(np.median(own))
    distance = far[:, 0] / scale
    return Exposure(near[:, 0], distance, typical, float((distance < 0.1 * typical).mean()))


def membership_by_distance(items: Any, members: Any, others: Any) -> float:
    """AUC of telling training points from others by their distance to the nearest item.

    0.5: the items do not say who was in the training data. `membership_auc` with the distance to
    the synset in the place of the network's loss: what somebody could try who has the synset alone.

    Args:
        items: [I, ...], the inputs of a synset, `synset.items.x`.
        members: [N, ...] training inputs.
        others: [Q, ...] inputs of the same kind that were not trained on.

    Raises:
        ValueError: for shapes that do not fit.
    """
    items, *both = _flat(items, members, others)
    return membership_auc(*(_search(items).kneighbors(each)[0][:, 0] for each in both))


def _flat(*inputs: Any) -> list[np.ndarray]:
    """The inputs as vectors, [n, F] each."""
    each = [np.asarray(some) for some in inputs]
    if any(not some.size or some.shape[1:] != each[0].shape[1:] or some.ndim < 2 for some in each):
        raise ValueError(
            f"items and inputs have the shapes {', '.join(str(some.shape) for some in each)}; they "
            "must be inputs of one shape, [I, ...] and [N, ...], none empty"
        )
    return [some.reshape(len(some), -1) for some in each]


def _search(points: np.ndarray) -> Any:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=1).fit(points)
