"""Forgetting groups, and the measures of how well it went."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm
from ddm_jax import unlearn
from ddm_jax.items import SOFT_LABELS

OPTIMIZER = optax.sgd(0.05, 0.9, nesterov=True)


@pytest.fixture(scope="module")
def halves(ready, synset):
    """Two groups a class, of one item each: a class can stay when a group of it goes."""
    return ddm.Synset(
        items=synset.items,
        group=jnp.arange(20, dtype=jnp.int32),
        mass=jnp.maximum(synset.mass, 1e-3),
        share=jnp.repeat(synset.share, 2),
    )


def relabelled(synset, y):
    return synset._replace(items=synset.items._replace(y=y))


@pytest.mark.slow
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
    # To what rounding leaves of the difference of two equal fine-tunes.
    jax.tree.map(
        lambda found, p: np.testing.assert_allclose(found, p, rtol=0, atol=1e-6),
        nothing,
        ready.run.params,
    )
    assert unlearn.where_to_start(halves, keep, 0.5, 0.75) == (0.5, 0.75)


@pytest.mark.slow
def test_a_class_that_is_gone_is_no_longer_named(ready, halves):
    keep = jnp.ones(20).at[jnp.array([6, 7])].set(0)
    forget = jax.jit(ddm.make_forget(ready.task, steps=60, optimizer=OPTIMIZER))
    params = forget(ready.run.params, ready.run.params, halves, keep)
    inside = ddm.types.take(ready.data, np.flatnonzero(ready.groups.ids == 3))
    before = np.asarray(ready.task.apply(ready.run.params, inside.x)).argmax(1)
    after = np.asarray(ready.task.apply(params, inside.x)).argmax(1)
    assert (before == 3).mean() > 0.9
    assert (after == 3).mean() < 0.1
    others = ddm.types.take(ready.data, np.flatnonzero(ready.groups.ids != 3))
    right = np.asarray(ready.task.apply(params, others.x)).argmax(1) == others.y.argmax(1)
    assert right.mean() > 0.9
    assert unlearn.where_to_start(halves, keep, 0.5, 0.75) == (pytest.approx(0.025), 0.0)


@pytest.mark.slow
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


@pytest.mark.slow
def test_outputs_that_share_everything_leave_a_class_no_parameters(ready, halves):
    """Then everything moves from the first."""
    shared = ready.task._replace(
        apply=lambda params, x: jax.nn.log_softmax(ready.task.apply(params, x))
    )
    params, keep = ready.run.params, jnp.ones(20).at[jnp.array([6, 7])].set(0)
    own = unlearn.own_parameters(shared, params, halves, jnp.zeros(10).at[3].set(1))
    assert not any(leaf.any() for leaf in jax.tree.leaves(own))

    changed, factor = unlearn.relabel_forgotten(shared, params, halves, keep)
    expected = params
    for rate in (unlearn.FIRST * 0.05, 0.05):
        finetune = ddm.make_finetune(shared, steps=5, optimizer=optax.sgd(rate, 0.9, nesterov=True))
        expected = jax.jit(finetune)(expected, changed, factor)
    forget = jax.jit(ddm.make_forget(shared, steps=5, optimizer=OPTIMIZER))
    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, atol=1e-5),
        forget(params, params, halves, keep),
        expected,
    )


@pytest.mark.slow
def test_a_class_goes_through_its_own_parameters_first(ready, halves):
    """So what is said of the other classes changes less than by the same steps on everything."""
    keep = jnp.ones(20).at[jnp.array([6, 7])].set(0)
    params, kept = ready.run.params, ready.data.x[ready.groups.ids != 3]
    # Kept items have the answers of the network itself: nothing but forgetting moves it.
    answers = ready.task.apply(params, halves.items.x).at[:, 3].set(-1e4)
    halves = relabelled(halves, jnp.where(keep[:, None] > 0, answers, halves.items.y))
    settings = {"steps": 30, "optimizer": optax.sgd(0.1, 0.9, nesterov=True)}
    found = jax.jit(ddm.make_forget(ready.task, **settings))(params, params, halves, keep)
    changed, factor = unlearn.relabel_forgotten(ready.task, params, halves, keep)
    plain = jax.jit(ddm.make_finetune(ready.task, **settings))(params, changed, factor)

    def others(network):
        return jax.nn.softmax(ready.task.apply(network, kept).at[:, 3].set(-1e4))

    off, off_plain = (jnp.mean(jnp.abs(others(n) - others(params))) for n in (found, plain))
    assert off < 0.5 * off_plain
    for network in (found, plain):
        named = np.asarray(ready.task.apply(network, ready.data.x[ready.groups.ids == 3])).argmax(1)
        assert (named == 3).mean() < 0.1


def test_only_the_forgotten_items_of_a_class_that_is_gone_are_relabelled(ready, halves):
    keep = jnp.ones(20).at[jnp.array([6, 7, 10])].set(0)
    found, factor = unlearn.relabel_forgotten(ready.task, ready.run.params, halves, keep)
    expected = np.ones(20)
    expected[10] = 0  # its class stays
    np.testing.assert_array_equal(factor, expected)
    changed = np.flatnonzero((np.asarray(found.items.y) != np.asarray(halves.items.y)).any(1))
    assert changed.tolist() == [6, 7]
    labels = np.asarray(jax.nn.softmax(found.items.y[6:8]))
    assert labels[..., 3].max() < 1e-6
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-5)


@pytest.fixture
def two_groups():
    """Three classes of which the second group has two, and the third class nothing."""
    y = jnp.log(jnp.array([[0.5, 0.5, 1e-9], [0.5, 0.5, 1e-9], [1e-9, 1, 1e-9], [1, 1, 1]]))
    mass = jnp.array([1.0, 3.0, 2.0, -4.0])  # below zero counts for nothing
    items, group = ddm.Batch(jnp.zeros((4, 1)), y), jnp.array([0, 0, 1, 1])
    return ddm.Synset(items, group, mass, jnp.array([0.25, 0.75]))


def test_how_much_of_each_class_a_group_stands_for(two_groups):
    found = unlearn.class_frequency(two_groups)
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [0, 1.5, 0], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("keep", "careful"),
    [([1, 1], False), ([1, 0], False), ([0, 1], True), ([0.005, 1], True), ([0.02, 1], False)],
)
def test_less_than_a_hundredth_of_a_class_is_none(two_groups, keep, careful):
    # The first class is the first group's alone.
    expected = (pytest.approx(0.01), 0.0) if careful else (0.2, 0.5)
    # The third class is everywhere.
    some = relabelled(two_groups, two_groups.items.y.at[:, 2].set(0))
    assert unlearn.where_to_start(some, np.array(keep), 0.2, 0.5) == expected


def test_the_new_label_is_the_second_choice(ready, halves):
    keep = jnp.ones(20).at[jnp.array([6, 7])].set(0)
    found, _ = unlearn.relabel_forgotten(ready.task, ready.run.params, halves, keep)
    chances = np.array(jax.nn.softmax(ready.task.apply(ready.run.params, halves.items.x[6:8])))
    chances[:, 3] = 0
    expected = chances / chances.sum(1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(found.items.y[6:8]), expected, atol=1e-5)
    np.testing.assert_array_equal(found.items.x, halves.items.x)
    np.testing.assert_array_equal(found.share, halves.share)


def test_what_repelled_is_not_descended_on_with_a_new_label(ready, synset):
    mixed = synset._replace(mass=jnp.tile(jnp.array([1.0, -0.5]), 10))
    keep = jnp.ones(10).at[3].set(0)
    found, factor = unlearn.relabel_forgotten(ready.task, ready.run.params, mixed, keep)
    assert factor.tolist() == [1] * 10
    assert found.mass[6:8].tolist() == [1, 0]
    others = synset.group != 3
    np.testing.assert_array_equal(found.mass[others], mixed.mass[others])


def test_a_class_that_never_was_is_not_gone(halves):
    """Its items have a chance of exactly zero of it."""
    none = relabelled(halves, halves.items.y.at[:, 9].set(-jnp.inf))
    keep = jnp.ones(20)
    assert unlearn.where_to_start(none, keep, 0.5, 0.75) == (0.5, 0.75)
    assert not np.asarray(unlearn.classes_gone(unlearn.class_frequency(none), keep)).any()


@pytest.mark.parametrize("amount", [0.0, -1.0, float("nan")])
def test_an_amount_that_goes_nowhere_is_refused(ready, amount):
    with pytest.raises(
        ValueError, match=f"amount={amount}; it must be a finite number and above 0"
    ):
        ddm.make_forget(ready.task, steps=5, optimizer=OPTIMIZER, amount=amount)


def test_without_classes_forgetting_is_the_difference(ready, synset):
    """A class that is gone as a whole is a question to classifiers alone."""
    keep = jnp.ones(10).at[3].set(0)
    start, settings = ready.run.params, {"steps": 5, "optimizer": OPTIMIZER}
    soft = synset._replace(items=SOFT_LABELS.batch(synset.items))
    real = ready.task._replace(targets="any")
    forget = jax.jit(ddm.make_forget(real, **settings))
    finetune = ddm.make_finetune(real, **settings)
    moved, drift = (finetune(start, soft, each) for each in (keep, jnp.ones(10)))
    want = jax.tree.map(lambda p, m, d: p + m - d, start, moved, drift)
    got = forget(start, start, soft, keep)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


@pytest.mark.slow
def test_numbers_are_no_classes_that_could_be_gone():
    """By softmax the first of two numbers is a class that the first group has alone."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(20, 3)).astype(np.float32)
    y = np.where(np.arange(20)[:, None] < 10, [20.0, 0.0], [0.0, 20.0]).astype(np.float32)
    data, groups = ddm.Batch(x, y), ddm.as_groups(np.repeat([0, 1], 10))
    task = ddm.regression(ddm.models.MLP(2, (4,)), (3,))
    train = ddm.make_train(task, steps=4, batch_size=10, learning_rate=0.01, checkpoint_every=2)
    run = jax.jit(train)(jax.random.key(0), data, jnp.ones(20))
    update = ddm.UpdateSettings(steps=2, batch=4, rewind=0.5)
    settings = ddm.DistillSettings(items=2, steps=0)
    state = ddm.make_ddm(task, settings, update).fit(jax.random.key(1), run, data, groups)
    assert unlearn.where_to_start(state.synset, np.array([0.0, 1.0]), 1.0, 0.5)[1] == 0
    assert not unlearn.forget_groups(task, state, np.array([0.0, 1.0]), update).careful


