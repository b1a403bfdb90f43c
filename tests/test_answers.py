"""Questions to a finished run: what they say, write and refuse, and the commands that ask them."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from command import ddm
from tiny_run import finished, read_stages, tiny_config  # noqa: F401

from ddm_jax import checkpoints, metrics, options, unlearn
from ddm_jax.attribution import Attribution
from ddm_jax.cluster import as_groups
from ddm_jax.data import given_split, make_batch
from ddm_jax.estimators.pools import corrected
from ddm_jax.run import answers, questions, removals, stages
from ddm_jax.run import check as checking
from ddm_jax.run.choosing import without_data
from ddm_jax.run.finished import Answer, keep, open_finished
from ddm_jax.run.wording import query_in_words
from ddm_jax.run.workdir import kept_answers

pytestmark = pytest.mark.slow


@pytest.fixture
def workdir(finished, tmp_path) -> Path:  # noqa: F811
    """A copy of a finished run, to write into."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


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
    with pytest.raises(ValueError, match=r"queries 40: name some of 0\.\.39"):
        answers.points(run, [40])
    with pytest.raises(ValueError, match="top=0"):
        answers.points(run, [1], top=0)


def test_what_helps_a_loss_is_what_lowers_it(run):
    task = run.plan.task
    negative = task._replace(output=lambda params, batch: -task.output(params, batch))
    turned = run._replace(plan=run.plan._replace(task=negative._replace(lower_is_better=True)))
    answer, other = answers.points(run, [3], top=2), answers.points(turned, [3], top=2)
    np.testing.assert_allclose(other.arrays["scores"], -answer.arrays["scores"], atol=1e-6)
    assert other.table == answer.table


def test_quality_ranks_every_point_four_times(run):
    answer = answers.rank_quality(run, top=4)
    assert set(answer.arrays) == {"mislabelled", "low_quality", "redundant", "harmful"}
    for values in answer.arrays.values():
        assert values.shape == (120,)
    for line, values in zip(answer.table[1:], answer.arrays.values(), strict=True):
        worst = [int(cell) for cell in line[1].split(",")]
        assert worst == list(np.argsort(values, kind="stable")[:4])  # higher is better data
    with pytest.raises(ValueError, match=r"top=121; it must be .* 1\.\.120"):
        answers.rank_quality(run, top=121)


def test_a_counterfactual_of_one_group_is_its_row_of_the_matrix(run):
    answer = removals.counterfactual(run, [4])
    outputs = answer.arrays["outputs"]
    expected = run.attribution.scores[4]
    np.testing.assert_allclose(outputs[0] - outputs[1], expected, atol=1e-4)
    np.testing.assert_allclose(answer.arrays["summed"], expected, atol=1e-6)
    two = removals.counterfactual(run, [4, 2]).arrays["summed"]
    np.testing.assert_allclose(two, run.attribution.scores[[2, 4]].sum(0), atol=1e-6)


def test_a_counterfactual_has_the_error_bars_of_the_check(run, tmp_path):
    answer = removals.counterfactual(run, [4])
    wide = answer.arrays["half_width"]
    # Of one group it is that of its scores.
    kept = Attribution.load(run.workdir / "attribution.npz")
    np.testing.assert_allclose(wide, kept.half_widths[4], rtol=1e-2)
    assert (wide > 0).all()
    assert answer.table[0][3] == "90% of retrainings"
    assert all(len(row) == len(answer.table[0]) == 4 for row in answer.table)
    assert len(removals.counterfactual(run, [4, 2]).table[0]) == 5
    outputs = answer.arrays["outputs"]
    larger = int((np.abs(outputs[0] - outputs[1]) > wide).sum())
    assert f"{larger} of 40 changes are larger than their error bar" in " ".join(answer.sentences)
    # A run without a check has none.
    shutil.copytree(run.workdir, tmp_path / "other", ignore=shutil.ignore_patterns("predicted"))
    without = removals.counterfactual(open_finished(tmp_path / "other"), [4])
    assert "half_width" not in without.arrays
    assert all(len(row) == 3 for row in without.table)
    assert "error bar" not in " ".join(without.sentences)


