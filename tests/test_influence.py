"""The family of influence functions against closed forms and explicit matrices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ddm_jax as ddm
from ddm_jax import gradients
from ddm_jax.compute import memory
from ddm_jax.estimators import (
    ESTIMATORS,
    ekfac,
    make_datainf,
    make_ekfac,
    make_gauss_newton,
    make_influence_arnoldi,
    make_influence_cg,
    make_influence_exact,
    make_influence_lissa,
    make_influence_second_order,
)
from ddm_jax.estimators import (
    _influence as influence,
)
from ddm_jax.types import TrainRun

DAMPING, DECAY = 0.05, 0.02
N, K, Q = 12, 4, 5
GROUPS = np.array([0, 1, 2, 3, 0, 0, 1, 2, 2, 2, 3, 1])
POINTS = np.random.default_rng(7).permutation(N)  # every point a group, in another order


class Line(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)


class Lone(nn.Module):
    """A matrix without a bias, and a scale."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (3,))
        return nn.Dense(3, use_bias=False)(x) * scale


def a_run(params, weight_decay=0.0):
    checkpoints = jax.tree.map(lambda leaf: leaf[None], params)
    decay = jnp.float32(weight_decay)
    return TrainRun(jax.random.key(0), params, checkpoints, weight_decay=decay)


class Problem:
    """A task with parameters, data, and all gradients as rows of explicit matrices."""

    def __init__(self, task, params, data, query):
        self.task, self.run, self.data, self.query = task, a_run(params), data, query
        self.output = output = task.output
        self.flat, self.unravel = ravel_pytree(params)
        of_losses = jax.jacrev(lambda v: task.loss(self.unravel(v), data))
        mean = jax.hessian(lambda v: task.loss(self.unravel(v), data).mean())
        of_outputs = jax.jacrev(lambda v: output(self.unravel(v), query))
        self.gradients, self.hessian, self.wanted = (
            np.asarray(jax.jit(fn)(self.flat), np.float64) for fn in (of_losses, mean, of_outputs)
        )
        self.size = self.flat.size

    def group_gradients(self, groups):
        return np.stack(
            [self.gradients[groups == k].sum(0) / N for k in range(int(groups.max()) + 1)]
        )

    def expected(self, groups, inverse):
        return -self.group_gradients(groups) @ inverse @ self.wanted.T

    def scores(self, make, groups, weight_decay=0.0, **settings):
        estimator = make(self.task, **settings)
        run = a_run(self.run.params, weight_decay)
        state = estimator.fit(jax.random.key(5), run, self.data, groups)
        return np.asarray(estimator.score(state, self.query))

    def check(self, make, inverse, ways=(GROUPS, POINTS), **settings):
        """Both ways: solving for groups, and for queries where every point is a group."""
        for groups in ways:
            want = self.expected(groups, inverse)
            got = self.scores(make, groups, **settings)
            assert got.shape == want.shape == (groups.max() + 1, Q)
            assert np.abs(want).max() > 0
            scale = np.abs(want).max()
            np.testing.assert_allclose(got / scale, want / scale, atol=2e-3)


