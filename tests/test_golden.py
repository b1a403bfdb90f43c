"""Our estimators beside the scores that other libraries give the same fixed networks.

`golden/make_golden.py` wrote the scores down; the libraries themselves are not needed here. They
explain the loss of a query and call positive what lowers it, for one training point of weight
one: `<grad loss_i, C grad loss_q>`. Ours are positive where the point raises the output, here the
loss, and a point of the mean over N weighs 1/N. So a score of theirs is -N times one of ours,
unless a test says otherwise.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ddm_jax as ddm
from ddm_jax.estimators import ESTIMATORS
from ddm_jax.gradients import example_gradients
from ddm_jax.types import take
from ddm_jax.values import VALUES

FOLDER = Path(__file__).parent / "golden"
N, Q, CLASSES = 48, 10, 4
LIBRARIES = ("dattri", "traker", "captum", "pydvl")


class Side(NamedTuple):
    """One network of the problem as our types."""

    task: ddm.Task
    data: ddm.Batch
    query: ddm.Batch
    run: ddm.TrainRun


class Golden:
    """What one library scored, by name."""

    def __init__(self, library):
        with np.load(FOLDER / f"{library}.npz") as file:
            self.found = dict(file)
        self.settings = json.loads(str(self.found["settings"]))

    def __getitem__(self, name):
        return self.found[name]


@pytest.fixture(scope="module")
def golden():
    return {library: Golden(library) for library in LIBRARIES}


def read_problem():
    with np.load(FOLDER / "problem.npz") as file:
        return dict(file)


def make_side(problem, name):
    """The network `name` after its training, with three checkpoints of it."""
    split = problem["pixels"].astype(np.float32).reshape(-1, 8, 8, 1) / 16
    labels = np.eye(CLASSES, dtype=np.float32)[problem["labels"]]
    hidden = [f"{name}.hidden"] if f"{name}.hidden.weight" in problem else []
    points = {
        f"Dense_{index}": {
            "kernel": jnp.asarray(problem[f"{layer}.weight"]).transpose(0, 2, 1),
            "bias": jnp.asarray(problem[f"{layer}.bias"]),
        }
        for index, layer in enumerate([*hidden, f"{name}.last"])
    }
    module = ddm.models.MLP(CLASSES, (8,)) if hidden else ddm.models.Logistic(CLASSES)
    steps = len(problem["rows"])
    # Of the perceptron three points of the training were kept, of the regression all of them.
    kept = slice(None) if hidden else np.array([8, 16, 24])
    checkpoints = take(points, kept)
    task = ddm.classification(module, (8, 8, 1))._replace(init=lambda key: take(points, 0))
    run = ddm.TrainRun(
        key=jax.random.key(0),
        params=take(checkpoints, -1),
        checkpoints=checkpoints,
        steps=jnp.array([8, 16, 24]),
        learning_rates=jnp.full(steps, problem[f"learning_rate.{name}"]),
        rows=jnp.asarray(problem["rows"]),
        losses=jnp.zeros(steps),
        weight_decay=jnp.float32(0),
        start=take(points, 0),
    )
    data, query = (
        ddm.Batch(jnp.asarray(split[part]), jnp.asarray(labels[part]))
        for part in (slice(None, N), slice(N, None))
    )
    return Side(task, data, query, run)


@pytest.fixture(scope="module")
def sides():
    problem = read_problem()
    return {name: make_side(problem, name) for name in ("linear", "mlp")}


@pytest.fixture(scope="module", params=("linear", "mlp"))
def side(request, sides):
    return request.param, sides[request.param]


def make(method, side, **settings):
    """Our estimator of the loss."""
    return ESTIMATORS[method](ddm.objectives.explain(side.task, "loss"), **settings)


def scored(side, estimator, groups=None):
    """Our scores of each training point, or of groups."""
    groups = np.arange(N, dtype=np.int32) if groups is None else groups
    state = estimator.fit(jax.random.key(0), side.run, side.data, groups)
    scores = np.asarray(estimator.score(state, side.query))
    assert scores.shape == (groups.max() + 1, Q)
    return scores


def assert_close(ours, theirs, tolerance=1e-3):
    """Each entry within a part of itself, or of a hundredth of the largest."""
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=tolerance, atol=tolerance / 100)


def assert_near(ours, theirs, tolerance, least):
    """Where one of both is random: within a part of the largest, and ranked alike by query."""
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    ranks = [stats.spearmanr(ours[:, q], theirs[:, q]).statistic for q in range(ours.shape[1])]
    assert error < tolerance
    assert min(ranks) > least


def test_the_scores_are_of_this_problem(golden):
    problem = read_problem()
    content = b"".join(key.encode() + problem[key].tobytes() for key in sorted(problem))
    digest = hashlib.sha256(content).hexdigest()
    for library in LIBRARIES:
        assert str(golden[library]["problem"]) == digest
        assert any(library in version for version in golden[library]["versions"])


def damping_of(name):
    """Of the influence functions; the perceptron's Hessian has eigenvalues down to -.4."""
    return {"linear": 0.02, "mlp": 0.8}[name]


