"""Distilled datamodels in JAX: which training data made a model do this, and what if it were gone?

The public names, in the order of the stages. They are imported when they are first used, so that
the `ddm` command answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.5.0"

if TYPE_CHECKING:
    from ddm_jax import data, estimators, metrics, models, objectives
    from ddm_jax.attribution import Attribution, make_attribution
    from ddm_jax.cluster import check_groups, make_groups
    from ddm_jax.distill import make_distiller, make_match_points, trajectory_indices
    from ddm_jax.estimators import make_ddm, make_grad_dot, make_retraining, retraining_response
    from ddm_jax.loo import (
        check_masks,
        ddm_response,
        leave_one_out,
        leave_one_out_masks,
        make_finetune,
        random_masks,
        ridge_datamodel,
        subset_outputs,
        trajectory_point,
    )
    from ddm_jax.matching import (
        group_batches,
        make_group_gradients,
        make_matching_error,
        make_matching_loss,
        make_synset_gradient,
    )
    from ddm_jax.models import classification, regression
    from ddm_jax.parallel import device_vmap
    from ddm_jax.synset import initial_synset
    from ddm_jax.train import cosine_schedule, make_train, make_trainer
    from ddm_jax.types import Batch, Estimator, Synset, Task, TrainRun

_MODULES = ("data", "estimators", "metrics", "models", "objectives")
_NAMES = {
    "attribution": ("Attribution", "make_attribution"),
    "cluster": ("check_groups", "make_groups"),
    "distill": ("make_distiller", "make_match_points", "trajectory_indices"),
    "estimators": ("make_ddm", "make_grad_dot", "make_retraining", "retraining_response"),
    "loo": (
        "check_masks",
        "ddm_response",
        "leave_one_out",
        "leave_one_out_masks",
        "make_finetune",
        "random_masks",
        "ridge_datamodel",
        "subset_outputs",
        "trajectory_point",
    ),
    "matching": (
        "group_batches",
        "make_group_gradients",
        "make_matching_error",
        "make_matching_loss",
        "make_synset_gradient",
    ),
    "models": ("classification", "regression"),
    "parallel": ("device_vmap",),
    "synset": ("initial_synset",),
    "train": ("cosine_schedule", "make_train", "make_trainer"),
    "types": ("Batch", "Estimator", "Synset", "Task", "TrainRun"),
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ddm_jax.{name}")
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"ddm_jax.{module}"), name)
    raise AttributeError(f"module 'ddm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


__all__ = [
    "Attribution",
    "Batch",
    "Estimator",
    "Synset",
    "Task",
    "TrainRun",
    "check_groups",
    "check_masks",
    "classification",
    "cosine_schedule",
    "data",
    "ddm_response",
    "device_vmap",
    "estimators",
    "group_batches",
    "initial_synset",
    "leave_one_out",
    "leave_one_out_masks",
    "make_attribution",
    "make_ddm",
    "make_distiller",
    "make_finetune",
    "make_grad_dot",
    "make_group_gradients",
    "make_groups",
    "make_match_points",
    "make_matching_error",
    "make_matching_loss",
    "make_retraining",
    "make_synset_gradient",
    "make_train",
    "make_trainer",
    "metrics",
    "models",
    "objectives",
    "random_masks",
    "regression",
    "retraining_response",
    "ridge_datamodel",
    "subset_outputs",
    "trajectory_indices",
    "trajectory_point",
]
