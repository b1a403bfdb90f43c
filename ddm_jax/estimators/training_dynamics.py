"""Training dynamics: how a point's loss and margin went during training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.estimators.data_values import check_classes, make_data_value
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun

MEASURES = ("loss", "margin", "forgetting")


def make_training_dynamics(task: Task, *, measure: str = "margin") -> Estimator:
    """Make a data value from the logits at the kept checkpoints.

    - "loss": minus the mean loss over the checkpoints;
    - "margin": the area under the margin, the mean of the label's logit less the largest other
      (Pleiss et al., 2020, arXiv 2001.10528);
    - "forgetting": minus how often a point was told right and at the next checkpoint wrong; T + 1
      times for one that was never told right (Toneva et al., 2019, arXiv 1812.05159, who count
      between the presentations of a point).

    Raises:
        ValueError: for an unknown measure.
    """
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}; choose one of {', '.join(MEASURES)}")

    def margins(params: Params, data: Batch) -> Array:
        logits = task.apply(params, data.x)
        labels = jnp.argmax(data.y, -1)
        own = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
        others = jnp.where(jax.nn.one_hot(labels, logits.shape[-1]) > 0, -jnp.inf, logits)
        return own - jnp.max(others, -1)

    @jax.jit
    def values(run: TrainRun, data: Batch) -> Array:
        if measure == "loss":
            return -lax.map(lambda params: task.loss(params, data), run.checkpoints).mean(0)
        every = lax.map(lambda params: margins(params, data), run.checkpoints)
        if measure == "margin":
            return every.mean(0)
        right = every > 0
        forgotten = jnp.sum(right[:-1] & ~right[1:], 0)
        return -jnp.where(right.any(0), forgotten, len(right) + 1).astype(jnp.float32)

    def checked(key: Array, run: TrainRun, data: Batch) -> Array:
        if measure != "loss":
            check_classes(data, f"the {measure}")
        return values(run, data)

    return make_data_value(checked)
