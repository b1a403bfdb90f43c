"""Kill the truth store's writers with SIGKILL at random moments, and count what is lost: nothing.

Two processes at a time fill the digits truth with `ddm truth`; after a random time both are killed,
20 times, with another chunk size each. After each kill every finished row must still be there,
byte for byte, and in the end the outputs must equal those of an undisturbed process.

    python benchmarks/kill_store.py [--quick] [--kills 20]
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
from harness import say

from ddm_jax.judge import store
from ddm_jax.run import evaluate

PROCESSES = 2
CHUNKS = (1, 3, 7, 16)


def start(workdir: Path, changes: list[str], chunk: int | None) -> subprocess.Popen:
    """One writer, in a process of its own."""
    words = [word for change in changes for word in ("--set", change)]
    words += ["--chunk", str(chunk)] if chunk else []
    return subprocess.Popen(
        [sys.executable, "-m", "ddm_jax", "truth", "digits", "--workdir", str(workdir), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finished(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of writing of every finished row."""
    if not (folder / store.MANIFEST).exists():
        return {}
    opened = store.inspect_store(folder)
    found = {}
    for row in store.declared(opened):
        if store.is_done(opened, row):
            path = store.paths(opened, row).values
            found[path.name] = (path.read_bytes(), path.stat().st_mtime_ns)
    return found


def wait_for_rows(folder: Path, count: int) -> None:
    """Wait until there are more done marks than `count`."""
    for _ in range(1000):
        if len(list((folder / store.ROWS).glob("*.json"))) > count:
            return
        time.sleep(0.1)
    sys.exit("no row was done in 100 s")


def main() -> None:
    """Kill, compare, and write the results."""
    options = harness.arguments(
        __doc__,
        quick="3 kills, a small truth",
        partitions=(10,),
        kills={"type": int, "default": 20},
        moments={"type": int, "default": 0, "help": "seed of the moments"},
    )
    kills = 3 if options.quick else options.kills
    seeds = 10 if options.quick else 40
    changes = [f"seed={options.partitions[0]}"]
    changes += [f"truth.seeds={seeds}", f"truth.subset_seeds={seeds}"]
    if options.quick:
        changes += ["data.train_size=300", "data.test_size=200"]
    draw = random.Random(options.moments)
    lost = repeated = 0
    progress = []
    with tempfile.TemporaryDirectory() as place:
        disturbed, quiet = Path(place) / "disturbed", Path(place) / "quiet"
        before: dict[str, tuple[bytes, int]] = {}
        for kill in range(kills):
            chunk = CHUNKS[kill % len(CHUNKS)]
            writers = [start(disturbed, changes, chunk) for _ in range(PROCESSES)]
            if kill % 3 < 2:  # while rows are computed
                wait_for_rows(disturbed / evaluate.TRUTH, len(before))
                time.sleep(draw.uniform(0.0, 3.0))
            else:  # while anything happens: starting, training the target, making the store
                time.sleep(draw.uniform(0.0, 10.0))
            for writer in writers:
                writer.kill()
                writer.wait()
            after = finished(disturbed / evaluate.TRUTH)
            lost += sum(after.get(name, (b"",))[0] != row[0] for name, row in before.items())
            repeated += sum(after.get(name, row)[1] != row[1] for name, row in before.items())
            progress.append(len(after))
            say(f"kill {kill + 1}: {len(after)} rows done, {lost} lost")
            before = after
        for folder in (disturbed, quiet):
            code = start(folder, changes, None).wait()
            if code:
                sys.exit(f"`ddm truth` on {folder.name} ended with {code}")
        ends = finished(disturbed / evaluate.TRUTH)
        lost += sum(ends.get(name, (b"",))[0] != row[0] for name, row in before.items())
        repeated += sum(ends.get(name, row)[1] != row[1] for name, row in before.items())
        outputs = [store.read(store.inspect_store(f / evaluate.TRUTH)) for f in (disturbed, quiet)]
    result = {
        "kills": kills,
        "processes": PROCESSES,
        "rows": len(ends),
        "rows_done_after_each_kill": progress,
        "kills_while_filling": sum(
            one < len(ends) and one > former
            for former, one in zip([0, *progress], progress, strict=False)
        ),
        "rows_lost": lost,
        "rows_repeated": repeated,
        "equal_bits": bool(np.array_equal(*outputs, equal_nan=True)),
    }
    say(str(result))
    harness.write(options, {"result": result})
    if lost or repeated or not result["equal_bits"]:
        sys.exit("the store lost or repeated work")


if __name__ == "__main__":
    main()
