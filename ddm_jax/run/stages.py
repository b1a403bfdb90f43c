"""The stages of a run as one table: run, run again, read back and what is stale are loops over it.

    target -> groups -> synset -> tuning -> attribution -> check -> report

`plan.py` builds what the settings determine, `jobs.py` computes, `workdir.py` keeps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax import checkpoints, files, rates, recipes, tuning
from ddm_jax.distill import Loop, straight_through
from ddm_jax.estimators import pools
from ddm_jax.estimators.ddm import distilled_run
from ddm_jax.judge.program import program_digest, text_digest
from ddm_jax.run import check as checking
from ddm_jax.run import choosing, jobs, settings, settings_file
from ddm_jax.run import estimate as estimating
from ddm_jax.run.jobs import Job, Results
from ddm_jax.run.plan import Plan, check_distillation_fits, make_plan, plan_with
from ddm_jax.run.settings import Config
from ddm_jax.run.workdir import (
    COMMANDS,
    COMPUTES,
    CONFIG,
    SILENT,
    Made,
    Progress,
    alone,
    keep,
    open_workdir,
    read_config,
    stale,
)
from ddm_jax.types import length, take


class NotDoneError(ValueError):
    """A stage that is not done, or out of date, where it should only be read."""


class Stage(NamedTuple):
    """A row of the table."""

    name: str  # its field of `Results`, and its place in the work directory
    title: Callable[[Job], str]
    sections: tuple[str, ...]  # of the settings; what it inherits is in its needs
    needs: Callable[[Config], tuple[str, ...]]  # earlier stages, and names of `Plan.inputs`
    computes: tuple[str, ...]  # the names of PROGRAMS
    like: Callable[[Job], Any] | None  # the shapes of what is kept; None: nothing is
    compute: Callable[[Job, Loop], Any]
    opened: Callable[[Job, Any], Any] = lambda job, kept: kept  # the result of what was kept
    place: str = ""  # default: its name
    # Of what was kept, what later stages depend on.
    identity: Callable[[Job, Any], Any] = lambda job, kept: kept


def run(config: Config | Plan, workdir: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Run every stage that is not done yet; returns the metrics, as in metrics.json."""
    plan = config if isinstance(config, Plan) else make_plan(config)
    check_distillation_fits(plan)
    for line in plan.split.told:
        progress.say(line)
    with alone(workdir, progress):
        open_workdir(workdir, plan.config)
        if not _place(workdir, STAGES[0]).exists() and estimating.is_long(plan):
            found = estimating.estimate(plan)
            if sum(found.seconds.values()) > estimating.LONG:
                progress.say(estimating.told(found))
        return bring(plan, workdir, ("report",), progress).report


def dry_run(config: Config | Plan) -> estimating.Estimate:
    """What `run` would take from its beginning: times one training step, and computes no more.

    Raises:
        ValueError: as `run` would, before any work.
    """
    plan = config if isinstance(config, Plan) else make_plan(config)
    check_distillation_fits(plan)
    return estimating.estimate(plan)


def run_stage(
    name: str,
    workdir: Path,
    assignments: Sequence[str] = (),
    progress: Progress = SILENT,
    given: Plan | None = None,
) -> None:
    """Run one stage again with some settings changed, and those before it where they are missing.

    The settings of later stages may change freely; a stage whose settings changed is redone by
    the next `run`.

    Args:
        given: the plan of the study that the run is of, where its data and task came from Python.

    Raises:
        ValueError: for a change of settings that belong to an earlier stage, naming them.
    """
    read_config(workdir)  # before a folder is made
    with alone(workdir, progress):
        old = read_config(workdir)
        new = settings.override(old, assignments)
        check_stage_change(name, old, new)
        plan = plan_with(new, given)
        if name not in ("target", "groups"):
            check_distillation_fits(plan)
        settings_file.save(new, workdir / CONFIG)
        place = _place(workdir, _stage(name))
        for done in (place, place.with_name(f"{place.name}.partial")):
            checkpoints.remove(done)
        bring(plan, workdir, (name,), progress)
        if name == "attribution":  # what comes after may still fit, and says the size of the scores
            with contextlib.suppress(NotDoneError):
                found = bring(plan, workdir, ("check",), compute=False)
                found.attribution.save(workdir / "attribution.npz")


