"""Forward gradient matching: train on the synset from the start, the ablation of "reverse"."""

from __future__ import annotations

from typing import Any

import jax

from ddm_jax.estimators.ddm import DDMState, make_ddm
from ddm_jax.types import Array, Batch, Estimator, Task, TrainRun


def make_forward_matching(task: Task, *, steps: int = 200, **settings: Any) -> Estimator:
    """Make the estimator that trains from the run's initial parameters on the kept synsets.

    The synset is matched along the whole trajectory, as in dataset condensation (Zhao, Mopuri &
    Bilen, 2021, arXiv 2006.05929), and the networks with and without a group both start where the
    target did. Against `make_ddm`, whose settings it takes, it says what starting from the
    trained network is worth.
    """
    for name in ("part", "rewind"):
        if name in settings:
            raise ValueError(f"{name} is not to choose in forward matching; leave it out")
    ddm = make_ddm(task, steps=steps, part=1.0, rewind=0.0, **settings)

    def fit(key: Array, run: TrainRun, data: Batch, groups: Any) -> DDMState:
        state = ddm.fit(key, run, data, groups)
        initial = jax.jit(task.init)(jax.random.fold_in(run.key, 0))
        return state._replace(checkpoints=jax.tree.map(lambda leaf: leaf[None], initial))

    return Estimator(fit, ddm.score, ddm.outputs)