def curved(rate):
    """A task whose outputs are `exp(rate w) - 1` of Q weights: no proportion to the amount."""

    def output(params, batch):
        return (jnp.exp(rate * params["w"]) - 1) / rate

    return ddm.Task(init=None, loss=None, output=output)  # type: ignore[arg-type]


QUERY = ddm.Batch(np.zeros((50, 1), np.float32), np.zeros((50, 2), np.float32))


@pytest.mark.parametrize("rate", [1e-3, 0.5])
def test_the_amount_is_where_outputs_have_moved_as_far_as_by_retraining(rng, rate):
    start = {"w": jnp.zeros(50)}
    steps = 0.3 * rng.standard_normal((3, 50)).astype(np.float32)
    moved = [{"w": jnp.asarray(each)} for each in steps]
    amounts = np.array([2.0, 3.0, 9.0])  # of a group that was known by heart
    effects = (np.exp(rate * amounts[:, None] * steps) - 1) / rate
    noise = 0.01 * rng.standard_normal((4, 3, 50))
    found = unlearn.calibrated_amount(curved(rate), start, moved, QUERY, effects + noise)
    assert found == pytest.approx(3.0, rel=0.03)


def test_where_retraining_says_nothing_the_amount_is_one(rng):
    start, moved = {"w": jnp.zeros(50)}, [{"w": jnp.ones(50)}] * 2
    noise = rng.standard_normal((1, 2, 50)) * np.array([1, -1])[:, None, None]
    assert unlearn.calibrated_amount(curved(0.1), start, moved, QUERY, noise) == 1.0
    away = -np.ones((2, 2, 50))  # no amount goes there
    assert unlearn.calibrated_amount(curved(0.1), start, moved, QUERY, away) == 1.0
    assert unlearn.calibrated_amount(curved(0.1), start, [start] * 2, QUERY, -away) == 1.0
    lost = [{"w": jnp.full(50, jnp.nan)}] * 2
    assert unlearn.calibrated_amount(curved(0.1), start, lost, QUERY, -away) == 1.0
    far = unlearn.calibrated_amount(curved(1e-3), start, moved, QUERY, -1000 * away)
    assert far == pytest.approx(unlearn.MOST, rel=0.01)


