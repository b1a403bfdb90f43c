"""How the updates of a run go, what they cost beside retraining, and when to retrain instead."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ddm_jax.judge.rivals import Rival, pays_after
from ddm_jax.run.wording import is_defined, number
from ddm_jax.tuning import Tried, describe
from ddm_jax.updates import settled

if TYPE_CHECKING:
    from ddm_jax.run.choosing import Tuning

POOLS = {
    "synset": "distilled datamodel",
    "corrected": "distilled datamodel, corrected",
    "data": "steps on all of the training data",
}


def told_updates(
    tuning: Tuning, seconds: dict[str, float], step_items: int, gradients: int
) -> dict[str, Any]:
    """How the updates go, what it was chosen from, and when to retrain instead; JSON values.

    Args:
        step_items: that a step takes.
        gradients: example gradients of one retraining.
    """
    told: dict[str, Any] = {"chosen": asdict(tuning.update), "sentences": [], "costs": []}
    words = describe(replace(tuning.update, batch=step_items), tuning.pool)
    if not tuning.tried:
        told["sentences"].append(f"Updates, as the settings say: {words}.")
        share = settled(tuning.update).steps * step_items / gradients
        if share >= 1:
            told["sentences"].append(
                f"An answer takes {share:.2g} times the example gradients of a retraining: retrain "
                "instead, or lower online.steps."
            )
        return told
    best = next(each for each in tuning.costs if each.update == tuning.update)
    rows: list[tuple[Any, ...]] = [
        (f"{POOLS[each.pool]}, the chosen recipe", each.share, each.agreement, each.seconds)
        for each in tuning.costs
    ]
    if (other := tuning.other) is not None:
        what = f"{POOLS[other.pool]}, the best recipe of theirs"
        rows.append((what, other.share, other.agreement, other.seconds))
    rows += [
        (f"retraining cut to {_epochs(each.epochs)}", each.share, each.agreement, each.seconds)
        for each in tuning.rivals
    ]
    full = Rival(0, 1.0, tuning.one_retraining, tuning.seconds_a_retraining)
    rows.append(("one retraining", 1.0, full.agreement, full.seconds))
    told["costs"] = [
        dict(zip(("what", "share", "agreement", "seconds"), row, strict=True)) for row in rows
    ]
    told["sentences"] += [
        f"Updates, chosen of {len(tuning.tried)} recipes by retrained halves: {words}.",
        f"Their group LDS on the tuning subsets is {number(best.agreement)} at {best.share:.0%} of "
        "a retraining.",
    ]
    if other is not None:
        told["sentences"].append(_beside(best, other))
    as_good = [each for each in (*tuning.rivals, full) if each.agreement >= best.agreement]
    rival = min(as_good, key=lambda each: each.seconds, default=full)
    if not is_defined(rival.seconds):
        return told
    name = f"retraining cut to {_epochs(rival.epochs)}" if rival.epochs else "retraining in full"
    offline = seconds["synset"] + seconds["tuning"]
    after = pays_after(offline, best.seconds, rival.seconds)
    told["pays_after"] = after if np.isfinite(after) else None
    said = f"The cheapest retraining that is as good is {name}, which"
    if not as_good:
        said = f"No retraining that was tried is as good. {name.capitalize()}"
        said += f" ({number(rival.agreement)})"
    said += f" takes {rival.seconds:.2g} s a question, the updates {best.seconds:.2g} s. "
    if np.isfinite(after):
        said += f"Distilling and choosing ({offline:.0f} s) pay after about {_two_digits(after):,} "
        said += "questions."
    else:
        said += "Retrain instead: here the updates of a question cost no less."
    told["sentences"].append(said)
    return told


def _beside(best: Tried, other: Tried) -> str:
    """What the other kind would have reached: with the training data, or without."""
    reached, more = "diverged with every recipe", 0.0
    if is_defined(other.agreement):
        reached = f"reaches {other.agreement:.3f}"
        more = abs(best.agreement - other.agreement)
    if best.pool == "data":
        return (
            f"The steps take the training data themselves, for the {POOLS[other.pool]} {reached}: "
            f"more items would buy {more:.3f} at most. Answers need the training data then; "
            "`--set tune.pools=synset,corrected` answers without them."
        )
    buys = f"{more:.3f} at most" if other.agreement > best.agreement else "nothing"
    return (
        f"All of the training data in place of the {POOLS[best.pool]} {reached}: more items would "
        f"buy {buys}."
    )


def _two_digits(value: float) -> int:
    """A number of questions, as exact as timings are."""
    return int(float(f"{max(value, 1):.2g}"))


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def cost_table(result: dict[str, Any]) -> list[list[str]]:
    """Agreement against cost on the tuning subsets; the head first."""
    lines = [["", "cost, of a retraining", "group LDS on the tuning subsets", "seconds a question"]]
    for row in result.get("updates", {}).get("costs", []):
        seconds = row["seconds"]
        lines.append(
            [
                row["what"],
                f"{row['share']:.1%}",
                number(row["agreement"]),
                f"{seconds:.2g}" if is_defined(seconds) else "",
            ]
        )
    return lines if len(lines) > 1 else []
