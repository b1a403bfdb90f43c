import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm
from ddm_jax.train import TrainSettings, cosine_schedule, make_trainer, recipe, steps_an_epoch
from ddm_jax.types import Optimizer


def linear_task():
    """Ridge regression: a task that is not flax, with a closed form."""

    def loss(params, batch):
        return 0.5 * jnp.sum((batch.x @ params - batch.y) ** 2, -1)

    return ddm.Task(
        init=lambda key: jax.random.normal(key, (4, 1)),
        apply=lambda params, x: x @ params,
        loss=loss,
        output=lambda params, batch: (batch.x @ params)[:, 0],
        targets="any",
    )


@pytest.fixture(scope="module")
def regression():
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (20, 4))
    return ddm.Batch(x, x @ jnp.arange(1.0, 5.0)[:, None] + jax.random.normal(keys[1], (20, 1)))


def ridge(data, weights, decay):
    w = weights / weights.sum()
    hessian = (data.x * w[:, None]).T @ data.x + decay * jnp.eye(4)
    return jnp.linalg.solve(hessian, (data.x * w[:, None]).T @ data.y)


@pytest.mark.parametrize("seed", [0, 1])
def test_full_batches_reach_the_weighted_ridge_solution(regression, seed):
    train = ddm.make_train(
        linear_task(), steps=400, batch_size=20, learning_rate=0.3, weight_decay=0.1
    )
    weights = jnp.array([0.0, 2.0, 1.0, 0.0] * 5)
    run = jax.jit(train)(jax.random.key(seed), regression, weights)
    want = ridge(regression, weights, 0.1)
    assert run.params.shape == want.shape == (4, 1)
    np.testing.assert_allclose(run.params, want, atol=1e-5)


def test_one_step_by_hand():
    data = ddm.Batch(jnp.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]), jnp.array([[1.0], [2.0]]))
    task = linear_task()._replace(init=lambda key: jnp.ones((4, 1)))
    train = ddm.make_train(task, steps=1, batch_size=2, learning_rate=0.5, weight_decay=0.1)
    run = train(jax.random.key(0), data, jnp.array([1.0, 3.0]))
    # Residuals 0 and -1, mean weights 1/4 and 3/4, decay .1 * 1.
    want = 1 - 0.5 * np.array([0 + 0.1, -0.75 + 0.1, 0.1, 0.1])
    np.testing.assert_allclose(run.params[:, 0], want, rtol=1e-6)
    np.testing.assert_allclose(run.losses, [0.375], rtol=1e-6)


def test_weight_zero_is_the_same_as_another_value_of_the_point(ready):
    weights = jnp.ones(150).at[7].set(0.0)
    changed = ready.data._replace(x=ready.data.x.at[7].set(9.0))
    a = jax.jit(ready.train)(jax.random.key(1), ready.data, weights)
    b = jax.jit(ready.train)(jax.random.key(1), changed, weights)
    for one, other in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_without_weight_only_decays():
    data = ddm.Batch(jnp.ones((2, 4)), jnp.ones((2, 1)))
    task = linear_task()._replace(init=lambda key: jnp.ones((4, 1)))
    train = ddm.make_train(task, steps=1, batch_size=2, learning_rate=0.5, weight_decay=0.1)
    run = train(jax.random.key(0), data, jnp.zeros(2))
    np.testing.assert_allclose(run.params, np.full((4, 1), 0.95), rtol=1e-6)


def test_the_run_records_its_trajectory(ready):
    run = ready.run
    assert run.rows.shape == (60, 50)
    assert run.losses.shape == run.learning_rates.shape == (60,)
    np.testing.assert_array_equal(run.steps, np.arange(6, 61, 6))
    assert run.steps.dtype == jnp.int32
    assert run.optimizer == Optimizer("sgd", (("momentum", 0.5),))
    np.testing.assert_allclose(run.weight_decay, 1e-3)
    start = jax.jit(ready.task.init)(jax.random.fold_in(jax.random.key(0), 0))
    jax.tree.map(np.testing.assert_array_equal, run.start, start)
    assert run.second_moments is None
    for leaf, last in zip(
        jax.tree.leaves(run.checkpoints), jax.tree.leaves(run.params), strict=True
    ):
        assert leaf.shape == (10, *last.shape)
        np.testing.assert_array_equal(leaf[-1], last)
    for epoch in range(20):
        seen = np.sort(np.asarray(run.rows[3 * epoch : 3 * epoch + 3]).ravel())
        np.testing.assert_array_equal(seen, np.arange(150))


