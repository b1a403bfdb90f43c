"""Attribution estimators, one file a method, all of the same shape (fit, score, maybe outputs)."""

from ddm_jax.estimators.banzhaf import make_banzhaf as make_banzhaf
from ddm_jax.estimators.class_fraction import make_class_fraction as make_class_fraction
from ddm_jax.estimators.datainf import make_datainf as make_datainf
from ddm_jax.estimators.datamodel import make_datamodel as make_datamodel
from ddm_jax.estimators.ddm import make_ddm as make_ddm
from ddm_jax.estimators.density_support import make_density_support as make_density_support
from ddm_jax.estimators.ekfac import make_ekfac as make_ekfac
from ddm_jax.estimators.encoded_ensemble import make_encoded_ensemble as make_encoded_ensemble
from ddm_jax.estimators.forward_matching import make_forward_matching as make_forward_matching
from ddm_jax.estimators.gauss_newton import make_gauss_newton as make_gauss_newton
from ddm_jax.estimators.grad_cos import make_grad_cos as make_grad_cos
from ddm_jax.estimators.grad_dot import make_grad_dot as make_grad_dot
from ddm_jax.estimators.group_size import make_group_size as make_group_size
from ddm_jax.estimators.in_run_shapley import make_in_run_shapley as make_in_run_shapley
from ddm_jax.estimators.influence_arnoldi import make_influence_arnoldi as make_influence_arnoldi
from ddm_jax.estimators.influence_cg import make_influence_cg as make_influence_cg
from ddm_jax.estimators.influence_exact import make_influence_exact as make_influence_exact
from ddm_jax.estimators.influence_lissa import make_influence_lissa as make_influence_lissa
from ddm_jax.estimators.influence_second_order import (
    make_influence_second_order as make_influence_second_order,
)
from ddm_jax.estimators.knn_shapley import make_knn_shapley as make_knn_shapley
from ddm_jax.estimators.merging import make_merging as make_merging
from ddm_jax.estimators.metagradient import make_metagradient as make_metagradient
from ddm_jax.estimators.mirrored_influence import make_mirrored_influence as make_mirrored_influence
from ddm_jax.estimators.pools import corrected as corrected
from ddm_jax.estimators.random_scores import make_random as make_random
from ddm_jax.estimators.representation import make_representation as make_representation
from ddm_jax.estimators.representer import make_representer as make_representer
from ddm_jax.estimators.retraining import make_retraining as make_retraining
from ddm_jax.estimators.source import make_source as make_source
from ddm_jax.estimators.synset_influence import make_synset_influence as make_synset_influence
from ddm_jax.estimators.tracin import make_tracin as make_tracin
from ddm_jax.estimators.trak import make_trak as make_trak
from ddm_jax.estimators.untrac import make_untrac as make_untrac
from ddm_jax.estimators.untrac_inverse import make_untrac_inverse as make_untrac_inverse
from ddm_jax.estimators.value_network import make_value_network as make_value_network

# Every method by its name, as its factory is called.
ESTIMATORS = {
    name.removeprefix("make_"): make
    for name, make in list(globals().items())
    if name.startswith("make_")
}