def test_grad_dot(golden, side):
    name, ours = side
    scores = -N * scored(ours, make("grad_dot", ours))
    assert_close(scores, golden["dattri"][f"{name}.grad_dot"])


@pytest.mark.slow
def test_influence_with_the_whole_hessian(golden, side):
    name, ours = side
    scores = -N * scored(ours, make("influence_exact", ours, damping=damping_of(name)))
    assert_close(scores, golden["dattri"][f"{name}.influence_exact"])
    assert_close(scores, golden["pydvl"][f"{name}.influence_exact"])
    # Captum's Hessian is of the sum of the losses, and so is what is added to its diagonal.
    assert_close(scores, N * golden["captum"][f"{name}.influence_exact"])


@pytest.mark.slow
def test_influence_by_conjugate_gradients(golden, side):
    """Both libraries start from the gradient and not from zero: compared where it converges."""
    name, ours = side
    estimator = make("influence_cg", ours, damping=damping_of(name), iterations=60)
    scores = -N * scored(ours, estimator)
    assert_close(scores, golden["dattri"][f"{name}.influence_cg"])
    assert_close(scores, golden["pydvl"][f"{name}.influence_cg"])


@pytest.mark.parametrize(("name", "damping"), [("linear", 1e-6), ("mlp", 0.8)])
def test_influence_by_arnoldi(golden, sides, name, damping):
    """The largest eigenvalues, which do not depend on the vector that it starts from."""
    theirs = golden["dattri"].settings[f"{name}.influence_arnoldi"]
    settings = {"rank": theirs["proj_dim"], "iterations": theirs["max_iter"]}
    estimator = make("influence_arnoldi", sides[name], damping=damping, **settings)
    scores = -N * scored(sides[name], estimator)
    if name == "mlp":
        assert_close(scores, golden["pydvl"][f"{name}.influence_arnoldi"])
    else:  # theirs is not damped; ours wants some, here much less than the least that is kept
        assert_close(scores, golden["dattri"][f"{name}.influence_arnoldi"])
        assert_close(scores, N * golden["captum"][f"{name}.influence_arnoldi"])


def test_gauss_newton_is_the_hessian_of_a_logistic_regression(golden, sides):
    ours = sides["linear"]
    estimator = make("gauss_newton", ours, damping=damping_of("linear"), points=N)
    scores = -N * scored(ours, estimator)
    assert_close(scores, golden["dattri"]["linear.influence_exact"])


def test_influence_by_lissa(golden, sides):
    """dattri's 40 steps are over all data; ours over batches, so large that they say the same."""
    ours, theirs = sides["linear"], golden["dattri"].settings["linear.influence_lissa"]
    estimator = make(
        "influence_lissa",
        ours,
        damping=theirs["damping"] * theirs["scaling"],  # added before dividing by the scale
        scale=theirs["scaling"],
        depth=theirs["recursion_depth"],
        batch=100 * N,
    )
    scores = -N * scored(ours, estimator)
    assert_near(scores, golden["dattri"]["linear.influence_lissa"], 0.02, 0.998)


