"""Data values, by literal numbers and closed forms; higher is better everywhere."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

import ddm_jax as ddm
from ddm_jax import objectives, values
from ddm_jax.types import Batch, Task, TrainRun

KEY = jax.random.key(0)
LABELS = [0, 1, 0, 1, 1]


def linear_task(classes=3):
    """Logits `x w`, so that gradients can be written down."""

    def apply(params, x):
        return x @ params["w"]

    init = lambda key: {"w": jnp.zeros((3, classes))}  # noqa: E731
    return Task(init, objectives.loss(apply), objectives.margin(apply), apply)


def run_of(params, checkpoints=None, rates=(), steps=()):
    """A finished training of which only the networks, their steps and the rates are looked at."""
    if checkpoints is None:
        checkpoints = jax.tree.map(lambda leaf: leaf[None], params)
    steps, rates = jnp.asarray(steps, jnp.int32), jnp.asarray(rates, jnp.float32)
    return TrainRun(KEY, params, checkpoints, steps, rates)


def batch(x, labels, classes=2):
    return Batch(jnp.asarray(x, jnp.float32), jnp.eye(classes)[jnp.asarray(labels)])


class Problem(NamedTuple):
    data: Batch  # 12 points of 3 classes
    run: TrainRun


@pytest.fixture(scope="module")
def linear():
    """A linear network of no particular merit."""
    rng = np.random.default_rng(1)
    data = batch(rng.normal(size=(12, 3)), rng.permutation(np.arange(12) % 3), 3)
    checkpoints = {"w": jnp.asarray(rng.normal(size=(3, 3, 3)), jnp.float32)}
    rates = [9.0, 0.5, 9.0, 9.0, 0.25, 9.0, 0.125]
    return Problem(data, run_of({"w": checkpoints["w"][-1]}, checkpoints, rates, [2, 5, 7]))


def loss_gradients(w, data):
    """`x (p - y)^T` for each point: `[N, 9]`."""
    x, y = np.asarray(data.x, float), np.asarray(data.y, float)
    slope = softmax(x @ np.asarray(w, float), axis=1) - y
    return np.einsum("nf,nc->nfc", x, slope).reshape(len(x), -1)


def test_training_loss_is_that_of_the_trained_network(linear):
    found = values.training_loss(linear_task())(KEY, linear.run, linear.data)
    logits = np.asarray(linear.data.x, float) @ np.asarray(linear.run.params["w"], float)
    expected = (log_softmax(logits, axis=1) * np.asarray(linear.data.y)).sum(1)
    assert found.shape == expected.shape == (12,)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_self_influence_has_the_rate_of_the_step_that_led_to_each_checkpoint(linear):
    """Whatever their spacing: those of steps 2, 5 and 7 of 7."""
    found = values.self_influence(linear_task())(KEY, linear.run, linear.data)
    pairs = zip((0.5, 0.25, 0.125), linear.run.checkpoints["w"], strict=True)
    squares = sum(rate * (loss_gradients(w, linear.data) ** 2).sum(1) for rate, w in pairs)
    assert found.shape == squares.shape == (12,)
    np.testing.assert_allclose(found, -squares, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "every", "kept"), [(50, 20, [30, 50]), (60, 25, [35, 60])])
def test_self_influence_follows_the_trainers_own_spacing(ready, steps, every, kept):
    train = ddm.make_train(
        ready.task, steps=steps, batch_size=50, learning_rate=0.3, checkpoint_every=every
    )
    run = jax.jit(train)(KEY, ready.data, jnp.ones(150))
    assert run.steps.tolist() == kept
    # The first checkpoint's rate alone: a guess of its step, S // T, would find a rate of zero.
    rates = jnp.zeros(steps).at[kept[0] - 1].set(1.0)
    ask = values.self_influence(ready.task)
    found = ask(KEY, run._replace(learning_rates=rates), ready.data)
    assert (np.asarray(found) < 0).all()


# The logits of two classes at three checkpoints, as (label's, other) for each of five points.
GOOD, BAD = (np.log(3.0), 0.0), (0.0, np.log(3.0))
COURSE = [  # never forgotten, forgotten once, never told right, learnt late, forgotten for good
    [GOOD, GOOD, BAD, BAD, GOOD],
    [GOOD, BAD, BAD, GOOD, BAD],
    [GOOD, GOOD, BAD, GOOD, BAD],
]
RIGHT = np.array([3, 2, 0, 2, 1])  # checkpoints at which each is told right


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("loss", (RIGHT * np.log(3 / 4) + (3 - RIGHT) * np.log(1 / 4)) / 3),
        ("margin", (2 * RIGHT - 3) * np.log(3) / 3),
        ("forgetting", [0, -1, -4, 0, -1]),
    ],
)
def test_training_dynamics_of_a_known_course(measure, expected):
    logits = np.array(COURSE, np.float32)
    logits[:, np.array(LABELS) == 1] = logits[:, np.array(LABELS) == 1][..., ::-1]

    def apply(params, x):
        return params["logits"][x[:, 0].astype(int)]

    init = lambda key: {"logits": jnp.zeros((5, 2))}  # noqa: E731
    task = Task(init, objectives.loss(apply), objectives.margin(apply), apply)
    checkpoints = {"logits": jnp.asarray(logits)}
    run = run_of({"logits": checkpoints["logits"][-1]}, checkpoints)
    data = batch(np.arange(5)[:, None], LABELS)
    found = values.training_dynamics(task, measure=measure)(KEY, run, data)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_margin_is_over_the_largest_other_logit(linear):
    found = values.training_dynamics(linear_task())(KEY, linear.run, linear.data)
    y = np.asarray(linear.data.y) > 0
    logits = np.asarray(linear.data.x, float) @ np.asarray(linear.run.checkpoints["w"], float)
    others = np.where(y, -np.inf, logits).max(2)
    expected = (logits[:, y] - others).mean(0)
    assert found.shape == expected.shape == (12,)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_complexity_gap_is_the_drop_when_a_point_is_left_out(rng):
    data = batch(rng.normal(size=(8, 3)), [0, 1, 2, 0, 1, 2, 0, 0], 3)
    found = values.complexity_gap(linear_task(), damping=0.02)(KEY, None, data)
    x = np.asarray(data.x, float)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = np.clip(x @ x.T, -1, 1)
    kernel = cosine * (np.pi - np.arccos(cosine)) / (2 * np.pi)
    kernel = kernel + 0.02 * np.mean(np.diag(kernel)) * np.eye(8)
    y = np.asarray(data.y, float) - np.asarray(data.y).mean(0)

    def complexity(keep):
        return np.trace(y[keep].T @ np.linalg.inv(kernel[np.ix_(keep, keep)]) @ y[keep])

    every = np.arange(8)
    drops = [complexity(every) - complexity(np.delete(every, i)) for i in range(8)]
    assert min(drops) > 0
    np.testing.assert_allclose(found, np.negative(drops), rtol=2e-3, atol=2e-3)


def test_data_oob_is_the_mean_over_the_networks_that_did_not_see_a_point():
    """Of networks that are their training weights, and tell a point right by its neighbour's."""
    seen = []

    def train(key, data, weights):
        jax.debug.callback(lambda w: seen.append(np.asarray(w)), weights)
        return run_of({"w": weights})

    def apply(params, x):
        right = jnp.roll(params["w"], 1)[x[:, 0].astype(int)] > 0
        return jnp.stack([right, ~right], 1).astype(jnp.float32)

    init = lambda key: {"w": jnp.zeros(7)}  # noqa: E731
    task = Task(init, objectives.loss(apply), objectives.margin(apply), apply)
    data = batch(np.arange(7)[:, None], [0] * 7)
    run = run_of({"w": jnp.zeros(7)})
    found = values.data_oob(task, train, models=3)(KEY, run, data)
    jax.effects_barrier()
    weights = np.stack(seen)
    assert weights.shape == (3, 7)
    np.testing.assert_array_equal(weights.sum(1), 7)
    assert len(np.unique(weights, axis=0)) == 3
    outside, right = weights == 0, np.roll(weights, 1, axis=1) > 0
    assert not outside.any(0).all()  # a point is in all samples
    mean = right[outside].mean()
    expected = [right[outside[:, i], i].mean() if outside[:, i].any() else mean for i in range(7)]
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found, expected, atol=1e-6)


