"""Influence functions with the curvature of a distilled synset: points from groups."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.cluster import check_groups, make_groups
from ddm_jax.estimators.ddm import make_ddm
from ddm_jax.estimators.influence import check_at_least_one, check_labels
from ddm_jax.estimators.retraining import Train
from ddm_jax.gradients import group_sums
from ddm_jax.objectives import Output
from ddm_jax.parallel import device_vmap
from ddm_jax.points import make_trajectory_influence, spread_points
from ddm_jax.types import Array, Batch, Estimator, Params, Synset, Task, TrainRun, take


class SynsetInfluenceState(NamedTuple):
    points: Params  # leaves [E, T, ...]
    synset: Synset  # leaves [E, K', ...]
    data: Batch
    groups: Array  # [N]
    like: Array  # [K]


def make_synset_influence(
    task: Task,
    train: Train | None = None,
    *,
    networks: int = 1,
    clusters: int = 50,
    items: int = 5,
    distill_steps: int = 1000,
    distill_rate: float = 0.005,
    checkpoints: int = 8,
    window: tuple[float, float] = (0.25, 1.0),
    damping: float = 0.01,
    curvature: str = "gauss_newton",
    blocks: str = "whole",
    weight_decay: float = 0.0,
    output: Output | None = None,
) -> Estimator:
    """Make the influence function whose curvature is that of a distilled synset.

    `fit` distils a synset as `make_ddm` does, `score` is the mean of `points.make_point_influence`
    over networks along the trajectory, summed over the points of each group. The groups serve as
    the synset's where there are at most `clusters` of them; else the points are cut into `clusters`
    by k-means inside each class.

    Args:
        train: `train(key, data, weights) -> TrainRun`, for more networks than one.
        networks: how many, each with a synset of its own; the first is the trained network.
        clusters: groups of the synset, at least one a class.
        items: M, synthetic items a group.
        distill_steps, distill_rate: see `make_ddm`.
        checkpoints: networks along each trajectory.
        window: the part of the training that they are spread over, see `points.spread_points`.
            What a network has learnt by heart has no gradient late: where it is trained to the
            end of its loss, early is better.
        damping, curvature, blocks, weight_decay: see `points.make_point_influence`.
        output: what is explained; default `task.output`.

    Raises:
        ValueError: for a setting out of range, or (in `fit`) labels that are no distributions.
    """
    check_at_least_one(networks=networks, clusters=clusters, checkpoints=checkpoints)
    if networks > 1 and train is None:
        raise ValueError(f"networks={networks}; more than one needs `train`")
    distilled = make_ddm(task, items=items, distill_steps=distill_steps, distill_rate=distill_rate)
    influence = make_trajectory_influence(
        task,
        damping=damping,
        curvature=curvature,
        blocks=blocks,
        weight_decay=weight_decay,
        output=output,
        step_items=None,
    )
    spread_points(jnp.zeros(1), checkpoints, window)  # a wrong setting fails here

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> SynsetInfluenceState:
        check_labels(data)
        groups = check_groups(groups, len(data.x))
        count = int(groups.max()) + 1
        cuts = groups
        if count > clusters:
            labels = np.asarray(data.y).argmax(1)
            cuts = make_groups(
                "class_kmeans",
                features=np.asarray(data.x),
                labels=labels,
                num_groups=max(clusters, len(np.unique(labels))),
                seed=0,
            )
        runs = [run]
        distill_key, train_key = jax.random.split(key)
        if train is not None and networks > 1:
            train_each: Any = device_vmap(train)
            keys = jax.random.split(train_key, networks - 1)
            others = train_each(keys, data, jnp.ones(len(data.x)))
            runs += [take(others, index) for index in range(networks - 1)]
        keys = jax.random.split(distill_key, networks)
        synsets = [
            distilled.fit(keys[index], each, data, cuts).synset for index, each in enumerate(runs)
        ]
        points = [spread_points(each.checkpoints, checkpoints, window) for each in runs]
        stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
        return SynsetInfluenceState(
            stack(points), stack(synsets), data, jnp.asarray(groups), jnp.zeros(count)
        )

    @jax.jit
    def score(state: SynsetInfluenceState, query: Batch) -> Array:
        def one(network: tuple[Params, Synset]) -> Array:
            points, synset = network
            each = influence(points, synset, state.data, query)
            return group_sums(each * len(state.groups), state.groups, len(state.like))

        return jnp.mean(lax.map(one, (state.points, state.synset)), 0)

    return Estimator(fit, score)
