"""The `ddm` command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_jax import terminal

if TYPE_CHECKING:
    from ddm_jax.config import Config
    from ddm_jax.finished import Answer

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
Chunk = Annotated[
    int | None,
    typer.Option(help="Networks trained at once. Default: enough to fill two seconds."),
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
        from ddm_jax import pipeline

        config, workdir = _chosen(dataset, workdir, preset, set_, data_dir)
        begin = time.perf_counter()
        with terminal.progress() as progress:
            metrics = pipeline.run(config, workdir, progress)
        terminal.print_summary(metrics)
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
            with terminal.progress() as progress:
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


@app.command()
def truth(
    dataset: Dataset = None,
    workdir: Workdir = None,
    preset: Preset = None,
    set_: Override = None,
    data_dir: DataDir = None,
    chunk: Chunk = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Say what the store holds, and compute nothing.")
    ] = False,
) -> None:
    """Retrain exactly: fill the truth store of a work directory, and say how noisy it is.

    Run it as often and in as many processes at once as you like: no network is trained twice,
    and a killed process loses none that was done.
    """
    with _errors():
        from ddm_jax import evaluate, store

        if inspect:
            workdir = workdir or _default_workdir(dataset, preset)
            terminal.print_status(store.inspect_store(workdir / evaluate.TRUTH))
            return
        config, workdir = _chosen(dataset, workdir, preset, set_, data_dir)
        with terminal.progress() as progress:
            summary = evaluate.fill_truth(config, workdir, progress, chunk)
        terminal.print_ceilings(summary)
        typer.echo(f"\ntruth: {workdir / evaluate.TRUTH}")


@app.command()
def compare(
    dataset: Dataset = None,
    estimators: Annotated[
        str, typer.Option(help="Which, with commas between; a wrong name lists all.")
    ] = "ddm,grad_dot",
    workdir: Workdir = None,
    preset: Preset = None,
    set_: Override = None,
    data_dir: DataDir = None,
    chunk: Chunk = None,
) -> None:
    """Judge estimators on exact retraining: one table with intervals, ceilings and seconds.

    Settings are chosen on one part of the truth and scores reported on the other. The truth is
    filled first, where it is not. An estimator that fails stands in the table with its error, and
    the command fails.
    """
    with _errors():
        from ddm_jax import evaluate

        config, workdir = _chosen(dataset, workdir, preset, set_, data_dir)
        names = [name.strip() for name in estimators.split(",") if name.strip()]
        try:
            with terminal.progress() as progress:
                result = evaluate.compare_estimators(config, workdir, names, progress, chunk)
        except evaluate.ComparisonError:
            terminal.print_comparison(evaluate.read_comparison(workdir))
            raise
        terminal.print_comparison(result)
        typer.echo(f"\nscores: {workdir / 'compare.md'}, figure: {workdir / 'compare.png'}")


Finished = Annotated[Path, typer.Option(help="The work directory of a finished run.")]


def _answered(workdir: Path, name: str, ask: Callable[..., Answer]) -> None:
    """Ask a finished run, keep the answer, show it."""
    from ddm_jax import finished

    with terminal.progress() as progress:
        run = finished.open_finished(workdir, progress)
        answer = finished.keep(run, name, ask(run))
    terminal.print_answer(answer)
    typer.echo(f"\n{workdir / finished.ANSWERS / name}.npz, and a page of {workdir}/report.html")


@app.command()
def points(
    workdir: Finished,
    query: Annotated[
        str, typer.Option(help="Test points, commas between. Default: the worst mistakes.")
    ] = "",
    top: Annotated[int, typer.Option(help="Training points to list.")] = 5,
) -> None:
    """Which single training points did it."""
    with _errors():
        from ddm_jax import answers

        chosen = _numbers(query, "--query")
        _answered(workdir, "points", lambda run: answers.points(run, chosen, top))


@app.command()
def quality(
    workdir: Finished,
    top: Annotated[int, typer.Option(help="Training points to list.")] = 20,
) -> None:
    """Rank training points that look mislabelled, odd, duplicated or harmful."""
    with _errors():
        from ddm_jax import answers

        _answered(workdir, "quality", lambda run: answers.rank_quality(run, top))


@app.command()
def counterfactual(
    workdir: Finished,
    without: Annotated[str, typer.Option(help="Groups to leave out together, commas between.")],
) -> None:
    """What if these groups were gone, together."""
    with _errors():
        from ddm_jax import answers

        gone = _numbers(without, "--without")
        _answered(workdir, "counterfactual", lambda run: answers.counterfactual(run, gone))


@app.command()
def forget(
    workdir: Finished,
    groups: Annotated[str, typer.Option(help="Groups to forget, commas between.")] = "",
    class_: Annotated[
        str | None, typer.Option("--class", help="Or all groups of a class, by its name.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Beside exact retraining.")] = False,
) -> None:
    """Forget groups with the synset alone, and keep the network."""
    with _errors():
        from ddm_jax import answers, checkpoint, finished

        if bool(groups) == (class_ is not None):
            raise ValueError("name either --groups, for example 3,7, or a --class")
        chosen = _numbers(groups, "--groups")
        place = workdir / finished.ANSWERS / "forgotten"

        def ask(run: finished.Finished) -> Answer:
            gone = chosen if class_ is None else answers.groups_of_class(run, class_)
            answer, params = answers.forget(run, gone, check)
            checkpoint.remove(place)
            checkpoint.save(place, params, {"groups": gone})
            return answer

        _answered(workdir, "forget", ask)
        typer.echo(f"the network: {place} (orbax)")


@app.command("compare-networks")
def compare_networks(
    workdir: Finished,
    other: Annotated[Path, typer.Option("--with", help="The work directory of another run.")],
    top: Annotated[int, typer.Option(help="Most helpful groups to compare.")] = 5,
) -> None:
    """What two networks rely on: their attribution profiles over the same groups."""
    with _errors():
        from ddm_jax import answers, finished

        def ask(run: finished.Finished) -> Answer:
            return answers.compare_networks(run, finished.open_finished(other), top)

        _answered(workdir, "compare-networks", ask)


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ValueError(f"{option} {text!r}; write integers with commas between") from error


@app.command("settings")
def show_settings(preset: Preset = None, workdir: Workdir = None) -> None:
    """List the presets, and all settings of one preset or of a run."""
    with _errors(computes=False):
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


def _default_workdir(dataset: str | None, preset: str | None) -> Path:
    from ddm_jax import config as settings

    return Path("runs") / (preset or dataset or settings.default_preset("digits"))


def _chosen(
    dataset: str | None,
    workdir: Path | None,
    preset: str | None,
    assignments: list[str] | None,
    data_dir: str | None,
) -> tuple[Config, Path]:
    """The settings and the work directory that a command's options mean."""
    from ddm_jax import config as settings

    if workdir is not None and (workdir / "config.json").exists() and not (dataset or preset):
        config = settings.load(workdir / "config.json")
    else:
        config = settings.preset(preset or settings.default_preset(dataset or "digits"))
    named = {"data.name": dataset, "data.data_dir": data_dir}
    named_too = [f"{name}={value}" for name, value in named.items() if value is not None]
    config = settings.override(config, [*named_too, *(assignments or [])])
    return config, workdir or _default_workdir(dataset, preset)


@contextmanager
def _errors(computes: bool = True) -> Iterator[None]:
    """Turn mistakes into one line and exit code 1, and an interrupt into how to go on."""
    try:
        if computes:
            terminal.prepare_jax()
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
