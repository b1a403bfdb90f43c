"""ConvNets: MNIST (5,000 images) and CIFAR-10 (10,000), leave-one-group-out and random halves.

k-means inside each class (K = 20); ConvNet of width 16 with instance norm, SGD .05 with a cosine
to .001, momentum .9, batch 100; 6 epochs on MNIST, 5 on CIFAR-10: the presets "mnist-convnet" and
"cifar10-convnet". Truth: test losses of exact retraining, 8 (MNIST) and 6 (CIFAR-10) seeds for
single groups, 4 for halves; the results say how many a ceiling of .8 takes. Settings are chosen
on a quarter of the halves and queries and reported on the others.

    python benchmarks/convnet_groups.py --data-dir DIR [--quick] [--partition 10]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import protocol

from ddm_jax import candidates, compare, evaluate

PRESETS = {
    "mnist-convnet": ("model.width=16",),
    "cifar10-convnet": (),
}
ESTIMATORS = ("ddm", "grad_dot")
FEW = {"steps": (50, 100)}  # online settings to choose from, in the quick form
QUICK = (
    "data.train_size=200",
    "data.test_size=60",
    "model.width=4",
    "train.epochs=4",
    "train.batch_size=40",
    "cluster.num_groups=10",
    "distill.steps=20",
    "truth.subsets=8",
    "truth.seeds=2",
    "truth.subset_seeds=2",
)


def main() -> None:
    """Run both data sets and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="where TFDS keeps prepared data")
    parser.add_argument("--quick", action="store_true", help="MNIST alone, 200 images")
    parser.add_argument("--partition", type=int, default=10)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    options = parser.parse_args()
    results: dict[str, Any] = {}
    written = protocol.RESULTS / "convnet_groups.json"
    if not options.quick and written.exists():  # one data set can be measured again alone
        found = json.loads(written.read_text())
        results = found["presets"] if found["partition"] == options.partition else {}
    for preset in options.presets[: 1 if options.quick else None]:
        changes = QUICK if options.quick else PRESETS[preset]
        with tempfile.TemporaryDirectory() as folder:
            ready = protocol.prepare(
                preset,
                options.partition,
                *changes,
                data_dir=options.data_dir,
                folder=Path(folder) if options.quick else None,
            )
        results[preset] = {
            "seconds_per_retraining": ready.truth.seconds,
            "ceilings": evaluate.ceilings(ready.truth),
            "rows": [],
        }
        for name in ESTIMATORS:
            chosen = candidates.CANDIDATES[name]
            if name == "ddm" and options.quick:
                chosen = chosen._replace(online=FEW)
            results[preset]["rows"] += compare.judge(
                name,
                ready.plan,
                ready.truth,
                ready.target,
                ready.groups,
                protocol.say,
                candidates=chosen,
            )
        protocol.write_json(
            "convnet_groups",
            options.quick,
            {"partition": options.partition, "presets": results},
        )


if __name__ == "__main__":
    main()
