"""Regenerate the truth of the digits protocol and write its checksum, to tell when it moves.

The same as `ddm truth digits`, whose checksum it must equal: of all 728 x 797 outputs, rounded to
3 decimals. It holds for one JAX version and one kind of CPU; the means hold everywhere, to .01.

    python benchmarks/digits_truth.py
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
from pathlib import Path
from typing import Any

import protocol

from ddm_jax import config, evaluate, store, truth
from ddm_jax.plan import make_plan


def cpu() -> str:
    """What this CPU can do, in 12 characters: other instructions round otherwise."""
    told = [platform.machine()]
    known = Path("/proc/cpuinfo")
    if known.exists():
        lines = known.read_text().splitlines()
        told += [line for line in lines if line.startswith(("model name", "flags"))][:2]
    return hashlib.sha256(" ".join(told).encode()).hexdigest()[:12]


def regenerate(folder: Path) -> dict[str, Any]:
    """Fill the truth in an empty folder; its checksum, and the mean loss of each kind of row."""
    chosen = config.preset("digits")
    summary = evaluate.fill_truth(chosen, folder, protocol.PROGRESS)
    outputs = store.read(store.inspect_store(folder / evaluate.TRUTH))
    rows = truth.declare(make_plan(chosen), chosen.cluster.num_groups)
    return {
        "checksum": summary["checksum"],
        "cpu": cpu(),
        "mean_loss": {
            "everything kept": float(outputs[:, 0].mean()),
            "one group left out": float(outputs[:, 1 : 1 + rows.groups_out].mean()),
            "halves": float(outputs[:, rows.keep > 0].mean()),
        },
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        protocol.write_json("digits_truth", False, {"truth": regenerate(Path(place))})
