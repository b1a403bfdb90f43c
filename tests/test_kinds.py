"""Every method on every kind of task: it works, or it refuses by its name; and it is never wrong.

The problems and the methods are those of `benchmarks/kinds.py`, whose table stands in the docs.
"""

import json
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from estimator_cases import CASES

import ddm_jax as ddm
from ddm_jax.checks import count_outputs
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.estimators.retraining import retraining_response, subset_retraining_response
from ddm_jax.masks import random_weights
from ddm_jax.metrics import additive_outputs, nan_mean, per_query_correlation

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import kinds  # noqa: E402
from kinds import IDS, KINDS, METHODS, K, N, Q  # noqa: E402

JOINT = [method for method in CASES if CASES[method].joint]
pytestmark = pytest.mark.slow  # each cell compiles a method

# A few on one kind of task; the whole grid is slow.
FEW = ("grad_dot", "influence_cg", "trak", "knn_shapley")
FAST = {("grad_dot", "columns"), ("trak", "columns"), ("knn_shapley", "tokens")}
QUICKEST = ("grad_dot", "knn_shapley")
WORKING = json.loads((ROOT / "benchmarks" / "results" / "kinds.json").read_text())


def grid(cases, fast):
    """Parameters, those that are not fast marked as slow."""
    slow = pytest.mark.slow
    return [pytest.param(*case, marks=() if case in fast else slow) for case in cases]


def fit(method, kind, groups=None, **changes):
    """An estimator of a problem, its state, and the problem, with other groups or another task."""
    made, train, run = kinds.ready(kind)
    made = made._replace(**changes)
    estimator = METHODS[method].make(made.task, train)
    groups = made.groups if groups is None else groups
    return estimator, estimator.fit(jax.random.key(1), run, made.data, groups), made


def score(method, kind, groups=None, **changes):
    estimator, state, made = fit(method, kind, groups, **changes)
    return np.asarray(estimator.score(state, made.query))


def relative(got, want):
    """The largest difference, in units of the largest score."""
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


def test_every_method_is_here():
    assert set(METHODS) == set(CASES)


def refuses(method, kind):
    """Whether the stored table says so."""
    return not next(row for row in WORKING["rows"] if row["method"] == method)[kind]["works"]


# Every refusal, the distilled datamodel on every kind, and every method on one that it was not made
# for. `benchmarks/kinds.py` asks all others, and stops where one raises anything else.
ASKED = [(m, k) for k in KINDS for m in METHODS if refuses(m, k) or m == "ddm" or k == "columns"]


@pytest.mark.parametrize(("method", "kind"), grid(ASKED, FAST))
def test_a_method_works_on_a_kind_of_task_or_refuses_by_its_name(method, kind):
    """Anything else raises here. Scores of the wrong sign would agree below zero."""
    found, agrees = kinds.ask(method, kind), kinds.agreement(method, kind)
    if found.scores is not None and METHODS[method].predicts:
        assert agrees > 0.05
    if kind in ("classes", "background", "frozen"):  # what every method was made for
        assert found.scores is not None
    told = next(row for row in WORKING["rows"] if row["method"] == method)[kind]
    assert told["works"] == (found.scores is not None), "run benchmarks/kinds.py"


# Sets of queries

ROWS = np.random.default_rng(0).dirichlet(np.ones(Q), Q).astype(np.float32)  # as many as queries


def takes_sets(method):
    """Whether the stored table says that a method explains sets."""
    return next(row for row in WORKING["rows"] if row["method"] == method)["sets"]["works"]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=() if method in QUICKEST else pytest.mark.slow)
        for method in METHODS
        if METHODS[method].linear and takes_sets(method)
    ],
)
def test_the_score_of_a_mean_of_queries_is_the_mean_of_their_scores(method):
    """Of as many sets as there are queries, which no shape tells from an output a query."""
    task = kinds.over_sets(kinds.classes().task, ROWS)
    assert relative(score(method, "classes", task=task), score(method, "classes") @ ROWS.T) < 2e-3


