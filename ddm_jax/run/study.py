"""The rim's one object: a task, data and groups, and everything that the method says of them."""

from __future__ import annotations

import contextlib
import dataclasses
import runpy
import shutil
import sys
import tempfile
import traceback
import weakref
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddm_jax import data as loading
from ddm_jax.attribution import Attribution, make_attribution
from ddm_jax.card import Card, WhatIf, save_card
from ddm_jax.checks import check_integer, check_number
from ddm_jax.cluster import as_groups
from ddm_jax.data import Split
from ddm_jax.distill import DistillSettings
from ddm_jax.run import answers, check, own, settings, stages
from ddm_jax.run.cards import card_of_run
from ddm_jax.run.finished import Finished, finished_of
from ddm_jax.run.plan import TASKS, Plan, digest_of, plan_of
from ddm_jax.run.settings import GIVEN, CheckSettings, Config
from ddm_jax.run.workdir import SILENT, Progress, alone, open_workdir
from ddm_jax.train import TrainSettings
from ddm_jax.tuning import TuneSettings
from ddm_jax.types import Batch, Groups, Params, Task, length, take
from ddm_jax.updates import UpdateSettings

TEST_PART = 5  # a fifth, of examples that are not cut yet
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
        """The effect of each group on each query, [K, Q], with half of its 90 % interval."""
        run = self.results()
        wide = None if run.check is None else check.half_widths_of(run.check, run.groups)
        return run.attribution._replace(half_widths=wide)

    @property
    def agreement(self) -> list[dict[str, Any]]:
        """How well all this agrees with exact retraining: a row a score, as the report has it."""
        found = self.results().check
        return [] if found is None else check.agreement(found)

    def without(self, groups: Sequence[int | str]) -> WhatIf:
        """What the queries' outputs would be if some groups were gone, together: [Q] each."""
        run = self.results()
        mask = np.ones((1, run.groups.count), np.float32)
        mask[0, answers.find_groups(run, groups)] = 0
        return _first(answers.what_if(run, mask))

    def weigh(self, weights: Mapping[int | str, float]) -> WhatIf:
        """The same with groups counted otherwise: 0 gone, 1 as they are, 2 double."""
        run = self.results()
        mask = np.ones((1, run.groups.count), np.float32)
        if not isinstance(weights, Mapping) or not weights:
            raise ValueError(
                f"weights={weights!r}; pass a dict, the weight of each group by its name"
            )
        places = answers.places_of(run, list(weights))
        if len(set(places.tolist())) < len(places):
            raise ValueError(f"weights={weights!r} name a group twice, by its number and its name")
        for place, (group, weight) in zip(places, weights.items(), strict=True):
            mask[0, place] = check_number(f"the weight of group {group!r}", weight, least=0)
        if not mask.any():
            raise ValueError("all groups have weight 0; keep some")
        return _first(answers.what_if(run, mask))

    def forget(self, groups: Sequence[int | str]) -> Params:
        """The parameters of a network that forgot some groups, by the synset alone."""
        run = self.results()
        return answers.forgotten_network(run, answers.find_groups(run, groups))[0]

    def points(self, queries: Sequence[int]) -> np.ndarray:
        """The influence of each training point on the output of some queries, [N, len(queries)]."""
        run = self.results()
        return answers.of_points(run, answers.find_queries(run, queries))

    def quality(self) -> dict[str, np.ndarray]:
        """Rankings of the training points, [N] each by its name; higher is better data."""
        return answers.quality(self.results(), answers.half_of_queries(self.plan.split))

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
        plan = self.plan
        save_card(path, self.card(), plan.task, plan.split.train, include_examples=include_examples)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report, one page that holds everything; returns where it is."""
        if path is not None and (Path(path).is_dir() or not Path(path).parent.is_dir()):
            raise ValueError(
                f"{path}: the report is one file, in a folder that is there; name that"
            )
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
        name: _of_type(given, kind, name)
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
    split = _split_of(data, task, check_integer("seed", seed, 0, 2**32 - 1), column)
    named = isinstance(data, str | Path)
    if groups is None or column is not None:
        groups = split.groups
    if groups is not None and not isinstance(groups, int | np.integer):
        groups = _groups_of(_of_training(groups, split), length(split.train))
        split = split._replace(groups=groups)
    if not isinstance(task, Task):
        _check_differ(split)
        task = _task_of(task, split)
        if objective is None:
            objective = "margin" if split.targets == "distribution" else "loss"
    config = _config(
        split,
        sections,
        num_groups=int(groups) if isinstance(groups, int | np.integer) else None,
        objective="output" if objective is None else objective,
        seed=seed,
        name=str(data) if named else f"{GIVEN} {digest_of(split)[:12]}",
    )
    place = None if workdir is None else Path(workdir)
    return Study(plan_of(config, split, task), place, PRINTED if progress is None else progress)


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


def _of_type(given: Any, kind: type, name: str) -> Any:
    if given is not None and not isinstance(given, kind):
        raise ValueError(f"{name}={given!r}; pass {kind.__name__}(...)")
    return given


def _of_training(groups: Any, split: Split) -> Any:
    """Groups of the training points, where they are given of all examples that were cut."""
    if isinstance(groups, Groups) or not hasattr(groups, "__len__"):
        return groups
    rows = np.concatenate([split.train_ids, split.test_ids])
    if len(groups) != len(rows) or not np.array_equal(np.sort(rows), np.arange(len(rows))):
        return groups
    each = list(groups)
    return [each[row] for row in split.train_ids]


def _split_of(data: Any, task: Any, seed: int, column: str | None) -> Split:
    targets = task.targets if isinstance(task, Task) else None
    if column is not None:
        pair = isinstance(data, tuple | list) and any(isinstance(part, Batch) for part in data)
        if pair or isinstance(data, Split | Batch):
            raise ValueError(
                f"groups={column!r} names a column, and the data have none; give the group of each "
                "training point"
            )
        split = loading.load(data, seed=seed, groups=column)
        return split if isinstance(data, str | Path) else split._replace(name="your data")
    if isinstance(data, Split):
        train = loading.as_computed(data.train, "the training data")
        return data._replace(train=train, test=loading.as_computed(data.test, "the queries"))
    if isinstance(data, Batch):
        whole = loading.as_computed(data, "the data")
        order = np.random.default_rng(seed).permutation(length(whole))
        cut = max(len(order) // TEST_PART, 1)
        test_ids, train_ids = np.sort(order[:cut]), np.sort(order[cut:])
        parts = take(whole, train_ids), take(whole, test_ids)
        split = loading.given_split(*parts, targets=targets)
        return split._replace(train_ids=train_ids, test_ids=test_ids)
    pair = isinstance(data, tuple | list) and len(data) == 2
    if pair and all(isinstance(part, Batch) for part in data):
        return loading.given_split(data[0], data[1], targets=targets)
    split = loading.load(data, seed=seed)
    return split if isinstance(data, str | Path) else split._replace(name="your data")


def _groups_of(groups: Any, count: int) -> Groups:
    """Groups of one's own, checked, those that are `Groups` already as well."""
    if not isinstance(groups, Groups):
        return as_groups(groups, count)
    return as_groups(groups.ids, count, count=groups.count, names=groups.names)


