"""Estimators that follow or continue the training run, against sums and steps written by hand."""

from itertools import pairwise
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

import ddm_jax as ddm
from ddm_jax import estimators
from ddm_jax.estimators import source
from ddm_jax.estimators.replay import replay_start, replay_step
from ddm_jax.estimators.tracin import checkpoint_rates
from ddm_jax.gradients import example_gradients
from ddm_jax.types import Optimizer, take

gradients_of = jax.jit(example_gradients, static_argnums=0)


def fitted_scores(estimator, problem, run=None, groups=None):
    groups = problem.groups if groups is None else groups
    state = estimator.fit(jax.random.key(1), run or problem.run, problem.data, groups)
    return np.asarray(estimator.score(state, problem.query))


def slopes(problem, params):
    """The gradients of the points' losses over N, and those of the queries' outputs."""
    losses = gradients_of(problem.task.loss, params, problem.data) / len(problem.data.x)
    outputs = gradients_of(problem.task.output, params, problem.query)
    return np.asarray(losses, np.float64), np.asarray(outputs, np.float64)


def by_group(points, groups):
    """Rows of points, added up for each group."""
    groups = np.asarray(getattr(groups, "ids", groups))
    return np.stack([points[groups == k].sum(0) for k in range(groups.max() + 1)])


def replayed(task, run, data, steps):
    """The parameters after so many steps from the start."""

    @jax.jit
    def replay(run):
        step, ones = replay_step(task, run), jnp.ones(len(data.x))
        take_step = lambda t, moment: step(moment, run.rows[t], data, ones)  # noqa: E731
        return jax.lax.fori_loop(0, steps, take_step, replay_start(task, run))

    return ravel_pytree(replay(run).params)[0]


def with_numbers(run, momentum, weight_decay):
    """The run as if it had been trained with these."""
    settings = (("momentum", momentum),) if momentum else ()
    return run._replace(
        optimizer=Optimizer("sgd", settings), weight_decay=jnp.float32(weight_decay)
    )


def assert_close(got, want, shape, tolerance):
    """Equal up to a part of the largest value."""
    assert got.shape == want.shape == shape
    largest = np.abs(want).max()
    assert largest > 0
    np.testing.assert_allclose(got / largest, want / largest, atol=tolerance)