# As estimators


@pytest.mark.parametrize(("lower", "sign"), [(False, 1), (True, -1)])
def test_a_group_is_worth_the_sum_of_what_is_above_the_mean(linear, lower, sign):
    """And less of a loss is better: the sign follows the task."""
    task = linear_task()._replace(lower_is_better=lower)
    estimator = values.make_value_estimator(task, lambda key, run, data: 10 + data.x[:, 0])
    groups = np.arange(12) % 3
    state = estimator.fit(KEY, linear.run, linear.data, groups)
    found = estimator.score(state, linear.data)
    each = np.asarray(linear.data.x[:, 0]) - np.asarray(linear.data.x[:, 0]).mean()
    expected = sign * np.bincount(groups, each) / 12
    assert found.shape == (3, 12)
    np.testing.assert_allclose(found, np.repeat(expected[:, None], 12, 1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(values.VALUES))
def test_every_value_is_an_estimator_and_the_same_for_every_query(name, ready):
    args = (ready.train,) if name == "data_oob" else ()
    small = {"models": 3} if name == "data_oob" else {}
    estimator = values.VALUES[name](ready.task, *args, **small)
    state = estimator.fit(KEY, ready.run, ready.data, np.arange(150))
    scores = np.asarray(estimator.score(state, ready.query))
    assert scores.shape == (150, 50)
    np.testing.assert_array_equal(scores, scores[:, :1].repeat(50, 1))
    each = np.asarray(getattr(values, name)(ready.task, *args, **small)(KEY, ready.run, ready.data))
    np.testing.assert_allclose(150 * scores[:, 0], each - each.mean(), rtol=1e-4, atol=1e-4)


EVERY = {
    "training_loss": (),
    "self_influence": (),
    "training_dynamics": (),
    "complexity_gap": (),
    "kernel_margins": (),
    "typicality": (),
    "novelty": (),
    "data_oob": ("train",),
    "label_quality": ("train",),
}
CLASSES = sorted(set(EVERY) - {"training_loss", "self_influence"})


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(EVERY) - {"novelty"}))
def test_wrong_labels_are_worth_less(name, planted):
    """One sign: six zeros called one are below the other points on average."""
    make = getattr(values, name)
    found = make(planted.task, *(getattr(planted, part) for part in EVERY[name]))(
        KEY, planted.run, planted.data
    )
    found, bad = np.asarray(found), np.asarray(planted.groups.ids) == 10
    assert found.shape == (150,)
    assert found[bad].mean() < found[~bad].mean()


