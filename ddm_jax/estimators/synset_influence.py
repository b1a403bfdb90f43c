"""Influence functions with the curvature of a distilled synset: points from groups."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.checks import check_integer
from ddm_jax.cluster import make_groups
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import device_vmap
from ddm_jax.distill import DistillSettings
from ddm_jax.estimators._shared import flat_inputs
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.estimators.ddm import make_ddm
from ddm_jax.estimators.points import make_trajectory_influence, spread_points
from ddm_jax.gradients import curvature_diagonal, group_sums
from ddm_jax.matching import at_least_float32
from ddm_jax.train import Train
from ddm_jax.types import (
    Array,
    Batch,
    Estimator,
    Groups,
    Params,
    Synset,
    Task,
    TrainRun,
    length,
    take,
)


class SynsetInfluenceState(NamedTuple):
    points: Params  # leaves [E, T, ...]
    synset: Synset  # leaves [E, ...], of K' groups
    weight_decay: Array
    data: Batch
    groups: Groups


def make_synset_influence(
    task: Task,
    train: Train | None = None,
    distill: DistillSettings | None = None,
    *,
    networks: int = 1,
    clusters: int = 50,
    checkpoints: int = 8,
    window: tuple[float, float] = (0.25, 1.0),
    damping: float = 0.01,
    curvature: str = "gauss_newton",
    blocks: str = "whole",
) -> Estimator:
    """Make the influence function whose curvature is that of a distilled synset.

    `fit` distils a synset as `make_ddm` does, `score` is the mean of `points.make_point_influence`
    over networks along the trajectory, summed over the points of each group. The groups serve as
    the synset's where there are at most `clusters` of them; else the points are cut into `clusters`
    by k-means inside each class.

    Args:
        train: `train(key, data, weights) -> TrainRun`, for more networks than one.
        distill: of the synset; by default 5 items a group and 1000 steps.
        networks: how many, each with a synset of its own; the first is the trained network.
        clusters: groups of the synset, at least one a class.
        checkpoints: networks along each trajectory.
        window: the part of the training that they are spread over, see `points.spread_points`.
            What a network has learnt by heart has no gradient late: where it is trained to the
            end of its loss, early is better.
        damping, curvature, blocks: see `points.make_point_influence`; the weight decay is the
            run's.

    Raises:
        ValueError: for a setting out of range or a task whose targets are no classes, or (in
            `fit`) neither damping nor weight decay.
    """
    check_integer("networks", networks)
    check_integer("clusters", clusters, 2)
    if networks > 1 and train is None:
        raise ValueError(f"networks={networks}; more than one needs `train`")
    distilled = make_ddm(task, distill or DistillSettings(items=5, steps=1000))
    influence = make_trajectory_influence(
        task, damping=damping, curvature=curvature, blocks=blocks, batch=None
    )
    spread_points(jnp.zeros(1), checkpoints, window)  # a wrong setting fails here

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> SynsetInfluenceState:
        curvature_diagonal(damping, run.weight_decay)  # refuses zero, before anything is distilled
        cuts = groups
        if groups.count > clusters:
            labels = np.asarray(data.y).argmax(1)
            cuts = make_groups(
                "class_kmeans",
                features=np.asarray(
                    flat_inputs(data.x, "synset_influence of more than `clusters`")
                ),
                labels=labels,
                num_groups=max(clusters, len(np.unique(labels))),
            )
        runs = [run]
        distill_key, train_key = jax.random.split(key)
        if train is not None and networks > 1:
            keys = jax.random.split(train_key, networks - 1)
            others = device_vmap(train)(keys, data, jnp.ones(length(data)))
            runs += [take(others, index) for index in range(networks - 1)]
        keys = jax.random.split(distill_key, networks)
        synsets = [
            distilled.fit(keys[index], each, data, cuts).synset for index, each in enumerate(runs)
        ]
        points = [spread_points(each.checkpoints, checkpoints, window) for each in runs]
        stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
        return SynsetInfluenceState(
            at_least_float32(stack(points)), stack(synsets), run.weight_decay, data, groups
        )

    @compiled
    def score(state: SynsetInfluenceState, query: Batch) -> Array:
        def one(network: tuple[Params, Synset]) -> Array:
            each = influence(*network, state.data, query, state.weight_decay)
            return group_sums(each * len(each), state.groups)

        return jnp.mean(lax.map(one, (state.points, state.synset)), 0)

    return make_estimator(task, fit, score, method="synset_influence")
