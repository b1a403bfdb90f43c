"""The recipes that updates are chosen from, and what each costs.

No fixed recipe serves every training (see `tuning`). A recipe is what is not the cost: optimiser,
schedule, start, momentum and rate. Its steps and their batch follow from what an answer may cost.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from ddm_jax.estimators.ddm import DDMState
from ddm_jax.rates import CURVATURE_ITEMS, LANCZOS, deflation_rank
from ddm_jax.synset import batch_size
from ddm_jax.updates import UpdateSettings, settled

# Each kind of optimiser has its own.
STEPS_ALIKE: tuple[dict[str, Any], ...] = (
    {"schedule": "constant", "rewind": 0.0, "momentum": 0.95, "rate_factor": 1.0},
    {"schedule": "constant", "rewind": 0.0, "momentum": 0.9, "rate_factor": 0.5},
    {"schedule": "constant", "rewind": 0.75, "momentum": 0.95, "rate_factor": 1.0},
    {"schedule": "constant", "rewind": 0.75, "momentum": 0.95, "rate_factor": 0.5},
    {"schedule": "cosine", "rewind": 0.75, "momentum": 0.9, "rate_factor": 1.0},
    {"schedule": "cosine", "rewind": 0.75, "momentum": 0.9, "rate_factor": 2.0},
    {"schedule": "cosine", "rewind": 0.9, "momentum": 0.9, "rate_factor": 1.0},
    {"schedule": "cosine", "rewind": 0.9, "momentum": 0.9, "rate_factor": 2.0},
    # Nearly a retraining: where one network's mistakes are its own seed's, and not the data's.
    {"schedule": "cosine", "rewind": 0.95, "momentum": 0.9, "rate_factor": 0.5},
    {"schedule": "cosine", "rewind": 0.95, "momentum": 0.9, "rate_factor": 1.0},
    # Where the curvature grows along the way, as in a product of factors, all others diverge.
    {"schedule": "constant", "rewind": 0.0, "momentum": 0.9, "rate_factor": 0.05},
)
DEFLATED: tuple[dict[str, Any], ...] = (
    {"schedule": "constant", "rewind": 0.0, "momentum": 0.9, "rate_factor": 0.25},
    {"schedule": "constant", "rewind": 0.0, "momentum": 0.9, "rate_factor": 0.35},
    {"schedule": "constant", "rewind": 0.0, "momentum": 0.9, "rate_factor": 0.5},
    # Where many small groups make each step noisy, a rate that goes down takes the noise out.
    {"schedule": "cosine", "rewind": 0.0, "momentum": 0.9, "rate_factor": 0.5},
    {"schedule": "cosine", "rewind": 0.75, "momentum": 0.9, "rate_factor": 0.4},
    {"schedule": "cosine", "rewind": 0.75, "momentum": 0.9, "rate_factor": 0.7},
)
# Items of a step: the gradient of few is noise, and of a deflated step, which goes far, more so.
BATCH = {"sgd": 100, "preconditioned": 100, "deflated": 200}
LEAST_STEPS = 10  # or the batch gets smaller
SHARES = (0.02, 0.05, 0.1, 0.25)  # of a retraining, for which the agreement is told
CURVATURE_COST = 3.0  # example gradients of a product with one example's Hessian
MOST_CURVATURE = 2.5  # retrainings that the directions of a deflation may cost, a call
NEAR = 1.5  # times what is allowed, or a part: a cost so near it says nothing more
MUCH_MORE = 5  # times what is allowed: no cost above it is told of
# Example gradients: no cost below them is told of. Steps of a few items need rates of their own,
# which cost more to find than the steps.
LEAST_TOLD = 500


def at_cost(update: UpdateSettings, share: float, gradients: int, items: int) -> UpdateSettings:
    """Steps and batch of updates that cost a `share` of a retraining of `gradients` examples.

    What is fixed already stays. A batch is that of BATCH, or smaller where that makes fewer than
    LEAST_STEPS steps.
    """
    allowed = max(share * gradients, 1)
    batch = update.batch
    if batch is None:
        whole = BATCH[update.optimizer or "sgd"]
        batch = int(max(min(whole, items, allowed // LEAST_STEPS), 1))
        batch = batch_size(items, batch)
    steps = update.steps or max(round(allowed / batch_size(items, batch)), 1)
    return dataclasses.replace(update, batch=batch, steps=steps)


def at_share(
    update: UpdateSettings, fixed: UpdateSettings, share: float, gradients: int, items: int
) -> UpdateSettings:
    """The same recipe at another cost; what is `fixed` stays."""
    free = dataclasses.replace(update, steps=fixed.steps, batch=fixed.batch)
    return at_cost(free, share, gradients, items)


def shares(fixed: UpdateSettings, share: float, gradients: int) -> list[float]:
    """The costs at which the agreement of what was chosen is told, of so many example gradients."""
    if fixed.steps is not None:
        return [share]
    others = (
        each for each in SHARES if each <= MUCH_MORE * share and each * gradients >= LEAST_TOLD
    )
    return sorted({share, *(each for each in others if not 1 / NEAR < each / share < NEAR)})


def example_gradients(update: UpdateSettings, items: int) -> int:
    """How many gradients of an item updates take, those of what is left out among them."""
    chosen = settled(update)
    return chosen.steps * batch_size(items, chosen.batch)


def every_recipe(
    fixed: UpdateSettings, state: DDMState, items: int, gradients: int, share: float
) -> list[UpdateSettings]:
    """What there is to choose from for a pool of so many items, at one cost.

    What is `fixed` is so in each.
    """
    kinds: list[Any] = ["sgd"] if state.second_moments is None else ["preconditioned", "sgd"]
    cost = LANCZOS * min(items, CURVATURE_ITEMS) * CURVATURE_COST
    params = jax.eval_shape(
        lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), state.checkpoints
    )
    affordable = cost <= MOST_CURVATURE * gradients and deflation_rank(params)[0] > 0
    if affordable and state.second_moments is None:
        kinds.append("deflated")
    if fixed.optimizer is not None:
        kinds = [fixed.optimizer]
    found: list[UpdateSettings] = []
    for kind in kinds:
        for recipe in DEFLATED if kind == "deflated" else STEPS_ALIKE:
            free = {name: value for name, value in recipe.items() if getattr(fixed, name) is None}
            if fixed.learning_rate is not None:
                free.pop("rate_factor", None)
            update = dataclasses.replace(fixed, optimizer=kind, **free)
            update = at_cost(update, share, gradients, items)
            if update not in found:
                found.append(update)
    return found
