"""Every estimator as the contract tests it: how it is made, and what is true of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import ddm_jax as ddm
from ddm_jax.estimators import ESTIMATORS
from ddm_jax.values import VALUES

FACTORIES: dict[str, Any] = ESTIMATORS | VALUES


class Case(NamedTuple):
    """How the contract treats an estimator; `problem` is conftest's `Planted`."""

    make: Callable[..., ddm.Estimator]  # problem, **settings
    additive: bool = False  # scores of points add up to those of groups
    joint: bool = False  # has `outputs`, for groups that are gone together
    trains: bool = False  # trains networks, whose batches depend on the order of the points
    without_query: bool = False  # values data as such: every query has the same scores
    overlooks: str = ""  # why a small mislabelled group is not the most harmful one to it
    bad: tuple[tuple[dict[str, Any], str], ...] = ()  # settings, what the error says of them


def of_task(name: str, **small: Any) -> Callable[..., ddm.Estimator]:
    """An estimator that takes the task, with small settings."""
    make = FACTORIES[name]
    return lambda problem, **chosen: make(problem.task, **(small | chosen))


def training(name: str, **small: Any) -> Callable[..., ddm.Estimator]:
    """One that trains networks too."""
    make = FACTORIES[name]
    return lambda problem, **chosen: make(problem.task, problem.train, **(small | chosen))


def influence(name: str, **small: Any) -> Callable[..., ddm.Estimator]:
    """An influence function, with damping."""
    return of_task(name, **({"damping": 0.01} | small))


def distilled(name: str, online: dict[str, Any], **fixed: Any) -> Callable[..., ddm.Estimator]:
    """One that distils a little; what is chosen is of either of the two settings."""
    fields = {field.name for field in dataclasses.fields(ddm.UpdateSettings)}

    def make(problem, **chosen):
        update = online | {key: value for key, value in chosen.items() if key in fields}
        distill = fixed | {key: value for key, value in chosen.items() if key not in fields}
        settings = ddm.DistillSettings(**distill), ddm.UpdateSettings(**update)
        return FACTORIES[name](problem.task, *settings)

    return make


TINY = {"items": 1, "steps": 40}  # of a synset
NEGATIVE = ({"damping": -0.1}, r"damping=-0\.1")
NOISE = "the presence of the other groups is noise, which takes thousands of networks to average"
FEW_SUBSETS = ({"subsets": 1}, "subsets=1")

