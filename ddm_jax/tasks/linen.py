"""A flax.linen module as a `Model`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax.errors import ModifyScopeVariableError

from ddm_jax.tasks.model import TRAINING, Model, arguments_of, flags_of
from ddm_jax.types import Array, Params

REMEDY = (
    "as a per-example gradient must not depend on other examples: pass trained statistics as "
    "frozen_state={'batch_stats': ...}, or use GroupNorm, no BatchNorm"
)


def linen_model(module: nn.Module, example: Any, frozen_state: dict[str, Any] | None) -> Model:
    """A module whose collection "params" learns; others are those of `frozen_state`, as they are.

    Raises:
        ValueError: for collections that are not frozen, or dropout that nothing switches on.
    """
    frozen = frozen_state or {}
    training, still = flags_of(module)

    def init(key: Array) -> Params:
        return module.init(key, example, **still)["params"]

    def run(params: Params, x: Any, **how: Any) -> Any:
        return module.apply({"params": params, **frozen}, x, **how)

    def forward(params: Params, x: Any) -> Array:
        return run(params, x, **still)

    def features(params: Params, x: Any) -> Array:
        return run(params, x, return_features=True, **still)

    def train_forward(params: Params, x: Any, key: Array) -> Array:
        return run(params, x, **training, rngs={"dropout": key})

    rates: list[float] = []

    def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Dropout):
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        variables = jax.eval_shape(
            lambda key: module.init(key, example, **still), jax.random.key(0)
        )
    if any(rates) and not training:
        raise ValueError(
            f"the module has dropout ({max(rates):g}) and nothing to switch it on for training; "
            f"give its __call__ an argument of one of the names {', '.join(TRAINING)}"
        )
    _check_collections(variables, frozen)
    # Our own MLP without dropout is not random.
    is_random = bool(training) and getattr(module, "dropout", None) != 0
    if is_random and frozen:
        try:
            jax.eval_shape(train_forward, variables["params"], example, jax.random.key(0))
        except ModifyScopeVariableError:
            if any(rates):
                raise ValueError(
                    f"{next(iter(training))}={next(iter(training.values()))} switches on both the "
                    "dropout and the statistics of the frozen BatchNorm; give BatchNorm "
                    "use_running_average=True"
                ) from None
            is_random = False  # the statistics alone follow the switch, and stay frozen
    return Model(
        init=init,
        forward=forward,
        train_forward=train_forward if is_random else None,
        features=features if "return_features" in arguments_of(module) else None,
    )


def _check_collections(variables: Any, frozen: dict[str, Any]) -> None:
    unknown = sorted({"params", *variables} - {"params", *frozen})
    if unknown or "params" not in variables:
        raise ValueError(
            f"the module has the collections {sorted(variables)}; only 'params' is allowed, "
            + REMEDY
        )
    extra = sorted(set(frozen) - (set(variables) - {"params"}))
    if extra:
        raise ValueError(f"frozen_state has {extra}; the module has {sorted(variables)}")
    for name, state in frozen.items():
        theirs, ours = (
            jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (state, variables[name])
        )
        if theirs != ours:
            raise ValueError(f"frozen_state[{name!r}] has the shapes {theirs}; it must have {ours}")