def one_leaf_a_layer(side):
    """The same networks with each bias as the last row of its kernel."""

    def fold(params):
        return [jnp.concatenate([leaf["kernel"], leaf["bias"][None]]) for leaf in params.values()]

    def apply(params, x):
        x = x.reshape(len(x), -1)
        for index, leaf in enumerate(params):
            x = jax.nn.relu(x) if index else x
            x = x @ leaf[:-1] + leaf[-1]
        return x

    loss = ddm.objectives.loss(apply)
    task = ddm.Task(lambda key: fold(side.task.init(key)), loss, loss, apply)
    return side._replace(task=task, run=side.run._replace(params=fold(side.run.params)))


def test_datainf(golden, sides):
    """Theirs takes a layer for a block, and ours a leaf; its damping is no multiple of anything."""
    ours = one_leaf_a_layer(sides["mlp"])
    decayed = ours.run._replace(weight_decay=jnp.float32(damping_of("mlp")))
    ours = ours._replace(run=decayed)
    estimator = make("datainf", ours, damping=0.0)
    scores = -N * scored(ours, estimator)
    assert_close(scores, golden["dattri"]["mlp.datainf"])
    # pyDVL divides once more, by the number of training gradients that it multiplies with.
    assert_close(scores, N * golden["pydvl"]["mlp.datainf_by_layer"])


@pytest.mark.slow
def test_ekfac(golden, sides):
    """pyDVL's, with the exact Fisher matrix; ours draws labels, here 200 for each point.

    Without the correction of the eigenvalues it would be off by .04 of the largest.
    """
    ours, copies = sides["mlp"], 200
    many = jax.tree.map(lambda leaf: jnp.tile(leaf, (copies,) + (1,) * (leaf.ndim - 1)), ours.data)
    groups = np.tile(np.arange(N, dtype=np.int32), copies)
    estimator = make("ekfac", ours, damping=damping_of("mlp"))
    scores = -N * scored(ours._replace(data=many), estimator, groups)
    assert_near(scores, golden["pydvl"]["mlp.ekfac_of_fisher"], 0.02, 0.998)


def test_grad_cos_and_tracin(golden, side):
    name, ours = side
    scores = -N * scored(ours, make("grad_cos", ours))
    assert_close(scores, golden["dattri"][f"{name}.grad_cos"])
    scores = -N * scored(ours, make("tracin", ours))
    assert_close(scores, golden["dattri"][f"{name}.tracin"])
    assert_close(scores, golden["captum"][f"{name}.tracin"])


def test_in_run_shapley(golden, sides):
    """dattri's grad-dot of every step with its batch, of which a point is a B-th on both sides."""
    scores = -scored(sides["linear"], make("in_run_shapley", sides["linear"]))
    assert_close(scores, golden["dattri"]["linear.in_run_shapley"])


def test_self_influence(golden, sides):
    """Ours are less their mean."""
    ours, theirs = sides["mlp"], golden["captum"]["mlp.self_influence"]
    scores = -N * scored(ours, VALUES["self_influence"](ours.task))[:, 0]
    assert_close(scores, theirs - theirs.mean())


def test_knn_shapley(golden, sides):
    """On pixels, as the peers have it; pyDVL's are means over the queries."""
    ours = sides["linear"]
    on_pixels = ours.task._replace(features=None)
    scores = N * scored(ours, ddm.estimators.make_knn_shapley(on_pixels, neighbours=5))
    assert_close(scores, golden["dattri"]["pixels.knn_shapley"])
    assert_close(scores.mean(1), golden["pydvl"]["pixels.knn_shapley"])


def ridge_of_trak(side, ridge):
    """Theirs is of features divided by sqrt(P); ours is in units of the mean diagonal."""
    rows_of = jax.jit(example_gradients, static_argnums=0)
    rows = rows_of(side.task.output, side.run.params, side.data)
    return ridge * rows.shape[1] ** 2 / float(jnp.sum(rows**2))


def test_trak_without_projection(golden, sides):
    ours = sides["mlp"]
    damping = ridge_of_trak(ours, golden["dattri"].settings["mlp.trak"]["regularization"])
    estimator = ddm.estimators.make_trak(ours.task, None, projection=None, damping=damping)
    scores = scored(ours, estimator)
    assert_close(scores, golden["dattri"]["mlp.trak"])
    # traker divides the inverse by the mean size of its entries.
    theirs = golden["traker"]["mlp.trak"]
    assert_close(scores, theirs * (np.abs(scores).max() / np.abs(theirs).max()))