@pytest.mark.slow
def test_checkpoints_are_counted_back_from_the_end(ready):
    short = ddm.make_train(ready.task, steps=7, batch_size=50, learning_rate=0.1)
    kept = ddm.make_train(ready.task, steps=7, batch_size=50, learning_rate=0.1, checkpoint_every=3)
    upto = ddm.make_train(ready.task, steps=4, batch_size=50, learning_rate=0.1)
    arguments = (jax.random.key(0), ready.data, jnp.ones(150))
    run, whole, part = (
        jax.jit(kept)(*arguments),
        jax.jit(short)(*arguments),
        jax.jit(upto)(*arguments),
    )
    for leaf, a, b in zip(
        *map(jax.tree.leaves, (run.checkpoints, part.params, whole.params)), strict=True
    ):
        assert leaf.shape[0] == 2
        np.testing.assert_allclose(leaf[0], a, atol=1e-6)
        np.testing.assert_allclose(leaf[1], b, atol=1e-6)
    assert run.losses.shape == (7,)
    np.testing.assert_array_equal(run.steps, [4, 7])
    np.testing.assert_array_equal(whole.steps, [7])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "every", "kept"),
    [(50, 20, [30, 50]), (50, 25, [25, 50]), (7, 4, [7]), (5, 1, [1, 2, 3, 4, 5])],
)
@pytest.mark.parametrize("last_batch", ["drop", "keep"])
def test_a_run_knows_after_how_many_steps_each_checkpoint_was(
    regression, steps, every, kept, last_batch
):
    """0.8 guessed S // T, which says 25 and 50 where there are 30 and 50."""
    settings = {"batch_size": 6, "learning_rate": 0.05, "last_batch": last_batch}
    trainer = make_trainer(linear_task(), steps=steps, checkpoint_every=every, **settings)
    np.testing.assert_array_equal(trainer.checkpoint_steps, kept)
    key, weights = jax.random.key(3), jnp.ones(20)
    run = jax.jit(trainer.train)(key, regression, weights)
    np.testing.assert_array_equal(run.steps, kept)
    assert len(run.checkpoints) == len(kept)
    state, advance = trainer.start(key), jax.jit(trainer.advance)
    for checkpoint, first, last in zip(run.checkpoints, [0, *kept], kept, strict=False):
        state, _ = advance(state, run.rows[first:last], regression, weights)
        np.testing.assert_allclose(checkpoint, state.params, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("last_batch", "steps"), [("drop", [6, 12, 18]), ("keep", [9, 18, 27])])
