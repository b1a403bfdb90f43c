"""Objectives: literal values, identities between them, and extreme logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax import objectives
from ddm_jax.types import Batch, Task


def _apply(params, x):
    """The inputs are the logits."""
    return params * x


def _task(apply):
    """A task whose output is none yet."""
    return Task(None, None, None, apply)


def _output(name: str, logits, labels, params: float = 1.0):
    logits = jnp.asarray(logits, jnp.float32)
    batch = Batch(logits, jax.nn.one_hot(jnp.asarray(labels), logits.shape[1]))
    return objectives.explain(_task(_apply), name).output(jnp.float32(params), batch)


HALF = [[0.0, 0.0], [np.log(3.0), 0.0]]  # p = (1/2, 1/2) and (3/4, 1/4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("margin", [0.0, -np.log(3)]),
        ("loss", [np.log(2), np.log(4)]),
        ("probability", [0.5, 0.25]),
        ("hit", [1.0, 0.0]),
        ("logit:0", [0.0, np.log(3)]),
        ("logit:1", [0.0, 0.0]),
    ],
)
def test_literal_values(name, expected):
    output = _output(name, HALF, [0, 1])
    assert output.shape == (2,)
    np.testing.assert_allclose(output, expected, atol=1e-6)


def test_accuracy_is_one_output():
    logits = [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 1.0], [0.0, 3.0, 1.0]]
    output = _output("accuracy", logits, [0, 0, 1, 1])
    assert output.shape == (1,)
    np.testing.assert_allclose(output, [0.75])


def test_margin_is_log_p_minus_log_one_minus_p(rng):
    logits, labels = rng.standard_normal((50, 7)), rng.integers(0, 7, 50)
    p = np.asarray(_output("probability", logits, labels), np.float64)
    margin = _output("margin", logits, labels)
    assert margin.shape == p.shape == (50,)
    np.testing.assert_allclose(margin, np.log(p) - np.log1p(-p), rtol=1e-4, atol=1e-5)


def test_loss_is_minus_log_p(rng):
    logits, labels = rng.standard_normal((50, 7)), rng.integers(0, 7, 50)
    p, loss = _output("probability", logits, labels), _output("loss", logits, labels)
    assert loss.shape == p.shape == (50,)
    np.testing.assert_allclose(loss, -np.log(p), atol=1e-5)


@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
def test_margin_and_its_gradient_are_finite_at_extreme_logits(size):
    logits = [[size, 0.0, -size], [-size, 0.0, size], [0.0, -size, -2 * size]]
    margin = _output("margin", logits, [0, 0, 0])
    assert margin.shape == (3,)
    np.testing.assert_allclose(margin, [size, -2 * size, size], rtol=1e-6)
    slope = jax.grad(lambda p: _output("margin", logits, [0, 0, 0], p).sum())(1.0)
    assert np.isfinite(slope)


def test_a_soft_label_counts_as_its_largest_class():
    logits = jnp.array([[1.0, 2.0, 3.0]])
    soft = Batch(logits, jnp.array([[0.2, 0.5, 0.3]]))
    output = objectives.margin(_apply)(jnp.float32(1), soft)
    assert output.shape == (1,)
    np.testing.assert_allclose(output, _output("margin", logits, [1]), atol=1e-6)


def test_loss_and_probability_of_a_soft_label_are_expectations():
    logits = jnp.array(HALF[1:])
    soft = Batch(logits, jnp.array([[0.5, 0.5]]))
    loss = objectives.loss(_apply)(jnp.float32(1), soft)
    np.testing.assert_allclose(loss, [(np.log(4 / 3) + np.log(4)) / 2], atol=1e-6)
    probability = objectives.probability(_apply)(jnp.float32(1), soft)
    np.testing.assert_allclose(probability, [0.5], atol=1e-6)


@pytest.mark.parametrize("name", [*objectives.OBJECTIVES, "logit:1"])
def test_jit_and_the_parameters_matter(name, rng):
    logits = rng.standard_normal((6, 3))
    labels = logits.argmax(1)  # so that the other sign of the parameter gets all wrong
    plain = _output(name, logits, labels, 0.5)
    compiled = jax.jit(lambda p: _output(name, logits, labels, p))(0.5)
    assert plain.shape == compiled.shape
    np.testing.assert_allclose(plain, compiled, rtol=1e-5, atol=1e-6)
    assert not np.allclose(plain, _output(name, logits, labels, -0.5))


@pytest.mark.parametrize("index", [2, 10])
def test_a_class_out_of_range_is_named(index):
    with pytest.raises(ValueError, match=rf"class_index={index}; with 2 classes .* 0\.\.1"):
        _output(f"logit:{index}", HALF, [0, 1])
    with pytest.raises(ValueError, match="class_index=-1"):
        objectives.logit(_apply, -1)(1.0, Batch(jnp.zeros((1, 2)), jnp.eye(2)[:1]))


@pytest.mark.parametrize(
    "name", ["", "margins", "logit", "logit:", "logit:-1", "logit:x", "loss:1"]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=r"unknown objective .* margin, loss, .* logit:3"):
        objectives.explain(_task(_apply), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["margin", "loss", "probability"])
def test_many_networks_on_many_queries_are_as_each_alone(name, rng):
    """JAX 0.10.2 sums wrongly from 32,769 results on, which is why it is not allowed."""
    weights = jnp.asarray(rng.standard_normal((50, 6, 10)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((800, 6)), jnp.float32)
    batch = Batch(x, jnp.eye(10)[rng.integers(0, 10, 800)])
    output = objectives.explain(_task(lambda params, x: x @ params), name).output
    each = np.stack([np.asarray(output(some, batch)) for some in weights])
    together = jax.jit(jax.vmap(output, (0, None)))(weights, batch)
    np.testing.assert_allclose(together, each, rtol=1e-4, atol=1e-4)
    assert each.size > 32_768


@pytest.mark.parametrize("name", [*objectives.OBJECTIVES, "logit:1"])
def test_only_of_a_loss_is_less_better(name):
    before = _task(_apply)
    task = objectives.explain(before, name)
    assert task.lower_is_better == (name == "loss")
    back = objectives.explain(objectives.explain(before, "loss"), name)
    assert back.lower_is_better == (name == "loss")
    assert task.of_sets == (name == "accuracy")
    assert not objectives.explain(task, "margin").of_sets
    assert task._replace(output=None, lower_is_better=False, of_sets=False) == before


@pytest.mark.parametrize("name", ["margin", "loss", "probability", "hit", "accuracy"])
@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((4, 3)), np.array([0, 1, 2, 0])),  # 0.8 took an argmax over the whole vector
        (np.zeros((4, 3)), np.eye(5)[[0, 1, 2, 0]]),
        (np.zeros((4, 3)), np.eye(3)),
        (np.zeros((4, 1)), np.ones((4, 1))),
        (np.zeros((4, 2, 3)), np.zeros((4, 2, 3))),
    ],
)
def test_labels_that_are_no_rows_over_the_classes_are_refused_by_shape(name, logits, labels):
    output = objectives.explain(_task(_apply), name).output
    batch = Batch(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    for ask in (output, jax.jit(output)):
        with pytest.raises(
            ValueError, match=r"both must be \[B, C\], one-hot rows of at least two"
        ):
            ask(jnp.float32(1), batch)


@pytest.mark.parametrize("name", ["margin", "loss", "probability", "hit", "accuracy"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_outputs_of_networks_of_few_bits_are_computed_in_32(name, dtype, rng):
    """A margin of 9 is known to .03 in bfloat16, which is more than what a group does to it."""
    logits = jnp.asarray(3 * rng.standard_normal((20, 5)), dtype)
    labels = jax.nn.one_hot(jnp.arange(20) % 5, 5, dtype=dtype)
    output = objectives.explain(_task(_apply), name).output
    found = output(jnp.ones((), dtype), Batch(logits, labels))
    want = output(1.0, Batch(logits.astype(jnp.float32), labels.astype(jnp.float32)))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_a_task_without_classes_explains_its_loss():
    def loss(params, batch):
        return jnp.sum((params * batch.x - batch.y) ** 2, -1)

    task = Task(lambda key: jnp.ones(()), loss, loss, _apply, targets="any")
    explained = objectives.explain(task, "loss")
    batch = Batch(jnp.ones((2, 1)), jnp.array([[3.0], [1.0]]))
    np.testing.assert_allclose(explained.output(jnp.float32(1), batch), [4, 0])
    assert explained.lower_is_better
    with pytest.raises(ValueError, match="objective 'margin' needs classes"):
        objectives.explain(task, "margin")
    with pytest.raises(ValueError, match=r"unknown objective 'logits:0'; choose one of loss, pre"):
        objectives.explain(task, "logits:0")


def test_a_task_without_classes_explains_a_prediction():
    task = Task(None, None, None, _apply, targets="any")
    batch = Batch(jnp.array([[1.0, 2.0], [3.0, 4.0]]), None)
    for name in ("prediction:1", "logit:1"):
        explained = objectives.explain(task._replace(lower_is_better=True), name)
        np.testing.assert_allclose(explained.output(jnp.float32(2), batch), [4, 8])
        assert not explained.lower_is_better
    with pytest.raises(ValueError, match="class_index=2"):
        objectives.explain(task, "prediction:2").output(jnp.float32(2), batch)
    with pytest.raises(ValueError, match=r"unknown objective 'prediction:1'; choose one of margin"):
        objectives.explain(_task(_apply), "prediction:1")


def test_a_task_without_predictions_is_asked_for_its_loss_alone():
    task = Task(None, lambda p, b: p * b.x, None, targets="any")
    assert objectives.explain(task, "loss").output is task.loss
    for some, name in ((task, "prediction:0"), (task._replace(targets="distribution"), "margin")):
        with pytest.raises(ValueError, match=f"objective '{name}' needs predictions"):
            objectives.explain(some, name)


# Sets of queries


def test_accuracies_of_slices_and_their_gap():
    logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 3.0]])
    batch = Batch(logits, jax.nn.one_hot(jnp.array([0, 0, 0, 1]), 2))  # right, wrong, right, right
    first = np.array([True, True, False, False])
    means = np.stack([first / 2, ~first / 2])
    sets = np.stack([*means, means[0] - means[1]])
    task = objectives.explain(_task(_apply), "accuracy", sets)
    assert task.of_sets
    assert not task.lower_is_better
    output = jax.jit(task.output)(jnp.float32(1), batch)
    assert output.shape == (3,)
    np.testing.assert_allclose(output, [0.5, 1, -0.5])
    whole = objectives.explain(task, "accuracy").output(jnp.float32(1), batch)
    np.testing.assert_allclose(whole, [0.75])


def test_sets_of_any_output_are_sums_with_their_weights():
    batch = Batch(jnp.array([[1.0, 2.0], [3.0, 4.0]]), None)
    weigh = objectives.over_sets(lambda p, b: p * b.x[:, 0], [[1, 1], [2, 0], [1, -1]])
    np.testing.assert_allclose(weigh(jnp.float32(1), batch), [4, 2, -2])
    slopes = jax.jacrev(weigh)(jnp.float32(1), batch)
    np.testing.assert_allclose(slopes, [4, 2, -2])
    few = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), batch)
    assert weigh(jnp.bfloat16(1), few).dtype == jnp.float32
    task = objectives.explain(_task(_apply), "logit:1", np.eye(2)[:1])
    np.testing.assert_allclose(task.output(jnp.float32(1), batch), [2])
    loss = objectives.explain(_task(_apply), "loss", np.eye(2))
    assert loss.lower_is_better
    assert loss.of_sets


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (np.ones(3), r"sets have shape \(3,\) .* \[S, B\]"),
        (np.ones((0, 3)), r"sets have shape \(0, 3\)"),
        (np.full((1, 3), "a"), r"sets have .* type <U1"),
        (np.array([[1.0, np.nan, 0.0]]), "sets hold NaN .* no queries has no mean"),
    ],
)
def test_sets_that_are_no_weights_are_refused(sets, told):
    with pytest.raises(ValueError, match=told):
        objectives.explain(_task(_apply), "margin", sets)


def test_sets_of_other_queries_are_refused():
    output = objectives.over_sets(lambda p, b: p * b.x[:, 0], np.ones((2, 3)))
    with pytest.raises(ValueError, match="the sets are of 3 queries, and there are 2: ask"):
        output(1.0, Batch(jnp.ones((2, 2)), None))
    output = objectives.over_sets(lambda p, b: p * b.x, np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"output has shape \(3, 2\); in sets it must be \[B\]"):
        output(1.0, Batch(jnp.ones((3, 2)), None))
