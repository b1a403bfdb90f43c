"""A Python file that makes a study, for the command line."""

from __future__ import annotations

import contextlib
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ddm_jax.run import settings
from ddm_jax.run.plan import Plan, plan_of
from ddm_jax.run.study import Study


def load_study(path: str | Path) -> Study:
    """Run a Python file that makes a study, and return it.

    Raises:
        ValueError: for a file that fails, or makes none, or several and none called `study`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name a Python file that makes a ddm.study")
    folder = str(path.parent.absolute())
    sys.path.insert(0, folder)  # as Python does for a script
    try:
        found = runpy.run_path(str(path), run_name="ddm_study")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever is in the file
        lines = [row.lineno for row in traceback.extract_tb(error.__traceback__)
                 if row.filename == str(path)]  # fmt: skip
        where = f", line {lines[-1]}" if lines else ""
        raise ValueError(f"{path}{where}: {type(error).__name__}: {error}") from error
    finally:
        with contextlib.suppress(ValueError):  # where the file took it out itself
            sys.path.remove(folder)
    made = {name: each for name, each in found.items() if isinstance(each, Study)}
    if "study" in made or len(set(made.values())) == 1:
        return made.get("study") or next(iter(made.values()))
    told = "several studies, and none is called `study`" if made else "no study"
    raise ValueError(f"{path} makes {told}; write `study = ddm.study(...)` in it")


def with_settings(plan: Plan, assignments: Sequence[str]) -> Plan:
    """The plan of a study with other settings, section.field=value.

    Raises:
        ValueError: for settings of the data, of groups that are given, or of the model, which the
            study's file says.
    """
    own = ("data.", "model.", "seed", *(("cluster.",) if plan.split.groups is not None else ()))
    wrong = [each for each in assignments if each.strip().startswith(own)]
    if wrong:
        raise ValueError(f"--set {wrong[0]}: the study's file says that; change it there")
    if not assignments:
        return plan
    return plan_of(settings.override(plan.config, assignments), plan.split, plan.given)