@pytest.mark.slow
def test_tracin_at_the_last_checkpoint_is_grad_dot_times_the_rate(ready):
    rates = ready.run.learning_rates.at[-1].set(0.07)
    run = ready.run._replace(learning_rates=rates)
    dots = fitted_scores(estimators.make_grad_dot(ready.task), ready)
    got = fitted_scores(estimators.make_tracin(ready.task, checkpoints=1), ready, run)
    assert_close(got, 0.07 * dots, (10, 50), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("points_are_groups", [False, True])
def test_tracin_adds_up_checkpoints_with_the_rate_of_the_step_before_each(ready, points_are_groups):
    rates = jnp.linspace(0.5, 0.1, 60)
    run = ready.run._replace(learning_rates=rates)
    groups = np.arange(150) if points_are_groups else ready.groups
    got = fitted_scores(estimators.make_tracin(ready.task, checkpoints=3), ready, run, groups)
    # Ten are kept, one every six steps: the fourth, the seventh and the last one are used.
    want = 0
    for t in (3, 6, 9):
        losses, outputs = slopes(ready, take(run.checkpoints, t))
        want = want - float(rates[6 * (t + 1) - 1]) * by_group(losses @ outputs.T, groups)
    assert_close(got, want, (150 if points_are_groups else 10, 50), 1e-5)


@pytest.fixture(scope="module")
def uneven(smooth):
    """50 steps, kept after 30 and 50, at rates that fall."""
    schedule = lambda t: 0.5 / (1 + t)  # noqa: E731
    recipe = {"steps": 50, "batch_size": 30, "learning_rate": schedule, "checkpoint_every": 20}
    return short_run(smooth, **recipe)[1]


@pytest.mark.slow
def test_checkpoints_that_do_not_divide_the_steps_have_the_rates_of_their_own(smooth, uneven):
    assert uneven.steps.tolist() == [30, 50]
    np.testing.assert_allclose(checkpoint_rates(uneven), [0.5 / 30, 0.5 / 50], rtol=1e-5)
    got = fitted_scores(estimators.make_tracin(smooth.task), smooth, uneven)
    want = 0
    for t, step in enumerate((30, 50)):
        losses, outputs = slopes(smooth, take(uneven.checkpoints, t))
        want = want - 0.5 / step * losses @ outputs.T
    assert_close(got, by_group(want, smooth.groups), (4, 5), 1e-4)


def test_parameters_of_the_start_have_the_rate_of_the_first_step(uneven):
    start = uneven._replace(steps=jnp.array([0, 30, 50]))
    np.testing.assert_allclose(checkpoint_rates(start)[:2], [0.5, 0.5 / 30], rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "segments", "index", "ends"),
    [
        ((30, 50), 2, [[0], [1]], [0, 30, 50]),  # uneven steps
        ((30, 50), 5, [[0], [1]], [0, 30, 50]),  # fewer checkpoints than segments
        ((10, 20, 30, 40, 50), 2, [[0, 2], [3, 4]], [0, 30, 50]),  # uneven checkpoints
        ((2, 10, 20, 30, 40, 44, 48, 50), 2, [[0, 2, 3], [4, 6, 7]], [0, 30, 50]),
        ((0, 25, 50), 3, [[0], [1], [2]], [0, 0, 25, 50]),  # the start leads to nothing
    ],
)
def test_source_cuts_rates_and_checkpoints_at_the_same_steps(steps, segments, index, ends, uneven):
    run = uneven._replace(steps=np.array(steps), checkpoints=jnp.zeros(len(steps)))
    found, times = source.cut(run, segments)
    assert found.tolist() == index
    rates = 0.5 / (1 + np.arange(50))
    want = [rates[a:b].sum() for a, b in pairwise(ends)]
    np.testing.assert_allclose(times, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(times.sum(), rates.sum(), rtol=1e-5)


@pytest.mark.slow
def test_all_steps_replayed_end_at_the_trained_network(ready):
    got = replayed(ready.task, ready.run, ready.data, 60)
    halfway = replayed(ready.task, ready.run, ready.data, 30)
    for params, want in ((got, ready.run.params), (halfway, take(ready.run.checkpoints, 4))):
        want = ravel_pytree(want)[0]
        assert params.shape == want.shape
        np.testing.assert_allclose(params, want, atol=1e-5)
    # With other numbers it ends elsewhere.
    for other in (with_numbers(ready.run, 0.0, 1e-3), with_numbers(ready.run, 0.5, 0.0)):
        elsewhere = replayed(ready.task, other, ready.data, 60)
        assert np.abs(elsewhere - got).max() > 1e-3


@pytest.mark.slow
def test_a_replay_has_the_keys_of_dropout_and_batches_that_are_not_full(ready):
    task = ddm.classification(ddm.models.MLP(10, (12,), dropout=0.5), (8, 8, 1))
    recipe = {"steps": 6, "batch_size": 64, "learning_rate": 0.3, "last_batch": "keep"}
    run = jax.jit(ddm.make_train(task, **recipe))(jax.random.key(2), ready.data, jnp.ones(150))
    assert (run.rows == -1).any()
    want = ravel_pytree(run.params)[0]
    got = replayed(task, run, ready.data, 6)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-5)
    without = task._replace(training_loss=None)
    elsewhere = replayed(without, run, ready.data, 6)
    assert np.abs(elsewhere - want).max() > 1e-2


class Curve(nn.Module):
    """A small network without kinks, so that slopes say what small changes do."""

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        return nn.Dense(10)(nn.tanh(nn.Dense(6)(x)))


@pytest.fixture(scope="module")
def smooth(ready):
    """The smooth network on 60 of the points, four groups and five queries."""
    return SimpleNamespace(
        task=ddm.classification(Curve(), (8, 8, 1)),
        data=take(ready.data, slice(0, 60)),
        query=take(ready.query, slice(0, 5)),
        groups=np.arange(60) % 7 % 4,
    )


