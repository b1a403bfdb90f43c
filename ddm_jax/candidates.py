"""Every estimator with a run's settings, and the few that `ddm compare` may choose from.

A candidate takes what the run fixes (its task, training recipe, what is explained) from the plan.
The settings to choose from are those that its paper tunes, BUDGET combinations at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ddm_jax import estimators
from ddm_jax.estimators import make_ddm, make_grad_dot, make_retraining
from ddm_jax.plan import Plan, shorter_trainer
from ddm_jax.types import Estimator

BUDGET = 6  # candidates an estimator

Settings = dict[str, Any]
Maker = Callable[[Plan, Settings], Estimator]


class Candidates(NamedTuple):
    """An estimator and the settings that it may choose from."""

    make: Maker
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
        "step_items": online.step_items,
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


def of_task(make: Callable[..., Estimator]) -> Maker:
    """An estimator of the network and what is explained."""
    return lambda plan, chosen: make(plan.task, output=plan.truth_output, **chosen)


def of_run(make: Callable[..., Estimator]) -> Maker:
    """One that follows the training run."""

    def candidate(plan: Plan, chosen: Settings) -> Estimator:
        train = plan.config.train
        fixed = {"momentum": train.momentum, "weight_decay": train.weight_decay}
        return make(plan.task, output=plan.truth_output, **fixed, **chosen)

    return candidate


def of_curvature(make: Callable[..., Estimator]) -> Maker:
    """An influence function, with the curvature of the run's training objective."""

    def candidate(plan: Plan, chosen: Settings) -> Estimator:
        decay = plan.config.train.weight_decay
        return make(plan.task, weight_decay=decay, output=plan.truth_output, **chosen)

    return candidate


def of_training(make: Callable[..., Estimator]) -> Maker:
    """One that trains networks of its own."""

    def candidate(plan: Plan, chosen: Settings) -> Estimator:
        return make(plan.task, plan.trainer.train, output=plan.truth_output, **chosen)

    return candidate


def of_being_right(make: Callable[[Plan, Settings], Estimator]) -> Maker:
    """One that says what helps a query, whatever the output: turned where that is a loss."""

    def candidate(plan: Plan, chosen: Settings) -> Estimator:
        found = make(plan, chosen)
        if plan.config.truth.objective != "loss":
            return found
        return found._replace(score=lambda state, query: -found.score(state, query))

    return candidate


def make_forward_candidate(plan: Plan, chosen: Settings) -> Estimator:
    """Forward matching, with the run's synset."""
    distill = plan.config.distill
    return estimators.make_forward_matching(
        plan.task,
        items=distill.items,
        distill_steps=distill.steps,
        distill_rate=distill.learning_rate,
        step_items=plan.config.online.step_items,
        weight_decay=plan.config.train.weight_decay,
        output=plan.truth_output,
        **chosen,
    )


def make_synset_influence_candidate(plan: Plan, chosen: Settings) -> Estimator:
    """Points by the curvature of a synset like the run's, of five items a group at most."""
    distill = plan.config.distill
    return estimators.make_synset_influence(
        plan.task,
        plan.trainer.train,
        items=min(distill.items, 5),
        distill_steps=min(distill.steps, 1000),
        distill_rate=distill.learning_rate,
        weight_decay=plan.config.train.weight_decay,
        output=plan.truth_output,
        **chosen,
    )


def make_short_retraining(plan: Plan, chosen: Settings) -> Estimator:
    """Exact retraining cut short, its schedule compressed."""
    trainer = shorter_trainer(plan, chosen["epochs"])
    return make_retraining(plan.task, trainer.train, output=plan.truth_output)


