"""A tree of groups with a synset at each node: look closer only where it matters.

K leaves are cut out of K0 top nodes. The gradients of a node's children add up to its own, so the
top synset and the leaves' synsets are two descriptions of the same data. Leaving out each top node
takes K0 updates; only the nodes that matter to a query are opened, each at the cost of one update a
child: about `K0 + q K1` updates in place of `K = K0 K1`.

Where the updates can be differentiated no tree is needed: `selective.make_selective` finds the
groups that matter to a query by one reverse sweep, and measures those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.checks import check_integer
from ddm_jax.cluster import as_groups, make_groups
from ddm_jax.masks import leave_one_out
from ddm_jax.matching import make_synset_gradient, squared_norms
from ddm_jax.online import Response, subset_outputs
from ddm_jax.synset import by_group, flat, join
from ddm_jax.types import Array, Batch, Groups, Params, Synset, Task, take


class Tree(NamedTuple):
    """Leaves inside top nodes, both without gaps (`cluster.as_groups`)."""

    leaves: Groups  # the leaf of each training point, K
    parents: Groups  # the top node of each leaf, K0

    def top(self) -> Groups:
        """The top node of each training point."""
        of_leaf = np.append(np.asarray(self.parents.ids), -1)  # the last is the background's
        return as_groups(of_leaf[self.leaves.ids], count=self.parents.count)


def make_tree(features: Any, labels: Any, num_top: int, num_leaves: int, seed: int = 0) -> Tree:
    """Cut the points into top nodes by k-means inside each class, and those again into leaves.

    Each node gets leaves in proportion to its size, at least one.

    Raises:
        ValueError: for fewer leaves than top nodes, or what `make_groups` refuses.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    check_integer("num_leaves", num_leaves, num_top, len(labels))
    top = make_groups(
        "class_kmeans", features=features, labels=labels, num_groups=num_top, seed=seed
    )
    number = np.ones(num_top, int)  # leaves of each node: by always halving the largest ones
    for _ in range(num_leaves - num_top):
        number[np.argmax(np.where(number < top.sizes(), top.sizes() / number, 0))] += 1
    parents = np.repeat(np.arange(num_top), number)
    leaves = np.asarray(np.searchsorted(parents, np.asarray(top.ids)))
    for node in np.flatnonzero(number > 1):
        inside = np.flatnonzero(top.ids == node)
        try:
            cut = make_groups(
                "kmeans",
                features=features[inside],
                labels=labels[inside],
                num_groups=int(number[node]),
                seed=seed,
            )
        except ValueError as error:
            raise ValueError(
                f"node {node} cannot be cut into {number[node]} leaves ({error}); ask for fewer "
                "leaves"
            ) from error
        leaves[inside] += cut.ids
    return Tree(as_groups(leaves), as_groups(parents))


class Opened(NamedTuple):
    """The effect of each leaf on each query, and what it took."""

    scores: np.ndarray  # [K, Q]
    nodes: np.ndarray  # [K0, Q], the effects of the top nodes
    opened: np.ndarray  # [q, Q], the nodes that were opened for each query
    updates: float  # fine-tunes for one query


