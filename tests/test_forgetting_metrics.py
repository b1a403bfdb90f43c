"""Measures of how well a network forgot, against literal examples."""

import numpy as np
import pytest

from ddm_jax import metrics
from ddm_jax.metrics import forgetting


def test_accuracies_and_the_attack():
    losses = np.array([0.1, 0.2, 0.3, 0.4])
    right = np.array([True, True, False, True])
    forgotten = np.array([True, False, True, False])
    found = metrics.unlearned(losses, right, forgotten, [0.05, 0.5], [True, False])
    assert found == (0.5, 1.0, 0.5, 0.5)
    assert metrics.membership_auc([0.1, 0.2], [0.3, 0.4]) == 1.0
    assert metrics.membership_auc([0.3, 0.4], [0.1, 0.2]) == 0.0
    assert metrics.membership_auc([0.1, 0.2], [0.1, 0.2]) == 0.5
    for nothing in (np.zeros(4, bool), np.ones(4, bool)):
        with pytest.raises(ValueError, match="some of the training points, and not all"):
            metrics.unlearned(losses, right, nothing, [0.1], [True])


def test_klom(rng):
    margins = rng.standard_normal((40, 6))
    np.testing.assert_allclose(metrics.klom(margins, margins), 0, atol=1e-12)
    far = metrics.klom(margins + 100, margins)
    near = metrics.klom(margins + 0.3, margins)
    assert (far > near).all()
    # Two bins that do not meet: log(1 / FLOOR) to within the floor's own weight.
    np.testing.assert_allclose(far, np.log(1 / forgetting.FLOOR), rtol=0.3)
    with pytest.raises(ValueError, match=r"\[seeds, Q\]"):
        metrics.klom(margins, margins[:, :3])


def test_klom_by_hand():
    """All in the first bin against half in the first and half in the last, and the reverse."""
    one, both = np.array([[0.0, 5.0], [0.0, 5.0]]), np.array([[0.0, 5.0], [1.0, 6.0]])
    np.testing.assert_allclose(metrics.klom(one, both), np.log(2), rtol=1e-3)
    reverse = 0.5 * np.log(0.5) + 0.5 * np.log(0.5 / forgetting.FLOOR)
    np.testing.assert_allclose(metrics.klom(both, one), reverse, rtol=1e-3)
    for wrong in (one[0], one[None]):
        with pytest.raises(ValueError, match=r"\[seeds, Q\]"):
            metrics.klom(wrong, both)


def test_klom_grows_with_the_shift(rng):
    margins = rng.standard_normal((200, 4))
    shifted = [metrics.klom(margins + shift, margins) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert (np.diff(shifted, axis=0) > 0).all()


def test_margins_of_a_network_that_diverged_are_refused(rng):
    margins = rng.standard_normal((4, 3))
    lost = margins.copy()
    lost[1, 2] = np.nan
    with pytest.raises(ValueError, match="some of the unlearned margins are not finite"):
        metrics.klom(lost, margins)
    with pytest.raises(ValueError, match="some of the retrained margins are not finite"):
        metrics.klom(margins, lost)
