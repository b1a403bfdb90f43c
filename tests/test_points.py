"""Single points from the synset, against explicit P x P matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ddm_jax as ddm
from ddm_jax.compute import memory
from ddm_jax.estimators import points
from ddm_jax.estimators.points import (
    make_point_influence,
    make_trajectory_influence,
    spread_points,
)
from ddm_jax.items import SOFT_LABELS
from ddm_jax.synset import deal, take_batch
from ddm_jax.types import take


@pytest.fixture(scope="module")
def small(ready, synset):
    """A logistic task with 250 + 10 parameters would do; the tiny network has 910."""
    some = ddm.Batch(ready.data.x[:12], ready.data.y[:12])
    few = ddm.Batch(ready.query.x[:5], ready.query.y[:5])
    return ready, synset, some, few


def flat_gradients(objective, params, batch):
    vector, unravel = ravel_pytree(params)
    return np.asarray(jax.jacrev(lambda v: objective(unravel(v), batch))(vector), np.float64)


def signed_weights(synset):
    """`share_k mass_m` of each item."""
    return synset.share[synset.group] * synset.mass


def item_weights(synset):
    """The same, where it is above zero."""
    return np.maximum(np.asarray(signed_weights(synset)), 0)


def curvature(task, params, synset):
    """The Gauss-Newton matrix of the synset, [P, P], from the Jacobian of its logits."""
    batch = SOFT_LABELS.batch(synset.items)
    vector, unravel = ravel_pytree(params)
    logits = np.asarray(
        jax.jacrev(lambda v: task.apply(unravel(v), batch.x))(vector), np.float64
    )  # [KM, C, P]
    p = np.asarray(jax.nn.softmax(task.apply(params, batch.x)), np.float64)
    weights = item_weights(synset)
    inner = np.einsum("b,bc,cd->bcd", weights, p, np.eye(10))
    inner -= np.einsum("b,bc,bd->bcd", weights, p, p)
    return np.einsum("bcp,bcd,bdq->pq", logits, inner, logits)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", ["whole", "layer"])
def test_the_influence_is_that_of_the_explicit_matrix(small, blocks):
    ready, synset, some, few = small
    params, task = ready.run.params, ready.task
    influence = make_point_influence(task, damping=0.02, blocks=blocks)
    found = np.asarray(jax.jit(influence)(params, synset, some, few, 0.01))
    matrix = curvature(task, params, synset)
    if blocks == "layer":
        cut = points.layer_cuts(params)
        assert cut == [12 * 64 + 12]
        mask = np.zeros_like(matrix)
        mask[: cut[0], : cut[0]] = 1
        mask[cut[0] :, cut[0] :] = 1
        matrix = matrix * mask
    g, q = flat_gradients(task.loss, params, some), flat_gradients(task.output, params, few)
    expected = -g @ np.linalg.solve(matrix + 0.03 * np.eye(len(matrix)), q.T) / 12
    assert found.shape == expected.shape == (12, 5)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_the_empirical_fisher_takes_the_items_own_gradients(small):
    ready, synset, some, few = small
    params, task = ready.run.params, ready.task
    influence = make_point_influence(task, damping=0.05, curvature="fisher")
    found = np.asarray(jax.jit(influence)(params, synset, some, few))
    rows = flat_gradients(task.loss, params, SOFT_LABELS.batch(synset.items))
    rows = rows * np.sqrt(item_weights(synset))[:, None]
    g, q = flat_gradients(task.loss, params, some), flat_gradients(task.output, params, few)
    matrix = rows.T @ rows + 0.05 * np.eye(rows.shape[1])
    expected = -g @ np.linalg.solve(matrix, q.T) / 12
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_along_the_trajectory_is_the_mean_and_items_take_turns(small):
    ready, synset, some, few = small
    two = jax.tree.map(lambda leaf: leaf[-2:], ready.run.checkpoints)
    each = jax.jit(make_point_influence(ready.task, damping=0.02))
    along = jax.jit(make_trajectory_influence(ready.task, damping=0.02, batch=10))
    rows = deal(synset, 10, 2)
    assert rows.shape == (2, 10)
    np.testing.assert_array_equal(np.sort(rows.ravel()), np.arange(20))
    expected = []
    for t in range(2):  # as a synset whose only group has these weights
        items, weights = take_batch(synset.items, signed_weights(synset), rows[t], 2)
        part = ddm.Synset(items, jnp.zeros(10, int), weights, jnp.ones(1))
        expected.append(each(take(two, t), part, some, few))
    found = along(two, synset, some, few)
    np.testing.assert_allclose(found, np.mean(expected, 0), rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_one_output_of_all_queries_has_one_column(small):
    ready, synset, some, few = small
    mean = lambda params, batch: jnp.mean(ready.task.loss(params, batch), keepdims=True)  # noqa: E731
    whole, each = (
        make_point_influence(ready.task._replace(output=output, of_sets=whole), damping=0.02)
        for output, whole in ((mean, True), (ready.task.loss, False))
    )
    args = (ready.run.params, synset, some, few)
    one = jax.jit(whole)(*args)
    assert one.shape == (12, 1)
    np.testing.assert_allclose(one[:, 0], jax.jit(each)(*args).mean(1), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("count", "window", "expected"),
    [
        (2, (0.0, 1.0), [4, 9]),
        (3, (0.25, 1.0), [4, 7, 9]),
        (1, (0.0, 1.0), [9]),
        (9, (0.0, 0.3), [0, 1, 2]),
        (2, (0.5, 1.0), [7, 9]),
    ],
)
def test_which_checkpoints(count, window, expected):
    found = spread_points({"a": jnp.arange(10)}, count, window)["a"]
    assert found.tolist() == expected


def test_what_is_refused(ready):
    for settings, said in (
        ({"damping": -1.0}, "damping=-1"),
        ({"damping": float("nan")}, "damping=nan"),
        ({"curvature": "hessian"}, "curvature='hessian'"),
        ({"blocks": "row"}, "blocks='row'"),
    ):
        with pytest.raises(ValueError, match=said):
            make_point_influence(ready.task, **settings)
    with pytest.raises(ValueError, match="needs classes"):
        make_point_influence(ready.task._replace(targets="any"))
    with pytest.raises(ValueError, match="checkpoints=0"):
        spread_points({"a": jnp.arange(4)}, 0)
    with pytest.raises(ValueError, match=r"window=\(0.5, 0.5\)"):
        spread_points({"a": jnp.arange(4)}, 2, (0.5, 0.5))
    for window in ((-0.1, 1.0), (0.0, 1.1), (0.8, 0.2)):
        with pytest.raises(ValueError, match="window="):
            spread_points({"a": jnp.arange(4)}, 2, window)


def test_too_many_items_are_refused_before_they_are_held(small, monkeypatch):
    ready, synset, some, few = small
    with pytest.raises(ValueError, match="one of them must be positive"):
        make_point_influence(ready.task, damping=0.0)(ready.run.params, synset, some, few)
    monkeypatch.setattr(memory, "device_memory", lambda: 1000)
    with pytest.raises(ValueError, match="take fewer items"):
        make_point_influence(ready.task)(ready.run.params, synset, some, few)


def two_classes():
    """Two parameters and numbers to do by hand: both classes have a chance of a half."""

    def loss(params, batch):
        return -jnp.sum(batch.y * jax.nn.log_softmax(batch.x @ params), -1)

    return ddm.Task(
        init=lambda key: jnp.zeros((1, 2)),
        apply=lambda params, x: x @ params,
        loss=loss,
        output=lambda params, batch: (batch.x @ params)[..., 0],
    )


@pytest.fixture
def by_hand():
    # The second item would change every number, but for its negative mass.
    y = jnp.log(jnp.array([0.75, 0.25]))
    items = ddm.Batch(jnp.array([[2.0], [5.0]]), jnp.stack([y, y]))
    synset = ddm.Synset(items, jnp.zeros(2, int), jnp.array([1.0, -1.0]), jnp.ones(1))
    data = ddm.Batch(jnp.array([[1.0], [-2.0]]), jnp.eye(2))  # gradients (-.5, .5) and (-1, 1)
    return jnp.zeros((1, 2)), synset, data, ddm.Batch(jnp.array([[3.0]]), jnp.eye(2)[:1])


@pytest.mark.parametrize(
    ("curvature", "expected"),
    [
        ("gauss_newton", [0.25, 0.5]),  # G = [1 -1; -1 1], (G + I)^-1 (3, 0) = (2, 1)
        ("fisher", [0.5, 1.0]),  # G = [1 -1; -1 1] / 4, (G + I)^-1 (3, 0) = (2.5, .5)
    ],
)
def test_numbers_done_by_hand(by_hand, curvature, expected):
    influence = make_point_influence(two_classes(), damping=0.75, curvature=curvature)
    found = jax.jit(influence)(*by_hand, 0.25)
    assert found.shape == (2, 1)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)


def test_labels_of_the_items_matter_to_the_fisher_matrix_alone(by_hand):
    params, synset, data, query = by_hand
    labels = synset.items.y + jnp.array([0.0, 3.0])
    turned = synset._replace(items=synset.items._replace(y=labels))
    for curvature, same in (("gauss_newton", True), ("fisher", False)):
        influence = jax.jit(make_point_influence(two_classes(), damping=1.0, curvature=curvature))
        first, second = (influence(params, each, data, query) for each in (synset, turned))
        assert np.allclose(first, second, rtol=1e-5) == same


def test_a_kernel_and_its_bias_are_a_layer():
    params = {
        "Dense_0": {"bias": jnp.zeros(4), "kernel": jnp.zeros((3, 4))},
        "Dense_1": {"bias": jnp.zeros(2), "kernel": jnp.zeros((4, 2))},
        "Dense_2": {"kernel": jnp.zeros((2, 5))},
    }
    assert points.layer_cuts(params) == [16, 26]
    assert points.layer_cuts({"Dense_0": params["Dense_0"]}) == []


@pytest.fixture(scope="module")
def two_networks(ready):
    """Every point a group of its own, so that the synset's ten are cut out of them."""
    estimator = ddm.estimators.make_synset_influence(
        ready.task,
        ready.train,
        ddm.DistillSettings(items=1, steps=2),
        networks=2,
        clusters=10,
        checkpoints=2,
        damping=0.02,
    )
    state = estimator.fit(jax.random.key(0), ready.run, ready.data, np.arange(150))
    return estimator, state


