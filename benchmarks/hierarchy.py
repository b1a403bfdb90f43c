"""A hierarchy of groups against the flat matrix, and how far the effects of groups add up.

Digits, K = 200 leaves of about five images in K0 = 10 nodes; truth: each leaf left out and 40
random halves of the leaves, 8 retrainings each. *Opened*: nodes looked into, for each query. Leaves
that were not looked at get what the synset's influence function says of their points, scaled for
each query to those that were. *Slopes*: all leaves by one reverse sweep through the updates, which
counts as the updates of one query that take as long; *measured*: the leaves with the largest slopes
left out each. Shape and settings were chosen on partition 1.

Additivity, on the digits preset (50 groups): joint effects of pairs and of halves against the sums
of single ones, for the distilled datamodel and for retraining (3 seeds), and what each says of the
retrained joint effects.

    python benchmarks/hierarchy.py [--quick] [--partitions 10 11 12]
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import harness
import jax
import numpy as np
import optax
import protocol
from harness import say

import ddm_jax as ddm
from ddm_jax import metrics
from ddm_jax.estimators.datamodel import ridge
from ddm_jax.estimators.points import make_trajectory_influence, spread_points
from ddm_jax.estimators.tree import Tree, consistency, make_hierarchical, make_tree
from ddm_jax.gradients import group_sums
from ddm_jax.masks import leave_one_out_masks, pair_masks, random_masks
from ddm_jax.online import Response, ddm_response, make_finetune, subset_outputs, trajectory_point
from ddm_jax.rates import stable_rate
from ddm_jax.run.evaluate import Ready
from ddm_jax.selective import make_selective, response_slopes
from ddm_jax.types import Batch, Synset
from ddm_jax.updates import settled

TOP, LEAVES = 10, 200
MEASURED = 10
PAIRS, HALVES, SEEDS = 60, 40, 3
PENALTY = 0.01  # of the ridge datamodel
QUICK = (
    "data.train_size=300",
    "data.test_size=200",
    "truth.subsets=8",
    "truth.subset_seeds=2",
    "truth.seeds=2",
    "online.steps=15",
)


def prepare(options: argparse.Namespace, seed: int) -> tuple[Ready, Tree]:
    """A partition with its tree; the truth removes leaves."""
    changes = QUICK if options.quick else ()
    train = protocol.plan_of(options, "digits", seed, *changes).split.train
    leaves = 40 if options.quick else LEAVES
    tree = make_tree(train.x, train.y.argmax(1), TOP, leaves, seed)
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / f"digits-leaves-{seed}.npy"
    np.save(file, tree.leaves.ids)
    cut = ("cluster.method=file", f"cluster.file={file}")
    return protocol.prepare(options, "digits", seed, *changes, *cut, name="digits-leaves"), tree


def hierarchy_rows(ready: Ready, tree: Tree, quick: bool) -> list[dict[str, Any]]:
    """The flat matrix, the points alone, and 0 to 3 opened nodes."""
    problem, run = ready.plan.truth, ready.target
    task, update = problem.task, settled(problem.update)
    decay = problem.train.weight_decay
    data, query = protocol.placed(ready)
    count = tree.leaves.count
    rows = []

    def judged(name: str, scores: Any, updates: float, seconds: float) -> None:
        row = {"estimator": name, "updates": float(updates), "online_seconds": seconds}
        row |= protocol.score_effects(ready, scores) | protocol.score_additive(ready, scores)
        rows.append(row)
        say(harness.told(row))

    def distilled(items: int, groups: Any) -> tuple[ddm.Estimator, Any]:
        distance = {"distance": "squared"} if quick else {}
        settings = dataclasses.replace(
            problem.distill, items=items, steps=100 if quick else 2000, **distance
        )
        made = ddm.make_ddm(task, settings, problem.update)
        return made, made.fit(jax.random.key(0), run, data, groups)

    flat, leaves = distilled(3, tree.leaves)
    _, nodes = distilled(10, tree.top())
    scores, seconds = harness.once(flat.score, leaves, query)
    judged("flat", scores, 1 + count, seconds)
    influence = jax.jit(make_trajectory_influence(task, batch=protocol.STEP_ITEMS * TOP))
    some = spread_points(run.checkpoints, 8)
    each, seconds = harness.once(influence, some, nodes.synset, data, query, run.weight_decay)
    points = np.asarray(group_sums(each, tree.leaves)) * len(data.x)
    judged("points alone", points, 0, seconds)
    start = trajectory_point(run.checkpoints, update.rewind)

    def batch_of(synset: Synset) -> int:
        return protocol.STEP_ITEMS * len(synset.share)

    def response(synset: Synset) -> Response:
        rate = stable_rate(
            task,
            start,
            synset,
            momentum=update.momentum,
            weight_decay=decay,
            batch=batch_of(synset),
        )
        sgd = optax.sgd(float(rate), update.momentum, nesterov=True)

        def respond(keep: Any, params: Any, synset: Synset, query: Batch) -> Any:
            # Where a node is opened there are more groups, and a step takes as many items more.
            finetune = make_finetune(
                task,
                steps=update.steps,
                optimizer=sgd,
                weight_decay=decay,
                batch=batch_of(synset),
            )
            return ddm_response(finetune, task.output)(keep, params, synset, query)

        return respond

    effects = make_hierarchical(response(nodes.synset), tree)
    closely = response(leaves.synset)
    sweep = response_slopes(closely, count)
    measured = 3 if quick else MEASURED
    selective = make_selective(closely, count, measured)
    one = Batch(query.x[:1], query.y[:1])
    masks = leave_one_out_masks(count)[:21]
    _, updates = harness.timed(subset_outputs(closely), masks, start, leaves.synset, one)
    _, swept = harness.timed(sweep, start, leaves.synset, one)
    cost = swept / updates * len(masks)
    slopes, seconds = harness.timed(sweep, start, leaves.synset, query)
    judged("slopes", slopes, cost, seconds)
    found, seconds = harness.timed(selective, start, leaves.synset, query)
    judged(f"slopes, {measured} leaves measured", found, cost + 1 + measured, seconds)
    for opened in (0, 1, 3) if quick else (0, 1, 2, 3):
        for what, known in (("by size", None), ("by points", points)):
            asked = (start, nodes.synset, leaves.synset, query, opened, known)
            found, seconds = harness.once(effects, *asked)
            judged(f"{opened} opened, the rest {what}", found.scores, found.updates, seconds)
    apart = consistency(task, run.params, nodes.synset, leaves.synset, tree)
    rows.append({"estimator": "consistency", "median": float(np.median(apart))})
    return rows


def additivity_rows(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Joint and summed effects, by the distilled datamodel and by retraining."""
    changes: tuple[str, ...] = ()
    if options.quick:
        changes = (*QUICK, "cluster.num_groups=20", "distill.steps=200", "distill.distance=squared")
    ready = protocol.prepare(options, "digits", seed, *changes)
    plan = ready.plan
    data, query = protocol.placed(ready)
    count = ready.groups.count
    number = 6 if options.quick else HALVES
    halves = np.asarray(random_masks(jax.random.key(seed), number, count))
    pairs = pair_masks(count, 6 if options.quick else PAIRS, seed)
    masks = np.concatenate([np.asarray(leave_one_out_masks(count)), pairs[1:], halves])
    seeds = 1 if options.quick else SEEDS
    exact = ddm.make_retraining(plan.truth.task, plan.trainer.train, seeds=seeds)
    key = jax.random.fold_in(jax.random.key(seed), 77)
    state = exact.fit(key, ready.target, data, ready.groups)
    assert exact.outputs is not None
    retrained = np.asarray(exact.outputs(state, masks, query))
    state, _ = protocol.distil(ready)
    random = np.asarray(random_masks(jax.random.key(seed + 1), 200, count))
    answered = np.asarray(protocol.updated(ready, state)(np.concatenate([masks, random])))
    predicted, of_random = answered[: len(masks)], answered[len(masks) :]
    spread = of_random.std(0)
    regressed = ridge(
        random - random.mean(0), (of_random - of_random.mean(0)) / spread, penalty=PENALTY
    )
    datamodel = np.asarray(regressed) * spread
    rows = []
    cuts = {"pairs": slice(1 + count, count + len(pairs)), "halves": slice(-number, None)}
    for what, rows_of in cuts.items():
        some = np.concatenate([masks[:1], masks[rows_of]])
        truth = np.concatenate([retrained[:1], retrained[rows_of]])
        joint = (truth[:1] - truth[1:]).ravel()
        for name, outputs in (("retraining", retrained), ("distilled datamodel", predicted)):
            effects = outputs[:1] - outputs[1 : 1 + count]
            own = np.concatenate([outputs[:1], outputs[rows_of]])
            added = metrics.additivity(some, own, effects)
            row: dict[str, Any] = {"subsets": what, "by": name} | added._asdict()
            summed = ((1 - some[1:]) @ effects).ravel()
            row["sum_to_truth"] = float(np.corrcoef(summed, joint)[0, 1])
            if name != "retraining":
                together = (own[:1] - own[1:]).ravel()
                row["joint_to_truth"] = float(np.corrcoef(together, joint)[0, 1])
                fitted = ((1 - some[1:]) @ datamodel).ravel()
                row["datamodel_to_truth"] = float(np.corrcoef(fitted, joint)[0, 1])
            rows.append(row)
            say(harness.told(row))
    return rows


def main() -> None:
    """Run both and write the results."""
    options = harness.arguments(__doc__, quick="300 images, 40 leaves")
    trees = [hierarchy_rows(*prepare(options, seed), options.quick) for seed in options.partitions]
    sums = [additivity_rows(options, seed) for seed in options.partitions]
    content = {
        "settings": {"top": TOP, "leaves": LEAVES, "pairs": PAIRS, "halves": HALVES},
        "hierarchy": harness.average(trees),
        "additivity": harness.average(sums),
    }
    harness.write(options, content)


if __name__ == "__main__":
    main()
