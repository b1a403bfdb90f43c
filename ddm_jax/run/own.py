"""The settings that fit data of one's own: preset, sizes, batch and groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddm_jax.data import Split
from ddm_jax.run import settings
from ddm_jax.run.plan import load_data
from ddm_jax.run.settings import Config

SMALL_IMAGE = 16  # pixels; smaller ones are for an MLP
MOST = {"own": (5000, 1000), "images": (2000, 500)}  # examples for training and testing
GROUPS, LEAST_IN_GROUP = 20, 10
ITEMS = 100  # of all groups together, of a preset's at least


def fitting(name: str, assignments: Sequence[str]) -> Config:
    """The default settings of data of one's own; `assignments` say how they are read.

    Groups that the data bring are the groups. Else there are 20 of them, or fewer, so that each
    has ten examples.

    Raises:
        ValueError: for data that cannot be read.
    """
    reading = [each for each in assignments if each.strip().startswith(("data.", "seed"))]
    reading = [f"data.name={name}", *reading]
    split = load_data(settings.override(settings.preset("own"), reading))
    large = split.kind == "images" and min(split.train.x.shape[1:3]) >= SMALL_IMAGE
    chosen = "images" if large else "own"
    sizes = [
        f"data.{part}_size={most if len(batch.x) > most else 'none'}"
        for part, batch, most in zip(
            ("train", "test"), (split.train, split.test), MOST[chosen], strict=True
        )
    ]
    config = settings.override(settings.preset(chosen), [*sizes, *reading])
    if any(not size.endswith("none") for size in sizes):
        split = load_data(config)
    count = len(split.train.x)
    batch = min(config.train.batch_size, max(count // 4, 1))
    groups = num_groups(split)
    asked = groups if split.groups is None else split.groups.count
    items = max(config.distill.items, ITEMS // asked)
    fitted = [f"train.batch_size={batch}", f"cluster.num_groups={groups}", f"distill.items={items}"]
    fitted += ["cluster.method=data"] if split.groups is not None else []
    return settings.override(config, fitted)


def num_groups(split: Split) -> int:
    """How many groups `class_kmeans` can cut the training examples into, at most 20 or one a class.

    No class has more groups than different examples.
    """
    labels = split.train.y.argmax(1)
    different = []
    for label in np.unique(labels):
        inside = split.train.x[labels == label]
        different.append(len(np.unique(inside.reshape(len(inside), -1), axis=0)))
    classes = len(different)
    wanted = min(GROUPS, len(labels) // LEAST_IN_GROUP)
    return max(min(wanted, classes * min(different)), classes, 2)
