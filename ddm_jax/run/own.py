"""The settings that fit data of one's own: preset, sizes, batch and groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddm_jax.cluster import flat_features
from ddm_jax.data import Split
from ddm_jax.run import settings
from ddm_jax.run.plan import load_data
from ddm_jax.run.settings import Config
from ddm_jax.types import length

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
    return settings.override(config, fitted(config, split))


def fitted(config: Config, split: Split) -> list[str]:
    """Batch, groups, items and what is explained, where a preset's do not fit the data."""
    batch = min(config.train.batch_size, max(length(split.train) // 4, 1))
    groups = num_groups(split)
    asked = groups if split.groups is None else split.groups.count
    items = max(config.distill.items, ITEMS // asked)
    found = [f"train.batch_size={batch}", f"cluster.num_groups={groups}", f"distill.items={items}"]
    if split.targets != "distribution":
        found += ["cluster.method=kmeans", "online.objective=loss"]
    return found + (["cluster.method=data"] if split.groups is not None else [])


def num_groups(split: Split) -> int:
    """How many groups the training examples can be cut into, at most 20, or one a class.

    No class has more groups than different examples.
    """
    if split.targets != "distribution":
        rows = flat_features(split.train.x)
        most = min(length(split.train) // LEAST_IN_GROUP, len(np.unique(rows, axis=0)))
        return max(min(GROUPS, most), 2)
    labels = split.train.y.argmax(1)
    rows = flat_features(split.train.x)
    different = [len(np.unique(rows[labels == label], axis=0)) for label in np.unique(labels)]
    classes = len(different)
    wanted = min(GROUPS, len(labels) // LEAST_IN_GROUP)
    return max(min(wanted, classes * min(different)), classes, 2)