CASES: dict[str, Case] = {
    "ddm": Case(
        distilled("ddm", {"steps": 10}, **TINY),
        joint=True,
        bad=(
            ({"update": "erase"}, "online.update='erase'"),
            ({"rewind": 1.0}, "online.rewind=1"),
            ({"items": 0}, "distill.items=0"),
        ),
    ),
    "grad_dot": Case(of_task("grad_dot"), additive=True),
    "retraining": Case(
        training("retraining", seeds=1),
        joint=True,
        trains=True,
        bad=(({"seeds": 0}, "seeds=0"),),
    ),
    "banzhaf": Case(
        training("banzhaf", subsets=30), trains=True, overlooks=NOISE, bad=(FEW_SUBSETS,)
    ),
    "class_fraction": Case(
        of_task("class_fraction"),
        additive=True,
        overlooks="a wrong label counts as the class that it names",
    ),
    "synset_influence": Case(
        influence("synset_influence", distill=ddm.DistillSettings(**TINY), checkpoints=2),
        bad=(
            NEGATIVE,
            ({"networks": 2}, "more than one needs `train`"),
            ({"window": (1.0, 0.5)}, "window="),
            ({"checkpoints": 0}, "checkpoints=0"),
        ),
    ),
    "complexity_gap": Case(
        of_task("complexity_gap"),
        additive=True,
        without_query=True,
        bad=(({"damping": 0.0}, "damping=0"),),
    ),
    "data_oob": Case(
        training("data_oob", models=8),
        trains=True,
        without_query=True,
        bad=(({"models": 1}, "models=1"),),
    ),
    "datamodel": Case(
        training("datamodel", subsets=30),
        trains=True,
        bad=(
            FEW_SUBSETS,
            ({"regression": "stepwise"}, "regression='stepwise'"),
            ({"penalty": 0.0}, "penalty=0"),
        ),
    ),
    "density_support": Case(
        of_task("density_support"),
        additive=True,
        overlooks="a wrong label counts as the class that it names",
        bad=(({"bandwidth": 0.0}, "bandwidth=0"),),
    ),
    "value_network": Case(
        training("value_network", subsets=30, steps=300),
        trains=True,
        bad=(
            FEW_SUBSETS,
            ({"width": 0}, "width=0"),
            ({"learning_rate": 0.0}, "learning_rate=0"),
            ({"weight_decay": -1.0}, r"weight_decay=-1"),
        ),
    ),
    "encoded_ensemble": Case(
        training("encoded_ensemble", members=20),
        overlooks=NOISE,
        trains=True,
        bad=(({"members": 7}, "members=7"), ({"members": 0}, "members=0")),
    ),
    "forward_matching": Case(
        distilled("forward_matching", {"steps": 30}, part=1.0, **TINY),
        joint=True,
        overlooks="a network trained on one item a group alone is too poor",
        bad=(({"part": 0.5}, "distill.part=0.5"), ({"rewind": 0.5}, "online.rewind=0.5")),
    ),
    "grad_cos": Case(of_task("grad_cos"), additive=True),
    "group_size": Case(
        of_task("group_size"),
        additive=True,
        without_query=True,
        overlooks="it sees sizes alone",
    ),
    "in_run_shapley": Case(
        of_task("in_run_shapley"),
        additive=True,
        bad=(
            ({"order": 3}, "order=3"),
            ({"every": 0}, "every=0"),
        ),
    ),
    "knn_shapley": Case(
        of_task("knn_shapley"), additive=True, bad=(({"neighbours": 0}, "neighbours=0"),)
    ),
    "merging": Case(
        of_task("merging", steps=10),
        joint=True,
        overlooks="a small group's parameters weigh little in the average, right or wrong",
        bad=(({"steps": 0}, "steps=0"), ({"rewind": 1.0}, "rewind=1")),
    ),
    "metagradient": Case(
        of_task("metagradient"),
        additive=True,
    ),
    "mirrored_influence": Case(
        of_task("mirrored_influence"),
        additive=True,
        bad=(({"steps": 0}, "steps=0"), ({"learning_rate": 0.0}, "learning_rate=0")),
    ),
    "random": Case(
        of_task("random"),
        additive=True,
        overlooks="it sees nothing",
    ),
    "representation": Case(
        of_task("representation"),
        additive=True,
        overlooks="all groups of other classes count as harm, and larger ones more",
    ),
    "representer": Case(
        of_task("representer"),
        additive=True,
        bad=(({"l2": 0.0}, "l2=0"), ({"steps": 0}, "steps=0")),
    ),
    "self_influence": Case(
        of_task("self_influence"),
        additive=True,
        without_query=True,
        overlooks="early in training every hard point moves the network far",
    ),
    "source": Case(
        of_task("source", points=60),
        additive=True,
        bad=(({"segments": 0}, "segments=0"), ({"points": 0}, "points=0")),
    ),
    "tracin": Case(of_task("tracin"), additive=True, bad=(({"checkpoints": 0}, "checkpoints=0"),)),
    "training_dynamics": Case(
        of_task("training_dynamics"),
        additive=True,
        without_query=True,
        bad=(({"measure": "area"}, "measure='area'"),),
    ),
    "training_loss": Case(of_task("training_loss"), additive=True, without_query=True),
    "trak": Case(
        training("trak", projection=64, damping=0.1),
        additive=True,
        bad=(
            ({"models": 0}, "models=0"),
            ({"projection": 0}, "projection=0"),
            ({"damping": -1.0}, "damping=-1"),
        ),
    ),
    "untrac": Case(
        of_task("untrac"),
        bad=(
            ({"steps": 0}, "steps=0"),
            ({"learning_rate": 0.0}, "learning_rate=0"),
            ({"optimizer": "newton"}, "optimizer='newton'"),
            ({"batch_size": 0}, "batch_size=0"),
        ),
    ),
    "untrac_inverse": Case(
        of_task("untrac_inverse"),
        additive=True,
        bad=(({"steps": 0}, "steps=0"), ({"optimizer": "newton"}, "optimizer='newton'")),
    ),
    # The Hessian of this network has eigenvalues down to -.1: less damping leads to a saddle.
    "influence_exact": Case(
        influence("influence_exact", damping=0.3),
        additive=True,
        bad=(NEGATIVE, ({"damping": float("nan")}, "damping=nan")),
    ),
    # Conjugate gradients that stop early are not linear in what they solve for.
    "influence_cg": Case(
        influence("influence_cg", damping=0.3, iterations=10),
        bad=(NEGATIVE, ({"iterations": 0}, "iterations=0")),
    ),
    # A product of batches' Hessians is not symmetric: points, solved for from the side of the
    # queries, add up to the groups in the mean alone.
    "influence_lissa": Case(
        influence("influence_lissa", damping=0.3, depth=100),
        bad=(
            NEGATIVE,
            ({"depth": 0}, "depth=0"),
            ({"batch": 0}, "batch=0"),
            ({"scale": 0.0}, "scale=0"),
        ),
    ),
    "influence_arnoldi": Case(
        influence("influence_arnoldi", damping=0.3, iterations=60, rank=30),
        additive=True,
        bad=(NEGATIVE, ({"rank": 0}, "rank=0"), ({"iterations": 9, "rank": 10}, "rank=10")),
    ),
    "influence_second_order": Case(
        influence("influence_second_order", damping=0.1, iterations=10, curvature="gauss_newton"),
        joint=True,
        bad=(
            NEGATIVE,
            ({"iterations": 0}, "iterations=0"),
            ({"curvature": "fisher"}, "curvature='fisher'"),
        ),
    ),
    "gauss_newton": Case(
        influence("gauss_newton", points=60),
        additive=True,
        bad=(NEGATIVE, ({"points": 0}, "points=0")),
    ),
    "ekfac": Case(influence("ekfac"), additive=True, bad=(NEGATIVE,)),
    "datainf": Case(influence("datainf", damping=0.1), additive=True, bad=(NEGATIVE,)),
}
