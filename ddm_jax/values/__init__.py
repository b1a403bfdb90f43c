"""Data values: what each training point is worth, [N], one number whatever is asked.

HIGHER IS BETTER everywhere, whatever the units: a list of suspects is the same values read from
below. `training_loss(task)` and its siblings make `values(key, run, data) -> [N]`;
`make_value_estimator(task, values)` scores groups by them, and VALUES makes it of those that
`ddm compare` judges.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from ddm_jax.types import Estimator, Task
from ddm_jax.values._contract import Values as Values
from ddm_jax.values._contract import make_value_estimator as make_value_estimator
from ddm_jax.values.kernel import complexity_gap as complexity_gap
from ddm_jax.values.kernel import kernel_margins as kernel_margins
from ddm_jax.values.labels import data_oob as data_oob
from ddm_jax.values.labels import label_quality as label_quality
from ddm_jax.values.quality import novelty as novelty
from ddm_jax.values.quality import typicality as typicality
from ddm_jax.values.quality import usefulness as usefulness
from ddm_jax.values.trajectory import self_influence as self_influence
from ddm_jax.values.trajectory import training_dynamics as training_dynamics
from ddm_jax.values.trajectory import training_loss as training_loss
from ddm_jax.values.trajectory import triage as triage
from ddm_jax.values.trajectory import triage_scores as triage_scores


def _as_estimator(make_values: Callable[..., Values]) -> Callable[..., Estimator]:
    @wraps(make_values)
    def make(task: Task, *args: Any, **settings: Any) -> Estimator:
        return make_value_estimator(task, make_values(task, *args, **settings))

    return make


VALUES = {
    make.__name__: _as_estimator(make)
    for make in (complexity_gap, data_oob, self_influence, training_dynamics, training_loss)
}
