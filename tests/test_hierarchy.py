"""A tree of groups: its cut, and effects of leaves where only some nodes are opened."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm
from ddm_jax import hierarchy
from ddm_jax.types import take


@pytest.fixture(scope="module")
def tree(ready):
    labels = np.asarray(ready.data.y).argmax(1)
    return ddm.make_tree(np.asarray(ready.data.x), labels, 10, 20, seed=0)


@pytest.fixture(scope="module")
def levels(ready, tree):
    """The synsets of the nodes and of the leaves, at their start."""
    import jax

    indices, _ = ddm.trajectory_indices(10, 1.0)
    start = lambda groups: ddm.initial_synset(  # noqa: E731
        jax.random.key(1), ready.task, "pursuit", ready.run, ready.data, groups, 2, indices
    )
    return start(tree.top()), start(tree.leaves)


@pytest.fixture(scope="module")
def effects(ready, tree):
    optimizer = optax.sgd(0.1, 0.9, nesterov=True)
    finetune = ddm.make_finetune(ready.task, steps=10, optimizer=optimizer)
    return ddm.make_hierarchical(ddm.ddm_response(finetune, ready.task.output), tree)


def test_leaves_lie_in_nodes_and_nodes_in_classes(ready, tree):
    labels = np.asarray(ready.data.y).argmax(1)
    assert hierarchy.check_tree(tree) == (10, 20)
    for node in range(10):
        assert len(np.unique(labels[tree.top() == node])) == 1
    for leaf in range(20):
        assert len(np.unique(tree.top()[tree.leaves == leaf])) == 1
    assert hierarchy._leaves_of(np.array([9, 3, 1]), 5).tolist() == [3, 1, 1]


def test_unopened_leaves_get_their_share(ready, tree, levels, effects):
    top, leaves = levels
    found = effects(ready.run.params, top, leaves, ready.query, 0)
    sums = np.zeros_like(found.nodes)
    np.add.at(sums, tree.parents, found.scores)
    np.testing.assert_allclose(sums, found.nodes, rtol=1e-4, atol=1e-5)
    assert found.updates == 11
    assert found.opened.shape == (0, 50)


def test_an_opened_node_is_measured_in_place_of_its_own_items(ready, tree, levels, effects):
    top, leaves = levels
    found = effects(ready.run.params, top, leaves, ready.query, 2)
    assert found.updates == 1 + 10 + 2 * (1 + 2)
    order = np.argsort(-np.abs(found.nodes), 0, kind="stable")[:2]
    np.testing.assert_array_equal(found.opened, order)
    node, query = int(found.opened[0, 0]), 0
    inside = np.flatnonzero(tree.parents == node)
    # By hand: the node's children beside all other nodes.
    others = np.flatnonzero(np.arange(10) != node)
    joined = hierarchy.join(take(top, others), take(leaves, inside))
    masks = np.ones((2, len(others) + len(inside)), np.float32)
    masks[1, len(others)] = 0
    optimizer = optax.sgd(0.1, 0.9, nesterov=True)
    finetune = ddm.make_finetune(ready.task, steps=10, optimizer=optimizer)
    outputs = ddm.subset_outputs(ddm.ddm_response(finetune, ready.task.output))
    kept = np.asarray(outputs(masks, ready.run.params, joined, ready.query))
    expected = kept[0, query] - kept[1, query]
    assert found.scores[inside[0], query] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_points_are_scaled_to_what_was_opened(ready, tree, levels, effects, rng):
    top, leaves = levels
    points = rng.standard_normal((20, 50)).astype(np.float32)
    alone = effects(ready.run.params, top, leaves, ready.query, 0, points)
    np.testing.assert_array_equal(alone.scores, points)
    found = effects(ready.run.params, top, leaves, ready.query, 10, points)
    measured = effects(ready.run.params, top, leaves, ready.query, 10)
    np.testing.assert_allclose(found.scores, measured.scores)
    known = np.full((4, 1), np.nan)
    known[:2, 0] = [2.0, 4.0]
    assert hierarchy.scale_to(known, np.array([[1.0], [2.0], [5.0], [5.0]])) == 2.0
    assert hierarchy.scale_to(known, -np.ones((4, 1))) == 0.0


def test_joining_fills_up_with_nothing(levels):
    top, leaves = levels
    one = take(top, slice(0, 2))._replace()
    fewer = ddm.Synset(one.x[:, :1], one.y[:, :1], one.mass[:, :1], one.share)
    joined = hierarchy.join(fewer, leaves)
    assert joined.mass.shape == (22, 2)
    assert not joined.mass[:2, 1].any()
    np.testing.assert_array_equal(joined.mass[2:], leaves.mass)


def test_levels_of_the_same_items_are_consistent(ready, tree, levels):
    top, leaves = levels
    same = hierarchy.consistency(ready.task, ready.run.params, top, top, np.arange(10))
    np.testing.assert_allclose(same, 0, atol=1e-10)
    real = hierarchy.consistency(ready.task, ready.run.params, top, leaves, tree.parents)
    assert real.shape == (10,)
    none = leaves._replace(mass=jnp.zeros_like(leaves.mass))
    empty = hierarchy.consistency(ready.task, ready.run.params, top, none, tree.parents)
    np.testing.assert_allclose(empty, 1, rtol=1e-5)


def test_what_is_refused(ready, tree, levels, effects):
    top, leaves = levels
    labels = np.asarray(ready.data.y).argmax(1)
    with pytest.raises(ValueError, match="num_leaves=5"):
        ddm.make_tree(ready.data.x, labels, 10, 5)
    with pytest.raises(ValueError, match="150 points to cut"):
        ddm.make_tree(ready.data.x, labels, 10, 151)
    with pytest.raises(ValueError, match="no leaf"):
        hierarchy.check_tree(tree._replace(parents=tree.parents * 2))
    with pytest.raises(ValueError, match="no training point"):
        hierarchy.check_tree(tree._replace(leaves=np.maximum(tree.leaves, 1)))
    with pytest.raises(ValueError, match=r"opened=11; it must be in 0\.\.10"):
        effects(ready.run.params, top, leaves, ready.query, 11)
    with pytest.raises(ValueError, match="`leaves` has 10 groups"):
        effects(ready.run.params, top, top, ready.query, 1)
    with pytest.raises(ValueError, match="points have shape"):
        effects(ready.run.params, top, leaves, ready.query, 1, np.zeros((20, 3)))
