"""A tree of groups: its cut, and effects of leaves where only some nodes are opened."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm
from ddm_jax.estimators import tree as hierarchy
from ddm_jax.estimators.tree import Tree, make_hierarchical, make_tree
from ddm_jax.matching import trajectory_indices
from ddm_jax.synset import by_group, flat, initial_synset, join
from ddm_jax.types import take


@pytest.fixture(scope="module")
def tree(ready):
    labels = np.asarray(ready.data.y).argmax(1)
    return make_tree(np.asarray(ready.data.x), labels, 10, 20, seed=0)


@pytest.fixture(scope="module")
def levels(ready, tree):
    """The synsets of the nodes and of the leaves, at their start."""
    indices, _ = trajectory_indices(10, 1.0)
    start = lambda groups: initial_synset(  # noqa: E731
        jax.random.key(1), ready.task, "pursuit", ready.run, ready.data, groups, 2, indices
    )
    return start(tree.top()), start(tree.leaves)


@pytest.fixture(scope="module")
def effects(ready, tree):
    optimizer = optax.sgd(0.1, 0.9, nesterov=True)
    finetune = ddm.make_finetune(ready.task, steps=10, optimizer=optimizer)
    return make_hierarchical(ddm.ddm_response(finetune, ready.task.output), tree)


def test_leaves_lie_in_nodes_and_nodes_in_classes(ready, tree):
    labels = np.asarray(ready.data.y).argmax(1)
    top, leaves = tree.top().ids, tree.leaves.ids
    assert (tree.top().count, tree.leaves.count, tree.parents.count) == (10, 20, 10)
    for node in range(10):
        assert len(np.unique(labels[top == node])) == 1
    for leaf in range(20):
        assert len(np.unique(top[leaves == leaf])) == 1


def test_unopened_leaves_get_their_share(ready, tree, levels, effects):
    top, leaves = levels
    found = effects(ready.run.params, top, leaves, ready.query, 0)
    sums = np.zeros_like(found.nodes)
    np.add.at(sums, tree.parents.ids, found.scores)
    np.testing.assert_allclose(sums, found.nodes, rtol=1e-4, atol=1e-5)
    assert found.updates == 11
    assert found.opened.shape == (0, 50)


def some_groups(synset, which):
    """The part of a synset that is these groups, under new numbers."""
    part = take(by_group(synset), which)
    return flat(part._replace(group=np.arange(len(which))[:, None] + 0 * part.group))


@pytest.mark.slow
def test_an_opened_node_is_measured_in_place_of_its_own_items(ready, tree, levels, effects):
    top, leaves = levels
    found = effects(ready.run.params, top, leaves, ready.query, 2)
    assert found.updates == 1 + 10 + 2 * (1 + 2)
    order = np.argsort(-np.abs(found.nodes), 0, kind="stable")[:2]
    np.testing.assert_array_equal(found.opened, order)
    node, query = int(found.opened[0, 0]), 0
    inside = np.flatnonzero(tree.parents.ids == node)
    # By hand: the node's children beside all other nodes.
    others = np.flatnonzero(np.arange(10) != node)
    joined = join(some_groups(top, others), some_groups(leaves, inside))
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
    few = some_groups(top, np.arange(2))
    joined = join(few, leaves)
    assert joined.mass.shape == (2 * 22,)
    np.testing.assert_array_equal(joined.group[4:], leaves.group + 2)
    np.testing.assert_array_equal(joined.mass[4:], leaves.mass)


@pytest.mark.slow
def test_levels_of_the_same_items_are_consistent(ready, tree, levels):
    top, leaves = levels
    consistency = functools.partial(hierarchy.consistency, ready.task)
    same = consistency(ready.run.params, top, top, of_nodes(range(10)))
    np.testing.assert_allclose(same, 0, atol=1e-10)
    real = consistency(ready.run.params, top, leaves, tree)
    assert real.shape == (10,)
    none = leaves._replace(mass=jnp.zeros_like(leaves.mass))
    empty = consistency(ready.run.params, top, none, tree)
    np.testing.assert_allclose(empty, 1, rtol=1e-5)


def test_what_is_refused(ready, tree, levels, effects):
    top, leaves = levels
    labels = np.asarray(ready.data.y).argmax(1)
    with pytest.raises(ValueError, match="num_leaves=5"):
        make_tree(ready.data.x, labels, 10, 5)
    with pytest.raises(ValueError, match=r"num_leaves=151; .* in 10\.\.150"):
        make_tree(ready.data.x, labels, 10, 151)
    with pytest.raises(ValueError, match=r"opened=11; .* in 0\.\.10"):
        effects(ready.run.params, top, leaves, ready.query, 11)
    with pytest.raises(ValueError, match="`leaves` has 10 groups"):
        effects(ready.run.params, top, top, ready.query, 1)
    with pytest.raises(ValueError, match="points have shape"):
        effects(ready.run.params, top, leaves, ready.query, 1, np.zeros((20, 3)))


def adding(keep, params, synset, query):
    """A response that adds up what each group's items say."""
    weights = (keep * synset.share)[synset.group] * synset.mass
    return query.x @ (weights @ synset.items.x) + params


def synset_of(x, share, items):
    """Groups of so many equal items, whose masses add up to one."""
    count = len(x) * items
    x = jnp.repeat(jnp.asarray(x), items, 0)
    group = jnp.repeat(jnp.arange(len(share)), items)
    items = ddm.Batch(x, jnp.zeros((count, 2)))
    return ddm.Synset(items, group, jnp.full(count, len(share) / count), jnp.asarray(share))


