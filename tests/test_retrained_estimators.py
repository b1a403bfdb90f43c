"""Estimators that train networks, on networks whose outputs are known, and TRAK by its matrices."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from scipy.special import softmax
from sklearn.linear_model import Lasso, Ridge

import ddm_jax as ddm
from ddm_jax import estimators
from ddm_jax.estimators import trak
from ddm_jax.estimators.datamodel import lasso, ridge
from ddm_jax.estimators.encoded_ensemble import codes
from ddm_jax.estimators.subset_networks import make_subset_networks

KEY = jax.random.key(0)
GROUPS = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])  # K = 6 of two points each
EFFECTS = np.array([1.0, -2.0, 0.0, 3.0, 0.0, 0.0])


def remember(key, data, weights):
    """A training whose network is the weights of the points."""
    return a_run(key, {"w": weights})


def a_run(key, params):
    """A finished training of which only the network is looked at."""
    checkpoints = jax.tree.map(lambda leaf: leaf[None], params)
    return ddm.TrainRun(key, params, checkpoints)


def planted(params, batch):
    """A group that was there adds its effect, times the query's input."""
    return batch.x[:, 0] * (2.0 + params["w"][:6] @ jnp.asarray(EFFECTS, jnp.float32))


def together(params, batch):
    """What two groups do together is no sum."""
    return planted(params, batch) + 4 * params["w"][0] * params["w"][1] + batch.x[:, 0] ** 2


TASK = ddm.Task(
    init=lambda key: {"w": jnp.zeros(12)},
    apply=lambda params, x: x,
    loss=planted,
    output=planted,
    targets="any",
)
TOGETHER = TASK._replace(output=together)
DATA = ddm.Batch(jnp.zeros((12, 1)), jnp.ones((12, 1)))
RUN = remember(KEY, DATA, jnp.ones(12))
QUERY = ddm.Batch(jnp.array([[1.0], [-2.0], [0.5]]), jnp.ones((3, 1)))


def fitted(estimator, groups=GROUPS):
    """The state on the twelve points, and the scores of the three queries."""
    state = estimator.fit(KEY, RUN, DATA, groups)
    scores = np.asarray(estimator.score(state, QUERY))
    assert scores.shape == (groups.max() + 1, 3)
    return state, scores


def test_networks_are_trained_on_the_groups_of_their_masks():
    masks = jnp.array([[1.0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1]])
    fit = make_subset_networks(remember, lambda key, count: masks[:, :count])
    state = fit(KEY, RUN, DATA, ddm.as_groups(GROUPS))
    assert state.masks.shape == (2, 6)
    np.testing.assert_array_equal(state.masks, masks)
    np.testing.assert_array_equal(state.params["w"], np.asarray(masks)[:, GROUPS])


def test_networks_follow_their_groups_under_other_numbers():
    estimator = estimators.make_banzhaf(TOGETHER, remember, subsets=8)
    names = np.array([3, 0, 5, 1, 2, 4])
    state, scores = fitted(estimator)
    moved, permuted = fitted(estimator, names[GROUPS])
    np.testing.assert_array_equal(moved.params["w"], state.params["w"])
    np.testing.assert_array_equal(np.asarray(moved.masks)[:, names], state.masks)
    np.testing.assert_allclose(permuted[names], scores, rtol=1e-5)


def test_subsets_are_halves_that_differ():
    state, _ = fitted(estimators.make_datamodel(TASK, remember, subsets=12))
    assert state.masks.shape == (12, 6)
    np.testing.assert_array_equal(state.masks.sum(1), 3)
    assert len(np.unique(state.masks, axis=0)) > 5


@pytest.mark.slow
def test_a_ridge_datamodel_recovers_a_planted_linear_function():
    """Halves of six: all effects up to a common shift, and the penalty makes that zero."""
    estimator = estimators.make_datamodel(TASK, remember, subsets=60, penalty=1e-5)
    _, got = fitted(estimator)
    want = np.outer(EFFECTS - EFFECTS.mean(), [1.0, -2.0, 0.5])
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-2)


def test_a_lasso_datamodel_is_zero_where_nothing_is():
    """The common shift is that of the smallest absolute sum, here none."""
    estimator = estimators.make_datamodel(
        TASK, remember, subsets=60, regression="lasso", penalty=0.02
    )
    _, got = fitted(estimator)
    scaled = got / [1.0, -2.0, 0.5]
    assert scaled.shape == (6, 3)
    np.testing.assert_allclose(scaled, scaled[:, :1].repeat(3, 1), atol=1e-4)
    np.testing.assert_array_equal(got[[2, 4, 5]], 0)
    assert (np.sign(scaled[[0, 1, 3], 0]) == [1, -1, 1]).all()


