"""The report: its numbers are those of `metrics`, its page needs nothing else, its text is text."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import warnings
from html.parser import HTMLParser
from typing import Any, cast

import jax
import numpy as np
import pytest
from tiny_run import finished, read_stages  # noqa: F401

from ddm_jax import files, metrics
from ddm_jax.attribution import Attribution, make_attribution
from ddm_jax.cluster import as_groups
from ddm_jax.data import given_split
from ddm_jax.estimators.pools import Pool
from ddm_jax.judge.rivals import Rival
from ddm_jax.run import answer_figures, figures, report, worth
from ddm_jax.run import check as checking
from ddm_jax.run.choosing import Tuning
from ddm_jax.run.drawing import SHOWN_QUERIES, png
from ddm_jax.run.workdir import KeptAnswer
from ddm_jax.tuning import Tried
from ddm_jax.types import Batch
from ddm_jax.updates import UpdateSettings

SECONDS = {
    "target": 1.0,
    "groups": 0.1,
    "synset": 4.0,
    "tuning": 2.0,
    "attribution": 0.5,
    "check": 20.0,
}


@pytest.fixture(scope="module")
def stages(finished):  # noqa: F811
    return read_stages(finished)


@pytest.fixture(scope="module")
def summary(stages):
    return report.summarise(stages.plan, stages.results, SECONDS)


@pytest.fixture(scope="module")
def attribution(stages):
    return stages.results.attribution


# Numbers


def test_metrics_json_holds_the_same_numbers(finished, stages):  # noqa: F811
    read = files.read_json(finished / "metrics.json")
    summary = report.summarise(stages.plan, stages.results, read["seconds"])
    assert {k: read[k] for k in summary} == files.plain(summary)
    assert set(read["versions"]) >= {"ddm_jax", "jax", "python", "device"}


def test_undefined_numbers_are_written_as_null(tmp_path, monkeypatch, finished, stages, summary):  # noqa: F811
    row = {**summary["agreement"][0], "ddm": float("nan")}
    monkeypatch.setattr(report, "summarise", lambda *_: {**summary, "agreement": [row]})
    monkeypatch.setattr(report, "png", lambda figure: b"")
    monkeypatch.setattr(report, "kept_answers", lambda *_: [])
    report.write(stages.plan, tmp_path, stages.results, SECONDS)
    text = (tmp_path / "metrics.json").read_text()
    read = json.loads(text, parse_constant=pytest.fail)
    assert np.isnan(row["ddm_interval"]).all()
    assert read["agreement"] == [{**row, "ddm": None, "ddm_interval": [None, None]}]


def test_sizes(summary):
    assert summary["sizes"] == {
        "training points": 120,
        "queries": 40,
        "groups": 10,
        "synset items": 10,
        "items of an online step": 10,
        "parameters": 64 * 8 + 8 + 8 * 10 + 10,
        "flipped training labels": 0,
    }


def test_accuracy_is_that_of_the_target_network(summary, stages):
    plan, target = stages.plan, stages.results.target
    for part, batch in (("train", plan.split.train), ("test", plan.split.test)):
        logits = np.asarray(plan.task.apply(target.params, batch.x))
        assert logits.shape == batch.y.shape
        hits = logits.argmax(1) == batch.y.argmax(1)
        assert summary["accuracy"][part] == pytest.approx(hits.mean())


def test_agreement_is_that_of_the_metrics(summary, stages):
    check = checking.told(stages.results.check, stages.results.groups)
    effects = check.truth.effects()
    assert effects.shape == (2, 2, 40)  # seeds, groups left out, queries
    single, other = (each[check.truth.groups] for each in (check.scores, check.grad_dot))
    pooled, ranks, halves = summary["agreement"]

    for name, scores in (("ddm", single), ("grad_dot", other)):
        told = metrics.pooled_correlation(scores, effects.mean(0))
        assert pooled[name] == pytest.approx(told)
    assert np.isnan(pooled["ddm_interval"]).all()
    ceiling = metrics.noise_ceiling(effects, "pearson", pooled=True)
    assert pooled["one_retraining"] == pytest.approx(ceiling.one_run)
    assert pooled["perfect"] == pytest.approx(ceiling.perfect)

    added = check.truth.masks @ check.grad_dot
    for row, ddm, baseline, runs in (
        (ranks, single, other, effects),
        (halves, check.predicted[1:], added, check.truth.subsets),
    ):
        told = metrics.agreement(ddm, runs.mean(0))
        assert row["ddm"] == pytest.approx(told.mean)
        assert row["ddm_interval"] == pytest.approx(list(told.over_rows), nan_ok=True)
        assert row["grad_dot"] == pytest.approx(metrics.agreement(baseline, runs.mean(0)).mean)
        ceiling = metrics.noise_ceiling(runs)
        assert row["one_retraining"] == pytest.approx(ceiling.one_run)
        assert row["perfect"] == pytest.approx(ceiling.perfect)


def test_matching_error_and_cost(summary, stages):
    info = stages.results.synset.info
    error, before = np.asarray(info.error), np.asarray(info.error_start)
    assert error.shape == before.shape == (10,)
    assert summary["matching_error"] == {
        "held_out_median": pytest.approx(np.median(error)),
        "held_out_median_before_distillation": pytest.approx(np.median(before)),
        "held_out_worst": pytest.approx(error.max()),
        "groups_made_worse": int((error > before).sum()),
    }
    # 5 steps over 10 synthetic items against 12 batches of 40.
    assert summary["online_example_gradients"] == {"ddm": 50, "retraining": 480}
    assert summary["seconds_a_retrained_network"] == stages.results.check.truth.seconds
    assert summary["seconds"] == SECONDS


def test_batches_that_are_not_full_cost_what_they_hold(stages):
    target = stages.results.target
    rows = np.asarray(target.rows).copy()
    rows[-1, 10:] = -1
    results = stages.results._replace(target=target._replace(rows=rows))
    told = report.summarise(stages.plan, results, SECONDS)
    assert told["online_example_gradients"]["retraining"] == 450


def test_the_sentences_hold_the_numbers(summary):
    text = " ".join(summary["sentences"])
    assert f"{summary['accuracy']['test']:.1%} of 40 queries" in text
    assert "4.0 s distilling" in text
    assert "0.5 s for 10 held-out groups" in text
    assert " s a network)" in text


# Figures


def test_seven_pictures_that_are_png(finished):  # noqa: F811
    pictures = sorted((finished / "figures").iterdir())
    assert len(pictures) == 7
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")


def _texts(figure) -> str:
    texts = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        texts += [text.get_text() for text in axes.texts]
        texts += [axes.get_title(loc="left"), axes.get_title(), axes.get_xlabel()]
    return "\n".join(texts)


def of_classes(labels, classes):
    """A split of nothing but classes."""
    y = np.eye(len(classes), dtype=np.float32)[labels]
    batch = Batch(np.zeros((len(y), 1), np.float32), y)
    return given_split(batch, batch, classes)


def test_mistakes_show_the_most_confident_ones(stages, attribution):
    split = stages.plan.split
    logits = np.asarray(stages.plan.task.apply(stages.results.target.params, split.test.x))
    labels = split.test.y.argmax(1)
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    assert len(wrong) >= SHOWN_QUERIES
    certainty = logits.max(1) - logits[np.arange(40), labels]
    worst = wrong[certainty[wrong].argmax()]
    text = _texts(figures.mistakes_figure(stages.plan, stages.results.target, attribution))
    assert text.count("taken for") == SHOWN_QUERIES
    assert f"{labels[worst]},\ntaken for\n{logits[worst].argmax()}" in text
    hurt, helped = (attribution.scores[:, worst].argmin(), attribution.scores[:, worst].argmax())
    titles = [f"group {g}: {attribution.scores[g, worst]:+.2g}" for g in (hurt, helped)]
    assert -1 < text.find(titles[0]) < text.find(titles[1]), "what hurt stands first"


def test_no_mistakes_say_so(stages, attribution):
    plan = stages.plan
    logits = plan.task.apply(stages.results.target.params, plan.split.test.x)
    right = plan.split.test._replace(y=np.asarray(jax.nn.one_hot(logits.argmax(1), 10)))
    plan = plan._replace(split=plan.split._replace(test=right))
    figure = figures.mistakes_figure(plan, stages.results.target, attribution)
    assert _texts(figure) == "No query is misclassified."
    assert png(figure).startswith(b"\x89PNG")


def test_an_objective_that_is_not_per_query_says_so(stages, attribution):
    one = make_attribution(attribution.scores[:, :1], attribution.groups)
    figure = figures.mistakes_figure(stages.plan, stages.results.target, one)
    assert _texts(figure) == "The objective is not per query."


def test_the_matrix_is_sorted_by_class(attribution, stages):
    labels = stages.plan.split.test.y.argmax(1)
    figure = figures.matrix_figure(attribution, stages.plan.split)
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    assert drawn.shape == (10, 40)
    np.testing.assert_array_equal(drawn, attribution.scores[:, np.argsort(labels, kind="stable")])
    assert figure.axes[0].images[0].get_cmap().name == "RdBu"
    less = attribution._replace(metadata={"lower_is_better": True})
    figure = figures.matrix_figure(less, stages.plan.split)
    assert figure.axes[0].images[0].get_cmap().name == "RdBu_r", "blue is what helps"
    one = make_attribution(attribution.scores[:, :1], attribution.groups)
    figure = figures.matrix_figure(one, stages.plan.split)
    assert figure.axes[0].images[0].get_array().shape == (10, 1)


def test_a_matrix_of_zeros_can_be_drawn(stages):
    zeros = make_attribution(np.zeros((2, 3)), [0, 1])
    figure = figures.matrix_figure(zeros, of_classes([0, 1, 1], ("a", "b")))
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.slow
def test_groups_of_one_point_can_be_drawn(stages):
    figure = figures.groups_figure(stages.plan, as_groups(np.arange(120)))
    assert len(figure.axes[0].patches) == 120
    assert "group 119\n1 point" in _texts(figure)


@pytest.mark.slow
@pytest.mark.parametrize("letters", [30, 300])
def test_long_names_leave_room_for_the_bars(stages, attribution, letters):
    names = tuple(f"{n} {'x' * letters}" for n in range(10))
    groups = as_groups(np.asarray(attribution.groups.ids), names=names)
    figure = figures.groups_figure(stages.plan, groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    bars = figure.axes[0].get_window_extent()
    assert bars.height / figure.dpi > 1


@pytest.mark.slow
def test_groups_are_called_by_their_names(stages, attribution):
    names = tuple(f"name {n}" for n in range(10))
    groups = as_groups(np.asarray(attribution.groups.ids), names=names)
    drawn = [
        figures.groups_figure(stages.plan, groups),
        figures.mistakes_figure(
            stages.plan, stages.results.target, attribution._replace(groups=groups)
        ),
        figures.synset_figure(
            stages.plan, groups, stages.results.synset.synset, np.arange(10.0) / 10
        ),
    ]
    for figure in drawn:
        assert "name " in _texts(figure)
        assert "group " not in _texts(figure)
    ticks = figures.matrix_figure(attribution._replace(groups=groups), stages.plan.split)
    assert [text.get_text() for text in ticks.axes[0].get_yticklabels()] == list(names)


def test_agreement_without_halves_leaves_the_right_side_empty(stages):
    check = stages.results.check
    truth = check.truth._replace(
        masks=check.truth.masks[:0], keep=check.truth.keep[:0], subsets=check.truth.subsets[:, :0]
    )
    short = check._replace(truth=truth, predicted=check.predicted[:1])
    for given, panels in ((check, 2), (short, 1)):
        figure = figures.agreement_figure(given)
        assert sum(axes.axison for axes in figure.axes) == panels


def test_halves_are_compared_around_their_mean(stages):
    """Predicted outputs hold up to a constant a query."""
    check = stages.results.check
    moved = check._replace(predicted=check.predicted + np.arange(40.0))
    (left, right), (_, same) = (figures.agreement_figure(each).axes for each in (check, moved))
    np.testing.assert_allclose(
        right.collections[0].get_offsets(), same.collections[0].get_offsets(), atol=1e-4
    )
    np.testing.assert_allclose(
        left.collections[0].get_offsets()[:, 1], check.truth.effects().mean(0).ravel()
    )


def test_training_figure_means_between_checkpoints():
    figure = figures.training_figure(np.array([9.0, 1.0, 3.0, 5.0, 7.0]), np.array([1, 3, 5]))
    batch, mean = figure.axes[0].lines
    np.testing.assert_array_equal(batch.get_ydata(), [9, 1, 3, 5, 7])
    np.testing.assert_array_equal(mean.get_ydata(), [9, 2, 6])
    np.testing.assert_array_equal(mean.get_xdata(), [0.5, 2, 4])


HOSTILE = (
    "$\\frac$",
    "$a$ and $b",
    "$x^2$\n<script>",
    "[/red]",
    "\\$",
    "a_b^c",
    "100%",
    "",
    "8",
    "9",
)


@pytest.mark.slow
def test_names_in_figures_are_text_and_no_formulas(stages, attribution):
    """A class called `$\\frac$` ended the report with a parse error."""
    split = stages.plan.split._replace(classes=HOSTILE)
    plan, results = stages.plan._replace(split=split), stages.results
    groups = as_groups(np.asarray(attribution.groups.ids), names=HOSTILE)
    named = attribution._replace(groups=groups)
    two, said = np.zeros(2, int), {0: "$\\frac$"}
    row = {
        "estimator": "$\\frac$",
        "score": "$\\frac$",
        "value": 0.5,
        "over_rows": [0.4, 0.6],
        "ceiling": 0.9,
        "online_seconds": 0.2,
        "offline_seconds": 300.0,
        "counterfactuals": 3,
    }
    drawn = [
        figures.matrix_figure(named, split),
        figures.mistakes_figure(plan, results.target, named),
        figures.synset_figure(plan, groups, results.synset.synset, np.arange(10.0)),
        figures.groups_figure(plan, groups),
        answer_figures.comparison_figure({"rows": [row]}),
        answer_figures.points_figure(split, two, said, np.eye(120, 2, dtype=int), np.eye(120), 2),
        answer_figures.ranked_figure(split, {"$\\frac$": np.arange(120.0)}, 3),
        answer_figures.bars_figure({"$\\frac$": [1.0]}, ["$\\frac$"]),
        answer_figures.profiles_figure(np.ones(2), np.ones(2), "$\\frac$", "runs/$\\frac$"),
    ]
    for figure in drawn:
        assert png(figure).startswith(b"\x89PNG")


def test_ticks_of_logarithms_are_numbers():
    figure = figures.matching_figure(np.array([1e-5, 1e-3, 0.1]), np.ones(3))
    png(figure)
    ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert "0.01" in ticks
    assert not any("$" in tick for tick in ticks)


@pytest.mark.parametrize(
    ("factor", "told"), [(1.0, None), (0.2, "5 times what the updates"), (3.0, "0.33 times what")]
)
def test_sizes_that_are_not_the_updates_own_are_told(stages, factor, told):
    check = stages.results.check
    truth, scores, predicted = check.truth, np.array(check.scores), np.array(check.predicted)
    scores[truth.groups] = factor * truth.effects().mean(0)
    predicted[1:] = predicted[:1] + factor * (truth.subsets - truth.full[:, None]).mean(0)
    once = check._replace(scores=scores, predicted=predicted)
    said = checking.told_sizes(once, stages.results.groups)
    assert len(said) == (told is not None)
    if told:
        assert f"checked itself on: {told}" in said[0]
        assert " % of the data are gone" in said[0]


def test_what_was_not_distilled_has_no_before(stages):
    figure = figures.matching_figure(np.array([0.1, 0.2]), None)
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert shown == ["chosen items", "an empty synset"]
    chosen = dataclasses.replace(
        stages.plan.config, distill=dataclasses.replace(stages.plan.config.distill, steps=0)
    )
    plan = stages.plan._replace(config=chosen)
    told = report.summarise(plan, stages.results, dict.fromkeys(SECONDS, 1.0))["sentences"]
    assert not any("before" in each for each in told)
    assert any("nothing distilled" in each for each in told)


@pytest.mark.slow
def test_what_harms_a_query_depends_on_what_is_better(stages, attribution):
    plan = stages.plan._replace(task=stages.plan.task._replace(lower_is_better=True))
    scores = attribution.scores
    centred = attribution._replace(scores=scores - np.median(scores, 0))  # some of each sign
    texts = [
        _texts(figures.mistakes_figure(each, stages.results.target, centred)).splitlines()
        for each in (stages.plan, plan)
    ]
    more, less = ([line for line in text if line.startswith("group ")][:4] for text in texts)
    assert more == [*less[2:], *less[:2]]
    helping = attribution._replace(scores=1 + np.abs(scores))
    only = _texts(figures.mistakes_figure(stages.plan, stages.results.target, helping))
    assert 2 * only.count("group ") == " ".join(texts[0]).count("group ") > 0  # no red ones


# The page


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.sources, self.links, self.headings = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.sources.append(attributes["src"])
        elif tag != "meta":
            self.open.append(tag)
        self.links += [v for k, v in attributes.items() if k in ("href", "src") and tag != "img"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_the_page_is_whole_and_needs_nothing_else(finished):  # noqa: F811
    text = (finished / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.links == []
    assert len(page.sources) == 7
    kind = "data:image/png;base64,"
    inline = {base64.b64decode(s.removeprefix(kind), validate=True) for s in page.sources}
    assert inline == {p.read_bytes() for p in (finished / "figures").iterdir()}
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert page.headings[0] == "Can it be trusted?"
    assert len(page.headings) == 11


def _page(stages, summary, answers=(), **changes) -> str:
    result = files.plain({**summary, "versions": {"jax": "1"}, **changes})
    names = ("agreement", "matrix", "mistakes", "synset", "matching", "groups", "training")
    return report.page(stages.plan, result, dict.fromkeys(names, b"x"), answers)


def test_the_page_shows_the_numbers_and_names_what_is_undefined(summary, stages):
    row = summary["agreement"][0]
    text = _page(stages, summary, agreement=[{**row, "ddm": float("nan")}])
    assert f"<td>undefined</td><td>{row['grad_dot']:.3f}</td>" in text
    # An interval stands beside its number.
    text = _page(stages, summary, agreement=[{**row, "ddm": 0.5, "ddm_interval": [-0.1, 0.9]}])
    assert "<td>0.500 (-0.10 to 0.90)</td>" in text
    assert "50 example gradients" in text
    assert "its margin, of which more is better" in text
    assert "of which less is better" in _page(stages, summary, lower_is_better=True)


def test_all_text_of_the_page_is_escaped(summary, stages):
    """A key in metrics.json came into the page as it was."""
    bad = "<script>alert('1')</script>&"
    kept = KeptAnswer(bad, [bad], [[bad], [bad]], "", bad, {}, {})
    text = _page(
        stages,
        summary,
        [(kept, b"x")],
        dataset=bad,
        versions={bad: bad},
        sizes={bad: 1},
        seconds={bad: 1.0},
        sentences=[bad],
        axes=bad,
        sign=bad,
        objective=bad,
        agreement=[{**summary["agreement"][0], "what": bad}],
    )
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;") == 16
    page = _Page()
    page.feed(text)
    assert page.open == []


def _told(
    stages, tuned: bool, rival_seconds: float = 2.0, pool: Pool = "synset", other: float = 0.9
):
    """What is said of updates that cost a quarter of a retraining, and half a second a question."""
    update = UpdateSettings(steps=5, batch=10, schedule="cosine")
    tried = Tried(update, pool, 0.25, 0.8, 0.5)
    beside: Pool = "synset" if pool == "data" else "data"
    state = cast(Any, None)  # nothing is computed
    tuning = Tuning(
        update=update,
        state=state,
        pool=pool,
        tried=(tried, tried._replace(agreement=0.3)),
        costs=(tried._replace(update=UpdateSettings(steps=1), share=0.05, agreement=0.6), tried),
        other=tried._replace(pool=beside, agreement=other, seconds=0.6),
        rivals=(Rival(1, 0.25, 0.7, 0.1), Rival(2, 0.5, 0.85, rival_seconds)),
        one_retraining=0.95,
        seconds_a_retraining=4.0,
    )
    told = worth.told_updates(tuning if tuned else Tuning(update, state), SECONDS, 10, 10**6)
    return told, " ".join(told["sentences"])


def test_how_the_updates_go_beside_retraining(stages, summary):
    told, text = _told(stages, tuned=True)
    assert [(row["share"], row["agreement"], row["seconds"]) for row in told["costs"]] == [
        (0.05, 0.6, 0.5),
        (0.25, 0.8, 0.5),
        (0.25, 0.9, 0.6),
        (0.25, 0.7, 0.1),
        (0.5, 0.85, 2.0),
        (1.0, 0.95, 4.0),
    ]
    # The first that is as good, and not the cheapest of all: 6 s of distilling and choosing.
    assert (
        "as good is retraining cut to 2 epochs, which takes 2 s a question, the updates 0.5 s."
        in text
    )
    assert told["pays_after"] == pytest.approx((4.0 + 2.0) / (2.0 - 0.5))
    assert "(6 s) pay after about 4 questions" in text
    assert "more items would buy 0.100 at most" in text
    page = _page(stages, summary, updates=told)
    assert "<td>25.0%</td><td>0.800</td><td>0.5</td>" in page
    assert "<td>25.0%</td><td>0.900</td><td>0.6</td>" in page

    never, text = _told(stages, tuned=True, rival_seconds=0.4)
    assert never["pays_after"] is None
    assert "Retrain instead" in text


@pytest.mark.parametrize(
    ("pool", "other", "said", "rows"),
    [
        ("synset", 0.7, "of the distilled datamodel reaches 0.700: more items would buy nothing.",
         ("data", "synset")),
        ("synset", float("nan"), "diverged with every recipe: more items", ("data", "synset")),
        ("corrected", 0.7, "items leave of the gradients. ", ("data", "corrected")),
        ("corrected", 0.7, "in place of the distilled datamodel, corrected reaches 0.700",
         ("data", "corrected")),
        ("data", 0.7, "for the distilled datamodel reaches 0.700: more items would buy 0.100",
         ("synset", "data")),
    ],
)  # fmt: skip
def test_what_the_steps_take_beside_what_they_might(stages, pool, other, said, rows):
    told, text = _told(stages, tuned=True, pool=pool, other=other)
    assert said in text
    assert ("tune.pools=synset,corrected" in text) == (pool == "data")
    assert f"5 steps of 10 {'training points' if pool == 'data' else 'items'}" in text
    beside, chosen = (worth.POOLS[each] for each in rows)
    what = [row["what"] for row in told["costs"]]
    assert what[:3] == [f"{chosen}, the chosen recipe"] * 2 + [
        f"{beside}, the best recipe of theirs"
    ]


def test_updates_that_nobody_chose_have_no_costs(stages, summary):
    told, text = _told(stages, tuned=False)
    assert text.startswith("Updates, as the settings say: sgd, 5 steps of 10 items, 1 times")
    assert "pays_after" not in told
    assert worth.cost_table({"updates": told}) == worth.cost_table({}) == []
    assert "group LDS on the tuning subsets" not in _page(stages, summary, updates=told)


def test_the_share_of_effects_that_are_larger_than_their_bar(summary, finished):  # noqa: F811
    kept = Attribution.load(finished / "attribution.npz")
    sure = (np.abs(kept.scores) > kept.half_widths).mean()
    assert summary["intervals"] == {"level": 0.9, "single_groups_larger": pytest.approx(sure)}
    assert f"{sure:.1%} of the effects of single groups" in " ".join(
        (finished / "report.html").read_text().split()
    )


def test_a_damaged_metrics_json_is_named_with_the_mend(stages, tmp_path):
    (tmp_path / "metrics.json").write_text('{"dataset": "edited"}')
    with pytest.raises(
        files.DamagedFileError, match=r"was edited.*; `ddm report --workdir .*again"
    ):
        report.rewrite(stages.plan, tmp_path)


def test_a_report_says_that_its_settings_have_changed(finished):  # noqa: F811
    stages = read_stages(finished)
    metrics_ = files.read_json(finished / "metrics.json")
    assert "Out of date" not in report.page(stages.plan, metrics_, {})
    online = dataclasses.replace(stages.plan.config.online, objective="loss")
    config = dataclasses.replace(stages.plan.config, online=online)
    told = report.page(stages.plan._replace(config=config), metrics_, {})
    assert "Out of date:</b> settings of online have been changed" in told


@pytest.mark.slow
def test_groups_that_matter_are_named(summary, stages):
    """A spoilt hospital was one dark row of a picture, and nowhere in words."""
    rows, scores = summary["groups"], stages.results.attribution.scores
    assert len(rows) == 10
    assert [row["mean"] for row in rows] == sorted(scores.mean(1).tolist(), reverse=True)
    assert all(0 <= row["helps"] + row["harms"] <= 1 for row in rows)
    lines = report.groups_table(summary)
    assert lines[0][-1] == "queries it surely harms"
    assert lines[1][0].startswith("group ")
    assert "Which groups matter" in _page(stages, summary)
    lower = report.told_groups(stages.results, lower_is_better=True)
    assert lower[0]["group"] == rows[-1]["group"]
    many = stages.results._replace(attribution=_repeated(stages.results.attribution, 3))
    assert len(report.told_groups(many, False)) == 2 * report.SHOWN_GROUPS


def _repeated(attribution, times):
    groups = as_groups(np.arange(120) % (10 * times))
    scores, wide = (
        np.tile(each, (times, 1)) for each in (attribution.scores, attribution.half_widths)
    )
    return attribution._replace(scores=scores, half_widths=wide, groups=groups)
