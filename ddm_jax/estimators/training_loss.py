"""Training loss: what the network has not learnt is suspect."""

from __future__ import annotations

from ddm_jax.estimators.data_values import make_data_value
from ddm_jax.parallel import in_batches
from ddm_jax.types import Estimator, Task


def make_training_loss(task: Task) -> Estimator:
    """Make the data value `-loss_i(theta)` at the trained network."""
    losses = in_batches(task.loss)
    return make_data_value(lambda key, run, data: -losses(run.params, data))