def of_nodes(parents):
    """A tree, with a training point a leaf."""
    parents = ddm.as_groups(np.asarray(parents))
    return Tree(ddm.as_groups(np.arange(len(parents.ids))), parents)


@pytest.fixture(scope="module")
def uneven():
    """Three leaves of one node and the only leaf of another; query q reads feature q."""
    tree = of_nodes([0, 0, 0, 1])
    top = synset_of([[20.0, 1.0], [5.0, 50.0]], [0.6, 0.4], 1)  # effects (12, .6) and (2, 20)
    # Effects (1, .1), (4, .4), (9, .9) and (16, 1.6).
    leaves = synset_of(
        [[10.0, 1.0], [20.0, 2.0], [30.0, 3.0], [40.0, 4.0]], [0.1, 0.2, 0.3, 0.4], 2
    )
    return make_hierarchical(adding, tree), (jnp.ones(()), top, leaves, ddm.Batch(np.eye(2), 0))


@pytest.mark.parametrize(
    ("opened", "first", "second", "updates"),
    [
        (0, [2, 4, 6, 2], [0.1, 0.2, 0.3, 20], 3),
        (1, [1, 4, 9, 2], [0.1, 0.2, 0.3, 1.6], 6),  # each query opens a node of its own
        (2, [1, 4, 9, 16], [0.1, 0.4, 0.9, 1.6], 9),
    ],
)
def test_numbers_done_by_hand(uneven, opened, first, second, updates):
    effects, asked = uneven
    found = effects(*asked, opened)
    np.testing.assert_allclose(found.nodes, [[12, 0.6], [2, 20]], rtol=1e-4)
    np.testing.assert_allclose(found.scores, np.stack([first, second], 1), rtol=1e-4, atol=1e-4)
    assert found.opened.tolist() == [[0, 1], [1, 0]][:opened]
    assert found.updates == updates


def test_nothing_else_stands_beside_the_children(uneven):
    """With squares, an effect depends on all that is left: sums 14 and 2, then 12 and 16."""
    tree = of_nodes([0, 0, 0, 1])
    square = lambda *asked: (adding(*asked) - 1) ** 2  # noqa: E731
    found = make_hierarchical(square, tree)(*uneven[1], 2)
    first = [256 - 225, 256 - 144, 256 - 49, 784 - 144]  # (1 + 4 + 9 + 2)^2, (12 + 16)^2
    second = [4.27, 16.96, 37.71, 4.48]  # (.1 + .4 + .9 + 20)^2, (.6 + 1.6)^2
    np.testing.assert_allclose(found.scores, np.stack([first, second], 1), rtol=1e-3)


def test_points_take_the_size_that_each_query_found(uneven):
    effects, asked = uneven
    points = np.array([[1, 1], [1, 2], [2, 3], [7, 0.8]])
    found = effects(*asked, 1, points)
    slope = (1 + 4 + 18) / 6
    expected = [[1, 2], [4, 4], [9, 6], [7 * slope, 1.6]]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-3)


def test_as_many_leaves_as_nodes_are_the_nodes(ready):
    labels = np.asarray(ready.data.y).argmax(1)
    tree = make_tree(ready.data.x, labels, 12, 12)
    np.testing.assert_array_equal(tree.parents.ids, np.arange(12))
    np.testing.assert_array_equal(tree.leaves.ids, tree.top().ids)
    assert tree.leaves.ids.shape == (150,)


def test_larger_nodes_have_more_leaves():
    x = np.random.default_rng(0).standard_normal((40, 2))
    labels = np.repeat([0, 1], [30, 10])
    tree = make_tree(x, labels, 2, 8)
    assert tree.parents.sizes().tolist() == [6, 2]
    assert (tree.top().ids == labels).all()
    assert tree.leaves.sizes().min() > 0


@pytest.mark.slow
def test_children_that_say_half_miss_a_quarter(ready, levels):
    top = levels[0]
    half = top._replace(mass=top.mass / 2)
    consistency = functools.partial(hierarchy.consistency, ready.task)
    found = consistency(ready.run.params, top, half, of_nodes(range(10)))
    np.testing.assert_allclose(found, 0.25, rtol=1e-4)
    # Two halves a node, as two leaves of it, are the whole again.
    twice = join(half, half)
    found = consistency(ready.run.params, top, twice, of_nodes([*range(10), *range(10)]))
    np.testing.assert_allclose(found, 0, atol=1e-9)


def test_more_that_is_refused(uneven):
    effects, (params, top, leaves, query) = uneven
    with pytest.raises(ValueError, match="`top` has 4 groups; the tree has 2"):
        effects(params, leaves, leaves, query, 1)
    with pytest.raises(ValueError, match=r"opened=-1; .* in 0\.\.2"):
        effects(params, top, leaves, query, -1)
    with pytest.raises(ValueError, match="needs at least one for each of the 3 classes"):
        make_tree(np.eye(4), np.array([0, 0, 1, 2]), 2, 3)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_a_node_of_equal_points_says_which():
    with pytest.raises(ValueError, match="node 0 cannot be cut into 2 leaves"):
        make_tree(np.zeros((6, 2)), np.array([0, 0, 0, 0, 1, 1]), 2, 3)