def short_run(problem, **settings):
    """The function of a few steps, whose batches are not all full, and its run."""
    recipe = {"steps": 7, "batch_size": 25, "last_batch": "keep", **settings}
    train = jax.jit(ddm.make_train(problem.task, **recipe))
    return train, train(jax.random.key(5), problem.data, jnp.ones(len(problem.data.x)))


@pytest.mark.slow
def test_a_metagradient_is_the_slope_of_retraining_in_a_group_weight(smooth):
    settings = {"momentum": 0.5, "weight_decay": 0.05}
    train, run = short_run(smooth, learning_rate=0.2, **settings)
    got = fitted_scores(estimators.make_metagradient(smooth.task), smooth, run)

    def outputs(k, change):
        weights = 1 + change * (smooth.groups == k)
        params = train(run.key, smooth.data, jnp.asarray(weights, jnp.float32)).params
        return np.asarray(smooth.task.output(params, smooth.query), np.float64)

    want = np.stack([(outputs(k, 0.03) - outputs(k, -0.03)) / 0.06 for k in range(4)])
    assert_close(got, want, (4, 5), 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("order", "every"), [(1, 1), (2, 2)])
def test_in_run_shapley_is_the_sum_of_its_formula_over_the_steps(order, every, smooth):
    settings = {"momentum": 0.5, "weight_decay": 0.05}
    schedule = lambda t: 0.2 / (1 + t)  # noqa: E731
    _, run = short_run(smooth, learning_rate=schedule, checkpoint_every=1, **settings)
    estimator = estimators.make_in_run_shapley(smooth.task, order=order, every=every)
    got = fitted_scores(estimator, smooth, run)
    start = jax.jit(smooth.task.init)(jax.random.fold_in(run.key, 0))
    unravel = ravel_pytree(start)[1]
    hessian = jax.jit(jax.hessian(lambda v: smooth.task.output(unravel(v), smooth.query)))
    points = np.zeros((60, 5))
    for t in range(0, 7, every):
        params = take(run.checkpoints, t - 1) if t else start
        rows = np.asarray(run.rows[t])
        rows = rows[rows >= 0]
        losses, outputs = slopes(smooth, params)
        # A step's gradients act twice as long with a momentum of a half.
        moves = -2 * schedule(t) / len(rows) * 60 * losses[rows]
        stands_for = min(every, 7 - t)
        points[rows] += stands_for * moves @ outputs.T
        if order == 2:
            curved = np.asarray(hessian(ravel_pytree(params)[0]), np.float64) @ moves.sum(0)
            points[rows] += stands_for * moves @ curved.T / 2
    assert_close(got, by_group(points, smooth.groups), (4, 5), 1e-4)


@pytest.mark.slow
def test_in_run_shapley_adds_up_to_the_change_of_the_outputs(smooth):
    estimates = [estimators.make_in_run_shapley(smooth.task, order=order) for order in (1, 2)]

    @jax.jit
    def run_at(rate):
        recipe = {"steps": 7, "batch_size": 25, "last_batch": "keep"}
        train = ddm.make_train(smooth.task, learning_rate=lambda t: rate, **recipe)
        run = train(jax.random.key(5), smooth.data, jnp.ones(60))
        start = smooth.task.init(jax.random.fold_in(run.key, 0))
        ends = (smooth.task.output(params, smooth.query) for params in (run.params, start))
        return run, jnp.subtract(*ends)

    def errors(rate):
        """What is missing in the sum of all groups, as a part of the change."""
        run, change = run_at(rate)
        found = []
        for estimator in estimates:
            total = fitted_scores(estimator, smooth, run).sum(0)
            assert total.shape == change.shape == (5,)
            found.append(np.linalg.norm(total - change) / np.linalg.norm(change))
        return found

    first, second = errors(0.3)
    assert first > 0.01
    assert second < first / 5
    tiny_first, tiny_second = errors(0.03)
    assert tiny_first < first / 5
    assert tiny_second < 1e-3


