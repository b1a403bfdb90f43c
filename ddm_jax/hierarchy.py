"""A tree of groups with a synset at each node: look closer only where it matters.

K leaves are cut out of K0 top nodes. The gradients of a node's children add up to its own, so the
top synset and the leaves' synsets are two descriptions of the same data. Leaving out each top node
takes K0 updates; only the nodes that matter to a query are opened, each at the cost of one update a
child: about `K0 + q K1` updates in place of `K = K0 K1`.

Where the updates can be differentiated no tree is needed: `make_selective` finds the groups that
matter to a query by one reverse sweep, and measures those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.cluster import make_groups
from ddm_jax.loo import Response, leave_one_out_masks, response_slopes, subset_outputs
from ddm_jax.matching import make_synset_gradient, squared_norms
from ddm_jax.parallel import chunked_vmap
from ddm_jax.types import Array, Batch, Params, Synset, Task, take


class Tree(NamedTuple):
    """Leaves inside top nodes."""

    leaves: np.ndarray  # [N] int32, the leaf of each training point
    parents: np.ndarray  # [K] int32, the top node of each leaf

    def top(self) -> np.ndarray:
        """The top node of each training point, [N]."""
        return self.parents[self.leaves]


def make_tree(features: Any, labels: Any, num_top: int, num_leaves: int, seed: int = 0) -> Tree:
    """Cut the points into top nodes by k-means inside each class, and those again into leaves.

    Each node gets leaves in proportion to its size, at least one.

    Raises:
        ValueError: for fewer leaves than top nodes, or what `make_groups` refuses.
    """
    if num_leaves < num_top:
        raise ValueError(
            f"num_leaves={num_leaves}; every top node has one, so at least num_top={num_top}"
        )
    features, labels = np.asarray(features), np.asarray(labels)
    if num_leaves > len(labels):
        raise ValueError(f"num_leaves={num_leaves}; there are {len(labels)} points to cut")
    top = make_groups(
        "class_kmeans", features=features, labels=labels, num_groups=num_top, seed=seed
    )
    leaves = np.zeros(len(labels), np.int32)
    parents: list[int] = []
    for node, number in enumerate(_leaves_of(np.bincount(top), num_leaves)):
        inside = np.flatnonzero(top == node)
        try:
            inner = make_groups(
                "kmeans",
                features=features[inside],
                labels=labels[inside],
                num_groups=int(number),
                seed=seed,
            )
        except ValueError as error:
            raise ValueError(
                f"node {node} cannot be cut into {number} leaves ({error}); ask for fewer leaves"
            ) from error
        leaves[inside] = len(parents) + inner
        parents += [node] * int(number)
    return Tree(leaves, np.asarray(parents, np.int32))


def _leaves_of(sizes: np.ndarray, total: int) -> np.ndarray:
    """Leaves of each node: as alike in size as they can be, by always halving the largest."""
    count = np.ones(len(sizes), int)
    for _ in range(total - len(sizes)):
        count[np.argmax(np.where(count < sizes, sizes / count, 0))] += 1
    return count


def check_tree(tree: Tree) -> tuple[int, int]:
    """The numbers of top nodes and of leaves.

    Raises:
        ValueError: where a leaf or a node is empty.
    """
    parents = np.asarray(tree.parents)
    tops, count = int(parents.max()) + 1, len(parents)
    if set(np.unique(parents)) != set(range(tops)):
        raise ValueError(f"parents name {tops} nodes and some of them have no leaf")
    if set(np.unique(tree.leaves)) != set(range(count)):
        raise ValueError(f"there are {count} leaves and some of them have no training point")
    return tops, count


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
        response: `(keep, params, synset, query) -> [Q]`, of `ddm_response`.
        tree: the leaves and their nodes.

    The arguments of `effects` are the trained network, the nodes' synset [K0], the leaves' [K], the
    query, how many nodes to open (0..K0), and what each leaf does by another, cheaper account
    [K, Q], such as the sums of `points.make_point_influence` over its points.

    Raises:
        ValueError: for a tree, synsets or a number that do not fit.
    """
    tops, count = check_tree(tree)
    children = [np.flatnonzero(tree.parents == node) for node in range(tops)]
    widest = max(len(some) for some in children)
    outputs = subset_outputs(response)

    def opened_synset(top: Synset, leaves: Synset, node: int) -> tuple[Synset, np.ndarray]:
        """All other nodes and this one's children; masks [1 + K1, K0 + K1] leave out a child."""
        inside = np.resize(children[node], widest)
        real = np.arange(widest) < len(children[node])
        part = take(leaves, inside)
        part = part._replace(share=part.share * real, mass=part.mass * real[:, None])
        without = top._replace(share=top.share * (np.arange(tops) != node))
        joined = join(without, part)
        masks = np.ones((1 + widest, tops + widest), np.float32)
        masks[1:, tops:] -= np.eye(widest, dtype=np.float32)
        return joined, masks

    def effects(
        params: Params,
        top: Synset,
        leaves: Synset,
        query: Batch,
        opened: int,
        points: Any = None,
    ) -> Opened:
        for name, synset, size in (("top", top, tops), ("leaves", leaves, count)):
            if synset.share.shape != (size,):
                raise ValueError(
                    f"the synset `{name}` has {synset.share.shape[0]} groups; the tree has {size}"
                )
        if not 0 <= opened <= tops:
            raise ValueError(f"opened={opened}; it must be in 0..{tops}, the number of top nodes")
        kept = np.asarray(outputs(leave_one_out_masks(tops), params, top, query))
        nodes = kept[:1] - kept[1:]  # [K0, Q]
        chosen = np.argsort(-np.abs(nodes), 0, kind="stable")[:opened]
        found = np.full((count, nodes.shape[1]), np.nan, np.float32)
        for node in np.unique(chosen):
            joined, masks = opened_synset(top, leaves, int(node))
            without = np.asarray(outputs(masks, params, joined, query))
            asked = np.flatnonzero((chosen == node).any(0))
            measured = (without[:1] - without[1:])[: len(children[node])]
            found[np.ix_(children[node], asked)] = measured[:, asked]
        weight = np.asarray(leaves.share) / np.bincount(tree.parents, leaves.share)[tree.parents]
        guess = weight[:, None] * nodes[tree.parents]
        if points is not None:
            points = np.asarray(points)
            if points.shape != found.shape:
                raise ValueError(f"points have shape {points.shape}; they must be {found.shape}")
            guess = points * scale_to(found, points) if opened else points
        scores = np.where(np.isnan(found), guess, found)
        return Opened(scores, nodes, chosen, 1 + tops + opened * (1 + count / tops))

    return effects


