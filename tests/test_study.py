"""`ddm.study`: the whole method as one object, and a file that makes one for the command."""

from __future__ import annotations

import json
import textwrap

import flax.linen as nn
import jax
import numpy as np
import pandas as pd
import pytest
from command import ddm as command
from tiny_run import tiny_config

import ddm_jax as ddm
from ddm_jax import data
from ddm_jax.distill import DistillSettings
from ddm_jax.run import removals, report, settings, stages
from ddm_jax.run.settings import CheckSettings, OnlineSettings
from ddm_jax.run.study import Study
from ddm_jax.run.study_file import load_study, with_settings
from ddm_jax.run.workdir import SILENT
from ddm_jax.tuning import TuneSettings
from ddm_jax.updates import UpdateSettings

QUICK = {
    "train": ddm.TrainSettings(epochs=4, batch_size=20, learning_rate=0.05, momentum=0.9),
    "distill": DistillSettings(items=1, steps=20),
    "update": UpdateSettings(steps=5, batch=20),
    "tune": TuneSettings(subsets=0),
    "check": CheckSettings(groups=2, subsets=2, seeds=2),
    "progress": SILENT,
}
X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
SITES = [f"site {row % 4}" for row in range(80)]


def examples(count: int = 100):
    """Rows of four numbers, and two numbers that follow from them."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(count, 4)).astype(np.float32)
    return x, (x @ draw.normal(size=(4, 2))).astype(np.float32)


def batches(y):
    x, _ = examples()
    return ddm.Batch(x[:80], y[:80]), ddm.Batch(x[80:], y[80:])


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """A study of a regression in named groups; read only."""
    _, y = examples()
    place = tmp_path_factory.mktemp("study")
    made = ddm.study(ddm.models.MLP(2, (8,)), batches(y), groups=SITES, workdir=place, **QUICK)
    return made.run()


@pytest.mark.slow
def test_a_study_is_a_run_of_the_same_settings(tmp_path):
    """The same arrays, network and settings by `ddm run` give the same bits."""
    config = tiny_config()
    stages.run(config, tmp_path / "run")
    split = data.load("digits", train_size=120, test_size=40)
    made = ddm.study(
        ddm.classification(ddm.models.MLP(10, (8,)), (8, 8, 1)),
        split,
        groups=10,
        train=config.train,
        distill=config.distill,
        update=UpdateSettings(steps=5, batch=50, momentum=0.9, rewind=0.75),
        tune=config.tune,
        check=config.check,
        objective="margin",
        progress=SILENT,
    )
    kept = ddm.Attribution.load(tmp_path / "run" / "attribution.npz")
    np.testing.assert_array_equal(made.attribution.scores, kept.scores)
    np.testing.assert_array_equal(made.attribution.half_widths, kept.half_widths)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [row["ddm"] for row in made.agreement] == [row["ddm"] for row in metrics["agreement"]]


@pytest.mark.slow
def test_a_regression_has_a_report_and_every_answer(regression):
    text = (regression.workdir / "report.html").read_text()
    assert "explains" in text
    assert "of the variance of 20 queries" in text
    assert "The queries whose loss is largest" in text
    scores = regression.attribution.scores
    assert scores.shape == (4, 20)
    assert regression.attribution.half_widths.shape == (4, 20)
    assert regression.groups.names == ("site 0", "site 1", "site 2", "site 3")
    gone = regression.without(["site 1"])
    np.testing.assert_allclose(gone.changes, -scores[1], atol=1e-5)
    assert (gone.half_widths > 0).all()
    same = regression.weigh({"site 2": 1.0})
    np.testing.assert_allclose(same.changes, 0, atol=1e-6)
    double = regression.weigh({"site 2": 2.0, 0: 0.0})
    assert np.abs(double.changes).max() > 0
    some = regression.slice([3, 5])
    np.testing.assert_allclose(some.scores[:, 0], scores[:, [3, 5]].mean(1), rtol=1e-5)
    asked = np.zeros(20, bool)
    asked[[3, 5]] = True
    np.testing.assert_array_equal(regression.slice(asked).scores, some.scores)
    assert regression.points([0, 3]).shape == (80, 2)
    assert regression.quality().keys() == {"badly learnt", "harmful"}
    forgot = regression.forget([3])
    assert jax.tree.structure(forgot) == jax.tree.structure(regression.results().target.params)
    assert len(regression.agreement) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda study: study.without(["site 9"]), "name some of site 0"),
        (lambda study: study.without([0, 1, 2, 3]), "not all of them"),
        (lambda study: study.weigh({"site 0": -1.0}), "the weight of group 'site 0'"),
        (lambda study: study.weigh({0: float("nan")}), "the weight of group 0"),
        (lambda study: study.without([True, False, False, False]), "groups True, False, False"),
        (lambda study: study.without(np.arange(4) == 1), "groups False, True, False"),
        (lambda study: study.without([1.7]), r"groups 1\.7: name some of site 0"),
        (lambda study: study.forget([1.0]), r"groups 1\.0: name some of site 0"),
        (lambda study: study.without([None]), "groups None: name some of site 0"),
        (lambda study: study.without({1: 0}.items()), r"groups \(1, 0\): name some of site 0"),
        (lambda study: study.without([[0, 1]]), r"groups \[0, 1\]: name some of site 0"),
        (lambda study: study.forget(None), "groups None: name some of site 0"),
        (lambda study: study.weigh({1.5: 0}), r"groups 1\.5: name some of site 0"),
        (lambda study: study.weigh({0: 0, "site 0": 2}), "name a group twice"),
        (lambda study: study.weigh({0: 0, 1: 0, 2: 0, 3: 0}), "all groups have weight 0"),
        (lambda study: study.weigh([0]), "pass a dict"),
        (lambda study: study.weigh({}), "pass a dict"),
        (lambda study: study.points(range(300)), r"18, 19, \.\.\.: name some of"),
        (lambda study: study.report(study.workdir), "is no regular file"),
        (lambda study: study.report(study.workdir / "no" / "a.html"), "there is no folder"),
        (lambda study: study.slice([]), r"name some of the queries 0\.\.19"),
        (lambda study: study.slice([20]), r"name some of the queries 0\.\.19"),
        (lambda study: study.points([20]), r"queries 20: name some of 0\.\.19"),
        (lambda study: study.points([0.5]), r"queries 0\.5: name some of"),
    ],
)
def test_questions_that_make_no_sense_are_refused(regression, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(regression)


@pytest.mark.slow
def test_a_regression_has_no_class_to_forget(regression):
    told = refused(lambda: removals.groups_of_class(regression.results(), "a"))
    assert "the targets here are no classes; name groups" in told


@pytest.mark.slow
def test_one_group_alone_and_all_of_them(regression):
    gone = regression.without(["site 1"]).outputs
    for one in ("site 1", 1, np.int64(1), {"site 1"}, np.array(["site 1"]), jax.numpy.array([1])):
        np.testing.assert_array_equal(regression.without(one).outputs, gone)
    assert regression.forget("site 1").keys() == regression.forget(["site 1"]).keys()
    every = regression.weigh({"site 0": 1, 1: 0, 2: 1.0, np.int64(3): 1})
    np.testing.assert_array_equal(every.outputs, gone)
    written = regression.workdir / "report.html"
    assert regression.report(written) == written


@pytest.mark.slow
def test_it_goes_on_with_what_is_there_and_says_what_changed(regression):
    said = []
    _, y = examples()
    again = ddm.study(
        ddm.models.MLP(2, (8,)),
        batches(y),
        groups=SITES,
        workdir=regression.workdir,
        **(QUICK | {"progress": SILENT._replace(say=said.append)}),
    )
    np.testing.assert_array_equal(again.attribution.scores, regression.attribution.scores)
    assert all("done before" in line for line in said), said
    other = ddm.study(
        ddm.models.MLP(2, (8,)), batches(y), groups=SITES, workdir=regression.workdir,
        **(QUICK | {"update": UpdateSettings(steps=6, batch=20)}),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"steps 5 -> 6\); use another workdir, .* --study FILE"):
        other.results()


@pytest.mark.slow
def test_an_interrupted_study_goes_on_to_the_same_bits(regression, tmp_path):
    _, y = examples()

    def study(progress):
        return ddm.study(
            ddm.models.MLP(2, (8,)), batches(y), groups=SITES, workdir=tmp_path / "run",
            **(QUICK | {"progress": progress}),
        )  # fmt: skip

    def track(what, total):
        def show(done, note):
            if what.startswith("distilling"):
                raise KeyboardInterrupt

        return show

    with pytest.raises(KeyboardInterrupt):
        study(SILENT._replace(track=track)).run()
    assert not (tmp_path / "run" / "report.html").exists()
    again = study(SILENT).run()
    np.testing.assert_array_equal(again.attribution.scores, regression.attribution.scores)


@pytest.mark.slow
def test_a_card_of_a_study_answers_as_it_does(regression, tmp_path):
    regression.save(tmp_path / "model.ddm", include_examples=True)
    plan = regression.plan
    card = ddm.load_card(tmp_path / "model.ddm", plan.task)
    assert card.told["model"] == "given"
    mask = np.array([1, 0, 1, 1.0])
    from ddm_jax.card import make_what_if

    found = make_what_if(plan.task, card)(mask, plan.split.test)
    np.testing.assert_allclose(found.outputs[0], regression.without([1]).outputs, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "message"),
    [("hit", "hit does not change with the parameters"), ("accuracy", "not one of each query")],
)
def test_points_of_an_objective_that_has_no_gradient_are_refused(regression, objective, message):
    """They were zeros."""
    from ddm_jax.objectives import explain

    hot = np.eye(2, dtype=np.float32)[np.arange(100) % 2]
    plan = regression.plan
    task = ddm.classification(ddm.models.MLP(2, (8,)), (4,))
    made = Study(
        plan._replace(
            task=explain(task, objective),
            split=data.given_split(*batches(hot)),
            config=settings.override(plan.config, [f"online.objective={objective}"]),
        )
    )
    made._found = regression.results()._replace(plan=made.plan)
    with pytest.raises(ValueError, match=message):
        made.points([0, 3])


class Narrow(nn.Module):
    """A model of seven inputs."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x @ jax.numpy.ones((7, 3)))


