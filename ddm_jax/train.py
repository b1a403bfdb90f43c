"""Target training: one traceable function with the training weights as an argument.

The target network, exact leave-one-out, random halves and seeds are all
`train(key, data, weights)` under `vmap`: runs that share the key share their initialisation and
the order of their batches. A training that was done elsewhere becomes the same `TrainRun` by
`make_run`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from pydantic import AfterValidator, Field

from ddm_jax.checks import (
    check_choice,
    check_integer,
    check_like,
    check_loss,
    check_number,
    is_concrete,
    settings,
)
from ddm_jax.compute.pieces import value_and_gradient
from ddm_jax.optimizers import (
    as_optimizer,
    coupled_decay,
    keeps_squares,
    second_moments,
    transformation,
)
from ddm_jax.types import Array, Batch, Params, Task, TrainRun, length, take

Schedule = Callable[[Any], Any]
Train = Callable[[Array, Batch, Array], TrainRun]
LAST_BATCHES = ("drop", "keep")


def _named(optimizer: str) -> str:
    as_optimizer(optimizer)
    return optimizer


@settings("train")
class TrainSettings:
    """Target training: an optimiser with a cosine schedule, by epochs; see `recipe`."""

    epochs: Annotated[int, Field(ge=1, le=10**6)] = 40
    batch_size: Annotated[int, Field(ge=1)] = 100
    learning_rate: Annotated[float, Field(gt=0, le=1e6)] = 0.3
    final_learning_rate: Annotated[float, Field(ge=0)] | None = None  # none: it is constant
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 1e-3
    optimizer: Annotated[str, AfterValidator(_named)] = "sgd"  # of optax
    clip: Annotated[float, Field(gt=0)] | None = None  # the largest norm of a gradient
    last_batch: Literal["drop", "keep"] = "drop"  # keep it though it is smaller
    checkpoint_every: Annotated[int, Field(ge=1)] = 1  # epochs


class TrainState(NamedTuple):
    """What training carries from one step to the next."""

    params: Params
    optimizer: Any
    step: Array  # int32
    key: Array  # of the random training loss, folded with the step


Step = Callable[[TrainState, Array, Batch, Array], tuple[TrainState, Array]]


class Trainer(NamedTuple):
    """One training recipe as pure functions; `train` is `start` and then `advance` in a scan."""

    train: Train
    start: Callable[[Array], TrainState]
    batches: Callable[[Array, int], Array]  # key, N -> rows [S, B]
    advance: Callable[[TrainState, Array, Batch, Array], tuple[TrainState, Array]]
    # key, start, params, checkpoints, rows, losses, second moments -> run
    finish: Callable[..., TrainRun]
    checkpoint_steps: np.ndarray  # [T], the steps after which a checkpoint is kept; the last is S
    moments: Callable[[TrainState], Params | None]  # what a run keeps of the optimiser's state


def cosine_schedule(peak: float, steps: int, final: float = 0.0, warmup: int = 0) -> Schedule:
    """Linear warm-up from zero over `warmup` steps, then a cosine from `peak` down to `final`."""
    if warmup:
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, final)
    return optax.cosine_decay_schedule(peak, steps, final / peak)


def make_step(task: Task, optimizer: optax.GradientTransformation) -> Step:
    """Make `step(state, rows [B], data, weights [N]) -> state, loss`: the one training step.

    The batch contributes the weighted mean of its own rows' losses, `sum_i w_i loss_i / sum_i
    w_i`; rows of -1 are no points, and a batch whose weights are all zero contributes the weight
    decay alone. A task with a `training_loss` descends on that, with a key of its own at every
    step.
    """

    def gradient_of_batch(params: Params, batch: Batch, weights: Array, key: Array):
        weights = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
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

    return step


def start_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    key: Array,
    params: Params | None = None,
) -> TrainState:
    """Where a training with this key begins: at `params`, or at the task's own start."""
    if params is None:
        params = task.init(jax.random.fold_in(key, 0))
    noise = jax.random.fold_in(key, 2)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), noise)


def make_trainer(
    task: Task,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float | Schedule | None = None,
    optimizer: Any = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    clip: float | None = None,
    accumulate: int = 1,
    name: str | None = None,
    start: Params | None = None,
    checkpoint_every: int | None = None,
    last_batch: str = "drop",
) -> Trainer:
    """Make the functions that train a network on a weighted training set.

    They minimise `L(theta; w) = sum_i w_i loss_i / sum_i w_i + weight_decay/2 |theta|^2` by
    `make_step`s on batches. Weights scale the loss, so 0 removes a point exactly and all compared
    runs keep the same number of steps. An optimiser that decays weights by itself (AdamW, Lion)
    does so beside the objective, which has no decay then.

    `train(key, data, weights [N]) -> TrainRun` runs the whole of it and traces whole. The other
    functions are its parts, for a caller that wants to stop in between:
    `advance(state, rows [s, B], data, weights)` takes s steps and returns their losses.

    Args:
        steps: S, batches that are taken, at least 1.
        batch_size: rows a batch B, at least 1 and at most N; an epoch is one pass over a fresh
            permutation.
        learning_rate: a number or an optax schedule of the step. A transformation of one's own
            has its own: what is given beside it is recorded alone, and may be left out.
        optimizer, momentum, weight_decay, clip, accumulate, name: what takes the steps, see
            `optimizers.as_optimizer`: by default SGD with heavy-ball momentum, and the factor of
            `|theta|^2 / 2`. With `accumulate` a schedule counts updates, of so many steps each;
            `run.learning_rates` has that of the update to which a step belongs.
        start: the parameters at which every training begins; default `task.init(key)`.
        checkpoint_every: the spacing e of the kept trajectory, in steps, 1 to S: checkpoints are
            kept after steps S, S - e, S - 2e, ... Default S, which keeps the trained parameters
            alone.
        last_batch: "drop" makes an epoch `N // B` full batches; "keep" adds the rest of the
            permutation as a smaller one, whose rows are filled up with -1.

    Raises:
        ValueError: for a setting out of range, an optimiser that is none, a start that does not fit
            the task, or (in `batches`) a batch larger than N.
    """
    check_integer("steps", steps)
    check_integer("batch_size", batch_size)
    spec = as_optimizer(
        optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        clip=clip,
        accumulate=accumulate,
        name=name,
    )
    check_integer("accumulate", spec.accumulate, 1, steps)
    decay = coupled_decay(spec, weight_decay)
    check_choice("last_batch", last_batch, LAST_BATCHES)
    every = steps if checkpoint_every is None else checkpoint_every
    check_integer("checkpoint_every", every, 1, steps)
    schedule: Schedule | None
    if callable(learning_rate):
        schedule = learning_rate
    elif learning_rate is None and spec.own:
        schedule = None
    else:
        schedule = optax.constant_schedule(check_number("learning_rate", learning_rate, above=0))
    rule = transformation(spec, schedule, decay, optimizer if spec.own else None)
    step = make_step(task, rule)
    given = None if start is None else _check_start(task, start)
    expected = jax.eval_shape(task.init, jax.random.key(0)) if given is None else given
    divides = keeps_squares(rule, expected)
    first = steps % every  # steps before the first spacing
    kept = np.arange(first + every, steps + 1, every)

    def begin(key: Array) -> TrainState:
        return start_state(task, rule, key, given)

    def moments(state: TrainState) -> Params | None:
        return second_moments(spec, state.optimizer, state.params) if divides else None

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

    def advance(state: TrainState, rows: Array, data: Batch, weights: Array):
        return lax.scan(lambda carry, r: step(carry, r, data, weights), state, rows)

    def finish(
        key: Array,
        start: Params,
        params: Params,
        checkpoints: Params,
        rows: Any,
        losses: Any,
        squares: Params | None = None,
    ) -> TrainRun:
        rates = None
        if schedule is not None:
            updates = jnp.arange(steps)
            if spec.accumulate > 1:
                updates = updates // spec.accumulate
            rates = jax.vmap(schedule)(updates) * jnp.ones(steps)
        return TrainRun(
            key=key,
            params=params,
            checkpoints=checkpoints,
            steps=jnp.asarray(kept, jnp.int32),
            learning_rates=rates,
            rows=rows,
            losses=losses,
            weight_decay=jnp.asarray(decay, jnp.float32),
            start=start,
            second_moments=squares,
            optimizer=spec,
        )

    def train(key: Array, data: Batch, weights: Array) -> TrainRun:
        data, weights = jax.tree.map(jnp.asarray, (data, weights))  # rows are traced
        count = length(data)
        if any(leaf.shape[0] != count for leaf in jax.tree.leaves(data)) or (
            weights.shape != (count,)
        ):
            shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(data))
            raise ValueError(
                f"data of shapes {shapes} and weights {weights.shape} must have one entry for each "
                "training point"
            )
        check_loss(task, data)
        given = np.asarray(weights) if is_concrete(weights) else np.ones(1)
        if not (np.isfinite(given) & (given >= 0)).all():
            raise ValueError("weights must be finite and at least 0; 0 leaves a point out")
        rows = batches(key, count)
        initial = begin(key)
        state, early = advance(initial, rows[:first], data, weights)

        def segment(state: TrainState, rows: Array):
            state, losses = advance(state, rows, data, weights)
            return state, (state.params, losses, moments(state))

        segments = rows[first:].reshape(-1, every, batch_size)
        state, (checkpoints, late, squares) = lax.scan(segment, state, segments)
        losses = jnp.concatenate([early, late.ravel()])
        return finish(key, initial.params, state.params, checkpoints, rows, losses, squares)

    return Trainer(train, begin, batches, advance, finish, kept, moments)


def _check_start(task: Task, start: Params) -> Params:
    """Parameters to start at, as arrays of the types that the task's own have.

    Raises:
        ValueError: where they are of another network, or not finite.
    """
    expected = jax.eval_shape(task.init, jax.random.key(0))
    check_like("start", start, expected, "task.init's")
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), start, expected)


def steps_an_epoch(num_examples: int, batch_size: int, last_batch: str = "drop") -> int:
    """Batches in one pass over the data; at least 1."""
    most = num_examples + (batch_size - 1 if last_batch == "keep" else 0)
    return max(most // batch_size, 1)


def make_train(task: Task, **settings: Any) -> Train:
    """Make `train(key, data, weights [N]) -> TrainRun`; the settings are `make_trainer`'s."""
    return make_trainer(task, **settings).train