@pytest.mark.parametrize("name", CLASSES)
def test_what_needs_classes_refuses_other_targets_by_name(name, planted):
    task = planted.task._replace(targets="any")
    with pytest.raises(ValueError, match=f"^{name}.* needs classes.*targets='any'"):
        getattr(values, name)(task, *(getattr(planted, part) for part in EVERY[name]))


@pytest.mark.parametrize("name", list(values.VALUES))
def test_labels_of_several_classes_are_refused(name, planted):
    """A point of two classes has no label to compare: 0.8 took the first of them, silently."""
    several = planted.data._replace(y=planted.data.y.at[:, 3].set(1.0))
    args = (planted.train,) if name == "data_oob" else ()
    estimator = values.VALUES[name](planted.task, *args)
    with pytest.raises(ValueError, match="no distribution over classes"):
        estimator.fit(KEY, planted.run, several, planted.groups)


@pytest.mark.parametrize("name", ["training_loss", "self_influence", "training_dynamics"])
def test_a_run_that_diverged_or_of_another_network_is_refused(name, planted):
    ask = getattr(values, name)(planted.task)
    lost = jax.tree.map(lambda leaf: leaf * jnp.nan, planted.run.params)
    with pytest.raises(ValueError, match="not finite: its training diverged"):
        ask(KEY, planted.run._replace(params=lost), planted.data)
    with pytest.raises(ValueError, match="it must have this task's"):
        ask(KEY, planted.run._replace(params={"w": jnp.ones(3)}), planted.data)
    with pytest.raises(ValueError, match="NaN or infinity"):
        ask(KEY, planted.run, planted.data._replace(x=planted.data.x * jnp.nan))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", list(EVERY))
def test_values_of_other_floats(name, dtype, planted):
    """Near those of float32; sums and solves are of at least float32."""
    parts = [getattr(planted, part) for part in EVERY[name]]
    with jax.enable_x64(dtype == "float64"):
        cast = lambda tree: jax.tree.map(  # noqa: E731
            lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            tree,
        )
        task = planted.task._replace(init=lambda key: cast(planted.task.init(key)))
        run = planted.run._replace(
            params=cast(planted.run.params), checkpoints=cast(planted.run.checkpoints)
        )
        data = cast(planted.data)
        if name in ("data_oob", "label_quality"):
            parts = [ddm.make_train(task, steps=60, batch_size=50, learning_rate=0.3)]
        found = getattr(values, name)(task, *parts)(KEY, run, data)
        found = np.asarray(found, np.float64)
    plain = getattr(values, name)(planted.task, *(getattr(planted, part) for part in EVERY[name]))
    expected = np.asarray(plain(KEY, planted.run, planted.data), np.float64)
    assert np.isfinite(found).all()
    assert np.corrcoef(found, expected)[0, 1] > (0.5 if parts else 0.95)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("training_dynamics", {"measure": "area"}, "measure='area'; choose one of loss, margin"),
        ("complexity_gap", {"damping": 0.0}, "damping=0.0; it must be .* above 0"),
        ("complexity_gap", {"damping": float("nan")}, "damping=nan"),
        ("typicality", {"neighbours": 0}, "neighbours=0; it must be a whole number, at least 1"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        getattr(values, name)(linear_task(), **settings)


def test_data_oob_needs_two_models():
    with pytest.raises(ValueError, match=r"models=1; .* at least 2"):
        values.data_oob(linear_task(), None, models=1)
