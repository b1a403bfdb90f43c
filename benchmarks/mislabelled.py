"""Finding flipped labels on digits, MNIST and CIFAR-10, with the trivial scores beside.

A tenth of the training labels is flipped, to any other class (uniform) or to the class with the
nearest mean image (class-dependent, harder). No score sees which. A partition is a draw of the
data, the flipped labels, the folds and the networks.

- training loss: of the trained network on its own training points;
- self-confidence: the probability of the given label, by networks trained without the point's
  fold (5 folds);
- self-influence: grad-dot of a point with itself, the squared norm of its gradient;
- without its own group, DDM: the margin of the given label when the point's whole group is
  gone, for all groups at once from one synset;
- the same, retrained: exactly, a network a group.

    python benchmarks/mislabelled.py --data-dir DIR [--quick] [--partitions 10 11 12]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import protocol

import ddm_jax as ddm
from ddm_jax import candidates, config
from ddm_jax.plan import Plan, make_plan

NOISE = 0.1
FOLDS = 5
INSPECT = (0.05, 0.1, 0.2)
MNIST = ("data.train_size=1000", "data.test_size=100")
# Name: preset and changes to it.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits, MLP": ("digits", ()),
    "MNIST 1,000, logistic": ("mnist", (*MNIST, "model.kind=logistic")),
    "MNIST 1,000, MLP": ("mnist", MNIST),
    "CIFAR-10 4,000, ConvNet": ("cifar10-convnet", ("data.train_size=4000",)),
}
QUICK = (
    "data.train_size=300",
    "cluster.num_groups=20",
    "distill.steps=200",
    "distill.distance=squared",
)


class Suspicion(NamedTuple):
    """A score of the training points."""

    values: np.ndarray  # [N], larger = more suspect
    offline_seconds: float  # training and distilling
    online_seconds: float  # the rest, and the retrained networks; compilation included


def suspicions(plan: Plan, seed: int) -> dict[str, Suspicion]:
    """Every score of the training points."""
    task, trainer = plan.task, plan.trainer
    data = jax.device_put(plan.split.train)
    size = len(data.x)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 7), 4)
    begin = time.perf_counter()
    run = jax.jit(trainer.train)(keys[0], data, jnp.ones(size))
    jax.block_until_ready(run)
    training = time.perf_counter() - begin
    found: dict[str, Suspicion] = {}

    def keep(name: str, offline: float, work: Callable[[], Any]) -> None:
        begin = time.perf_counter()
        values = np.asarray(work(), np.float64)
        found[name] = Suspicion(values, offline, time.perf_counter() - begin)

    def loss() -> np.ndarray:
        batches = ddm.parallel.in_batches(task.apply)(run.params, data.x)
        return -np.asarray(jax.nn.log_softmax(batches) * data.y).sum(1)

    def self_influence() -> Any:
        def one(x, y):
            batch = ddm.Batch(x[None], y[None])
            gradient = jax.grad(lambda params: task.loss(params, batch)[0])(run.params)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

        return jax.jit(lambda x, y: jax.lax.map(lambda item: one(*item), (x, y)))(*data)

    labels = plan.split.train.y.argmax(1)
    features = plan.split.train.x

    def left_out(groups: np.ndarray, key: Any, output: Any) -> np.ndarray:
        """Output on each training point of the network that did not see its group."""
        count = int(groups.max()) + 1
        outputs = ddm.subset_outputs(ddm.retraining_response(trainer.train, output))
        masks = ddm.leave_one_out_masks(count)[1:]
        each = np.asarray(outputs(masks, key, data, jnp.asarray(groups), data))
        return -each[groups, np.arange(size)]

    cluster = plan.config.cluster
    groups = ddm.make_groups(
        cluster.method,
        features=features,
        labels=labels,
        num_groups=cluster.num_groups,
        seed=seed,
    )

    settings = {"steps": plan.config.online.steps, "rewind": plan.config.online.rewind}
    margin = plan._replace(truth_output=task.output)
    estimator = candidates.make_ddm_candidate(margin, settings)
    begin = time.perf_counter()
    state = jax.block_until_ready(estimator.fit(keys[2], run, data, groups))
    distilling = time.perf_counter() - begin

    def without_own_group() -> np.ndarray:
        masks = ddm.leave_one_out_masks(cluster.num_groups)[1:]
        assert estimator.outputs is not None
        each = np.asarray(estimator.outputs(state, masks, data))
        return -each[groups, np.arange(size)]

    keep("training loss", training, loss)
    keep("self-influence", training, self_influence)
    folds = ddm.make_groups("random", features=features, labels=labels, num_groups=FOLDS, seed=seed)
    probability = ddm.objectives.probability(task.apply)
    keep("self-confidence, 5 folds", 0.0, lambda: left_out(folds, keys[1], probability))
    keep("without its own group, DDM", training + distilling, without_own_group)
    keep("without its own group, retrained", 0.0, lambda: left_out(groups, keys[3], task.output))
    return found


def main() -> None:
    """Run every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="where TFDS keeps prepared data")
    parser.add_argument("--quick", action="store_true", help="300 digits")
    parser.add_argument("--partitions", type=int, nargs="+", default=[10, 11, 12])
    options = parser.parse_args()
    rows = []
    for case, (preset, changes) in list(CASES.items())[: 1 if options.quick else None]:
        for kind in ("uniform", "nearest"):
            each: list[list[dict[str, Any]]] = []
            for seed in options.partitions[: 1 if options.quick else None]:
                assignments = [f"seed={seed}", f"data.label_noise={NOISE}"]
                assignments += [f"data.noise_kind={kind}", *changes]
                if preset != "digits" and options.data_dir:
                    assignments.append(f"data.data_dir={options.data_dir}")
                if options.quick:
                    assignments += QUICK
                plan = make_plan(config.override(config.preset(preset), assignments))
                found = []
                for name, suspicion in suspicions(plan, seed).items():
                    scored = ddm.metrics.detection(suspicion.values, plan.split.flipped, INSPECT)
                    row: dict[str, Any] = {"case": case, "noise": kind, "estimator": name}
                    row |= {"auc": scored.auc, "average_precision": scored.average_precision}
                    for part, value in zip(INSPECT, scored.found, strict=True):
                        row[f"found_{part:g}"] = float(value)
                    row["offline_seconds"] = suspicion.offline_seconds
                    row["online_seconds"] = suspicion.online_seconds
                    found.append(row)
                each.append(found)
            rows += protocol.average(each)
            for row in rows[-len(each[0]) :]:
                protocol.say(
                    f"{case}, {kind}: {row['estimator']}: AUC {row['auc']:.3f}, average precision "
                    f"{row['average_precision']:.3f}, {row['online_seconds']:.1f} s"
                )
        settings = {"noise": NOISE, "partitions": options.partitions}
        protocol.write_json("mislabelled", options.quick, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