@pytest.fixture(scope="module")
def trained(smooth):
    """The smooth problem after some training, with the scores of grad-dot."""
    recipe = {"steps": 40, "batch_size": 30, "learning_rate": 0.5, "checkpoint_every": 10}
    train = jax.jit(ddm.make_train(smooth.task, **recipe))
    run = train(jax.random.key(6), smooth.data, jnp.ones(60))
    problem = SimpleNamespace(**vars(smooth), run=run)
    problem.dots = fitted_scores(estimators.make_grad_dot(smooth.task), problem)
    return problem


ONE_STEP = {"steps": 1, "learning_rate": 1e-2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("untrac", {"optimizer": "sgd", "batch_size": 60}),
        ("untrac_inverse", {"optimizer": "sgd"}),
        ("mirrored_influence", {}),
    ],
)
def test_one_small_step_of_unlearning_is_grad_dot_times_the_rate(name, settings, trained):
    estimator = estimators.ESTIMATORS[name](trained.task, **ONE_STEP, **settings)
    assert_close(fitted_scores(estimator, trained), 1e-2 * trained.dots, (4, 5), 0.05)


@pytest.mark.slow
def test_untrac_walks_over_the_batches_of_a_group_with_its_share(trained):
    estimator = estimators.make_untrac(
        trained.task, steps=2, learning_rate=0.3, optimizer="sgd", batch_size=12
    )
    state = estimator.fit(jax.random.key(0), trained.run, trained.data, trained.groups)
    flat, unravel = ravel_pytree(trained.run.params)
    counts = np.bincount(trained.groups)
    assert counts.min() < 12 < counts.max() < 24
    for k in range(4):
        rows = np.flatnonzero(trained.groups == k)
        params = np.asarray(flat, np.float64)
        for t in range(2):  # in turn, and round again
            batch = rows[np.arange(12 * t, 12 * t + min(12, len(rows))) % len(rows)]
            losses, _ = slopes(trained, unravel(jnp.asarray(params, jnp.float32)))
            params = params + 0.3 * len(rows) / 60 * losses[batch].mean(0) * 60
        got = np.asarray(ravel_pytree(take(state.unlearned, k))[0] - flat)
        assert_close(got, params - np.asarray(flat), flat.shape, 1e-4)


@pytest.mark.slow
def test_the_three_settings_of_a_query_update_are_the_losses_after_it(trained):
    """Against steps by hand, at a rate where up and down differ."""
    flat, unravel = ravel_pytree(trained.run.params)
    before = trained.task.loss(trained.run.params, trained.data)
    query = take(trained.query, slice(0, 1))
    slope = jax.jit(jax.grad(lambda v: trained.task.output(unravel(v), query)[0]))
    makers = {1: estimators.make_mirrored_influence, -1: estimators.make_untrac_inverse}
    found = {}
    for sign, make in makers.items():
        settings = {"optimizer": "sgd"} if sign == -1 else {}
        estimator = make(trained.task, steps=2, learning_rate=0.2, **settings)
        moved = flat
        for _ in range(2):
            moved = moved + sign * 0.2 * slope(moved)
        change = np.asarray(trained.task.loss(unravel(moved), trained.data) - before) / 60
        found[sign] = fitted_scores(estimator, trained)[:, :1]
        assert_close(found[sign], by_group(-sign * change[:, None], trained.groups), (4, 1), 1e-3)
    assert np.abs(found[1] - found[-1]).max() > 0.1 * np.abs(found[1]).max()


