"""Every estimator as the contract tests it: how it is made, and what is true of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ddm_jax as ddm


class Case(NamedTuple):
    """How the contract treats an estimator; `problem` is conftest's `Planted`."""

    make: Callable[..., ddm.Estimator]  # problem, **settings
    additive: bool = False  # scores of points add up to those of groups
    joint: bool = False  # has `outputs`, for groups that are gone together
    trains: bool = False  # trains networks, whose batches depend on the order of the points
    without_query: bool = False  # values data as such: every query has the same scores
    blind: bool = False  # sees no labels, or no data at all: cannot find those that are wrong
    bad: tuple[tuple[dict[str, Any], str], ...] = ()  # settings, what the error says of them


CASES: dict[str, Case] = {
    "ddm": Case(
        lambda problem, **chosen: ddm.make_ddm(
            problem.task, **{"items": 1, "distill_steps": 40, "steps": 10, **chosen}
        ),
        joint=True,
        bad=(
            ({"update": "erase"}, "unknown update"),
            ({"rewind": 1.0}, "rewind=1"),
        ),
    ),
    "grad_dot": Case(
        lambda problem, **chosen: ddm.make_grad_dot(problem.task, **chosen), additive=True
    ),
    "retraining": Case(
        lambda problem, **chosen: ddm.make_retraining(
            problem.task, problem.train, **{"seeds": 1, **chosen}
        ),
        joint=True,
        trains=True,
        bad=(({"seeds": 0}, "seeds=0"),),
    ),
}
