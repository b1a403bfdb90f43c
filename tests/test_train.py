import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm


def linear_task():
    """Ridge regression: a task that is not flax, with a closed form."""

    def loss(params, batch):
        return 0.5 * jnp.sum((batch.x @ params - batch.y) ** 2, -1)

    return ddm.Task(
        init=lambda key: jax.random.normal(key, (4, 1)),
        apply=lambda params, x: x @ params,
        loss=loss,
        output=lambda params, batch: (batch.x @ params)[:, 0],
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
    for leaf, last in zip(
        jax.tree.leaves(run.checkpoints), jax.tree.leaves(run.params), strict=True
    ):
        assert leaf.shape == (10, *last.shape)
        np.testing.assert_array_equal(leaf[-1], last)
    for epoch in range(20):
        seen = np.sort(np.asarray(run.rows[3 * epoch : 3 * epoch + 3]).ravel())
        np.testing.assert_array_equal(seen, np.arange(150))


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


def test_runs_with_one_key_share_initialisation_and_batches(ready):
    weights = jnp.stack([jnp.ones(150), jnp.ones(150).at[:20].set(0)])
    both = jax.jit(jax.vmap(ready.train, (None, None, 0)))(jax.random.key(5), ready.data, weights)
    np.testing.assert_array_equal(both.rows[0], both.rows[1])
    alone = jax.jit(ready.train)(jax.random.key(5), ready.data, weights[1])
    for a, b in zip(jax.tree.leaves(both.params), jax.tree.leaves(alone.params), strict=True):
        assert a[1].shape == b.shape
        np.testing.assert_allclose(a[1], b, atol=1e-4)
        assert jnp.abs(a[0] - a[1]).max() > 1e-3


def test_advance_in_pieces_equals_advance_at_once(ready):
    trainer = ddm.make_trainer(ready.task, steps=6, batch_size=50, learning_rate=0.1, momentum=0.9)
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


def test_schedules():
    plain = ddm.cosine_schedule(0.1, 100, 0.005)
    np.testing.assert_allclose([plain(0), plain(100)], [0.1, 0.005], rtol=1e-5)
    warm = ddm.cosine_schedule(0.1, 100, 0.005, warmup=10)
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