@pytest.mark.slow
def test_merging_averages_the_parameters_of_steps_by_hand(trained):
    estimator = estimators.make_merging(trained.task, rewind=0.5, steps=2, learning_rate=0.1)
    run = with_numbers(trained.run, 0.0, 0.05)
    state = estimator.fit(jax.random.key(0), run, trained.data, trained.groups)
    # Four are kept; half of the training before its end is the second.
    seed, unravel = ravel_pytree(take(trained.run.checkpoints, 1))
    assert np.abs(seed - ravel_pytree(trained.run.params)[0]).max() > 0.1
    networks = []
    for k in range(4):
        params, trace = np.asarray(seed, np.float64), 0.0
        for _ in range(2):
            losses, _ = slopes(trained, unravel(jnp.asarray(params, jnp.float32)))
            slope = 60 * losses[trained.groups == k].mean(0) + 0.05 * params
            trace = slope + 0.9 * trace
            params = params - 0.1 * (slope + 0.9 * trace)
        networks.append(params)
        got = np.asarray(ravel_pytree(take(state.params, k))[0] - seed)
        assert_close(got, params - np.asarray(seed), seed.shape, 1e-4)
    counts = np.bincount(trained.groups)
    assert len(set(counts)) > 1

    def output(kept):
        average = np.average(np.stack(networks)[kept], axis=0, weights=counts[kept])
        params = unravel(jnp.asarray(average, jnp.float32))
        return np.asarray(trained.task.output(params, trained.query))

    everyone = np.arange(4)
    want = np.stack([output(everyone) - output(everyone[everyone != k]) for k in range(4)])
    assert_close(np.asarray(estimator.score(state, trained.query)), want, (4, 5), 1e-3)
    got = np.asarray(estimator.outputs(state, [[0, 1, 0, 1]], trained.query))
    assert_close(got, output(np.array([1, 3]))[None], (1, 5), 1e-4)