@pytest.fixture(scope="module")
def ridge():
    """Ridge regression at its optimum; what is explained is the prediction."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 3)), rng.normal(size=(N, 1))
    task = of_predictions(ddm.regression(Line(), (3,)))
    theta = ridge_solution(x, y, np.ones(N))
    params = {"Dense_0": {"bias": theta[:1, 0], "kernel": theta[1:]}}
    data = ddm.Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    query = ddm.Batch(jnp.asarray(rng.normal(size=(Q, 3)), jnp.float32), jnp.zeros((Q, 1)))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return Problem(task, params, data, query)


def of_predictions(task):
    """A regression that explains what it predicts."""
    return task._replace(output=lambda params, batch: task.apply(params, batch.x)[:, 0])


def ridge_solution(x, y, weights):
    design = np.concatenate([np.ones((len(x), 1)), x], 1)
    weights = weights / weights.sum()
    matrix = design.T @ (weights[:, None] * design) + DECAY * np.eye(4)
    return np.linalg.solve(matrix, design.T @ (weights[:, None] * y))


def classification_problem(module, width):
    rng = np.random.default_rng(1)
    task = ddm.classification(module, (width,))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        task.init(jax.random.key(0)),
    )
    x = jnp.asarray(rng.normal(size=(N, width)), jnp.float32)
    y = jnp.eye(3)[rng.integers(0, 3, N)]
    query = ddm.Batch(
        jnp.asarray(rng.normal(size=(Q, width)), jnp.float32), jnp.eye(3)[jnp.arange(Q) % 3]
    )
    return Problem(task, params, ddm.Batch(x, y), query)


@pytest.fixture(scope="module")
def logistic():
    return classification_problem(ddm.models.Logistic(3), 4)


@pytest.fixture(scope="module")
def network():
    return classification_problem(ddm.models.MLP(3, (5,)), 4)


def inverse(matrix, diagonal=DAMPING + DECAY):
    return np.linalg.inv(matrix + diagonal * np.eye(len(matrix)))


# The four solvers of the Hessian


@pytest.mark.slow
def test_ridge_influence_is_the_closed_form(ridge):
    design = np.concatenate([np.ones((N, 1)), np.asarray(ridge.data.x)], 1)
    closed = design.T @ design / N
    assert closed.shape == ridge.hessian.shape == (4, 4)
    np.testing.assert_allclose(ridge.hessian, closed, atol=1e-5)
    settings = {"damping": DAMPING, "weight_decay": DECAY}
    ridge.check(make_influence_exact, inverse(closed), **settings)
    ridge.check(make_influence_cg, inverse(closed), iterations=8, **settings)
    ridge.check(make_influence_arnoldi, inverse(closed), iterations=4, rank=4, **settings)


def test_one_number_by_hand():
    """y = b + k x at b = k = 0, one point (1, 2) of two: H = [[1, .5], [.5, .5]]."""
    task = of_predictions(ddm.regression(Line(), (1,)))
    params = {"Dense_0": {"bias": jnp.zeros(1), "kernel": jnp.zeros((1, 1))}}
    data = ddm.Batch(jnp.array([[1.0], [0.0]]), jnp.array([[2.0], [4.0]]))
    query = ddm.Batch(jnp.array([[0.0], [1.0]]), jnp.zeros((2, 1)))
    estimator = make_influence_exact(task, damping=0.5)
    # (H + I)^-1 = [[1.5, -.5], [-.5, 2]] / 2.75; g = [-1, -1] and [-2, 0].
    state = estimator.fit(jax.random.key(0), a_run(params, 0.5), data, np.array([0, 1]))
    got = np.asarray(estimator.score(state, query))
    assert got.shape == (2, 2)
    np.testing.assert_allclose(got * 2.75, [[1.0, 2.5], [3.0, 2.0]], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "settings"),
    [(make_influence_exact, {}), (make_influence_arnoldi, {"iterations": 43, "rank": 43})],
)
def test_a_saddle_is_warned_of(make, settings, network):
    """`v (H + d I)^-1 v < 0` for some of what is solved for; never where the damping is enough."""
    lowest = np.linalg.eigvalsh(network.hessian)[0]
    with pytest.warns(UserWarning, match=rf"{make.__name__[5:]}: . of 5 solves go uphill.*saddle"):
        network.scores(make, POINTS, damping=DAMPING, weight_decay=DECAY, **settings)
    network.scores(make, POINTS, damping=0.1 - lowest, weight_decay=DECAY, **settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:influence_exact. .* go uphill")
def test_a_network_with_an_indefinite_hessian_is_solved_as_it_is(network):
    values = np.linalg.eigvalsh(network.hessian)
    assert values[0] < -0.01, "the case is about saddles"
    network.check(
        make_influence_exact, inverse(network.hessian), damping=DAMPING, weight_decay=DECAY
    )


def test_too_many_parameters_are_refused_before_the_hessian(network, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 8 * 3 * 4 * 42**2)
    assert network.size == 43
    with pytest.raises(ValueError, match=r"P=43 parameters.*influence_cg"):
        network.scores(make_influence_exact, GROUPS)


def test_conjugate_gradients_end_in_as_many_steps_as_eigenvalues():
    matrix = jnp.diag(jnp.array([4.0, 1.0, 1.0]))
    vector = jnp.array([1.0, 2.0, -3.0])
    found = influence.conjugate_gradient(lambda p: matrix @ p, 0.5, vector, 2)
    want = vector / jnp.array([4.5, 1.5, 1.5])
    assert found.shape == (3,)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    one = influence.conjugate_gradient(lambda p: matrix @ p, 0.5, vector, 1)
    assert np.abs(one - want).max() > 0.01
    more = influence.conjugate_gradient(lambda p: matrix @ p, 0.5, vector, 40)
    np.testing.assert_allclose(more, want, rtol=1e-5)
    nothing = influence.conjugate_gradient(lambda p: matrix @ p, 0.5, vector * 0, 5)
    np.testing.assert_array_equal(nothing, np.zeros(3))


def test_conjugate_gradients_stop_where_the_hessian_curves_down():
    def solved(values, vector):
        matrix = jnp.diag(jnp.array(values))
        return influence.conjugate_gradient(lambda p: matrix @ p, 0.5, jnp.array(vector), 9)

    # Damped enough, it is the inverse.
    np.testing.assert_allclose(solved([2.0, -0.1], [1.0, 1.0]), [1 / 2.5, 1 / 0.4], rtol=1e-5)
    first = solved([2.0, -0.8], [0.0, 3.0])
    assert first.shape == (2,)
    np.testing.assert_allclose(first, [0.0, 6.0], rtol=1e-6)
    # From (1, 1) one step of 2 / 2.2, and then a direction with 2.5 p_0^2 < .3 p_1^2.
    both = solved([2.0, -0.8], [1.0, 1.0])
    np.testing.assert_allclose(both, [2 / 2.2, 2 / 2.2], rtol=1e-5)


@pytest.mark.slow
def test_few_ritz_pairs_are_the_largest_eigenvalues_by_size(logistic):
    values, vectors = np.linalg.eigh(logistic.hessian)
    leading = np.argsort(-np.abs(values))[:4]
    u = vectors[:, leading]
    low_rank = u / (values[leading] + DAMPING + DECAY) @ u.T
    assert np.abs(low_rank - inverse(logistic.hessian)).max() > 1
    logistic.check(
        make_influence_arnoldi, low_rank, damping=DAMPING, weight_decay=DECAY, iterations=15, rank=4
    )


@pytest.mark.slow
def test_lissa_is_its_recursion(network):
    """By hand, on the batches of the state; every point is a group, so queries are solved for."""
    estimator = make_influence_lissa(network.task, damping=0.3, scale=4.0, depth=7, batch=3)
    run = a_run(network.run.params, DECAY)
    state = estimator.fit(jax.random.key(5), run, network.data, POINTS)
    with pytest.warns(UserWarning, match="influence_lissa: .* of 5 solves diverged"):
        got = np.asarray(estimator.score(state, network.query))
    batches = np.asarray(state.curvature.batches)
    assert batches.shape == (7, 3)
    assert len(np.unique(batches)) > 5
    of_batch = jax.jit(
        jax.hessian(lambda v, some: network.task.loss(network.unravel(v), some).mean())
    )
    solved = np.array(network.wanted)
    for rows in batches:
        some = ddm.Batch(state.data.x[rows], state.data.y[rows])
        step = np.asarray(of_batch(network.flat, some)) + (0.3 + DECAY) * np.eye(network.size)
        solved = network.wanted + solved - solved @ step / 4.0
    want = -network.group_gradients(POINTS) @ (solved / 4.0).T
    assert got.shape == want.shape == (N, Q)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.slow
def test_a_long_lissa_with_its_own_scale_is_exact_where_all_batches_are_alike(logistic):
    same = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], N, 0), logistic.data)
    alike = Problem(logistic.task, logistic.run.params, same, logistic.query)
    settings = {"damping": 0.3, "depth": 60, "batch": 2}
    alike.check(make_influence_lissa, inverse(alike.hessian, 0.3), ways=(GROUPS,), **settings)
    estimator = make_influence_lissa(alike.task, **settings)
    state = estimator.fit(jax.random.key(5), alike.run, same, POINTS)
    largest = np.linalg.eigvalsh(alike.hessian)[-1] + 0.3
    assert state.curvature.scale.shape == ()
    np.testing.assert_allclose(state.curvature.scale, largest, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [GROUPS, POINTS])
def test_a_series_that_grows_without_bound_is_warned_of(groups, network):
    """The Hessian curves down by more than the damping: 500 steps end anywhere."""
    assert np.linalg.eigvalsh(network.hessian)[0] < -1.2
    with pytest.warns(UserWarning, match=r"influence_lissa: . of . solves diverged.*raise the dam"):
        wrong = network.scores(make_influence_lissa, groups, damping=1.0)
    assert np.abs(wrong).max() > 1e9
    # Where it is damped enough nothing is said: a warning is an error here.
    network.scores(make_influence_lissa, groups, damping=1.5)


@pytest.mark.slow
def test_a_newton_step_that_leads_nowhere_is_warned_of(network):
    """Along a gradient where the Hessian curves down it goes as far as the damping lets it."""
    settings = {"damping": 1e-4, "iterations": 3}
    with pytest.warns(UserWarning, match="influence_second_order: .* solves diverged"):
        network.scores(make_influence_second_order, GROUPS, **settings)
    network.scores(make_influence_second_order, GROUPS, damping=2.0, iterations=60)


# Gauss-Newton


@pytest.mark.slow
def test_gauss_newton_of_all_points_is_the_hessian_of_logistic_regression(logistic):
    logistic.check(
        make_gauss_newton, inverse(logistic.hessian), damping=DAMPING, weight_decay=DECAY
    )


def explicit_gauss_newton(problem, data):
    jacobian = jax.jacrev(lambda v: problem.task.apply(problem.unravel(v), data.x))(problem.flat)
    chances = np.asarray(jax.nn.softmax(problem.task.apply(problem.run.params, data.x)))
    inner = np.stack([np.diag(p) - np.outer(p, p) for p in chances])
    jacobian = np.asarray(jacobian, np.float64)
    return np.einsum("ncp,ncd,ndq->pq", jacobian, inner, jacobian) / len(data.x)


@pytest.mark.slow
def test_gauss_newton_of_a_network_is_that_of_its_chosen_points(network, monkeypatch):
    whole = explicit_gauss_newton(network, network.data)
    assert np.abs(whole - network.hessian).max() > 0.1
    settings = {"damping": DAMPING, "weight_decay": DECAY, "ways": (POINTS,)}
    network.check(make_gauss_newton, inverse(whole), **settings)
    # The random points are the first ones of the estimator's own order; in pieces, too.
    monkeypatch.setattr(gradients, "rows_at_once", lambda params: 5)
    order = np.asarray(influence.drawn_order(jax.random.key(5), network.data))[:4]
    some = ddm.Batch(network.data.x[order], network.data.y[order])
    some = inverse(explicit_gauss_newton(network, some))
    network.check(make_gauss_newton, some, points=4, **settings)


def test_gauss_newton_refuses_large_systems_and_labels_that_are_none(network, ridge, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 8 * 3 * 4 * 35**2)
    with pytest.raises(ValueError, match=r"points=500 with 3 classes, a system of 36 equations"):
        network.scores(make_gauss_newton, GROUPS)
    for make, settings in (
        (make_gauss_newton, {}),
        (make_ekfac, {}),
        (make_influence_second_order, {"curvature": "gauss_newton"}),
    ):
        with pytest.raises(ValueError, match="needs classes, and this task has targets='any'"):
            make(ridge.task, **settings)


@pytest.mark.slow
def test_gauss_newton_products_side_by_side_equal_one_by_one():
    """With a thousand examples, where a fusion of XLA:CPU was wrong under vmap."""
    task = ddm.classification(ddm.models.Logistic(10), (5,))
    params = task.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1000, 5))
    data = ddm.Batch(x, jnp.eye(10)[jnp.arange(1000) % 10])
    vectors = jax.random.normal(jax.random.key(2), (12, 60))
    weights = jnp.linspace(0, 2e-3, 1000)

    def product(vector):
        return gradients.gauss_newton_product(task, params, data, weights, vector)

    got = jax.jit(jax.vmap(product))(vectors)
    flat, unravel = ravel_pytree(params)
    matrix = jax.jit(jax.hessian(lambda v: weights @ task.loss(unravel(v), data)))(flat)
    assert got.shape == (12, 60)
    assert np.abs(vectors @ matrix).max() > 0.1
    np.testing.assert_allclose(got, vectors @ matrix, atol=1e-4)


# EK-FAC


def pseudo_gradients(problem, key):
    """The gradients with the labels that the estimator draws, and the data in its order."""
    order = np.asarray(influence.drawn_order(key, problem.data))
    x = problem.data.x[order]
    logits = problem.task.apply(problem.run.params, x)
    labels = jax.random.categorical(jax.random.fold_in(key, 1), logits)
    drawn = ddm.Batch(x, jnp.eye(3)[labels])
    rows = jax.jacrev(lambda v: problem.task.loss(problem.unravel(v), drawn))(problem.flat)
    return np.asarray(x, np.float64), np.asarray(rows, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "units"), [(4, 5), (7, 8)])
def test_ekfac_has_the_factors_of_real_activations(width, units):
    """Activations from a forward pass by hand; the estimator has gradients alone.

    Seven inputs, a bias and eight units make a square of the first layer.
    """
    network = classification_problem(ddm.models.MLP(3, (units,)), width)
    x, rows = pseudo_gradients(network, jax.random.key(5))
    weights = network.run.params["Dense_0"]
    hidden = np.maximum(x @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"]), 0)
    ones = np.ones((N, 1))
    inputs = [np.concatenate([x, ones], 1), np.concatenate([hidden, ones], 1)]
    assert (hidden.max(1) > 0).all(), "every example reaches the first layer"
    # [P] in the order bias, kernel, bias, kernel: where both begin, and the kernel's length.
    first = units * (width + 1)
    places = [(0, units, units * width), (first, first + 3, 3 * units)]
    whole = np.zeros((network.size, network.size))
    for a, (start, middle, length) in zip(inputs, places, strict=True):
        delta = rows[:, start:middle]
        index = np.concatenate([np.arange(middle, middle + length), np.arange(start, middle)])
        matrices = rows[:, index].reshape(N, a.shape[1], delta.shape[1])
        np.testing.assert_allclose(matrices, a[:, :, None] * delta[:, None], atol=1e-5)
        u = np.linalg.eigh(a.T @ a)[1]
        v = np.linalg.eigh(delta.T @ delta)[1]
        basis = np.kron(u, v)
        moments = ((matrices.reshape(N, -1) @ basis) ** 2).mean(0)
        block = basis / (moments + DAMPING + DECAY) @ basis.T
        whole[np.ix_(index, index)] = block
    network.check(make_ekfac, whole, damping=DAMPING, weight_decay=DECAY)


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 3])  # three by three with three inputs
def test_ekfac_of_one_point_alone_is_the_inverse_of_its_blocks(width):
    """A lone matrix's factors come from G G^T and G^T G, and a scale keeps its diagonal."""
    problem = classification_problem(Lone(), width)
    twice = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], 2, 0), problem.data)
    logits = problem.task.apply(problem.run.params, twice.x)
    draw = lambda key: jax.random.categorical(jax.random.fold_in(key, 1), logits)  # noqa: E731
    key = next(key for key in map(jax.random.key, range(20)) if jnp.ptp(draw(key)) == 0)
    estimator = make_ekfac(problem.task, damping=DAMPING)
    state = estimator.fit(key, problem.run, twice, np.array([0, 1]))
    got = np.asarray(estimator.score(state, problem.query))
    drawn = twice._replace(y=jnp.eye(3)[draw(key)])
    row = np.asarray(gradients.example_gradients(problem.task.loss, problem.run.params, drawn))[0]
    size = 3 * width
    assert row.shape == (size + 3,)
    assert (np.abs(row) > 1e-4).all()
    whole = np.diag(1 / (row**2 + DAMPING))  # the scale comes last
    matrix = np.outer(row[:size], row[:size]) + DAMPING * np.eye(size)
    whole[:size, :size] = np.linalg.inv(matrix)
    want = -problem.gradients[[0, 0]] / 2 @ whole @ problem.wanted.T
    assert got.shape == want.shape == (2, Q)
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_blocks_find_the_bias_beside_a_kernel():
    params = {
        "Conv_0": {"bias": jnp.zeros(4), "kernel": jnp.zeros((3, 3, 2, 4))},
        "Dense_0": {"bias": jnp.zeros(5), "kernel": jnp.zeros((7, 5))},
        "Dense_1": {"kernel": jnp.zeros((5, 3))},
        "Norm_0": {"bias": jnp.zeros(4), "scale": jnp.zeros(4)},
    }
    found = ekfac.blocks(params)
    assert found == [
        ekfac.Block(1, 0, False),
        ekfac.Block(3, 2, True),
        ekfac.Block(4, None, False),
    ]
    flat = jnp.arange(2.0 * gradients.flatten(params).size).reshape(2, -1)
    matrices, others = ekfac.to_matrices(params, flat)
    assert [m.shape for m in matrices] == [(2, 19, 4), (2, 8, 5), (2, 5, 3)]
    assert others.shape == (2, 8)
    np.testing.assert_array_equal(matrices[0][0, -1], [0, 1, 2, 3])
    np.testing.assert_array_equal(ekfac.to_rows(params, matrices, others), flat)


