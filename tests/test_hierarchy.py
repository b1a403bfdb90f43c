"""A tree of groups: its cut, and effects of leaves where only some nodes are opened."""

import functools

import jax
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
    consistency = jax.jit(functools.partial(hierarchy.consistency, ready.task))
    same = consistency(ready.run.params, top, top, np.arange(10))
    np.testing.assert_allclose(same, 0, atol=1e-10)
    real = consistency(ready.run.params, top, leaves, tree.parents)
    assert real.shape == (10,)
    none = leaves._replace(mass=jnp.zeros_like(leaves.mass))
    empty = consistency(ready.run.params, top, none, tree.parents)
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


def adding(keep, params, synset, query):
    """A response that adds up what each group's items say."""
    each = synset.share[:, None] * jnp.einsum("km,kmd->kd", synset.mass, synset.x)
    return query.x @ (keep @ each) + params


def synset_of(x, share, items):
    """Groups of so many equal items, whose masses add up to one."""
    x = jnp.repeat(jnp.asarray(x)[:, None], items, 1)
    mass = jnp.full((len(x), items), 1 / items)
    return ddm.Synset(x, jnp.zeros((len(x), items, 2)), mass, jnp.asarray(share))


@pytest.fixture(scope="module")
def uneven():
    """Three leaves of one node and the only leaf of another; query q reads feature q."""
    tree = ddm.hierarchy.Tree(np.array([0, 1, 2, 3]), np.array([0, 0, 0, 1]))
    top = synset_of([[20.0, 1.0], [5.0, 50.0]], [0.6, 0.4], 1)  # effects (12, .6) and (2, 20)
    # Effects (1, .1), (4, .4), (9, .9) and (16, 1.6).
    leaves = synset_of(
        [[10.0, 1.0], [20.0, 2.0], [30.0, 3.0], [40.0, 4.0]], [0.1, 0.2, 0.3, 0.4], 2
    )
    return ddm.make_hierarchical(adding, tree), (jnp.ones(()), top, leaves, ddm.Batch(np.eye(2), 0))


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
    tree = hierarchy.Tree(np.array([0, 1, 2, 3]), np.array([0, 0, 0, 1]))
    square = lambda *asked: (adding(*asked) - 1) ** 2  # noqa: E731
    found = ddm.make_hierarchical(square, tree)(*uneven[1], 2)
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
    tree = ddm.make_tree(ready.data.x, labels, 12, 12)
    np.testing.assert_array_equal(tree.parents, np.arange(12))
    np.testing.assert_array_equal(tree.leaves, tree.top())
    assert tree.leaves.shape == (150,)


def test_larger_nodes_have_more_leaves():
    x = np.random.default_rng(0).standard_normal((40, 2))
    labels = np.repeat([0, 1], [30, 10])
    tree = ddm.make_tree(x, labels, 2, 8)
    assert np.bincount(tree.parents).tolist() == [6, 2]
    assert (tree.top() == labels).all()
    assert np.bincount(tree.leaves).min() > 0


def test_either_side_of_a_join_is_filled_up():
    short, long = synset_of([[1.0]], [0.25], 1), synset_of([[2.0]], [0.75], 3)
    for parts, rows in (((short, long), (0, 1)), ((long, short), (1, 0))):
        joined = hierarchy.join(*parts)
        assert joined.x.shape == (2, 3, 1)
        assert joined.mass[rows[0]].tolist() == [1, 0, 0]
        np.testing.assert_allclose(joined.mass[rows[1]], 1 / 3)
        np.testing.assert_allclose(joined.share[np.array(rows)], [0.25, 0.75])


def test_children_that_say_half_miss_a_quarter(ready, levels):
    top = levels[0]
    half = top._replace(mass=top.mass / 2)
    consistency = jax.jit(functools.partial(hierarchy.consistency, ready.task))
    found = consistency(ready.run.params, top, half, np.arange(10))
    np.testing.assert_allclose(found, 0.25, rtol=1e-4)
    # Two halves a node, as two leaves of it, are the whole again.
    twice = hierarchy.join(half, half)
    found = consistency(ready.run.params, top, twice, np.r_[np.arange(10), np.arange(10)])
    np.testing.assert_allclose(found, 0, atol=1e-9)


def test_more_that_is_refused(uneven):
    effects, (params, top, leaves, query) = uneven
    with pytest.raises(ValueError, match="`top` has 4 groups; the tree has 2"):
        effects(params, leaves, leaves, query, 1)
    with pytest.raises(ValueError, match=r"opened=-1; it must be in 0\.\.2"):
        effects(params, top, leaves, query, -1)
    with pytest.raises(ValueError, match="needs at least one for each of the 2 classes"):
        ddm.make_tree(np.eye(4), np.array([0, 0, 1, 1]), 1, 2)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_a_node_of_equal_points_says_which():
    with pytest.raises(ValueError, match="node 0 cannot be cut into 2 leaves"):
        ddm.make_tree(np.zeros((4, 2)), np.zeros(4, int), 1, 2)


@pytest.fixture(scope="module")
def smooth(ready):
    """A response whose updates take small steps, and what it is asked."""
    finetune = ddm.make_finetune(ready.task, steps=8, optimizer=optax.sgd(0.02))
    synset = ddm.initial_synset(
        jax.random.key(1), ready.task, "random", ready.run, ready.data, ready.groups, 2, [0]
    )
    return ddm.ddm_response(finetune, ready.task.output), (ready.run.params, synset, ready.query)


def test_slopes_are_differences_of_a_small_part_of_a_group(smooth):
    response, args = smooth
    slopes = np.asarray(ddm.response_slopes(response, 10)(*args))
    step = 0.05
    masks = np.concatenate([1 + step * np.eye(10), 1 - step * np.eye(10)])
    each = np.stack([np.asarray(response(jnp.asarray(mask), *args)) for mask in masks])
    np.testing.assert_allclose(
        slopes, (each[:10] - each[10:]) / (2 * step), atol=0.02 * np.abs(slopes).max()
    )
    whole = np.asarray(ddm.leave_one_out(response, 10)(*args))
    assert np.corrcoef(slopes.ravel(), whole.ravel())[0, 1] > 0.95


def test_selective_effects_are_those_of_the_matrix_where_they_are_large(smooth):
    response, args = smooth
    whole = np.asarray(ddm.leave_one_out(response, 10)(*args))
    slopes = np.asarray(ddm.response_slopes(response, 10)(*args))
    found = np.asarray(ddm.make_selective(response, 10, 3)(*args))
    largest = np.argsort(-np.abs(slopes), 0)
    scale = np.abs(whole).max()
    for query in range(found.shape[1]):
        some, rest = largest[:3, query], largest[3:, query]
        np.testing.assert_allclose(found[some, query], whole[some, query], atol=1e-3 * scale)
        np.testing.assert_allclose(found[rest, query], slopes[rest, query], atol=1e-3 * scale)
    every = np.asarray(ddm.make_selective(response, 10, 10)(*args))
    np.testing.assert_allclose(every, whole, atol=1e-3 * scale)


def test_selective_effects_refuse_what_does_not_fit(smooth):
    response, args = smooth
    with pytest.raises(ValueError, match=r"measured=11; it must be in 1\.\.10"):
        ddm.make_selective(response, 10, 11)
    with pytest.raises(ValueError, match="num_groups=1"):
        ddm.response_slopes(response, 1)
    mean = lambda *args: response(*args).mean(keepdims=True)  # noqa: E731
    with pytest.raises(ValueError, match="gives 1 outputs for 50 queries"):
        ddm.make_selective(mean, 10, 2)(*args)
