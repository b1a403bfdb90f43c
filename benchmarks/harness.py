"""What every benchmark shares: its arguments, its partitions, timing, and writing of results.

A *partition* is one draw of everything: the split of the data, the clustering, the target network,
the random subsets and the seeds of the truth. A script asks for its arguments, measures each
partition, and writes `results/<script>.json`:

    options = harness.arguments(__doc__, quick="300 digits")
    rows = [measure(seed, options) for seed in options.partitions]
    harness.write(options, {"rows": harness.average(rows)})
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddm_jax.files import plain
from ddm_jax.run.workdir import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
WORK = HERE.parent / "runs" / "benchmarks"  # truths, which are kept from one run to the next
LONG = 20.0  # seconds: what takes longer is not run a second time to be timed without compilation
BEGIN = time.perf_counter()


def arguments(
    doc: str | None,
    *,
    quick: str,
    partitions: Sequence[int] = (10, 11, 12),
    data: bool = False,
    one_core: bool = False,
    **more: dict[str, Any],
) -> argparse.Namespace:
    """Read the command line, whose options are the same for every script.

    Args:
        doc: the script's docstring.
        quick: what its small form is.
        partitions: the default ones; the small form takes the first alone.
        data: whether it needs data sets beside digits, and so `--data-dir`.
        one_core: run on one, for times that stand beside another library's.
        more: further options, the arguments of `add_argument` by name.

    Returns:
        The options, with `work`, the folder for truths (of the small form a temporary one), and
        `changes`, the settings that place the data.
    """
    first = (doc or "").strip().splitlines()[0]
    parser = argparse.ArgumentParser(description=first)
    parser.add_argument("--quick", action="store_true", help=f"a small form: {quick}")
    parser.add_argument("--partitions", type=int, nargs="+", default=list(partitions))
    parser.add_argument("--output", type=Path, help="default results/<script>.json")
    parser.add_argument(
        "--data-dir",
        help="where TFDS keeps prepared data" if data else argparse.SUPPRESS,
    )
    for name, how in more.items():
        parser.add_argument(f"--{name}", **how)
    options = parser.parse_args()
    if one_core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    options.name = Path(sys.argv[0]).stem
    options.changes = [f"data.data_dir={options.data_dir}"] if options.data_dir else []
    options.work = WORK
    if options.quick:
        options.partitions = options.partitions[:1]
        options.work = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, options.work, ignore_errors=True)
    return options


def say(told: str) -> None:
    """Print at once."""
    print(told, flush=True)


def once(fn: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Result and seconds of one call, compilation included."""
    begin = time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    return result, time.perf_counter() - begin


def timed(fn: Callable[..., Any], *args: Any, long: float = LONG) -> tuple[Any, float]:
    """Result and seconds: of a second call, without compilation, unless the first one is long."""
    result, first = once(fn, *args)
    return result, first if first > long else once(fn, *args)[1]


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(once(run)[1])
    return seconds


def apart(words: Sequence[str], minutes: float | None = None) -> Any:
    """Run this script again with other words, in a process of its own: the JSON it prints last.

    Raises:
        RuntimeError: with the last line of its errors, or where it took too long.
    """
    try:
        done = subprocess.run(
            [sys.executable, sys.argv[0], *words],
            capture_output=True,
            text=True,
            timeout=None if minutes is None else 60 * minutes,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done in {minutes:.0f} minutes") from None
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["killed"])[-1][:200])
    return json.loads(done.stdout.splitlines()[-1])


def average(partitions: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Average the numbers of corresponding rows over partitions, and keep their range."""
    rows = []
    for same in zip(*partitions, strict=True):
        row: dict[str, Any] = {}
        for name, value in same[0].items():
            if isinstance(value, float):
                row[name] = float(np.mean([other[name] for other in same]))
                row[f"{name}_range"] = [f(other[name] for other in same) for f in (min, max)]
            elif not isinstance(value, tuple | list | dict):
                row[name] = value
        rows.append(row)
    return rows


def told(row: dict[str, Any]) -> str:
    """A row in a line: its words and numbers, seconds apart."""

    def short(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    shown = {k: v for k, v in row.items() if not isinstance(v, tuple | list | dict)}
    return "  " + ", ".join(f"{k} {short(v)}" for k, v in shown.items() if "seconds" not in k)


def write(options: argparse.Namespace, content: dict[str, Any], part: str = "") -> None:
    """Write what was measured with what it was measured by.

    `results/<script><part>.json`, `<script>_quick.json` of the small form, or `--output`.
    """
    name = f"{options.name}{'_quick' if options.quick else part}.json"
    path = options.output or RESULTS / name
    measured = {
        "command": shlex.join(["python", f"benchmarks/{options.name}.py", *_public_arguments()]),
        "commit": commit(),
        "versions": versions(),
        "cores": cores(),
        "peak_gib": peak_gib(),
        "seconds": time.perf_counter() - BEGIN,
        "partitions": options.partitions,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain(measured | content), indent=1) + "\n")
    say(f"wrote {path}")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_gib() -> float:
    """The most memory that this process has held."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _public_arguments() -> list[str]:
    words = sys.argv[1:]
    for place, shown in (("--data-dir", "DIR"), ("--text", "FILE"), ("--output", "FILE")):
        if place in words:
            words[words.index(place) + 1] = shown
    return words


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=HERE, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = git("status", "--porcelain", "--", "../ddm_jax", "*.py")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
