"""The rim's one object: a task, data and groups, and everything that the method says of them."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddm_jax.attribution import Attribution, make_attribution
from ddm_jax.card import Card, WhatIf, save_card
from ddm_jax.checks import check_alone, check_integer, check_number
from ddm_jax.compute.compiled import compiled
from ddm_jax.distill import DistillSettings
from ddm_jax.files import check_destination
from ddm_jax.run import brought, check, questions, stages
from ddm_jax.run.cards import card_of_run
from ddm_jax.run.finished import Finished, finished_of
from ddm_jax.run.plan import Plan, digest_of, plan_of
from ddm_jax.run.settings import GIVEN, CheckSettings
from ddm_jax.run.workdir import SILENT, Progress, alone, open_workdir
from ddm_jax.train import TrainSettings
from ddm_jax.tuning import TuneSettings
from ddm_jax.types import Groups, Params, Task, length
from ddm_jax.updates import UpdateSettings

PRINTED = SILENT._replace(say=print)


class Study:
    """A task, its data and their groups, and what the whole method says of them.

    `ddm.study` makes one. Nothing is computed before it is asked for; then the stages that are
    missing run, each is kept in `workdir`, and an interrupted one goes on where it was.

    Groups are asked for by their numbers, or by their names where they have some. Every answer is
    of the Q queries, `plan.split.test`.
    """

    def __init__(self, plan: Plan, workdir: Path | None = None, progress: Progress = SILENT):
        self.plan = plan
        self.progress = progress
        self.kept_in = workdir  # None: in a folder that goes with this object
        if workdir is None:
            workdir = Path(tempfile.mkdtemp(prefix="ddm-study-"))
            weakref.finalize(self, shutil.rmtree, workdir, ignore_errors=True)
        self.workdir = workdir
        self._found: Finished | None = None

    def __repr__(self) -> str:
        split, kept = self.plan.split, self.kept_in or "kept nowhere"
        sizes = f"{length(split.train)} training points, {length(split.test)} queries"
        return f"Study({split.name}: {sizes}, {self.plan.config.online.objective}; {kept})"

    def run(self) -> Study:
        """Run every stage that is not done yet, and write the report."""
        stages.run(self.plan, self.workdir, self.progress)
        self.results()
        return self

    def results(self) -> Finished:
        """What the stages made: the run that every question is put to."""
        if self._found is None:
            with alone(self.workdir, self.progress):
                open_workdir(self.workdir, self.plan.config)
                found = stages.bring(self.plan, self.workdir, ("check",), self.progress)
            self._found = finished_of(self.workdir, self.plan, found)
        return self._found

    @property
    def groups(self) -> Groups:
        """The groups of the training data."""
        return self.results().groups

    @property
    def attribution(self) -> Attribution:
        """The effect of each group on each query, [K, Q], with half of its 90 % interval.

        By the study's check it is at retraining's size; without one it is what the updates say.
        """
        return self.results().attribution

    @property
    def agreement(self) -> list[dict[str, Any]]:
        """How well all this agrees with exact retraining: a row a score, as the report has it."""
        run = self.results()
        return [] if run.check is None else check.agreement(run.check, run.groups)

    def without(self, groups: Sequence[int | str]) -> WhatIf:
        """What the queries' outputs would be if some groups were gone, together: [Q] each."""
        run = self.results()
        mask = np.ones((1, run.groups.count), np.float32)
        mask[0, questions.find_groups(run, groups)] = 0
        return _first(questions.what_if(run, mask))

    def weigh(self, weights: Mapping[int | str, float]) -> WhatIf:
        """The same with groups counted otherwise: 0 gone, 1 as they are, 2 double."""
        run = self.results()
        mask = np.ones((1, run.groups.count), np.float32)
        if not isinstance(weights, Mapping) or not weights:
            raise ValueError(
                f"weights={weights!r}; pass a dict, the weight of each group by its name"
            )
        places = questions.places_of(run, list(weights))
        if len(set(places.tolist())) < len(places):
            raise ValueError(f"weights={weights!r} name a group twice, by its number and its name")
        for place, (group, weight) in zip(places, weights.items(), strict=True):
            mask[0, place] = check_number(f"the weight of group {group!r}", weight, least=0)
        if not mask.any():
            raise ValueError("all groups have weight 0; keep some")
        return _first(questions.what_if(run, mask))

    def forget(self, groups: Sequence[int | str]) -> Params:
        """The parameters of a network that forgot some groups, by the synset alone."""
        run = self.results()
        return questions.forgotten_network(run, questions.find_groups(run, groups)).params

    def points(self, queries: Sequence[int]) -> np.ndarray:
        """The influence of each training point on the output of some queries, [N, len(queries)]."""
        run = self.results()
        return questions.of_points(run, questions.find_queries(run, queries))

    def quality(self) -> dict[str, np.ndarray]:
        """Rankings of the training points, [N] each by its name; higher is better data."""
        return questions.quality(self.results(), questions.half_of_queries(self.plan.split))

    def slice(self, queries: Any) -> Attribution:
        """The effect of each group on the mean output of some queries, [K, 1].

        The half width is the mean of the queries' own: errors of one slice go together.

        Args:
            queries: their places, or a boolean for each of Q.

        Raises:
            ValueError: for no queries, or some that there are not.
        """
        whole = self.attribution
        count = whole.scores.shape[1]
        asked = np.asarray(queries)
        rows = np.flatnonzero(asked) if asked.dtype == bool and asked.shape == (count,) else asked
        whole_numbers = rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer)
        if not whole_numbers or not len(rows) or rows.min() < 0 or rows.max() >= count:
            raise ValueError(
                f"a slice of shape {asked.shape} and type {asked.dtype}: name some of the queries "
                f"0..{count - 1}, or give a boolean for each"
            )
        half = whole.half_widths
        return make_attribution(
            whole.scores[:, rows].mean(1, keepdims=True),
            whole.groups,
            None,
            whole.metadata | {"queries of the slice": rows.tolist()},
            None if half is None else half[:, rows].mean(1, keepdims=True),
        )

    def card(self) -> Card:
        """What answers without the training data; `save` writes it."""
        return card_of_run(self.results())

    def save(self, path: str | Path, *, include_examples: bool = False) -> None:
        """Write the what-if card; `ddm.load_card(path, task)` reads it.

        Raises:
            ValueError: as `card.save_card`, where items are training examples.
        """
        check_destination(Path(path))  # before a run that nobody could keep
        plan = self.plan
        save_card(path, self.card(), plan.task, plan.split.train, include_examples=include_examples)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report, one page that holds everything; returns where it is."""
        if path is not None:
            check_destination(Path(path))
        self.run()
        written = self.workdir / "report.html"
        if path is None or Path(path).absolute() == written.absolute():
            return written
        return Path(shutil.copyfile(written, path))


def study(
    task: Any,
    data: Any,
    *,
    groups: Any = None,
    workdir: str | Path | None = None,
    train: TrainSettings | None = None,
    distill: DistillSettings | None = None,
    update: UpdateSettings | None = None,
    tune: TuneSettings | None = None,
    check: CheckSettings | None = None,
    objective: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Study:
    """Study which training data made a model do what it does: the whole method, as one object.

        study = ddm.study(ddm.models.MLP(3, (64,)), "flowers.csv", workdir="runs/flowers")
        study.attribution.top(3)              # which groups raise and lower each query
        study.without([3, 7]).outputs         # what if these were gone
        study.report()

    Everything is checked here, and computed when it is asked for.

    Args:
        task: a `Task`, or a model as `ddm.classification`, `regression` and `multilabel` take it;
            which of them is told by the targets.
        data: what `data.load` takes (a path, a name, a DataFrame), a `Split` that it returned, a
            pair of `Batch`es (training, queries), or one `Batch`, of which a fifth become queries.
        groups: numbers or names, -1 in none, of each training point, or of all examples where a
            fifth become queries; the column of a table that says them; `Groups`; or how many to
            cut. Default: those that the data bring, else at most 20.
        workdir: where everything is kept, and found again by the next call. Default: nowhere.
        train, distill, update, tune, check: settings of the stages. Default: those of the preset
            "own", with a batch and a number of items that fit the data.
        objective: what is explained, see `objectives.explain`. Default: of a `Task` its output, of
            a model the margin of the right class where it says classes, else its loss.
        seed: fixes everything.
        progress: where messages go; default printed. `run.workdir.SILENT` says nothing.

    Raises:
        ValueError: for data, a model or settings that do not fit, before any work.
    """
    seed = int(seed) if isinstance(seed, np.integer) else seed
    if not isinstance(progress, Progress | None):
        raise ValueError(f"progress={progress!r}; pass a run.workdir.Progress, such as SILENT")
    if not isinstance(workdir, str | PathLike | None):
        raise ValueError(f"workdir={workdir!r}; pass the path of a folder")
    sections: dict[str, Any] = {
        name: brought.of_type(given, kind, name)
        for name, given, kind in (
            ("train", train, TrainSettings),
            ("distill", distill, DistillSettings),
            ("update", update, UpdateSettings),
            ("tune", tune, TuneSettings),
            ("check", check, CheckSettings),
        )
    }
    sections["online"] = sections.pop("update")
    column = groups if isinstance(groups, str) else None
    split = brought.split_of(data, task, check_integer("seed", seed, 0, 2**32 - 1), column)
    named = isinstance(data, str | Path)
    if groups is None or column is not None:
        groups = split.groups
    if groups is not None and not isinstance(groups, int | np.integer):
        groups = brought.groups_of(brought.of_training(groups, split), length(split.train))
        split = split._replace(groups=groups)
    if not isinstance(task, Task):
        brought.check_differ(split)
        task = brought.task_of(task, split)
        if objective is None:
            objective = "margin" if split.targets == "distribution" else "loss"
    config = brought.config_of(
        split,
        sections,
        num_groups=int(groups) if isinstance(groups, int | np.integer) else None,
        objective="output" if objective is None else objective,
        seed=seed,
        name=str(data) if named else f"{GIVEN} {digest_of(split)[:12]}",
    )
    plan = plan_of(config, split, task)
    params = compiled(task.init)(jax.random.key(seed))
    check_alone(task, params, split.train)
    place = None if workdir is None else Path(workdir)
    return Study(plan, place, PRINTED if progress is None else progress)


def _first(found: WhatIf) -> WhatIf:
    """The answer to one mask."""
    return WhatIf(
        found.outputs[0],
        found.changes[0],
        None if found.half_widths is None else found.half_widths[0],
    )
