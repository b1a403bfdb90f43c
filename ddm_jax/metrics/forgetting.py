"""How well a network forgot: accuracies, an attack, and a distance to retrained networks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

BINS = 20  # of the histograms of KLOM
FLOOR = 1e-5  # least probability of a bin


class Unlearned(NamedTuple):
    """How a network, or the mean of several, answers after forgetting; accuracies in [0, 1]."""

    forgotten: float  # accuracy on the forgotten training points
    kept: float  # accuracy on the kept ones
    test: float
    membership: float  # AUC of telling forgotten points from test points by their loss


def unlearned(
    losses: Any, right: Any, forgotten: Any, test_losses: Any, test_right: Any
) -> Unlearned:
    """Measure one network from its loss and correctness on each training and test point.

    Args:
        losses, right: [N], of the training points.
        forgotten: [N] bool.
        test_losses, test_right: of test points, [Q] each; of losses and of correctness they may be
            others, as those of the forgotten classes alone for the attack.

    Raises:
        ValueError: where nothing, or everything, was forgotten.
    """
    forgotten = np.asarray(forgotten, bool)
    if not forgotten.any() or forgotten.all():
        raise ValueError("forgotten must name some of the training points, and not all")
    right = np.asarray(right, np.float64)
    return Unlearned(
        forgotten=float(right[forgotten].mean()),
        kept=float(right[~forgotten].mean()),
        test=float(np.mean(test_right)),
        membership=membership_auc(np.asarray(losses)[forgotten], test_losses),
    )


def membership_auc(member_losses: Any, other_losses: Any) -> float:
    """AUC of a loss-threshold attack: a point with a lower loss is said to be a member.

    0.5: they cannot be told apart. Yeom et al., "Privacy risk in machine learning", 2018, arXiv
    1709.01604. Compare it with the same attack on a network that was retrained without the
    points: hard points are no members and have a high loss all the same.
    """
    from sklearn.metrics import roc_auc_score

    members, others = np.asarray(member_losses), np.asarray(other_losses)
    truth = np.r_[np.ones(len(members)), np.zeros(len(others))]
    return float(roc_auc_score(truth, -np.r_[members, others]))


def klom(unlearned: Any, retrained: Any) -> np.ndarray:
    """KL divergence of margins: [Q], one for each point, over several networks of each kind.

    `KL(unlearned || retrained)` of the histograms of the margin over seeds, with BINS bins over the
    range of both. 0: indistinguishable. Georgiev et al., "Attribute-to-delete: machine unlearning
    via datamodel matching", 2024, arXiv 2410.23232. A few networks make it large already: print
    that of one half of the retrained networks against the other beside it.

    Args:
        unlearned, retrained: [seeds, Q] margins.

    Raises:
        ValueError: for shapes that do not fit, or margins that are not finite.
    """
    unlearned, retrained = np.asarray(unlearned, float), np.asarray(retrained, float)
    if unlearned.ndim != 2 or unlearned.shape[1:] != retrained.shape[1:]:
        raise ValueError(
            f"margins have shapes {unlearned.shape} and {retrained.shape}; they must be [seeds, Q] "
            "for the same Q"
        )
    for name, margins in (("unlearned", unlearned), ("retrained", retrained)):
        if not np.isfinite(margins).all():
            raise ValueError(f"some of the {name} margins are not finite: a network diverged")
    low = np.minimum(unlearned.min(0), retrained.min(0))
    width = np.maximum(np.maximum(unlearned.max(0), retrained.max(0)) - low, 1e-9)

    def histogram(margins: np.ndarray) -> np.ndarray:
        place = np.minimum(((margins - low) / width * BINS).astype(int), BINS - 1)
        return (place[:, :, None] == np.arange(BINS)).mean(0) + FLOOR

    return stats.entropy(histogram(unlearned), histogram(retrained), axis=1)
