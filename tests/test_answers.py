"""Questions to a finished run: what they say, write and refuse, and the commands that ask them."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny_run import compile_once, finished, tiny_config  # noqa: F401
from typer.testing import CliRunner

from ddm_jax import answers, checkpoint, config, pipeline, unlearn
from ddm_jax.cli import app
from ddm_jax.finished import open_finished
from ddm_jax.workdir import SILENT

NAMES = ("points", "quality", "counterfactual", "forget", "compare-networks")


@pytest.fixture
def workdir(finished, tmp_path):  # noqa: F811
    """A copy of a finished run, to write into."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def run(finished):  # noqa: F811
    return open_finished(finished)


def test_points_come_in_the_order_of_their_scores_and_the_worst_queries_first(run):
    answer = answers.points(run, top=3)
    scores, queries = answer.arrays["scores"], answer.arrays["queries"]
    assert scores.shape == (120, 8)
    assert np.isfinite(scores).all()
    helped = [int(cell) for cell in answer.table[1][3].split(",")]
    hurt = [int(cell) for cell in answer.table[1][4].split(",")]
    assert helped == list(np.argsort(-scores[:, 0], kind="stable")[:3])
    assert scores[hurt, 0].max() <= np.sort(scores[:, 0])[2]
    margins = np.asarray(run.plan.task.output(run.target.params, run.plan.split.test))
    assert list(queries) == list(np.argsort(margins, kind="stable")[:8])


def test_points_of_named_queries_and_what_is_refused(run):
    assert list(answers.points(run, [5, 3]).arrays["queries"]) == [5, 3]
    with pytest.raises(ValueError, match=r"queries 40: name at most 200 of 0\.\.39"):
        answers.points(run, [40])
    with pytest.raises(ValueError, match="top=0"):
        answers.points(run, [1], top=0)


def test_quality_ranks_every_point_four_times(run):
    answer = answers.rank_quality(run, top=4)
    assert set(answer.arrays) == {"mislabelled", "low_quality", "redundant", "harmful"}
    for values in answer.arrays.values():
        assert values.shape == (120,)
    worst = [int(cell) for cell in answer.table[1][1].split(",")]
    assert worst == list(np.argsort(-answer.arrays["mislabelled"], kind="stable")[:4])
    with pytest.raises(ValueError, match=r"top=121; it must be in 1\.\.120"):
        answers.rank_quality(run, top=121)


def test_a_counterfactual_of_one_group_is_its_row_of_the_matrix(run):
    answer = answers.counterfactual(run, [4])
    outputs = answer.arrays["outputs"]
    expected = run.attribution.scores[4]
    np.testing.assert_allclose(outputs[0] - outputs[1], expected, atol=1e-4)
    np.testing.assert_allclose(answer.arrays["summed"], expected, atol=1e-6)
    two = answers.counterfactual(run, [4, 2]).arrays["summed"]
    np.testing.assert_allclose(two, run.attribution.scores[[2, 4]].sum(0), atol=1e-6)


@pytest.mark.parametrize("groups", [[], [10], [-1], list(range(10))])
def test_groups_that_are_none_or_all_are_refused(run, groups):
    with pytest.raises(ValueError, match=r"name some of 0\.\.9, and not all"):
        answers.counterfactual(run, groups)
    with pytest.raises(ValueError, match=r"name some of 0\.\.9, and not all"):
        answers.forget(run, groups)


def test_a_class_is_forgotten_beside_exact_retraining(run):
    groups = answers.groups_of_class(run, "3")
    answer, params = answers.forget(run, groups, check=True)
    assert [line[0] for line in answer.table[1:]] == ["before", "after forgetting", "retrained"]
    after, exact = answer.arrays["after_forgetting"], answer.arrays["retrained"]
    assert after[0] < answer.arrays["before"][0]
    assert exact[0] == 0
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, run.target.params)
    assert all(jax.tree.leaves(moved))
    with pytest.raises(ValueError, match="class 'x'; choose one of 0, 1"):
        answers.groups_of_class(run, "x")


