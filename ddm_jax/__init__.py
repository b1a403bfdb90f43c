"""Distilled datamodels in JAX: which training data made a model do this, and what if it were gone?

The public names, in the order of the stages.
"""

__version__ = "0.2.0"

from ddm_jax import data, metrics, models, objectives
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
from ddm_jax.models import classification
from ddm_jax.parallel import device_vmap
from ddm_jax.synset import initial_synset
from ddm_jax.train import cosine_schedule, make_train, make_trainer
from ddm_jax.types import Batch, Estimator, Synset, Task, TrainRun

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
    "retraining_response",
    "ridge_datamodel",
    "subset_outputs",
    "trajectory_indices",
    "trajectory_point",
]