class Wide(nn.Module):
    """A model of images."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Conv(3, (3, 3))(x).reshape(len(x), -1))


@pytest.mark.parametrize("model", [Narrow(), Wide()])
def test_a_model_that_fails_says_on_what(model):
    _, y = examples()
    told = refused(lambda: ddm.study(model, batches(y), groups=SITES, **QUICK))
    assert told.startswith("the model fails on examples of shape (4,): ")


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 3)])
def test_predictions_of_another_shape_than_targets_are_not_compared(shape):
    """[B] beside [B, 1] was [B, B]; others failed in the report, once all was done."""
    from ddm_jax.run import targets

    y = np.float32(np.arange(8)[:, None])
    split = data.given_split(ddm.Batch(y, y), ddm.Batch(y, y))
    task = ddm.regression(lambda params, x: x * params, params=np.ones(1))
    own = task._replace(apply=lambda params, x: jax.numpy.ones((len(x), *shape[1:])))
    found = targets.performance(split, own, np.ones(1, np.float32))
    assert (found.name == "R²") == (shape == (1, 1))
    said = targets.said_of(split, own, np.ones(1, np.float32), [0])
    assert said == {0: "1" if shape == (1, 1) else ""}


def test_an_output_of_sets_has_a_program():
    """Which is of all queries: two training examples are another number than the sets know."""
    from ddm_jax.objectives import over_sets

    _, y = examples()
    task = ddm.regression(ddm.models.MLP(2, (8,)), (4,))
    output = over_sets(task.output, np.ones((3, 20)) / 20)
    sets = task._replace(output=output, of_sets=True)
    plan = ddm.study(sets, batches(y), groups=SITES, **QUICK).plan
    assert stages.PROGRAMS["output"](plan) != stages.PROGRAMS["loss"](plan)


def test_a_card_whose_agreement_is_undefined_says_so(regression, tmp_path):
    """As of one query, or outputs that do not move: NaN, which a file keeps as null."""
    from ddm_jax.card import save_card

    made = regression.card()
    made = made._replace(told=made.told | {"agreement": {"groups": float("nan")}})
    assert "undefined on groups" in repr(made)
    plan = regression.plan
    save_card(tmp_path / "a.ddm", made, plan.task, plan.split.train, include_examples=True)
    assert "undefined on groups" in repr(ddm.load_card(tmp_path / "a.ddm", regression.plan.task))


@pytest.mark.slow
def test_several_labels_and_what_is_kept_nowhere():
    x, y = examples()
    made = ddm.study(ddm.models.MLP(2, (8,)), (x, (y > 0) * 1.0), groups=4, **QUICK)
    place = made.workdir
    text = made.report().read_text()
    assert "of the 2 labels of 20 queries" in text
    assert made.attribution.scores.shape == (4, 20)
    assert place.exists()
    del made
    assert not place.exists()


class Embedded(nn.Module):
    """A model of integers in a dict."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Embed(7, 4)(x["tokens"]).mean(1))