def test_a_recipe_counts_in_epochs(ready, last_batch, steps):
    """150 digits in batches of 64: two full ones, and with "keep" a third of 22."""
    settings = TrainSettings(
        epochs=9,
        batch_size=64,
        learning_rate=0.2,
        final_learning_rate=0.02,
        warmup_epochs=3,
        momentum=0.9,
        weight_decay=0.01,
        last_batch=last_batch,
        checkpoint_every=3,
    )
    trainer = recipe(ready.task, settings, 150)
    np.testing.assert_array_equal(trainer.checkpoint_steps, steps)
    rows = np.asarray(trainer.batches(jax.random.key(0), 150))
    assert rows.shape == (steps[-1], 64)
    if last_batch == "keep":
        for epoch in rows.reshape(9, -1):
            np.testing.assert_array_equal(np.sort(epoch[epoch >= 0]), np.arange(150))
    run = jax.jit(trainer.train)(jax.random.key(0), ready.data, jnp.ones(150))
    np.testing.assert_array_equal(run.steps, steps)
    assert run.optimizer.get("momentum") == 0.9
    np.testing.assert_allclose(run.weight_decay, 0.01, rtol=1e-6)
    np.testing.assert_allclose(run.learning_rates[0], 0, atol=1e-7)
    np.testing.assert_allclose(run.learning_rates[steps[0]], 0.2, rtol=1e-5)
    want = cosine_schedule(0.2, steps[-1], 0.02, steps[0])(steps[-1] - 1)
    np.testing.assert_allclose(run.learning_rates[-1], want, rtol=1e-5)
    # A checkpoint of the middle is that of a training stopped there.
    state, _ = jax.jit(trainer.advance)(
        trainer.start(jax.random.key(0)), rows[: steps[1]], ready.data, jnp.ones(150)
    )
    for kept, leaf in zip(
        jax.tree.leaves(run.checkpoints), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_allclose(kept[1], leaf, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 151}, "train.batch_size=151 exceeds the 150 training points; lower it"),
        ({"warmup_epochs": 5}, r"train.warmup_epochs=5; it must be a whole number, in 0\.\.4"),
        ({"checkpoint_every": 6}, r"train.checkpoint_every=6; .* in 1\.\.5"),
        (
            {"learning_rate": 0.1, "final_learning_rate": 0.2},
            r"final_learning_rate=0.2 is above train.learning_rate=0.1, and rates fall",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other_or_the_data_are_named(ready, wrong, message):
    settings = TrainSettings(**({"epochs": 5} | wrong))
    with pytest.raises(ValueError, match=message):
        recipe(ready.task, settings, 150)


@pytest.mark.slow
def test_runs_with_one_key_share_initialisation_and_batches(ready):
    weights = jnp.stack([jnp.ones(150), jnp.ones(150).at[:20].set(0)])
    both = jax.jit(jax.vmap(ready.train, (None, None, 0)))(jax.random.key(5), ready.data, weights)
    np.testing.assert_array_equal(both.rows[0], both.rows[1])
    alone = jax.jit(ready.train)(jax.random.key(5), ready.data, weights[1])
    for a, b in zip(jax.tree.leaves(both.params), jax.tree.leaves(alone.params), strict=True):
        assert a[1].shape == b.shape
        np.testing.assert_allclose(a[1], b, atol=1e-4)
        assert jnp.abs(a[0] - a[1]).max() > 1e-3


@pytest.mark.slow
def test_advance_in_pieces_equals_advance_at_once(ready):
    trainer = make_trainer(ready.task, steps=6, batch_size=50, learning_rate=0.1, momentum=0.9)
    rows = trainer.batches(jax.random.key(0), 150)
    weights = jnp.ones(150)
    advance = jax.jit(trainer.advance)
    whole, losses = advance(trainer.start(jax.random.key(0)), rows, ready.data, weights)
    state, parts = trainer.start(jax.random.key(0)), []
    for first in (0, 3):
        state, part = advance(state, rows[first : first + 3], ready.data, weights)
        parts.append(part)
    assert jnp.concatenate(parts).shape == losses.shape
    np.testing.assert_allclose(jnp.concatenate(parts), losses, rtol=1e-5)
    assert int(state.step) == int(whole.step) == 6


@pytest.mark.parametrize(
    ("size", "batch", "drop", "keep"),
    [(7, 3, 2, 3), (6, 3, 2, 2), (8, 3, 2, 3), (3, 3, 1, 1), (1, 1, 1, 1), (5000, 32, 156, 157)],
)
def test_steps_an_epoch(size, batch, drop, keep):
    assert steps_an_epoch(size, batch) == drop
    assert steps_an_epoch(size, batch, "keep") == keep


def test_a_kept_last_batch_completes_the_epoch():
    settings = {"steps": 6, "batch_size": 3, "learning_rate": 0.1}
    rows = np.asarray(
        make_trainer(linear_task(), **settings, last_batch="keep").batches(jax.random.key(0), 7)
    )
    assert rows.shape == (6, 3)
    for epoch in (rows[:3], rows[3:]):
        np.testing.assert_array_equal(np.sort(epoch.ravel()), [-1, -1, *range(7)])
        np.testing.assert_array_equal(epoch[2, 1:], [-1, -1])
    assert not np.array_equal(rows[:3], rows[3:]), "every epoch has an order of its own"
    dropped = make_trainer(linear_task(), **settings).batches(jax.random.key(0), 7)
    assert dropped.shape == (6, 3)
    assert dropped.min() >= 0


def test_where_the_batches_divide_the_data_keep_and_drop_are_the_same():
    settings = {"steps": 5, "batch_size": 3, "learning_rate": 0.1}
    drop, keep = (
        make_trainer(linear_task(), **settings, last_batch=last).batches(jax.random.key(0), 6)
        for last in ("drop", "keep")
    )
    assert drop.shape == keep.shape == (5, 3)
    np.testing.assert_array_equal(drop, keep)


@pytest.mark.parametrize("kept", [(4,), (4, 9)])
def test_a_step_on_a_part_filled_batch_by_hand(regression, kept):
    task = linear_task()._replace(init=lambda key: jnp.ones((4, 1)))
    trainer = make_trainer(
        task, steps=1, batch_size=3, learning_rate=0.5, weight_decay=0.1, last_batch="keep"
    )
    # Row -1 is the last point in JAX's indexing: what it holds must not matter.
    data = regression._replace(x=regression.x.at[-1].set(99.0))
    weights = jnp.arange(1.0, 21.0)
    rows = jnp.array([[*kept, -1, -1][:3]])
    state, losses = trainer.advance(trainer.start(jax.random.key(0)), rows, data, weights)
    x, y, w = (np.asarray(a)[list(kept)] for a in (data.x, data.y, weights))
    residual = x @ np.ones((4, 1)) - y
    part = (w / w.sum())[:, None]
    want = 1 - 0.5 * (x.T @ (part * residual) + 0.1)
    assert state.params.shape == want.shape == (4, 1)
    np.testing.assert_allclose(state.params, want, rtol=1e-5)
    assert losses.shape == (1,)
    np.testing.assert_allclose(losses, [0.5 * (part * residual**2).sum()], rtol=1e-5)


def test_full_batches_with_fill_reach_the_ridge_solution_too(regression):
    # All 20 points and 12 rows of fill, as batches given by hand.
    trainer = make_trainer(
        linear_task(), steps=400, batch_size=1, learning_rate=0.3, weight_decay=0.1
    )
    rows = jnp.tile(jnp.concatenate([jnp.arange(20), jnp.full(12, -1)]), (400, 1))
    weights = jnp.array([0.0, 2.0, 1.0, 0.0] * 5)
    state, _ = jax.jit(trainer.advance)(trainer.start(jax.random.key(0)), rows, regression, weights)
    want = ridge(regression, weights, 0.1)
    assert state.params.shape == want.shape == (4, 1)
    np.testing.assert_allclose(state.params, want, atol=1e-5)


def noisy_task():
    """Inputs get Gaussian noise, in training only."""
    task = linear_task()

    def training_loss(params, batch, key):
        noise = 0.5 * jax.random.normal(key, batch.x.shape)
        return task.loss(params, batch._replace(x=batch.x + noise))

    return task._replace(training_loss=training_loss)


def draws_task():
    """The training loss is a bare draw of its key, so a run's losses are its draws."""

    def training_loss(params, batch, key):
        return jnp.full(len(batch.x), jax.random.uniform(key)) + 0.0 * jnp.sum(params)

    return linear_task()._replace(training_loss=training_loss)


def test_the_training_loss_gets_a_fresh_key_each_step_that_the_runs_key_fixes(regression):
    train = jax.jit(ddm.make_train(draws_task(), steps=30, batch_size=5, learning_rate=0.1))
    first, again, other = (
        np.asarray(train(jax.random.key(seed), regression, jnp.ones(20)).losses)
        for seed in (0, 0, 1)
    )
    assert first.shape == again.shape == other.shape == (30,)
    assert len(np.unique(first.round(6))) == 30
    np.testing.assert_array_equal(first, again)
    assert not np.intersect1d(first.round(6), other.round(6)).size


def test_runs_of_one_key_share_the_noise_whatever_the_weights(regression):
    # Otherwise the paired effect of a point would be mostly noise.
    train = jax.jit(ddm.make_train(draws_task(), steps=8, batch_size=5, learning_rate=0.1))
    full, without = (
        train(jax.random.key(0), regression, weights).losses
        for weights in (jnp.ones(20), jnp.ones(20).at[3].set(0))
    )
    assert full.shape == without.shape == (8,)
    np.testing.assert_allclose(full, without, rtol=1e-6)


def test_training_descends_on_the_training_loss(regression):
    task = linear_task()._replace(init=lambda key: jnp.ones((4, 1)))
    shifted = task._replace(
        training_loss=lambda params, batch, key: task.loss(params, batch._replace(y=batch.y + 1))
    )
    settings = {"steps": 3, "batch_size": 20, "learning_rate": 0.1}
    arguments = (jax.random.key(0), regression, jnp.ones(20))
    got = ddm.make_train(shifted, **settings)(*arguments).params
    moved = regression._replace(y=regression.y + 1)
    want = ddm.make_train(task, **settings)(arguments[0], moved, arguments[2]).params
    assert got.shape == want.shape == (4, 1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_training_loss_without_noise_changes_nothing(regression):
    task = linear_task()
    same = task._replace(training_loss=lambda params, batch, key: task.loss(params, batch))
    settings = {"steps": 9, "batch_size": 6, "learning_rate": 0.1, "last_batch": "keep"}
    runs = [
        jax.jit(ddm.make_train(each, **settings))(jax.random.key(0), regression, jnp.ones(20))
        for each in (task, same)
    ]
    for a, b in zip(*map(jax.tree.leaves, [run._replace(key=0) for run in runs]), strict=True):
        assert jnp.shape(a) == jnp.shape(b)
        np.testing.assert_array_equal(a, b)


def test_noise_and_part_filled_batches_go_on_where_they_stopped(regression):
    trainer = make_trainer(
        noisy_task(),
        steps=9,
        batch_size=6,
        learning_rate=0.05,
        momentum=0.9,
        checkpoint_every=2,
        last_batch="keep",
    )
    key, weights = jax.random.key(2), jnp.ones(20)
    whole = jax.jit(trainer.train)(key, regression, weights)
    rows, advance = trainer.batches(key, 20), jax.jit(trainer.advance)
    state, parts = trainer.start(key), []
    for first in (0, 3, 6):
        state, losses = advance(state, rows[first : first + 3], regression, weights)
        parts.append(losses)
    losses = jnp.concatenate(parts)
    assert losses.shape == whole.losses.shape == (9,)
    np.testing.assert_allclose(losses, whole.losses, rtol=1e-5)
    assert state.params.shape == whole.params.shape == (4, 1)
    np.testing.assert_allclose(state.params, whole.params, rtol=1e-5)


def test_schedules():
    plain = cosine_schedule(0.1, 100, 0.005)
    np.testing.assert_allclose([plain(0), plain(100)], [0.1, 0.005], rtol=1e-5)
    warm = cosine_schedule(0.1, 100, 0.005, warmup=10)
    np.testing.assert_allclose([warm(0), warm(5), warm(10)], [0.0, 0.05, 0.1], atol=1e-6)
    own = ddm.make_train(
        linear_task(), steps=3, batch_size=2, learning_rate=optax.linear_schedule(1.0, 0.0, 2)
    )
    data = ddm.Batch(jnp.zeros((2, 4)), jnp.zeros((2, 1)))
    np.testing.assert_allclose(
        own(jax.random.key(0), data, jnp.ones(2)).learning_rates, [1, 0.5, 0]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"checkpoint_every": 11},
        {"learning_rate": 0.0},
        {"last_batch": "pad"},
        {"steps": 2.5},
        {"steps": True},
        {"learning_rate": float("nan")},
        {"momentum": float("nan")},
        {"weight_decay": float("inf")},
    ],
)
def test_wrong_settings_are_named(wrong):
    good = {"steps": 10, "batch_size": 5, "learning_rate": 0.1}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ddm.make_train(linear_task(), **(good | wrong))


