"""dattri's MNIST protocols: point attribution, against retraining on random halves of the points.

The first 5,000 training and 500 test images of MNIST in their original order, (x - .1307)/.3081;
logistic regression (SGD .01, batch 32, 20 epochs) and an MLP 784-128-64-10 with dropout .1 (SGD
.01, momentum .9, batch 64, 50 epochs), started uniform in +-1/sqrt(fan_in): the presets
"dattri-lr" and "dattri-mlp". Truth: minus the cross-entropy after training on each of 50 random
halves alone, every network with a seed of its own. LDS over all 50 halves and 500 images, with one
run a half (as published) and with the mean of four. Deng et al., dattri, 2024, arXiv 2410.04555.

    python benchmarks/dattri_protocol.py --data-dir DIR [--quick] [--partition 10]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import protocol

from ddm_jax import compare, metrics

PRESETS = ("dattri-lr", "dattri-mlp")
# Read off the figures of the paper; one run a half.
PUBLISHED = {"grad_dot": {"dattri-lr": 0.327, "dattri-mlp": 0.100}}
QUICK = (
    "data.train_size=400",
    "data.test_size=60",
    "train.epochs=5",
    "truth.subsets=12",
    "truth.subset_seeds=3",
)


def rows_of(preset: str, seed: int, changes: tuple[str, ...], options: Any, folder: Path | None):
    """Ceilings and every estimator that has no setting to choose, on the whole truth."""
    ready = protocol.prepare(preset, seed, *changes, data_dir=options.data_dir, folder=folder)
    truth, queries = ready.truth, len(ready.plan.split.test.x)
    whole = compare.Part(np.arange(len(truth.keep)), np.arange(queries))
    nothing = compare.Part(np.arange(0), np.arange(0))
    ceiling = metrics.noise_ceiling(truth.subsets)
    rows: list[dict[str, Any]] = [
        {"preset": preset, "estimator": "perfect predictor"}
        | {
            "value_one_run": metrics.ceiling_of(ceiling.reliability, 1),
            "value": ceiling.perfect,
            "over_rows": list(ceiling.interval),
        }
        | compare.ceiling_row(ceiling)
        | {"seconds_per_retraining": truth.seconds}
    ]
    for name in PUBLISHED:
        for row in compare.judge(
            name,
            ready.plan,
            truth,
            ready.target,
            ready.groups,
            protocol.say,
            (nothing, whole),
        ):
            row["published_one_run"] = PUBLISHED[name][preset]
            rows.append({"preset": preset} | row)
    return rows


def main() -> None:
    """Run both protocols and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="where TFDS keeps prepared data")
    parser.add_argument("--quick", action="store_true", help="logistic regression, 400 images")
    parser.add_argument("--partition", type=int, default=10, help="seed of halves and networks")
    options = parser.parse_args()
    rows = []
    for preset in PRESETS[: 1 if options.quick else None]:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) if options.quick else None
            changes = QUICK if options.quick else ()
            rows += rows_of(preset, options.partition, changes, options, place)
    protocol.write_json(
        "dattri_protocol", options.quick, {"partition": options.partition, "rows": rows}
    )


if __name__ == "__main__":
    main()