def _task_of(model: Any, split: Split) -> Task:
    """The task of a model, by what the targets are.

    Raises:
        ValueError: for a model that fails on the inputs, in its library's words.
    """
    inputs = _example_of(split.train.x)
    try:
        return TASKS[split.targets](model, inputs)
    except Exception as error:  # whatever a model of any library raises
        *_, last = traceback.extract_tb(error.__traceback__)
        ours = Path(last.filename).is_relative_to(Path(__file__).parents[1])
        if isinstance(error, ValueError) and ours:
            raise
        shapes = ", ".join(str(leaf.shape[1:]) for leaf in jax.tree.leaves(split.train.x))
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the model fails on examples of shape {shapes}: {said}") from error


def _check_differ(split: Split) -> None:
    """Targets that are all the same teach a model nothing; a task of one's own may mean them so."""
    y = split.train.y
    if not isinstance(y, np.ndarray | jax.Array) or len(y) < 2 or (y != y[:1]).any():
        return
    shown = np.asarray(y[0]).ravel()[:8].tolist()
    raise ValueError(
        f"all {len(y)} training examples have the target {shown}, of which nothing can be learnt; "
        "bring others, or a Task"
    )


def _first(found: WhatIf) -> WhatIf:
    """The answer to one mask."""
    return WhatIf(
        found.outputs[0],
        found.changes[0],
        None if found.half_widths is None else found.half_widths[0],
    )


def _example_of(x: Any) -> Any:
    """The shape of one example, as the makers of tasks take it."""
    if isinstance(x, np.ndarray | jax.Array) and jax.dtypes.issubdtype(x.dtype, np.floating):
        return x.shape[1:]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)


def _config(
    split: Split,
    given: dict[str, Any],
    *,
    num_groups: int | None,
    objective: str,
    seed: int,
    name: str,
) -> Config:
    """The settings of a study: what is given, and what fits the data."""
    base = settings.preset("own")
    sections = {section: value for section, value in given.items() if value is not None}
    if "online" in sections:
        found = sections["online"]
        if type(found) is not UpdateSettings:  # those with an objective have another place for it
            raise ValueError(
                f"update={found!r}; pass ddm.UpdateSettings, and what is explained as objective="
            )
        sections["online"] = settings.OnlineSettings(**vars(sections["online"]))
    base = dataclasses.replace(base, seed=seed, **sections)
    fitted = [each for each in own.fitted(base, split) if each.partition(".")[0] not in sections]
    if num_groups is not None:
        fitted += [f"cluster.num_groups={num_groups}"]
        fitted = [each for each in fitted if each != "cluster.method=data"]
    fitted += [f"data.name={name}", f"model.kind={GIVEN}"]
    fitted += [f"{section}.objective={objective}" for section in ("online", "truth")]
    return settings.override(base, fitted)
