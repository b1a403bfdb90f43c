"""Self-influence: points that move the network far must be learnt by heart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ddm_jax.estimators.data_values import make_data_value
from ddm_jax.estimators.tracin import checkpoint_rates
from ddm_jax.gradients import map_gradients
from ddm_jax.types import Array, Batch, Estimator, Task, TrainRun


def make_self_influence(task: Task) -> Estimator:
    """Make the data value `-sum_t eta_t |grad loss_i(theta_t)|^2` over the kept checkpoints.

    With the learning rate at each. Pruthi et al., "Estimating training data influence by tracing
    gradient descent" (TracIn), 2020, arXiv 2002.08484, section 4: wrong labels have a high
    self-influence.
    """

    @jax.jit
    def values(run: TrainRun, data: Batch) -> Array:
        def add(total: Array, point):
            params, rate = point
            squares = map_gradients(lambda rows: jnp.sum(rows**2, 1), task.loss, params, data)
            return total + rate * squares, None

        points = (run.checkpoints, checkpoint_rates(run))
        return -lax.scan(add, jnp.zeros(len(data.x)), points)[0]

    return make_data_value(lambda key, run, data: values(run, data))
