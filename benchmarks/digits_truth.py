"""Regenerate the truth of the digits protocol and write its checksum, to tell when it moves.

The same as `ddm truth digits`, whose checksum it must equal: of all 728 x 797 outputs, rounded to
3 decimals. It holds for one JAX version and one kind of CPU; the means hold everywhere, to .01.

    python benchmarks/digits_truth.py
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import harness
import protocol

from ddm_jax.judge.truth import checksum
from ddm_jax.run.evaluate import Ready


def cpu() -> str:
    """What this CPU can do, in 12 characters: other instructions round otherwise."""
    told = [platform.machine()]
    known = Path("/proc/cpuinfo")
    if known.exists():
        lines = known.read_text().splitlines()
        told += [line for line in lines if line.startswith(("model name", "flags"))][:2]
    return hashlib.sha256(" ".join(told).encode()).hexdigest()[:12]


def summary(ready: Ready) -> dict[str, Any]:
    """The checksum, and the mean loss of each kind of row."""
    truth = ready.truth
    return {
        "checksum": checksum(truth),
        "cpu": cpu(),
        "mean_loss": {
            "everything kept": float(truth.full.mean()),
            "one group left out": float(truth.single.mean()),
            "halves": float(truth.subsets.mean()),
        },
    }


if __name__ == "__main__":
    options = harness.arguments(__doc__, quick="with the truth made anew", partitions=(0,))
    harness.write(options, {"truth": summary(protocol.prepare(options, "digits", 0))})
