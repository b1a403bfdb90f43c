"""Optimisers by name and settings: checked, made with optax, and what they keep of the gradients.

    spec = as_optimizer("adamw", weight_decay=0.1)     what can be saved, hashed and compared
    rule = transformation(spec, schedule)              what takes the steps

Any function of optax whose first argument is `learning_rate` is an optimiser. A transformation of
one's own goes by a name that only its user can make again (`Optimizer.own`): methods that must take
its steps once more refuse it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddm_jax.checks import check_integer, check_number
from ddm_jax.types import Optimizer, Params

USUAL = ("sgd", "adam", "adamw", "lion", "rmsprop", "adagrad", "adafactor", "lamb")

# States of optax that hold a running mean of squared gradients, by whose root it divides.
SQUARES = ("ScaleByAdamState", "ScaleByRmsState", "ScaleByRmsWithCountState")
# Of those that decay weights by themselves: they add it to the gradient, before they scale that.
INTO_THE_GRADIENT = ("lars", "adadelta")
MAXIMA = ("adamax", "adamaxw")  # keep the largest gradient there, and call it the same


def as_optimizer(
    optimizer: Any = "sgd",
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    clip: float | None = None,
    accumulate: int = 1,
    name: str | None = None,
) -> Optimizer:
    """Check an optimiser, and say it by its name and settings.

    Args:
        optimizer: the name of an optax function ("adamw"), a dict of a name and its settings
            (`{"name": "adamw", "b1": 0.8}`), an `Optimizer`, or an `optax.GradientTransformation`
            of one's own, which needs a `name`.
        momentum: of an optimiser that has such a setting, in [0, 1).
        weight_decay: at least 0; a setting of the optimiser where its function has one of this
            name (decoupled, as in AdamW; 0 means none, whatever optax's default is). Where it has
            none the decay is a part of the objective, see `coupled_decay`.
        clip: the largest norm of a step's gradient, above 0; None does not clip.
        accumulate: steps whose mean gradient makes one update, at least 1.
        name: of a transformation of one's own.

    Raises:
        ValueError: for an unknown name or setting, a momentum that the optimiser does not have, a
            setting given twice, or an optimiser that needs more than gradients (lbfgs).
    """
    check_number("momentum", momentum, least=0, below=1)
    check_number("weight_decay", weight_decay, least=0)
    check_integer("accumulate", accumulate)
    if clip is not None:
        clip = check_number("clip", clip, above=0)
    if isinstance(optimizer, optax.GradientTransformation):
        if not isinstance(name, str) or not name:
            raise ValueError(
                "an optax transformation needs a name to be told by: pass name='mine', or give the "
                "optimiser by its name in optax, such as optimizer='adamw'"
            )
        if momentum:
            raise ValueError(
                f"momentum={momentum!r}; the transformation {name!r} has its own: leave it out"
            )
        return Optimizer(name, clip=clip, accumulate=accumulate, own=True)
    if name is not None:
        raise ValueError(
            f"name={name!r} is for an optax.GradientTransformation; {optimizer!r} has its own name"
        )
    given: dict[str, Any]
    if isinstance(optimizer, Optimizer):
        if optimizer.own:
            raise ValueError(
                f"the optimiser {optimizer.name!r} is its user's own: pass the "
                "optax.GradientTransformation together with name="
            )
        kind, given = optimizer.name, dict(optimizer.settings)
        clip = _once("clip", optimizer.clip, clip, None)
        accumulate = _once("accumulate", optimizer.accumulate, accumulate, 1)
    elif isinstance(optimizer, Mapping):
        given = dict(optimizer)
        kind = given.pop("name", None)
    else:
        kind, given = optimizer, {}
    known = _known_settings(kind)
    for setting, value in given.items():
        _check_setting(kind, setting, value, known)
    if momentum and "momentum" not in known:
        raise ValueError(f"momentum={momentum!r}; {kind} has no momentum: leave it 0")
    if momentum:
        given["momentum"] = _once("momentum", given.get("momentum"), momentum, None)
    if "weight_decay" in known:
        given["weight_decay"] = _once(
            "weight_decay", given.get("weight_decay"), float(weight_decay), 0.0
        )
        check_number("weight_decay", given["weight_decay"], least=0)
    if kind == "sgd":
        check_number("momentum", given.get("momentum") or 0.0, least=0, below=1)
        given = {name: value for name, value in given.items() if value not in (None, 0.0)}
    plain = {key: getattr(value, "item", lambda v=value: v)() for key, value in given.items()}
    spec = Optimizer(kind, tuple(sorted(plain.items())), clip, accumulate)
    if spec != Optimizer():
        _check_usable(spec)
    return spec


def setting(spec: Optimizer, name: str) -> Any:
    """A setting as it was given, or else optax's default; None where there is no such setting."""
    parameter = {} if spec.own else _known_settings(spec.name)
    return spec.get(name, parameter[name].default if name in parameter else None)


def coupled_decay(spec: Optimizer, weight_decay: float) -> float:
    """The factor of `|theta|^2 / 2` in the objective: none where the optimiser decays beside it."""
    if not _decays(spec):
        return float(weight_decay)
    return float(spec.get("weight_decay", 0.0)) if spec.name in INTO_THE_GRADIENT else 0.0


def decoupled_decay(spec: Optimizer) -> float:
    """The part of the parameters that each step takes off, in units of its rate, as AdamW does."""
    if not _decays(spec) or spec.name in INTO_THE_GRADIENT:
        return 0.0
    return float(spec.get("weight_decay", 0.0))


def _decays(spec: Optimizer) -> bool:
    """Whether optax's function decays weights by itself."""
    return not spec.own and "weight_decay" in _known_settings(spec.name)


def transformation(
    spec: Optimizer,
    learning_rate: Any,
    weight_decay: Any = 0.0,
    own: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Make what takes the steps: clipping, the objective's weight decay, and the optimiser.

    The norm that is clipped is that of the loss's gradient, without the decay. With `accumulate`
    it is that of the mean of so many gradients, and `learning_rate` is a function of the updates.

    Args:
        learning_rate: a number or a function of the step; either may be traced.
        weight_decay: of the objective (`coupled_decay`); may be traced.
        own: the transformation of a spec that is its user's own; its learning rate is its own too.

    Raises:
        ValueError: for a spec of one's own without the transformation.
    """
    if spec.own and own is None:
        raise ValueError(
            f"the optimiser {spec.name!r} is its user's own, and cannot be made from its name"
        )
    settings = dict(spec.settings)
    if spec.name == "sgd" and not spec.own:
        rule = sgd(learning_rate, settings.pop("momentum", 0.0), weight_decay, **settings)
    else:
        rule = getattr(optax, spec.name)(learning_rate, **settings) if own is None else own
        none = isinstance(weight_decay, int | float) and weight_decay == 0
        if not none and not _decays(spec):
            rule = optax.chain(optax.add_decayed_weights(weight_decay), rule)
    if spec.clip is not None:
        rule = optax.chain(optax.clip_by_global_norm(spec.clip), rule)
    if spec.accumulate > 1:  # in the widest type there is
        several = optax.MultiSteps(rule, spec.accumulate, accumulator_dtype=float)
        rule = several.gradient_transformation()
    return rule


def sgd(
    learning_rate: Any, momentum: Any = 0.0, weight_decay: Any = 0.0, **others: Any
) -> optax.GradientTransformation:
    """Heavy-ball SGD on the loss and `weight_decay/2 |theta|^2`; numbers may be traced.

    `learning_rate` is a number or a function of the step; `others` are of `optax.sgd`.
    """
    still = isinstance(momentum, int | float) and momentum == 0
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=None if still else momentum, **others),
    )


def keeps_squares(rule: optax.GradientTransformation, params: Params) -> bool:
    """Whether an optimiser divides by the root of a mean of squared gradients, as Adam does."""
    return _squares(jax.eval_shape(rule.init, params), params) is not None


def second_moments(spec: Optimizer, state: Any, params: Params) -> Params | None:
    """The running means of squared gradients in an optax state, corrected for their start.

    `nu / (1 - b2^n)` after n updates, as Adam divides by its root; leaves like those of `params`.
    None of an optimiser that keeps none: not of Adam's kind. Of a transformation of one's own
    `b2` is taken to be optax's default, .999: after a few thousand updates it does not matter.
    """
    found = None if spec.name in MAXIMA else _squares(state, params)
    if found is None:
        return None
    if "count" not in found._fields:
        return found.nu  # it divides by what it has
    decay = next(
        (value for name in ("b2", "decay") if (value := setting(spec, name)) is not None), 0.999
    )
    seen = 1 - decay ** jnp.maximum(found.count, 1).astype(jnp.float32)
    return jax.tree.map(lambda nu: (nu / seen).astype(nu.dtype), found.nu)


def _squares(state: Any, params: Params) -> Any:
    """The one state of `SQUARES` within a state, where it is of all the parameters."""
    found = list(_states(state))
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    if len(found) != 1 or [leaf.shape for leaf in jax.tree.leaves(found[0].nu)] != shapes:
        return None
    return found[0]


def _states(state: Any) -> Iterator[Any]:
    if type(state).__name__ in SQUARES:
        yield state
    elif isinstance(state, Mapping):
        for each in state.values():
            yield from _states(each)
    elif isinstance(state, list | tuple):
        for each in state:
            yield from _states(each)


def _known_settings(name: Any) -> dict[str, inspect.Parameter]:
    """What optax's function of that name takes beside the learning rate.

    Raises:
        ValueError: where it is none of an optimiser.
    """
    made: Any = getattr(optax, name, None) if isinstance(name, str) else None
    usable = callable(made) and not isinstance(made, type)
    parameters = dict(inspect.signature(made).parameters) if usable else {}
    if next(iter(parameters), None) != "learning_rate":
        raise ValueError(
            f"optimizer={name!r}; it must be the name of an optimiser of optax, such as "
            f"{', '.join(USUAL)}, or an optax.GradientTransformation with name="
        )
    del parameters["learning_rate"]
    return parameters


def _check_setting(
    optimizer: str, name: str, value: Any, known: dict[str, inspect.Parameter]
) -> None:
    if name == "learning_rate":
        raise ValueError(
            f"learning_rate={value!r} among the settings of {optimizer}: pass it beside the "
            "optimiser"
        )
    if name not in known:
        raise ValueError(f"{name}={value!r}; the settings of {optimizer} are {', '.join(known)}")
    number = isinstance(value, bool | int | float | np.number)
    if not number and not isinstance(value, str) and value is not None:
        raise ValueError(
            f"{name}={value!r}; a setting of {optimizer} must be a number, true, false or text; "
            "pass another as an optax.GradientTransformation with name="
        )
    if isinstance(value, float | np.floating) and not np.isfinite(value):
        raise ValueError(f"{name}={value!r}; it must be a finite number")


def _once(name: str, first: Any, second: Any, unset: Any) -> Any:
    """The one of two values that is set.

    Raises:
        ValueError: where both are, and differ.
    """
    if first in (None, unset):
        return second
    if second not in (None, unset, first):
        raise ValueError(
            f"{name} is {first!r} in optimizer= and {second!r} beside it: give it once"
        )
    return first


def _check_usable(spec: Optimizer) -> None:
    """Check that optax makes the optimiser, and that a step needs the gradient alone."""

    def probe(params: Params) -> Any:
        rule = transformation(spec, 0.1)
        return rule.update(params, rule.init(params), params)

    try:
        jax.eval_shape(probe, jax.ShapeDtypeStruct((2, 2), np.float32))
    except Exception as error:  # whatever optax raises
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"optimizer={spec.name!r} cannot train here with these settings ({first}); it must "
            f"need no more than gradients and parameters, such as {', '.join(USUAL)}"
        ) from error