@pytest.mark.slow
def test_source_without_curvature_is_the_time_times_grad_dot_at_the_checkpoints(trained):
    rates = jnp.linspace(3e-5, 1e-5, 40)
    run = with_numbers(trained.run._replace(learning_rates=rates), 0.5, 0.01)
    estimator = estimators.make_source(trained.task, segments=2, points=20)
    _, outputs = slopes(trained, run.params)
    want = 0
    for t in range(4):  # two checkpoints in each half of the steps
        time = 20 / (1 - 0.5) * np.asarray(rates).reshape(2, 20).mean(1)[t // 2]
        losses, _ = slopes(trained, take(run.checkpoints, t))
        want = want - time / 2 * losses @ outputs.T
    got = fitted_scores(estimator, trained, run)
    assert_close(got, by_group(want, trained.groups), (4, 5), 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("points_are_groups", [False, True])
def test_source_is_its_formula_with_exponentials_of_whole_matrices(points_are_groups, rng):
    """A loss |theta - x|^2 / 2, whose gradients do not need labels, and outputs <theta, x>."""
    x = rng.normal(size=(8, 3)).astype(np.float32)
    data = ddm.Batch(jnp.asarray(x), jnp.tile(jnp.array([1.0, 0.0]), (8, 1)))
    task = ddm.Task(
        init=lambda key: jnp.zeros(3),
        apply=lambda theta, x: jnp.zeros((len(x), 2)),
        loss=lambda theta, batch: jnp.sum((theta - batch.x) ** 2, 1) / 2,
        output=lambda theta, batch: batch.x @ theta,
    )
    path = rng.normal(size=(6, 3)).astype(np.float32)
    rates = np.linspace(0.3, 0.1, 12)
    run = ddm.TrainRun(
        key=jax.random.key(0),
        params=jnp.asarray(path[-1]),
        checkpoints=jnp.asarray(path),
        steps=2 * jnp.arange(1, 7),
        learning_rates=jnp.asarray(rates, jnp.float32),
        rows=jnp.zeros((12, 4), jnp.int32),
        losses=jnp.zeros(12),
        optimizer=Optimizer("sgd", (("momentum", 0.25),)),
        weight_decay=jnp.float32(0.1),
    )
    queries = rng.normal(size=(4, 3)).astype(np.float32)
    groups = np.arange(8) if points_are_groups else np.array([0, 0, 0, 1, 1, 2, 2, 2])
    problem = SimpleNamespace(
        data=data, query=ddm.Batch(jnp.asarray(queries), data.y[:4]), groups=groups
    )
    # Three checkpoints a stretch, with all eight points at each.
    got = fitted_scores(estimators.make_source(task, segments=2, points=24), problem, run)
    total = np.zeros((3, 8))
    for number in range(2):
        each = path[3 * number : 3 * number + 3]
        rows = (each[:, None] - x).astype(np.float64)
        matrix = np.einsum("cnp,cnq->pq", rows, rows) / 24 + 0.1 * np.eye(3)
        time = rates[6 * number : 6 * number + 6].sum() / (1 - 0.25)
        shrink = scipy.linalg.expm(-time * matrix)
        new = (np.eye(3) - shrink) @ np.linalg.solve(matrix, rows.mean(0).T / 8)
        total = shrink @ total + new
    want = by_group(-total.T @ queries.T, groups)
    assert_close(got, want, (groups.max() + 1, 4), 1e-4)


@pytest.mark.slow
def test_forward_matching_starts_where_the_target_network_did(trained):
    settings = (
        ddm.DistillSettings(items=1, steps=5, part=1.0),
        ddm.UpdateSettings(steps=3, learning_rate=0.1),
    )
    estimator = estimators.make_forward_matching(trained.task, *settings)
    key = jax.random.key(2)
    state = estimator.fit(key, trained.run, trained.data, trained.groups)
    start = jax.jit(trained.task.init)(jax.random.fold_in(trained.run.key, 0))
    want = ravel_pytree(start)[0]
    got = ravel_pytree(take(state.checkpoints, 0))[0]
    assert len(jax.tree.leaves(state.checkpoints)[0]) == 1
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-6)
    # Its synset is that of the whole trajectory, and the rest is the usual method.
    usual = ddm.make_ddm(trained.task, *settings)
    whole = usual.fit(key, trained.run, trained.data, trained.groups)
    assert state.synset.items.x.shape == whole.synset.items.x.shape
    np.testing.assert_allclose(state.synset.items.x, whole.synset.items.x, atol=1e-5)
    scores = np.asarray(estimator.score(state, trained.query))
    from_start = whole._replace(checkpoints=state.checkpoints)
    assert_close(scores, np.asarray(usual.score(from_start, trained.query)), (4, 5), 1e-5)
    from_end = np.asarray(usual.score(whole, trained.query))
    assert np.abs(scores - from_end).max() > 0.1 * np.abs(scores).max()


def test_forward_matching_refuses_another_part_or_start(ready):
    for settings, told in (
        ((ddm.DistillSettings(), None), r"distill\.part=0\.75"),
        ((None, ddm.UpdateSettings(rewind=0.5)), r"online\.rewind=0\.5"),
    ):
        with pytest.raises(ValueError, match=told):
            estimators.make_forward_matching(ready.task, *settings)


# What holds for which optimiser


def bowl():
    """Four parameters, the last of which has no gradient at all; losses without kinks."""

    def loss(theta, batch):
        at = batch.x[:, :3] @ theta[:3]
        return jnp.log(jnp.cosh(at - batch.y)) + 0.1 * at**2 + 0 * theta[3]

    return ddm.Task(
        init=lambda key: jnp.array([0.5, -0.2, 0.1, 0.3]),
        loss=loss,
        output=lambda theta, batch: jnp.sin(batch.x @ theta),
        targets="any",
    )


def bowl_problem(rng):
    draw = rng.normal(size=(12, 4)).astype(np.float64)
    data = ddm.Batch(jnp.asarray(draw), jnp.asarray(draw[:, 0] - draw[:, 1]))
    query = ddm.Batch(jnp.asarray(rng.normal(size=(3, 4))), jnp.zeros(3))
    return SimpleNamespace(task=bowl(), data=data, query=query, groups=np.arange(12) % 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam"},
        {"optimizer": "adamw", "weight_decay": 0.1, "clip": 0.3},
        {"optimizer": "adamw", "accumulate": 2},
        {"optimizer": "rmsprop", "momentum": 0.5, "weight_decay": 0.1},
        {"optimizer": {"name": "sgd", "nesterov": True}, "momentum": 0.5, "clip": 0.3},
    ],
)
def test_a_metagradient_of_any_optimiser_is_the_slope_of_retraining(settings, rng):
    """With a parameter that never has a gradient, where the slope of Adam's root is infinite."""
    with jax.enable_x64(True):
        problem = bowl_problem(rng)
        schedule = lambda t: 0.1 / (1 + 0.1 * t)  # noqa: E731
        recipe = {"steps": 9, "batch_size": 5, "last_batch": "keep", **settings}
        train = jax.jit(ddm.make_train(problem.task, learning_rate=schedule, **recipe))
        run = train(jax.random.key(5), problem.data, jnp.ones(12))
        got = fitted_scores(estimators.make_metagradient(problem.task), problem, run)

        def outputs(k, change):
            params = train(run.key, problem.data, 1 + change * (problem.groups == k)).params
            return np.asarray(problem.task.output(params, problem.query))

        want = np.stack([(outputs(k, 1e-5) - outputs(k, -1e-5)) / 2e-5 for k in range(3)])
    assert np.isfinite(got).all()
    assert_close(got, want, (3, 3), 1e-6)