def make_hierarchical(response: Response, tree: Tree) -> Callable[..., Opened]:
    """Make `effects(params, top, leaves, query, opened, points=None) -> Opened`.

    The top nodes are left out first. For each query the `opened` ones with the largest effects are
    opened: each of its children is left out of a synset that has the node's children in its place
    and the other nodes as they are. A leaf that was not looked at gets its share by size of its
    node's effect, or what the `points` say, scaled for each query to the leaves that were.

    The number of updates counts one query at a time, `1 + K0 + opened (1 + K / K0)`. Where many
    queries are asked at once, a node is opened once for all that want it.

    Args:
        response: `(keep, params, synset, query) -> [Q]`, of `online.ddm_response`.
        tree: the leaves and their nodes.

    The arguments of `effects` are the trained network, the nodes' synset [K0], the leaves' [K], the
    query, how many nodes to open (0..K0), and what each leaf does by another, cheaper account
    [K, Q], such as the sums of `points.make_point_influence` over its points.

    Raises:
        ValueError: (when called) for synsets, points or a number that do not fit the tree.
    """
    tops, count, parents = tree.parents.count, tree.leaves.count, np.asarray(tree.parents.ids)
    children = [np.flatnonzero(parents == node) for node in range(tops)]
    widest = max(map(len, children))
    outputs = subset_outputs(response)

    def of_children(params: Params, top: Synset, leaves: Synset, query: Batch, node: int):
        """The effects of a node's children beside all other nodes, `[K1, Q]`."""
        # Every node has as many children, so that one program serves all: some are nothing.
        inside = np.resize(children[node], widest)
        real = jnp.arange(widest) < len(children[node])
        part = take(by_group(leaves), inside)
        part = flat(part._replace(group=part.group * 0 + np.arange(widest)[:, None]))
        part = part._replace(share=part.share * real, mass=part.mass * real[part.group])
        others = top._replace(share=top.share * (np.arange(tops) != node))
        masks = np.ones((1 + widest, tops + widest), np.float32)
        masks[1:, tops:] -= np.eye(widest, dtype=np.float32)
        kept = np.asarray(outputs(masks, params, join(others, part), query))
        return (kept[:1] - kept[1:])[: len(children[node])]

    def effects(
        params: Params, top: Synset, leaves: Synset, query: Batch, opened: int, points: Any = None
    ) -> Opened:
        for name, synset, size in (("top", top, tops), ("leaves", leaves, count)):
            if len(synset.share) != size:
                raise ValueError(
                    f"the synset `{name}` has {len(synset.share)} groups; the tree has {size}"
                )
        check_integer("opened", opened, 0, tops)
        nodes = np.asarray(leave_one_out(outputs, tops)(params, top, query))
        chosen = np.argsort(-np.abs(nodes), 0, kind="stable")[:opened]
        found = np.full((count, nodes.shape[1]), np.nan, np.float32)
        for node in np.unique(chosen):
            asked = np.flatnonzero((chosen == node).any(0))
            measured = of_children(params, top, leaves, query, int(node))
            found[np.ix_(children[node], asked)] = measured[:, asked]
        share = np.asarray(leaves.share)
        guess = (share / np.bincount(parents, share)[parents])[:, None] * nodes[parents]
        if points is not None:
            points = np.asarray(points)
            if points.shape != found.shape:
                raise ValueError(f"points have shape {points.shape}; they must be {found.shape}")
            guess = points * scale_to(found, points) if opened else points
        scores = np.where(np.isnan(found), guess, found)
        return Opened(scores, nodes, chosen, 1 + tops + opened * (1 + count / tops))

    return effects


def scale_to(found: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The slope [Q] of what was found on the points, for each query, over what is not NaN.

    An influence function has the order of effects right and their size wrong. Never negative.
    """
    own = np.where(np.isnan(found), 0.0, points)
    along = (np.nan_to_num(found) * own).sum(0)
    return np.maximum(along / np.maximum((own**2).sum(0), 1e-30), 0.0)


def consistency(task: Task, params: Params, top: Synset, leaves: Synset, tree: Tree) -> Array:
    """`|h_node - sum of its children's h|^2 / |h_node|^2` at a network, [K0]: 0 where they add up.

    The real gradients do; how far the distilled ones do says how well both levels are distilled.
    """
    gradient = make_synset_gradient(task)
    own, below = (
        jax.vmap(lambda one: gradient(params, one))(by_group(each)) for each in (top, leaves)
    )
    ids, count = jnp.asarray(tree.parents.ids), tree.parents.count
    missing = jax.tree.map(lambda a, b: a - jax.ops.segment_sum(b, ids, count), own, below)
    return squared_norms(missing) / (squared_norms(own) + 1e-30)
