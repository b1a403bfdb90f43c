"""Forward gradient matching: train on the synset from the start, the ablation of "reverse"."""

from __future__ import annotations

import jax

from ddm_jax.checks import check_number
from ddm_jax.distill import DistillSettings
from ddm_jax.estimators._shared import require
from ddm_jax.estimators.ddm import DDMState, make_ddm
from ddm_jax.types import Array, Batch, Estimator, Groups, Task, TrainRun
from ddm_jax.updates import UpdateSettings, settled


def make_forward_matching(
    task: Task, distill: DistillSettings | None = None, update: UpdateSettings | None = None
) -> Estimator:
    """Make the estimator that trains from the run's initial parameters on the kept synsets.

    The synset is matched along the whole trajectory, as in dataset condensation (Zhao, Mopuri &
    Bilen, 2021, arXiv 2006.05929), and the networks with and without a group both start where the
    target did. Against `make_ddm`, whose settings it takes, it says what starting from the
    trained network is worth.

    Args:
        distill: with `part=1`; so by default.
        update: with `rewind=0`; by default of 200 steps.

    Raises:
        ValueError: for another part or start, what `make_ddm` refuses, or (in `fit`) a run that
            does not know its start.
    """
    distill = distill or DistillSettings(part=1.0)
    update = update or UpdateSettings(steps=200)
    check_number("distill.part", distill.part, least=1)  # the whole trajectory
    check_number(
        "online.rewind", settled(update).rewind, most=0
    )  # there is nothing before its start
    ddm = make_ddm(task, distill, update)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> DDMState:
        state = ddm.fit(key, run, data, groups)
        start = require(run, "start", "forward_matching")
        return state._replace(checkpoints=jax.tree.map(lambda leaf: leaf[None], start))

    return ddm._replace(fit=fit)
