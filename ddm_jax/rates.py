"""How fast the updates may go: what is stable on the synset, and a scale for each parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ddm_jax.gradients import flatten, hessian_products
from ddm_jax.matching import at_least_float32
from ddm_jax.synset import background_share, deal_items
from ddm_jax.types import Array, Batch, Params, Synset, Task

FLOOR = 0.3  # of the root of the mean squared gradient, see `preconditioner`


def stable_rate(
    task: Task,
    params: Params,
    synset: Synset,
    *,
    momentum: float = 0.9,
    weight_decay: Array | float = 0.0,
    step_items: int | None = None,
    scale: Params | None = None,
    decoupled: Array | float = 0.0,
    iterations: int = 20,
) -> Array:
    """Half of the highest stable learning rate of Nesterov SGD on the whole synset.

    Where the sharpest curvature is `lambda`, the method is stable up to `(2 + 2 m) /
    ((1 + 2 m) lambda)` for the momentum m (Cohen et al., "Gradient descent on neural networks
    typically occurs at the edge of stability", 2021, arXiv 2103.00065, eq. 1). `lambda` is the
    largest eigenvalue of the Hessian of the synset's objective at `params`, by power iteration,
    at the cost of about one counterfactual; where a step takes `step_items` of each group, that
    of the sharpest of their batches. Half leaves room for masks whose objective is sharper; a
    rate a few times lower leaves the answer unfinished after the same steps.

    With a `scale` for each parameter and a `decoupled` decay (`precondition`) it is the rate of the
    steps that are scaled so.
    """
    own = 1 / (jnp.sum(synset.share) + background_share(synset))
    factor = jnp.full_like(synset.share, own)
    flat = flatten(params)
    root = None if scale is None else jnp.sqrt(flatten(scale)).astype(flat.dtype)
    start = jax.random.normal(jax.random.key(0), flat.shape, jnp.float32).astype(flat.dtype)

    def curve(batch_and_mass: tuple[Batch, Array], vectors: Array) -> Array:
        if root is None:
            return hessian_products(task, params, *batch_and_mass, vectors)
        along = root * vectors
        return root * (
            hessian_products(task, params, *batch_and_mass, along) + weight_decay * along
        )

    def sharpness(batch_and_mass: tuple[Batch, Array]) -> Array:
        def step(carry, _):
            vector, _ = carry
            (curved,) = curve(batch_and_mass, vector[None])
            size = jnp.linalg.norm(curved)
            return (curved / jnp.maximum(size, 1e-12), size), None

        carry = (start / jnp.linalg.norm(start), jnp.zeros((), start.dtype))
        return lax.scan(step, carry, length=iterations)[0][1]

    sharpest = jnp.max(lax.map(sharpness, deal_items(task, synset, factor, step_items, own)))
    limit = (2 + 2 * momentum) / (1 + 2 * momentum)
    return 0.5 * limit / jnp.maximum(sharpest + (weight_decay if root is None else decoupled), 1e-3)


def preconditioner(second_moments: Params) -> Params:
    """The scale of each parameter's steps, `1 / (sqrt(v) + floor)`, leaves as the parameters.

    v are the running means of squared gradients by whose roots the training divided (Adam).
    `floor` is FLOOR of the root of their mean over all parameters: where the training saw no
    gradient, as at pixels that are always black, what little the synset has there is no reason for
    a step a thousand times as long.
    """
    moments = at_least_float32(second_moments)
    count = sum(leaf.size for leaf in jax.tree.leaves(moments))
    mean = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(moments)) / count
    floor = FLOOR * jnp.sqrt(mean) + 1e-12
    return jax.tree.map(lambda leaf: 1 / (jnp.sqrt(leaf) + floor), moments)


def precondition(scale: Params, decoupled: Array | float) -> optax.GradientTransformation:
    """Multiply gradients by a fixed scale, and add a decoupled weight decay, as AdamW does."""

    def update(gradient: Params, params: Params) -> Params:
        return jax.tree.map(
            lambda g, s, p: (s * g + decoupled * p).astype(g.dtype), gradient, scale, params
        )

    return optax.stateless(update)
