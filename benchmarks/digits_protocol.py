"""The digits protocol: leave-one-group-out and random halves, against exact retraining.

scikit-learn digits, 1,000 training and 797 test images; k-means inside each class, 5 groups a
class (K = 50); MLP 64-64-10; SGD .3, batch 100, 40 epochs, weight decay 1e-3: the preset "digits".
Truth: test losses of exact retraining, mean of 8 seeds. Scores: Spearman over the 50 groups and
over 40 random halves of the groups, averaged over test points.

Settings were chosen on the partitions 1, 2 and 3; the default ones reported here are others.

    python benchmarks/digits_protocol.py [--quick] [--partitions 10 11 12]
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
    """Chosen on partitions 1 to 3; the others are the preset's."""

    changes: tuple[str, ...] = ()  # to the preset
    items: tuple[int, ...] = (1, 2, 5, 10)
    few: int = 50  # steps, for single groups
    many: int = 200  # steps, for halves


QUICK = Settings(
    changes=(
        "data.train_size=300",
        "data.test_size=200",
        "train.epochs=80",
        "cluster.num_groups=20",
        "distill.steps=300",
        "truth.subsets=8",
        "truth.seeds=3",
        "truth.subset_seeds=3",
    ),
    items=(2,),
)


def partition(settings: Settings, seed: int, folder: Path | None) -> list[dict[str, Any]]:
    """All rows of the table for one partition."""
    ready = protocol.prepare("digits", seed, *settings.changes, folder=folder)
    plan, run = ready.plan, ready.target
    config = plan.config
    rows = protocol.score_ceilings(ready)
    rows.append(protocol.additive_row(ready))
    rows.append(protocol.score_grad_dot(ready))
    rate, back = config.train.learning_rate, config.online.rewind
    online = optax.sgd(rate, config.online.momentum, nesterov=True)
    data, query, groups = jax.device_put((plan.split.train, plan.split.test, ready.groups))
    num_groups = config.cluster.num_groups

    def real(rewind: float, steps: int) -> None:
        start = ddm.trajectory_point(run.checkpoints, rewind)
        rows.append(
            protocol.score_response(
                ready,
                protocol.real_response(ready, steps, online),
                (start, data, groups, query),
                steps * len(data.x),
                estimator="real kept data",
                rewind=rewind,
                steps=steps,
            )
        )

    def ddm_row(synset: ddm.Synset, offline: float, name: str, **how: Any) -> None:
        update, steps, rewind = how["update"], how["steps"], how["rewind"]
        items = synset.mass.shape[1]
        taken = min(items, config.online.step_items)
        start = ddm.trajectory_point(run.checkpoints, rewind)
        finetune = ddm.make_finetune(
            plan.task,
            update=update,
            steps=steps,
            optimizer=(
                protocol.online_sgd(ready, start, synset) if update == "retain" else optax.sgd(rate)
            ),
            weight_decay=config.train.weight_decay,
            step_items=config.online.step_items,
        )
        # Forgetting touches only the groups that are left out: one of them, or half.
        used = num_groups if update == "retain" else 1
        rows.append(
            protocol.score_response(
                ready,
                ddm.ddm_response(finetune, plan.truth_output),
                (start, synset, query),
                steps * taken * used,
                estimator=name,
                items=items,
                step_items=taken,
                offline_seconds=offline,
                **how,
            )
        )

    for rewind in (0.0, back):
        for steps in (settings.few, settings.many):
            real(rewind, steps)
    for items in settings.items:
        synset, offline = protocol.distil(ready, items)
        for rewind in (0.0, back):
            for steps in (settings.few, settings.many):
                ddm_row(synset, offline, "DDM", update="retain", rewind=rewind, steps=steps)
        if items == max(settings.items):
            for steps in (1, 5):
                ddm_row(synset, offline, "DDM", update="forget", rewind=0.0, steps=steps)
    for first in ("pursuit", "random"):
        synset, offline = protocol.distil(
            ready, max(settings.items), distill_steps=0, start=first, distance="squared"
        )
        name = f"undistilled, {first} start"
        for steps in (settings.few, settings.many):
            ddm_row(synset, offline, name, update="retain", rewind=back, steps=steps)
    return rows


def main() -> None:
    """Run the protocol and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small form, in a minute")
    parser.add_argument("--partitions", type=int, nargs="+", default=[10, 11, 12])
    options = parser.parse_args()
    settings = QUICK if options.quick else Settings()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.partitions[: 1 if options.quick else None]:
            results[seed] = partition(settings, seed, Path(folder) if options.quick else None)
    protocol.write("digits_protocol", options.quick, dataclasses.asdict(settings), results)


if __name__ == "__main__":
    main()
