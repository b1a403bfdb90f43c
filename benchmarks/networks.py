"""Comparing networks by what they rely on, and a synset of one network serving another; digits.

Networks of several architectures, seeds and training labels, on the same 50 groups. *Likeness*:
how alike two networks' attribution matrices are, by the distilled datamodel (one target network
each) and by exact retraining (the mean over seeds each): does the cheap comparison tell what the
exact one does? *Transfer*: a synset distilled along network A's trajectory updates network B, and
is judged by B's own retraining.

    python benchmarks/networks.py [--quick] [--partitions 10 11]
"""

from __future__ import annotations

import argparse
from itertools import combinations
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import protocol
from harness import say

from ddm_jax import metrics
from ddm_jax.judge.candidates import CANDIDATES
from ddm_jax.masks import leave_one_out_masks
from ddm_jax.run.evaluate import Ready

TOP = 5
NETWORKS: dict[str, tuple[str, ...]] = {
    "MLP 64": (),
    "MLP 256-128": ("model.hidden=256,128",),
    "logistic": ("model.kind=logistic",),
    "ConvNet": (
        "model.kind=convnet",
        "model.width=8",
        "model.depth=2",
        "train.epochs=15",
        "train.learning_rate=0.05",
        "train.final_learning_rate=0.05",
        "train.momentum=0.9",
        "truth.seeds=4",
        "truth.subsets=12",
        "truth.subset_seeds=2",
    ),
    "MLP 64, a tenth mislabelled": ("data.label_noise=0.1", "data.noise_kind=nearest"),
}
TRUTH = ("truth.seeds=6", "truth.subsets=20", "truth.subset_seeds=4")
QUICK = (
    "data.train_size=200",
    "cluster.num_groups=10",
    "train.epochs=10",
    "distill.steps=50",
    "distill.items=2",
    "distill.distance=squared",
    "truth.seeds=2",
    "truth.subsets=6",
    "truth.subset_seeds=2",
)


def ready_networks(seed: int, options: argparse.Namespace) -> dict[str, Ready]:
    """Every network with its truth, on the groups of the first."""
    networks: dict[str, Ready] = {}
    names = list(NETWORKS)[:3:2] if options.quick else list(NETWORKS)
    file = options.work / f"networks-{seed}.npy"
    for place, name in enumerate(names):
        changes = [*TRUTH, *NETWORKS[name], *(QUICK if options.quick else ())]
        if place:
            changes += ["cluster.method=file", f"cluster.file={file}"]
        short = name.replace(" ", "-").replace(",", "")
        networks[name] = protocol.prepare(
            options, "digits", seed, *changes, name=f"networks-{short}"
        )
        if not place:
            np.save(file, networks[name].groups.ids)
    return networks


def compared(seed: int, options: argparse.Namespace) -> tuple[list[dict[str, Any]], ...]:
    """Rows of likeness and of transfer."""
    networks = ready_networks(seed, options)
    estimators, states, distilled, exact = {}, {}, {}, {}
    for name, ready in networks.items():
        plan = ready.plan
        data, query = protocol.placed(ready)
        made = CANDIDATES["ddm"].make(plan.truth, {})
        states[name] = made.fit(jax.random.key(seed), ready.target, data, ready.groups)
        estimators[name] = made
        distilled[name] = np.asarray(made.score(states[name], query))
        exact[name] = ready.truth.effects()  # [S, K, Q]
        right = np.asarray(plan.task.apply(ready.target.params, query.x)).argmax(1)
        accuracy = float((right == plan.split.test.y.argmax(1)).mean())
        say(f"  {name}: {accuracy:.1%} right")
    likeness = []
    first = next(iter(networks))
    ready = networks[first]
    other = jax.jit(ready.plan.trainer.train)(
        jax.random.fold_in(jax.random.key(seed), 99),
        jax.device_put(ready.plan.split.train),
        jnp.ones(len(ready.groups.ids)),
    )
    data, query = protocol.placed(ready)
    again = estimators[first].fit(jax.random.key(seed + 1), other, data, ready.groups)
    half = len(exact[first]) // 2
    pairs = {
        (first, "another seed"): (
            (distilled[first], np.asarray(estimators[first].score(again, query))),
            (exact[first][:half].mean(0), exact[first][half:].mean(0)),
        )
    }
    for one, two in combinations(networks, 2):
        pairs[one, two] = (
            (distilled[one], distilled[two]),
            (exact[one].mean(0), exact[two].mean(0)),
        )
    for (one, two), both in pairs.items():
        row: dict[str, Any] = {"first": one, "second": two}
        for how, matrices in zip(("ddm", "exact"), both, strict=True):
            found = metrics.compare_profiles(*matrices, TOP)
            row |= {f"{how}_{key}": float(value) for key, value in found._asdict().items()}
        likeness.append(row)
        told = ", ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float))
        say(f"  {one} and {two}: {told}")
    transfer = []
    for served, ready in networks.items():
        _, query = protocol.placed(ready)
        count = ready.groups.count
        masks = np.concatenate([np.asarray(leave_one_out_masks(count)), ready.truth.masks])
        for source in networks:
            state = states[served]._replace(synset=states[source].synset)
            made = estimators[served]
            assert made.outputs is not None
            outputs = np.asarray(made.outputs(state, masks, query))
            row = {"synset": source, "network": served}
            row |= protocol.score_effects(ready, outputs[:1] - outputs[1 : 1 + count])
            row |= protocol.score_subsets(ready, outputs[1 + count :])
            transfer.append(row)
            say(
                f"  synset of {source} for {served}: rho {row['rho']:.3f}, "
                f"LDS {row['group_lds']:.3f}"
            )
    return likeness, transfer


def main() -> None:
    """Compare all networks and write the results."""
    options = harness.arguments(__doc__, quick="200 digits, two networks", partitions=(10, 11))
    each = [compared(seed, options) for seed in options.partitions]
    likeness, transfer = (harness.average(list(rows)) for rows in zip(*each, strict=True))
    content = {
        "settings": {"top": TOP, "networks": NETWORKS},
        "likeness": likeness,
        "transfer": transfer,
    }
    harness.write(options, content)


if __name__ == "__main__":
    main()
