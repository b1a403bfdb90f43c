"""A value network: learns what groups change on points of the training set, for any query."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from ddm_jax.checks import check_integer, check_number, require_distributions
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import in_batches
from ddm_jax.estimators._shared import task_features, unit
from ddm_jax.estimators.contract import make_estimator, require_queries_alone
from ddm_jax.estimators.subset_networks import make_subset_networks, network_outputs
from ddm_jax.gradients import group_sums
from ddm_jax.masks import random_masks
from ddm_jax.matching import at_least_float32
from ddm_jax.train import Train
from ddm_jax.types import Array, Batch, Estimator, Groups, Params, Task, TrainRun

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
        ValueError: for a setting out of range, a task without features, or one whose targets are no
            classes.
    """
    check_integer("subsets", subsets, 2)
    check_integer("width", width)
    check_integer("steps", steps)
    check_number("learning_rate", learning_rate, above=0)
    check_number("weight_decay", weight_decay, least=0)
    require_distributions(task, "value_network")
    require_queries_alone(task, "value_network")
    features = task_features(task, "value_network")
    train_subsets = make_subset_networks(
        train, lambda key, count: random_masks(key, subsets, count)
    )
    towers = _Towers(width)
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(learning_rate, steps), weight_decay=weight_decay
    )

    def describe(params: Params, batch: Batch) -> Array:
        return jnp.concatenate([unit(features(params, batch.x)), batch.y], 1)

    describe_all = in_batches(describe)

    def ask(params: Params, rows: Array) -> tuple[Array, Array, Array]:
        return towers.apply(params, rows)  # type: ignore[return-value]

    @compiled
    def learn(key: Array, rows: Array, groups: Groups, masks: Array, outputs: Array):
        """The towers and what each group brings, from outputs `[R, N]` of the R halves."""
        spread = jnp.maximum(jnp.std(outputs - outputs.mean(0)), 1e-12)
        masks, outputs = masks - masks.mean(0), (outputs - outputs.mean(0)) / spread
        ids = jnp.asarray(groups.ids)
        own_masks = jnp.pad(masks, ((0, 0), (0, 1)))  # the background, -1, never goes

        def loss(params: Params, chosen: Array) -> Array:
            brings, takes, own = ask(params, rows)
            effects = group_sums(brings, groups) @ takes[chosen].T  # [K, B]
            told = masks @ effects + own_masks[:, ids[chosen]] * own[chosen]
            return jnp.mean((told - outputs[:, chosen]) ** 2)

        def step(carry, draw: Array):
            params, state = carry
            chosen = jax.random.randint(draw, (min(BATCH, len(rows)),), 0, len(rows), jnp.int32)
            slope = jax.grad(loss)(params, chosen)
            updates, state = optimizer.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), None

        start_key, draw_key = jax.random.split(key)
        params = towers.init(start_key, rows[:1])
        draws = jax.random.split(draw_key, steps)
        (params, _), _ = lax.scan(step, (params, optimizer.init(params)), draws)
        return params, spread * group_sums(ask(params, rows)[0], groups)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> ValueNetworkState:
        train_key, learn_key = jax.random.split(key)
        halves = train_subsets(train_key, run, data, groups)
        outputs = at_least_float32(network_outputs(task.output, halves.params, data))
        trained = at_least_float32(run.params)
        rows = describe_all(trained, data)
        params, sums = learn(learn_key, rows, groups, halves.masks, outputs)
        return ValueNetworkState(trained, params, sums)

    @compiled
    def score(state: ValueNetworkState, query: Batch) -> Array:
        _, takes, _ = ask(state.towers, describe(state.params, query))
        return state.sums @ takes.T

    return make_estimator(task, fit, score, method="value_network")