@pytest.mark.slow
def test_the_estimator_is_the_mean_over_networks(ready, two_networks, small):
    estimator, state = two_networks
    few = small[-1]
    assert state.synset.mass.shape == (2, 10)
    first, second = (take(state.points, index) for index in range(2))
    own = spread_points(ready.run.checkpoints, 2)
    jax.tree.map(np.testing.assert_array_equal, first, own)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a != b).any()), first, second))
    influence = jax.jit(make_trajectory_influence(ready.task, damping=0.02, batch=None))
    each = [
        np.asarray(influence(some, take(state.synset, index), ready.data, few, 1e-3))
        for index, some in enumerate((first, second))
    ]
    assert np.abs(each[0] - each[1]).max() > 0.1 * np.abs(each[0]).max()
    found = np.asarray(estimator.score(state, few))
    assert found.shape == (150, 5)
    np.testing.assert_allclose(found, np.mean(each, 0), atol=1e-4 * np.abs(found).max())


def test_the_estimator_refuses(ready):
    make = ddm.estimators.make_synset_influence
    for settings, said in (
        ({"networks": 0}, "networks=0"),
        ({"clusters": 1}, "clusters=1"),
        ({"networks": 2}, "more than one needs `train`"),
    ):
        with pytest.raises(ValueError, match=said):
            make(ready.task, **settings)
    still = ready.run._replace(weight_decay=jnp.float32(0))
    with pytest.raises(ValueError, match="one of them must be positive"):
        make(ready.task, damping=0.0).fit(jax.random.key(0), still, ready.data, ready.groups)


def test_an_output_without_an_axis_is_refused(small):
    ready, synset, some, few = small
    scalar = lambda params, batch: jnp.mean(ready.task.loss(params, batch))  # noqa: E731
    influence = make_point_influence(ready.task._replace(output=scalar))
    with pytest.raises(ValueError, match=r"shape \(\) for .* it must be \[Q\]"):
        influence(ready.run.params, synset, some, few)
