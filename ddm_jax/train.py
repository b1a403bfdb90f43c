"""Target training: one traceable function with the training weights as an argument.

The target network, exact leave-one-out, random halves and seeds are all
`train(key, data, weights)` under `vmap`: runs that share the key share their initialisation and
the order of their batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ddm_jax.pieces import value_and_gradient
from ddm_jax.types import Array, Batch, Params, Task, TrainRun, take

Schedule = Callable[[Any], Any]


class TrainState(NamedTuple):
    """What training carries from one step to the next."""

    params: Params
    optimizer: Any
    step: Array  # int32
    key: Array  # of the random training loss, folded with the step


class Trainer(NamedTuple):
    """One training recipe as pure functions; `train` is `start` and then `advance` in a scan."""

    train: Callable[[Array, Batch, Array], TrainRun]
    start: Callable[[Array], TrainState]
    batches: Callable[[Array, int], Array]  # key, N -> rows [S, B]
    advance: Callable[[TrainState, Array, Batch, Array], tuple[TrainState, Array]]
    schedule: Schedule


def cosine_schedule(peak: float, steps: int, final: float = 0.0, warmup: int = 0) -> Schedule:
    """Linear warm-up from zero over `warmup` steps, then a cosine from `peak` down to `final`."""
    if warmup:
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, final)
    return optax.cosine_decay_schedule(peak, steps, final / peak)


def make_trainer(
    task: Task,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float | Schedule,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    checkpoint_every: int | None = None,
    last_batch: str = "drop",
) -> Trainer:
    """Make the functions that train a network by SGD on a weighted training set.

    They minimise `L(theta; w) = sum_i w_i loss_i / sum_i w_i + weight_decay/2 |theta|^2` by SGD
    on batches: each batch contributes the weighted mean over its own rows, and a batch whose rows
    all have weight zero contributes the weight decay alone. Weights scale the loss, so 0 removes a
    point exactly and all compared runs keep the same number of steps. A task with a
    `training_loss` descends on that, with a key of its own at every step.

    `train(key, data, weights [N]) -> TrainRun` runs the whole of it and traces whole.
    `start`, `batches` and `advance` are its parts, for a caller that wants to stop in between:
    `advance(state, rows [s, B], data, weights)` takes s steps and returns their losses.

    Args:
        steps: SGD steps S, at least 1.
        batch_size: rows a batch B, at least 1 and at most N; an epoch is one pass over a fresh
            permutation.
        learning_rate: a number or an optax schedule of the step.
        momentum: heavy-ball momentum in [0, 1).
        weight_decay: the factor of `|theta|^2 / 2`, at least 0.
        checkpoint_every: the spacing e of the kept trajectory, in steps, 1 to S; default S, which
            keeps the trained parameters alone.
        last_batch: "drop" makes an epoch `N // B` full batches; "keep" adds the rest of the
            permutation as a smaller one, whose rows are filled up with -1.

    Raises:
        ValueError: for a setting out of range, or (in `batches`) a batch larger than N.
    """
    every = steps if checkpoint_every is None else checkpoint_every
    for name, value, good in (
        ("steps", steps, steps >= 1),
        ("batch_size", batch_size, batch_size >= 1),
        ("momentum", momentum, 0 <= momentum < 1),
        ("weight_decay", weight_decay, weight_decay >= 0),
        ("checkpoint_every", every, 1 <= every <= steps),
    ):
        if not good:
            raise ValueError(f"{name}={value} is out of range; see make_trainer")
    if last_batch not in ("drop", "keep"):
        raise ValueError(f"last_batch={last_batch!r}; choose 'drop' or 'keep'")
    if callable(learning_rate):
        schedule = learning_rate
    elif learning_rate > 0:
        schedule = optax.constant_schedule(learning_rate)
    else:
        raise ValueError(f"learning_rate={learning_rate}; it must be positive")
    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum or None),
    )

    def start(key: Array) -> TrainState:
        params = task.init(jax.random.fold_in(key, 0))
        noise = jax.random.fold_in(key, 2)
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), noise)

    def batches(key: Array, num_examples: int) -> Array:
        if batch_size > num_examples:
            raise ValueError(
                f"batch_size={batch_size} exceeds the {num_examples} training points; lower it"
            )
        per_epoch = steps_an_epoch(num_examples, batch_size, last_batch)
        epochs = -(-steps // per_epoch)
        keys = jax.random.split(jax.random.fold_in(key, 1), epochs)
        order = jax.vmap(lambda k: jax.random.permutation(k, num_examples))(keys)
        fill = max(per_epoch * batch_size - num_examples, 0)
        order = jnp.pad(order, ((0, 0), (0, fill)), constant_values=-1)
        rows = order[:, : per_epoch * batch_size].reshape(-1, batch_size)
        return rows[:steps].astype(jnp.int32)

    def gradient_of_batch(params: Params, batch: Batch, weights: Array, key: Array):
        total = jnp.maximum(jnp.sum(weights), 1e-12)
        if task.training_loss is None:
            mean = lambda p, b, w: w @ task.loss(p, b) / total  # noqa: E731
            return value_and_gradient(mean)(params, batch, weights)
        random_mean = lambda p: weights @ task.training_loss(p, batch, key) / total  # noqa: E731
        return jax.value_and_grad(random_mean)(params)

    def step(state: TrainState, rows: Array, data: Batch, weights: Array):
        weight = jnp.where(rows >= 0, weights[rows], 0.0)
        loss, gradient = gradient_of_batch(
            state.params, take(data, rows), weight, jax.random.fold_in(state.key, state.step)
        )
        updates, moved = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, moved, state.step + 1, state.key), loss

    def advance(state: TrainState, rows: Array, data: Batch, weights: Array):
        return lax.scan(lambda carry, r: step(carry, r, data, weights), state, rows)

    def train(key: Array, data: Batch, weights: Array) -> TrainRun:
        size = data.x.shape[0]
        if data.y.shape[0] != size or weights.shape != (size,):
            raise ValueError(
                f"inputs {data.x.shape}, labels {data.y.shape} and weights {weights.shape} must "
                "have one entry for each training point"
            )
        rows = batches(key, size)
        first = steps % every
        state, early = advance(start(key), rows[:first], data, weights)

        def segment(state: TrainState, rows: Array):
            state, losses = advance(state, rows, data, weights)
            return state, (state.params, losses)

        segments = rows[first:].reshape(-1, every, batch_size)
        state, (checkpoints, late) = lax.scan(segment, state, segments)
        return TrainRun(
            key=key,
            params=state.params,
            checkpoints=checkpoints,
            learning_rates=jax.vmap(schedule)(jnp.arange(steps)) * jnp.ones(steps),
            rows=rows,
            losses=jnp.concatenate([early, late.ravel()]),
        )

    return Trainer(train, start, batches, advance, schedule)


def steps_an_epoch(num_examples: int, batch_size: int, last_batch: str = "drop") -> int:
    """Batches in one pass over the data; at least 1."""
    size = num_examples + (batch_size - 1 if last_batch == "keep" else 0)
    return max(size // batch_size, 1)


def make_train(task: Task, **settings: Any) -> Callable[[Array, Batch, Array], TrainRun]:
    """Make `train(key, data, weights [N]) -> TrainRun`; the settings are `make_trainer`'s."""
    return make_trainer(task, **settings).train
