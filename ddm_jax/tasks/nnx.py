"""A flax NNX module as a `Model`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ddm_jax.tasks.model import TRAINING, Model, arguments_of, flags_of
from ddm_jax.tasks.paths import nested
from ddm_jax.types import Array, Params

REMEDY = (
    "and a per-example gradient must not depend on other examples: freeze it with model.eval() or "
    "use_running_average=True where it is made, or use GroupNorm or LayerNorm"
)
# The attributes by which modules know that they are trained; `train` is a method of all of them.
SWITCHES = {name: on for name, on in TRAINING.items() if name != "train"}


def nnx_model(model: nnx.Module, fresh: Callable[[Array], nnx.Module] | None, learns: Any) -> Model:
    """A module whose variables of the filter `learns` learn; all others are closed over.

    Args:
        model: its graph and its other variables are used; where `fresh` is None its values are
            where every training starts.
        fresh: key -> another one of the same graph.
        learns: a filter of NNX, default `nnx.Param`.

    Raises:
        ValueError: for a BatchNorm that is not frozen, Dropout without a key, or a filter that
            nothing passes.
    """
    learns = nnx.Param if learns is None else learns
    training, still = flags_of(model)
    takes = arguments_of(model)
    _check_modules(model, "rngs" in takes)
    quiet = _switched(model, training=False)
    graph, (start, rest) = nnx.graphdef(quiet), nnx.state(quiet, learns, ...)
    moving_graph = nnx.graphdef(_switched(model, training=True))
    if not jax.tree.leaves(start):
        kinds = sorted({type(leaf).__name__ for _, leaf in nnx.to_flat_state(rest)})
        raise ValueError(f"trainable={learns!r} is none of the model's variables: {kinds}")

    begin = as_params(start) if fresh is None else None
    like = jax.eval_shape(lambda: start)  # no copy of the parameters is kept beside those in use

    def init(key: Array) -> Params:
        return begin if fresh is None else as_params(nnx.state(fresh(key), learns))

    def run(graph: Any, params: Params, rest: Any, x: Any, **how: Any) -> Any:
        # Variables of this trace, which the model may change: random streams count their draws.
        learnt, others = (jax.tree.map(lambda leaf: leaf, each) for each in (like, rest))
        nnx.replace_by_pure_dict(learnt, params)
        made = nnx.merge(graph, learnt, others)
        before = _statistics(made)
        found = made(x, **how)
        if any(a is not b for a, b in zip(before, _statistics(made), strict=True)):
            raise ValueError(f"the model trains the statistics of its BatchNorm, {REMEDY}")
        return found

    def forward(params: Params, x: Any) -> Array:
        return run(graph, params, rest, x, **still)

    def features(params: Params, x: Any) -> Array:
        return run(graph, params, rest, x, return_features=True, **still)

    def train_forward(params: Params, x: Any, key: Array) -> Array:
        ours, theirs = jax.random.split(key)
        how: dict[str, Any] = {"rngs": nnx.Rngs(theirs)} if "rngs" in takes else {}
        return run(moving_graph, params, seeded(rest, ours), x, **training, **how)

    is_random = bool(training) or "rngs" in takes or graph != moving_graph
    return Model(
        init=init,
        forward=forward,
        train_forward=train_forward if is_random else None,
        features=features if "return_features" in takes else None,
    )


def as_params(state: nnx.State) -> dict[str, Any]:
    """The values of variables as a plain dict of dicts, by the names of their modules."""
    flat = nnx.to_flat_state(state)
    return nested({tuple(map(str, path)): leaf.get_value() for path, leaf in flat})


def put_values(model: nnx.Module, params: Params) -> nnx.Module:
    """A copy of the model with other values of some variables."""
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def seeded(state: nnx.State, key: Array) -> nnx.State:
    """The variables with the keys of all random streams drawn from a key."""
    flat = dict(nnx.to_flat_state(state))
    for number, (path, leaf) in enumerate(flat.items()):
        if isinstance(leaf, nnx.RngKey):
            drawn, shape = jax.random.fold_in(key, number), leaf.get_value().shape
            flat[path] = leaf.replace(jax.random.split(drawn, shape) if shape else drawn)
    return nnx.from_flat_state(flat)


def _switched(model: nnx.Module, training: bool) -> nnx.Module:
    """A copy of the model in training, or not, with the statistics of its BatchNorm as they are."""
    copy = nnx.clone(model)
    copy.eval()
    for _, module in list(nnx.iter_modules(copy)):
        trains = training and not (isinstance(module, nnx.Dropout) and module.rate == 0)
        for name, on in SWITCHES.items():
            if isinstance(getattr(module, name, 0), bool | None):
                setattr(module, name, on if trains else not on)
    return copy


def _statistics(model: nnx.Module) -> list[Any]:
    return jax.tree.leaves(nnx.state(model, nnx.BatchStat))


def _check_modules(model: nnx.Module, takes_rngs: bool) -> None:
    for path, module in nnx.iter_modules(model):
        name = "/".join(map(str, path)) or type(model).__name__
        if getattr(module, "use_running_average", None) is False:
            raise ValueError(f"{name} would train the statistics of its BatchNorm, {REMEDY}")
        if isinstance(module, nnx.Dropout) and module.rate and not (module.rngs or takes_rngs):
            raise ValueError(
                f"{name} is dropout ({module.rate:g}) without a key: make it with "
                "nnx.Dropout(rate, rngs=rngs), or give the model's __call__ an argument rngs"
            )
