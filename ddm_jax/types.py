"""Core types: immutable pytrees that flow between the stages.

Letters used in every docstring and shape annotation:
N training points, Q queries, K groups, M synset items a group, I items in all, C classes,
P parameters, T checkpoints, S steps, B batch, R subset masks, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
Leaf = Any  # an array of either kind, jax.Array or numpy.ndarray, or its ShapeDtypeStruct
Params = Any  # any pytree of floating-point arrays
State = Any  # whatever an estimator keeps between fit and score


class Batch(NamedTuple):
    """Examples: two pytrees whose leaves share a leading axis B.

    In classification `x [B, ...]` are inputs and `y [B, C]` label distributions, one-hot for real
    data and soft for synsets.
    """

    x: Any
    y: Any


class Task(NamedTuple):
    """A learning problem as pure functions, closed over and never traced.

    Build one with `ddm_jax.classification` from a flax module, or by hand from any function of
    a params pytree. What is explained is `output`, and nothing else says so: another question is
    another task, `task._replace(output=..., lower_is_better=...)` or `objectives.explain`.
    """

    init: Callable[[Array], Params]  # key -> params
    apply: Callable[[Params, Any], Array]  # params, x [B, ...] -> logits [B, C]
    loss: Callable[[Params, Batch], Array]  # params, batch -> [B]
    output: Callable[[Params, Batch], Array]  # params, batch -> [B]: what is explained
    features: Callable[[Params, Any], Array] | None = None  # params, x -> [B, F]
    # params, batch, key -> [B]: the loss that training descends on where it is random (dropout,
    # augmentation). Everything else uses `loss`.
    training_loss: Callable[[Params, Batch, Array], Array] | None = None
    lower_is_better: bool = False  # whether a larger output is worse, as of a loss
    # What `y` holds: "distribution", rows over classes that sum to one, which a synset's soft
    # labels and a Fisher matrix need; or "any".
    targets: str = "distribution"


@partial(jax.tree_util.register_dataclass, data_fields=["ids"], meta_fields=["count", "names"])
@dataclass(frozen=True, eq=False)
class Groups:
    """Which group each training point belongs to; made and checked by `cluster.as_groups`.

    A pytree whose number of groups is static: functions that take it compile once a K.
    """

    ids: Leaf  # [N] int32 in 0..K-1
    count: int  # K, at least 2
    names: tuple[str, ...] | None = None  # K names that tables and figures show

    def sizes(self) -> np.ndarray:
        """How many points each group has, [K]."""
        return np.bincount(np.asarray(self.ids), minlength=self.count)


class TrainRun(NamedTuple):
    """A finished training: all that trajectory methods need."""

    key: Array
    params: Params
    checkpoints: Params  # leaves [T, ...], in the order of training; the last one is `params`
    steps: Leaf  # [T] int32, how many updates led to each checkpoint; the last is S
    learning_rates: Leaf  # [S]
    rows: Leaf  # [S, B] int32, the training rows of each batch; -1 where it is not full
    losses: Leaf  # [S] weighted mean loss of each batch, before its update
    momentum: Leaf  # scalar in [0, 1), heavy ball
    weight_decay: Leaf  # scalar, the factor of `|theta|^2 / 2` in the objective


class Synset(NamedTuple):
    """Synthetic items, each of one group; the items of group k stand for its training points.

    The gradient of group k is
    `h_k(theta) = share_k * sum_{m in k} mass_m * grad loss(theta; x_m, softmax(y_m))` and is
    distilled to equal `g_k(theta) = (1/N) sum_{i in D_k} grad loss_i(theta)`. Groups may have any
    number of items each; the items of a group lie side by side, in the order of the groups.
    """

    items: Batch  # inputs x [I, ...] and label logits y [I, C]
    group: Leaf  # [I] int32
    mass: Leaf  # [I] signed weights, of order 1/M
    share: Leaf  # [K] the part of the training set in the group, |D_k| / N


def as_batch(items: Batch) -> Batch:
    """Synset items, whose y are label *logits*, as examples with label distributions."""
    return Batch(items.x, jax.nn.softmax(items.y))


def take(tree: Any, index: Any) -> Any:
    """Index the leading axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def length(tree: Any) -> int:
    """The length of the leading axis, that of the first leaf."""
    return jax.tree.leaves(tree)[0].shape[0]


class Estimator(NamedTuple):
    """An attribution method as two pure functions.

    `fit(key, run, data, groups) -> state` is offline; `score(state, query) -> [K, Q]` is online,
    positive where having the group raises the query's output. `groups` are `Groups` or [N]
    integers.

    A method that predicts what happens when many groups are gone *together* has a third one,
    `outputs(state, masks [R, K], query) -> [R, Q]`, up to a constant a query. The others are
    additive: `masks @ scores` (`metrics.additive_outputs`).
    """

    fit: Callable[[Array, TrainRun, Batch, Any], State]
    score: Callable[[State, Batch], Array]
    outputs: Callable[[State, Any, Batch], Array] | None = None
