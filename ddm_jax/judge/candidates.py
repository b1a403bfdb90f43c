"""Every estimator with a problem's settings, and the few that `ddm compare` may choose from.

A candidate takes what the problem fixes (its task, which says what is explained, and its recipes).
The settings to choose from are those that its paper tunes, BUDGET combinations at most.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from ddm_jax import recipes
from ddm_jax.estimators import (
    ESTIMATORS,
    make_ddm,
    make_forward_matching,
    make_retraining,
    make_synset_influence,
)
from ddm_jax.estimators.contract import joint_estimator
from ddm_jax.estimators.ddm import (
    DDMState,
    distilled_run,
    make_outputs,
    undistilled,
)
from ddm_jax.estimators.pools import corrected
from ddm_jax.judge.problem import Problem, retraining_of, trainer_of
from ddm_jax.online import Parts, make_parts
from ddm_jax.synset import all_members
from ddm_jax.types import Array, Batch, Estimator, Groups, TrainRun, length
from ddm_jax.updates import UpdateSettings
from ddm_jax.values import VALUES

BUDGET = 6  # candidates an estimator

Settings = dict[str, Any]
Maker = Callable[..., Estimator]  # (problem, settings), and what is `shared`


class Candidates(NamedTuple):
    """An estimator and the settings that it may choose from; a dict is several that go together."""

    make: Maker
    offline: dict[str, tuple[Any, ...]]  # of `fit`
    online: dict[str, tuple[Any, ...]]  # of `score` and `outputs` alone: they share a fit
    # What those that share a fit share besides, as keywords of `make`.
    shared: Callable[[Problem], dict[str, Any]] | None = None


def every_choice(choices: dict[str, tuple[Any, ...]]) -> list[Settings]:
    """Each with each, as settings."""
    found = []
    for values in itertools.product(*choices.values()):
        settings: Settings = {}
        for name, value in zip(choices, values, strict=True):
            settings |= value if isinstance(value, dict) else {name: value}
        found.append(settings)
    return found


def make_ddm_candidate(problem: Problem, chosen: Settings, parts: Parts | None = None) -> Estimator:
    """The distilled datamodel with the problem's settings, and a recipe at the problem's cost."""
    distill, update = _settings(problem, chosen)
    return _at_cost(problem, update, make_ddm(problem.task, distill, update).fit, "ddm", parts)


def make_corrected(problem: Problem, chosen: Settings, parts: Parts | None = None) -> Estimator:
    """The same, whose steps add what the items leave of each group's gradient."""
    task, (distill, update) = problem.task, _settings(problem, chosen)
    distilled = make_ddm(task, distill, update).fit

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> DDMState:
        return corrected(distilled(key, run, data, groups), task, data, groups)

    return _at_cost(problem, update, fit, "ddm_corrected", parts)


def make_real_data(problem: Problem, chosen: Settings, parts: Parts | None = None) -> Estimator:
    """The same updates on all real kept data, at the same cost: what a perfect synset would do."""
    task, (_, update) = problem.task, _settings(problem, chosen)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> DDMState:
        synset = all_members(task, data, groups)
        return distilled_run(run, synset, undistilled(synset))

    return _at_cost(problem, update, fit, "real_data", parts)


def _parts(problem: Problem) -> dict[str, Any]:
    """Compiled once for all recipes: most differ by their rates and momenta alone."""
    return {"parts": make_parts(problem.task)}


def _at_cost(
    problem: Problem,
    update: UpdateSettings,
    fit: Callable[..., DDMState],
    method: str,
    parts: Parts | None,
) -> Estimator:
    """Updates in as many steps as the problem allows, which the size of the pool decides."""
    gradients = problem.num_points * problem.train.epochs

    @cache
    def of_pool(items: int) -> Callable[..., Array]:
        allowed = recipes.at_cost(update, problem.share, gradients, items)
        return make_outputs(problem.task, allowed, parts)

    def outputs(state: DDMState, masks: Any, query: Batch) -> Array:
        return of_pool(length(state.synset.items))(state, masks, query)

    return joint_estimator(
        problem.task, fit, outputs, lambda state: len(state.synset.share), method=method
    )


