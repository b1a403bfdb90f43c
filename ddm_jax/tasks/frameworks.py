"""Which framework a model is of, and what may be given with it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddm_jax.tasks.linen import linen_model
from ddm_jax.tasks.model import Model, as_example
from ddm_jax.types import Array, Params

OPTIONS = {
    "init": "a function apply(params, x)",
    "params": "a function apply(params, x)",
    "frozen_state": "a flax.linen module",
    "trainable": "an NNX module (`ddm.freeze` does it for any)",
}


def as_model(
    model: Any,
    input_shape: Any,
    init: Callable[[Array], Params] | None,
    params: Params | None,
    frozen_state: dict[str, Any] | None,
    trainable: Any,
) -> Model:
    """A model of any framework, once what is given fits it."""
    given = {
        "init": init is not None,
        "params": params is not None,
        "frozen_state": frozen_state is not None,
        "trainable": trainable is not None,
    }

    def only(*allowed: str) -> None:
        for name, there in given.items():
            if there and name not in allowed:
                raise ValueError(f"{name}= is for {OPTIONS[name]}, and the model is {_name(model)}")

    if isinstance(model, nn.Module):
        only("frozen_state")
        if input_shape is None:
            raise ValueError(
                f"{_name(model)} is a flax.linen module: input_shape is needed, the shape of one "
                "example such as (28, 28, 1)"
            )
        return linen_model(model, as_example(input_shape), frozen_state)
    if given["init"] or given["params"]:
        only("init", "params")
        if not callable(model) or (given["init"] and given["params"]):
            raise ValueError(
                f"{_name(model)} with init= or params= must be a function apply(params, x), and "
                "one of the two is given"
            )
        start = jax.tree.map(jnp.asarray, params)
        return Model(init=init or (lambda key: start), forward=model)
    made, fresh = (model, None) if _framework(model) else _made(model)
    if _framework(made) == "nnx":
        from ddm_jax.tasks.nnx import nnx_model

        only("trainable")
        return nnx_model(made, fresh, trainable)
    from ddm_jax.tasks.equinox import equinox_model

    only()
    return equinox_model(made, fresh)


def _framework(model: Any) -> str | None:
    """Whose module it is; neither is imported where nobody has."""
    nnx, equinox = (sys.modules.get(name) for name in ("flax.nnx", "equinox"))
    if nnx is not None and isinstance(model, nnx.Module):
        return "nnx"
    return "equinox" if equinox is not None and isinstance(model, equinox.Module) else None


def _made(maker: Any) -> tuple[Any, Callable[[Array], Any]]:
    """What a function of `nnx.Rngs` or of a key makes, and that function as one of a key.

    Raises:
        ValueError: where neither makes a module.
    """
    names = _argument_names(maker)
    ways = [("rngs", "flax.nnx", "nnx"), ("key", "equinox", "equinox")]
    told = [] if callable(maker) else [f"it is a {type(maker).__name__}"]
    if "rngs" in names:  # a function may import what it makes when it is called
        importlib.import_module("flax.nnx")
    for by, package, framework in sorted(ways, key=lambda way: way[0] not in names):
        if not callable(maker) or package not in sys.modules:
            continue
        fresh = _by_key(maker, by, by in names)
        try:
            made = fresh(jax.random.key(0))
        except Exception as error:  # whatever a maker raises that wants something else
            told.append(str(error).strip().partition("\n")[0] or type(error).__name__)
            continue
        if _framework(made) == framework:
            return made, fresh
        told.append(f"it makes a {type(made).__name__}")
    if isinstance(maker, type) and issubclass(maker, nn.Module):  # which no key makes
        told = [f"pass a module, {_name(maker)}(...)"]
    told = told or ["it makes none"]
    raise ValueError(
        f"{_name(maker)} is no module of flax or equinox, nor a function of nnx.Rngs or of a key "
        f"that makes one ({'; '.join(told)}); a function apply(params, x) needs init= or params="
    )


def _argument_names(maker: Any) -> set[str]:
    # A class's own, as that of NNX's metaclass says nothing.
    call = getattr(maker, "__init__") if isinstance(maker, type) else maker  # noqa: B009
    try:
        return set(inspect.signature(call).parameters)
    except (TypeError, ValueError):  # of a builtin
        return set()


def _by_key(maker: Any, by: str, named: bool) -> Callable[[Array], Any]:
    """A function of "rngs" or of a "key" as one of a key; by name where it has that name."""

    def fresh(key: Array) -> Any:
        value = sys.modules["flax.nnx"].Rngs(key) if by == "rngs" else key
        return maker(**{by: value}) if named else maker(value)

    return fresh


def _name(model: Any) -> str:
    return getattr(model, "__name__", None) or type(model).__name__