@pytest.mark.slow
def test_inputs_of_any_kind():
    draw = np.random.default_rng(0)
    x = {"tokens": draw.integers(0, 7, (100, 5)).astype(np.int32)}
    batch = ddm.Batch(x, np.eye(3, dtype=np.float32)[x["tokens"][:, 0] % 3])
    made = ddm.study(Embedded(), batch, groups=np.arange(80) % 4, **QUICK)
    assert made.plan.split.kind == "other"
    assert made.report().stat().st_size > 50_000
    assert set(made.quality()) == {"badly learnt", "harmful"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": (1, 2, 3)}, "tuple"),
        ({"groups": [0, 1]}, r"groups have shape \(2,\)"),
        ({"groups": [0] * 80}, "at least 2|fewer than two"),
        ({"groups": 1}, "num_groups=1"),
        ({"task": ddm.models.MLP(3, (8,))}, "the model returns"),
        ({"objective": "margin"}, "needs classes"),
        ({"objective": "prediction:7"}, "class_index=7"),
        ({"seed": -1}, "seed"),
        ({"groups": "site"}, "names a column, and the data have none"),
        ({"update": ddm.TrainSettings()}, r"update=TrainSettings\(.*pass UpdateSettings"),
        ({"progress": False}, "progress=False; pass a run.workdir.Progress"),
        ({"task": ddm.models.MLP}, r"pass a module, MLP\(\.\.\.\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(change, message):
    _, y = examples()
    given = {"task": ddm.models.MLP(2, (8,)), "data": batches(y), "groups": SITES} | QUICK | change
    with pytest.raises(ValueError, match=message):
        ddm.study(given.pop("task"), given.pop("data"), **given)


def test_groups_by_a_column_or_of_all_examples_are_the_same():
    """Those of all are cut as the examples are, also beside a background."""
    x, y = examples()
    sites = [f"site {row % 4}" if row % 5 else None for row in range(100)]
    table = pd.DataFrame(x, columns=list("abcd")).assign(y=y[:, 0])
    model = ddm.models.MLP(1, (8,))
    named = ddm.study(model, table.assign(site=sites), groups="site", **QUICK).plan.split
    cut = ddm.study(model, table, groups=sites, **QUICK).plan.split
    assert named.groups.names == cut.groups.names
    np.testing.assert_array_equal(named.groups.ids, cut.groups.ids)
    np.testing.assert_array_equal(named.train.x, cut.train.x)
    ids = np.arange(100) % 4
    given = ddm.study(model, ddm.Batch(x, y[:, :1]), groups=ids, **QUICK).plan.split
    np.testing.assert_array_equal(given.groups.ids, ids[given.train_ids])


def test_a_report_calls_neither_side_of_a_prediction_better(regression):
    """Of a loss less is better; of a predicted number neither more nor less."""
    plan = regression.plan
    result = json.loads((regression.workdir / "metrics.json").read_text())
    assert "flipped training labels" not in result["sizes"]
    text = report.page(plan, result, {})
    assert "less is better" in " ".join(text.split())
    assert "with their target and mass" in text
    config = settings.override(plan.config, ["online.objective=prediction:0"])
    result |= {"objective": "prediction:0"}
    text = " ".join(report.page(plan._replace(config=config), result, {}).split())
    assert "is better" not in text
    assert "Blue groups raise it, red ones lower it;" in text
    assert "lowered the output of the query most; blue: of the two that raised it most" in text


@pytest.mark.parametrize(
    ("y", "kind"),
    [
        (np.eye(3, dtype=np.float32)[[0, 1, 2, 1]], "distribution"),
        (np.array([[1, 1], [0, 1], [1, 0], [0, 0.0]]), "labels"),
        (np.array([[1.0], [0], [1], [0]]), "labels"),
        (np.array([[1.5, 2], [0, 1], [1, 0], [0, 0]]), "any"),
        (np.array([0.5, 1, 2, 3]), "any"),
        ({"a": np.zeros(4)}, "any"),
    ],
)
def test_what_targets_are_by_their_values(y, kind):
    batch = ddm.Batch(np.zeros((4, 2), np.float32), y)
    assert data.given_split(batch, batch).targets == kind


def test_parts_that_are_not_alike_are_refused():
    x, y = np.zeros((4, 2), np.float32), np.zeros((4, 1), np.float32)
    with pytest.raises(ValueError, match="must be the same"):
        data.given_split(ddm.Batch(x, y), ddm.Batch(x[:, :1], y))
    with pytest.raises(ValueError, match=r"data\.make_batch"):
        data.given_split(ddm.Batch(x, np.arange(4)), ddm.Batch(x, np.arange(4)))
    with pytest.raises(ValueError, match="0 queries"):
        data.given_split(ddm.Batch(x, y), ddm.Batch(x[:0], y[:0]))
    with pytest.raises(ValueError, match="2 names"):
        data.given_split(ddm.Batch(x, y), ddm.Batch(x, y), ["a", "b"])


FILE = """
    import numpy as np
    import ddm_jax as ddm
    from ddm_jax.distill import DistillSettings
    from ddm_jax.run.settings import CheckSettings
    from ddm_jax.tuning import TuneSettings

    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    study = ddm.study(
        ddm.models.MLP(1, (8,)),
        (ddm.Batch(x[:80], x[:80, :1]), ddm.Batch(x[80:], x[80:, :1])),
        groups=[f"site {row % 4}" for row in range(80)],
        train=ddm.TrainSettings(epochs=4, batch_size=20),
        distill=DistillSettings(items=1, steps=20),
        update=ddm.UpdateSettings(steps=5, batch=20),
        tune=TuneSettings(subsets=0),
        check=CheckSettings(groups=2, subsets=2, seeds=2),
    )
"""


@pytest.mark.slow
def test_the_command_runs_a_file_and_answers_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sites.py").write_text(textwrap.dedent(FILE))
    said = command("run", "sites.py")
    assert said.exit_code == 0, said.stderr
    assert (tmp_path / "runs" / "sites" / "report.html").exists()
    asked = ("counterfactual", "--workdir", "runs/sites", "--without", "site 1,site 2")
    refused = command(*asked)
    assert refused.exit_code == 1
    assert "--study FILE" in refused.stderr
    said = command(*asked, "--study", "sites.py")
    assert said.exit_code == 0, said.stderr
    assert "site 1, site 2" in said.stdout
    refused = command("forget", "--workdir", "runs/sites", "--study", "sites.py", "--class", "3")
    assert "the targets here are no classes; name groups to forget" in refused.stderr
    said = command("tune", "--workdir", "runs/sites", "--study", "sites.py", "--set",
                   "online.steps=6")  # fmt: skip
    assert said.exit_code == 0, said.stderr
    assert "ddm run sites.py --workdir runs/sites --set online.steps=6`" in said.stdout
    refused = command("run", "sites.py", "--set", "data.seed=3")
    assert "the study's file says that" in refused.stderr
    assert command("run", "sites.py", "--preset", "mnist").exit_code == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "makes no study; write `study = ddm.study"),
        ("x = [\n", "SyntaxError"),
        ("\nraise KeyError('nothing')", "line 2: KeyError: 'nothing'"),
        ("raise ValueError('too small')", "too small"),
        ("import sys\nsys.exit()", "line 2: SystemExit"),
        ("import sys\nsys.exit(3)", "line 2: SystemExit: 3"),
    ],
)
def test_a_file_that_makes_no_study_is_refused(tmp_path, text, message):
    (tmp_path / "bad.py").write_text(text)
    said = command("run", tmp_path / "bad.py", "--workdir", tmp_path / "run")
    assert said.exit_code == 1
    assert message in said.stderr
    assert not (tmp_path / "run").exists()


