"""`ddm run language`: the corpus that the library carries, and folders of one's own."""

from __future__ import annotations

import re

import numpy as np
import pytest
from command import ddm as command
from flax import nnx

import ddm_jax as ddm
from ddm_jax import models, tasks
from ddm_jax.card import make_what_if
from ddm_jax.data.language import CORPUS
from ddm_jax.explore import view
from ddm_jax.files import read_json
from ddm_jax.run import answers, passages, questions, removals, settings
from ddm_jax.run.finished import open_finished
from ddm_jax.run.plan import make_plan
from ddm_jax.run.wording import text_of
from ddm_jax.run.workdir import SILENT

SMALL = [
    "data.context=8",
    "model.start=none",
    "model.width=8",
    "model.depth=1",
    "train.epochs=2",
    "train.batch_size=8",
    "distill.items=2",
    "online.steps=3",
    "online.batch=4",
    "tune.subsets=0",
    "check.groups=2",
    "check.subsets=0",
]


def test_the_corpus_that_is_carried():
    split = ddm.data.load("language")
    assert len(split.groups.names) == split.groups.count == 27
    kinds = [name.split("/")[0] for name in split.groups.names]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys(
        ("plays", "programs", "reference"), 9
    )
    assert sum(path.stat().st_size for path in CORPUS.rglob("*.txt")) < 1e6
    sources = CORPUS.parent / "SOURCES.md"
    assert all(f"texts/{kind}/" in sources.read_text() for kind in set(kinds))
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (CORPUS.parent / "LICENSE-PSF").read_text()


@pytest.mark.slow
def test_the_network_that_it_begins_at_has_learnt_other_text():
    """Bytes that are all alike have 5.5 nats, and bytes by how often they come some 3.3."""
    plan = make_plan(settings.preset("language"))
    start = plan.task.init(np.asarray([0, 0], np.uint32))
    assert float(np.mean(plan.task.loss(start, plan.split.test))) < 2.3


@pytest.mark.parametrize("seed", range(4))
def test_some_sequences_are_some_of_each_document(seed):
    split = ddm.data.load("language", train_size=60, test_size=20, seed=seed)
    assert set(split.groups.ids.tolist()) == set(range(27))
    assert (len(split.groups.ids), len(split.shown_train), len(split.shown_test)) == (60, 60, 20)
    assert (np.diff(split.train_ids) > 0).all()