def test_a_gradient_too_small_to_square_still_has_its_activation():
    """At a trained network the labels that are drawn hardly ever surprise."""
    a, delta = np.array([1.0, -2.0, 1.0]), np.array([3e-25, -1e-25])
    g = jnp.asarray((a[:, None] * delta)[None], jnp.float32)
    side, _ = ekfac.sides(True, g)
    assert side.shape == (3, 3)
    np.testing.assert_allclose(side, np.outer(a, a), rtol=1e-4)
    none, _ = ekfac.sides(True, g * 0)
    np.testing.assert_array_equal(none, np.zeros((3, 3)))


def test_a_layer_that_is_applied_to_each_token_has_no_outer_products():
    """Its factors are those of any gradients, though a bias lies beside its kernel."""
    draw = np.random.default_rng(0)
    x, delta = draw.normal(size=(4, 6, 3)), draw.normal(size=(4, 6, 2))
    x = np.concatenate([x, np.ones((4, 6, 1))], 2)
    each = jnp.asarray(np.einsum("btm,btn->btmn", x, delta), jnp.float32)
    assert ekfac.is_outer(each[:, 0])
    assert not ekfac.is_outer(each.sum(1))
    found = ekfac.sides(ekfac.is_outer(each.sum(1)), each.sum(1))
    for one, two in zip(found, ekfac.sides(False, each.sum(1)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_a_table_of_many_rows_keeps_its_diagonal():
    table = {"tokens": {"embedding": jnp.zeros((ekfac.MOST + 1, 2))}, "w": jnp.zeros((3, 2))}
    assert ekfac.blocks(table) == [ekfac.Block(1, None, False)]


# DataInf


@pytest.mark.slow
def test_datainf_is_a_mean_of_inverses_by_layer(network):
    """With explicit matrices; layers are bias, kernel, bias, kernel."""
    whole = np.zeros((network.size, network.size))
    for start, end in ((0, 5), (5, 25), (25, 28), (28, 43)):
        part = network.gradients[:, start:end]
        size = end - start
        damping = 0.1 * (part**2).sum() / N / size + DECAY
        each = [np.linalg.inv(np.outer(g, g) + damping * np.eye(size)) for g in part]
        whole[start:end, start:end] = np.mean(each, 0)
    network.check(make_datainf, whole, damping=0.1, weight_decay=DECAY)


def test_datainf_bears_a_layer_that_no_point_moves(network):
    dead = jax.tree.map(lambda leaf: leaf, network.run.params)
    dead["Dense_0"] = {"bias": jnp.full(5, -100.0), "kernel": dead["Dense_0"]["kernel"]}
    problem = Problem(network.task, dead, network.data, network.query)
    got = problem.scores(make_datainf, GROUPS)
    assert got.shape == (K, Q)
    assert np.isfinite(got).all()
    assert np.abs(got).max() > 0


# The second order


@pytest.mark.slow
def test_a_newton_step_is_leave_group_out_for_ridge_regression(ridge):
    """And for any groups that are gone together."""
    estimator = make_influence_second_order(ridge.task, damping=0.0, iterations=10)
    run = a_run(ridge.run.params, DECAY)
    state = estimator.fit(jax.random.key(0), run, ridge.data, GROUPS)
    masks = np.ones((4, K), np.float32)
    masks[1, 0] = masks[2, 2] = masks[3, :2] = 0
    got = np.asarray(estimator.outputs(state, masks, ridge.query))
    x, y = np.asarray(ridge.data.x, np.float64), np.asarray(ridge.data.y, np.float64)
    design = np.concatenate([np.ones((Q, 1)), np.asarray(ridge.query.x)], 1)
    want = np.stack([(design @ ridge_solution(x, y, mask[GROUPS]))[:, 0] for mask in masks])
    assert got.shape == want.shape == (4, Q)
    assert np.abs(want[1:] - want[0]).max() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-4)
    score = np.asarray(estimator.score(state, ridge.query))
    assert score.shape == (K, Q)
    np.testing.assert_allclose(score[[0, 2]], want[0] - want[1:3], atol=2e-4)
    # The first order is not that.
    first = ridge.scores(make_influence_exact, GROUPS, damping=0.0, weight_decay=DECAY)
    assert np.abs(first - score).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "curvature"), [("logistic", "hessian"), ("network", "gauss_newton")]
)
def test_a_newton_step_away_from_the_optimum(name, curvature, request):
    """(H' + d I)^-1 (G - G') with explicit matrices, and the outputs of the moved network."""
    problem = request.getfixturevalue(name)
    keep = np.array([1, 0, 1, 1.0])
    kept = np.flatnonzero(keep[GROUPS])
    part = ddm.Batch(problem.data.x[kept], problem.data.y[kept])
    change = problem.gradients.mean(0) - problem.gradients[kept].mean(0)
    move = inverse(explicit_gauss_newton(problem, part)) @ change
    moved = problem.unravel(problem.flat + jnp.asarray(move, jnp.float32))
    want = np.asarray(problem.output(moved, problem.query))
    estimator = make_influence_second_order(
        problem.task, damping=DAMPING, iterations=60, curvature=curvature
    )
    run = a_run(problem.run.params, DECAY)
    state = estimator.fit(jax.random.key(0), run, problem.data, GROUPS)
    got = np.asarray(estimator.outputs(state, np.stack([keep, np.ones(K)]), problem.query))
    assert got.shape == (2, Q)
    assert want.shape == (Q,)
    stays = np.asarray(problem.output(problem.run.params, problem.query))
    np.testing.assert_allclose(got[1], stays, atol=1e-5)
    assert np.abs(want - stays).max() > 0.05
    np.testing.assert_allclose(got[0], want, atol=5e-3 * np.abs(want - stays).max())


