"""Forgetting groups, and the measures of how well it went."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm
from ddm_jax import unlearn

OPTIMIZER = optax.sgd(0.05, 0.9, nesterov=True)


@pytest.fixture(scope="module")
def halves(ready, synset):
    """Two groups a class, of one item each: a class can stay when a group of it goes."""
    apart = lambda leaf: jnp.repeat(leaf, 2, 0)  # noqa: E731
    x, y, mass = (
        leaf.reshape(20, 1, *leaf.shape[2:]) for leaf in (synset.x, synset.y, synset.mass)
    )
    return ddm.Synset(x, y, jnp.maximum(mass, 1e-3), apart(synset.share))


def test_where_every_class_stays_it_is_the_fine_tune(ready, halves):
    keep = jnp.ones(20).at[4].set(0)
    forget = jax.jit(ddm.make_forget(ready.task, steps=5, optimizer=OPTIMIZER))
    plain = jax.jit(ddm.make_finetune(ready.task, steps=5, optimizer=OPTIMIZER))
    args = (ready.run.params, halves, keep)
    jax.tree.map(np.testing.assert_array_equal, forget(*args), plain(*args))
    assert unlearn.where_to_start(halves, keep, 0.5, 0.75) == (0.5, 0.75)


def test_a_class_that_is_gone_is_no_longer_named(ready, halves):
    keep = jnp.ones(20).at[jnp.array([6, 7])].set(0)
    forget = jax.jit(ddm.make_forget(ready.task, steps=60, optimizer=OPTIMIZER))
    params = forget(ready.run.params, halves, keep)
    inside = ddm.types.take(ready.data, np.flatnonzero(ready.groups == 3))
    before = np.asarray(ready.task.apply(ready.run.params, inside.x)).argmax(1)
    after = np.asarray(ready.task.apply(params, inside.x)).argmax(1)
    assert (before == 3).mean() > 0.9
    assert (after == 3).mean() < 0.1
    others = ddm.types.take(ready.data, np.flatnonzero(ready.groups != 3))
    right = np.asarray(ready.task.apply(params, others.x)).argmax(1) == others.y.argmax(1)
    assert right.mean() > 0.9
    assert unlearn.where_to_start(halves, keep, 0.5, 0.75) == (pytest.approx(0.05), 0.0)


def test_only_the_forgotten_items_of_a_class_that_is_gone_are_relabelled(ready, halves):
    keep = jnp.ones(20).at[jnp.array([6, 7, 10])].set(0)
    found, factor = unlearn.relabel_forgotten(ready.task, ready.run.params, halves, keep)
    expected = np.ones(20)
    expected[10] = 0  # its class stays
    np.testing.assert_array_equal(factor, expected)
    changed = np.flatnonzero((np.asarray(found.y) != np.asarray(halves.y)).any((1, 2)))
    assert changed.tolist() == [6, 7]
    labels = np.asarray(jax.nn.softmax(found.y[6:8]))
    assert labels[..., 3].max() < 1e-6
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-5)


def test_accuracies_and_the_attack():
    losses = np.array([0.1, 0.2, 0.3, 0.4])
    right = np.array([True, True, False, True])
    forgotten = np.array([True, False, True, False])
    found = unlearn.judge(losses, right, forgotten, [0.05, 0.5], [True, False])
    assert found == (0.5, 1.0, 0.5, 0.5)
    assert ddm.membership_auc([0.1, 0.2], [0.3, 0.4]) == 1.0
    assert ddm.membership_auc([0.3, 0.4], [0.1, 0.2]) == 0.0
    assert ddm.membership_auc([0.1, 0.2], [0.1, 0.2]) == 0.5
    for nothing in (np.zeros(4, bool), np.ones(4, bool)):
        with pytest.raises(ValueError, match="some of the training points, and not all"):
            unlearn.judge(losses, right, nothing, [0.1], [True])


def test_klom(rng):
    margins = rng.standard_normal((40, 6))
    np.testing.assert_allclose(ddm.klom(margins, margins), 0, atol=1e-12)
    far = ddm.klom(margins + 100, margins)
    near = ddm.klom(margins + 0.3, margins)
    assert (far > near).all()
    # Two bins that do not meet: log(1 / FLOOR) to within the floor's own weight.
    np.testing.assert_allclose(far, np.log(1 / unlearn.FLOOR), rtol=0.3)
    with pytest.raises(ValueError, match=r"\[seeds, Q\]"):
        ddm.klom(margins, margins[:, :3])
