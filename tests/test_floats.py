"""Arrays follow the parameters' type, and scores are at least float32: the whole way of a DDM."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm
from ddm_jax.rates import stable_rate

FEWEST = pytest.param("float16", marks=pytest.mark.slow)
TYPES = ["float32", "float64", "bfloat16", FEWEST]


def task_of(dtype):
    """Two square layers by hand, whose parameters and logits are of one type."""

    def init(key):
        keys = jax.random.split(key)
        return [
            {"w": (0.3 * jax.random.normal(k, (8, 8))).astype(dtype), "b": jnp.zeros(8, dtype)}
            for k in keys
        ]

    def apply(params, x):
        first, second = params
        return jnp.tanh(x @ first["w"] + first["b"]) @ second["w"] + second["b"]

    def loss(params, batch):
        return optax.softmax_cross_entropy(apply(params, batch.x), batch.y)

    return ddm.Task(init, loss, ddm.objectives.margin(apply), apply)


class Whole:
    """A network of 48 points in four groups, distilled and asked, in one type."""

    def __init__(self, dtype):
        draw = np.random.default_rng(0)
        labels = np.arange(48) % 8
        x = draw.normal(size=(48, 8)) / 2 + 2 * np.eye(8)[labels]
        x = jnp.asarray(x, dtype)
        self.task = task_of(dtype)
        data = ddm.Batch(x, jnp.asarray(np.eye(8)[labels], dtype))
        self.query = ddm.types.take(data, slice(0, 12))
        train = ddm.make_train(
            self.task,
            steps=60,
            batch_size=12,
            learning_rate=0.2,
            momentum=0.5,
            weight_decay=1e-3,
            checkpoint_every=10,
        )
        self.run = jax.jit(train)(jax.random.key(0), data, jnp.ones(48))
        self.estimator = ddm.make_ddm(
            self.task, ddm.DistillSettings(items=2, steps=40), ddm.UpdateSettings(steps=8)
        )
        self.state = self.estimator.fit(jax.random.key(1), self.run, data, labels // 2)
        self.scores = self.estimator.score(self.state, self.query)
        self.halves = self.estimator.outputs(
            self.state, np.array([[1, 1, 0, 0], [0, 2, 1, 0.5]]), self.query
        )
        few_steps = ddm.UpdateSettings(steps=4, optimizer="deflated")
        self.deflated = ddm.make_counterfactual(self.task, few_steps)(
            self.run.params, self.state.synset, np.ones(4), self.query, 1e-3
        )
        self.rate = stable_rate(self.task, self.run.params, self.state.synset, batch=4)
        forget = ddm.make_forget(self.task, steps=4, optimizer=optax.sgd(0.05, 0.9, True))
        self.forgotten = [
            jax.jit(forget)(
                self.run.params, self.run.params, self.state.synset, jnp.asarray(keep, jnp.float32)
            )
            for keep in ([1, 1, 0, 1], [1, 0.5, 1, 1])  # classes go, and no class goes
        ]
        self.slopes = ddm.make_selective(
            ddm.ddm_response(
                ddm.make_finetune(self.task, steps=3, optimizer=optax.sgd(0.05)), self.task.output
            ),
            4,
            2,
        )(self.run.params, self.state.synset, self.query)


@pytest.fixture(scope="module")
def wholes():
    made = {}

    def whole(dtype):
        if dtype not in made:
            wide = jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()
            with wide:
                made[dtype] = Whole(dtype)
        return made[dtype]

    return whole


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_trained_and_distilled_has_the_parameters_type(wholes, dtype):
    whole = wholes(dtype)
    networks = (whole.run.params, whole.run.checkpoints, whole.forgotten, whole.state.checkpoints)
    assert {leaf.dtype for leaf in jax.tree.leaves(networks)} == {jnp.dtype(dtype)}
    items = whole.state.synset.items
    assert {leaf.dtype for leaf in jax.tree.leaves(items)} == {jnp.dtype(dtype)}
    for leaf in jax.tree.leaves((networks, items)):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES)
def test_sums_and_scores_have_32_bits_or_more(wholes, dtype):
    whole = wholes(dtype)
    synset, info = whole.state.synset, whole.state.info
    least = jnp.promote_types(dtype, jnp.float32)
    assert whole.scores.shape == whole.slopes.shape == (4, 12)
    assert whole.halves.shape == (2, 12)
    assert whole.rate.shape == ()
    assert whole.deflated.shape == (1, 12)
    assert (
        whole.scores.dtype
        == whole.halves.dtype
        == whole.deflated.dtype
        == whole.slopes.dtype
        == least
    )
    for value in (synset.mass, synset.share, whole.rate, info.losses, info.error):
        assert value.dtype in (jnp.float32, least)
    for value in (whole.scores, whole.halves, whole.deflated, whole.rate, whole.slopes, *info[1:]):
        assert np.isfinite(np.asarray(value)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES[1:])
def test_the_answers_are_those_of_32_bits(wholes, dtype):
    """Random numbers differ by type, so the float64 run starts elsewhere: what helps does not."""
    off = {"bfloat16": 0.5, "float16": 0.2, "float64": 0}[dtype]
    whole, reference = wholes(dtype), wholes("float32")
    own = (np.arange(12) % 8) // 2, np.arange(12)
    assert (np.asarray(whole.scores)[own] > 0).all()
    assert (np.asarray(reference.scores)[own] > 0).all()
    if dtype != "float64":
        found, want = (np.asarray(each.scores, np.float64) for each in (whole, reference))
        assert np.abs(found - want).max() < off * np.abs(want).max()
        np.testing.assert_allclose(whole.rate, reference.rate, rtol=off)