def check_stage_change(name: str, old: Config, new: Config) -> None:
    """Check that a stage's command changes the settings of that stage or of later ones only.

    Raises:
        ValueError: naming the settings that belong to an earlier stage.
    """
    before = STAGES[: STAGES.index(_stage(name))]
    earlier = {"seed", "data"}.union(*(stage.sections for stage in before))
    changes = settings.differences(old, new)
    wrong = [change for change in changes if change.split(" ")[0].split(".")[0] in earlier]
    if wrong:
        command = COMMANDS.get(wrong[0].split(" ")[0].split(".")[0])
        mend = "" if command is None else f"use `ddm {command}`, or "
        raise ValueError(
            f"{'; '.join(wrong)}: that belongs to a stage before this one; {mend}take a new "
            "--workdir"
        )


def bring(
    plan: Plan,
    workdir: Path,
    wanted: Sequence[str],
    progress: Progress = SILENT,
    compute: bool = True,
) -> Results:
    """Bring stages up to date, with those that they need, and return what they made.

    Args:
        compute: False to read alone.

    Raises:
        NotDoneError: where reading alone finds a stage that is not done, or out of date.
    """
    names = set(wanted)
    for stage in reversed(STAGES):
        names |= set(stage.needs(plan.config)) if stage.name in names else set()
    results, digests = Results(), dict(plan.inputs)
    seconds: dict[str, float] = {}
    for index, stage in enumerate(STAGES):
        if stage.name not in names:
            continue
        key = jax.random.fold_in(jax.random.key(plan.config.seed), index)
        job = Job(plan, workdir, results, key, seconds, progress, compute)
        if stage.like is None:
            found = stage.compute(job, straight_through)
        else:
            made, place = _made(stage, job, digests), _place(workdir, stage)
            if not compute and (changes := stale(place, made)) != []:
                why = f" ({'; '.join(changes)})" if changes else ""
                raise NotDoneError(
                    f"{workdir}: the stage {stage.name!r} is not done with these settings{why}; "
                    f"finish the run with `ddm run --workdir {workdir}`"
                )
            kept, told = keep(
                place,
                made,
                stage.title(job),
                stage.like(job),
                partial(stage.compute, job),
                progress,
                partial(stage.identity, job),
            )
            digests[stage.name], seconds[stage.name] = told["digest"], told["seconds"]
            found = stage.opened(job, kept)
        results = results._replace(**{stage.name: found})
        if stage.name == "check":  # for whom comes after: the check itself is of the updates
            barred = checking.with_bars(results.attribution, results.check)
            results = results._replace(attribution=barred)
    return results


def _stage(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)


def _place(workdir: Path, stage: Stage) -> Path:
    return workdir / (stage.place or stage.name)


def _made(stage: Stage, job: Job, digests: dict[str, str]) -> Made:
    """What a stage's result is made with now."""
    config = job.plan.config
    chosen = settings.told(config, ("seed", *stage.sections))
    return Made(
        settings=files.plain(chosen),  # as what is kept is read back
        inputs={name: digests[name] for name in ("data", *stage.needs(config))},
        programs={jax.default_backend(): " ".join(PROGRAMS[n](job.plan) for n in stage.computes)},
        versions={name: packages.version(name) for name in COMPUTES},
    )


def _training(plan: Plan) -> str:
    weights = np.ones(length(plan.split.train), np.float32)
    return program_digest(plan.trainer.train, jax.random.key(0), plan.split.train, weights)


def _slope(plan: Plan, of: Callable) -> str:
    """A function of parameters and examples, by its gradient."""
    params = jax.eval_shape(plan.task.init, jax.random.key(0))
    few = take(plan.split.train, slice(2))
    if plan.task.of_sets and of is plan.task.output:  # which is of all queries at once
        few = plan.split.test
    return program_digest(jax.grad(lambda params, batch: of(params, batch).sum()), params, few)


