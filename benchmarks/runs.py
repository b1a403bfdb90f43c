"""`ddm run` as a whole process: what it says of itself, wall time and peak memory.

python benchmarks/runs.py --data-dir DIR [--quick]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

RUNS = {
    "digits": ["digits"],
    "mnist": ["mnist"],
    "mnist-convnet": ["mnist", "--preset", "mnist-convnet"],
    "mnist-60k": ["mnist", "--preset", "mnist-60k"],
}
SMALL = ("data.train_size=200", "data.test_size=50", "cluster.num_groups=10", "train.epochs=4")
SMALL += ("distill.steps=50", "tune.subsets=0", "check.groups=2", "check.subsets=2")
QUICK = [word for each in SMALL for word in ("--set", each)]


def measure(words: list[str], workdir: Path) -> dict[str, Any]:
    """Run one command in a process of its own."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ddm_jax", "run", *words, "--workdir", str(workdir)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    metrics = json.loads((workdir / "metrics.json").read_text())
    single, _, halves = metrics["agreement"]
    seconds = metrics["seconds"]
    return {
        "groups": metrics["sizes"]["groups"],
        "test_accuracy": metrics["accuracy"]["test"],
        "single": single,
        "halves": halves,
        "updates": metrics["updates"]["chosen"],
        "online_seconds": seconds["attribution"],
        "offline_seconds": seconds["synset"],
        "retraining_seconds": metrics["seconds_a_retrained_network"],
        "stage_seconds": seconds,
        "wall_seconds": wall,
        # Of all processes so far: the runs go from small to large.
        "peak_gib": peak,
    }


def main() -> None:
    """Run all, from small to large, and write results/runs.json."""
    options = harness.arguments(__doc__, quick="digits alone, shortened", data=True)
    results = {}
    for name, words in RUNS.items():
        if name != "digits":
            if options.quick:
                continue
            words = [*words, *(["--data-dir", options.data_dir] if options.data_dir else [])]
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(words + (QUICK if options.quick else []), Path(folder) / "run")
        harness.say(f"{name}: {json.dumps(results[name])}")
    harness.write(options, {"runs": results})


if __name__ == "__main__":
    main()
