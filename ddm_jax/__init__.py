"""Distilled datamodels in JAX: which training data made a model do this, and what if it were gone?

The public names, in the order of the stages. They are imported when they are first used, so that
the `ddm` command answers at once.
"""

import importlib
import os
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

__version__ = "0.8.1"

_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
with suppress(metadata.PackageNotFoundError):
    # On a CPU, jaxlib 0.10.2 computes `-(a * b).sum(-1)` under `vmap` with a shared `a` wrongly
    # from the 32,769th result on: `optax.softmax_cross_entropy` of 50 networks on the same 800
    # labels, for one. It fuses such sums into one call; without that, nothing is slower. Versions
    # before and after are right. XLA reads this when it computes for the first time.
    if metadata.version("jaxlib") == "0.10.2" and _FUSIONS not in os.environ.get("XLA_FLAGS", ""):
        _sums = f"--{_FUSIONS}=-LIBRARY_FUSION_TYPE_REDUCE"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_sums}".strip()

if TYPE_CHECKING:
    from ddm_jax import data, estimators, metrics, models, objectives, quality
    from ddm_jax.attribution import Attribution, make_attribution
    from ddm_jax.cluster import check_groups, make_groups
    from ddm_jax.distill import make_distiller, make_match_points, trajectory_indices
    from ddm_jax.estimators import make_ddm, make_grad_dot, make_retraining, retraining_response
    from ddm_jax.hierarchy import Tree, make_hierarchical, make_selective, make_tree
    from ddm_jax.loo import (
        check_masks,
        ddm_response,
        leave_one_out,
        leave_one_out_masks,
        make_finetune,
        random_masks,
        response_slopes,
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
    from ddm_jax.points import (
        make_point_influence,
        make_trajectory_influence,
        share_out,
        spread_points,
    )
    from ddm_jax.privacy import membership_by_distance, nearest_training_points
    from ddm_jax.profiles import compare_profiles, profile
    from ddm_jax.subsets import Additivity, additivity, counterfactual, pair_masks
    from ddm_jax.synset import initial_synset
    from ddm_jax.train import cosine_schedule, make_train, make_trainer
    from ddm_jax.types import Batch, Estimator, Synset, Task, TrainRun
    from ddm_jax.unlearn import calibrated_amount, klom, make_forget, membership_auc

_MODULES = ("data", "estimators", "metrics", "models", "objectives", "quality")
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
        "response_slopes",
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
    "subsets": ("Additivity", "additivity", "counterfactual", "pair_masks"),
    "hierarchy": ("Tree", "make_hierarchical", "make_selective", "make_tree"),
    "points": (
        "make_point_influence",
        "make_trajectory_influence",
        "share_out",
        "spread_points",
    ),
    "privacy": ("membership_by_distance", "nearest_training_points"),
    "profiles": ("compare_profiles", "profile"),
    "unlearn": ("calibrated_amount", "klom", "make_forget", "membership_auc"),
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
    "Additivity",
    "Attribution",
    "Batch",
    "Estimator",
    "Synset",
    "Task",
    "TrainRun",
    "Tree",
    "additivity",
    "calibrated_amount",
    "check_groups",
    "check_masks",
    "classification",
    "compare_profiles",
    "cosine_schedule",
    "counterfactual",
    "data",
    "ddm_response",
    "device_vmap",
    "estimators",
    "group_batches",
    "initial_synset",
    "klom",
    "leave_one_out",
    "leave_one_out_masks",
    "make_attribution",
    "make_ddm",
    "make_distiller",
    "make_finetune",
    "make_forget",
    "make_grad_dot",
    "make_group_gradients",
    "make_groups",
    "make_hierarchical",
    "make_match_points",
    "make_matching_error",
    "make_matching_loss",
    "make_point_influence",
    "make_retraining",
    "make_selective",
    "make_synset_gradient",
    "make_train",
    "make_trainer",
    "make_trajectory_influence",
    "make_tree",
    "membership_auc",
    "membership_by_distance",
    "metrics",
    "models",
    "nearest_training_points",
    "objectives",
    "pair_masks",
    "profile",
    "quality",
    "random_masks",
    "regression",
    "response_slopes",
    "retraining_response",
    "ridge_datamodel",
    "share_out",
    "spread_points",
    "subset_outputs",
    "trajectory_indices",
    "trajectory_point",
]
