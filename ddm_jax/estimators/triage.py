"""TRIAGE: training points of a regression that the network over- or underestimates throughout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.estimators.data_values import make_data_value
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun


def make_triage(task: Task) -> Estimator:
    """Make the data value `-|mean_t F_t(y_i | x_i) - 1/2|` for a regression with one target.

    `F_t(y | x)` is the conformal predictive distribution at checkpoint t: the part of the
    residuals `y_j - f_t(x_j)` that lie below `y - f_t(x)`. A point whose target is far out in it
    all through training is mislabelled, or hard: underestimated near 1, overestimated near 0.
    Seedat, Crabbe, Qian & van der Schaar, 2023, arXiv 2310.18970, who calibrate on held-out
    points and normalise residuals; here each point is held against the other training points,
    and residuals are plain. `triage_scores` gives the two numbers of their figure.

    Raises:
        ValueError: (when fitted) for more than one target.
    """

    def values(key: Array, run: TrainRun, data: Batch) -> Array:
        return -jnp.abs(triage_scores(task, run, data)[0] - 0.5)

    return make_data_value(values)


def triage_scores(task: Task, run: TrainRun, data: Batch) -> tuple[Array, Array]:
    """The mean and the standard deviation over checkpoints of `F_t(y_i | x_i)`, `[N]` each.

    Raises:
        ValueError: for more than one target.
    """
    if data.y.shape[-1] != 1:
        raise ValueError(f"the data have {data.y.shape[-1]} targets; TRIAGE takes 1")

    @jax.jit
    def scores(checkpoints: Params, data: Batch) -> tuple[Array, Array]:
        def at(params: Params) -> Array:
            residuals = (data.y - task.apply(params, data.x))[:, 0]
            below = jnp.searchsorted(jnp.sort(residuals), residuals, side="left")
            above = jnp.searchsorted(jnp.sort(residuals), residuals, side="right")
            # Ties, the point itself among them, count half.
            return (below + above) / 2 / len(residuals)

        every = lax.map(at, checkpoints)
        return every.mean(0), every.std(0)

    return scores(run.checkpoints, data)