def test_several_studies_need_one_called_study(tmp_path, monkeypatch):
    from ddm_jax.run import study_file as module

    _, y = examples()
    one, two = (
        ddm.study(ddm.models.MLP(2, (8,)), batches(y), groups=SITES, **QUICK) for _ in range(2)
    )
    monkeypatch.setattr(module.runpy, "run_path", lambda *args, **kwargs: {"a": one, "b": two})
    (tmp_path / "two.py").write_text("")
    with pytest.raises(ValueError, match="none is called `study`"):
        load_study(tmp_path / "two.py")


def test_two_names_of_one_study_are_one_and_the_path_is_as_it_was(tmp_path, monkeypatch):
    import sys

    from ddm_jax.run import study_file as module

    _, y = examples()
    one = ddm.study(ddm.models.MLP(2, (8,)), batches(y), groups=SITES, **QUICK)
    before = list(sys.path)

    def run_path(*args, **kwargs):
        sys.path.insert(0, "added by the file")
        return {"a": one, "b": one}

    monkeypatch.setattr(module.runpy, "run_path", run_path)
    (tmp_path / "two.py").write_text("")
    assert load_study(tmp_path / "two.py") is one
    assert sys.path == ["added by the file", *before]
    sys.path[:] = before


def refused(ask) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        ask()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (ddm.Batch(X.astype(str), X), "holds <U32; it must hold numbers"),
        (ddm.Batch(X.astype(object), X), "holds object; it must hold numbers"),
        (ddm.Batch(X.astype(complex), X), "holds complex128; it must hold numbers"),
        (ddm.Batch(X, X.astype(str)), "holds <U32; it must hold numbers"),
        (ddm.Batch(X, X[:2]), r"leaves of shapes (4, 2), (2, 2)"),
        (ddm.Batch(X.tolist(), X), "holds a float; pass arrays"),
        (ddm.Batch({}, X), "holds no inputs; pass arrays"),
        (ddm.Batch(np.float32(3), X), "holds a float32; pass arrays"),
        (ddm.Batch(np.array(3.0), X), "leaves of shapes (), (4, 2)"),
        (ddm.Batch(np.ma.masked_greater(X, 0.5), X), "holds masked values; fill them in"),
        (ddm.Batch(X, X[:, 0] > 0), "targets are bool [N]; make rows of classes"),
        (ddm.Batch(np.full((4, 2), 2**40), X), "integers up to 1099511627776, beyond int32"),
        ((X, X), "is a tuple; pass a ddm.Batch(x, y)"),
        (None, "is a NoneType; pass a ddm.Batch(x, y)"),
    ],
)
def test_batches_of_what_is_no_array_of_numbers_are_refused(part, message):
    assert message in refused(lambda: data.given_split(part, part))
    if isinstance(part, ddm.Batch):
        assert message in refused(lambda: ddm.study(ddm.models.MLP(2, (8,)), part, **QUICK))


