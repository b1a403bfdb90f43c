"""The `ddm` command."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="ddm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which training data made my model do this, and what if that data were gone? "
    "Distilled datamodels in JAX.",
)

Dataset = Annotated[
    str | None, typer.Argument(help="digits (the default) or a TFDS name such as mnist.")
]
Workdir = Annotated[
    Path | None,
    typer.Option(help="Where the run is kept. Default: runs/<preset or data set>."),
]
Preset = Annotated[
    str | None,
    typer.Option(help="Start from these settings; `ddm settings` lists them."),
]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting, for example distill.items=2. Repeatable."),
]
DataDir = Annotated[
    str | None, typer.Option(help="Where TFDS keeps prepared data. Default: TFDS's own.")
]


@app.command()
def run(
    dataset: Dataset = None,
    workdir: Workdir = None,
    preset: Preset = None,
    set_: Override = None,
    data_dir: DataDir = None,
) -> None:
    """Run the whole method, or pick up a run where it was; ends with a report.

    A run is known by its work directory: `ddm run --workdir W` goes on with what W holds.
    """
    with _errors():
        from ddm_jax import config as settings
        from ddm_jax import pipeline

        chosen = preset or settings.default_preset(dataset or "digits")
        if workdir is not None and (workdir / "config.json").exists() and not (dataset or preset):
            config = settings.load(workdir / "config.json")
        else:
            config = settings.preset(chosen)
        named = {"data.name": dataset, "data.data_dir": data_dir}
        assignments = [f"{name}={value}" for name, value in named.items() if value is not None]
        config = settings.override(config, [*assignments, *(set_ or [])])
        workdir = workdir or Path("runs") / (preset or dataset or chosen)
        begin = time.perf_counter()
        with _progress() as progress:
            metrics = pipeline.run(config, workdir, progress)
        _print_summary(metrics)
        typer.echo(f"\nreport: {workdir / 'report.html'}  ({time.perf_counter() - begin:.0f} s)")


def _stage_command(name: str, stage: str, about: str) -> None:
    def command(
        workdir: Annotated[Path, typer.Option(help="The work directory of a run.")],
        set_: Override = None,
    ) -> None:
        with _errors():
            from ddm_jax import config as settings
            from ddm_jax import pipeline
            from ddm_jax.workdir import check_stage_change

            path = workdir / "config.json"
            if not path.exists():
                raise ValueError(f"{workdir} holds no run; start one with `ddm run`")
            old = settings.load(path)
            new = settings.override(old, set_ or [])
            check_stage_change(stage, old, new)
            with _progress() as progress:
                pipeline.run_stage(stage, workdir, new, progress)
            if stage != "report":
                typer.echo(f"`ddm run --workdir {workdir}` brings the later stages up to date")

    command.__doc__ = about
    app.command(name)(command)


_stage_command("train", "target", "Train the target network again.")
_stage_command("cluster", "groups", "Cut the training set into groups again.")
_stage_command("distill", "synset", "Distil the synset again (offline stage).")
_stage_command("attribute", "attribution", "Leave out every group again (online stage).")
_stage_command("check", "check", "Compare with exact retraining again.")
_stage_command("report", "report", "Write metrics.json, the figures and report.html again.")


@app.command("settings")
def show_settings(preset: Preset = None, workdir: Workdir = None) -> None:
    """List the presets, and all settings of one preset or of a run."""
    with _errors():
        from ddm_jax import config as settings

        if workdir is not None:
            config = settings.load(workdir / "config.json")
        else:
            config = settings.preset(preset or "digits")
            for name, (about, _) in settings.PRESETS.items():
                typer.echo(f"--preset {name:<16}{about}")
            typer.echo("")
        for name, value in settings.settings(config).items():
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
            typer.echo(f"{name}={'none' if shown is None else shown}")


def _print_summary(metrics: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Agreement with exact retraining (rows removed x queries)")
    for column in ("", "DDM", "grad-dot", "one retraining", "perfect predictor"):
        table.add_column(column, justify="left" if not column else "right")
    for row in metrics["agreement"]:
        table.add_row(
            row["what"],
            *(
                f"{row[c]:.3f}" if row[c] == row[c] else "undefined"
                for c in ("ddm", "grad_dot", "one_retraining", "perfect")
            ),
        )
    console = Console()
    console.print(table)
    for line in metrics["sentences"]:
        console.print(line)


@contextmanager
def _progress() -> Iterator:
    """Progress bars on a terminal, plain lines elsewhere; SIGTERM interrupts like Ctrl-C."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

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
                console.print(f"  {done} of {total}, {note}", highlight=False)

        return show

    def say(text: str) -> None:
        console.print(text, highlight=False)

    def interrupt(signum, frame) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with bars:
            yield pipeline.Progress(say, track)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _errors() -> Iterator[None]:
    """Turn mistakes into one line and exit code 1, and an interrupt into how to go on."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the same command picks up where it was", err=True)
        raise typer.Exit(130) from error


def main() -> None:
    """Entry point of the `ddm` command."""
    app()


if __name__ == "__main__":
    main()