def make_selective(response: Response, num_groups: int, measured: int) -> Callable[..., Array]:
    """Make `effects(*args, query) -> [K, Q]`: `loo.leave_one_out` in about `measured + 4` updates.

    For each query the slopes of all groups (`loo.response_slopes`, two to four updates' time, in
    order like the effects), and in place of the largest `measured` ones what leaving these groups
    out does. A sweep and updates of its own for each query: of K + 1 queries or more the whole
    matrix costs less.

    Args:
        response: `(keep, *args, query) -> [Q]`, such as `ddm_response`; the query comes last.
        measured: how many groups are left out for each query, 1..K.

    Raises:
        ValueError: for fewer than two groups, a number that does not fit, or (when called) a
            response that has not one output for each query.
    """
    slopes = response_slopes(response, num_groups)
    if not 1 <= measured <= num_groups:
        raise ValueError(f"measured={measured}; it must be in 1..{num_groups}, the groups")

    @jax.jit
    def effects(*args: Any) -> Array:
        *others, queries = args
        along = slopes(*args).T  # [Q, K]
        count = len(jax.tree.leaves(queries)[0])
        if len(along) != count:
            raise ValueError(
                f"the response gives {len(along)} outputs for {count} queries; one of each is "
                "needed to say which groups matter to it"
            )

        def of_query(item: tuple[Array, Batch]) -> Array:
            slope, query = item[0], jax.tree.map(lambda leaf: leaf[None], item[1])
            chosen = jnp.argsort(-jnp.abs(slope))[:measured]
            without = 1.0 - jax.nn.one_hot(chosen, num_groups)
            masks = jnp.concatenate([jnp.ones((1, num_groups)), without])
            each = chunked_vmap(lambda keep: response(keep, *others, query)[0])(masks)
            return slope.at[chosen].set(each[0] - each[1:])

        return chunked_vmap(of_query)((along, queries)).T

    return effects


def scale_to(found: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The slope [Q] of what was found on the points, for each query, over what is not NaN.

    An influence function has the order of effects right and their size wrong. Never negative.
    """
    seen = ~np.isnan(found)
    own = np.where(seen, points, 0.0)
    along = (np.where(seen, found, 0.0) * own).sum(0)
    return np.maximum(along / np.maximum((own**2).sum(0), 1e-30), 0.0)


def join(first: Synset, second: Synset) -> Synset:
    """Two synsets as one, filled up with items of mass zero to the same number of items."""
    items = max(first.mass.shape[1], second.mass.shape[1])

    def fill(synset: Synset) -> Synset:
        more = items - synset.mass.shape[1]
        if not more:
            return synset
        rows = jnp.minimum(jnp.arange(items), synset.mass.shape[1] - 1)
        real = jnp.arange(items) < synset.mass.shape[1]
        x, y, mass = (leaf[:, rows] for leaf in (synset.x, synset.y, synset.mass))
        return Synset(x, y, mass * real, synset.share)

    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), fill(first), fill(second))


def consistency(
    task: Task, params: Params, top: Synset, leaves: Synset, parents: np.ndarray
) -> Array:
    """`|h_node - sum of its children's h|^2 / |h_node|^2` at a network, [K0]: 0 where they add up.

    The real gradients do; how far the distilled ones do says how well both levels are distilled.
    """
    each = jax.vmap(make_synset_gradient(task), (None, 0))
    own, below = each(params, top), each(params, leaves)
    count = top.share.shape[0]
    sums = jax.tree.map(lambda leaf: jax.ops.segment_sum(leaf, jnp.asarray(parents), count), below)
    missing = jax.tree.map(jnp.subtract, own, sums)
    return squared_norms(missing) / (squared_norms(own) + 1e-30)