def test_numbers_are_as_wide_as_jax_computes_with(tmp_path):
    """What is kept is read back by its type: float64 failed there, once all was distilled."""
    kept = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    for x, wanted in ((X.astype(np.float64), "float32"), (np.int64(X * 9), "int32"),
                      (np.float16(X), "float16"), (kept, "float32")):  # fmt: skip
        split = data.given_split(ddm.Batch(x, X.astype(np.float64)), ddm.Batch(x, X))
        assert (split.train.x.dtype, split.train.y.dtype) == (wanted, "float32")
    assert split.train.x is kept
    given = split._replace(train=ddm.Batch(X.astype(np.float64), np.int64(X)))
    config = QUICK | {"train": ddm.TrainSettings(epochs=4, batch_size=2), "groups": [0, 1, 0, 1]}
    test = ddm.Batch(X.astype(np.float64), np.int64(X))
    found = ddm.study(ddm.models.MLP(2, (8,)), given._replace(test=test, targets="any"), **config)
    assert found.plan.split.train.x.dtype == "float32"
    assert found.plan.split.train.y.dtype == "int32"


@pytest.mark.parametrize(
    ("classes", "targets", "message"),
    [
        ("ab", None, "classes='ab'; give a list of names"),
        (2, None, "classes=2; give a list of names"),
        (["a", "a"], None, "1 of them different"),
        ((), "classes", "choose one of distribution, labels, any"),
    ],
)
def test_names_and_kinds_of_targets_that_are_none(classes, targets, message):
    batch = ddm.Batch(X, np.eye(2, dtype=np.float32)[[0, 1, 0, 1]])
    assert message in refused(lambda: data.given_split(batch, batch, classes, targets))