def test_weights_of_another_length_are_refused(regression):
    train = ddm.make_train(linear_task(), steps=1, batch_size=2, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"weights \(19,\)"):
        train(jax.random.key(0), regression, jnp.ones(19))


def test_a_batch_larger_than_the_data_is_refused(regression):
    train = ddm.make_train(linear_task(), steps=1, batch_size=21, learning_rate=0.1)
    with pytest.raises(ValueError, match="batch_size=21"):
        train(jax.random.key(0), regression, jnp.ones(20))


@pytest.mark.slow
def test_training_takes_arrays_of_the_host_without_jit(ready):
    train = ddm.make_train(ready.task, steps=2, batch_size=50, learning_rate=0.1)
    host = jax.tree.map(np.asarray, ready.data)
    found = train(jax.random.key(0), host, np.ones(150, np.float32))
    wanted = jax.jit(train)(jax.random.key(0), ready.data, jnp.ones(150))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.params, wanted.params
    )


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_weights_that_are_none_are_refused(regression, wrong):
    train = ddm.make_train(linear_task(), steps=1, batch_size=2, learning_rate=0.1)
    with pytest.raises(ValueError, match="weights must be finite and at least 0"):
        train(jax.random.key(0), regression, jnp.full(20, wrong))


def test_weights_of_few_bits_are_added_up_in_more(regression):
    train = ddm.make_train(linear_task(), steps=1, batch_size=20, learning_rate=0.1)
    few = train(jax.random.key(0), regression, jnp.full(20, 5000, jnp.float16))
    np.testing.assert_allclose(
        few.params, train(jax.random.key(0), regression, jnp.ones(20)).params, rtol=1e-5
    )