def test_error_bars_are_taken_back_where_a_class_goes_and_none_went_before(run, monkeypatch):
    told = " ".join(removals.counterfactual(run, [3]).sentences)
    assert "nothing is left" not in told  # here every group is a class, those of the check too
    found = run.check
    halves = np.ones_like(found.truth.masks)
    truth = found.truth._replace(groups=found.truth.groups[:0], masks=halves)
    assert removals._unlike_any_learnt(run, found._replace(truth=truth), np.array([3])) == ["3"]
    two = np.array([3, 4])
    assert removals._unlike_any_learnt(run, found._replace(truth=truth), two) == ["3", "4"]
    monkeypatch.setattr(removals, "_unlike_any_learnt", lambda *args: ["3"])
    told = " ".join(removals.counterfactual(run, [3]).sentences)
    assert "Of 3 nothing is left." in told
    assert "the bars do not hold" in told


def test_answers_go_by_the_updates_that_were_chosen(run):
    """And not by those of the settings, which may be open."""
    chosen = dataclasses.replace(run.tuning.update, steps=9, rewind=0.0)
    other = run._replace(tuning=run.tuning._replace(update=chosen))
    one, two = (removals.counterfactual(each, [4]).arrays["outputs"] for each in (run, other))
    assert not np.allclose(one[0] - one[1], two[0] - two[1], atol=1e-3)


def test_groups_are_forgotten_carefully_where_updates_go_far(run):
    """Deflated steps along a cosine forget as plain ones at a constant rate."""
    far = dataclasses.replace(run.tuning.update, optimizer="deflated", schedule="cosine")
    other = run._replace(tuning=run.tuning._replace(update=far))
    one, two = (removals.forget(each, [2])[1] for each in (run, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("groups", [[], [10], [-1], list(range(10))])
def test_groups_that_are_none_or_all_are_refused(run, groups):
    with pytest.raises(ValueError, match=r"name some of 0\.\.9, and not all"):
        removals.counterfactual(run, groups)
    with pytest.raises(ValueError, match=r"name some of 0\.\.9, and not all"):
        removals.forget(run, groups)


def test_a_class_is_forgotten_beside_exact_retraining(run):
    groups = removals.groups_of_class(run, "3")
    answer, params = removals.forget(run, groups, check=True)
    rows = ["before", "after forgetting", "retrained, 2 seeds"]
    assert [line[0] for line in answer.table[1:]] == rows
    assert "of the way that retraining went" in " ".join(answer.sentences)
    after, exact = answer.arrays["after_forgetting"], answer.arrays["retrained"]
    assert after[0] < answer.arrays["before"][0]
    assert exact[0] == 0
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, run.target.params)
    assert all(jax.tree.leaves(moved))
    with pytest.raises(ValueError, match="class 'x'; choose one of 0, 1"):
        removals.groups_of_class(run, "x")


def test_groups_are_forgotten_by_what_the_check_says(run, monkeypatch):
    monkeypatch.setattr(unlearn, "ABSENT", 0.0)  # here a group is a class, and would be gone
    check = run.check
    update, _, state = without_data(run, run.plan)
    forget = unlearn.make_forget_groups(run.plan.task, state, update)
    amount = questions.amount_of(run, forget)
    alone = 1 - np.eye(run.groups.count, dtype=np.float32)[check.truth.groups]
    moved = [forget(mask).params for mask in alone]
    assert amount == unlearn.calibrated_amount(
        run.plan.task, run.target.params, moved, run.plan.split.test, -check.truth.effects()
    )
    assert amount != 1.0
    assert questions.amount_of(run._replace(check=None), forget) == 1.0
    answer, found = removals.forget(run, [2])
    assert f"moved by {amount:.2f} times" in " ".join(answer.sentences)
    assert "were forgotten by the synset alone" in answer.sentences[0]
    mask = np.ones(run.groups.count, np.float32)
    mask[2] = 0
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, atol=1e-5),
        found,
        forget(mask, amount).params,
    )


def test_groups_whose_class_goes_say_nothing_of_the_amount(run):
    """What is forgotten carefully is no multiple of anything."""
    update, _, state = without_data(run, run.plan)
    forget = unlearn.make_forget_groups(run.plan.task, state, update)
    assert questions.amount_of(run, lambda mask: forget(mask)._replace(careful=True)) == 1.0


def test_outputs_are_those_of_the_trained_network_and_what_changes(run):
    """They began at the network after the updates, which is not the one that the report shows."""
    found = removals.counterfactual(run, [4, 2]).arrays["outputs"]
    said = run.plan.task.output(run.target.params, run.plan.split.test)
    np.testing.assert_allclose(found[0], said, atol=1e-5)


