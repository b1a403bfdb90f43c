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
from ddm_jax.types import Array, Batch, Optimizer, Params, Task, TrainRun, length, take

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
    _check_like("start", start, expected, "task.init's")
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), start, expected)


def _check_like(what: str, tree: Any, like: Any, whose: str, axis: int | None = None) -> None:
    """Check that a tree is one of finite numbers with the structure and shapes of another.

    Args:
        axis: the length of a first axis that the tree has before them.

    Raises:
        ValueError: naming the first leaf that differs.
    """
    theirs, ours = (str(jax.tree.structure(each)) for each in (tree, like))
    if theirs != ours:
        raise ValueError(f"{what} has the structure {theirs}; it must have {whose}, {ours}")
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    before = () if axis is None else (axis,)
    for (path, leaf), want in zip(paths, jax.tree.leaves(like), strict=True):
        name = f"{what}{jax.tree_util.keystr(path)}"
        if np.shape(leaf) != (*before, *np.shape(want)):
            raise ValueError(
                f"{name} has shape {np.shape(leaf)}; it must be {(*before, *np.shape(want))}, as "
                f"{whose}"
            )
        if is_concrete(leaf) and not bool(np.isfinite(np.asarray(leaf, np.float32)).all()):
            raise ValueError(
                f"{name} is not finite: its training diverged; lower the learning rate"
            )


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


def make_run(
    params: Params,
    checkpoints: Any = None,
    steps: Any = None,
    learning_rates: Any = None,
    rows: Any = None,
    *,
    optimizer: Any = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    name: str | None = None,
    clip: float | None = None,
    accumulate: int = 1,
    second_moments: Any = None,
    optimizer_state: Any = None,
    start: Params | None = None,
    key: Array | None = None,
) -> TrainRun:
    """Make the `TrainRun` of a training that was done elsewhere, from what it kept.

    `make_run(params)` is enough for the distilled datamodel and for what looks at the trained
    network alone; a method that needs another part says which.

        run = make_run(params, [early, late], steps=[500, 900], learning_rates=0.1, rows=rows)

    Args:
        params: the trained parameters.
        checkpoints: parameters on the way, in the order of training: a list of T pytrees, or one
            with leaves `[T, ...]`. Where the last one is not `params`, those come after it.
            Default: `params` alone.
        steps: [T], how many steps led to each checkpoint; the last is S.
        learning_rates: of each step, [S], or one number for all.
        rows: [S, B], the training points of each step's batch; -1 where a batch is not full.
        optimizer, momentum, weight_decay, name, clip, accumulate: as `make_trainer` takes them.
        second_moments: of an optimiser of Adam's kind, at each checkpoint, as `checkpoints`:
            `nu / (1 - b2^n)`.
        optimizer_state: the optax state at each checkpoint, a list of T (or the one, where T is
            1), in place of `second_moments`.
        start: the parameters at which the first step began.
        key: of `make_train`, which a replay of a random training loss needs; default
            `jax.random.key(0)`.

    Raises:
        ValueError: for parts that do not fit each other, or numbers that are not finite.
    """
    spec = as_optimizer(
        optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        clip=clip,
        accumulate=accumulate,
        name=name,
    )
    params = jax.tree.map(jnp.asarray, params)
    _check_like("params", params, params, "its own")
    path = params if checkpoints is None else checkpoints
    path = _stacked("checkpoints", [path] if checkpoints is None else path, params)
    ends = jax.tree.map(lambda leaf, last: bool((leaf[-1] == last).all()), path, params)
    added = not all(jax.tree.leaves(ends))
    if added:
        same = jax.tree.map(
            lambda leaf, last: (leaf == last).reshape(len(leaf), -1).all(1), path, params
        )
        earlier = np.flatnonzero(np.all(jax.tree.leaves(same), 0))
        if earlier.size:
            raise ValueError(
                f"checkpoint {earlier[0]} of {length(path)} is params, which come last: give the "
                "checkpoints in the order of training"
            )
        path = jax.tree.map(lambda leaf, last: jnp.concatenate([leaf, last[None]]), path, params)
    count = length(path)
    taken = None if rows is None else _check_rows(rows)
    total = None if taken is None else len(taken)
    reached = None if steps is None else np.asarray(steps)
    if reached is not None:
        if reached.dtype.kind not in "iu" or reached.shape != (count,):
            told = "; params are one more than those given, and come last" if added else ""
            raise ValueError(
                f"steps have shape {reached.shape} and type {reached.dtype}; they must be whole "
                f"numbers, one for each of {count} checkpoints{told}"
            )
        if reached.min() < 0 or (np.diff(reached) <= 0).any():
            raise ValueError(f"steps={reached.tolist()}; they must grow, from 0 or more")
        if total is not None and reached[-1] != total:
            raise ValueError(
                f"steps end at {reached[-1]}, and rows have {total} steps: they must end together"
            )
        total = int(reached[-1])
    rates = None
    if learning_rates is not None:
        rates = np.asarray(learning_rates, np.float32)
        if rates.ndim == 0 and total is not None:
            rates = np.full(total, rates, np.float32)
        if rates.ndim != 1 or (total is not None and rates.shape != (total,)):
            wanted = (
                "one for each step: pass steps= or rows= too" if total is None else f"[{total}]"
            )
            raise ValueError(f"learning_rates have shape {rates.shape}; they must be {wanted}")
        if not (np.isfinite(rates) & (rates >= 0)).all():
            raise ValueError("learning_rates must be finite and at least 0")
    if start is not None:
        start = jax.tree.map(jnp.asarray, start)
        _check_like("start", start, params, "params'")
    if optimizer_state is not None:
        if second_moments is not None:
            raise ValueError("second_moments= and optimizer_state= say the same: pass one of them")
        second_moments = _moments_of(spec, optimizer_state, params, count)
    if second_moments is not None:
        second_moments = _stacked("second_moments", second_moments, params, count)
        if spec.name == "sgd":
            raise ValueError(
                "second_moments= are of an optimiser of Adam's kind, and optimizer='sgd': name the "
                "one that trained"
            )
        if min(float(jnp.min(leaf)) for leaf in jax.tree.leaves(second_moments)) < 0:
            raise ValueError("second_moments are negative; they are means of squared gradients")
    return TrainRun(
        key=jax.random.key(0) if key is None else key,
        params=params,
        checkpoints=path,
        steps=None if reached is None else jnp.asarray(reached, jnp.int32),
        learning_rates=None if rates is None else jnp.asarray(rates),
        rows=None if taken is None else jnp.asarray(taken),
        weight_decay=jnp.asarray(coupled_decay(spec, weight_decay), jnp.float32),
        start=start,
        second_moments=second_moments,
        optimizer=spec,
    )