# Any optimiser, any start


def by_hand(rule, run, data, params):
    """The steps of a run, taken by a transformation of optax."""
    state = rule.init(params)
    path = []
    for rows in np.asarray(run.rows):
        x, y = data.x[rows], data.y[rows]
        slope = x.T @ (x @ params - y) / len(rows)
        updates, state = rule.update(slope, state, params)
        params = optax.apply_updates(params, updates)
        path.append((params, state))
    return path


@pytest.mark.parametrize(
    ("settings", "rule", "decay"),
    [
        (
            {"optimizer": "adamw", "weight_decay": 0.2},
            lambda rate: optax.adamw(rate, weight_decay=0.2),
            0.0,
        ),
        (
            {"optimizer": {"name": "adam", "b1": 0.8}, "weight_decay": 0.2, "clip": 0.5},
            lambda rate: optax.chain(
                optax.clip_by_global_norm(0.5),
                optax.add_decayed_weights(0.2),
                optax.adam(rate, b1=0.8),
            ),
            0.2,
        ),
        ({"optimizer": "lion"}, lambda rate: optax.lion(rate, weight_decay=0.0), 0.0),
        ({"optimizer": "rmsprop", "momentum": 0.5}, lambda r: optax.rmsprop(r, momentum=0.5), 0.0),
    ],
)
def test_a_training_takes_the_steps_of_its_optimiser(settings, rule, decay, regression):
    schedule = optax.linear_schedule(0.1, 0.01, 10)
    trainer = make_trainer(
        linear_task(),
        steps=8,
        batch_size=5,
        learning_rate=schedule,
        checkpoint_every=3,
        start=jnp.ones((4, 1)),
        **settings,
    )
    run = jax.jit(trainer.train)(jax.random.key(0), regression, jnp.ones(20))
    path = by_hand(rule(schedule), run, regression, jnp.ones((4, 1)))
    np.testing.assert_array_equal(run.start, np.ones((4, 1)))
    np.testing.assert_allclose(run.params, path[-1][0], rtol=1e-5)
    np.testing.assert_allclose(run.checkpoints, [path[4][0], path[7][0]], rtol=1e-5)
    np.testing.assert_allclose(run.weight_decay, decay)
    np.testing.assert_allclose(run.learning_rates, schedule(np.arange(8)), rtol=1e-6)
    if run.optimizer.name in ("adam", "adamw"):
        for kept, step in zip(run.second_moments, (5, 8), strict=True):
            nu = optax.tree_utils.tree_get(path[step - 1][1], "nu")
            np.testing.assert_allclose(kept, nu / (1 - 0.999**step), rtol=1e-4)
    # In pieces, whose state is all that one needs to go on, it ends with the same numbers.
    state, rows = trainer.start(jax.random.key(0)), run.rows
    for first in (0, 3, 6):
        state, _ = jax.jit(trainer.advance)(
            state, rows[first : first + 3], regression, jnp.ones(20)
        )
    np.testing.assert_allclose(state.params, run.params, rtol=1e-5)