# The frame


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:influence_exact. .* go uphill")
@pytest.mark.parametrize("name", ["influence_exact", "ekfac"])
def test_pieces_change_nothing(name, network, monkeypatch):
    settings = {"damping": DAMPING, "weight_decay": DECAY}
    want = network.scores(ESTIMATORS[name], POINTS, **settings)
    monkeypatch.setattr(gradients, "rows_at_once", lambda params: 5)
    got = network.scores(ESTIMATORS[name], POINTS, **settings)
    assert got.shape == want.shape == (N, Q)
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())


@pytest.mark.slow
def test_an_output_of_all_queries_has_one_column(logistic):
    def mean_margin(params, batch):
        return jnp.mean(logistic.output(params, batch), keepdims=True)

    for groups in (GROUPS, POINTS):
        whole = logistic.scores(make_influence_exact, groups, damping=DAMPING)
        task = logistic.task._replace(output=mean_margin, of_sets=True)
        estimator = make_influence_exact(task, damping=DAMPING)
        state = estimator.fit(jax.random.key(5), logistic.run, logistic.data, groups)
        got = np.asarray(estimator.score(state, logistic.query))
        assert got.shape == (groups.max() + 1, 1)
        np.testing.assert_allclose(got[:, 0], whole.mean(1), atol=1e-4 * np.abs(whole).max())