def params_of(trained: Any) -> Params:
    """The parameters of what a training returns: those of a `TrainRun`, or they themselves."""
    return trained.params if isinstance(trained, TrainRun) else trained


def final_rate(settings: TrainSettings) -> float:
    """The learning rate at the end."""
    final = settings.final_learning_rate
    return settings.learning_rate if final is None else final


def recipe(task: Task, settings: TrainSettings, num_points: int) -> Trainer:
    """The trainer of settings that count in epochs, for a training set of `num_points`.

    Raises:
        ValueError: for settings that do not fit each other or the data.
    """
    if settings.batch_size > num_points:
        raise ValueError(
            f"train.batch_size={settings.batch_size} exceeds the {num_points} training points; "
            "lower it"
        )
    check_integer("train.warmup_epochs", settings.warmup_epochs, 0, settings.epochs - 1)
    check_integer("train.checkpoint_every", settings.checkpoint_every, 1, settings.epochs)
    final = final_rate(settings)
    if final > settings.learning_rate:
        raise ValueError(
            f"train.final_learning_rate={final:g} is above train.learning_rate="
            f"{settings.learning_rate:g}, and rates fall: lower it, or set it to none"
        )
    epoch = steps_an_epoch(num_points, settings.batch_size, settings.last_batch)
    steps = settings.epochs * epoch
    return make_trainer(
        task,
        steps=steps,
        batch_size=settings.batch_size,
        learning_rate=cosine_schedule(
            settings.learning_rate,
            steps,
            final,
            settings.warmup_epochs * epoch,
        ),
        optimizer=settings.optimizer,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        checkpoint_every=settings.checkpoint_every * epoch,
        last_batch=settings.last_batch,
    )