def trained_by(problem, optimizer, **settings):
    train = ddm.make_train(
        problem.task, steps=4, batch_size=30, learning_rate=0.01, optimizer=optimizer, **settings
    )
    return jax.jit(train)(jax.random.key(6), problem.data, jnp.ones(60))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tracin", {"optimizer": "adam"}, "tracin holds for SGD alone, .* by adam: use source"),
        ("tracin", {"optimizer": "sgd", "clip": 1.0}, "has clip=1: use metagradient or trak"),
        (
            "in_run_shapley",
            {"optimizer": "sgd", "clip": 0.5, "accumulate": 2},
            "plain SGD alone, and this run has clip=0.5 and accumulate=2",
        ),
        ("in_run_shapley", {"optimizer": "lion"}, "by lion: use source, metagradient or trak"),
        ("metagradient", {"optimizer": "lion"}, "lion follows signs of gradients"),
        ("source", {"optimizer": "lion"}, "source holds for SGD, Adam and AdamW, and not for lion"),
        ("source", {"optimizer": "adamw", "clip": 1.0}, "the size of each step, which clip=1"),
        (
            "source",
            {"optimizer": "adam", "weight_decay": 0.25},
            "this run of adam has 0.25 in its gradients: train with adamw",
        ),
    ],
)
def test_an_optimiser_that_a_method_is_not_for_is_refused(name, settings, message, smooth):
    run = trained_by(smooth, **settings)
    with pytest.raises(ValueError, match=message) as told:
        fitted_scores(estimators.ESTIMATORS[name](smooth.task), smooth, run)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["tracin", "in_run_shapley", "metagradient", "source"])
def test_a_transformation_of_ones_own_is_refused(name, smooth):
    train = ddm.make_train(
        smooth.task, steps=2, batch_size=30, optimizer=optax.adam(0.1), name="mine"
    )
    run = jax.jit(train)(jax.random.key(6), smooth.data, jnp.ones(60))
    with pytest.raises(ValueError, match=r"mine.* use trak"):
        fitted_scores(estimators.ESTIMATORS[name](smooth.task), smooth, run)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tracin", ("learning_rates", "steps")),
        ("source", ("learning_rates", "steps")),
        ("metagradient", ("start", "rows", "learning_rates")),
        ("in_run_shapley", ("start", "rows", "learning_rates")),
    ],
)
def test_a_run_that_lacks_a_part_is_refused_with_its_name(name, parts, trained):
    estimator = estimators.ESTIMATORS[name](trained.task)
    for part in parts:
        run = trained.run._replace(**{part: None})
        message = f"{name} needs the run's {part}, which this run has not: pass {part}= to make_run"
        with pytest.raises(ValueError, match=message):
            fitted_scores(estimator, trained, run)
    whole = {part: np.asarray(getattr(trained.run, part)) for part in ("steps", "learning_rates")}
    made = ddm.make_run(
        trained.run.params,
        trained.run.checkpoints,
        rows=trained.run.rows,
        start=trained.run.start,
        key=trained.run.key,
        **whole,
    )
    np.testing.assert_allclose(
        fitted_scores(estimator, trained, made), fitted_scores(estimator, trained), rtol=1e-4
    )