def make_retraining_candidate(problem: Problem, chosen: Settings) -> Estimator:
    """Retraining once, as the truth does it."""
    response = retraining_of(problem)
    return make_retraining(problem.task, trainer_of(problem).train, response=response, **chosen)


def make_short_retraining(problem: Problem, chosen: Settings) -> Estimator:
    """Exact retraining cut short, its schedule compressed: at the problem's cost at most."""
    most = max(int(problem.share * problem.train.epochs), 1)
    return make_retraining(problem.task, trainer_of(problem, min(chosen["epochs"], most)).train)


def make_forward_candidate(problem: Problem, chosen: Settings) -> Estimator:
    """Forward matching, with the problem's synset and updates, but from the start to the end."""
    distill, update = _settings(problem, chosen)
    distill = dataclasses.replace(distill, part=1.0)
    update = dataclasses.replace(update, rewind=0.0)
    return make_forward_matching(problem.task, distill, update)


def make_synset_influence_candidate(problem: Problem, chosen: Settings) -> Estimator:
    """Points by the curvature of a synset like the problem's, of five items a group at most."""
    own = problem.distill
    distill = dataclasses.replace(own, items=min(own.items, 5), steps=min(own.steps, 1000))
    train = trainer_of(problem).train
    return make_synset_influence(problem.task, train, distill, **chosen)


def _settings(problem: Problem, chosen: Settings) -> tuple[Any, Any]:
    """The problem's settings of both stages with the chosen ones in place of their own.

    Raises:
        ValueError: for a setting of neither.
    """
    parts, left = [], dict(chosen)
    for part in (problem.update, problem.distill):  # `steps` are the online ones
        fields = {field.name for field in dataclasses.fields(part)}
        parts.append(dataclasses.replace(part, **{n: left.pop(n) for n in fields & left.keys()}))
    if left:
        raise ValueError(f"{', '.join(left)}: no setting of distillation or of the updates")
    return parts[1], parts[0]


def _of_training(make: Callable[..., Estimator]) -> Maker:
    """A candidate that trains networks of its own."""
    return lambda problem, chosen: make(problem.task, trainer_of(problem).train, **chosen)


def _of_task(make: Callable[..., Estimator]) -> Maker:
    return lambda problem, chosen: make(problem.task, **chosen)


# BUDGET of the recipes that a run chooses from (`tuning`).
RECIPES = (
    {"optimizer": None, **recipes.STEPS_ALIKE[0]},
    {"optimizer": None, **recipes.STEPS_ALIKE[2]},
    {"optimizer": None, **recipes.STEPS_ALIKE[5]},
    {"optimizer": None, **recipes.STEPS_ALIKE[6]},
    {"optimizer": None, **recipes.STEPS_ALIKE[7]},
    {"optimizer": "deflated", **recipes.DEFLATED[1]},
)

