import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax import values
from ddm_jax.types import Batch, Task, TrainRun
from ddm_jax.values import triage_scores


def line():
    """One weight and no bias: predictions are `params * x`."""

    def apply(params, x):
        return params * x

    def loss(params, batch):
        return 0.5 * jnp.sum((apply(params, batch.x) - batch.y) ** 2, -1)

    return Task(lambda key: jnp.ones(()), loss, lambda p, b: -loss(p, b), apply, targets="any")


def run_of(checkpoints):
    return TrainRun(jax.random.key(0), checkpoints[-1], checkpoints)


def test_the_ranks_of_residuals_by_hand():
    data = Batch(jnp.ones((4, 1)), jnp.array([[1.0], [2.0], [3.0], [9.0]]))
    mean, spread = triage_scores(line(), run_of(jnp.array([0.0, 1.0])), data)
    assert mean.shape == spread.shape == (4,)
    np.testing.assert_allclose(mean, [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(spread, 0.0, atol=1e-7)
    # With x that differ the order changes between the checkpoints.
    x = jnp.array([[0.0], [0.0], [0.0], [8.0]])
    mean, spread = triage_scores(line(), run_of(jnp.array([0.0, 1.0])), data._replace(x=x))
    np.testing.assert_allclose(mean[3], (0.875 + 0.25) / 2)
    np.testing.assert_allclose(spread[3], (0.875 - 0.25) / 2, rtol=1e-6)


def test_wrong_targets_are_worth_least(rng):
    x = rng.normal(size=(200, 1)).astype(np.float32)
    y = 2 * x + 0.1 * rng.normal(size=x.shape).astype(np.float32)
    y[:10] += 5
    data = Batch(jnp.asarray(x), jnp.asarray(y))
    task = line()
    train = ddm.make_train(task, steps=60, batch_size=50, learning_rate=0.1, checkpoint_every=6)
    run = jax.jit(train)(jax.random.key(0), data, jnp.ones(200))
    estimator = values.make_value_estimator(task, values.triage(task))
    groups = np.arange(200) // 10
    state = estimator.fit(jax.random.key(1), run, data, groups)
    scores = estimator.score(state, Batch(data.x[:3], data.y[:3]))
    assert scores.shape == (20, 3)
    assert scores[:, 0].argmin() == 0


def test_several_targets_are_refused(ready):
    with pytest.raises(ValueError, match=r"TRIAGE takes .* \[N, 1\] .* are \(150, 10\)"):
        values.triage(ready.task)(jax.random.key(0), ready.run, ready.data)