@pytest.mark.parametrize("count", [15, 80])  # fewer and more subsets than groups
@pytest.mark.parametrize("regression", ["ridge", "lasso"])
def test_regressions_are_those_of_scikit_learn(regression, count, rng):
    masks = rng.normal(size=(count, 20))
    outputs = masks[:, :3] @ rng.normal(size=(3, 2)) + 0.3 * rng.normal(size=(count, 2))
    penalty = 0.1
    if regression == "ridge":
        want = Ridge(alpha=penalty * count, fit_intercept=False).fit(masks, outputs).coef_.T
    else:
        known = Lasso(alpha=penalty, fit_intercept=False, tol=1e-8, max_iter=100_000)
        want = known.fit(masks, outputs).coef_.T
    solve = {"ridge": ridge, "lasso": lasso}[regression]
    got = np.asarray(solve(jnp.asarray(masks, jnp.float32), jnp.asarray(outputs), penalty))
    assert got.shape == want.shape == (20, 2)
    np.testing.assert_allclose(got, want, atol=2e-3)
    if regression == "lasso":
        assert (want == 0).any()
        np.testing.assert_array_equal(got[want == 0], 0)


@pytest.mark.parametrize("regression", ["ridge", "lasso"])
def test_a_datamodel_is_scikit_learns_on_scaled_outputs(regression):
    estimator = estimators.make_datamodel(
        TOGETHER, remember, subsets=10, regression=regression, penalty=0.05
    )
    state, got = fitted(estimator)
    masks = np.asarray(state.masks, float)
    outputs = np.stack([together({"w": w}, QUERY) for w in state.params["w"]]).astype(float)
    spread = outputs.std(0)
    if regression == "ridge":
        known = Ridge(alpha=0.05 * 10)
    else:
        known = Lasso(alpha=0.05, tol=1e-8, max_iter=100_000)
    want = (known.fit(masks, outputs / spread).coef_ * spread[:, None]).T
    assert got.shape == want.shape == (6, 3)
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_banzhaf_is_with_less_without():
    estimator = estimators.make_banzhaf(TOGETHER, remember, subsets=10)
    state, got = fitted(estimator)
    masks = np.asarray(state.masks) > 0
    outputs = np.stack([together({"w": w}, QUERY) for w in state.params["w"]])
    want = np.stack(
        [outputs[masks[:, k]].mean(0) - outputs[~masks[:, k]].mean(0) for k in range(6)]
    )
    assert got.shape == want.shape == (6, 3)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_banzhaf_comes_near_the_mean_over_all_halves():
    """Of twenty halves each; 400 draws leave a standard error of about 0.3."""
    estimator = estimators.make_banzhaf(TOGETHER, remember, subsets=400)
    _, got = fitted(estimator)
    want = np.zeros((6, 3))
    for half in combinations(range(6), 3):
        seen = np.isin(np.arange(6), half)
        output = np.asarray(together({"w": jnp.asarray(seen[GROUPS], jnp.float32)}, QUERY))
        want += np.where(seen, 0.1, -0.1)[:, None] * output
    assert got.shape == want.shape
    assert np.abs(want[:, 0]).max() > 2
    np.testing.assert_allclose(got, want, atol=0.7)


def test_banzhaf_says_nothing_of_a_group_that_all_or_no_subsets_saw():
    """Of six groups in two halves, some are in both or in neither."""
    state, got = fitted(estimators.make_banzhaf(TASK, remember, subsets=2))
    split = (np.asarray(state.masks).sum(0) % 2).astype(bool)
    assert split.any()
    assert not split.all()
    np.testing.assert_array_equal(got[~split], 0)
    assert (got[split] != 0).all()


def test_codes_are_distinct_halves():
    found = np.asarray(codes(KEY, 4, 6))  # all there are
    assert found.shape == (4, 6)
    assert set(np.unique(found)) == {0, 1}
    np.testing.assert_array_equal(found.sum(0), 2)
    assert len(np.unique(found, axis=1).T) == 6
    other = np.asarray(codes(jax.random.key(1), 4, 6))
    assert (other != found).any()
    np.testing.assert_array_equal(codes(KEY, 4, 6), found)


def test_more_groups_than_codes_are_refused():
    estimator = estimators.make_encoded_ensemble(TASK, remember, members=4)
    with pytest.raises(ValueError, match="members=4 make 6 codes; 11 groups"):
        estimator.fit(KEY, RUN, DATA, np.append(np.arange(11), 0))


