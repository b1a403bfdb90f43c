"""What the `ddm` command shows on a terminal, and how it sets JAX up."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from ddm_jax.finished import Answer
    from ddm_jax.store import Store


MOST_CPU_DEVICES = 8  # each holds the data


def prepare_jax() -> None:
    """Keep compiled programs for the next command, and make a device of each CPU core.

    XLA runs the small operations of one network on one core; a device a core trains or updates
    that many networks at once. What the user has set stands.
    """
    import jax

    found: Any = jax.config
    if found.jax_compilation_cache_dir is None:
        place = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        # Programs are made for one kind of CPU, and home directories are shared.
        folder = Path(place) / "ddm_jax" / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    set_already = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not set_already and found.jax_num_cpu_devices < 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with suppress(RuntimeError):  # where this process has made its devices already
            jax.config.update("jax_num_cpu_devices", min(cores or 1, MOST_CPU_DEVICES))


@contextmanager
def progress() -> Iterator:
    """Progress bars on a terminal, plain lines elsewhere; SIGTERM interrupts like Ctrl-C."""
    from ddm_jax import pipeline

    console = Console(stderr=True)
    bars = Progress(
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    def track(what: str, total: int):
        for old in bars.task_ids:
            bars.remove_task(old)
        task = bars.add_task(what, total=total, note="")
        told = time.perf_counter()

        def show(done: int, note: str) -> None:
            nonlocal told
            bars.update(task, completed=done, note=note)
            if not console.is_terminal and time.perf_counter() - told > 20:
                told = time.perf_counter()
                console.print(f"  {done} of {total}, {note}", highlight=False, markup=False)

        return show

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    def interrupt(signum, frame) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with bars:
            yield pipeline.Progress(say, track)
    finally:
        signal.signal(signal.SIGTERM, before)


def print_status(opened: Store) -> None:
    """What a truth store holds and what it was made with."""
    from ddm_jax import filling

    found = filling.status(opened)
    left = found.declared - found.done
    table = Table(title=str(opened.folder))
    for column in ("", "networks"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("declared", str(found.declared))
    table.add_row("done", str(found.done))
    table.add_row("being trained by some process", str(found.claimed))
    console = Console()
    console.print(table)
    if found.done:
        console.print(
            f"{found.seconds_per_row:.2g} s a network (median)"
            + (f", {left * found.seconds_per_row:.0f} s left on one process" if left else "")
        )
    for name, value in sorted(opened.identity.items()):
        console.print(f"  {name}: {value}", highlight=False, markup=False)


def print_ceilings(summary: dict) -> None:
    """How noisy a truth is: the summary of `evaluate.fill_truth`."""
    from ddm_jax.report import number

    table = Table(title="How well this truth can be predicted at all (Spearman)", box=None)
    for column in ("", "runs", "two runs", "one retraining", "ceiling", "95 %", "runs for .8"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, row in summary["ceilings"].items():
        low, high = row["ceiling_interval"]
        needed = row["runs_for_ceiling_0.8"]
        table.add_row(
            name,
            str(row["runs"]),
            number(row["reliability"]),
            number(row["one_retraining"]),
            number(row["ceiling"]),
            f"{number(low)} to {number(high)}",
            "no number" if needed is None else str(needed),
        )
    console = _wide()
    console.print(table)
    console.print(
        "two runs: one against another; one retraining: against the mean of the others; ceiling: "
        "a perfect predictor against the mean of all; the last column: runs for a ceiling of .8"
    )
    console.print(
        f"{summary['networks']} networks of {summary['seconds_per_network']:.2g} s; checksum of "
        f"the outputs, rounded to 3 decimals: {summary['checksum']}",
        highlight=False,
        markup=False,
    )


def print_comparison(result: dict) -> None:
    """The scores of `evaluate.compare_estimators`."""
    from ddm_jax import evaluate

    head, lines = evaluate.table(result)
    table = Table(title="Spearman correlation with exact retraining", box=None, padding=(0, 1))
    for number, column in enumerate(head):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console = _wide()
    console.print(table)
    console.print(
        "95 % intervals over queries | over what was removed; ceiling: what a perfect predictor "
        "would score against a truth this noisy; seconds online are for all removals"
    )
    for note in evaluate.notes(result):
        console.print(note, highlight=False, markup=False)


def print_answer(answer: Answer) -> None:
    """What a question to a finished run found."""
    head, *lines = answer.table
    table = Table(title=answer.title, box=None)
    for place, column in enumerate(head):
        table.add_column(column, justify="left" if not place else "right")
    for line in lines:
        table.add_row(*line)
    console = _wide()
    console.print(table)
    for sentence in answer.sentences:
        console.print(sentence, highlight=False, markup=False)


def _wide() -> Console:
    """A console that does not cut tables where nobody looks at a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def print_summary(metrics: dict) -> None:
    """How well a run agrees with retraining: the metrics of `pipeline.run`."""
    from ddm_jax.report import number

    table = Table(title="Agreement with exact retraining (rows removed x queries)")
    for column in ("", "DDM", "grad-dot", "one retraining", "perfect predictor"):
        table.add_column(column, justify="left" if not column else "right")
    for row in metrics["agreement"]:
        table.add_row(
            row["what"],
            *(number(row[c]) for c in ("ddm", "grad_dot", "one_retraining", "perfect")),
        )
    console = Console()
    console.print(table)
    for line in metrics["sentences"]:
        console.print(line)