def test_what_the_check_retrained_is_told_beside_the_estimate(run):
    truth = run.check.truth
    group = int(truth.groups[0])
    answer = removals.counterfactual(run, [group])
    assert answer.table[0][-1] == "without, retrained"
    change = truth.single[:, 0] - truth.full
    assert f"changes by {change[0].mean():+.4f}, " in " ".join(answer.sentences)
    query = int(answer.table[1][0].split(":")[0])
    wanted = answer.arrays["outputs"][0, query] + change.mean(0)[query]
    assert float(answer.table[1][-1]) == pytest.approx(wanted, abs=1e-3)
    several = removals.counterfactual(run, np.flatnonzero(truth.masks[0] == 0))
    assert several.table[0][-1] == "without, retrained"
    other = next(each for each in range(10) if each not in truth.groups)
    assert "retrained" not in removals.counterfactual(run, [other]).table[0][-1]


def test_changes_beyond_all_that_the_bars_were_learnt_on_are_told(run):
    told = "Outputs change more here than with any subset"
    assert told not in " ".join(removals.counterfactual(run, [4]).sentences)
    check = run.check
    small = check._replace(
        scores=check.scores * np.where(np.isin(np.arange(10), check.truth.groups), 0.1, 1)[:, None],
        predicted=check.predicted[:1] + 0.1 * (check.predicted - check.predicted[:1]),
    )
    other = next(each for each in range(10) if each not in check.truth.groups)
    assert told in " ".join(removals.counterfactual(run._replace(check=small), [other]).sentences)


def test_a_class_that_groups_mix_with_others_is_refused(run):
    mixed = run._replace(groups=as_groups(np.arange(120) % 10))
    with pytest.raises(ValueError, match=r"are no class: .* of its .* are in other groups"):
        removals.groups_of_class(mixed, "3")


def test_whether_effects_add_up_is_a_matter_of_the_updates(run):
    """Told at retraining's size, the slope was that of the factors of singles and of several."""
    answer = removals.counterfactual(run, [4, 2])
    shares = run.groups.shares()[[4, 2]]
    intervals = checking.intervals_of(run.check, run.groups)
    times = metrics.expected(intervals, np.ones((1, 1)), shares.sum(keepdims=True))[0, 0]
    outputs, alone = answer.arrays["outputs"], run.check.scores[[4, 2]].sum(0)
    joint = (outputs[0] - outputs[1]) / times
    slope = np.polyfit(alone, joint, 1)[0]
    assert f"slope {slope:.2f}" in " ".join(answer.sentences)
    np.testing.assert_allclose(answer.arrays["summed"], run.attribution.scores[[4, 2]].sum(0))


def test_what_is_judged_is_what_is_told(run):
    """Of groups of unlike sizes the order that is told is not that of the updates."""
    check = run.check
    ids = np.repeat(np.arange(10), [1, 1, 1, 2, 4, 9, 20, 22, 28, 32])
    uneven = as_groups(ids)
    said = checking.told(check, uneven)
    rows = checking.agreement(check, uneven)
    alone = metrics.per_query_correlation(
        said.scores[check.truth.groups], check.truth.effects().mean(0)
    )
    assert rows[1]["ddm"] == pytest.approx(metrics.nan_mean(alone))


def test_a_class_that_goes_by_its_items_is_told(run):
    answer, _ = removals.forget(run, removals.groups_of_class(run, "3"))
    assert "a class goes as a whole" in " ".join(answer.sentences)


def test_what_a_network_was_forgotten_by_is_told(run, monkeypatch):
    state = corrected(run.tuning.state, run.plan.task, run.plan.split.train, run.groups)
    with_gradients = run._replace(tuning=run.tuning._replace(state=state))
    answer, _ = removals.forget(with_gradients, [2])
    assert "by the synset and what it leaves of each group's gradient alone" in answer.sentences[0]


def test_queries_are_called_by_their_texts():
    shown = ["a <b>bold</b> one\nof two lines", "word " * 40]
    split = given_split(*2 * [make_batch(np.eye(2), [0, 1], 2)])
    texts = split._replace(kind="texts", shown_test=shown)
    assert query_in_words(texts, 0) == "0: a <b>bold</b> one of two lines"
    assert len(query_in_words(texts, 1)) == len("1: ") + 60
    assert query_in_words(split, 1) == "1"


