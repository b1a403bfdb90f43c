"""How the updates go: their settings, what stands where none is given, and their optimiser."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from pydantic import Field

from ddm_jax.checks import settings
from ddm_jax.rates import Preconditioner, precondition
from ddm_jax.types import Array

# Of the updates where nobody chose: neither `tuning.tune` nor the user.
UNCHOSEN: dict[str, Any] = {
    "steps": 100,
    "batch": 250,
    "rate_factor": 1.0,
    "schedule": "constant",
    "momentum": 0.9,
    "rewind": 0.0,
}


@settings("online")
class UpdateSettings:
    """Online: the updates without what is left out; see `make_finetune`.

    None leaves a setting to be chosen on a few retrained subsets (`tuning`), as `ddm run` does;
    where nothing chooses it is that of `settled`.

    - `steps`, each of a `batch` of the items of all groups; what one of them costs does not grow
      with the number of groups.
    - `optimizer`: "sgd"; "preconditioned", SGD with a scale for each parameter, taken over from
      the training's optimiser (`rates.adaptive_scale`); or "deflated", SGD whose gradient is
      shrunk where the curvature is largest, so that few steps do (`rates.deflation`). Where nothing
      chooses it follows the training: "preconditioned" after one of Adam's kind whose moments were
      kept, else "sgd". Only "preconditioned" keeps a decoupled weight decay.
    - `learning_rate`: with Nesterov `momentum`; None is `rate_factor` times half of what is stable
      on the synset (`rates.stable_rate`). `schedule`: it stays, or goes down to zero along a
      "cosine". That is better with a rewound start where the training's own went down and did not
      come to rest.
    - `rewind`: start this part of the training before its end, `trajectory_point`.
    """

    update: Literal["retain", "forget"] = "retain"
    steps: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] | None = None
    optimizer: Literal["sgd", "preconditioned", "deflated"] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    rate_factor: Annotated[float, Field(gt=0, le=10)] | None = None
    schedule: Literal["constant", "cosine"] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    rewind: Annotated[float, Field(ge=0, lt=1)] | None = None


class Settled(NamedTuple):
    """Settings of which none is left open but the rate."""

    update: str
    steps: int
    batch: int
    optimizer: str | None
    learning_rate: float | None
    rate_factor: float
    schedule: str
    momentum: float
    rewind: float


def settled(update: UpdateSettings) -> Settled:
    """The settings with UNCHOSEN in place of what nobody chose."""
    given = {name: getattr(update, name) for name in Settled._fields}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Settled(**{"optimizer": None, "learning_rate": None} | UNCHOSEN | chosen)


class Pace(NamedTuple):
    """How fast the updates go."""

    rates: Array  # [S], a step's
    momentum: Array


def pace_of(update: Settled, rate: Array | float) -> Pace:
    """A rate on the schedule of some settings, and their momentum."""
    steps, rate = jnp.arange(update.steps), jnp.asarray(rate, jnp.float32)
    share = jnp.ones(len(steps), jnp.float32)
    if update.schedule == "cosine":
        share = optax.cosine_decay_schedule(1.0, len(steps))(steps)
    return Pace(rate * share, jnp.asarray(update.momentum, jnp.float32))


def update_rule(
    pace: Pace, preconditioner: Preconditioner | None = None, decoupled: Array | float = 0.0
) -> optax.GradientTransformation:
    """The optimiser of the updates: Nesterov SGD at a pace, of preconditioned gradients."""
    rates, momentum = pace
    trace = optax.trace(decay=momentum, nesterov=True)
    rule = optax.chain(trace, optax.scale_by_learning_rate(lambda count: rates[count]))
    if preconditioner is None:
        return rule
    return optax.chain(precondition(preconditioner, decoupled), rule)
