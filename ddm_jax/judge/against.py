"""How well does it agree with exact retraining? For any task, training and method, in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax import metrics
from ddm_jax.checks import check_batch, check_integer, count_outputs
from ddm_jax.cluster import as_groups
from ddm_jax.compute.compiled import compiled
from ddm_jax.elsewhere import make_run
from ddm_jax.estimators._kept import AnyTrain
from ddm_jax.estimators.retraining import make_retraining
from ddm_jax.judge.scoring import score_row
from ddm_jax.masks import check_masks, random_masks
from ddm_jax.types import Array, Batch, Groups, Task, length


class Agreement(NamedTuple):
    """Rank correlation with exact retraining over subsets, averaged over queries (LDS)."""

    value: float
    interval: tuple[float, float]  # 95 %, over the subsets
    one_retraining: float  # what one retraining a subset has against the others
    ceiling: float  # the most that anything can have against so noisy a truth
    undefined: int  # queries left out: all subsets have one answer, or one truth

    def __str__(self) -> str:
        low, high = self.interval
        left = f"; {self.undefined} queries undefined" if self.undefined else ""
        return (
            f"LDS {self.value:.2f} [{low:.2f}, {high:.2f}]; one retraining "
            f"{self.one_retraining:.2f}, perfect {self.ceiling:.2f}{left}"
        )


def against_retraining(
    task: Task,
    train: AnyTrain,
    data: Batch,
    groups: Any,
    query: Batch,
    answers: Any,
    *,
    key: Array,
    subsets: Any = 16,
    seeds: int = 3,
    keep: float = 0.5,
    folder: str | Path | None = None,
    name: str = "train",
) -> Agreement:
    """Retrain on random subsets of the groups, and compare: `subsets * seeds` trainings.

    Args:
        train: as `make_train` makes it; where there is a `folder`, any `train(key, data, weights)`.
        answers: `answers(masks [R, K]) -> [R, Q]`, such as `lambda masks: estimator.outputs(state,
            masks, query)`, or the scores `[K, Q]` of a method that adds up. With a task of sets Q
            is S. They are asked before anything is trained.
        key: of the subsets and of the networks; not that of the trained network.
        subsets: R, at least 4; or weights `[R, K]` of one's own, as masks are.
        seeds: networks a subset, at least 2: how they differ is the noise that the ceiling tells.
        keep: the part of the groups that a random subset keeps, in (0, 1).
        folder: keeps the networks, see `make_retraining`: another method is then judged by the
            same key without a training.
        name: of the training, in a folder; another training needs another.

    Raises:
        ValueError: for too few subsets or seeds, or answers of another shape or that are not
            finite.
    """
    check_integer("seeds", seeds, 2)
    check_batch(task, data, need=2)
    check_batch(task, query, "the query")
    groups = as_groups(groups, length(data))
    mask_key, train_key = jax.random.split(key)
    masks = _masks(mask_key, subsets, groups, keep)
    said = _said(answers, masks, count_outputs(task, query))
    retraining = make_retraining(task, train, folder=folder, name=name)
    some = make_run(compiled(task.init)(train_key))  # retraining looks at none
    runs = []
    for seed in range(seeds):
        state = retraining.fit(jax.random.fold_in(train_key, seed), some, data, groups)
        runs.append(np.asarray(retraining.outputs(state, masks, query)))  # type: ignore[misc]
    row = score_row(said, np.stack(runs))
    low, high = row["over_rows"]
    return Agreement(
        value=row["value"],
        interval=(low, high),
        one_retraining=row["one_retraining"],
        ceiling=row["ceiling"],
        undefined=row["undefined"],
    )


def _masks(key: Array, subsets: Any, groups: Groups, keep: float) -> np.ndarray:
    """The weights of the groups, [R, K]: those that are given, or random ones."""
    if np.ndim(subsets) == 0:
        check_integer("subsets", subsets, 4)
        return np.asarray(random_masks(key, subsets, groups.count, keep))
    masks = np.asarray(check_masks(subsets, groups.count, background=bool(groups.background)))
    check_integer("the number of subsets", len(masks), 4)
    return masks


def _said(answers: Callable[[np.ndarray], Any] | Any, masks: np.ndarray, count: int) -> np.ndarray:
    """What the method says of each subset, [R, Q]."""
    if callable(answers):
        said, wanted = np.asarray(answers(masks)), (len(masks), count)
    else:
        said, wanted = np.asarray(answers), (masks.shape[1], count)
    if said.shape != wanted:
        what = "[R, Q] for R subsets" if callable(answers) else "scores [K, Q] of K groups"
        raise ValueError(
            f"the answers have shape {said.shape}; they must be {wanted}, {what} and Q outputs"
        )
    if not np.isfinite(said).all():
        raise ValueError("the answers hold NaN or infinity: what the method computes diverged")
    return said if callable(answers) else metrics.additive_outputs(said, masks)
