"""Every estimator with a run's settings, and the few that `ddm compare` may choose from.

A candidate takes what the run fixes (its task, training recipe, what is explained) from the plan.
The settings to choose from are those that its paper tunes, BUDGET combinations at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ddm_jax.estimators import make_ddm, make_grad_dot, make_retraining
from ddm_jax.plan import Plan
from ddm_jax.types import Estimator

BUDGET = 6  # candidates an estimator

Settings = dict[str, Any]


class Candidates(NamedTuple):
    """An estimator and the settings that it may choose from."""

    make: Callable[[Plan, Settings], Estimator]
    offline: dict[str, tuple[Any, ...]]  # of `fit`
    online: dict[str, tuple[Any, ...]]  # of `score` and `outputs` alone: they share a fit


def make_ddm_candidate(plan: Plan, chosen: Settings) -> Estimator:
    """The distilled datamodel with the run's settings, and the chosen ones instead of its own."""
    distill, online = plan.config.distill, plan.config.online
    fixed: Settings = {
        "items": distill.items,
        "start": distill.start,
        "part": distill.part,
        "distance": distill.distance,
        "balance": distill.balance,
        "offset": distill.offset,
        "precision": distill.precision,
        "distill_steps": distill.steps,
        "distill_rate": distill.learning_rate,
        "update": online.update,
        "learning_rate": online.learning_rate or None,
        "momentum": online.momentum,
        "weight_decay": plan.config.train.weight_decay,
        "output": plan.truth_output,
    }
    return make_ddm(plan.task, **(fixed | chosen))


def make_retraining_candidate(plan: Plan, chosen: Settings) -> Estimator:
    """Retraining once, as the truth does it."""
    return make_retraining(plan.task, plan.trainer.train, response=plan.truth_retraining, **chosen)


def make_grad_dot_candidate(plan: Plan, chosen: Settings) -> Estimator:
    """Grad-dot, which has no settings."""
    return make_grad_dot(plan.task, plan.truth_output, **chosen)


CANDIDATES: dict[str, Candidates] = {
    "ddm": Candidates(make_ddm_candidate, {}, {"steps": (50, 100, 200), "rewind": (0.0, 0.75)}),
    "grad_dot": Candidates(make_grad_dot_candidate, {}, {}),
    "retraining": Candidates(make_retraining_candidate, {}, {}),
}