def test_documents_by_a_path_and_a_context(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"{name} word " * 20)
    split = ddm.data.load(str(tmp_path), context=16)
    assert split.groups.names == ("one.txt", "two.txt")
    fewer = ddm.data.load(str(tmp_path), context=16, train_size=8, test_size=2)
    assert len(fewer.train.x["tokens"]) == len(fewer.shown_train) == len(fewer.groups.ids) == 8
    shown = [text_of(fewer, {name: leaf[row] for name, leaf in fewer.train.x.items()})
             for row in range(8)]  # fmt: skip
    assert shown == fewer.shown_train
    with pytest.raises(ValueError, match=r"train_size=1; .* in 2 groups"):
        ddm.data.load(str(tmp_path), context=16, train_size=1)
    with pytest.raises(ValueError, match="name their context too"):
        ddm.data.load(str(tmp_path), tokenizer="tokenizer.json")
    for odd in (
        {"target": "y"},
        {"normalise": "standard"},
        {"label_noise": 0.1},
        {"order": "original"},
    ):
        with pytest.raises(ValueError, match="groups, context and tokenizer alone"):
            ddm.data.load(str(tmp_path), context=16, **odd)
    with pytest.raises(ValueError, match="by a path"):
        ddm.data.load([("a", "b")], context=16)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["model.kind=mlp"], "model.kind=mlp is not for documents"),
        (["data.context=128"], "a context of 64"),
        (["model.start=nowhere"], "has no config.json"),
        (["data.name=digits", "data.context=none"], "model.kind=gpt is for documents"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(assignments, message):
    config = settings.override(settings.preset("language"), assignments)
    with pytest.raises(ValueError, match=message):
        make_plan(config)


def test_a_folder_of_that_name_does_not_hide_the_corpus(tmp_path, monkeypatch):
    (tmp_path / "language").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ddm.data.load("language").groups.count == 27
    with pytest.raises(ValueError, match="has no"):
        ddm.data.load("./language", context=8)


def test_a_network_of_other_tokens_is_not_fed_bytes(tmp_path):
    other = models.GPT(300, context=64, width=8, depth=1, heads=2, rngs=nnx.Rngs(0))
    models.save_gpt2(other, tmp_path)
    begun = settings.override(settings.preset("language"), [f"model.start={tmp_path}"])
    with pytest.raises(ValueError, match="name its own tokenizer"):
        make_plan(begun)
    split = ddm.data.load("language", train_size=60, test_size=20)
    few = tasks.language(
        models.GPT(64, context=64, width=8, depth=1, heads=2, rngs=nnx.Rngs(0)), 64
    )
    with pytest.raises(ValueError, match=r"has token \d+, and the model knows 0..63"):
        ddm.study(few, split, progress=SILENT)
    with pytest.raises(ValueError, match=r"pass tasks.language\(model, 64\)"):
        ddm.study(other, split, progress=SILENT)


def test_adapters_alone_learn_where_the_settings_say_so():
    config = settings.override(settings.preset("language"), ["model.lora=2"])
    start = make_plan(config).task.init(np.asarray([0, 0], np.uint32))
    whole = make_plan(settings.preset("language")).task.init(np.asarray([0, 0], np.uint32))
    assert sum(map(np.size, _leaves(start))) < sum(map(np.size, _leaves(whole))) / 10


def test_an_objective_of_predictions_is_refused_before_any_work():
    for objective in ("prediction:0", "logit:0"):
        config = settings.override(
            settings.preset("language"), [*SMALL, f"online.objective={objective}"]
        )
        with pytest.raises(ValueError, match="one number each: use loss or output"):
            make_plan(config)
    with pytest.raises(ValueError, match="clusters numbers, and tokens are none"):
        make_plan(settings.override(config, ["online.objective=loss", "cluster.method=kmeans"]))


def _leaves(tree):
    return [tree] if not isinstance(tree, dict) else [x for v in tree.values() for x in _leaves(v)]


@pytest.mark.slow
def test_from_documents_to_a_report_and_to_what_is_said_without_one(tmp_path):
    corpus, workdir = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    for name in ("one", "two", "three"):
        (corpus / f"{name}.txt").write_text(f"{name} word " * 12)
    assigned = [part for each in SMALL for part in ("--set", each)]
    done = command("run", corpus, "--preset", "language", "--workdir", workdir, *assigned)
    assert done.exit_code == 0, done.output
    told = read_json(workdir / "metrics.json")["passages"]
    assert len(told) == passages.SHOWN
    for query in told:
        for row in query["rows"]:
            assert row["document"] in ("one.txt", "two.txt", "three.txt")
            assert (row["effect"] > 0) == (row["what"] == "raised by")
            assert row["text"]
    text = " ".join((workdir / "report.html").read_text().split())
    assert "Which documents did it" in text
    assert "its log-likelihood, of which more is better" in text
    assert "Blue frames: chosen and weighted items" in text
    gone = ("forget", "--workdir", workdir, "--groups", "one.txt", "--check", "--prompt", "one w")
    done = command(*gone)
    assert done.exit_code == 0, done.output
    for network in ("before:", "after forgetting:", "retrained:"):
        assert network in done.stdout
    run = open_finished(workdir)
    assert run.groups.names == ("one.txt", "three.txt", "two.txt")
    queries = questions.half_of_queries(run.plan.split)
    assert set(questions.quality(run, queries)) == {"badly learnt", "harmful"}
    asked = answers.points(run, [0], top=2)
    # Sequences have no target, and nothing is said of them.
    assert asked.table[0] == ["query", "helped most (training points)", "hurt most"]
    assert re.fullmatch(r"\d+ \(\w+\.txt\), \d+ \(\w+\.txt\)", asked.table[1][1])
    assert "Point i is sequence train_ids[i] + 1" in asked.sentences[-1]
    assert "log-likelihood of 1 queries" in asked.sentences[0]
    assert ".txt)" in answers.rank_quality(run, top=2).table[1][1]
    alone = removals.counterfactual(run, ["one.txt"])
    assert "single effects" not in " ".join([*alone.sentences, *alone.table[0]])
    assert "the mean log-likelihood of" in alone.sentences[0]
    done = command(
        "card", "--workdir", workdir, "--output", tmp_path / "card", "--include-examples"
    )
    assert done.exit_code == 0, done.output
    card = ddm.load_card(tmp_path / "card", run.plan.task)
    assert card.names == run.groups.names
    asked = card.queries([run.plan.split.shown_test[0], "one word"])
    said = make_what_if(run.plan.task, card)([0, 1, 1], asked)
    assert said.outputs.shape == (1, 2)
    np.testing.assert_array_equal(asked.x["tokens"][0], run.plan.split.test.x["tokens"][0])
    with pytest.raises(ValueError, match="the prompt is empty"):
        removals.forget(run, ["one.txt"], prompt="")
    page = view.make_view(run)
    assert page.overview["kind"] == "language"
    assert page.overview["queries"]["text"][0].strip()
    found = page.passages(0, 1)
    assert len(found) == 2
    assert all(each.strip() in (corpus / "one.txt").read_text() for each in found)
    went = page.go_on(np.asarray([0.0, 1.0, 1.0]), "one w")
    assert set(went) == {"before", "without"}
    with pytest.raises(ValueError, match="the prompt is empty"):
        page.go_on(np.ones(3), "")


def test_the_first_queries_shown_are_of_different_documents():
    scores = np.zeros((3, 5))
    scores[0, :3], scores[1, 3], scores[2, 4] = (9, 8, 7), 2, -1
    assert passages.largest(scores, 4).tolist() == [0, 3, 4, 1]


def test_the_base_can_be_read_and_says_bytes():
    assert models.load_gpt2(models.BASE).vocabulary == 256
