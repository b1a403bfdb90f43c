"""A problem of the judge in seconds: 120 digits, a network of 8 units, ten groups."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np

import ddm_jax as ddm
from ddm_jax.cluster import as_groups
from ddm_jax.distill import DistillSettings
from ddm_jax.judge.problem import Problem, TruthSettings, make_problem
from ddm_jax.train import TrainSettings
from ddm_jax.updates import UpdateSettings

TRAIN = TrainSettings(epochs=4, batch_size=40)
DISTILL = DistillSettings(items=1, steps=60, distance="whitened", part=0.8)
UPDATE = UpdateSettings(steps=5, rewind=0.75)
TRUTH = TruthSettings(seeds=2, subsets=4, subset_seeds=2)
GROUPS = as_groups(np.arange(120) % 10)
POINTS = as_groups(np.arange(120))


@cache
def split(**changes: Any):
    chosen = {"train_size": 120, "test_size": 40, "seed": 0} | changes
    return ddm.data.load("digits", **chosen)


@cache
def task(hidden: int = 8) -> ddm.Task:
    return ddm.classification(ddm.models.MLP(10, (hidden,)), (8, 8, 1))


def small_problem(
    *,
    seed: int = 0,
    hidden: int = 8,
    train: TrainSettings = TRAIN,
    distill: DistillSettings = DISTILL,
    update: UpdateSettings = UPDATE,
    **truth: Any,
) -> Problem:
    """The problem with other settings of its truth."""
    chosen = dataclasses.replace(TRUTH, **truth)
    return make_problem(task(hidden), train, distill, update, chosen, num_points=120, seed=seed)