POINT_SETS = sorted(m for m in METHODS if CASES[m].additive and takes_sets(m))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [m for m in ("grad_dot", "influence_cg", "tracin") if m in POINT_SETS]
)
def test_sets_are_explained_by_single_points_too(method):
    """Some methods go through the gradients of the outputs there."""
    task = kinds.over_sets(kinds.classes().task, ROWS)
    points = ddm.as_groups(np.arange(N))
    sets = score(method, "classes", points, task=task)
    assert relative(sets, score(method, "classes", points) @ ROWS.T) < 2e-3


def test_an_output_of_another_shape_is_refused():
    task = kinds.classes().task
    query = kinds.classes().query
    one = task._replace(output=ddm.objectives.accuracy(task.apply))
    with pytest.raises(ValueError, match=r"has shape \(1,\) for 8 queries; .*of_sets=True"):
        score("grad_dot", "classes", task=one)
    assert count_outputs(one._replace(of_sets=True), query) == 1
    assert count_outputs(task, query) == Q
    flat = task._replace(output=lambda params, batch: jnp.zeros((2, 3)), of_sets=True)
    with pytest.raises(ValueError, match=r"shape \(2, 3\); of sets it must be \[S\]"):
        count_outputs(flat, query)


@pytest.mark.parametrize("method", ["grad_dot", "influence_cg", "trak"])
def test_an_output_without_a_gradient_is_warned_of_by_name(method):
    task = ddm.objectives.explain(kinds.classes().task, "accuracy")
    with pytest.warns(UserWarning, match=f"{method}: all scores are zero: the output has no grad"):
        assert (score(method, "classes", task=task) == 0).all()


def test_retraining_explains_an_accuracy():
    task = ddm.objectives.explain(kinds.classes().task, "accuracy")
    found = score("retraining", "classes", task=task)
    assert found.shape == (K, 1)
    np.testing.assert_allclose(found * Q, np.round(found * Q), atol=1e-5)


def test_answers_that_are_not_finite_are_warned_of_by_name():
    made, _, run = kinds.ready("classes")
    spoilt = lambda *args: jnp.array([[1.0, jnp.nan]])  # noqa: E731
    estimator = make_estimator(made.task, lambda *args: None, spoilt, spoilt, method="my_own")
    state = estimator.fit(jax.random.key(0), run, made.data, made.groups)
    for call in (estimator.score, lambda *args: estimator.outputs(state, None, args[1])):
        with pytest.warns(UserWarning, match="my_own: some answers are not finite"):
            call(state, made.query)


# The background

SOME = ddm.as_groups(np.where(IDS < 2, -1, IDS - 2))
# Joint ones that leave one group out of everything, background included, do so exactly too.
EXACT = sorted(
    method
    for method in METHODS
    if CASES[method].additive
    or method
    in (
        "retraining",
        "merging",
        "untrac",
        "influence_cg",
        "influence_lissa",
        "influence_second_order",
    )
)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=() if m in QUICKEST else pytest.mark.slow)
        for m in EXACT
        if m in ("grad_dot", "influence_cg", "tracin", "knn_shapley", "source")
    ],
)
def test_groups_have_the_scores_that_they_have_without_a_background(method):
    """N counts it, and it is in no group's gradient."""
    # Where two groups are merged as the one network of a background they are not quite the same.
    most = 0.05 if method == "merging" else 1e-4
    assert relative(score(method, "classes", SOME), score(method, "classes")[2:]) < most


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(m for m in METHODS if CASES[m].additive))
def test_single_points_have_theirs_beside_a_background(method):
    """The points alone would be solved for another way than fewer groups than points."""
    ids = np.arange(N) - 9
    some = ddm.as_groups(np.maximum(ids, -1))
    got, want = score(method, "classes", some), score(method, "classes", np.arange(N))[9:]
    assert relative(got, want) < 1e-3


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=() if m in FEW else pytest.mark.slow)
        for m in ("grad_dot", "grad_cos", "tracin", "untrac", "mirrored_influence", "group_size")
    ],
)
def test_what_the_background_holds_is_in_no_score(method):
    """Of methods that look at the points of a group alone."""
    made = kinds.ready("classes").kind
    other = made.data.x + 5 * (IDS < 2)[:, None]
    changed = made.data._replace(x=other.astype(np.float32))
    got = score(method, "classes", SOME, data=changed)
    assert relative(got, score(method, "classes", SOME)) < 1e-5