# What may be chosen: of `fit`, and of `score` and `outputs` alone.
CHOICES: dict[str, tuple[dict[str, tuple[Any, ...]], dict[str, tuple[Any, ...]]]] = {
    "ddm": ({}, {"recipe": RECIPES}),
    "ddm_corrected": ({}, {"recipe": RECIPES}),
    "real_data": ({}, {"recipe": RECIPES}),
    "retraining": ({}, {}),
    "short_retraining": ({"epochs": (1, 2, 5, 10)}, {}),
    # Networks trained on subsets.
    "datamodel": ({}, {"regression": ("ridge", "lasso"), "penalty": (0.003, 0.03, 0.3)}),
    "banzhaf": ({}, {}),
    "encoded_ensemble": ({"members": (20, 100)}, {}),
    "value_network": ({"weight_decay": (1e-3, 1e-1, 1.0)}, {}),
    "trak": ({"projection": (512, 2048), "damping": (0.1, 1.0, 3.0)}, {}),
    "trak_10": ({"projection": (512, 2048), "damping": (0.1, 1.0, 3.0)}, {}),
    # Fine-tuning on real data, or on the synset from the start.
    "untrac": (
        {"learning_rate": (1e-5, 1e-4, 1e-3), "optimizer": ("adam",), "steps": (5, 50)},
        {},
    ),
    "untrac_inverse": ({}, {"learning_rate": (1e-5, 1e-4, 1e-3)}),
    "mirrored_influence": ({}, {"learning_rate": (1e-3, 1e-2, 1e-1)}),
    "merging": ({"rewind": (0.25, 0.75), "learning_rate": (0.01, 0.05, 0.2)}, {}),
    "forward_matching": ({}, {"steps": (100, 400)}),
    # The trajectory.
    "tracin": ({"checkpoints": (1, 3, 10)}, {}),
    "source": ({"segments": (1, 3, 6)}, {}),
    "metagradient": ({}, {}),
    "in_run_shapley": ({}, {"order": (1, 2), "every": (10,)}),
    # The trained network, and its curvature.
    "influence_exact": ({"damping": (0.003, 0.01, 0.05)}, {}),
    "influence_cg": ({"damping": (0.003, 0.01, 0.05), "iterations": (10,)}, {}),
    "influence_lissa": ({"damping": (0.01, 0.1), "depth": (200,)}, {}),
    "influence_arnoldi": ({"damping": (0.01, 0.1), "rank": (20, 80)}, {}),
    "influence_second_order": (
        {},
        {
            "damping": (0.003, 0.01, 0.03),
            "iterations": (10,),
            "curvature": ("hessian", "gauss_newton"),
        },
    ),
    "gauss_newton": ({"damping": (0.001, 0.01, 0.1)}, {}),
    "synset_influence": (
        {"window": ((0.0, 0.25), (0.25, 1.0))},
        {"damping": (0.003, 0.01, 0.03)},
    ),
    "ekfac": ({"damping": (0.001, 0.01, 0.1)}, {}),
    "datainf": ({"damping": (0.01, 0.1, 1.0)}, {}),
    # The trained network alone.
    "grad_dot": ({}, {}),
    "grad_cos": ({}, {}),
    "representation": ({}, {}),
    "representer": ({"l2": (1e-4, 1e-3, 1e-2)}, {}),
    "knn_shapley": ({}, {"neighbours": (1, 5, 20)}),
    # Values of data, whatever is asked.
    "training_loss": ({}, {}),
    "training_dynamics": ({"measure": ("loss", "margin", "forgetting")}, {}),
    "self_influence": ({}, {}),
    "complexity_gap": ({"damping": (1e-6, 1e-4, 1e-2)}, {}),
    "data_oob": ({}, {}),
    # No network at all.
    "density_support": ({"bandwidth": (0.1, 0.3, 1.0)}, {}),
    "class_fraction": ({}, {}),
    "group_size": ({}, {}),
    "random": ({}, {}),
}
OF_TRAINING = ("datamodel", "banzhaf", "encoded_ensemble", "value_network", "trak", "data_oob")
MAKERS: dict[str, Maker] = {
    "ddm": make_ddm_candidate,
    "ddm_corrected": make_corrected,
    "real_data": make_real_data,
    "retraining": make_retraining_candidate,
    "short_retraining": make_short_retraining,
    "trak_10": lambda problem, chosen: MAKERS["trak"](problem, {"models": 10} | chosen),
    "forward_matching": make_forward_candidate,
    "synset_influence": make_synset_influence_candidate,
} | {name: _of_training((ESTIMATORS | VALUES)[name]) for name in OF_TRAINING}
CANDIDATES: dict[str, Candidates] = {
    name: Candidates(
        MAKERS.get(name) or _of_task((ESTIMATORS | VALUES)[name]),
        *choices,
        _parts if choices[1].get("recipe") is RECIPES else None,
    )
    for name, choices in CHOICES.items()
}

# Candidates that are another estimator with settings of their own.
VARIANTS = {
    "ddm_corrected": "ddm",
    "real_data": "ddm",
    "short_retraining": "retraining",
    "trak_10": "trak",
}