def _stacked(what: str, trees: Any, params: Params, count: int | None = None) -> Params:
    """A list of pytrees like the parameters, or one with leaves [T, ...], as the latter."""
    theirs, ours = (str(jax.tree.structure(each)) for each in (trees, params))
    whole = theirs == ours and all(
        np.ndim(leaf) == np.ndim(like) + 1
        for leaf, like in zip(jax.tree.leaves(trees), jax.tree.leaves(params), strict=True)
    )
    if not whole:
        if not isinstance(trees, list | tuple) or not trees:
            raise ValueError(
                f"{what} must be a list of pytrees like params, or one whose leaves have a first "
                f"axis more; got {type(trees).__name__}"
            )
        for index, tree in enumerate(trees):
            _check_like(f"{what}[{index}]", tree, params, "params'")
        trees = jax.tree.map(lambda *leaves: jnp.stack(list(map(jnp.asarray, leaves))), *trees)
    found = length(trees)
    if found == 0 or count not in (None, found):
        raise ValueError(f"there are {found} {what}; there must be {count or 'at least one'}")
    _check_like(what, trees, params, "params'", found)
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), trees, params)


def _check_rows(rows: Any) -> np.ndarray:
    """The rows of batches [S, B] as int32."""
    found = np.asarray(rows)
    if found.ndim != 2 or found.dtype.kind not in "iu" or found.size == 0:
        raise ValueError(
            f"rows have shape {found.shape} and type {found.dtype}; they must be whole numbers "
            "[S, B], the points of each batch, filled up with -1"
        )
    if found.min() < -1:
        raise ValueError(f"rows hold {found.min()}; a point is 0 or more, and -1 is none")
    return found.astype(np.int32)


def _moments_of(spec: Optimizer, states: Any, params: Params, count: int) -> list[Params]:
    """The second moments in one optax state a checkpoint."""
    several = states if isinstance(states, list) else [states]
    if len(several) != count:
        raise ValueError(
            f"optimizer_state has {len(several)} states for {count} checkpoints; pass a list with "
            "one for each, or params alone"
        )
    found = [second_moments(spec, state, params) for state in several]
    if any(each is None for each in found):
        raise ValueError(
            f"optimizer_state holds no running mean of squared gradients of all of params; the "
            f"optimiser {spec.name} may need none: leave it out, or pass second_moments="
        )
    return found


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