def test_names_of_classes_may_be_an_array_and_an_image_of_one_brightness():
    batch = ddm.Batch(
        np.full((4, 2, 2, 1), 3.0, np.float32), np.eye(2, dtype=np.float32)[[0, 1] * 2]
    )
    split = data.given_split(batch, batch, np.array(["a", "b"]))
    assert (split.classes, split.kind) == (("a", "b"), "images")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ddm.Groups(np.arange(80) % 5, 3)}, "group 4 is out of range; 3 groups"),
        ({"groups": ddm.Groups(np.arange(80) % 3, 5)}, "group 3 is empty"),
        ({"update": {"steps": 3}}, "update={'steps': 3}; pass UpdateSettings"),
        ({"update": OnlineSettings(objective="margin")}, "what is explained as objective="),
        ({"progress": print}, "pass a run.workdir.Progress"),
        ({"workdir": 3}, "workdir=3; pass the path of a folder"),
        ({"seed": True}, "seed=True; it must be a whole number"),
        ({"objective": ""}, "unknown objective ''"),
        ({"objective": "logit:²"}, "unknown objective 'logit:²'"),
        ({"data": batches(np.full((100, 2), 0.5, np.float32))}, "have the target [0.5, 0.5]"),
        ({"data": batches(np.eye(2, dtype=np.float32)[np.zeros(100, int)])}, "nothing can be"),
    ],
)
def test_settings_and_groups_of_a_wrong_kind_are_refused(change, message):
    _, y = examples()
    given = {"task": ddm.models.MLP(2, (8,)), "data": batches(y), "groups": SITES} | QUICK | change
    assert message in refused(lambda: ddm.study(given.pop("task"), given.pop("data"), **given))


