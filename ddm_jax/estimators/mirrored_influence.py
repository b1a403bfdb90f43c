"""Mirrored influence (Forward-INF): learn the query, and see which points become easier."""

from __future__ import annotations

from ddm_jax.estimators._ascent import make_query_update
from ddm_jax.types import Estimator, Task


def make_mirrored_influence(
    task: Task, *, learning_rate: float = 0.01, steps: int = 1
) -> Estimator:
    """Make the estimator of Ko et al., "The mirrored influence hypothesis", 2024, arXiv 2402.08922.

    That a training point helps a query shows as the query helping the point: raise the query's
    output by a few steps of SGD, then one forward pass over the training points, `score =
    (1/N) sum_{i in D_k} loss_i(theta) - loss_i(theta with q)`. (UnTrac-Inv goes the other way,
    for more steps of Adam.)

    Args:
        learning_rate: positive.
        steps: at least 1.

    Raises:
        ValueError: for a setting out of range.
    """
    return make_query_update(
        task,
        steps=steps,
        learning_rate=learning_rate,
        optimizer="sgd",
        sign=1,
        method="mirrored_influence",
    )