def test_an_encoded_ensemble_is_all_members_less_those_without():
    estimator = estimators.make_encoded_ensemble(TOGETHER, remember, members=6)
    state, got = fitted(estimator)
    masks = np.asarray(state.masks) > 0
    np.testing.assert_array_equal(state.params["w"], masks[:, GROUPS])
    outputs = np.stack([together({"w": w}, QUERY) for w in state.params["w"]])
    want = np.stack([outputs.mean(0) - outputs[~masks[:, k]].mean(0) for k in range(6)])
    assert got.shape == want.shape == (6, 3)
    np.testing.assert_allclose(got, want, atol=1e-5)


# TRAK, on logistic regression


class Linear:
    """Sixty points of four inputs and three classes, and a training that is one step."""

    def __init__(self):
        rng = np.random.default_rng(5)
        x = rng.normal(size=(60, 4))
        labels = (x @ rng.normal(size=(4, 3)) + rng.normal(size=(60, 3))).argmax(1)
        self.data = ddm.Batch(jnp.asarray(x, jnp.float32), jnp.eye(3)[labels])
        self.query = ddm.Batch(
            jnp.asarray(rng.normal(size=(7, 4)), jnp.float32), jnp.eye(3)[np.arange(7) % 3]
        )
        self.groups = rng.permutation(np.arange(60) % 5)
        self.w = jnp.asarray(0.5 * rng.normal(size=(4, 3)), jnp.float32)

        def apply(params, x):
            return x @ params["w"]

        self.task = ddm.Task(
            lambda key: {"w": self.w},
            ddm.objectives.loss(apply),
            ddm.objectives.margin(apply),
            apply,
        )
        self.run = a_run(KEY, {"w": self.w})
        self.seen = []

    def train(self, key, data, weights):
        """Another network for each choice of the points: `w + x^T (weights y) / 60`."""
        jax.debug.callback(lambda seen: self.seen.append(np.asarray(seen)), weights)
        w = self.w + data.x.T @ (weights[:, None] * data.y) / 60
        return a_run(key, {"w": w})

    def scores(self, run=None, groups=None, task=None, **settings):
        estimator = estimators.make_trak(task or self.task, self.train, **settings)
        groups = self.groups if groups is None else groups
        state = estimator.fit(KEY, run or self.run, self.data, groups)
        scores = np.asarray(estimator.score(state, self.query))
        assert scores.shape == (groups.max() + 1, 7)
        return state, scores


@pytest.fixture(scope="module")
def logistic():
    return Linear()


def margin_features(w, batch):
    """`x (y - p')^T`, p' the probabilities among the other classes; and one minus p_y."""
    x, y, w = (np.asarray(a, float) for a in (batch.x, batch.y, w))
    others = softmax(np.where(y > 0, -np.inf, x @ w), axis=1)
    wrong = 1 - (softmax(x @ w, axis=1) * y).sum(1)
    return np.einsum("nf,nc->nfc", x, y - others).reshape(len(x), -1), wrong


def trak_by_matrices(logistic, networks, damping, of_queries=None):
    """TRAK's equation 13 without a projection, `[K, Q]`; by default of the queries' margin."""
    kernel, wrong = 0.0, 0.0
    for w in networks:
        of_points, chance = margin_features(w, logistic.data)
        explained = margin_features(w, logistic.query)[0] if of_queries is None else of_queries
        gram = of_points.T @ of_points
        gram += damping * np.trace(gram) / len(gram) * np.eye(len(gram))
        kernel = kernel + of_points @ np.linalg.inv(gram) @ explained.T / len(networks)
        wrong = wrong + chance / len(networks)
    points = kernel * wrong[:, None]
    return np.stack([points[logistic.groups == k].sum(0) for k in range(5)])


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_trak_is_its_equation_in_matrices(damping, logistic):
    _, got = logistic.scores(projection=None, damping=damping)
    want = trak_by_matrices(logistic, [logistic.w], damping)
    assert got.shape == want.shape == (5, 7)
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())


def test_trak_explains_another_output_by_its_gradient(logistic):
    second = ddm.objectives.explain(logistic.task, "logit:1")
    _, got = logistic.scores(projection=None, damping=0.1, task=second)
    of_queries = np.einsum("qf,c->qfc", logistic.query.x, [0.0, 1.0, 0.0]).reshape(7, 12)
    want = trak_by_matrices(logistic, [logistic.w], 0.1, of_queries)
    assert got.shape == want.shape == (5, 7)
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())


