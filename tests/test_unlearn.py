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


@pytest.mark.parametrize("amount", [1.0, 2.5])
def test_where_every_class_stays_it_is_a_difference_of_fine_tunes(ready, halves, amount):
    keep = jnp.ones(20).at[4].set(0)
    start = ddm.trajectory_point(ready.run.checkpoints, 0.5)
    forget = jax.jit(ddm.make_forget(ready.task, steps=5, optimizer=OPTIMIZER, amount=amount))
    plain = jax.jit(ddm.make_finetune(ready.task, steps=5, optimizer=OPTIMIZER))
    without, drift = plain(start, halves, keep), plain(start, halves, jnp.ones(20))
    jax.tree.map(
        lambda found, p, w, d: np.testing.assert_allclose(found, p + amount * (w - d), atol=1e-5),
        forget(ready.run.params, start, halves, keep),
        ready.run.params,
        without,
        drift,
    )
    nothing = forget(ready.run.params, start, halves, jnp.ones(20))
    jax.tree.map(np.testing.assert_array_equal, nothing, ready.run.params)
    assert unlearn.where_to_start(halves, keep, 0.5, 0.75) == (0.5, 0.75)


def test_a_class_that_is_gone_is_no_longer_named(ready, halves):
    keep = jnp.ones(20).at[jnp.array([6, 7])].set(0)
    forget = jax.jit(ddm.make_forget(ready.task, steps=60, optimizer=OPTIMIZER))
    params = forget(ready.run.params, ready.run.params, halves, keep)
    inside = ddm.types.take(ready.data, np.flatnonzero(ready.groups == 3))
    before = np.asarray(ready.task.apply(ready.run.params, inside.x)).argmax(1)
    after = np.asarray(ready.task.apply(params, inside.x)).argmax(1)
    assert (before == 3).mean() > 0.9
    assert (after == 3).mean() < 0.1
    others = ddm.types.take(ready.data, np.flatnonzero(ready.groups != 3))
    right = np.asarray(ready.task.apply(params, others.x)).argmax(1) == others.y.argmax(1)
    assert right.mean() > 0.9
    assert unlearn.where_to_start(halves, keep, 0.5, 0.75) == (pytest.approx(0.025), 0.0)


def test_a_class_has_parameters_of_its_own(ready, halves):
    params = ready.run.params
    classes = jnp.zeros(10).at[jnp.array([3, 5])].set(1)
    own = unlearn.own_parameters(ready.task, params, halves, classes)
    last = max(own)
    for name, layer in own.items():
        if name == last:
            np.testing.assert_array_equal(layer["bias"], classes)
            columns = np.asarray(layer["kernel"])
            assert columns[:, [3, 5]].mean() > 0.5
            assert not np.delete(columns, [3, 5], 1).any()
        else:
            assert not any(leaf.any() for leaf in jax.tree.leaves(layer))
    moved = jax.tree.map(lambda p, o: p - 3.0 * o, params, own)
    x = ready.data.x[:50]
    others = np.flatnonzero(classes == 0)
    before, after = ready.task.apply(params, x), ready.task.apply(moved, x)
    np.testing.assert_array_equal(before[:, others], after[:, others])
    assert (np.asarray(after)[:, 3] < np.asarray(before)[:, 3]).all()


def test_outputs_that_share_everything_leave_a_class_no_parameters(ready, halves):
    """Then everything moves from the first."""
    shared = ready.task._replace(
        apply=lambda params, x: jax.nn.log_softmax(ready.task.apply(params, x))
    )
    params, keep = ready.run.params, jnp.ones(20).at[jnp.array([6, 7])].set(0)
    own = unlearn.own_parameters(shared, params, halves, jnp.zeros(10).at[3].set(1))
    assert not any(leaf.any() for leaf in jax.tree.leaves(own))

    relabelled, factor = unlearn.relabel_forgotten(shared, params, halves, keep)
    expected = params
    for rate in (unlearn.FIRST * 0.05, 0.05):
        finetune = ddm.make_finetune(shared, steps=5, optimizer=optax.sgd(rate, 0.9, nesterov=True))
        expected = jax.jit(finetune)(expected, relabelled, factor)
    forget = jax.jit(ddm.make_forget(shared, steps=5, optimizer=OPTIMIZER))
    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, atol=1e-5),
        forget(params, params, halves, keep),
        expected,
    )


def test_a_class_goes_through_its_own_parameters_first(ready, halves):
    """So what is said of the other classes changes less than by the same steps on everything."""
    keep = jnp.ones(20).at[jnp.array([6, 7])].set(0)
    params, kept = ready.run.params, ready.data.x[ready.groups != 3]
    # Kept items have the answers of the network itself: nothing but forgetting moves it.
    answers = ready.task.apply(params, halves.x[:, 0]).at[:, 3].set(-1e4)[:, None]
    halves = halves._replace(y=jnp.where(keep[:, None, None] > 0, answers, halves.y))
    settings = {"steps": 30, "optimizer": optax.sgd(0.1, 0.9, nesterov=True)}
    found = jax.jit(ddm.make_forget(ready.task, **settings))(params, params, halves, keep)
    relabelled, factor = unlearn.relabel_forgotten(ready.task, params, halves, keep)
    plain = jax.jit(ddm.make_finetune(ready.task, **settings))(params, relabelled, factor)

    def others(network):
        return jax.nn.softmax(ready.task.apply(network, kept).at[:, 3].set(-1e4))

    off, off_plain = (jnp.mean(jnp.abs(others(n) - others(params))) for n in (found, plain))
    assert off < 0.5 * off_plain
    for network in (found, plain):
        named = np.asarray(ready.task.apply(network, ready.data.x[ready.groups == 3])).argmax(1)
        assert (named == 3).mean() < 0.1


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


