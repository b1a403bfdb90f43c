"""Core types: immutable pytrees that flow between the stages.

Letters used in every docstring and shape annotation:
N training points, Q queries, K groups, M synset items a group, C classes, P parameters,
T checkpoints, S steps, B batch, R subset masks, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Leaf = Any  # an array of either kind, jax.Array or numpy.ndarray, or its ShapeDtypeStruct
Params = Any  # any pytree of floating-point arrays
State = Any  # whatever an estimator keeps between fit and score


class Batch(NamedTuple):
    """Examples with label distributions (one-hot for real data, soft for synsets)."""

    x: Leaf  # [B, ...] float32
    y: Leaf  # [B, C] float32, rows sum to one


class Task(NamedTuple):
    """A learning problem as pure functions, closed over and never traced.

    Build one with `ddm_jax.classification` from a flax module, or by hand from any function of
    a params pytree.
    """

    init: Callable[[Array], Params]  # key -> params
    apply: Callable[[Params, Array], Array]  # params, x [B, ...] -> logits [B, C]
    loss: Callable[[Params, Batch], Array]  # params, batch -> [B]
    output: Callable[[Params, Batch], Array]  # params, batch -> [B]: what is explained
    features: Callable[[Params, Array], Array] | None = None  # params, x -> [B, F]
    # params, batch, key -> [B]: the loss that training descends on where it is random (dropout,
    # augmentation). Everything else uses `loss`.
    training_loss: Callable[[Params, Batch, Array], Array] | None = None


class TrainRun(NamedTuple):
    """A finished training: all that trajectory methods need.

    `checkpoints` are the parameters after steps S, S - e, S - 2e, ... for the spacing e, in
    the order of training, so the last one equals `params`.
    """

    key: Array
    params: Params
    checkpoints: Params  # leaves [T, ...]
    learning_rates: Array  # [S]
    rows: Array  # [S, B] int32, the training rows of each batch; -1 where it is not full
    losses: Array  # [S] weighted mean loss of each batch, before its update


class Synset(NamedTuple):
    """K groups of M synthetic items; group k stands for the training points of group k.

    Its gradient is `h_k(theta) = share_k * sum_m mass_km * grad loss(theta; x_km, softmax(y_km))`
    and is distilled to equal `g_k(theta) = (1/N) sum_{i in D_k} grad loss_i(theta)`.
    """

    x: Leaf  # [K, M, ...] inputs
    y: Leaf  # [K, M, C] label logits
    mass: Leaf  # [K, M] signed weights, of order 1/M
    share: Leaf  # [K] the part of the training set in the group, |D_k| / N


def take(tree: Any, index: Any) -> Any:
    """Index the leading axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


class Estimator(NamedTuple):
    """An attribution method as two pure functions.

    `fit(key, run, data, groups) -> state` is offline; `score(state, query) -> [K, Q]` is online,
    positive where having the group raises the query's output.

    A method that predicts what happens when many groups are gone *together* has a third one,
    `outputs(state, masks [R, K], query) -> [R, Q]`, up to a constant a query. The others are
    additive: `masks @ scores` (`metrics.additive_outputs`).
    """

    fit: Callable[[Array, TrainRun, Batch, Any], State]
    score: Callable[[State, Batch], Array]
    outputs: Callable[[State, Array, Batch], Array] | None = None
