"""What the training run says of each point: its loss, its course, how far it moved the network."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddm_jax.checks import check_choice, require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.pieces import map_pieces
from ddm_jax.compute.placement import in_batches
from ddm_jax.estimators._shared import sum_over
from ddm_jax.estimators.tracin import checkpoint_rates
from ddm_jax.gradients import map_gradients, wide
from ddm_jax.types import Array, Batch, Params, Task, TrainRun
from ddm_jax.values._contract import Values, make_values

MEASURES = ("loss", "margin", "forgetting")
PIECE = 500  # points of a forward pass


def training_loss(task: Task) -> Values:
    """Make the value `-loss_i(theta)` at the trained network: what it has not learnt is suspect."""
    losses = in_batches(task.loss)
    return make_values(task, lambda key, run, data: -losses(run.params, data))


def self_influence(task: Task) -> Values:
    """Make the value `-sum_t eta_t |grad loss_i(theta_t)|^2` over the kept checkpoints.

    With the learning rate of the step that led to each: points that move the network far must be
    learnt by heart. Pruthi et al., "Estimating training data influence by tracing gradient
    descent" (TracIn), 2020, arXiv 2002.08484, section 4: wrong labels have a high self-influence.
    """

    @compiled
    def values(run: TrainRun, data: Batch) -> Array:
        def at(point: tuple[Params, Array]) -> Array:
            params, rate = point
            squares = map_gradients(lambda rows: jnp.sum(rows**2, 1), task.loss, params, data)
            return rate * squares

        return -sum_over(at, (run.checkpoints, checkpoint_rates(run, "self_influence")))

    return make_values(task, lambda key, run, data: values(run, data))


def training_dynamics(task: Task, *, measure: str = "margin") -> Values:
    """Make a value from how the loss or the margin of a point went over the kept checkpoints.

    - "loss": minus the mean loss over the checkpoints;
    - "margin": the area under the margin, the mean of the label's logit less the largest other
      (Pleiss et al., 2020, arXiv 2001.10528);
    - "forgetting": minus how often a point was told right and at the next checkpoint wrong; T + 1
      times for one that was never told right (Toneva et al., 2019, arXiv 1812.05159, who count
      between the presentations of a point).

    Raises:
        ValueError: for an unknown measure, or for all but "loss" a task without classes.
    """
    check_choice("measure", measure, MEASURES)
    if measure != "loss":
        require_distributions(task, f"training_dynamics by {measure}")

    def margins(params: Params, data: Batch) -> Array:
        logits = require_distributions(task, "a margin")(params, data.x)
        labels = jnp.argmax(data.y, -1)
        own = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
        others = jnp.where(jax.nn.one_hot(labels, logits.shape[-1]) > 0, -jnp.inf, logits)
        return own - jnp.max(others, -1)

    @compiled
    def values(run: TrainRun, data: Batch) -> Array:
        if measure == "loss":
            return -over_checkpoints(task.loss, run, data).mean(0)
        every = over_checkpoints(margins, run, data)
        if measure == "margin":
            return every.mean(0)
        right = every > 0
        forgotten = jnp.sum(right[:-1] & ~right[1:], 0)
        return -jnp.where(right.any(0), forgotten, len(right) + 1).astype(jnp.float32)

    return make_values(task, lambda key, run, data: values(run, data))


def over_checkpoints(fn: Callable[[Params, Batch], Array], run: TrainRun, data: Batch) -> Array:
    """`fn(params, data) -> [N]` at every kept checkpoint, in pieces of the data: `[T, N]`."""

    def at(params: Params) -> Array:
        found = map_pieces(lambda piece: fn(params, piece), data, PIECE)
        return found.astype(wide(found.dtype))

    return lax.map(at, run.checkpoints)


def triage(task: Task) -> Values:
    """Make the value `-|mean_t F_t(y_i | x_i) - 1/2|` for a regression with one target.

    `F_t(y | x)` is the conformal predictive distribution at checkpoint t: the part of the
    residuals `y_j - f_t(x_j)` that lie below `y - f_t(x)`. A point whose target is far out in it
    all through training is mislabelled, or hard: underestimated near 1, overestimated near 0.
    Seedat, Crabbe, Qian & van der Schaar, 2023, arXiv 2310.18970, who calibrate on held-out
    points and normalise residuals; here each point is held against the other training points, and
    residuals are plain. `triage_scores` gives the two numbers of their figure.

    Raises:
        ValueError: (when called) for more than one target.
    """
    return make_values(
        task, lambda key, run, data: -jnp.abs(triage_scores(task, run, data)[0] - 0.5)
    )


def triage_scores(task: Task, run: TrainRun, data: Batch) -> tuple[Array, Array]:
    """The mean and the standard deviation over checkpoints of `F_t(y_i | x_i)`, `[N]` each.

    Raises:
        ValueError: for more than one target.
    """
    shape = np.shape(data.y) if isinstance(data.y, jax.Array | np.ndarray) else None
    apply = task.apply
    if apply is None or shape is None or len(shape) != 2 or shape[1] != 1:
        raise ValueError(
            f"TRIAGE takes real targets [N, 1] and a task with `apply`; these targets are {shape}"
        )

    @compiled
    def scores(run: TrainRun, data: Batch) -> tuple[Array, Array]:
        def rank(residuals: Array) -> Array:
            ordered = jnp.sort(residuals)
            below = jnp.searchsorted(ordered, residuals, side="left")
            above = jnp.searchsorted(ordered, residuals, side="right")
            # Ties, the point itself among them, count half.
            return (below + above) / 2 / len(residuals)

        residuals = over_checkpoints(
            lambda params, piece: (piece.y - apply(params, piece.x))[:, 0], run, data
        )
        every = lax.map(rank, residuals)
        return every.mean(0), every.std(0)

    return scores(run, data)
