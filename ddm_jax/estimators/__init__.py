"""Attribution estimators, one file a method, all of the same shape (fit, score, maybe outputs)."""

from ddm_jax.estimators.ddm import make_ddm
from ddm_jax.estimators.grad_dot import make_grad_dot
from ddm_jax.estimators.retraining import make_retraining, retraining_response

ESTIMATORS = {"ddm": make_ddm, "grad_dot": make_grad_dot, "retraining": make_retraining}

__all__ = ["ESTIMATORS", "make_ddm", "make_grad_dot", "make_retraining", "retraining_response"]