def test_retraining_keeps_the_background_whatever_the_mask():
    estimator, state, made = fit("retraining", "classes", SOME)
    only = ddm.as_groups(np.where(IDS < 2, 0, IDS - 1))
    other, other_state, _ = fit("retraining", "classes", only)
    masks = np.array([[1, 0, 0, 2], [0.5, 1, 0, 1]], np.float32)
    with_it = np.concatenate([np.ones((2, 1), np.float32), masks], 1)
    got = estimator.outputs(state, masks, made.query)
    want = other.outputs(other_state, with_it, made.query)
    np.testing.assert_allclose(got, want, atol=1e-4)


# Weights


@pytest.mark.parametrize(
    ("method", "kind"),
    grid(
        [(m, "classes") for m in METHODS if m in JOINT or m in QUICKEST] + [("ddm", "background")],
        {(m, "classes") for m in QUICKEST},
    ),
)
def test_weights_of_a_half_and_of_two_are_followed(method, kind):
    """By the sums of the scores, and by what a joint method says of them."""
    if not METHODS[method].predicts or kinds.ask(method, kind).scores is None:
        pytest.skip("it does not claim to predict")
    estimator, state, made = fit(method, kind)
    exact, exact_state, _ = fit("retraining", kind)
    masks = np.asarray(random_weights(jax.random.key(0), 24, made.groups.count))
    truth = np.asarray(exact.outputs(exact_state, masks, made.query))
    found = [additive_outputs(estimator.score(state, made.query), masks)]
    if estimator.outputs is not None:
        found.append(np.asarray(estimator.outputs(state, masks, made.query)))
    for predicted in found:
        assert predicted.shape == truth.shape == (24, Q)
        assert nan_mean(per_query_correlation(predicted, truth, "pearson")) > 0.1


def test_retraining_on_the_kept_points_alone_follows_weights_too():
    """It took any weight for a one."""
    made, train, _ = kinds.ready("classes")
    keep = jnp.array([2.0, 0.5, 1.0, 1.0, 3.0, 1.0])
    given = keep, jax.random.key(0), made.data, made.groups, made.query
    want = jax.jit(retraining_response(train, made.task.output))(*given)
    got = jax.jit(subset_retraining_response(train, made.task.output, N))(*given)
    np.testing.assert_allclose(got, want, atol=1e-4)
    ones = jax.jit(retraining_response(train, made.task.output))(jnp.ones(K), *given[1:])
    assert np.abs(np.asarray(want - ones)).max() > 0.01


# Groups that do nothing

STILL = {"steps": 600, "batch_size": N, "learning_rate": 0.5, "momentum": 0.8}
# By design they give a group without a gradient something: an average of parameters moves where a
# network that stayed is left out; a layer that is fitted anew; an angle, which is blind to size.
# Means over random halves know the effects up to their noise.
NOT_NULL = {
    "merging": "an average of parameters moves where a network that stayed is left out of it",
    "representer": "it fits a last layer of its own",
    "banzhaf": "noise of random halves",
    "encoded_ensemble": "noise of random halves",
    "datamodel": "noise of random halves",
}
# Synsets are matched so well, and steps along a query have a curvature.
NEAR = {"ddm": 0.1, "forward_matching": 0.1, "untrac_inverse": 0.1, "mirrored_influence": 0.1}
NULL = [m for m in METHODS if METHODS[m].predicts and m not in NOT_NULL]
# One of each family; a group without gradients means the same to all of one.
NULLS = [
    m
    for m in NULL
    if m
    in (
        "ddm",
        "retraining",
        "grad_dot",
        "tracin",
        "influence_cg",
        "influence_second_order",
        "ekfac",
        "trak",
        "source",
        "metagradient",
        "untrac",
        "grad_cos",
    )
]
FAST_NULL = ("grad_dot", "influence_cg")