@pytest.fixture
def two_groups():
    """Three classes of which the second group has two, and the third class nothing."""
    y = jnp.log(jnp.array([[[0.5, 0.5, 1e-9], [0.5, 0.5, 1e-9]], [[1e-9, 1, 1e-9], [1, 1, 1]]]))
    mass = jnp.array([[1.0, 3.0], [2.0, -4.0]])  # below zero counts for nothing
    return ddm.Synset(jnp.zeros((2, 2, 1)), y, mass, jnp.array([0.25, 0.75]))


def test_how_much_of_each_class_a_group_stands_for(two_groups):
    found = unlearn.class_frequency(two_groups)
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [0, 1.5, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("keep", "careful"),
    [([1, 1], False), ([1, 0], False), ([0, 1], True), ([0.005, 1], True), ([0.02, 1], False)],
)
def test_less_than_a_hundredth_of_a_class_is_none(two_groups, keep, careful):
    # The first class is the first group's alone.
    expected = (pytest.approx(0.01), 0.0) if careful else (0.2, 0.5)
    some = two_groups._replace(y=two_groups.y.at[..., 2].set(0))  # the third class is everywhere
    assert unlearn.where_to_start(some, np.array(keep), 0.2, 0.5) == expected


def test_the_new_label_is_the_second_choice(ready, halves):
    keep = jnp.ones(20).at[jnp.array([6, 7])].set(0)
    found, _ = unlearn.relabel_forgotten(ready.task, ready.run.params, halves, keep)
    chances = np.array(jax.nn.softmax(ready.task.apply(ready.run.params, halves.x[6:8, 0])))
    chances[:, 3] = 0
    expected = chances / chances.sum(1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(found.y[6:8, 0]), expected, atol=1e-5)
    np.testing.assert_array_equal(found.x, halves.x)
    np.testing.assert_array_equal(found.share, halves.share)


def test_what_repelled_is_not_descended_on_with_a_new_label(ready, synset):
    mixed = synset._replace(mass=synset.mass.at[:, 0].set(1.0).at[:, 1].set(-0.5))
    keep = jnp.ones(10).at[3].set(0)
    found, factor = unlearn.relabel_forgotten(ready.task, ready.run.params, mixed, keep)
    assert factor.tolist() == [1] * 10
    assert found.mass[3].tolist() == [1, 0]
    others = np.arange(10) != 3
    np.testing.assert_array_equal(found.mass[others], mixed.mass[others])


def test_klom_by_hand():
    """All in the first bin against half in the first and half in the last, and the reverse."""
    one, both = np.array([[0.0, 5.0], [0.0, 5.0]]), np.array([[0.0, 5.0], [1.0, 6.0]])
    np.testing.assert_allclose(ddm.klom(one, both), np.log(2), rtol=1e-3)
    reverse = 0.5 * np.log(0.5) + 0.5 * np.log(0.5 / unlearn.FLOOR)
    np.testing.assert_allclose(ddm.klom(both, one), reverse, rtol=1e-3)
    for wrong in (one[0], one[None]):
        with pytest.raises(ValueError, match=r"\[seeds, Q\]"):
            ddm.klom(wrong, both)


def test_klom_grows_with_the_shift(rng):
    margins = rng.standard_normal((200, 4))
    shifted = [ddm.klom(margins + shift, margins) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert (np.diff(shifted, axis=0) > 0).all()


def test_margins_of_a_network_that_diverged_are_refused(rng):
    margins = rng.standard_normal((4, 3))
    lost = margins.copy()
    lost[1, 2] = np.nan
    with pytest.raises(ValueError, match="some of the unlearned margins are not finite"):
        ddm.klom(lost, margins)
    with pytest.raises(ValueError, match="some of the retrained margins are not finite"):
        ddm.klom(margins, lost)


def test_a_class_that_never_was_is_not_gone(halves):
    """Its items have a chance of exactly zero of it."""
    none = halves._replace(y=halves.y.at[..., 9].set(-jnp.inf))
    keep = jnp.ones(20)
    assert unlearn.where_to_start(none, keep, 0.5, 0.75) == (0.5, 0.75)
    assert not np.asarray(unlearn.classes_gone(unlearn.class_frequency(none), keep)).any()


@pytest.mark.parametrize("amount", [0.0, -1.0, float("nan")])
def test_an_amount_that_goes_nowhere_is_refused(ready, amount):
    with pytest.raises(ValueError, match=f"amount={amount}; it must be positive"):
        ddm.make_forget(ready.task, steps=5, optimizer=OPTIMIZER, amount=amount)


def test_the_calibrated_amount_goes_as_far_as_retraining(rng):
    """Noise of the estimates and of the seeds does not change it."""
    true = rng.standard_normal((4, 3000))
    seeds = true + 2 * rng.standard_normal((3, 4, 3000))
    estimated = 0.4 * true + rng.standard_normal((4, 3000))
    assert unlearn.calibrated_amount(0.4 * true, np.stack([true, true])) == pytest.approx(2.5)
    assert unlearn.calibrated_amount(estimated, seeds) == pytest.approx(2.5, rel=0.2)
    assert unlearn.calibrated_amount(-estimated, seeds) == 1.0
    assert unlearn.calibrated_amount(np.zeros((4, 3000)), seeds) == 1.0
    with pytest.raises(ValueError, match=r"shape \(3, 3000\) and retrained ones \(3, 4, 3000\)"):
        unlearn.calibrated_amount(estimated[:3], seeds)
    with pytest.raises(ValueError, match="of two seeds or more"):
        unlearn.calibrated_amount(estimated, seeds[:1])
    with pytest.raises(ValueError, match="NaN or infinity"):
        unlearn.calibrated_amount(estimated * np.nan, seeds)