@pytest.mark.parametrize("points_are_groups", [False, True])
def test_source_of_adamw_is_its_formula_with_exponentials_of_whole_matrices(points_are_groups, rng):
    """A loss |theta - x|^2 / 2, as above, under preconditioners that differ by parameter."""
    x = rng.normal(size=(8, 3)).astype(np.float32)
    data = ddm.Batch(jnp.asarray(x), jnp.tile(jnp.array([1.0, 0.0]), (8, 1)))
    task = ddm.Task(
        init=lambda key: jnp.zeros(3),
        apply=lambda theta, x: jnp.zeros((len(x), 2)),
        loss=lambda theta, batch: jnp.sum((theta - batch.x) ** 2, 1) / 2,
        output=lambda theta, batch: batch.x @ theta,
    )
    path = rng.normal(size=(6, 3)).astype(np.float32)
    squares = rng.uniform(0.1, 4, size=(6, 3)).astype(np.float32)
    rates = np.linspace(0.3, 0.1, 12).astype(np.float32)
    run = ddm.make_run(
        path[-1],
        path,
        2 * np.arange(1, 7),
        rates,
        optimizer={"name": "adamw", "eps": 0.1, "weight_decay": 0.2},
        accumulate=2,
        second_moments=squares,
    )
    queries = rng.normal(size=(4, 3)).astype(np.float32)
    groups = np.arange(8) if points_are_groups else np.array([0, 0, 0, 1, 1, 2, 2, 2])
    problem = SimpleNamespace(
        data=data, query=ddm.Batch(jnp.asarray(queries), data.y[:4]), groups=groups
    )
    got = fitted_scores(estimators.make_source(task, segments=2, points=24), problem, run)
    total = np.zeros((3, 8))
    for number in range(2):
        part = slice(3 * number, 3 * number + 3)
        rows = (path[part][:, None] - x).astype(np.float64)
        scale = np.diag(1 / (np.sqrt(squares[part].mean(0)) + 0.1))
        matrix = scale @ np.einsum("cnp,cnq->pq", rows, rows) / 24 + 0.2 * np.eye(3)
        time = rates[6 * number : 6 * number + 6].sum() / 2
        shrink = scipy.linalg.expm(-time * matrix)
        new = (np.eye(3) - shrink) @ np.linalg.solve(matrix, scale @ rows.mean(0).T / 8)
        total = shrink @ total + new
    want = by_group(-total.T @ queries.T, groups)
    assert_close(got, want, (groups.max() + 1, 4), 1e-4)


@pytest.mark.slow
def test_source_follows_the_exact_derivative_through_a_training_by_adamw(ready):
    """Multinomial regression is convex; the groups are alike, so that none has an obvious sign."""
    task = ddm.classification(ddm.models.Logistic(10), (8, 8, 1))
    recipe = {"steps": 600, "batch_size": 50, "learning_rate": 0.003, "checkpoint_every": 10}
    train = ddm.make_train(task, optimizer="adamw", weight_decay=0.3, **recipe)
    run = jax.jit(train)(jax.random.key(3), ready.data, jnp.ones(150))
    problem = SimpleNamespace(
        task=task, data=ready.data, query=ready.query, groups=np.arange(150) % 10
    )
    want = fitted_scores(estimators.make_metagradient(task), problem, run)

    def alike(run):
        scores = fitted_scores(estimators.make_source(task, points=450), problem, run)
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(scores.T, want.T, strict=True)])

    assert alike(run) > 0.85
    # Without the optimiser's scales it is another matter.
    assert alike(run._replace(optimizer=Optimizer(), second_moments=None)) < 0.75


@pytest.mark.slow
def test_points_of_no_group_are_in_no_score(trained):
    """A background is trained on and counted, and has no row of its own."""
    with_one = np.where(trained.groups == 3, -1, trained.groups)
    for name in ("tracin", "source", "in_run_shapley", "metagradient"):
        estimator = estimators.ESTIMATORS[name](trained.task)
        whole = fitted_scores(estimator, trained)
        some = fitted_scores(estimator, trained, groups=with_one)
        assert_close(some, whole[:3], (3, 5), 1e-3)
