"""The what-if card of a finished run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ddm_jax.card import Card, make_card
from ddm_jax.estimators.ddm import make_ddm, make_outputs
from ddm_jax.run import check as checking
from ddm_jax.run.choosing import without_data
from ddm_jax.run.finished import Finished
from ddm_jax.run.settings import GIVEN


def card_of_run(run: Finished) -> Card:
    """The card of a run, which answers by the synset alone, whatever the run's own updates take.

    Its error bars and its agreement are those of the updates on the synset: where the run chose the
    training data for its own, what it checked itself on is predicted once more.
    """
    plan, check = run.plan, run.check
    update, stable, state = without_data(run, plan)
    if check is not None and run.tuning.pool == "data":
        masks, query = checking.masks_of(check.truth, run.groups.count), plan.split.test
        outputs = make_outputs(plan.task, update, stable=stable)
        predicted = np.asarray(outputs(state, masks, query))
        ddm = make_ddm(plan.task, None, update, stable=stable)
        scores = np.asarray(ddm.score(state, query))
        check = check._replace(predicted=predicted, scores=scores)
    told: dict[str, Any] = {
        "data": plan.split.name,
        "model": GIVEN if plan.config.model.kind == GIVEN else asdict(plan.config.model),
        "objective": plan.config.online.objective,
        "lower_is_better": plan.task.lower_is_better,
    }
    if plan.split.preparation is not None:
        # Without what is none an older version reads it too.
        prepared = plan.split.preparation._asdict().items()
        told["preparation"] = {k: v for k, v in prepared if k != "tokenizer" or v is not None}
    intervals = None
    if check is not None:
        intervals = checking.intervals_of(check, run.groups)
        rows = checking.agreement(check, run.groups)
        told["agreement"] = {row["what"]: round(float(row["ddm"]), 3) for row in rows}
    return make_card(state, update, run.groups, intervals=intervals, told=told, stable=stable)
