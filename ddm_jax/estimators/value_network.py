"""A value network: learns what groups change on points of the training set, for any query."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from ddm_jax.cluster import check_groups
from ddm_jax.estimators.data_values import check_classes
from ddm_jax.estimators.representation import task_features
from ddm_jax.estimators.retraining import Train
from ddm_jax.estimators.subset_networks import make_subset_networks, network_outputs
from ddm_jax.gradients import group_sums
from ddm_jax.loo import random_masks
from ddm_jax.objectives import Output
from ddm_jax.parallel import in_batches
from ddm_jax.types import Array, Batch, Estimator, Params, Task, TrainRun

BATCH = 200  # points a step


class ValueNetworkState(NamedTuple):
    params: Params  # of the trained network
    towers: Params  # of the value network
    sums: Array  # [K, H], what each group brings


class _Towers(nn.Module):
    """What a point brings to others `[N, H]`, and what it takes `[N, H]`, and from its own group.

    The last of its outputs is apart: a point's effect on itself is not its effect on others.
    """

    width: int

    @nn.compact
    def __call__(self, rows: Array) -> tuple[Array, Array, Array]:
        brings, takes = (
            nn.Dense(self.width)(nn.tanh(nn.Dense(self.width)(rows))) for _ in range(2)
        )
        return brings, takes, nn.Dense(1)(nn.tanh(nn.Dense(self.width)(rows)))[:, 0]


def make_value_network(
    task: Task,
    train: Train,
    *,
    subsets: int = 100,
    width: int = 64,
    steps: int = 1000,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-3,
    output: Output | None = None,
) -> Estimator:
    """Make the estimator `(1/N) sum_{i in D_k} <a(z_i), b(z_q)>` with learnt a and b.

    Experimental. Networks are trained on random halves of the groups, and a and b, two small
    networks of the trained network's features and the labels, are fitted to how the outputs of
    the *training points* follow who was in the halves. A datamodel regresses each query on its
    own; this one is shared by all, and asks no retrained network when a query comes. The idea
    is that of inverse value learning (Lu et al., 2024, arXiv 2410.21027), which trains a network to
    predict a change of outputs and carries it to where the change was not seen; there the change
    is post-training's, here a removal's. As every half keeps as many groups, a shift of all
    effects on a query is not told.

    Args:
        subsets: R, networks to train, at least 2.
        width: H, of both networks, at least 1.
        steps, learning_rate, weight_decay: of AdamW, the rate with a cosine to zero.

    Raises:
        ValueError: for a setting out of range, or a task without features.
    """
    for name, value, least in (("subsets", subsets, 2), ("width", width, 1), ("steps", steps, 1)):
        if value < least:
            raise ValueError(f"{name}={value}; it must be at least {least}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate}; it must be positive")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay}; it must be at least 0")
    features = task_features(task, "a value network")
    explained = task.output if output is None else output
    train_subsets = make_subset_networks(
        train, lambda key, count: random_masks(key, subsets, count)
    )
    towers = _Towers(width)
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(learning_rate, steps), weight_decay=weight_decay
    )

    def describe(params: Params, batch: Batch) -> Array:
        found = features(params, batch.x)
        length = jnp.linalg.norm(found, axis=1, keepdims=True)
        return jnp.concatenate([found / jnp.maximum(length, 1e-12), batch.y], 1)

    describe_all = in_batches(describe)

    def ask(params: Params, rows: Array) -> tuple[Array, Array, Array]:
        return towers.apply(params, rows)  # type: ignore[return-value]

    @jax.jit
    def learn(key: Array, rows: Array, groups: Array, masks: Array, outputs: Array):
        """The towers and what each group brings, from outputs `[R, N]` of the R halves."""
        spread = jnp.maximum(jnp.std(outputs - outputs.mean(0)), 1e-12)
        masks, outputs = masks - masks.mean(0), (outputs - outputs.mean(0)) / spread
        count = masks.shape[1]

        def loss(params: Params, chosen: Array) -> Array:
            brings, takes, own = ask(params, rows)
            effects = group_sums(brings, groups, count) @ takes[chosen].T  # [K, B]
            told = masks @ effects + masks[:, groups[chosen]] * own[chosen]
            return jnp.mean((told - outputs[:, chosen]) ** 2)

        def step(carry, draw: Array):
            params, state = carry
            chosen = jax.random.randint(draw, (min(BATCH, len(rows)),), 0, len(rows))
            slope = jax.grad(loss)(params, chosen)
            updates, state = optimizer.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), None

        start_key, draw_key = jax.random.split(key)
        params = towers.init(start_key, rows[:1])
        draws = jax.random.split(draw_key, steps)
        (params, _), _ = lax.scan(step, (params, optimizer.init(params)), draws)
        return params, spread * group_sums(ask(params, rows)[0], groups, count)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> ValueNetworkState:
        groups = check_groups(groups, len(data.x))
        check_classes(data, "a value network")
        train_key, learn_key = jax.random.split(key)
        halves = train_subsets(train_key, run, data, groups)
        outputs = network_outputs(explained, halves.params, data)
        rows = describe_all(run.params, data)
        params, sums = learn(learn_key, rows, jnp.asarray(groups), halves.masks, outputs)
        return ValueNetworkState(run.params, params, sums)

    @jax.jit
    def score(state: ValueNetworkState, query: Batch) -> Array:
        _, takes, _ = ask(state.towers, describe(state.params, query))
        return state.sums @ takes.T

    return Estimator(fit, score)
