"""UnTrac-Inv: unlearn the query, and read the groups."""

from __future__ import annotations

from ddm_jax.estimators._ascent import make_query_update
from ddm_jax.types import Estimator, Task


def make_untrac_inverse(
    task: Task, *, steps: int = 10, learning_rate: float = 1e-4, optimizer: str = "adam"
) -> Estimator:
    """Make the inverse estimator of Isonuma & Titov, 2024, arXiv 2401.15241, eq. 8.

    From the trained network, *descend* on the output of each query, which unlearns it; the
    score is the rise of the group's training loss, `(1/N) sum_{i in D_k} loss_i(theta without q)
    - loss_i(theta)`. One update a query, however many groups there are.

    Args:
        steps: at least 1.
        learning_rate: positive.
        optimizer: "adam" or "sgd".

    Raises:
        ValueError: for a setting out of range.
    """
    return make_query_update(
        task,
        steps=steps,
        learning_rate=learning_rate,
        optimizer=optimizer,
        sign=-1,
        method="untrac_inverse",
    )