def test_groups_of_a_split_are_of_its_training_part():
    _, y = examples()
    split = data.given_split(*batches(y))._replace(groups=ddm.Groups(np.arange(70) % 2, 2))
    told = refused(lambda: ddm.study(ddm.models.MLP(2, (8,)), split, **QUICK))
    assert "groups have shape (70,); they must be (80,)" in told


def test_the_objective_output_is_of_the_task_as_it_came():
    """Set later, it was the objective before under another name: a loss with the other sign."""
    _, y = examples()
    model = ddm.models.MLP(2, (8,))
    made = ddm.study(model, batches(y), groups=SITES, **QUICK)
    set_later = with_settings(made.plan, ["online.objective=output", "truth.objective=output"])
    wanted = ddm.study(model, batches(y), groups=SITES, objective="output", **QUICK).plan
    params = wanted.task.init(jax.random.key(0))
    for later, now in ((set_later.task, wanted.task), (set_later.truth.task, wanted.truth.task),
                       (set_later.check.task, wanted.check.task)):  # fmt: skip
        assert later.lower_is_better == now.lower_is_better
        np.testing.assert_array_equal(
            later.output(params, wanted.split.test), now.output(params, wanted.split.test)
        )


def test_the_nearest_bytes_are_those_that_differ_least():
    from ddm_jax.run.drawing import nearest

    x, members = np.array([[0], [250], [12]], np.uint8), np.arange(3)
    assert nearest(x, members, np.array([10], np.uint8)).tolist() == [2, 0, 1]
    flags = np.array([[True], [False]])
    assert nearest(flags, np.arange(2), flags[1]).tolist() == [1, 0]


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_the_variance_that_is_explained_has_no_unit(unit):
    from ddm_jax.run.targets import performance

    y = np.float32(np.arange(8)[:, None] * unit)
    batch = ddm.Batch(y, y)
    task = ddm.regression(lambda params, x: x * params["one"] / 2, params={"one": np.ones(1)})
    found = performance(data.given_split(batch, batch), task, {"one": np.ones(1, np.float32)})
    assert found.test == pytest.approx(1 - 35 / 42, abs=1e-4)


