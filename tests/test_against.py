"""Agreement with exact retraining, for any task, training and method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax.judge.against import Agreement
from ddm_jax.masks import random_weights

KEY = jax.random.key(4)
STILL = {"steps": 30, "batch_size": 24, "learning_rate": 0.2}


@pytest.fixture(scope="module")
def problem():
    """A line through points of four groups, each with a slope of its own, and its retraining."""
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(4), 6)
    x = rng.normal(size=(24, 1)).astype(np.float32)
    y = x * np.array([0.0, 1.0, 2.0, 4.0], np.float32)[ids, None] + 1
    data = ddm.Batch(x, y)
    query = ddm.Batch(np.float32([[-1.0], [0.5], [2.0]]), np.zeros((3, 1), np.float32))
    task = ddm.regression(
        lambda params, x: x * params["slope"] + params["level"],
        init=lambda key: {"slope": jax.random.normal(key), "level": jnp.zeros(())},
    )
    task = ddm.objectives.explain(task, "prediction:0")
    train = ddm.make_train(task, **STILL)
    return task, train, data, ids, query


@pytest.fixture(scope="module")
def right(problem):
    """What another retraining says of any subset."""
    return retrained(*problem)


def retrained(task, train, data, ids, query):
    truth = ddm.make_retraining(task, train)
    run = jax.jit(train)(jax.random.key(9), data, jnp.ones(len(ids)))
    state = truth.fit(jax.random.key(9), run, data, ids)
    return lambda masks: truth.outputs(state, masks, query)


@pytest.mark.slow
def test_retraining_agrees_with_itself_up_to_the_ceiling(problem, right):
    found = ddm.against_retraining(*problem, right, key=KEY, subsets=6)
    assert found.value > 0.9
    assert found.interval[0] <= found.value <= found.interval[1]
    assert found.one_retraining > 0.9
    assert found.ceiling > 0.9
    assert found.undefined == 0


def test_the_wrong_sign_and_random_scores_do_not_agree(problem, right):
    turned = ddm.against_retraining(*problem, lambda masks: -right(masks), key=KEY, subsets=6)
    assert turned.value < -0.9
    scores = np.random.default_rng(1).normal(size=(4, 3))
    assert ddm.against_retraining(*problem, scores, key=KEY, subsets=6).value < 0.9


def test_scores_are_added_up(problem):
    scores = np.random.default_rng(1).normal(size=(4, 3))
    added = ddm.against_retraining(*problem, scores, key=KEY, subsets=6)
    asked = ddm.against_retraining(*problem, lambda masks: masks @ scores, key=KEY, subsets=6)
    assert added.value == pytest.approx(asked.value)
    assert added.interval == pytest.approx(asked.interval)


def test_subsets_may_be_weights_of_ones_own(problem, right):
    weights = random_weights(jax.random.key(1), 6, 4)
    seen = []

    def answers(masks):
        seen.append(masks)
        return right(masks)

    found = ddm.against_retraining(*problem, answers, key=KEY, subsets=weights)
    np.testing.assert_array_equal(seen[0], weights)
    assert found.value > 0.9


@pytest.mark.slow
def test_a_background_is_always_there(problem):
    task, train, data, ids, query = problem
    asked = np.where(ids == 3, -1, ids)
    theirs, seen = retrained(task, train, data, asked, query), []

    def answers(masks):
        seen.append(masks)
        return theirs(masks)

    found = ddm.against_retraining(task, train, data, asked, query, answers, key=KEY, subsets=6)
    assert seen[0].shape == (6, 3)
    assert found.value > 0.9


def test_sets_of_queries_have_an_answer_each(problem):
    task, train, data, ids, query = problem
    sets = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, -1.0]])
    task = ddm.objectives.explain(task, "prediction:0", sets)
    answers = retrained(task, train, data, ids, query)
    found = ddm.against_retraining(task, train, data, ids, query, answers, key=KEY, subsets=6)
    assert found.value > 0.9


@pytest.mark.slow
def test_a_python_loop_is_kept_in_its_folder(problem, tmp_path):
    task, _, data, ids, query = problem
    slopes = np.array([[0.0], [1.0], [2.0], [4.0]]) * query.x.T  # what a group adds, [K, Q]
    calls = []

    def loop(key, data, weights):
        calls.append(weights)
        kept = np.asarray(weights) > 0  # of values, which JAX cannot trace
        x, y = data.x[kept, 0], data.y[kept, 0]
        slope, level = np.polyfit(x, y, 1) + np.asarray(0.01 * jax.random.normal(key, (2,)))
        return {"slope": np.float32(slope), "level": np.float32(level)}

    def agreement():
        return ddm.against_retraining(
            task,
            loop,
            data,
            ids,
            query,
            slopes,
            key=KEY,
            subsets=4,
            seeds=2,
            folder=tmp_path,
        )

    first = agreement()
    trained = len(calls)
    # Equal subsets of the four are one network.
    assert 0 < trained <= 8
    assert agreement() == first
    assert len(calls) == trained


def test_what_is_constant_is_told(problem):
    said = ddm.against_retraining(*problem, lambda masks: np.zeros((6, 3)), key=KEY, subsets=6)
    assert said.undefined == 3
    assert np.isnan(said.value)
    assert "3 queries undefined" in str(said)


def test_it_reads_as_a_line():
    assert str(Agreement(0.5, (0.4, 0.6), 0.7, 0.9, 0)) == (
        "LDS 0.50 [0.40, 0.60]; one retraining 0.70, perfect 0.90"
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"subsets": 3}, "subsets=3"),
        ({"subsets": np.ones((3, 4))}, "the number of subsets=3"),
        ({"subsets": np.ones((6, 5))}, r"masks have shape \(6, 5\); they must be \[R, 4\]"),
        ({"seeds": 1}, "seeds=1"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"answers": np.zeros((3, 3))}, r"shape \(3, 3\); they must be \(4, 3\), scores \[K, Q\]"),
        ({"answers": lambda masks: masks}, r"shape \(16, 4\); they must be \(16, 3\), \[R, Q\]"),
        ({"answers": np.full((4, 3), np.nan)}, "NaN or infinity"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(problem, change, told):
    task, _, data, ids, query = problem

    def never(key, data, weights):
        raise AssertionError("trained")

    given = {"answers": np.zeros((4, 3))} | change
    with pytest.raises(ValueError, match=told):
        ddm.against_retraining(
            task, never, data, ids, query, given.pop("answers"), key=KEY, **given
        )
