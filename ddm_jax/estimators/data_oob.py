"""Data-OOB: is a point told right by the networks that did not see it?"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddm_jax.estimators.data_values import check_classes, make_data_value
from ddm_jax.estimators.retraining import Train
from ddm_jax.parallel import device_vmap
from ddm_jax.types import Array, Batch, Estimator, Task, TrainRun


def make_data_oob(task: Task, train: Train, *, models: int = 20) -> Estimator:
    """Make the data value of Kwon & Zou, 2023, arXiv 2304.07718, eq. 3.

    The mean, over the networks trained on bootstrap samples without point i, of whether they
    tell it right. A sample's counts are the training weights. A point that is in all samples
    gets the mean value of the others.

    Raises:
        ValueError: for fewer than two models.
    """
    if models < 2:
        raise ValueError(f"models={models}; it must be at least 2")

    def one(key: Array, data: Batch) -> tuple[Array, Array]:
        draw_key, train_key = jax.random.split(key)
        size = len(data.x)
        drawn = jax.random.randint(draw_key, (size,), 0, size)
        counts = jnp.zeros(size).at[drawn].add(1.0)
        params = train(train_key, data, counts).params
        right = jnp.argmax(task.apply(params, data.x), -1) == jnp.argmax(data.y, -1)
        outside = counts == 0
        return (right & outside).astype(jnp.float32), outside.astype(jnp.float32)

    every = device_vmap(one)

    def values(key: Array, run: TrainRun, data: Batch) -> Array:
        check_classes(data, "Data-OOB")
        right, outside = every(jax.random.split(key, models), data)
        seen = outside.sum(0)
        mean = right.sum() / jnp.maximum(outside.sum(), 1.0)
        return jnp.where(seen > 0, right.sum(0) / jnp.maximum(seen, 1.0), mean)

    return make_data_value(values)
