"""Items: a synset for any loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax.items import SOFT_LABELS, free_leaves, items_of, leaf_names, leaf_units
from ddm_jax.synset import by_group, deal, initial_synset, item_weights
from ddm_jax.types import Items

N, K = 60, 5


def mixed_task():
    """A regression on a dict: a float vector, a token, and a masked target that stays."""

    def predict(params, x):
        return x["numbers"] @ params["weights"] + params["table"][x["token"]]

    def loss(params, batch):
        return batch.y["known"] * (predict(params, batch.x) - batch.y["value"]) ** 2

    return ddm.Task(
        init=lambda key: {"weights": jnp.zeros(3), "table": jnp.zeros(4)},
        loss=loss,
        output=lambda params, batch: predict(params, batch.x),
        targets="any",
        items=Items(free=("x", "y.value")),
    )


@pytest.fixture(scope="module")
def mixed():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(N, 3)).astype(np.float32)
    token = rng.integers(4, size=N).astype(np.int32)
    value = numbers @ np.array([1.0, -2.0, 0.5]) + token + rng.normal(size=N)
    value = value.astype(np.float32)
    y = {"known": np.ones(N, np.float32), "value": value}
    data = ddm.Batch({"numbers": numbers, "token": token}, y)
    groups = ddm.as_groups(np.arange(N) % K)
    train = ddm.make_train(
        mixed_task(), steps=100, batch_size=20, learning_rate=0.1, checkpoint_every=20
    )
    run = jax.jit(train)(jax.random.key(0), data, jnp.ones(N))
    return data, groups, train, run


def distil(mixed, **settings):
    data, groups, _, run = mixed
    made = ddm.make_ddm(mixed_task(), ddm.DistillSettings(**({"items": 3, "steps": 30} | settings)))
    return made, made.fit(jax.random.key(1), run, data, groups)


def test_names_are_paths():
    items = ddm.Batch({"a": jnp.ones(2), "b": {"c": jnp.ones(2)}}, None)
    assert leaf_names(items) == ["x.a", "x.b.c"]
    assert leaf_names(ddm.Batch(jnp.ones(2), jnp.ones(2))) == ["x", "y"]


def test_what_a_task_says_nothing_of_is_soft_labels_or_kept():
    task = mixed_task()._replace(items=None)
    assert items_of(task) == Items()
    assert items_of(task._replace(targets="distribution")) is SOFT_LABELS


@pytest.mark.slow
def test_only_free_leaves_move_and_integers_stay_members(mixed):
    data = mixed[0]
    _, state = distil(mixed)
    start, moved = state.info.start.items, state.synset.items
    assert moved.x["token"].dtype == np.int32
    np.testing.assert_array_equal(moved.x["token"], start.x["token"])
    np.testing.assert_array_equal(moved.y["known"], start.y["known"])
    assert (np.asarray(moved.x["numbers"]) != start.x["numbers"]).any()
    assert (np.asarray(moved.y["value"]) != start.y["value"]).any()
    # The start are members, whose every leaf is of one point.
    members = np.c_[data.x["numbers"], data.x["token"], data.y["value"]]
    begun = np.c_[start.x["numbers"], start.x["token"], start.y["value"]]
    assert all((members == row).all(1).any() for row in begun)


@pytest.mark.parametrize(
    ("learn", "moves"),
    [
        (("mass",), set()),
        (("x.numbers",), {"x.numbers"}),
        (("y",), {"y.value"}),
        (("y.value", "mass"), {"y.value"}),
    ],
)
def test_learn_names_leaves(mixed, learn, moves):
    _, state = distil(mixed, learn=learn)
    start, end = state.info.start, state.synset
    changed = {
        name
        for name, a, b in zip(
            leaf_names(start.items),
            jax.tree.leaves(start.items),
            jax.tree.leaves(end.items),
            strict=True,
        )
        if (np.asarray(a) != np.asarray(b)).any()
    }
    assert changed == moves
    assert (np.asarray(start.mass) != np.asarray(end.mass)).any() == ("mass" in learn)


@pytest.mark.parametrize(
    ("learn", "message"),
    [
        (("z",), r"distill.learn names 'z'; name x, y, mass, or a part of an item as x\.image"),
        (("x.pixels",), r"names 'x\.pixels'; an item has x\.numbers, x\.token, y\.known, y\.val"),
        (("x.token",), r"names 'x\.token', which stays as it was found"),
        (("y.known",), r"names 'y\.known', which stays as it was found"),
    ],
)
def test_what_cannot_be_learnt_is_refused_before_anything_is_computed(mixed, learn, message):
    with pytest.raises(ValueError, match=message):
        distil(mixed, learn=learn)


def test_leaves_of_another_order_move_in_their_own_units():
    items = ddm.Batch({"a": np.array([1.0, 2.0]), "b": np.array([100.0, 300.0])}, np.array([1, 2]))
    assert leaf_units(items) == [1.0, 100.0, 1.0]
    tiny = ddm.Batch(np.array([0.0, 2e-3], np.float32), None)
    np.testing.assert_allclose(leaf_units(tiny), [1e-3], rtol=1e-5)
    assert free_leaves(
        mixed_task(), ddm.Batch({"a": np.ones(2), "n": np.ones(2, int)}, None), ("x",)
    ) == [
        True,
        False,
    ]


@pytest.mark.slow
def test_a_unit_is_a_rescaling_of_the_leaf(mixed):
    """Prices in cents are distilled as prices in dollars are."""
    data, groups, _, run = mixed
    task, many = mixed_task(), 1000.0

    def loss(params, batch):
        return task.loss(params, batch._replace(x=batch.x | {"numbers": batch.x["numbers"] / many}))

    scaled = task._replace(loss=loss)
    other = data._replace(x=data.x | {"numbers": data.x["numbers"] * many})
    settings = ddm.DistillSettings(items=3, steps=30, learning_rate=0.05)
    found = []
    for each, points in ((task, data), (scaled, other)):
        state = ddm.make_ddm(each, settings).fit(jax.random.key(1), run, points, groups)
        found.append(state.info.error)
    np.testing.assert_allclose(found[0], found[1], rtol=0.2, atol=0.02)


@pytest.mark.slow
def test_without_targets_and_with_noise_for_a_start(mixed):
    data, groups, _, _ = mixed

    def loss(params, batch):
        return jnp.sum((batch.x - batch.x @ params @ params.T) ** 2, -1)

    task = ddm.Task(
        init=lambda key: 0.1 * jax.random.normal(key, (3, 2)),
        loss=loss,
        output=loss,
        targets="any",
    )
    points = ddm.Batch(data.x["numbers"], None)
    train = ddm.make_train(task, steps=20, batch_size=20, learning_rate=0.05, checkpoint_every=5)
    run = jax.jit(train)(jax.random.key(0), points, jnp.ones(N))
    made = ddm.make_ddm(task, ddm.DistillSettings(items=2, steps=20, start="noise"))
    state = made.fit(jax.random.key(1), run, points, groups)
    assert state.synset.items.y is None
    assert np.isfinite(made.score(state, points)).all()


def test_noise_needs_something_that_can_be_noise(mixed):
    data, groups, _, run = mixed
    tokens = ddm.Batch({"token": data.x["token"]}, data.y)
    with pytest.raises(ValueError, match="start='noise' needs floating-point inputs"):
        initial_synset(jax.random.key(0), mixed_task(), "noise", run, tokens, groups, 2, [0])


# Background and weights


def with_background(groups, gone):
    ids = np.asarray(groups.ids).copy()
    ids[ids == gone] = -1
    return ddm.as_groups(np.where(ids > gone, ids - 1, ids))


@pytest.fixture(scope="module")
def background(mixed):
    """The same synset for K groups, and for K - 1 of them and a background."""
    data, groups, _, run = mixed
    # Three items a group, all in one batch.
    update = ddm.UpdateSettings(steps=20, batch=3 * K)
    made = ddm.make_ddm(mixed_task(), ddm.DistillSettings(items=3, steps=30), update)
    cut = with_background(groups, K - 1)
    return made, *(made.fit(jax.random.key(1), run, data, each) for each in (groups, cut))


@pytest.mark.slow
def test_a_background_is_a_group_that_is_always_there(mixed, background):
    data = mixed[0]
    made, whole, some = background
    assert some.synset.share.shape == (K - 1,)
    assert set(np.asarray(some.synset.group)) == {-1, *range(K - 1)}
    scores = [np.asarray(made.score(state, data)) for state in (whole, some)]
    assert scores[1].shape == (K - 1, N)
    np.testing.assert_allclose(scores[1], scores[0][: K - 1], atol=1e-5)
    masks = np.array([[0, 1, 1, 2], [0.5, 1, 0, 1]], np.float32)
    both = [
        np.asarray(made.outputs(state, each, data))
        for state, each in ((whole, np.c_[masks, np.ones(2, np.float32)]), (some, masks))
    ]
    np.testing.assert_allclose(both[1], both[0], atol=1e-5)
    # Its items weigh as they did, and have their turn as they had.
    weights = [item_weights(state.synset, jnp.ones(k)) for state, k in ((whole, K), (some, K - 1))]
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-6)
    assert deal(some.synset, 4, 9).shape == (9, 4)
    np.testing.assert_array_equal(deal(some.synset, 4, 9), deal(whole.synset, 4, 9))
    grouped = by_group(some.synset)
    assert grouped.share.shape == (K,)
    np.testing.assert_allclose(grouped.share, by_group(whole.synset).share, rtol=1e-6)


@pytest.mark.slow
def test_weights_are_those_of_retraining(mixed):
    """Halved, doubled and left out: the answers follow exact retraining with these weights."""
    data, groups, train, _ = mixed
    made, state = distil(mixed, steps=200, items=6)
    rng = np.random.default_rng(1)
    masks = rng.choice([0, 0.5, 1, 2], (10, K)).astype(np.float32)
    masks[:, 0] = 1
    retraining = ddm.make_retraining(mixed_task(), train, seeds=2)
    exact = retraining.fit(jax.random.key(3), mixed[3], data, groups)
    want = np.asarray(retraining.outputs(exact, masks, data))
    got = np.asarray(made.outputs(state, masks, data))
    assert ddm.metrics.linear_datamodeling_score(got, want).mean > 0.7


# Optimisers of Adam's kind


@pytest.mark.slow
def test_the_updates_follow_the_kind_of_training(mixed):
    data, groups, _, run = mixed
    train = ddm.make_train(
        mixed_task(),
        steps=60,
        batch_size=20,
        optimizer="adamw",
        learning_rate=0.05,
        weight_decay=0.1,
        checkpoint_every=10,
    )
    adam = jax.jit(train)(jax.random.key(0), data, jnp.ones(N))
    settings = ddm.DistillSettings(items=3, steps=20)
    fitted = ddm.make_ddm(mixed_task(), settings).fit(jax.random.key(1), adam, data, groups)
    assert fitted.second_moments is not None
    assert float(fitted.decoupled_decay) == pytest.approx(0.1)

    def scores(optimizer, state=fitted):
        update = ddm.UpdateSettings(steps=5, optimizer=optimizer)
        return np.asarray(ddm.make_ddm(mixed_task(), settings, update).score(state, data))

    np.testing.assert_array_equal(scores(None), scores("preconditioned"))
    assert np.abs(scores(None) - scores("sgd")).max() > 1e-4
    plain = ddm.make_ddm(mixed_task(), settings).fit(jax.random.key(1), run, data, groups)
    assert plain.second_moments is None
    np.testing.assert_array_equal(scores(None, plain), scores("sgd", plain))
    with pytest.raises(ValueError, match="needs the squared gradients of a training by Adam's"):
        scores("preconditioned", plain)


@pytest.mark.slow
def test_final_parameters_are_enough(mixed):
    data, groups, _, run = mixed
    made = ddm.make_ddm(mixed_task(), ddm.DistillSettings(items=3, steps=20))
    state = made.fit(jax.random.key(1), ddm.make_run(run.params), data, groups)
    assert np.isfinite(made.score(state, data)).all()
    assert np.isnan(state.info.error).all()  # no checkpoint was held out


# Several networks


@pytest.fixture(scope="module")
def several(mixed):
    data, groups, train, _ = mixed
    runs = [jax.jit(train)(jax.random.key(seed), data, jnp.ones(N)) for seed in range(3)]
    return data, groups, runs


@pytest.mark.slow
def test_several_networks_say_their_mean(several):
    data, groups, runs = several
    one = ddm.make_ddm(mixed_task(), ddm.DistillSettings(items=2, steps=10))
    made, key = ddm.over_networks(one), jax.random.key(1)
    states = made.fit(key, runs, data, groups)
    each = [
        one.score(one.fit(jax.random.fold_in(key, n), run, data, groups), data)
        for n, run in enumerate(runs)
    ]
    np.testing.assert_allclose(made.score(states, data), np.mean(each, 0), atol=1e-6)
    masks = 1 - np.eye(K, dtype=np.float32)
    assert made.outputs(states, masks, data).shape == (K, N)


@pytest.mark.slow
def test_one_synset_serves_several_networks(several):
    data, groups, runs = several
    one = ddm.make_ddm(mixed_task(), ddm.DistillSettings(items=3, steps=20))
    states = ddm.over_networks(one, one_synset=True).fit(jax.random.key(1), runs, data, groups)
    assert len(states) == 3
    for state, run in zip(states, runs, strict=True):
        assert state.synset is states[0].synset
        np.testing.assert_array_equal(state.checkpoints["table"], run.checkpoints["table"])
    # It was matched at the networks of all: each by itself finds its gradients in it.
    assert np.median(states[0].info.error) < 0.5


def test_several_networks_are_a_list_of_runs(several):
    data, groups, runs = several
    made = ddm.over_networks(ddm.estimators.make_grad_dot(mixed_task()))
    for wrong in (runs[0], list(runs[0])):
        with pytest.raises(ValueError, match="takes a list of runs"):
            made.fit(jax.random.key(0), wrong, data, groups)
    with pytest.raises(ValueError, match="at least one run"):
        made.fit(jax.random.key(0), [], data, groups)
    other = ddm.over_networks(ddm.estimators.make_grad_dot(mixed_task()), one_synset=True)
    with pytest.raises(ValueError, match="one_synset=True is for make_ddm"):
        other.fit(jax.random.key(0), runs, data, groups)