def test_steps_that_accumulate_have_the_rate_of_their_update(regression):
    schedule = optax.linear_schedule(0.1, 0.0, 4)
    train = ddm.make_train(
        linear_task(), steps=7, batch_size=5, learning_rate=schedule, accumulate=2
    )
    run = jax.jit(train)(jax.random.key(0), regression, jnp.ones(20))
    want = np.array([0, 0, 1, 1, 2, 2, 3])
    np.testing.assert_allclose(run.learning_rates, schedule(want), rtol=1e-5)
    assert run.optimizer == Optimizer(accumulate=2)
    # Two batches of five are one of ten; the seventh waits for another.
    twice = optax.MultiSteps(optax.sgd(schedule), 2)
    np.testing.assert_allclose(
        run.params, by_hand(twice, run, regression, run.start)[-1][0], rtol=1e-5
    )


def test_ones_own_transformation_trains_and_its_rate_is_unknown(regression):
    own = optax.chain(optax.clip(0.3), optax.adam(0.05))
    train = ddm.make_train(linear_task(), steps=5, batch_size=5, optimizer=own, name="mine")
    run = jax.jit(train)(jax.random.key(0), regression, jnp.ones(20))
    assert run.optimizer == Optimizer("mine", own=True)
    assert run.learning_rates is None
    want = by_hand(own, run, regression, run.start)[-1][0]
    np.testing.assert_allclose(run.params, want, rtol=1e-5)


