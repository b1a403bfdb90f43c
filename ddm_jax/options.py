"""The options that commands share, and what they mean: settings, plans and work directories."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ddm_jax.run.plan import Plan
    from ddm_jax.run.settings import Config

Dataset = Annotated[
    str | None,
    typer.Argument(
        help="digits (the default), a file or folder of your own, a TFDS name such as mnist, or a "
        "Python file that makes a ddm.study."
    ),
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


StudyFile = Annotated[
    Path | None,
    typer.Option(
        "--study", help="The Python file that makes the study, where the run is of one. It is run."
    ),
]

Finished = Annotated[Path, typer.Option(help="The work directory of a finished run.")]


def numbers(text: str, option: str) -> list[int]:
    """The integers between commas.

    Raises:
        ValueError: for anything else.
    """
    try:
        return [int(part) for part in parts(text)]
    except ValueError as error:
        raise ValueError(f"{option} {text!r}; write integers with commas between") from error


def parts(text: str) -> list[str]:
    """What stands between commas; a part with a comma in it is quoted, '"Rome, centre",Oslo'."""
    parts = next(csv.reader([text], skipinitialspace=True), [])
    return [part.strip() for part in parts if part.strip()]


def plan_of_file(study: Path | None) -> Plan | None:
    """The plan of a study's file."""
    from ddm_jax.run.study_file import load_study

    return None if study is None else load_study(study).plan


def default_workdir(dataset: str | None, preset: str | None) -> Path:
    """Where a run is kept when nobody says."""
    from ddm_jax.data import is_own
    from ddm_jax.run import settings

    if dataset is not None and (is_own(dataset) or dataset.endswith(".py")):
        return Path("runs") / (Path(dataset).absolute().stem or "own")
    return Path("runs") / (preset or dataset or settings.default_preset("digits"))


def chosen(
    dataset: str | None,
    workdir: Path | None,
    preset: str | None,
    assignments: list[str] | None,
    data_dir: str | None,
) -> tuple[Config | Plan, Path]:
    """The settings, or the plan of a study's file, and the work directory that options mean."""
    from ddm_jax.data import is_own
    from ddm_jax.run import settings, settings_file

    if dataset is not None and dataset.endswith(".py"):
        from ddm_jax.run import study_file

        if preset is not None or data_dir is not None:
            raise ValueError(f"{dataset} says what --preset and --data-dir would; leave them out")
        made = study_file.load_study(dataset)
        place = workdir or made.kept_in or default_workdir(dataset, None)
        return study_file.with_settings(made.plan, assignments or []), place
    if workdir is not None and (workdir / "config.json").exists() and not (dataset or preset):
        config = settings_file.load(workdir / "config.json")
    elif dataset is not None and preset is None and is_own(dataset, data_dir):
        from ddm_jax.run import own

        config = own.fitting(dataset, assignments or [])
    else:
        config = settings.preset(preset or settings.default_preset(dataset or "digits"))
    named = {"data.name": dataset, "data.data_dir": data_dir}
    named_too = [f"{name}={value}" for name, value in named.items() if value is not None]
    config = settings.override(config, [*named_too, *(assignments or [])])
    return config, workdir or default_workdir(dataset, preset)
