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
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import protocol

import ddm_jax as ddm
from ddm_jax import config, evaluate
from ddm_jax.evaluate import Ready
from ddm_jax.hierarchy import Tree, consistency
from ddm_jax.loo import Response
from ddm_jax.plan import make_plan
from ddm_jax.types import Batch

TOP, LEAVES = 10, 200
MEASURED = 10
PAIRS, HALVES, SEEDS = 60, 40, 3
QUICK = (
    "data.train_size=300",
    "data.test_size=200",
    "truth.subsets=8",
    "truth.subset_seeds=2",
    "truth.seeds=2",
    "online.steps=15",
)


def prepare(seed: int, folder: Path, quick: bool) -> tuple[Ready, Tree]:
    """A partition with its tree; the truth removes leaves."""
    chosen = config.override(config.preset("digits"), [f"seed={seed}", *(QUICK if quick else ())])
    train = make_plan(chosen).split.train
    leaves = 40 if quick else LEAVES
    tree = ddm.make_tree(train.x, train.y.argmax(1), TOP, leaves, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".npy")
    np.save(file, tree.leaves)
    chosen = config.override(chosen, ["cluster.method=file", f"cluster.file={file}"])
    return evaluate.prepare(chosen, folder, protocol.PROGRESS), tree


def hierarchy_rows(ready: Ready, tree: Tree, quick: bool) -> list[dict[str, Any]]:
    """The flat matrix, the points alone, and 0 to 3 opened nodes."""
    plan = ready.plan
    data, query = jax.device_put((plan.split.train, plan.split.test))
    decay, online = plan.config.train.weight_decay, plan.config.online
    settings: dict[str, Any] = {
        "distance": "squared" if quick else plan.config.distill.distance,
        "part": plan.config.distill.part,
        "distill_steps": 100 if quick else 2000,
        "weight_decay": decay,
        "rewind": online.rewind,
        "output": plan.truth_output,
    }
    rows = []

    def judged(name: str, scores: np.ndarray, updates: float, seconds: float) -> None:
        row = {"estimator": name, "updates": float(updates), "online_seconds": seconds}
        row |= protocol.score_effects(ready, scores)
        predicted = ddm.metrics.additive_outputs(scores, ready.truth.masks)
        row |= protocol.score_subsets(ready, predicted)
        rows.append(row)
        protocol.say(
            f"  {name}: {updates:.0f} updates, LDS {row['group_lds']:.3f}, "
            f"Pearson {row['pearson']:.3f}, rho {row['rho']:.3f}"
        )

    flat = ddm.make_ddm(plan.task, items=3, **settings)
    leaves = flat.fit(jax.random.key(0), ready.target, data, tree.leaves)
    top = ddm.make_ddm(plan.task, items=10, **settings)
    nodes = top.fit(jax.random.key(0), ready.target, data, tree.top())
    begin = time.perf_counter()
    scores = np.asarray(flat.score(leaves, query))
    judged("flat", scores, 1 + len(scores), time.perf_counter() - begin)
    begin = time.perf_counter()
    influence = jax.jit(
        ddm.make_trajectory_influence(
            plan.task, damping=0.01, weight_decay=decay, output=plan.truth_output
        )
    )
    some = ddm.spread_points(ready.target.checkpoints, 8)
    each = np.asarray(influence(some, nodes.synset, data, query))
    points = np.zeros_like(scores)
    np.add.at(points, tree.leaves, each)
    judged("points alone", points, 0, time.perf_counter() - begin)
    start = ddm.trajectory_point(ready.target.checkpoints, online.rewind)

    def response(synset: ddm.Synset) -> Response:
        finetune = ddm.make_finetune(
            plan.task,
            steps=online.steps,
            optimizer=protocol.online_sgd(ready, start, synset),
            weight_decay=decay,
            step_items=online.step_items,
        )
        return ddm.ddm_response(finetune, plan.truth_output)

    effects = ddm.make_hierarchical(response(nodes.synset), tree)
    closely = response(leaves.synset)
    sweep = ddm.response_slopes(closely, len(scores))
    measured = 3 if quick else MEASURED
    selective = ddm.make_selective(closely, len(scores), measured)
    one = Batch(query.x[:1], query.y[:1])
    masks = ddm.leave_one_out_masks(len(scores))[:21]
    outputs = ddm.subset_outputs(closely)
    _, updates = protocol.timed(outputs, masks, start, leaves.synset, one)
    _, swept = protocol.timed(sweep, start, leaves.synset, one)
    cost = swept / updates * len(masks)
    slopes, seconds = protocol.timed(sweep, start, leaves.synset, query)
    judged("slopes", slopes, cost, seconds)
    found, seconds = protocol.timed(selective, start, leaves.synset, query)
    judged(f"slopes, {measured} leaves measured", found, cost + 1 + measured, seconds)
    for opened in (0, 1, 3) if quick else (0, 1, 2, 3):
        for what, known in (("by size", None), ("by points", points)):
            begin = time.perf_counter()
            found = effects(start, nodes.synset, leaves.synset, query, opened, known)
            judged(
                f"{opened} opened, the rest {what}",
                found.scores,
                found.updates,
                time.perf_counter() - begin,
            )
    apart = consistency(plan.task, ready.target.params, nodes.synset, leaves.synset, tree.parents)
    rows.append({"estimator": "consistency", "median": float(np.median(apart))})
    return rows