def test_every_training_begins_at_the_start_that_is_given(regression):
    train = ddm.make_train(
        linear_task(), steps=1, batch_size=20, learning_rate=0.1, start=np.full((4, 1), 2.0)
    )
    runs = [jax.jit(train)(jax.random.key(s), regression, jnp.ones(20)) for s in (0, 1)]
    np.testing.assert_allclose(runs[0].params, runs[1].params, rtol=1e-5)
    np.testing.assert_array_equal(runs[0].start, np.full((4, 1), 2.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": {"w": np.ones((4, 1))}}, "start has the structure"),
        ({"start": np.ones((4, 2))}, r"start has shape \(4, 2\); it must be \(4, 1\)"),
        ({"start": np.full((4, 1), np.nan)}, "start is not finite"),
        ({"accumulate": 4}, r"accumulate=4; it must be a whole number, in 1\.\.3"),
        ({"optimizer": "adam", "learning_rate": None}, "learning_rate=None; it must be"),
        ({"optimizer": "adamm"}, "optimizer='adamm'"),
    ],
)
def test_trainings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ddm.make_train(
            linear_task(), **({"steps": 3, "batch_size": 2, "learning_rate": 0.1} | settings)
        )


@pytest.mark.slow
def test_a_recipe_names_its_optimiser(ready):
    settings = TrainSettings(
        epochs=2, learning_rate=0.01, final_learning_rate=0.001, optimizer="adamw", clip=1.0
    )
    run = jax.jit(recipe(ready.task, settings, 150).train)(
        jax.random.key(0), ready.data, jnp.ones(150)
    )
    assert run.optimizer == Optimizer("adamw", (("weight_decay", 1e-3),), clip=1.0)
    assert run.weight_decay == 0
    with pytest.raises(ValueError, match="optimizer='adamm'; it must be the name"):
        TrainSettings(optimizer="adamm")
    with pytest.raises(ValueError, match=r"train\.clip=0\.0; it must be above 0"):
        TrainSettings(clip=0.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_adam_keeps_the_type_of_the_parameters(dtype, regression):
    with jax.enable_x64(dtype == "float64"):
        task = linear_task()._replace(init=lambda key: jnp.ones((4, 1), dtype))
        data = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), regression)
        train = ddm.make_train(
            task,
            steps=5,
            batch_size=5,
            learning_rate=0.1,
            optimizer="adamw",
            weight_decay=0.1,
            accumulate=2,
            clip=10.0,
        )
        run = jax.jit(train)(jax.random.key(0), data, jnp.ones(20))
        for leaf in (run.params, run.start, run.second_moments, run.checkpoints):
            assert leaf.dtype == dtype
        assert np.isfinite(np.asarray(run.params, np.float32)).all()


# A training that was done elsewhere

EARLY, LATE = ({"w": np.full(3, value, np.float32)} for value in (1.0, 2.0))
ROWS = np.array([[0, 1], [2, -1], [1, 0]])


def test_a_run_by_hand_may_be_its_parameters_alone():
    run = ddm.make_run(LATE)
    np.testing.assert_array_equal(run.params["w"], LATE["w"])
    np.testing.assert_array_equal(run.checkpoints["w"], LATE["w"][None])
    assert [run.steps, run.learning_rates, run.rows, run.start, run.second_moments] == [None] * 5
    assert run.optimizer == Optimizer()
    assert run.weight_decay == 0