def test_representation_similarity(golden, sides):
    """Captum's cosine takes no side: ours is negative for points of another class."""
    ours = sides["mlp"]
    sign = 2 * np.asarray(ours.data.y @ ours.query.y.T) - 1
    scores = N * sign * scored(ours, ddm.estimators.make_representation(ours.task))
    assert_close(scores, golden["captum"]["mlp.similarity_cosine"])


def test_representer(golden, sides):
    """dattri fits the network's own probabilities, divides by N twice, and is less converged."""
    ours = sides["mlp"]
    own = jax.nn.softmax(ours.task.apply(ours.run.params, ours.data.x))
    theirs = golden["dattri"].settings["mlp.representer"]
    estimator = ddm.estimators.make_representer(ours.task, l2=theirs["l2_strength"])
    scores = scored(ours._replace(data=ours.data._replace(y=own)), estimator) / N
    assert_near(scores, golden["dattri"]["mlp.representer"], 0.02, 0.99)


@pytest.mark.slow
def test_projected_trak(golden, sides):
    """Two random projections to as many dimensions; theirs alone correlates .99 with none."""
    ours = sides["linear"]
    theirs = golden["traker"].settings["linear.trak_projected"]
    estimator = ddm.estimators.make_trak(
        ours.task, None, projection=theirs["dimensions"], damping=ridge_of_trak(ours, 1e-3)
    )
    scores = scored(ours, estimator)
    ranks = stats.spearmanr(scores.ravel(), golden["traker"]["linear.trak_projected"].ravel())
    assert ranks.statistic > 0.9


def ridge_side(sides):
    """Ridge regressions on pixels, with 1 for a point's class and -1 for the others."""

    def apply(params, x):
        return x.reshape(len(x), -1) @ params

    def right(params, batch):
        return jnp.sum(apply(params, batch.x) * batch.y, -1)

    def train(key, data, weights):
        x = data.x.reshape(len(data.x), -1)
        gram = x.T @ (weights[:, None] * x) + jnp.eye(x.shape[1])
        params = jnp.linalg.solve(gram, x.T @ (weights[:, None] * (2 * data.y - 1)))
        return ddm.TrainRun(key, params, params[None], weight_decay=1.0)

    loss = ddm.objectives.loss(apply)
    task = ddm.Task(lambda key: jnp.zeros((64, CLASSES)), loss, right, apply)
    data = sides["linear"].data
    run = train(jax.random.key(0), data, jnp.ones(N))
    return Side(task, data, sides["linear"].query, run), train


@pytest.mark.slow
def test_leave_one_out(golden, sides):
    """pyDVL's, of 8 groups."""
    side, train = ridge_side(sides)
    estimator = ddm.estimators.make_retraining(side.task, train)
    scores = scored(side, estimator, read_problem()["groups"])
    assert_close(scores, golden["pydvl"]["ridge.leave_one_out"])


@pytest.mark.slow
def test_banzhaf(golden, sides):
    """pyDVL's exact values, over sets of groups of any size; ours are over sets of half of them.

    There, where group k is, one less of the other K - 1 is: effects s that add up come out as
    `s_k - (sum s - s_k) / (K - 1)`.
    """
    side, train = ridge_side(sides)
    estimator = ddm.estimators.make_banzhaf(side.task, train, subsets=1000)
    scores = scored(side, estimator, read_problem()["groups"])
    theirs = golden["pydvl"]["ridge.banzhaf"]
    others = (theirs.sum(0) - theirs) / (len(theirs) - 1)
    # These do not quite add up: sets of half of the groups are not all sets.
    assert np.abs(scores - (theirs - others)).max() < 0.2 * np.abs(theirs).max()
    for ours, exact in zip(scores.T, theirs.T, strict=True):
        assert np.corrcoef(ours, exact)[0, 1] > 0.975


@pytest.mark.slow
def test_data_oob(golden, sides):
    """4,000 bags of scikit-learn's, and 2,000 of ours, which are less their mean."""
    side, train = ridge_side(sides)
    scores = N * scored(side, VALUES["data_oob"](side.task, train, models=2000))[:, :1]
    theirs = golden["pydvl"]["ridge.data_oob"][:, None]
    assert_near(scores, theirs - theirs.mean(), 0.06, 0.98)