def test_a_projection_of_trak_that_does_not_fit_is_refused(logistic, monkeypatch):
    """Of .8 million parameters 2,048 columns asked for 27 GB, in the middle of the work."""
    monkeypatch.setattr(trak, "device_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"projection=64 of 12 parameters takes .* lower it"):
        logistic.scores(projection=64, damping=0.1)


@pytest.mark.slow
def test_trak_of_two_networks_is_the_mean_of_each_part(logistic):
    state, got = logistic.scores(models=2, projection=None, damping=0.1)
    jax.effects_barrier()
    halves = np.stack(logistic.seen)
    assert halves.shape == (2, 60)
    np.testing.assert_array_equal(halves.sum(1), 30)
    networks = np.asarray(state.params["w"])
    assert networks.shape == (2, 4, 3)
    assert np.abs(networks[0] - networks[1]).max() > 0.01
    want = trak_by_matrices(logistic, networks, 0.1)
    assert got.shape == want.shape == (5, 7)
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())


@pytest.mark.slow
def test_a_projection_keeps_the_ranking_of_the_points(logistic):
    """The ridge is in units of the mean diagonal, which a projection to D spreads out."""
    points = np.arange(60)
    _, whole = logistic.scores(groups=points, projection=None, damping=0.1)
    _, wide = logistic.scores(groups=points, projection=512, damping=0.1 * 512 / 12)
    kept = np.mean([stats.spearmanr(whole[:, q], wide[:, q])[0] for q in range(7)])
    assert 0.97 < kept < 1


@pytest.mark.slow
def test_a_value_network_carries_a_known_effect_to_queries_it_has_not_seen():
    """Networks that are sums over points: a group's effect on a query is an inner product."""

    def output(params, batch):
        return jnp.einsum("nc,nf,cf->n", batch.y, batch.x, params)

    def train(key, data, weights):
        params = jnp.einsum("n,nc,nf->cf", weights, data.y, data.x) / len(weights)
        return a_run(key, params)

    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 230)
    centres = draw.normal(size=(3, 4))
    x = jnp.asarray(centres[labels] + 0.3 * draw.normal(size=(230, 4)), jnp.float32)
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    y = jnp.eye(3)[labels]
    data, query = ddm.Batch(x[:200], y[:200]), ddm.Batch(x[200:], y[200:])
    task = ddm.Task(
        init=lambda key: jnp.zeros((3, 4)),
        apply=lambda params, x: x @ params.T,
        loss=output,
        output=output,
        features=lambda params, x: x,
    )
    groups = draw.permutation(np.arange(200) % 20)
    run = train(jax.random.key(0), data, jnp.ones(200))
    estimator = estimators.make_value_network(task, train, subsets=60)
    state = estimator.fit(jax.random.key(1), run, data, groups)
    got = np.asarray(estimator.score(state, query))
    alike = np.asarray((y[:200] @ y[200:].T) * (x[:200] @ x[200:].T)) / 200
    want = np.stack([alike[groups == k].sum(0) for k in range(20)])
    assert got.shape == want.shape == (20, 30)
    each = [np.corrcoef(got[:, q], want[:, q])[0, 1] for q in range(30)]
    assert np.mean(each) > 0.9
    # Its size is right too, up to the shift that halves do not tell.
    got, want = got - got.mean(0), want - want.mean(0)
    assert 0.7 < (got * want).sum() / (want**2).sum() < 1.2


# Networks that any Python function trains


def python_train(key, data, weights):
    """Weighted least squares by a loop of optax, which looks at values: JAX cannot trace it."""
    x, y, weights = np.asarray(data.x), np.asarray(data.y), np.asarray(weights)
    params = {"w": np.asarray(jax.random.normal(key, (2,)))}
    rule = optax.adam(0.1)
    state = rule.init(params)
    for step in range(12):
        rows = np.arange(4) + 4 * (step % 3)
        weight = weights[rows] / max(weights[rows].sum(), 1e-12)
        if weight.sum() > 0:
            slope = {"w": jnp.asarray(x[rows].T @ (weight * (x[rows] @ params["w"] - y[rows])))}
        updates, state = rule.update(slope, state, params)
        params = {"w": np.asarray(params["w"] + updates["w"])}
    return params


def traced_train(key, data, weights):
    """The same, as JAX traces it."""

    def step(carry, number):
        params, state = carry
        rows = jnp.arange(4) + 4 * (number % 3)
        weight = weights[rows] / jnp.maximum(weights[rows].sum(), 1e-12)
        slope = data.x[rows].T @ (weight * (data.x[rows] @ params["w"] - data.y[rows]))
        updates, state = optax.adam(0.1).update({"w": slope}, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"w": jax.random.normal(key, (2,))}
    carry = params, optax.adam(0.1).init(params)
    return a_run(key, jax.lax.scan(step, carry, jnp.arange(12))[0][0])