def test_checkpoints_end_with_the_parameters_once():
    stacked = {"w": np.stack([EARLY["w"], LATE["w"]])}
    for given in ([EARLY], [EARLY, LATE], (EARLY,), stacked, {"w": stacked["w"][:1]}):
        run = ddm.make_run(LATE, given, steps=[2, 3])
        np.testing.assert_array_equal(run.checkpoints["w"], stacked["w"])
        np.testing.assert_array_equal(run.steps, [2, 3])


def test_a_run_by_hand_is_the_run_of_the_same_training(regression):
    train = ddm.make_train(
        linear_task(),
        steps=6,
        batch_size=5,
        learning_rate=0.1,
        optimizer="adamw",
        weight_decay=0.1,
        checkpoint_every=3,
    )
    run = jax.jit(train)(jax.random.key(0), regression, jnp.ones(20))
    states = [s for _, s in by_hand(optax.adamw(0.1, weight_decay=0.1), run, regression, run.start)]
    made = ddm.make_run(
        run.params,
        list(run.checkpoints),
        [3, 6],
        0.1,
        run.rows,
        optimizer="adamw",
        weight_decay=0.1,
        optimizer_state=[states[2], states[5]],
        start=run.start,
    )
    assert jax.tree.structure(made._replace(losses=0)) == jax.tree.structure(run._replace(losses=0))
    for one, two in zip(
        jax.tree.leaves(made._replace(losses=0, key=0)),
        jax.tree.leaves(run._replace(losses=0, key=0)),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoints": [{"v": 1}]}, r"checkpoints\[0\] has the structure .* params'"),
        ({"checkpoints": []}, "checkpoints must be a list of pytrees"),
        ({"checkpoints": [{"w": np.ones(2)}]}, r"checkpoints\[0\]\['w'\] has shape \(2,\)"),
        ({"checkpoints": [{"w": np.full(3, np.inf)}]}, r"\['w'\] is not finite: .* diverged"),
        ({"steps": [1, 2]}, r"steps have shape \(2,\) .* one for each of 1 checkpoints"),
        ({"checkpoints": [EARLY], "steps": [1]}, "2 checkpoints; params are one more"),
        ({"checkpoints": [EARLY], "steps": [3, 2]}, r"steps=\[3, 2\]; they must grow"),
        ({"steps": [2.5]}, "they must be whole numbers"),
        ({"steps": [5], "rows": ROWS}, "steps end at 5, and rows have 3 steps"),
        ({"rows": np.ones(3)}, r"rows have shape \(3,\) and type float64"),
        ({"rows": np.full((1, 1), -2)}, "rows hold -2"),
        ({"rows": ROWS, "learning_rates": [0.1, 0.2]}, r"must be \[3\]"),
        ({"learning_rates": 0.1}, "one for each step: pass steps= or rows= too"),
        ({"rows": ROWS, "learning_rates": np.nan}, "learning_rates must be finite"),
        ({"start": {"w": np.ones(4)}}, r"start\['w'\] has shape \(4,\)"),
        ({"second_moments": [LATE, LATE]}, "there are 2 second_moments; there must be 1"),
        (
            {
                "checkpoints": [EARLY],
                "optimizer": "adam",
                "optimizer_state": optax.adam(1).init(LATE),
            },
            "optimizer_state has 1 states for 2 checkpoints",
        ),
        ({"optimizer_state": optax.sgd(1).init(LATE)}, "holds no running mean of squared"),
        ({"optimizer": "adamm"}, "optimizer='adamm'"),
    ],
)
def test_parts_of_a_run_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as told:
        ddm.make_run(LATE, **settings)
    assert "\n" not in str(told.value)


def test_a_run_that_is_told_backwards_is_refused():
    params = {"w": jnp.ones(2)}
    early = {"w": jnp.zeros(2)}
    with pytest.raises(ValueError, match="checkpoint 0 of 2 is params, which come last"):
        ddm.make_run(params, [params, early])
    moments = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="second_moments= are of an optimiser of Adam's kind"):
        ddm.make_run(params, second_moments=[moments])
    negative = {"w": -jnp.ones(2)}
    with pytest.raises(ValueError, match="second_moments are negative"):
        ddm.make_run(params, second_moments=[negative], optimizer="adam")