def test_of_a_set_the_amount_takes_the_output_of_all_queries(rng):
    """It was cut where batches are: two outputs of 600 queries for one."""
    rows = rng.standard_normal((600, 1)).astype(np.float32)
    task = ddm.Task(
        init=None,  # type: ignore[arg-type]
        loss=None,  # type: ignore[arg-type]
        output=lambda params, batch: jnp.mean(batch.x @ params["w"])[None],
        of_sets=True,
    )
    start, moved = {"w": jnp.zeros(1)}, [{"w": jnp.ones(1)}]
    effect = np.full((2, 1, 1), 2.5 * rows.mean())
    query = ddm.Batch(rows, rows)
    assert unlearn.calibrated_amount(task, start, moved, query, effect) == pytest.approx(2.5, 0.01)


def test_several_masks_are_no_network_that_forgets(ready, synset):
    """The second one was left out without a word."""
    run = ready.run
    state = ddm.estimators.ddm.distilled_run(run, synset, ddm.estimators.ddm.undistilled(synset))
    forget = unlearn.make_forget_groups(ready.task, state, ddm.UpdateSettings(steps=1, batch=10))
    with pytest.raises(ValueError, match=r"keep has shape \(2, 10\); one network forgets"):
        forget(np.ones((2, 10)))


@pytest.mark.parametrize(
    ("effects", "told"),
    [
        (np.ones((2, 3, 50)), r"shape \(2, 3, 50\); it must be \[S, 2, Q\]"),
        (np.ones((1, 2, 50)), "of two seeds or more"),
        (np.ones((2, 2, 49)), "50 outputs, and effects of 49 queries"),
        (np.full((2, 2, 50), np.nan), "NaN or infinity"),
    ],
)
def test_effects_that_do_not_fit_are_refused(effects, told):
    start = {"w": jnp.zeros(50)}
    with pytest.raises(ValueError, match=told):
        unlearn.calibrated_amount(curved(0.1), start, [start] * 2, QUERY, effects)
