"""The MNIST group protocol: leave-one-group-out and random halves, against exact retraining.

5,000 training and 500 test images at random; k-means inside each class (K = 50); MLP
784-128-64-10; SGD .1 with a cosine to .005, momentum .9, batch 100, 20 epochs, weight decay 1e-3:
the preset "mnist". Truth: test losses of exact retraining, mean of 8 seeds for single groups
(their effects are small) and of 4 for halves.

Settings were chosen on the partitions 1 and 2; the default ones reported here are others.

    python benchmarks/mnist_groups.py --data-dir DIR [--quick] [--partitions 10 11]
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import optax
import protocol

import ddm_jax as ddm


@dataclasses.dataclass(frozen=True)
class Settings:
    """Chosen on partitions 1 and 2; the others are the preset's."""

    changes: tuple[str, ...] = ()  # to the preset
    items: tuple[int, ...] = (1, 5, 20)
    steps: tuple[int, ...] = (20, 40, 200)
    real_steps: tuple[int, ...] = (50,)


QUICK = Settings(
    changes=(
        "data.train_size=500",
        "data.test_size=100",
        "model.hidden=32",
        "train.epochs=40",
        "cluster.num_groups=20",
        "distill.steps=300",
        "truth.subsets=10",
        "truth.seeds=3",
        "truth.subset_seeds=3",
    ),
    items=(2,),
    steps=(100,),
    real_steps=(100,),
)


def partition(
    settings: Settings, seed: int, data_dir: str | None, folder: Path | None
) -> list[dict[str, Any]]:
    """All rows of the table for one partition."""
    ready = protocol.prepare("mnist", seed, *settings.changes, data_dir=data_dir, folder=folder)
    plan, config = ready.plan, ready.plan.config
    rows = protocol.score_ceilings(ready)
    rows.append(protocol.additive_row(ready))
    rows.append(protocol.score_grad_dot(ready))
    online = optax.sgd(config.train.learning_rate, config.online.momentum, nesterov=True)
    start = ready.target.params
    data, query, groups = jax.device_put((plan.split.train, plan.split.test, ready.groups))
    for count in settings.real_steps:
        rows.append(
            protocol.score_response(
                ready,
                protocol.real_response(ready, count, online),
                (start, data, groups, query),
                count * len(data.x),
                single=False,
                estimator="real kept data",
                steps=count,
            )
        )
    for name, first, distilled in (
        ("DDM", "pursuit", True),
        ("undistilled, pursuit start", "pursuit", False),
        ("undistilled, random start", "random", False),
    ):
        for items in settings.items if distilled else settings.items[-1:]:
            without = {} if distilled else {"distill_steps": 0}
            synset, offline = protocol.distil(ready, items, start=first, **without)
            taken = min(items, config.online.step_items)
            for count in settings.steps:
                finetune = ddm.make_finetune(
                    plan.task,
                    steps=count,
                    optimizer=protocol.online_sgd(ready, start, synset),
                    weight_decay=config.train.weight_decay,
                    step_items=taken,
                )
                rows.append(
                    protocol.score_response(
                        ready,
                        ddm.ddm_response(finetune, plan.truth_output),
                        (start, synset, query),
                        count * taken * config.cluster.num_groups,
                        estimator=name,
                        items=items,
                        step_items=taken,
                        steps=count,
                        offline_seconds=offline,
                    )
                )
    return rows


def main() -> None:
    """Run the protocol and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="where TFDS keeps prepared data")
    parser.add_argument("--quick", action="store_true", help="a small form, in a minute")
    parser.add_argument("--partitions", type=int, nargs="+", default=[10, 11])
    options = parser.parse_args()
    settings = QUICK if options.quick else Settings()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.partitions[: 1 if options.quick else None]:
            place = Path(folder) if options.quick else None
            results[seed] = partition(settings, seed, options.data_dir, place)
    protocol.write("mnist_groups", options.quick, dataclasses.asdict(settings), results)


if __name__ == "__main__":
    main()