CANDIDATES: dict[str, Candidates] = {
    "ddm": Candidates(make_ddm_candidate, {}, {"steps": (20, 40, 100), "rewind": (0.0, 0.75)}),
    "retraining": Candidates(make_retraining_candidate, {}, {}),
    "short_retraining": Candidates(make_short_retraining, {"epochs": (1, 2, 5)}, {}),
    # Networks trained on subsets.
    "datamodel": Candidates(
        of_training(estimators.make_datamodel),
        {},
        {"regression": ("ridge", "lasso"), "penalty": (0.003, 0.03, 0.3)},
    ),
    "banzhaf": Candidates(of_training(estimators.make_banzhaf), {}, {}),
    "encoded_ensemble": Candidates(
        of_training(estimators.make_encoded_ensemble), {"members": (20, 100)}, {}
    ),
    "value_network": Candidates(
        of_training(estimators.make_value_network), {"weight_decay": (1e-3, 1e-1, 1.0)}, {}
    ),
    "trak": Candidates(
        of_training(estimators.make_trak),
        {"projection": (512, 2048), "damping": (0.1, 1.0, 3.0)},
        {},
    ),
    "trak_10": Candidates(
        lambda plan, chosen: of_training(estimators.make_trak)(plan, {"models": 10} | chosen),
        {"projection": (512, 2048), "damping": (0.1, 1.0, 3.0)},
        {},
    ),
    # Fine-tuning on real data, or on the synset from the start.
    "untrac": Candidates(
        of_task(estimators.make_untrac),
        {"learning_rate": (1e-5, 1e-4, 1e-3), "optimizer": ("adam",), "steps": (5, 50)},
        {},
    ),
    "untrac_inverse": Candidates(
        of_task(estimators.make_untrac_inverse), {}, {"learning_rate": (1e-5, 1e-4, 1e-3)}
    ),
    "mirrored_influence": Candidates(
        of_task(estimators.make_mirrored_influence), {}, {"learning_rate": (1e-3, 1e-2, 1e-1)}
    ),
    "merging": Candidates(
        of_curvature(estimators.make_merging),
        {"rewind": (0.25, 0.75), "learning_rate": (0.01, 0.05, 0.2)},
        {},
    ),
    "forward_matching": Candidates(make_forward_candidate, {}, {"steps": (100, 400)}),
    # The trajectory.
    "tracin": Candidates(of_task(estimators.make_tracin), {"checkpoints": (1, 3, 10)}, {}),
    "source": Candidates(of_run(estimators.make_source), {"segments": (1, 3, 6)}, {}),
    "metagradient": Candidates(of_run(estimators.make_metagradient), {}, {}),
    "in_run_shapley": Candidates(
        of_run(estimators.make_in_run_shapley), {}, {"order": (1, 2), "every": (10,)}
    ),
    # The trained network, and its curvature.
    "influence_exact": Candidates(
        of_curvature(estimators.make_influence_exact), {"damping": (0.003, 0.01, 0.05)}, {}
    ),
    "influence_cg": Candidates(
        of_curvature(estimators.make_influence_cg),
        {"damping": (0.003, 0.01, 0.05), "iterations": (10,)},
        {},
    ),
    "influence_lissa": Candidates(
        of_curvature(estimators.make_influence_lissa),
        {"damping": (0.01, 0.1), "depth": (200,)},
        {},
    ),
    "influence_arnoldi": Candidates(
        of_curvature(estimators.make_influence_arnoldi),
        {"damping": (0.01, 0.1), "rank": (20, 80)},
        {},
    ),
    "influence_second_order": Candidates(
        of_curvature(estimators.make_influence_second_order),
        {},
        {
            "damping": (0.003, 0.01, 0.03),
            "iterations": (10,),
            "curvature": ("hessian", "gauss_newton"),
        },
    ),
    "gauss_newton": Candidates(
        of_curvature(estimators.make_gauss_newton), {"damping": (0.001, 0.01, 0.1)}, {}
    ),
    "synset_influence": Candidates(
        make_synset_influence_candidate,
        {"window": ((0.0, 0.25), (0.25, 1.0))},
        {"damping": (0.003, 0.01, 0.03)},
    ),
    "ekfac": Candidates(of_curvature(estimators.make_ekfac), {"damping": (0.001, 0.01, 0.1)}, {}),
    "datainf": Candidates(of_curvature(estimators.make_datainf), {"damping": (0.01, 0.1, 1.0)}, {}),
    # The trained network alone.
    "grad_dot": Candidates(make_grad_dot_candidate, {}, {}),
    "grad_cos": Candidates(of_task(estimators.make_grad_cos), {}, {}),
    "representation": Candidates(
        of_being_right(lambda plan, chosen: estimators.make_representation(plan.task)), {}, {}
    ),
    "representer": Candidates(
        of_being_right(lambda plan, chosen: estimators.make_representer(plan.task, **chosen)),
        {"l2": (1e-4, 1e-3, 1e-2)},
        {},
    ),
    "knn_shapley": Candidates(
        of_being_right(lambda plan, chosen: estimators.make_knn_shapley(plan.task, **chosen)),
        {},
        {"neighbours": (1, 5, 20)},
    ),
    # Values of data, whatever is asked.
    "training_loss": Candidates(
        of_being_right(lambda plan, chosen: estimators.make_training_loss(plan.task)), {}, {}
    ),
    "training_dynamics": Candidates(
        of_being_right(lambda plan, chosen: estimators.make_training_dynamics(plan.task, **chosen)),
        {"measure": ("loss", "margin", "forgetting")},
        {},
    ),
    "self_influence": Candidates(
        of_being_right(lambda plan, chosen: estimators.make_self_influence(plan.task)), {}, {}
    ),
    "complexity_gap": Candidates(
        of_being_right(lambda plan, chosen: estimators.make_complexity_gap(**chosen)),
        {"damping": (1e-6, 1e-4, 1e-2)},
        {},
    ),
    "data_oob": Candidates(
        of_being_right(
            lambda plan, chosen: estimators.make_data_oob(plan.task, plan.trainer.train)
        ),
        {},
        {},
    ),
    # No network at all.
    "density_support": Candidates(
        of_being_right(lambda plan, chosen: estimators.make_density_support(**chosen)),
        {"bandwidth": (0.1, 0.3, 1.0)},
        {},
    ),
    "class_fraction": Candidates(
        of_being_right(lambda plan, chosen: estimators.make_class_fraction()), {}, {}
    ),
    "group_size": Candidates(
        of_being_right(lambda plan, chosen: estimators.make_group_size()), {}, {}
    ),
    "random": Candidates(lambda plan, chosen: estimators.make_random(), {}, {}),
}

# Candidates that are another estimator with settings of their own.
VARIANTS = {"short_retraining": "retraining", "trak_10": "trak"}
