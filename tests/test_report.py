"""The report: its numbers are those of `metrics`, its page needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from tiny_run import compile_once, finished, read_stages  # noqa: F401

from ddm_jax import figures, metrics, report
from ddm_jax.attribution import Attribution, make_attribution
from ddm_jax.workdir import stage_seconds

SECONDS = {"target": 1.0, "groups": 0.1, "synset": 4.0, "attribution": 0.5, "check": 20.0}


@pytest.fixture(scope="module")
def stages(finished):  # noqa: F811
    return read_stages(finished)


@pytest.fixture(scope="module")
def summary(stages):
    return report.summarise(*stages, SECONDS)


@pytest.fixture(scope="module")
def attribution(finished):  # noqa: F811
    return Attribution.load(finished / "attribution.npz")


# Numbers


def test_metrics_json_is_json_with_the_same_numbers(finished, stages):  # noqa: F811
    def no_constant(text: str):
        pytest.fail(f"{text} is no JSON")

    text = (finished / "metrics.json").read_text()
    read = json.loads(text, parse_constant=no_constant)
    summary = report.summarise(*stages, stage_seconds(finished))
    assert {k: read[k] for k in summary} == json.loads(json.dumps(report.without_nan(summary)))
    assert set(read["versions"]) >= {"ddm_jax", "jax", "python", "device"}


def test_nan_becomes_null():
    value = {"a": [float("nan"), 1.0, {"b": float("inf")}], "c": "nan", "d": 3}
    expected = {"a": [None, 1.0, {"b": None}], "c": "nan", "d": 3}
    assert report.without_nan(value) == expected


def test_undefined_numbers_are_written_as_null(tmp_path, monkeypatch, stages, summary, attribution):
    row = {**summary["agreement"][0], "ddm": float("nan")}
    monkeypatch.setattr(report, "summarise", lambda *_: {**summary, "agreement": [row]})
    monkeypatch.setattr(report, "_png", lambda figure: b"")
    plan, target, groups, synset, check = stages
    report.write(plan, tmp_path, target, groups, synset, attribution, check, SECONDS)
    read = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert np.isnan(row["ddm_interval"]).all()
    assert read["agreement"] == [{**row, "ddm": None, "ddm_interval": [None, None]}]


def test_sizes(summary):
    assert summary["sizes"] == {
        "training points": 120,
        "queries": 40,
        "groups": 10,
        "synset items a group": 1,
        "of them in an online step": 1,
        "parameters": 64 * 8 + 8 + 8 * 10 + 10,
        "flipped training labels": 0,
    }


def test_accuracy_is_that_of_the_target_network(summary, stages):
    plan, target = stages.plan, stages.target
    for part, batch in (("train", plan.split.train), ("test", plan.split.test)):
        logits = np.asarray(plan.task.apply(target.params, batch.x))
        assert logits.shape == batch.y.shape
        hits = logits.argmax(1) == batch.y.argmax(1)
        assert summary["accuracy"][part] == pytest.approx(hits.mean())


def test_agreement_is_that_of_the_metrics(summary, stages):
    check = stages.check
    retrained, predicted = np.asarray(check.retrained), np.asarray(check.predicted)
    grad_dot = np.asarray(check.grad_dot)
    # Rows: everything kept, two groups left out, two halves.
    assert retrained.shape == (2, 5, 40)
    effects = np.stack([retrained[:, 0] - retrained[:, r] for r in (1, 2)], 1)
    single = np.stack([predicted[0] - predicted[r] for r in (1, 2)])
    pooled, ranks, halves = summary["agreement"]

    assert pooled["ddm"] == pytest.approx(metrics.pooled_correlation(single, effects.mean(0)))
    assert np.isnan(pooled["ddm_interval"]).all()
    assert pooled["grad_dot"] == pytest.approx(
        metrics.pooled_correlation(grad_dot[check.groups], effects.mean(0))
    )
    ceiling = metrics.noise_ceiling(effects, "pearson", pooled=True)
    assert pooled["one_retraining"] == pytest.approx(ceiling.one_run)
    assert pooled["perfect"] == pytest.approx(ceiling.perfect)

    truth = retrained[:, 3:]
    added = np.stack([grad_dot[check.masks[r] == 1].sum(0) for r in (3, 4)])
    for row, ddm, other, runs in (
        (ranks, single, grad_dot[check.groups], effects),
        (halves, predicted[3:], added, truth),
    ):
        told = metrics.agreement(ddm, runs.mean(0))
        assert row["ddm"] == pytest.approx(told.mean)
        assert row["ddm_interval"] == pytest.approx(list(told.over_rows), nan_ok=True)
        assert row["grad_dot"] == pytest.approx(metrics.agreement(other, runs.mean(0)).mean)
        ceiling = metrics.noise_ceiling(runs)
        assert row["one_retraining"] == pytest.approx(ceiling.one_run)
        assert row["perfect"] == pytest.approx(ceiling.perfect)


def test_matching_error_and_cost(summary, stages):
    error, before = np.asarray(stages.synset.error), np.asarray(stages.synset.error_start)
    assert error.shape == before.shape == (10,)
    assert summary["matching_error"] == {
        "held_out_median": pytest.approx(np.median(error)),
        "held_out_median_before_distillation": pytest.approx(np.median(before)),
        "held_out_worst": pytest.approx(error.max()),
        "groups_made_worse": int((error > before).sum()),
    }
    # 5 steps over 10 synthetic items against 12 batches of 40.
    assert summary["online_example_gradients"] == {"ddm": 50, "retraining": 480}
    assert summary["seconds_a_retrained_network"] == pytest.approx(20.0 / 10)
    assert summary["seconds"] == SECONDS


def test_the_sentences_hold_the_numbers(summary):
    text = " ".join(summary["sentences"])
    assert f"{summary['accuracy']['test']:.1%} of 40 queries" in text
    assert "4.0 s distilling" in text
    assert "0.5 s for 10 held-out groups" in text
    assert "about 22 s a seed (2.00 s a network)" in text


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


def test_mistakes_show_the_most_confident_ones(stages, attribution):
    split = stages.plan.split
    logits = np.asarray(stages.plan.task.apply(stages.target.params, split.test.x))
    labels = split.test.y.argmax(1)
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    assert len(wrong) >= figures.SHOWN_QUERIES
    certainty = logits.max(1) - logits[np.arange(40), labels]
    worst = wrong[certainty[wrong].argmax()]
    text = _texts(figures.mistakes_figure(stages.plan, stages.target, attribution))
    assert text.count("taken for") == figures.SHOWN_QUERIES
    assert f"{labels[worst]},\ntaken for\n{logits[worst].argmax()}" in text
    hurt, helped = (attribution.scores[:, worst].argmin(), attribution.scores[:, worst].argmax())
    titles = [f"group {g}: {attribution.scores[g, worst]:+.2f}" for g in (hurt, helped)]
    assert -1 < text.find(titles[0]) < text.find(titles[1]), "what hurt stands first"


def test_no_mistakes_say_so(stages, attribution):
    plan = stages.plan
    logits = plan.task.apply(stages.target.params, plan.split.test.x)
    right = plan.split.test._replace(y=np.asarray(jax.nn.one_hot(logits.argmax(1), 10)))
    plan = plan._replace(split=plan.split._replace(test=right))
    figure = figures.mistakes_figure(plan, stages.target, attribution)
    assert _texts(figure) == "No query is misclassified."
    assert report._png(figure).startswith(b"\x89PNG")


def test_an_objective_that_is_not_per_query_says_so(stages, attribution):
    one = make_attribution(attribution.scores[:, :1], attribution.groups)
    figure = figures.mistakes_figure(stages.plan, stages.target, one)
    assert _texts(figure) == "The objective is not per query."


def test_the_matrix_is_sorted_by_class(attribution, stages):
    labels = stages.plan.split.test.y.argmax(1)
    figure = figures.matrix_figure(attribution, labels, stages.plan.split.classes)
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    assert drawn.shape == (10, 40)
    np.testing.assert_array_equal(drawn, attribution.scores[:, np.argsort(labels, kind="stable")])
    one = make_attribution(attribution.scores[:, :1], attribution.groups)
    figure = figures.matrix_figure(one, labels, stages.plan.split.classes)
    assert figure.axes[0].images[0].get_array().shape == (10, 1)


def test_a_matrix_of_zeros_can_be_drawn(stages):
    zeros = make_attribution(np.zeros((2, 3)), [0, 1])
    figure = figures.matrix_figure(zeros, np.array([0, 1, 1]), ("a", "b"))
    assert report._png(figure).startswith(b"\x89PNG")


def test_groups_of_one_point_can_be_drawn(stages):
    figure = figures.groups_figure(stages.plan, np.arange(120))
    assert len(figure.axes[0].patches) == 120
    assert "group 119\n1 points" in _texts(figure)


def test_agreement_without_halves_leaves_the_right_side_empty(stages):
    check = stages.check
    short = check._replace(
        masks=check.masks[:3], retrained=check.retrained[:, :3], predicted=check.predicted[:3]
    )
    for given, panels in ((check, 2), (short, 1)):
        figure = figures.agreement_figure(given)
        assert sum(axes.axison for axes in figure.axes) == panels


def test_training_figure_means_between_checkpoints():
    figure = figures.training_figure(np.array([9.0, 1.0, 3.0, 5.0, 7.0]), 2)
    batch, mean = figure.axes[0].lines
    np.testing.assert_array_equal(batch.get_ydata(), [9, 1, 3, 5, 7])
    np.testing.assert_array_equal(mean.get_ydata(), [2, 6])
    np.testing.assert_array_equal(mean.get_xdata(), [2, 4])


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
    assert len(page.headings) == 9


def test_the_page_shows_the_numbers_and_names_what_is_undefined(summary, stages):
    result = {**summary, "versions": {"jax": "1"}}
    result["agreement"] = [{**summary["agreement"][0], "ddm": float("nan")}]
    names = ("agreement", "matrix", "mistakes", "synset", "matching", "groups", "training")
    text = report.page(stages.plan, result, dict.fromkeys(names, b""))
    assert f"<td>undefined</td><td>{summary['agreement'][0]['grad_dot']:.3f}</td>" in text
    # An interval stands beside its number.
    result["agreement"] = [{**summary["agreement"][0], "ddm": 0.5, "ddm_interval": [-0.1, 0.9]}]
    text = report.page(stages.plan, result, dict.fromkeys(names, b""))
    assert "<td>0.500 (-0.10 to 0.90)</td>" in text


def test_names_are_escaped(summary, stages):
    plan = stages.plan
    settings = plan.config
    import dataclasses

    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, name="<b>&"))
    result = {**summary, "versions": {"jax": "<1>"}}
    names = ("agreement", "matrix", "mistakes", "synset", "matching", "groups", "training")
    text = report.page(plan._replace(config=settings), result, dict.fromkeys(names, b""))
    assert "<b>" not in text
    assert "<1>" not in text
    assert "&lt;b&gt;&amp;" in text
