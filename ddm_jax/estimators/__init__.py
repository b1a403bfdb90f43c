"""Attribution estimators, one file a method, all of the same shape (fit, score, maybe outputs)."""

from ddm_jax.estimators.banzhaf import make_banzhaf
from ddm_jax.estimators.class_fraction import make_class_fraction
from ddm_jax.estimators.complexity_gap import make_complexity_gap
from ddm_jax.estimators.data_oob import make_data_oob
from ddm_jax.estimators.datainf import make_datainf
from ddm_jax.estimators.datamodel import make_datamodel
from ddm_jax.estimators.ddm import make_ddm
from ddm_jax.estimators.density_support import make_density_support
from ddm_jax.estimators.ekfac import make_ekfac
from ddm_jax.estimators.encoded_ensemble import make_encoded_ensemble
from ddm_jax.estimators.forward_matching import make_forward_matching
from ddm_jax.estimators.gauss_newton import make_gauss_newton
from ddm_jax.estimators.grad_cos import make_grad_cos
from ddm_jax.estimators.grad_dot import make_grad_dot
from ddm_jax.estimators.group_size import make_group_size
from ddm_jax.estimators.in_run_shapley import make_in_run_shapley
from ddm_jax.estimators.influence_arnoldi import make_influence_arnoldi
from ddm_jax.estimators.influence_cg import make_influence_cg
from ddm_jax.estimators.influence_exact import make_influence_exact
from ddm_jax.estimators.influence_lissa import make_influence_lissa
from ddm_jax.estimators.influence_second_order import make_influence_second_order
from ddm_jax.estimators.knn_shapley import make_knn_shapley
from ddm_jax.estimators.merging import make_merging
from ddm_jax.estimators.metagradient import make_metagradient
from ddm_jax.estimators.mirrored_influence import make_mirrored_influence
from ddm_jax.estimators.random_scores import make_random
from ddm_jax.estimators.representation import make_representation
from ddm_jax.estimators.representer import make_representer
from ddm_jax.estimators.retraining import make_retraining, retraining_response
from ddm_jax.estimators.self_influence import make_self_influence
from ddm_jax.estimators.source import make_source
from ddm_jax.estimators.synset_influence import make_synset_influence
from ddm_jax.estimators.tracin import make_tracin
from ddm_jax.estimators.training_dynamics import make_training_dynamics
from ddm_jax.estimators.training_loss import make_training_loss
from ddm_jax.estimators.trak import make_trak
from ddm_jax.estimators.triage import make_triage
from ddm_jax.estimators.untrac import make_untrac
from ddm_jax.estimators.untrac_inverse import make_untrac_inverse
from ddm_jax.estimators.value_network import make_value_network

# `make_triage` is for regressions, the others of this table for any task with labels.
ESTIMATORS = {
    "banzhaf": make_banzhaf,
    "class_fraction": make_class_fraction,
    "complexity_gap": make_complexity_gap,
    "data_oob": make_data_oob,
    "datainf": make_datainf,
    "datamodel": make_datamodel,
    "ddm": make_ddm,
    "density_support": make_density_support,
    "ekfac": make_ekfac,
    "encoded_ensemble": make_encoded_ensemble,
    "forward_matching": make_forward_matching,
    "gauss_newton": make_gauss_newton,
    "grad_cos": make_grad_cos,
    "grad_dot": make_grad_dot,
    "group_size": make_group_size,
    "in_run_shapley": make_in_run_shapley,
    "influence_arnoldi": make_influence_arnoldi,
    "influence_cg": make_influence_cg,
    "influence_exact": make_influence_exact,
    "influence_lissa": make_influence_lissa,
    "influence_second_order": make_influence_second_order,
    "knn_shapley": make_knn_shapley,
    "merging": make_merging,
    "metagradient": make_metagradient,
    "mirrored_influence": make_mirrored_influence,
    "random": make_random,
    "representation": make_representation,
    "representer": make_representer,
    "retraining": make_retraining,
    "self_influence": make_self_influence,
    "source": make_source,
    "synset_influence": make_synset_influence,
    "tracin": make_tracin,
    "training_dynamics": make_training_dynamics,
    "training_loss": make_training_loss,
    "trak": make_trak,
    "untrac": make_untrac,
    "untrac_inverse": make_untrac_inverse,
    "value_network": make_value_network,
}

__all__ = [
    "ESTIMATORS",
    "make_banzhaf",
    "make_class_fraction",
    "make_complexity_gap",
    "make_data_oob",
    "make_datainf",
    "make_datamodel",
    "make_ddm",
    "make_density_support",
    "make_ekfac",
    "make_encoded_ensemble",
    "make_forward_matching",
    "make_gauss_newton",
    "make_grad_cos",
    "make_grad_dot",
    "make_group_size",
    "make_in_run_shapley",
    "make_influence_arnoldi",
    "make_influence_cg",
    "make_influence_exact",
    "make_influence_lissa",
    "make_influence_second_order",
    "make_knn_shapley",
    "make_merging",
    "make_metagradient",
    "make_mirrored_influence",
    "make_random",
    "make_representation",
    "make_representer",
    "make_retraining",
    "make_self_influence",
    "make_source",
    "make_synset_influence",
    "make_tracin",
    "make_training_dynamics",
    "make_training_loss",
    "make_trak",
    "make_triage",
    "make_untrac",
    "make_untrac_inverse",
    "make_value_network",
    "retraining_response",
]