def test_a_network_is_like_itself_and_another_cut_is_refused(run):
    answer = answers.compare_networks(run, run)
    assert "query by query: 1.000" in answer.sentences[0]
    np.testing.assert_array_equal(answer.arrays["first"], answer.arrays["second"])
    other = run._replace(groups=type(run.groups)(run.groups.ids[::-1], run.groups.count))
    with pytest.raises(ValueError, match="have other groups"):
        answers.compare_networks(run, other)
    loss = tiny_config("online.objective=loss")
    with pytest.raises(ValueError, match="another objective"):
        answers.compare_networks(run, run._replace(plan=run.plan._replace(config=loss)))


def test_a_run_that_is_not_finished_is_refused(workdir, tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        open_finished(tmp_path)
    assert not list(tmp_path.glob("lock"))
    (workdir / "metrics.json").rename(workdir / "metrics.old")
    with pytest.raises(ValueError, match="has no report yet"):
        open_finished(workdir)
    checkpoints.remove(workdir / "synset")
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
        result = ddm(name, "--workdir", workdir, *words)
        assert result.exit_code == 0, result.output
        for ending in ("json", "npz", "png"):
            assert (workdir / "answers" / f"{name}.{ending}").stat().st_size > 0
        told = json.loads((workdir / "answers" / f"{name}.json").read_text())
        assert told["table"][0]
        assert f"<h2>{told['title']}</h2>" not in before
        assert f"<h2>{told['title']}</h2>" in (workdir / "report.html").read_text()
    like = open_finished(workdir).target.params
    checkpoints.load(workdir / "answers" / "forgotten", like)
    # Beside another attribution an answer is out of date, and no page.
    stages.run_stage("tuning", workdir, ["online.steps=6"])
    stages.run_stage("attribution", workdir)
    assert ddm("quality", "--workdir", workdir).exit_code == 0
    page = (workdir / "report.html").read_text()
    assert "<h2>Single points</h2>" not in page
    assert "<h2>Data quality</h2>" in page


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("points.json", lambda content: b"{"),
        ("points.json", lambda content: content.replace(b"Two points", b"Two poinds")),
        ("points.json", lambda content: b'{"title": 3, "fingerprint": "x"}'),
        ("points.png", lambda content: content[:-1]),
        ("points.png", None),
        ("points.npz", lambda content: content[:-1] + b"x"),
        ("points.npz", None),
    ],
)
def test_a_damaged_answer_is_named_and_blocks_nothing(workdir, run, name, damage):
    """On 0.8 it was a traceback of every later `ddm run` and question."""
    there = run._replace(workdir=workdir)
    drawn = removals.counterfactual(run, [4]).figure
    for kept, title in (("points", "Two points"), ("others", "Others")):
        answer = Answer(title, ["said"], [["head"], ["cell"]], drawn, {"a": np.arange(3.0)})
        keep(there, kept, answer)
    path = workdir / "answers" / name
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    said = []
    assert [answer.title for answer, _ in kept_answers(workdir, said.append)] == ["Others"]
    assert len(said) == 1
    assert said[0].startswith("the answer points is left out: ")
    assert "\n" not in said[0]
    keep(there, "others", answer)
    page = (workdir / "report.html").read_text()
    assert "<h2>Others</h2>" in page
    assert "<h2>Two points</h2>" not in page
    keep(there, "points", answer)  # and mended by asking again
    assert len(kept_answers(workdir)) == 2


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
    result = ddm(words[0], "--workdir", finished, *words[1:])
    assert result.exit_code == 1
    assert said in result.output


def test_groups_are_asked_by_name_and_never_by_place_where_names_are_numbers(run):
    names = ("10", "20", "Rome, centre", *(f"g{k}" for k in range(7)))
    named = run._replace(groups=dataclasses.replace(run.groups, names=names))
    assert questions.find_groups(named, ["20", "Rome, centre"]).tolist() == [1, 2]
    with pytest.raises(ValueError, match="name some of 10, 20"):
        questions.find_groups(named, ["3"])
    plain = run._replace(groups=dataclasses.replace(run.groups, names=("a, b", *"cdefghijk")))
    assert questions.find_groups(plain, ["3"]).tolist() == [3]
    assert options.parts('"a, b",c') == ["a, b", "c"]
