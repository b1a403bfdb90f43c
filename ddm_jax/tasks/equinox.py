"""An equinox module, which maps one example, as a `Model` of batches.

Imported only where a model is one: equinox is no dependency.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from ddm_jax.tasks.model import Model, arguments_of, flags_of
from ddm_jax.tasks.paths import leaves_by_path, nested, put
from ddm_jax.types import Array, Params, length


def equinox_model(model: eqx.Module, fresh: Callable[[Array], eqx.Module] | None) -> Model:
    """A module whose floating-point arrays learn; all else is closed over.

    Args:
        model: where `fresh` is None its values are where every training starts.
        fresh: key -> another one of the same structure.

    Raises:
        ValueError: for a module with state, such as a BatchNorm.
    """
    is_state = lambda node: isinstance(node, eqx.nn.StateIndex)  # noqa: E731
    if any(map(is_state, jax.tree.leaves(model, is_leaf=is_state))):
        raise ValueError(
            f"{type(model).__name__} has state, such as the statistics of a BatchNorm, and a "
            "per-example gradient must not depend on other examples: use GroupNorm or LayerNorm"
        )
    training, still = flags_of(model)
    takes = arguments_of(model)
    start, quiet = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array)
    moving = eqx.partition(eqx.nn.inference_mode(model, value=False), eqx.is_inexact_array)[1]

    begin = nested(leaves_by_path(start)) if fresh is None else None
    like = jax.eval_shape(lambda: start)  # no copy of the parameters is kept beside those in use

    def init(key: Array) -> Params:
        if fresh is None:
            return begin
        return nested(leaves_by_path(eqx.filter(fresh(key), eqx.is_inexact_array)))

    def make(params: Params, static: Any) -> Any:
        return eqx.combine(put(like, params), static)

    def forward(params: Params, x: Any, **how: Any) -> Array:
        made = make(params, quiet)
        if "key" in takes and takes["key"].default is inspect.Parameter.empty:
            how["key"] = jax.random.key(0)  # asked for, and in inference of no use
        return jax.vmap(lambda one: made(one, **still, **how))(x)

    def features(params: Params, x: Any) -> Array:
        return forward(params, x, return_features=True)

    def train_forward(params: Params, x: Any, key: Array) -> Array:
        made = make(params, moving)
        if "key" not in takes:
            return jax.vmap(lambda one: made(one, **training))(x)
        keys = jax.random.split(key, length(x))
        return jax.vmap(lambda one, key: made(one, key=key, **training))(x, keys)

    # Every layer of equinox's own takes a key; those that use one can be told not to.
    own = type(model).__module__.startswith("equinox.")
    is_random = bool(training) or ("key" in takes and not (own and _same(quiet, moving)))
    return Model(
        init=init,
        forward=forward,
        train_forward=train_forward if is_random else None,
        features=features if "return_features" in takes else None,
    )


def _same(one: Any, other: Any) -> bool:
    return bool(eqx.tree_equal(one, other))
