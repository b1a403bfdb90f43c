"""The `ddm` command: what is asked for; `__main__` starts it and says how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddm_jax import options, terminal

if TYPE_CHECKING:
    from ddm_jax.run.finished import Answer

UsageError: Any = typer.BadParameter.__bases__[0]  # typer has no name for it

app = typer.Typer(
    name="ddm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which training data made my model do this, and what if that data were gone? "
    "Distilled datamodels in JAX.",
)


@app.command()
def run(
    dataset: options.Dataset = None,
    workdir: options.Workdir = None,
    preset: options.Preset = None,
    set_: options.Override = None,
    data_dir: options.DataDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what a run would take, and compute nothing.")
    ] = False,
) -> None:
    """Run the whole method, or pick up a run where it was; ends with a report.

    A run is known by its work directory: `ddm run --workdir W` goes on with what W holds.
    """
    from ddm_jax.run import stages

    begin = time.perf_counter()
    with terminal.progress() as progress:
        chosen, workdir = options.chosen(dataset, workdir, preset, set_, data_dir)
        if dry_run:
            found = stages.dry_run(chosen)
        else:
            metrics = stages.run(chosen, workdir, progress)
    if dry_run:
        terminal.print_estimate(found)
        return
    terminal.print_summary(metrics)
    typer.echo(f"\nreport: {workdir / 'report.html'}  ({time.perf_counter() - begin:.0f} s)")


def _stage_command(name: str, stage: str, about: str) -> None:
    def command(
        workdir: Annotated[Path, typer.Option(help="The work directory of a run.")],
        set_: options.Override = None,
        study: options.StudyFile = None,
    ) -> None:
        from ddm_jax.run import stages

        with terminal.progress() as progress:
            stages.run_stage(stage, workdir, set_ or [], progress, options.plan_of_file(study))
        if stage != "report":
            again = f"ddm run --workdir {workdir}"
            if study is not None:  # whose file says other settings than these
                given = "".join(f" --set {each}" for each in set_ or [])
                again = f"ddm run {study} --workdir {workdir}{given}"
            typer.echo(f"`{again}` brings the later stages up to date")

    app.command(name, help=about)(command)


_stage_command("train", "target", "Train the target network again.")
_stage_command("cluster", "groups", "Cut the training set into groups again.")
_stage_command("distill", "synset", "Distil the synset again (offline stage).")
_stage_command("tune", "tuning", "Choose the updates again, on retrained subsets.")
_stage_command("attribute", "attribution", "Leave out every group again (online stage).")
_stage_command("check", "check", "Compare with exact retraining again.")
_stage_command("report", "report", "Write metrics.json, the figures and report.html again.")


@app.command()
def truth(
    dataset: options.Dataset = None,
    workdir: options.Workdir = None,
    preset: options.Preset = None,
    set_: options.Override = None,
    data_dir: options.DataDir = None,
    chunk: options.Chunk = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Say what the store holds, and compute nothing.")
    ] = False,
) -> None:
    """Retrain exactly: fill the truth store of a work directory, and say how noisy it is.

    Run it as often and in as many processes at once as you like: no network is trained twice,
    and a killed process loses none that was done.
    """
    from ddm_jax.judge import store
    from ddm_jax.run import evaluate

    if inspect:
        workdir = workdir or options.default_workdir(dataset, preset)
        terminal.print_status(store.inspect_store(workdir / evaluate.TRUTH))
        return
    with terminal.progress() as progress:
        chosen, workdir = options.chosen(dataset, workdir, preset, set_, data_dir)
        summary = evaluate.fill_truth(chosen, workdir, progress, chunk)
    terminal.print_ceilings(summary)
    typer.echo(f"\ntruth: {workdir / evaluate.TRUTH}")


@app.command()
def compare(
    dataset: options.Dataset = None,
    estimators: Annotated[
        str, typer.Option(help="Which, with commas between; a wrong name lists all.")
    ] = "ddm,grad_dot",
    workdir: options.Workdir = None,
    preset: options.Preset = None,
    set_: options.Override = None,
    data_dir: options.DataDir = None,
    chunk: options.Chunk = None,
) -> None:
    """Judge estimators on exact retraining: one table with intervals, ceilings and seconds.

    Settings are chosen on one part of the truth and scores reported on the other. The truth is
    filled first, where it is not. An estimator that fails stands in the table with its error, and
    the command fails.
    """
    from ddm_jax.run import evaluate

    names = [name.strip() for name in estimators.split(",") if name.strip()]
    with terminal.progress() as progress:
        chosen, workdir = options.chosen(dataset, workdir, preset, set_, data_dir)
        try:
            result = evaluate.compare_estimators(chosen, workdir, names, progress, chunk)
        except evaluate.ComparisonError:
            terminal.print_comparison(evaluate.read_comparison(workdir))
            raise
    terminal.print_comparison(result)
    typer.echo(f"\nscores: {workdir / 'compare.md'}, figure: {workdir / 'compare.png'}")


def _answered(workdir: Path, study: Path | None, name: str, ask: Callable[..., Answer]) -> None:
    """Ask a finished run, `ask(run)`, keep the answer, show it."""
    from ddm_jax.run import finished

    with terminal.progress() as progress:
        run = finished.open_finished(workdir, progress, options.plan_of_file(study))
        answer = finished.keep(run, name, ask(run))
    terminal.print_answer(answer)
    typer.echo(f"\n{workdir / 'answers' / name}.npz, and a page of {workdir}/report.html")


@app.command()
def points(
    workdir: options.Finished,
    query: Annotated[
        str, typer.Option(help="Test points, commas between. Default: the worst mistakes.")
    ] = "",
    top: Annotated[int, typer.Option(help="Training points to list.")] = 5,
    study: options.StudyFile = None,
) -> None:
    """Which single training points did it."""
    from ddm_jax.run import answers

    chosen = options.numbers(query, "--query")
    _answered(workdir, study, "points", lambda run: answers.points(run, chosen, top))


@app.command()
def quality(
    workdir: options.Finished,
    top: Annotated[int, typer.Option(help="Training points to list.")] = 20,
    study: options.StudyFile = None,
) -> None:
    """Rank training points that look mislabelled, odd, duplicated or harmful."""
    from ddm_jax.run import answers

    _answered(workdir, study, "quality", lambda run: answers.rank_quality(run, top))


@app.command()
def counterfactual(
    workdir: options.Finished,
    without: Annotated[
        str, typer.Option(help="Groups to leave out together, numbers or names, commas between.")
    ],
    study: options.StudyFile = None,
) -> None:
    """What if these groups were gone, together."""
    from ddm_jax.run import removals

    gone = options.parts(without)
    _answered(workdir, study, "counterfactual", lambda run: removals.counterfactual(run, gone))


@app.command()
def forget(
    workdir: options.Finished,
    groups: Annotated[str, typer.Option(help="Groups to forget, commas between.")] = "",
    class_: Annotated[
        str | None, typer.Option("--class", help="Or all groups of a class, by its name.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Beside exact retraining.")] = False,
    prompt: Annotated[
        str | None, typer.Option(help="Of a language model: what to go on from, before and after.")
    ] = None,
    study: options.StudyFile = None,
) -> None:
    """Forget groups with the synset alone, and keep the network."""
    if bool(groups) == (class_ is not None):
        raise ValueError("name either --groups, for example 3,7, or a --class")
    chosen = options.parts(groups)
    place = workdir / "answers" / "forgotten"

    def ask(run: Any) -> Answer:
        from ddm_jax import checkpoints
        from ddm_jax.run import removals

        gone = chosen if class_ is None else removals.groups_of_class(run, class_)
        answer, params = removals.forget(run, gone, check, prompt)
        checkpoints.save(place, params, {"groups": answer.arrays["groups"].tolist()})
        return answer

    _answered(workdir, study, "forget", ask)
    typer.echo(f"the network: {place} (orbax)")


@app.command()
def card(
    workdir: options.Finished,
    output: Annotated[
        Path | None, typer.Option(help="The file. Default: model.ddm in the work directory.")
    ] = None,
    include_examples: Annotated[
        bool,
        typer.Option("--include-examples", help="Even if items are training examples."),
    ] = False,
    study: options.StudyFile = None,
) -> None:
    """Write a run as one file that answers what if, without the training data."""
    from ddm_jax.card import save_card
    from ddm_jax.files import check_destination
    from ddm_jax.run import cards, finished

    place = workdir / "model.ddm" if output is None else output
    if output is not None:
        check_destination(output)
    with terminal.progress() as progress:
        run = finished.open_finished(workdir, progress, options.plan_of_file(study))
        made = cards.card_of_run(run)
        plan = run.plan
        save_card(place, made, plan.task, plan.split.train, include_examples=include_examples)
    typer.echo(f"{place}: {made}")


@app.command("compare-networks")
def compare_networks(
    workdir: options.Finished,
    other: Annotated[Path, typer.Option("--with", help="The work directory of another run.")],
    top: Annotated[int, typer.Option(help="Most helpful groups to compare.")] = 5,
    study: options.StudyFile = None,
    other_study: Annotated[
        Path | None, typer.Option(help="The same of the other run. Default: the first one's.")
    ] = None,
) -> None:
    """What two networks rely on: their attribution profiles over the same groups."""

    def ask(run: Any) -> Answer:
        from ddm_jax.run import answers
        from ddm_jax.run.finished import open_finished

        given = options.plan_of_file(other_study or study)
        return answers.compare_networks(run, open_finished(other, given=given), top)

    _answered(workdir, study, "compare-networks", ask)


@app.command()
def explore(
    workdir: Annotated[Path, typer.Argument(help="The work directory of a finished run.")],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: one that is free.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond this machine only if you say so.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open it in the browser.")] = True,
    study: options.StudyFile = None,
) -> None:
    """Take groups of training data away on a page, and see what changes, at once."""
    from ddm_jax.explore import requests, server, view
    from ddm_jax.run import finished

    with terminal.progress() as progress:
        run = finished.open_finished(workdir, progress, options.plan_of_file(study))
        shown = view.make_view(run)

    def ready(address: str) -> None:
        if host not in requests.LOCAL:
            typer.echo(f"open to everyone who reaches {host} and has this address:")
        typer.echo(f"{address}\n(once; Ctrl-C ends it)")
        if browser:
            typer.launch(address)

    server.serve(shown, host, port, ready)


@app.command("settings")
def show_settings(preset: options.Preset = None, workdir: options.Workdir = None) -> None:
    """List the presets, and all settings of one preset or of a run with what they may be."""
    from ddm_jax.run import settings, settings_file

    if workdir is not None and preset is not None:
        raise ValueError("--preset and --workdir: settings of one or of the other; leave one out")
    if workdir is not None:
        config = settings_file.load(workdir / "config.json")
    else:
        config = settings.preset(preset or "digits")
        for name, (about, _) in settings.PRESETS.items():
            typer.echo(f"--preset {name:<16}{about}")
        typer.echo("")
    allowed = settings.allowed()
    for name, value in settings.settings(config).items():
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        line = f"{name}={'none' if shown is None else shown}"
        typer.echo(f"{line:<36}  {allowed[name]}".rstrip())


def call(arguments: Sequence[str]) -> None:
    """Run a command without what typer makes of errors and interrupts; `main` does.

    Raises:
        ValueError: for arguments that do not parse.
    """
    command = typer.main.get_command(app)
    try:
        with command.make_context("ddm", list(arguments) or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        if done.exit_code:
            raise
    except UsageError as error:
        where = error.ctx.command_path if error.ctx else "ddm"
        raise ValueError(f"{error.format_message().rstrip('.')}; see `{where} --help`") from None