def squares(params, batch):
    return (batch.x @ params["w"] - batch.y) ** 2


PLANE = ddm.Task(
    init=lambda key: {"w": jnp.zeros(2)},
    loss=squares,
    output=lambda params, batch: batch.x @ params["w"],
    targets="any",
)
DRAWN = np.random.default_rng(3).normal(size=(15, 3)).astype(np.float32)
POINTS, ASKED = (ddm.Batch(rows[:, :2], rows[:, 2]) for rows in (DRAWN[:12], DRAWN[12:]))
MASKS = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [0.5, 1, 2, 1]], np.float32)
OF_FOUR = np.arange(12) % 4


def retrained(estimator, **asked):
    state = estimator.fit(KEY, a_run(KEY, {"w": jnp.zeros(2)}), POINTS, OF_FOUR)
    return state, np.asarray(estimator.outputs(state, MASKS, ASKED))


@pytest.mark.slow
def test_a_python_loop_retrains_as_the_traced_one_does(tmp_path):
    traced, kept = (
        estimators.make_retraining(PLANE, traced_train, seeds=2),
        estimators.make_retraining(PLANE, python_train, seeds=2, folder=tmp_path / "networks"),
    )
    _, want = retrained(traced)
    state, got = retrained(kept)
    assert got.shape == want.shape == (3, 3)
    assert np.abs(want - want[:1]).max() > 1e-2
    np.testing.assert_allclose(got, want, atol=1e-5)
    scores = np.asarray(kept.score(state, ASKED))
    assert scores.shape == (4, 3)
    np.testing.assert_allclose(scores[0], got[0] - got[1], atol=1e-6)


class Counting:
    """A training that counts its networks, and may be killed after some."""

    def __init__(self, enough=1000):
        self.count, self.enough = 0, enough

    def __call__(self, key, data, weights):
        if self.count == self.enough:
            raise KeyboardInterrupt
        self.count += 1
        return python_train(key, data, weights)


@pytest.mark.slow
def test_what_was_trained_before_a_kill_is_not_trained_again(tmp_path):
    killed, told = Counting(2), []
    with pytest.raises(KeyboardInterrupt):
        retrained(estimators.make_retraining(PLANE, killed, seeds=2, folder=tmp_path))
    again = Counting()
    estimator = estimators.make_retraining(
        PLANE, again, seeds=2, folder=tmp_path, progress=lambda *each: told.append(each)
    )
    state, got = retrained(estimator)
    assert (killed.count, again.count) == (2, 4)
    assert told == [(number, 6) for number in range(1, 7)]
    whole = estimators.make_retraining(PLANE, python_train, seeds=2, folder=tmp_path / "other")
    np.testing.assert_array_equal(got, retrained(whole)[1])
    # Other queries, another output, and groups of the same points cost no training.
    first = jax.tree.map(lambda leaf: leaf[:1], ASKED)
    np.testing.assert_allclose(estimator.outputs(state, MASKS, first), got[:, :1], atol=1e-6)
    loss = estimators.make_retraining(
        PLANE._replace(output=squares), again, seeds=2, folder=tmp_path
    )
    retrained(loss)
    assert again.count == 4
    # Another name, data or mask is another network.
    retrained(estimators.make_retraining(PLANE, again, seeds=2, folder=tmp_path, name="longer"))
    assert again.count == 10
    estimator.outputs(state, MASKS[:1] * [1, 1, 1, 3], ASKED)
    assert again.count == 12
    moved = state._replace(data=POINTS._replace(y=POINTS.y + 1))
    estimator.outputs(moved, MASKS[:1], ASKED)
    assert again.count == 14


def test_networks_of_a_folder_are_checked(tmp_path):
    def of(train, **settings):
        return retrained(estimators.make_retraining(PLANE, train, **settings))

    with pytest.raises(ValueError, match="not finite: its training diverged"):
        of(lambda key, data, weights: {"w": np.full(2, np.nan)}, folder=tmp_path)
    with pytest.raises(ValueError, match="it must have this task's"):
        of(lambda key, data, weights: {"v": np.ones(2)}, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"cannot be traced by JAX, .* pass folder="):
        of(python_train)
    with pytest.raises(ValueError, match="chunk: of networks trained side by side"):
        of(python_train, folder=tmp_path, chunk=2)
    with pytest.raises(ValueError, match="pass folder="):
        of(traced_train, progress=print)
