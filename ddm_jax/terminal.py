"""What the `ddm` command shows on a terminal, and how it sets JAX up. No text is markup."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ddm_jax.judge.store import Store
    from ddm_jax.run.estimate import Estimate
    from ddm_jax.run.finished import Answer


MOST_CPU_DEVICES = 8  # each holds the data
TELL_SECONDS = 20.0  # how often a line says how far it is, where nobody looks at a terminal


def prepare_jax() -> None:
    """Keep compiled programs for the next command, and make a device of each CPU core.

    XLA runs the small operations of one network on one core; a device a core trains or updates
    that many networks at once. What the user has set stands.

    Raises:
        ValueError: where JAX finds no device.
    """
    import jax

    found: Any = jax.config
    # The log of what is unexpected has all frames, and what they raise is told apart from ours.
    jax.config.update("jax_traceback_filtering", "off")
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
    try:
        jax.devices()
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ValueError(
            f"JAX finds no device with JAX_PLATFORMS={asked!r} ({str(error).splitlines()[0]}); "
            "unset it, or name what is there, such as cpu"
        ) from error


@contextmanager
def progress() -> Iterator:
    """Progress bars on a terminal, plain lines elsewhere, for a command that computes."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    from rich.progress import TextColumn as Column

    from ddm_jax.run import workdir

    prepare_jax()
    console = Console(stderr=True)
    bars = Progress(
        Column("  {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        Column("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def track(what: str, total: int):
        for old in bars.task_ids:
            bars.remove_task(old)
        task = bars.add_task(what, total=total, note="")
        told = time.perf_counter()

        def show(done: int, note: str) -> None:
            nonlocal told
            bars.update(task, completed=done, note=note)
            if not console.is_terminal and time.perf_counter() - told > TELL_SECONDS:
                told = time.perf_counter()
                say(f"  {done} of {total}, {note}")

        return show

    with bars:
        yield workdir.Progress(say, track)


def print_status(opened: Store) -> None:
    """What a truth store holds and what it was made with."""
    from ddm_jax.judge import filling

    found = filling.status(opened)
    left = found.declared - found.done
    counts = {
        "declared": found.declared,
        "done": found.done,
        "being trained by some process": found.claimed,
    }
    lines = [(name, str(count)) for name, count in counts.items()]
    _print_table(str(opened.folder), ("", "networks"), lines)
    if found.done:
        typer.echo(
            f"{found.seconds_per_row:.2g} s a network (median)"
            + (f", {left * found.seconds_per_row:.0f} s left on one process" if left else "")
        )
    for name, value in sorted(opened.identity.items()):
        typer.echo(f"  {name}: {value}")


def print_ceilings(summary: dict) -> None:
    """How noisy a truth is: the summary of `evaluate.fill_truth`."""
    from ddm_jax.run.wording import number

    lines = []
    for name, row in summary["ceilings"].items():
        low, high = row["ceiling_interval"]
        needed = row["runs_for_ceiling_0.8"]
        lines.append(
            (
                name,
                str(row["runs"]),
                number(row["reliability"]),
                number(row["one_retraining"]),
                number(row["ceiling"]),
                f"{number(low)} to {number(high)}",
                "no number" if needed is None else str(needed),
            )
        )
    head = ("", "runs", "two runs", "one retraining", "ceiling", "95 %", "runs for .8")
    _print_table("How well this truth can be predicted at all (Spearman)", head, lines)
    typer.echo(
        "two runs: one against another; one retraining: against the mean of the others; ceiling:\n"
        "a perfect predictor against the mean of all; the last column: runs for a ceiling of .8\n"
        f"{summary['networks']} networks of {summary['seconds_per_network']:.2g} s; checksum of "
        f"the outputs, rounded to 3 decimals: {summary['truth']}"
    )


def print_comparison(result: dict) -> None:
    """The scores of `evaluate.compare_estimators`."""
    from ddm_jax.run import evaluate

    _print_table("Spearman correlation with exact retraining", *evaluate.table(result), left=2)
    typer.echo(
        "95 % intervals over queries | over what was removed; ceiling: what a perfect predictor\n"
        "would score against a truth this noisy; seconds online are for all removals"
    )
    for note in evaluate.notes(result):
        typer.echo(note)


def print_estimate(found: Estimate) -> None:
    """What a run would take."""
    from ddm_jax.run import estimate

    head, *lines = estimate.table(found)
    _print_table("What this run would take", head, lines)
    typer.echo(estimate.told(found))


def print_answer(answer: Answer) -> None:
    """What a question to a finished run found."""
    head, *lines = answer.table
    _print_table(answer.title, head, lines)
    for sentence in answer.sentences:
        typer.echo(sentence)


def print_summary(metrics: dict) -> None:
    """How well a run agrees with retraining: the metrics of `stages.run`."""
    from ddm_jax.run.report import agreement_table

    head, *lines = agreement_table(metrics)
    _print_table("Agreement with exact retraining (rows removed x queries)", head, lines)
    for sentence in [*metrics["sentences"], *metrics["updates"]["sentences"]]:
        typer.echo(sentence)


def _print_table(
    title: str, head: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1
) -> None:
    """Print a table, not cut where nobody looks at a terminal; `left` columns are texts."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=Text(title), box=None, padding=(0, 1))
    for place, column in enumerate(head):
        number = place >= left
        table.add_column(Text(column), justify="right" if number else "left", no_wrap=number)
    for line in lines:
        table.add_row(*map(Text, line))
    if not console.is_terminal:
        console.width = 1000  # nothing is cut or broken
    console.print(table)