def test_long_numbers_of_a_file_are_shown_short(tmp_path):
    from ddm_jax.run.wording import describe

    rows = [f"{0.0446416365 + row / 1000:.10f},{row % 3}" for row in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["width,label", *rows]))
    split = data.load(tmp_path / "a.csv")
    told = describe(split, split.train.x[0], split.shown_train.iloc[0])
    assert told == f"width = {0.0446416365 + split.train_ids[0] / 1000:.5g}"


@pytest.mark.slow
def test_another_studys_folder_is_not_taken(regression):
    """Other data of the same shapes replaced everything that was there."""
    _, y = examples()
    other = ddm.study(
        ddm.models.MLP(2, (8,)), batches(2 * y), groups=SITES, workdir=regression.workdir, **QUICK
    )
    with pytest.raises(ValueError, match=r"data.name given \w+ -> given \w+"):
        other.results()


def test_groups_that_are_given_are_not_set():
    _, y = examples()
    plan = ddm.study(ddm.models.MLP(2, (8,)), batches(y), groups=SITES, **QUICK).plan
    with pytest.raises(ValueError, match=r"cluster.num_groups=3: the study's file says that"):
        with_settings(plan, ["cluster.num_groups=3"])


def test_a_loss_that_mixes_examples_is_refused_before_any_work():
    _, y = examples()
    task = ddm.regression(ddm.models.MLP(2, (8,)), (4,))
    mixed = task._replace(loss=lambda params, batch: task.loss(params, batch).cumsum())
    with pytest.raises(ValueError, match="the loss of example 1 is another one among others"):
        ddm.study(mixed, batches(y), groups=SITES, **QUICK)


def test_a_class_that_only_queries_have_is_refused():
    """It was right on none of them, and nobody said why."""
    labels = np.r_[np.arange(80) % 2, np.full(20, 2)]
    with pytest.raises(ValueError, match="class 2 is among the queries alone"):
        ddm.study(ddm.models.MLP(3, (8,)), batches(np.eye(3, dtype=np.float32)[labels]), **QUICK)