def masked(points):
    """The classes with noisy labels and a number by which each point's loss is multiplied."""
    made = kinds.classes()
    labels = np.random.default_rng(7).integers(0, 3, N)
    y = np.where((np.arange(N) % 3 == 0)[:, None], np.eye(3, dtype=np.float32)[labels], made.data.y)

    def apply(params, x):
        return kinds.layer(params, x["numbers"])

    def loss(params, batch):
        return batch.x["mask"] * optax.softmax_cross_entropy(apply(params, batch.x), batch.y)

    task = kinds.of_classes(apply, made.task.init, lambda params, x: x["numbers"])
    data = ddm.Batch({"numbers": made.data.x, "mask": points.astype(np.float32)}, y)
    ones = np.ones(Q, np.float32)
    query = ddm.Batch({"numbers": made.query.x, "mask": ones}, made.query.y)
    return task._replace(loss=loss), data, query


def null_scores(method, task, data, query, **recipe):
    train = ddm.make_train(task, **({"checkpoint_every": 60} | STILL | recipe))
    run = jax.jit(train)(jax.random.key(0), data, jnp.ones(N))
    estimator = METHODS[method].make(task, train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        state = estimator.fit(jax.random.key(1), run, data, ddm.as_groups(IDS))
        return np.abs(np.asarray(estimator.score(state, query)))


@pytest.mark.parametrize("method", grid([(m,) for m in NULLS], {(m,) for m in FAST_NULL}))
def test_points_whose_loss_is_constant_do_nothing(method):
    scores = null_scores(method, *masked(IDS != 2))
    assert scores[2].max() < (2e-2 if method == "forward_matching" else 1e-2) * scores.max()


@pytest.fixture(scope="module")
def fitted():
    """A problem whose third group lies on the optimum of the others, by soft labels, and that."""
    task, data, query = masked(IDS != 2)
    train = ddm.make_train(task, **STILL)
    best = jax.jit(train)(jax.random.key(0), data, jnp.ones(N)).params
    chances = np.asarray(jax.nn.softmax(task.apply(best, data.x)))
    _, whole, _ = masked(np.ones(N))
    return task, whole._replace(y=np.where((IDS == 2)[:, None], chances, data.y)), query, best


@pytest.mark.parametrize("method", grid([(m,) for m in NULLS], {(m,) for m in FAST_NULL}))
def test_points_that_are_fitted_exactly_do_nothing_at_the_optimum(method, fitted):
    """The whole training stays there, so that no method sees anything else."""
    if method == "grad_cos":
        pytest.skip("an angle is blind to the size of a gradient")
    *problem, best = fitted
    scores = null_scores(method, *problem, start=best)
    assert scores[2].max() < NEAR.get(method, 2e-2) * scores.max()


# What diverges


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("influence_lissa", {"damping": 1e-4}),
        ("influence_cg", {"damping": 1e-4}),
        ("influence_exact", {"damping": 1e-4}),
        ("influence_arnoldi", {"damping": 1e-4}),
        ("influence_second_order", {"damping": 1e-4}),
        ("forward_matching", {}),
    ],
)
def test_on_a_network_that_adamw_trained_no_method_is_wrong_without_a_word(method, settings):
    """A small language model: 0.8 said 3e12 of it, or NaN, where retraining says one."""
    made = kinds.tokens()
    sizes = {"embedding": (kinds.TOKENS, 8), "hidden": (8 * kinds.LENGTH, 16)}
    sizes |= {"out": (16, kinds.TOKENS)}

    def init(key):
        keys = dict(zip(sizes, jax.random.split(key, 3), strict=True))
        return {name: jax.random.normal(keys[name], sizes[name]) / 3 for name in sizes}

    def loss(params, batch):
        rows = params["embedding"][batch.x].reshape(len(batch.x), -1)
        logits = jnp.tanh(rows @ params["hidden"]) @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)

    task = kinds.of_loss(loss, init)
    train = ddm.make_train(
        task,
        steps=300,
        batch_size=24,
        learning_rate=0.01,
        optimizer="adamw",
        weight_decay=0.01,
        checkpoint_every=30,
    )
    run = jax.jit(train)(jax.random.key(0), made.data, jnp.ones(N))
    estimator = ddm.estimators.ESTIMATORS[method](task, **settings)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        state = estimator.fit(jax.random.key(1), run, made.data, made.groups)
        scores = np.asarray(estimator.score(state, made.query))
    name = {"forward_matching": "ddm"}.get(method, method)  # it is asked by that
    told = any(name in str(each.message) for each in warned)
    assert told or np.abs(scores).max() < 100
