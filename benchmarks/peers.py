"""dattri's and traker's own attributors beside ours, on dattri's MNIST protocols.

The presets "dattri-lr" and "dattri-mlp" (5,000 MNIST images): the truth from the store, four
retrainings on each of 50 random halves, and the one trained network, converted to PyTorch
and checked to give the same logits within 1e-4. Every method scores the same 5,000 x 500 points
on one thread. LDS on three quarters of the halves and of the queries, for all methods alike; the
damping of the influence function is chosen on the other quarter. One checkpoint, so TracIn is
grad-dot, and TRAK has one model, trained on all the data.

dattri projects gradients to 512 dimensions in TracIn unless its attribute `projector_kwargs` is
set to None after construction: both stand in the table, and without projection its scores must
agree with ours (Spearman over .99). Training points go to dattri in one batch where their
gradients take under 4 GiB, since it computes the queries' side again for every batch.

Theirs are positive where a point helps, and are turned to our sign for a loss. Seconds are of a
second run where the first took under 20; offline is what does not depend on the queries. A method
that throws stands in the results with its error, one whose library is not installed too.

    python benchmarks/peers.py --data-dir DIR [--quick] [--presets dattri-lr dattri-mlp]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import metadata as packages
from typing import Any

import harness
import numpy as np
import protocol
from harness import say
from peer_methods import METHODS, THEIRS, Scored, ours, to_torch

from ddm_jax import metrics
from ddm_jax.judge import compare, scoring
from ddm_jax.run.evaluate import Ready

PRESETS = ("dattri-lr", "dattri-mlp")
OURS = "ddm_jax: grad-dot"
QUICK = (
    "data.train_size=400",
    "data.test_size=60",
    "train.epochs=5",
    "truth.subsets=12",
    "truth.subset_seeds=3",
)


def judge(ready: Ready, calls: dict[float, Callable[[], Scored]]) -> tuple[dict[str, Any], Any]:
    """Choose the damping where there are several, and score; the row and the scores."""
    truth = ready.truth
    tuning, reporting = compare.split_parts(
        truth.keep, len(ready.plan.split.test.x), ready.plan.config.seed
    )
    (name,) = scoring.score_names(truth)

    def predict(found: Scored, part: scoring.Part) -> np.ndarray:
        return metrics.additive_outputs(found.scores[:, part.queries], truth.masks[part.subsets])

    tried: dict[float, tuple[float, Scored]] = {}
    for setting, call in calls.items():
        found, took = harness.once(call)
        found = call() if took < harness.LONG else found
        if not np.isfinite(found.scores).all():
            say(f"  {setting}: scores that are not finite")
            continue
        true = scoring.true_runs(truth, name, tuning).mean(0)
        agreement = metrics.nan_mean(metrics.per_query_correlation(predict(found, tuning), true))
        tried[setting] = agreement, found
    if not tried:
        raise ValueError("its scores are not finite")
    best = max(tried, key=lambda setting: tried[setting][0])
    found = tried[best][1]
    row = scoring.score_row(predict(found, reporting), scoring.true_runs(truth, name, reporting))
    row |= {"offline_seconds": found.offline_seconds, "online_seconds": found.online_seconds}
    if len(calls) > 1:
        row |= {"damping": best, "tuning_values": {str(s): v for s, (v, _) in tried.items()}}
    return row, found.scores


def rows_of(preset: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every method on one preset, ours first."""
    (seed,) = options.partitions
    ready = protocol.prepare(options, preset, seed, *(QUICK if options.quick else ()))
    if ready.plan.truth.truth.objective != "loss":
        raise ValueError(f"{preset} explains another output than the loss")
    side = to_torch(ready)
    rows, ours_scores = [], np.zeros(0)
    for method in (OURS, *METHODS):
        row: dict[str, Any] = {"preset": preset, "estimator": method}
        try:
            if method == OURS:
                found, ours_scores = judge(ready, {0.0: ours(ready)})
            else:
                found, scores = judge(ready, METHODS[method](side))
                agreement = metrics.leave_one_out_correlation(scores, ours_scores)
                found["agreement_with_ours"] = agreement.mean
            row |= found
        except Exception as error:  # whatever it is, the others go on and the table shows it
            told = str(error).splitlines()
            row["error"] = f"{type(error).__name__}: {told[0] if told else ''}"
        say(f"  { ({k: row[k] for k in row if not isinstance(row[k], dict | list)}) }")
        rows.append(row)
    return rows


def version(name: str) -> str:
    """Of an installed library."""
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Run the presets and write results/peers.json."""
    options = harness.arguments(
        __doc__,
        quick="400 images",
        partitions=(10,),
        data=True,
        one_core=True,
        presets={"nargs": "+", "choices": PRESETS, "default": PRESETS[:1]},
    )
    rows = [row for preset in options.presets for row in rows_of(preset, options)]
    settings = {"partition": options.partitions[0], "presets": list(options.presets)}
    peers = {name: version(name) for name in ("torch", "dattri", "traker")}
    harness.write(options, {"settings": settings, "peers": peers, "rows": rows})
    for row in rows:
        if row["estimator"] == THEIRS and not row.get("agreement_with_ours", 1.0) > 0.99:
            raise AssertionError(f"grad-dot differs from dattri's: {row}")


if __name__ == "__main__":
    main()
