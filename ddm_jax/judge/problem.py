"""What is judged: a task with its recipes, and the exact retraining that it is judged by."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from ddm_jax import objectives
from ddm_jax.checks import settings
from ddm_jax.distill import DistillSettings
from ddm_jax.estimators.retraining import retraining_response, subset_retraining_response
from ddm_jax.judge.store import MOST_SEEDS
from ddm_jax.masks import subset_size
from ddm_jax.online import Response
from ddm_jax.train import Trainer, TrainSettings, recipe
from ddm_jax.types import Task
from ddm_jax.updates import UpdateSettings

Seeds = Annotated[int, Field(ge=2, le=MOST_SEEDS)]


@settings("truth")
class TruthSettings:
    """Ground truth by exact retraining; see `truth`.

    `seeds * (1 + groups)` networks where single groups are left out, and `subset_seeds * subsets`
    for each keep fraction.
    """

    objective: str = "loss"  # what is explained, see `objectives.explain`
    leave_one_out: bool = True  # retrain without single groups
    groups: Annotated[int, Field(ge=2)] | None = None  # how many, drawn at random; none: all
    seeds: Seeds = 8  # of everything kept and of each group left out
    subsets: Annotated[int, Field(ge=0)] = 40  # random subsets, for each keep fraction
    keep: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5,)
    subset_seeds: Seeds = 8
    paired: bool = True  # networks of one seed share initialisation and batch order
    # weights: same steps, weight 0 on what is gone; subset: train on what is kept alone
    removal: Literal["weights", "subset"] = "weights"

    @model_validator(mode="after")
    def _check(self) -> TruthSettings:
        if self.subsets < 4 and not self.leave_one_out:
            raise ValueError(f"truth.subsets={self.subsets}; it must be at least 4")
        if self.subsets and not self.keep:
            raise ValueError("truth.keep is empty; name a fraction to keep, for example 0.5")
        if self.groups is not None and not self.leave_one_out:
            raise ValueError(
                f"truth.groups={self.groups} needs truth.leave_one_out=true: it says how many "
                "single groups are left out"
            )
        if self.leave_one_out and not self.paired:
            raise ValueError("truth.leave_one_out=true needs truth.paired=true: effects are pairs")
        if self.removal == "subset" and (self.leave_one_out or len(self.keep) != 1):
            raise ValueError(
                "truth.removal=subset trains on subsets of one size: it needs "
                "truth.leave_one_out=false and a single truth.keep"
            )
        return self


class Problem(NamedTuple):
    """Everything that a truth and its predictors are made of, but the data and the groups."""

    task: Task  # its output is the truth's objective
    train: TrainSettings
    distill: DistillSettings
    update: UpdateSettings
    num_points: int  # N
    truth: TruthSettings
    seed: int  # of the run: what the truth and the estimators draw follows from it
    share: float = 0.25  # of a retraining that a counterfactual may cost


def make_problem(
    task: Task,
    train: TrainSettings,
    distill: DistillSettings,
    update: UpdateSettings,
    truth: TruthSettings,
    *,
    num_points: int,
    seed: int,
    share: float = 0.25,
) -> Problem:
    """Make a problem of which the truth's objective is explained.

    Raises:
        ValueError: for an unknown objective, or a batch that is larger than what is trained on.
    """
    explained = objectives.explain(task, truth.objective)
    problem = Problem(explained, train, distill, update, num_points, truth, seed, share)
    retraining_of(problem)
    return problem


def trainer_of(
    problem: Problem, epochs: int | None = None, num_points: int | None = None
) -> Trainer:
    """The training recipe, or the same with another number of epochs, its schedule compressed."""
    chosen = problem.train
    if epochs is not None:
        chosen = dataclasses.replace(chosen, epochs=epochs, checkpoint_every=epochs)
    return recipe(problem.task, chosen, num_points or problem.num_points)


def retraining_of(problem: Problem) -> Response:
    """`response(keep [K], key, data, groups, query) -> [Q]`, exact, as the truth removes groups."""
    if problem.truth.removal == "subset":
        kept = subset_size(problem.num_points, problem.truth.keep[0])
        train = trainer_of(problem, num_points=kept).train
        return subset_retraining_response(train, problem.task.output, kept)
    return retraining_response(trainer_of(problem).train, problem.task.output)
