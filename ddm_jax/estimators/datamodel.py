"""Datamodels: outputs of retrained subsets, regressed on who was in them."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from ddm_jax.checks import check_choice, check_number
from ddm_jax.estimators.subset_networks import make_subset_estimator
from ddm_jax.train import Train
from ddm_jax.types import Array, Estimator, Task

REGRESSIONS = ("ridge", "lasso")


def make_datamodel(
    task: Task,
    train: Train,
    *,
    subsets: int = 100,
    regression: str = "ridge",
    penalty: float = 1e-2,
) -> Estimator:
    """Make the linear datamodel of Ilyas et al., 2022, arXiv 2202.00622.

    Networks are trained on random halves of the groups when fitting; the score minimises
    `(1/2R) sum_r (output_r - b - masks_r s)^2 + penalty * R(s)` for each query, with outputs in
    units of their standard deviation and `R(s) = |s|^2 / 2` (ridge) or `|s|_1` (lasso, the
    paper's). As every mask keeps half of the groups, a shift of all effects changes nothing:
    ridge centres them, lasso takes their median for zero.

    Args:
        subsets: R, networks to train, at least 2.
        regression: "ridge" or "lasso".
        penalty: positive.

    Raises:
        ValueError: for a setting out of range.
    """
    check_choice("regression", regression, REGRESSIONS)
    check_number("penalty", penalty, above=0)
    solve = ridge if regression == "ridge" else lasso

    def regress(masks: Array, outputs: Array) -> Array:
        spread = jnp.maximum(jnp.std(outputs, 0), 1e-12)
        return solve(masks - masks.mean(0), (outputs - outputs.mean(0)) / spread, penalty) * spread

    return make_subset_estimator(task, train, regress, subsets=subsets, method="datamodel")


def ridge(masks: Array, outputs: Array, penalty: float) -> Array:
    """Minimise `|outputs - masks s|^2 / 2R + penalty |s|^2 / 2` over s `[K, Q]`, in dual form."""
    count = len(masks)
    gram = masks @ masks.T / count + penalty * jnp.eye(count, dtype=outputs.dtype)
    return masks.T @ jnp.linalg.solve(gram, outputs) / count


def lasso(masks: Array, outputs: Array, penalty: float, iterations: int = 500) -> Array:
    """Minimise `|outputs - masks s|^2 / 2R + penalty |s|_1` over s `[K, Q]`, by FISTA.

    Beck & Teboulle, 2009.
    """
    count = len(masks)
    # The largest curvature: at most the largest row sum of the smaller Gram matrix.
    gram = masks @ masks.T / count if count < masks.shape[1] else masks.T @ masks / count
    rate = 1 / jnp.max(jnp.sum(jnp.abs(gram), 1))

    def step(carry, _):
        scores, ahead, t = carry
        slope = masks.T @ (masks @ ahead - outputs) / count
        moved = ahead - rate * slope
        new = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - rate * penalty, 0.0)
        later = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        return (new, new + (t - 1) / later * (new - scores), later), None

    zeros = jnp.zeros_like(masks.T @ outputs)
    start = (zeros, zeros, jnp.ones((), zeros.dtype))
    return lax.scan(step, start, length=iterations)[0][0]