def _write_report(job: Job, loop: Loop) -> dict[str, Any]:
    """Write metrics.json, the figures and report.html."""
    from ddm_jax.run import report

    job.progress.say("report")
    return report.write(job.plan, job.workdir, job.results, job.seconds, job.progress.say)


# What a result depends on beside settings and inputs; of the code, no more than what it computes.
PROGRAMS: dict[str, Callable[[Plan], str]] = {
    "training": _training,
    "loss": lambda plan: _slope(plan, plan.task.loss),
    "output": lambda plan: _slope(plan, plan.task.output),
    # How the rate is found that updates go at.
    "rate": lambda plan: text_digest(repr((rates.ITERATIONS, rates.LATER, rates.MOST_BATCHES))),
    # What there was to choose from, and is told: a version with other recipes chooses anew.
    "recipes": lambda plan: text_digest(
        repr(
            (
                *(recipes.STEPS_ALIKE, recipes.DEFLATED, tuning.FEW, recipes.SHARES, recipes.NEAR),
                *(recipes.LEAST_TOLD, pools.POOLS, tuning.UNMATCHED, tuning.CORRECTED),
                *(tuning.OTHERS, tuning.OTHERS_COST, tuning.ASTRAY, tuning.HALVINGS, tuning.HALVED),
            )
        )
    ),
}


STAGES = (
    Stage(
        name="target",
        title=lambda job: "training the target network",
        sections=("model", "train"),
        needs=lambda config: (),
        computes=("training",),
        like=lambda job: jax.eval_shape(
            job.plan.trainer.train,
            job.key,
            job.plan.split.train,
            jax.ShapeDtypeStruct((length(job.plan.split.train),), np.float32),
        ),
        compute=jobs.train_target,
    ),
    Stage(
        name="groups",
        title=lambda job: "clustering",
        sections=("cluster",),
        needs=lambda config: (
            *(("target",) if config.cluster.features == "network" else ()),
            *(("cluster.file",) if config.cluster.method == "file" else ()),
            *(("data.groups",) if config.cluster.method == "data" else ()),
        ),
        computes=(),
        like=lambda job: np.empty(length(job.plan.split.train), np.int32),
        compute=jobs.cut_groups,
        opened=jobs.groups_of,
    ),
    Stage(
        name="synset",
        title=lambda job: "distilling the synset",
        sections=("distill",),
        needs=lambda config: ("target", "groups"),
        computes=("loss",),
        like=jobs.like_synset,
        compute=jobs.distil,
        opened=lambda job, kept: distilled_run(job.results.target, *kept),
    ),
    Stage(
        name="tuning",
        title=lambda job: (
            "choosing the updates" if job.plan.tune else "the updates: as the settings say"
        ),
        sections=("online", "tune"),
        needs=lambda config: ("target", "groups", "synset"),
        computes=("training", "loss", "output", "rate", "recipes"),
        like=choosing.like_tuning,
        compute=choosing.tune_updates,
        opened=choosing.tuning_of,
        identity=choosing.of_choice,
        place="tuning/chosen",
    ),
    Stage(
        name="attribution",
        title=lambda job: f"leaving out {job.results.groups.count} groups",
        sections=("online", "tune"),  # the same recipe in other steps is another answer
        needs=lambda config: ("target", "groups", "synset", "tuning"),
        computes=("loss", "output", "rate"),
        like=lambda job: np.empty((job.results.groups.count, jobs.width(job)), np.float32),
        compute=jobs.leave_out,
        opened=jobs.attribution_of,
    ),
    Stage(
        name="check",
        title=lambda job: "checking against exact retraining",
        sections=("check",),
        needs=lambda config: ("target", "groups", "synset", "tuning", "attribution"),
        computes=("training", "output"),
        like=jobs.like_check,
        compute=jobs.compare_with_retraining,
        opened=jobs.check_of,
        place="check/predicted",
    ),
    Stage(
        name="report",
        title=lambda job: "report",
        sections=(),
        needs=lambda config: ("target", "groups", "synset", "tuning", "attribution", "check"),
        computes=(),
        like=None,
        compute=_write_report,
    ),
)