def test_the_drawn_order_belongs_to_the_points(logistic):
    order = np.asarray(influence.drawn_order(jax.random.key(1), logistic.data))
    assert sorted(order) == list(range(N))
    shuffled = np.random.default_rng(3).permutation(N)
    moved = jax.tree.map(lambda leaf: leaf[shuffled], logistic.data)
    again = shuffled[np.asarray(influence.drawn_order(jax.random.key(1), moved))]
    np.testing.assert_array_equal(again, order)
    other = np.asarray(influence.drawn_order(jax.random.key(2), logistic.data))
    assert (other != order).any()


def test_sums_of_gradients_are_the_same_in_pieces(network, monkeypatch):
    factors = np.random.default_rng(0).normal(size=(N, 2))
    want = factors.T @ network.gradients
    for size in (100, 5, 1):
        monkeypatch.setattr(gradients, "rows_at_once", lambda params, size=size: size)
        got = gradients.sum_gradients(
            lambda rows, which: jnp.asarray(factors, jnp.float32)[which].T @ rows,
            network.task.loss,
            network.run.params,
            network.data,
        )
        assert got.shape == want.shape == (2, network.size)
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_convolutions_go_one_vector_at_a_time_and_dense_layers_together():
    assert gradients.vectors_at_once({"kernel": jnp.zeros((3, 3, 2, 4))}) == 1
    assert gradients.vectors_at_once({"kernel": jnp.zeros((784, 10))}) == 64
    assert gradients.vectors_at_once({"kernel": jnp.zeros((784, 128))}) == 5
    vectors = jnp.arange(21.0).reshape(7, 3)
    for params in ({"a": jnp.zeros(3)}, {"a": jnp.zeros((1, 1, 3))}):
        got = gradients.map_vectors(lambda v: 2 * v, params, vectors)
        assert got.shape == (7, 3)
        np.testing.assert_array_equal(got, 2 * vectors)
