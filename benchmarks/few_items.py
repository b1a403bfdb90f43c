"""Synsets of few items: chosen or distilled, matched where, corrected or not.

Presets `digits`, `mnist` and `language`, on partitions that are there to tune on. Truth: 32 random
halves of the groups and each of 25 groups alone (of the documents 9), two seeds. For every synset
`tuning.tune` chooses the updates on eight halves, at a tenth of a retraining (of the documents a
third), once of the items alone and once with the correction as a choice; scores are of the other
halves and the single groups, and "chosen by" is that of the eight.

    python benchmarks/few_items.py --data-dir DIR [--quick] [--partitions 1] [--cases digits ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import harness
import jax
import numpy as np
from harness import say
from protocol import PROGRESS

import ddm_jax as ddm
from ddm_jax import tuning
from ddm_jax.estimators.pools import corrected, unmatched
from ddm_jax.judge import scoring
from ddm_jax.run import evaluate, settings
from ddm_jax.run.plan import make_plan

CHOOSES = 8  # halves
TRUTH = ("truth.subsets=32", "truth.subset_seeds=2", "truth.seeds=2", "truth.groups=25")
QUICK = ("data.train_size=200", "data.test_size=40", "cluster.num_groups=10", "train.epochs=4")
QUICK_TRUTH = ("truth.subsets=12", "truth.groups=4")


class Form(NamedTuple):
    """A synset: items a group, distilled or chosen, and the part of the trajectory matched."""

    items: int
    learnt: bool
    part: float


class Case(NamedTuple):
    """Of a preset: what an answer may cost, what is tried, and other settings."""

    share: float
    forms: tuple[Form, ...]
    changes: tuple[str, ...] = ()


IMAGES = (
    *(Form(items, True, part) for items in (1, 2, 5) for part in (0.75, 0.4, 0.2)),
    *(Form(items, False, 0.75) for items in (2, 5, 8)),
)
CASES = {
    "digits": Case(0.1, IMAGES),
    "mnist": Case(0.1, tuple(form for form in IMAGES if form.items > 1)),
    "language": Case(
        1 / 3, tuple(Form(items, False, 0.75) for items in (3, 7)), ("truth.groups=9",)
    ),
}


def measure(
    options: argparse.Namespace, name: str, seed: int, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row for each synset and what steps may take of it, but for those that are done."""
    case = CASES[name]
    place = options.changes if name == "mnist" else []
    changes = [f"seed={seed}", *place, *TRUTH, *case.changes]
    changes += [*QUICK, *QUICK_TRUTH] if options.quick else []
    plan = make_plan(settings.override(settings.preset(name), changes))
    ready = evaluate.prepare(plan, options.work / f"few-{name}-{seed}", PROGRESS)
    found, groups = ready.truth, ready.groups
    task = plan.truth.task  # whose output is the truth's
    data, query = jax.device_put((plan.split.train, plan.split.test))
    judged = found._replace(
        masks=found.masks[CHOOSES:], keep=found.keep[CHOOSES:], subsets=found.subsets[:, CHOOSES:]
    )
    gradients = int((np.asarray(ready.target.rows) >= 0).sum())
    fixed = ddm.UpdateSettings(rewind=plan.config.online.rewind)
    ceilings = scoring.ceilings(judged).items()
    for told, part in (("one retraining", "one_retraining"), ("perfect predictor", "ceiling")):
        values = _told({score: kept[part] for score, kept in ceilings})
        yield {"case": name, "form": told, "partition": seed, **values}
    forms = case.forms[:1] if options.quick else case.forms
    for form in forms:
        distill = dataclasses.replace(plan.config.distill, items=form.items, part=form.part)
        distill = distill if form.learnt else dataclasses.replace(distill, steps=0)
        if options.quick:
            distill = dataclasses.replace(distill, steps=min(distill.steps, 20))
        before = [row for row in done if _same(row, name, seed, form)]
        if len(before) == 2:
            yield from before
            continue
        state, offline = harness.once(
            ddm.make_ddm(task, distill).fit, jax.random.key(seed + 1), ready.target, data, groups
        )
        left = float(np.mean(unmatched(corrected(state, task, data, groups), task)))
        for pools in (("synset",), ("synset", "corrected")):
            tuned = tuning.tune(
                task, state, found.masks[:CHOOSES], found.subsets[:, :CHOOSES], query,
                gradients=gradients, share=case.share, fixed=fixed, real=(data, groups),
                pools=pools,
            )  # fmt: skip
            made = ddm.make_ddm(task, None, tuned.update, stable=tuned.stable)
            assert made.outputs is not None
            scores = np.asarray(made.score(tuned.state, query))
            outputs = np.asarray(made.outputs(tuned.state, judged.masks, query))
            said = scoring.judge_outputs(judged, scores, outputs)
            yield {
                **{"case": name, "partition": seed, "items": form.items, "part": form.part},
                "form": "distilled" if form.learnt else "chosen",
                "pools": ",".join(pools),
                **_told({score: row["value"] for score, row in said.items()}),
                "chosen_by": next(c.agreement for c in tuned.costs if c.update == tuned.update),
                "unmatched": left,
                "updates": tuning.describe(tuned.update, tuned.pool),
                "offline_seconds": offline,
            }


def _told(values: dict[str, float]) -> dict[str, float]:
    return {"single" if score == scoring.LEAVE_ONE_OUT else "halves": float(value)
            for score, value in values.items()}  # fmt: skip


def _same(row: dict[str, Any], name: str, seed: int, form: Form) -> bool:
    told = (row["case"], row["partition"], row.get("items"), row.get("part"), row["form"])
    learnt = "distilled" if form.learnt else "chosen"
    return told == (name, seed, form.items, form.part, learnt)


def main() -> None:
    """Measure every case on every partition; what is measured is not measured again."""
    options = harness.arguments(
        __doc__,
        quick="200 digits in 10 groups, one synset",
        partitions=(1,),
        data=True,
        cases={"nargs": "+", "default": list(CASES), "choices": list(CASES)},
    )
    path = options.output or harness.RESULTS / "few_items.json"
    done = [] if options.quick or not path.exists() else json.loads(path.read_text())["rows"]
    rows = [
        row
        for row in done
        if row["case"] not in options.cases or row["partition"] not in options.partitions
    ]
    for name in ("digits",) if options.quick else options.cases:
        for seed in options.partitions:
            for row in measure(options, name, seed, done):
                say(f"  {json.dumps(row, default=float)}")
                rows.append(row)
                harness.write(options, {"rows": rows})


if __name__ == "__main__":
    main()
