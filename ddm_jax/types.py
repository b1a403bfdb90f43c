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


class Items(NamedTuple):
    """How a task's training examples become the items of a synset, and those a batch.

    The leaves of an item are a `Batch` too, whose parts are named by their paths: "x", "y", and
    where x is a dict "x.image". Those under a name in `free` that are floating-point may be
    optimised; all others stay as they were found. Integers (tokens, categories) always stay.
    """

    start: Callable[[Batch], Batch] = lambda examples: examples  # examples -> leaves [I, ...]
    batch: Callable[[Batch], Batch] = lambda leaves: leaves  # leaves -> examples
    free: tuple[str, ...] = ("x",)


class Task(NamedTuple):
    """A learning problem as pure functions, closed over and never traced.

    Build one with `ddm_jax.classification`, `regression` or `multilabel` from a model of flax or
    equinox, or by hand from any function of a params pytree; `ddm_jax.freeze` keeps a part of the
    parameters as it is. What is explained is `output`, and nothing else says so: another question
    is another task, `task._replace(output=..., lower_is_better=...)` or `objectives.explain`.
    """

    init: Callable[[Array], Params]  # key -> params, all of which learn
    loss: Callable[[Params, Batch], Array]  # params, batch -> [B]
    output: Callable[[Params, Batch], Array]  # params, batch -> [B]: what is explained
    apply: Callable[[Params, Any], Array] | None = None  # params, x [B, ...] -> predictions [B, C]
    features: Callable[[Params, Any], Array] | None = None  # params, x -> [B, F]
    # params, batch, key -> [B]: the loss that training descends on where it is random (dropout,
    # augmentation). Everything else uses `loss`.
    training_loss: Callable[[Params, Batch, Array], Array] | None = None
    lower_is_better: bool = False  # whether a larger output is worse, as of a loss
    # What `y` holds: "distribution", rows over classes that sum to one and are compared with the
    # softmax of `apply`, which a Fisher matrix needs; "labels", each in [0, 1]; or "any".
    targets: str = "distribution"
    # How synthetic examples are made; None: see `items.items_of`.
    items: Items | None = None
    # Whether an output is one of sets of queries, `output(params, batch) -> [S]` for S sets that it
    # knows of, and not one of each example.
    of_sets: bool = False
    # params, batch, key -> the batch with targets drawn from what the network says; the second
    # moments of gradients of their losses are the Fisher matrix. None: where targets are a
    # "distribution", labels from the softmax of `apply`; others have no Fisher matrix.
    draw: Callable[[Params, Batch, Array], Batch] | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["ids"],
    meta_fields=["count", "names", "background"],
)
@dataclass(frozen=True, eq=False)
class Groups:
    """Which group each training point belongs to; made and checked by `cluster.as_groups`.

    A pytree whose number of groups is static: functions that take it compile once a K.
    """

    ids: Leaf  # [N] int32 in 0..K-1; -1 is background: always there, never asked about
    count: int  # K, at least 2
    names: tuple[str, ...] | None = None  # K names that tables and figures show
    # Whether some ids are -1, which programs are compiled for; found where the ids are at hand.
    background: bool | None = None

    def __post_init__(self) -> None:
        """Find out whether there is a background."""
        if self.background is None:
            there = isinstance(self.ids, np.ndarray | jax.Array) and not isinstance(
                self.ids, jax.core.Tracer
            )
            found = bool((np.asarray(self.ids) < 0).any()) if there else False
            object.__setattr__(self, "background", found)

    def sizes(self) -> np.ndarray:
        """How many points each group has, [K]; those of the background are in none."""
        ids = np.asarray(self.ids)
        return np.bincount(ids[ids >= 0], minlength=self.count)

    def shares(self) -> np.ndarray:
        """Which part of all points, the background's among them, is in each group, [K]."""
        return self.sizes() / len(self.ids)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Optimizer:
    """An optimiser by its name and settings: what can be saved, hashed and compared.

    Made and checked by `optimizers.as_optimizer`. A pytree without leaves.
    """

    name: str = "sgd"  # of optax, or the user's own for a transformation of theirs
    settings: tuple[tuple[str, Any], ...] = ()  # of optax's function, in the order of their names
    clip: float | None = None  # the largest norm of a gradient
    accumulate: int = 1  # steps whose gradients make one update
    own: bool = False  # whether it is a transformation that only its user can make again

    def get(self, setting: str, default: Any = None) -> Any:
        """A setting, or the default where it is not among those that were given."""
        return dict(self.settings).get(setting, default)


class TrainRun(NamedTuple):
    """A finished training: all that trajectory methods need. `train.make_run` makes one by hand.

    What a training done elsewhere did not keep is None; a method that needs it says so.
    """

    key: Array
    params: Params
    checkpoints: Params  # leaves [T, ...], in the order of training; the last one is `params`
    steps: Leaf | None = None  # [T] int32, how many updates led to each; the last is S
    learning_rates: Leaf | None = None  # [S]
    rows: Leaf | None = None  # [S, B] int32, the training rows of each batch; -1 where not full
    losses: Leaf | None = None  # [S] weighted mean loss of each batch, before its update
    weight_decay: Leaf = 0.0  # scalar, the factor of `|theta|^2 / 2` in the objective
    start: Params | None = None  # where the first step began
    # Leaves [T, ...]: running means of squared gradients at the checkpoints, corrected for their
    # start, of an optimiser that divides by their roots (Adam's kind).
    second_moments: Params | None = None
    optimizer: Optimizer = Optimizer()


class Synset(NamedTuple):
    """Synthetic items, each of one group; the items of group k stand for its training points.

    The gradient of group k is `h_k(theta) = share_k * sum_{m in k} mass_m * grad loss(theta;
    item_m)` and is distilled to equal `g_k(theta) = (1/N) sum_{i in D_k} grad loss_i(theta)`.
    Groups may have any number of items each; the items of a group lie side by side, in the order
    of the groups. Those of a background, which is always kept, come last.
    """

    items: Batch  # the leaves of `Task.items`, [I, ...]; in classification y are label logits
    group: Leaf  # [I] int32; -1 for the background
    mass: Leaf  # [I] signed weights, of order 1/M
    share: Leaf  # [K] the part of the training set in the group, |D_k| / N
    background: Leaf | None = None  # scalar, that in no group; None where there is no background


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