def test_groups_are_forgotten_by_what_the_check_says(run, monkeypatch, tmp_path):
    check = pipeline.check_stage(run.plan, run.workdir, SILENT, run.target, run.groups, run.synset)
    single = slice(1, 1 + len(check.groups))
    amount = answers._amount(run)
    assert amount == unlearn.calibrated_amount(
        check.predicted[0] - check.predicted[single],
        check.retrained[:, :1] - check.retrained[:, single],
    )
    assert answers._amount(run._replace(workdir=tmp_path)) == 1.0
    monkeypatch.setattr(unlearn, "ABSENT", 0.0)  # here a group is a class, and would be gone
    answer, moved = answers.forget(run, [2])
    assert f"moved by {amount:.2f} times" in " ".join(answer.sentences)
    monkeypatch.setattr(unlearn, "calibrated_amount", lambda *_: 2 * amount)
    _, twice = answers.forget(run, [2])
    jax.tree.map(
        lambda start, one, two: np.testing.assert_allclose(
            two - start, 2 * (one - start), atol=1e-5
        ),
        run.target.params,
        moved,
        twice,
    )


def test_a_network_is_like_itself_and_another_cut_is_refused(run):
    answer = answers.compare_networks(run, run)
    assert "query by query: 1.000" in answer.sentences[0]
    np.testing.assert_array_equal(answer.arrays["first"], answer.arrays["second"])
    other = run._replace(groups=run.groups[::-1])
    with pytest.raises(ValueError, match="have other groups"):
        answers.compare_networks(run, other)
    loss = config.override(tiny_config(), ["online.objective=loss"])
    with pytest.raises(ValueError, match="another objective"):
        answers.compare_networks(run, run._replace(plan=run.plan._replace(config=loss)))


def test_a_run_that_is_not_finished_is_refused(workdir, tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        open_finished(tmp_path)
    (workdir / "metrics.json").rename(workdir / "metrics.old")
    with pytest.raises(ValueError, match="has no report yet"):
        open_finished(workdir)
    checkpoint.remove(workdir / "synset")
    with pytest.raises(ValueError, match="the stage 'synset' is not done"):
        open_finished(workdir)


def test_every_command_leaves_its_files_and_a_page_of_the_report(workdir):
    asked = {
        "points": ["--query", "1,2"],
        "quality": [],
        "counterfactual": ["--without", "1,2"],
        "forget": ["--class", "3"],
        "compare-networks": ["--with", str(workdir)],
    }
    before = (workdir / "report.html").read_text()
    for name, words in asked.items():
        result = CliRunner().invoke(app, [name, "--workdir", str(workdir), *words])
        assert result.exit_code == 0, result.output
        for ending in ("json", "npz", "png"):
            assert (workdir / "answers" / f"{name}.{ending}").stat().st_size > 0
        told = json.loads((workdir / "answers" / f"{name}.json").read_text())
        assert told["table"][0]
        assert f"<h2>{told['title']}</h2>" not in before
        assert f"<h2>{told['title']}</h2>" in (workdir / "report.html").read_text()
    like = open_finished(workdir).target.params
    checkpoint.load(workdir / "answers" / "forgotten", like)
    # With other settings an answer is out of date, and no page.
    path = workdir / "answers" / "points.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "old"}))
    CliRunner().invoke(app, ["quality", "--workdir", str(workdir)])
    page = (workdir / "report.html").read_text()
    assert "<h2>Single points</h2>" not in page
    assert "<h2>Data quality</h2>" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["points", "--query", "a"], "write integers"),
        (["forget"], "name either --groups"),
        (["forget", "--groups", "1", "--class", "3"], "name either --groups"),
        (["counterfactual", "--without", "99"], "name some of"),
        (["compare-networks", "--with", "nowhere"], "holds no run"),
    ],
)
def test_a_mistake_is_one_line(finished, words, said):  # noqa: F811
    result = CliRunner().invoke(app, [words[0], "--workdir", str(finished), *words[1:]])
    assert result.exit_code == 1
    assert said in result.output