def additivity_rows(seed: int, folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Joint and summed effects, by the distilled datamodel and by retraining."""
    changes = (
        (*QUICK, "cluster.num_groups=20", "distill.steps=200", "distill.distance=squared")
        if quick
        else ()
    )
    ready = protocol.prepare("digits", seed, *changes, folder=folder)
    plan = ready.plan
    data, query = jax.device_put((plan.split.train, plan.split.test))
    count = int(ready.groups.max()) + 1
    number = 6 if quick else HALVES
    halves = np.asarray(ddm.random_masks(jax.random.key(seed), number, count))
    pairs = ddm.pair_masks(count, 6 if quick else PAIRS, seed)
    single = np.asarray(ddm.leave_one_out_masks(count))
    masks = np.concatenate([single, pairs[1:], halves])
    exact = ddm.make_retraining(
        plan.task, plan.trainer.train, seeds=1 if quick else SEEDS, output=plan.truth_output
    )
    key = jax.random.fold_in(jax.random.key(seed), 77)
    state = exact.fit(key, ready.target, data, ready.groups)
    assert exact.outputs is not None
    retrained = np.asarray(exact.outputs(state, jnp.asarray(masks), query))
    synset, _ = protocol.distil(ready, plan.config.distill.items)
    start = ddm.trajectory_point(ready.target.checkpoints, plan.config.online.rewind)
    random = np.asarray(ddm.random_masks(jax.random.key(seed + 1), 200, count))
    answered = np.asarray(
        ddm.counterfactual(
            start,
            synset,
            np.concatenate([masks, random]),
            query,
            task=plan.task,
            output=plan.truth_output,
            steps=plan.config.online.steps,
            weight_decay=plan.config.train.weight_decay,
        )
    )
    predicted = answered[: len(masks)]
    datamodel = ddm.ridge_datamodel(random, answered[len(masks) :])
    rows = []
    cuts = {"pairs": slice(1 + count, count + len(pairs)), "halves": slice(-number, None)}
    for what, rows_of in cuts.items():
        some = np.concatenate([masks[:1], masks[rows_of]])
        truth = np.concatenate([retrained[:1], retrained[rows_of]])
        joint = (truth[:1] - truth[1:]).ravel()
        for name, outputs in (("retraining", retrained), ("distilled datamodel", predicted)):
            effects = outputs[:1] - outputs[1 : 1 + count]
            own = np.concatenate([outputs[:1], outputs[rows_of]])
            added = ddm.additivity(some, own, effects)
            row: dict[str, Any] = {"subsets": what, "by": name} | added._asdict()
            summed = ((1 - some[1:]) @ effects).ravel()
            row["sum_to_truth"] = float(np.corrcoef(summed, joint)[0, 1])
            if name != "retraining":
                together = (own[:1] - own[1:]).ravel()
                row["joint_to_truth"] = float(np.corrcoef(together, joint)[0, 1])
                fitted = ((1 - some[1:]) @ datamodel).ravel()
                row["datamodel_to_truth"] = float(np.corrcoef(fitted, joint)[0, 1])
            rows.append(row)
            protocol.say(f"  {row}")
    return rows


def main() -> None:
    """Run both and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="300 images, 40 leaves")
    parser.add_argument("--partitions", type=int, nargs="+", default=[10, 11, 12])
    options = parser.parse_args()
    trees, sums = [], []
    for seed in options.partitions[: 1 if options.quick else None]:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) if options.quick else protocol.WORK
            ready, tree = prepare(seed, place / f"digits-leaves-{seed}", options.quick)
            trees.append(hierarchy_rows(ready, tree, options.quick))
            sums.append(additivity_rows(seed, place / f"digits-{seed}", options.quick))
    content = {
        "settings": {"top": TOP, "leaves": LEAVES, "pairs": PAIRS, "halves": HALVES},
        "partitions": options.partitions,
        "hierarchy": protocol.average(trees),
        "additivity": protocol.average(sums),
    }
    protocol.write_json("hierarchy", options.quick, content)


if __name__ == "__main__":
    main()
