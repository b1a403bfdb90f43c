"""Training points that look wrong, and what networks say that are retrained without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.checks import check_integer
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import in_batches
from ddm_jax.run import questions, targets
from ddm_jax.run.finished import Finished
from ddm_jax.types import length, take

SUSPECTS = 100  # of each ranking
Json = dict[str, Any]


def make_suspects(run: Finished) -> Callable[[], Json]:
    """Make `suspects()`: the training points that each ranking has last, worst first.

    Harm is judged by half of the queries, so that `make_cleaned` judges by others.
    """
    split = run.plan.split

    def suspects() -> Json:
        found = questions.quality(run, questions.half_of_queries(split))
        worst = {
            name: np.argsort(scores, kind="stable")[:SUSPECTS] for name, scores in found.items()
        }
        places = np.unique(np.concatenate(list(worst.values())))
        return {
            "rankings": {
                name: [[int(each), float(found[name][each])] for each in order]
                for name, order in worst.items()
            },
            "labels": {
                int(each): targets.label(split, take(split.train.y, each)) for each in places
            }
            if split.classes or targets.are_numbers(split)
            else {},
            "ids": {int(each): int(split.train_ids[each]) for each in places},
            "classes": list(split.classes) if split.targets == "distribution" else [],
        }

    return suspects


def make_cleaned(run: Finished) -> Callable[[list[int], dict[int, str]], Json]:
    """Make `cleaned(dropped, labels)`: how good networks are that are trained on what is left.

    `dropped` are training points that go, and `labels` the classes that others get. Beside it the
    same networks trained on the data as they are: the seeds of both are the same, and no other
    network's.
    """
    plan, split, task = run.plan, run.plan.split, run.plan.task
    train, count = compiled(plan.trainer.train), length(split.train)
    keys = jax.random.split(jax.random.key(plan.config.seed + 2), plan.config.check.seeds)
    others = np.setdiff1d(np.arange(length(split.test)), questions.half_of_queries(split))
    query = take(split.test, others)
    classes = bool(split.classes) and task.apply is not None
    apply = in_batches(task.apply) if task.apply is not None else None
    before: list[list[float]] = []

    def judged(data: Any, weights: np.ndarray) -> list[float]:
        given = jax.device_put((data, jnp.asarray(weights, jnp.float32)))
        found = []
        for key in keys:
            params = train(key, *given).params
            if classes:
                said = np.asarray(apply(params, query.x))  # type: ignore[misc]
                found.append(1 - float(targets.wrong(split, said, np.asarray(query.y)).mean()))
            else:
                found.append(float(targets.losses(task, params, query).mean()))
        return found

    def cleaned(dropped: list[int], labels: dict[int, str]) -> Json:
        for place in [*dropped, *labels]:
            check_integer("a training point", place, 0, count - 1)
        if len(set(dropped)) == count:
            raise ValueError("every training point is dropped; keep some")
        data, weights = split.train, np.ones(count)
        weights[dropped] = 0
        if labels:
            unknown = sorted(set(labels.values()) - set(split.classes))
            if split.targets != "distribution" or unknown:
                raise ValueError(f"{', '.join(unknown) or 'labels'}: no class of {split.name}")
            y = np.array(data.y)
            y[list(labels)] = np.eye(len(split.classes), dtype=y.dtype)[
                [split.classes.index(name) for name in labels.values()]
            ]
            data = data._replace(y=y)
        if not before:
            before.append(judged(split.train, np.ones(count)))
        return {
            "measure": "accuracy" if classes else "mean loss",
            "queries": len(others),
            "before": before[0],
            "after": judged(data, weights),
        }

    return cleaned
