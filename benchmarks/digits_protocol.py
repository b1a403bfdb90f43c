"""The digits protocol: leave-one-group-out and random halves, against exact retraining.

scikit-learn digits, 1,000 training and 797 test images; k-means inside each class, 5 groups a
class (K = 50); MLP 64-64-10; SGD .3, batch 100, 40 epochs, weight decay 1e-3. Truth: test losses
of exact retraining, mean of 8 seeds. Scores: Spearman over the 50 groups and over 40 random halves
of the groups, averaged over test points.

Settings were chosen on the partitions 1, 2 and 3; the default ones reported here are others.

    python benchmarks/digits_protocol.py [--quick] [--partitions 10 11 12]
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import optax
import protocol

import ddm_jax as ddm

WEIGHT_DECAY = 1e-3


@dataclasses.dataclass(frozen=True)
class Settings:
    """Chosen on partitions 1 to 3."""

    train_size: int = 1000
    epochs: int = 40
    num_groups: int = 50
    halves: int = 40
    seeds: int = 8
    items: tuple[int, ...] = (1, 2, 5)
    part: float = 0.8  # of the trajectory, matched
    rewind: float = 0.75
    distance: str = "whitened"
    distill_steps: int = 3000
    distill_rate: float = 0.005
    online_rate: float = 0.3  # Nesterov .9
    few: int = 50  # steps, for single groups
    many: int = 200  # steps, for halves


QUICK = Settings(
    train_size=300, epochs=80, num_groups=20, halves=8, seeds=3, items=(2,), distill_steps=600
)


def partition(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """All rows of the table for one partition."""
    split = ddm.data.load("digits", train_size=settings.train_size, seed=seed)
    task = ddm.classification(ddm.models.MLP(10, (64,)), split.train.x.shape[1:])
    epoch = settings.train_size // 100
    trainer = ddm.make_trainer(
        task,
        steps=settings.epochs * epoch,
        batch_size=100,
        learning_rate=0.3,
        weight_decay=WEIGHT_DECAY,
        checkpoint_every=epoch,
    )
    problem = protocol.make_problem(
        split,
        task,
        trainer,
        weight_decay=WEIGHT_DECAY,
        num_groups=settings.num_groups,
        num_halves=settings.halves,
        num_seeds=settings.seeds,
        seed=seed,
    )
    truth = protocol.retrain(problem, single=True)
    rows = protocol.score_ceilings(problem, truth)
    rows.append(protocol.additive_row(problem, truth))
    rows.append(protocol.score_grad_dot(problem, truth))
    explained = protocol.loss_output(problem)
    online = optax.sgd(settings.online_rate, 0.9, nesterov=True)
    data, groups = problem.data, jax.numpy.asarray(problem.groups)

    def real(rewind: float, steps: int) -> None:
        start = ddm.trajectory_point(problem.run, rewind)
        rows.append(
            protocol.score_response(
                problem,
                truth,
                protocol.real_response(problem, steps, online),
                (start, data, groups, problem.query),
                steps * settings.train_size,
                estimator="real kept data",
                rewind=rewind,
                steps=steps,
            )
        )

    def ddm_row(synset: ddm.Synset, offline: float, name: str, **how: Any) -> None:
        update, steps, rewind = how["update"], how["steps"], how["rewind"]
        items = synset.mass.shape[1]
        finetune = ddm.make_finetune(
            task,
            update=update,
            steps=steps,
            optimizer=online if update == "retain" else optax.sgd(settings.online_rate),
            weight_decay=WEIGHT_DECAY,
        )
        # Forgetting touches only the groups that are left out: one of them, or half.
        used = settings.num_groups if update == "retain" else 1
        rows.append(
            protocol.score_response(
                problem,
                truth,
                ddm.ddm_response(finetune, explained),
                (ddm.trajectory_point(problem.run, rewind), synset, problem.query),
                steps * items * used,
                estimator=name,
                items=items,
                offline_seconds=offline,
                **how,
            )
        )

    for rewind in (0.0, settings.rewind):
        for steps in (settings.few, settings.many):
            real(rewind, steps)
    for items in settings.items:
        synset, offline = protocol.distil(
            problem,
            items,
            part=settings.part,
            rate=settings.distill_rate,
            steps=settings.distill_steps,
            distance=settings.distance,
        )
        for rewind in (0.0, settings.rewind):
            for steps in (settings.few, settings.many):
                ddm_row(synset, offline, "DDM", update="retain", rewind=rewind, steps=steps)
        if items == max(settings.items):
            for steps in (1, 5):
                ddm_row(synset, offline, "DDM", update="forget", rewind=0.0, steps=steps)
    for start in ("pursuit", "random"):
        synset, offline = protocol.distil(
            problem, max(settings.items), part=settings.part, rate=1.0, steps=0, start=start
        )
        name = f"undistilled, {start} start"
        for steps in (settings.few, settings.many):
            ddm_row(synset, offline, name, update="retain", rewind=settings.rewind, steps=steps)
    return rows


def main() -> None:
    """Run the protocol and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small form, in a minute")
    parser.add_argument("--partitions", type=int, nargs="+", default=[10, 11, 12])
    options = parser.parse_args()
    settings = QUICK if options.quick else Settings()
    results = {}
    for seed in options.partitions[: 1 if options.quick else None]:
        protocol.say(f"partition {seed}")
        results[seed] = partition(settings, seed)
    protocol.write("digits_protocol", options.quick, dataclasses.asdict(settings), results)


if __name__ == "__main__":
    main()
