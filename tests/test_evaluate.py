"""The truth of a work directory and the comparison on it: what is trained, kept, and written."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import TINY, compile_once, finished, tiny_config  # noqa: F401

import ddm_jax
from ddm_jax import checkpoints, data, files, metrics
from ddm_jax.judge import filling, scoring, store
from ddm_jax.judge.candidates import CANDIDATES, Candidates
from ddm_jax.judge.scoring import LEAVE_ONE_OUT
from ddm_jax.run import evaluate, settings_file, stages
from ddm_jax.run import report as reporting
from ddm_jax.run import settings as config
from ddm_jax.run.answer_figures import comparison_figure
from ddm_jax.run.evaluate import ComparisonError, compare_estimators, fill_truth
from ddm_jax.run.plan import make_plan
from ddm_jax.run.workdir import SILENT, Progress
from ddm_jax.types import Estimator

TRUTH = ("truth.seeds=2", "truth.subsets=8", "truth.subset_seeds=2")
NETWORKS = 2 * 11 + 2 * 8
LDS = "LDS, keep 0.5"


class Filled(NamedTuple):
    """A finished run with a full truth store, read only."""

    workdir: Path
    summary: dict


@pytest.fixture(scope="module")
def filled(finished, tmp_path_factory) -> Filled:  # noqa: F811
    workdir = Path(shutil.copytree(finished, tmp_path_factory.mktemp("filled") / "run"))
    return Filled(workdir, fill_truth(tiny_config(*TRUTH), workdir, chunk=4))


@pytest.fixture
def copy(filled, tmp_path) -> Path:
    return Path(shutil.copytree(filled.workdir, tmp_path / "copy"))


@pytest.fixture
def no_training(monkeypatch):
    """What is trained is kept: a row that is written or a stage that is saved fails."""
    monkeypatch.setattr(store, "write_row", lambda *_: pytest.fail("a network was trained"))
    monkeypatch.setattr(checkpoints, "save", lambda *_: pytest.fail("a stage was computed"))


@pytest.fixture
def enter(monkeypatch):
    """Add an estimator without settings, which says what `score(query) -> [K, Q]` says."""

    def enter(name, score):
        estimator = Estimator(lambda *_: jnp.zeros(()), lambda state, query: score(query))
        monkeypatch.setitem(CANDIDATES, name, Candidates(lambda *_: estimator, {}, {}))

    return enter


def _constant_work(query):
    return np.random.default_rng(0).normal(size=(10, len(query.x)))


def _rows(workdir: Path) -> dict[str, tuple[bytes, int]]:
    """The files of the rows, and when they were written."""
    files = sorted((workdir / "truth" / "rows").iterdir())
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def _json(path: Path):
    """Read JSON as other languages do: NaN is no word of it."""
    told = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"holds {word}"))
    assert len(told.pop("checksum")) == 64
    return told


# The truth


def test_the_summary_counts_and_measures_the_truth(filled):
    summary = filled.summary
    assert summary["networks"] == NETWORKS
    assert summary["seconds_per_network"] > 0
    assert {"ddm_jax", "jax", "device"} <= set(summary["versions"])
    assert _json(filled.workdir / "truth" / "summary.json") == summary

    opened = store.inspect_store(filled.workdir / "truth")
    assert opened.masks.shape == (19, 10)
    np.testing.assert_array_equal(opened.masks.sum(1), [10, *[9] * 10, *[5] * 8])
    outputs = store.read(opened)
    assert outputs.shape == (2, 19, 40)
    parts = [outputs[:, 0], outputs[:, 1:11], outputs[:, 11:]]
    flat = np.concatenate([part.ravel() for part in parts])
    assert summary["truth"] == store.checksum(flat)

    effects = outputs[:, :1] - outputs[:, 1:11]
    assert list(summary["ceilings"]) == [LEAVE_ONE_OUT, LDS]
    for runs, row in zip((effects, outputs[:, 11:]), summary["ceilings"].values(), strict=True):
        ceiling = metrics.noise_ceiling(runs)
        assert 0 < ceiling.perfect < 1
        assert row["ceiling"] == ceiling.perfect
        assert row["ceiling_interval"] == list(ceiling.interval)
        assert row["reliability"] == ceiling.reliability
        assert row["one_retraining"] == ceiling.one_run
        assert row["runs"] == 2
        assert row["runs_for_ceiling_0.8"] == metrics.runs_needed(ceiling.reliability, 0.8)


def test_the_second_call_trains_nothing(filled, copy, no_training):
    before, told = _rows(copy), []
    assert len(before) == 2 * NETWORKS
    summary = fill_truth(tiny_config(*TRUTH), copy, Progress(told.append, SILENT.track))
    assert summary == filled.summary
    assert _rows(copy) == before
    assert told == ["clustering: done before", f"{NETWORKS} retrained networks: done before"]


@pytest.mark.slow
def test_a_fresh_place_has_the_same_truth(filled, tmp_path):
    """Whatever the chunk: seeds and masks alone say what a network is."""
    summary = fill_truth(tiny_config(*TRUTH), tmp_path / "fresh", chunk=20)
    assert summary["truth"] == filled.summary["truth"]
    assert summary["ceilings"] == filled.summary["ceilings"]
    # Groups by pixels need no target network.
    names = {path.name for path in (tmp_path / "fresh").iterdir()}
    assert names == {"config.json", "lock", "groups", "truth"}


def test_more_seeds_are_added_and_fewer_leave_them_alone(filled, copy, monkeypatch):
    before, told = _rows(copy), []
    progress = Progress(told.append, SILENT.track)
    more = fill_truth(tiny_config(*TRUTH, "truth.seeds=3"), copy, progress, chunk=4)
    assert f"retraining 11 of {NETWORKS + 11} networks" in told
    assert more["networks"] == NETWORKS + 11
    assert more["truth"] != filled.summary["truth"]
    assert more["ceilings"][LEAVE_ONE_OUT]["runs"] == 3
    assert more["ceilings"][LDS] == filled.summary["ceilings"][LDS]
    after = _rows(copy)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * (NETWORKS + 11)
    monkeypatch.setattr(store, "write_row", lambda *_: pytest.fail("a network was trained"))
    fewer = fill_truth(tiny_config(*TRUTH), copy)
    assert fewer["truth"] == filled.summary["truth"]
    assert fewer["ceilings"] == filled.summary["ceilings"]
    assert _rows(copy) == after


def test_the_truth_of_a_finished_run_leaves_the_run_alone(filled, finished):  # noqa: F811
    assert settings_file.load(finished / "config.json") == tiny_config()
    assert settings_file.load(filled.workdir / "config.json") == tiny_config(*TRUTH)
    for name in ("target", "groups", "synset", "attribution", "check/predicted"):
        assert checkpoints.metadata(filled.workdir / name) == checkpoints.metadata(finished / name)
    left = {path.name for path in finished.iterdir()}
    assert {path.name for path in filled.workdir.iterdir()} == left | {"lock", "truth"}


@pytest.mark.parametrize("chosen", [TRUTH, (), ("truth.seeds=3",)])
def test_a_run_goes_on_whatever_the_truth_was_made_with(copy, no_training, monkeypatch, chosen):
    monkeypatch.setattr(reporting, "write", lambda *_: "went through")
    rows = _rows(copy)
    assert stages.run(tiny_config(*chosen), copy) == "went through"
    assert _rows(copy) == rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.train_size=100"], r"data\.train_size 120 -> 100\)"),
        (["train.epochs=5", "truth.seeds=3"], r"settings \(train\.epochs 4 -> 5\)"),
        (["seed=1"], "seed 0 -> 1"),
    ],
)
@pytest.mark.parametrize("command", [fill_truth, evaluate.prepare])
def test_other_settings_of_the_run_are_refused_by_name(
    copy, no_training, command, changes, message
):
    before = (copy / "config.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        command(tiny_config(*TRUTH, *changes), copy)
    assert (copy / "config.json").read_bytes() == before


def test_another_truth_in_the_same_place_is_refused_by_name(copy, no_training):
    before = (copy / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r'truth\.objective "loss" -> "margin"'):
        fill_truth(tiny_config(*TRUTH, "truth.objective=margin"), copy)
    # Otherwise the same command without the change would be refused too.
    assert (copy / "config.json").read_bytes() == before


def test_preparing_trains_what_is_missing_and_no_more(filled, copy, no_training):
    ready = evaluate.prepare(tiny_config(*TRUTH), copy)
    assert ready.groups.ids.shape == (120,)
    assert ready.target.losses.shape == (12,)
    assert ready.truth.full.shape == (2, 40)
    assert ready.truth.single.shape == (2, 10, 40)
    assert ready.truth.subsets.shape == (2, 8, 40)
    assert ready.plan.config == tiny_config(*TRUTH)
    assert scoring.ceilings(ready.truth) == filled.summary["ceilings"]


def test_a_truth_too_small_to_split_is_refused_before_it_is_filled(copy, no_training):
    shutil.rmtree(copy / "truth")
    for place in (copy, copy / "fresh"):  # before the target is trained, too
        with pytest.raises(ValueError, match=r"truth\.subsets=5 cannot be split"):
            evaluate.prepare(tiny_config(*TRUTH, "truth.subsets=5"), place)
    assert not (copy / "truth").exists()
    assert not (copy / "fresh").exists()
    assert settings_file.load(copy / "config.json") == tiny_config(*TRUTH)


@pytest.mark.parametrize("command", [fill_truth, evaluate.prepare])
def test_a_wrong_chunk_is_refused_before_the_settings_are_kept(copy, no_training, command):
    before = (copy / "config.json").read_bytes()
    with pytest.raises(ValueError, match="chunk=0; it must be a whole number, at least 1"):
        command(tiny_config(*TRUTH, "truth.seeds=5"), copy, chunk=0)
    assert (copy / "config.json").read_bytes() == before


@pytest.mark.slow
def test_a_summary_without_an_interval_is_json_too(tmp_path):
    """Two groups: too few for an interval over groups."""
    chosen = tiny_config(
        "truth.seeds=2", "truth.subsets=0", "cluster.method=random", "cluster.num_groups=2"
    )
    summary = fill_truth(chosen, tmp_path / "run", chunk=6)
    assert np.isnan(summary["ceilings"][LEAVE_ONE_OUT]["ceiling_interval"]).all()
    kept = _json(tmp_path / "run" / "truth" / "summary.json")
    assert kept["ceilings"][LEAVE_ONE_OUT]["ceiling_interval"] == [None, None]


# A process that says which rows it writes, slowly enough for another one to come in between.
COUNTER = """
import sys, time
from ddm_jax.__main__ import main
from ddm_jax.judge import store
write = store.write_row
def slow(opened, row, outputs, seconds):
    time.sleep(0.05)
    write(opened, row, outputs, seconds)
    print("ROW", row.mask, row.seed, file=sys.stderr)
store.write_row = slow
sys.exit(main())
"""


@pytest.mark.slow
def test_two_processes_fill_one_fresh_place_together(tmp_path, compile_once):  # noqa: F811
    sets = [*TINY, "truth.seeds=2", "truth.subsets=0"]
    arguments = ["truth", "--workdir", str(tmp_path / "run")]
    command = [sys.executable, "-c", COUNTER, *arguments]
    command += [part for setting in sets for part in ("--set", setting)]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(compile_once),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    both = [
        subprocess.Popen(
            command,
            cwd=Path(ddm_jax.__file__).parents[1],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    written = []
    try:
        for process in both:
            said, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
            assert "22 networks of" in said
            written += [line for line in errors.splitlines() if line.startswith("ROW")]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert len(written) == len(set(written)) == 22
    status = filling.status(store.inspect_store(tmp_path / "run" / "truth"))
    assert status[:3] == (22, 22, 0)
    assert _json(tmp_path / "run" / "truth" / "summary.json")["networks"] == 22
    assert not [path for path in tmp_path.rglob("*") if ".new-" in path.name]


# The comparison


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        ([], [], "no estimators are named"),
        (["ddm", "nope"], [], "unknown estimator 'nope'"),
        (["ddm", "ddm"], [], "estimator 'ddm' is named twice"),
        (["greedy"], [], "greedy has 8 candidates; the budget is 6"),
        (["ddm"], ["truth.objective=accuracy"], r"truth\.objective=accuracy has no output"),
        (["ddm"], ["truth.objective=f1"], "unknown objective 'f1'"),
    ],
)
def test_a_wrong_comparison_is_refused_before_any_work(
    tmp_path, monkeypatch, no_training, names, changes, message
):
    greedy = Candidates(lambda *_: pytest.fail("made"), {"a": (1, 2)}, {"b": (1, 2, 3, 4)})
    monkeypatch.setitem(CANDIDATES, "greedy", greedy)
    told = []
    with pytest.raises(ValueError, match=message):
        compare_estimators(
            tiny_config(*changes), tmp_path / "run", names, Progress(told.append, SILENT.track)
        )
    assert told == []
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_estimators_that_there_are_end_to_end(filled, copy, monkeypatch):
    # Four candidates fewer, which would compile anew each.
    short = CANDIDATES["ddm"]._replace(online={"steps": (5,), "rewind": (0.0, 0.75)})
    monkeypatch.setitem(CANDIDATES, "ddm", short)
    monkeypatch.setattr(sys, "argv", ["/some/where/ddm", "compare", "--workdir", "w"])
    names = ["ddm", "grad_dot", "retraining"]
    before = _rows(copy)
    result = compare_estimators(tiny_config(*TRUTH), copy, names)
    assert _rows(copy) == before

    kept = _json(copy / "compare.json")
    assert kept == evaluate.read_comparison(copy)
    assert kept["command"] == "ddm compare --workdir w"
    assert kept["dataset"] == "digits"
    assert kept["settings"] == config.as_json(tiny_config(*TRUTH))
    assert kept["versions"] == result["versions"] == filled.summary["versions"]
    assert kept["seconds_per_retraining"] == filled.summary["seconds_per_network"]
    assert all(0.1 < row["peak_gib"] < 100 for row in kept["rows"] if "error" not in row)
    told = [(row["estimator"], row["score"]) for row in kept["rows"]]
    assert told == [(name, score) for name in names for score in (LEAVE_ONE_OUT, LDS)]
    for row in kept["rows"]:
        assert -1 <= row["value"] <= 1
        assert row["offline_seconds"] > 0
        assert row["online_seconds"] > 0
        assert row["queries"] == 30
        assert row["candidates"] == (2 if row["estimator"] == "ddm" else 1)
    # One group a class has no correlation within it: undefined, and null in the file.
    assert np.isnan(result["rows"][0]["own_class"])
    assert kept["rows"][0]["own_class"] is None
    assert -1 <= kept["rows"][0]["other_class"] <= 1
    # An estimator that retrains has noise of its own, and no more.
    retraining = {row["score"]: row["value"] for row in kept["rows"][4:]}
    assert 0.1 < retraining[LEAVE_ONE_OUT] < 1
    assert 0.3 < retraining[LDS] < 1

    head, lines = evaluate.table(result)
    assert evaluate.table(kept) == (head, lines)
    assert [line[:2] for line in lines] == [list(pair) for pair in told]
    assert {len(line) for line in lines} == {len(head)}
    assert evaluate.notes(kept) == evaluate.notes(result)
    text = (copy / "compare.md").read_text()
    marked = [line for line in text.splitlines() if line.startswith("|")]
    assert len(marked) == 2 + len(lines)
    assert {line.count("|") for line in marked} == {len(head) + 1}
    for note in evaluate.notes(result):
        assert f"\n\n{note}\n" in text
    assert (copy / "compare.png").read_bytes().startswith(b"\x89PNG")


def _fail(query):
    raise RuntimeError("out of memory\nallocating 3 GiB")


@pytest.mark.slow
def test_an_estimator_that_fails_does_not_stop_the_others(copy, no_training, enter):
    enter("broken", _fail)
    enter("diverging", lambda query: np.full((10, len(query.x)), np.nan))
    enter("silent", lambda query: (_ for _ in ()).throw(KeyError()))
    enter("sound", _constant_work)
    told = []
    progress = Progress(told.append, SILENT.track)
    names = ["broken", "diverging", "silent", "sound"]
    with pytest.raises(ComparisonError) as caught:
        compare_estimators(tiny_config(*TRUTH), copy, names, progress)
    message = str(caught.value)
    assert message.startswith("3 of 4 estimators failed: broken (RuntimeError: out of memory); ")
    assert "diverging (ValueError: its values for leave-one-out are not finite" in message
    assert "silent (KeyError: )" in message
    assert message.endswith(f"the scores of the others are in {copy / 'compare.md'}")
    assert "\n" not in message
    assert "  broken failed: RuntimeError: out of memory" in told

    kept = _json(copy / "compare.json")
    assert [row["estimator"] for row in kept["rows"]] == [*names[:3], "sound", "sound"]
    assert kept["rows"][0] == {"estimator": "broken", "error": "RuntimeError: out of memory"}
    assert [row["score"] for row in kept["rows"][3:]] == [LEAVE_ONE_OUT, LDS]
    head, lines = evaluate.table(kept)
    assert lines[0][:2] == ["broken", "FAILED"]
    assert evaluate.notes(kept)[0] == "broken, FAILED: RuntimeError: out of memory"
    assert {len(line) for line in lines} == {len(head)}
    assert "| broken | FAILED |" in (copy / "compare.md").read_text()
    assert "\nbroken, FAILED: RuntimeError: out of memory\n" in (copy / "compare.md").read_text()
    assert (copy / "compare.png").is_file()


def test_when_all_fail_there_is_a_table_and_no_figure(copy, no_training, enter):
    enter("broken", _fail)
    with pytest.raises(ComparisonError, match="1 of 1 estimators failed"):
        compare_estimators(tiny_config(*TRUTH), copy, ["broken"])
    assert len(_json(copy / "compare.json")["rows"]) == 1
    assert (copy / "compare.md").is_file()
    assert not (copy / "compare.png").exists()


@pytest.mark.slow
def test_an_interrupted_comparison_keeps_what_it_has(copy, no_training, enter):
    def interrupt(query):
        raise KeyboardInterrupt

    enter("sound", _constant_work)
    enter("slow", interrupt)
    enter("early", _constant_work)
    enter("later", _constant_work)
    compare_estimators(tiny_config(*TRUTH), copy, ["early", "later"])
    with pytest.raises(KeyboardInterrupt):
        compare_estimators(tiny_config(*TRUTH), copy, ["sound", "slow", "later"])
    told = [row["estimator"] for row in _json(copy / "compare.json")["rows"]]
    assert told == ["sound"] * 2 + ["early"] * 2 + ["later"] * 2


@pytest.mark.slow
def test_what_was_judged_before_is_not_judged_again(copy, no_training, enter):
    """An interrupted comparison goes on where it was, and others can be added to it."""
    asked = []

    def work(name):
        def score(query):
            if not isinstance(query.x, jax.core.Tracer):  # what it computes may be looked at
                asked.append(name)
            return _constant_work(query)

        return score

    def judged(*names):
        asked.clear()
        try:
            result = compare_estimators(tiny_config(*TRUTH), copy, names)
        except ComparisonError:
            result = evaluate.read_comparison(copy)
        assert _json(copy / "compare.json") == files.plain(result)
        assert (copy / "compare.md").read_text().count("| first |") == 2
        return sorted(set(asked)), list(dict.fromkeys(row["estimator"] for row in result["rows"]))

    enter("first", work("first"))
    enter("second", work("second"))
    enter("broken", _fail)
    assert judged("first") == (["first"], ["first"])
    before = _json(copy / "compare.json")["rows"]
    assert judged("first") == ([], ["first"])
    assert _json(copy / "compare.json")["rows"] == before
    assert judged("second") == (["second"], ["second", "first"])
    assert judged("broken", "first") == ([], ["broken", "first", "second"])
    assert judged("first", "second") == ([], ["first", "second"])  # a failure is not kept
    kept = _json(copy / "compare.json")
    for other in (
        {"settings": kept["settings"] | {"seed": 1}},
        {"versions": kept["versions"] | {"jax": "0.1"}},
        {"truth": "other"},
    ):
        files.write_json(copy / "compare.json", kept | other)
        assert judged("first") == (["first"], ["first"]), other
    # Another program is judged again, and what the others compute stands.
    rows = [row | {"program": "?"} if row["estimator"] == "first" else row for row in kept["rows"]]
    files.write_json(copy / "compare.json", kept | {"rows": rows})
    assert judged("second") == ([], ["second", "first"])
    assert judged("first", "second") == (["first"], ["first", "second"])
    moved = kept["settings"] | {"data": kept["settings"]["data"] | {"data_dir": "elsewhere"}}
    moved["check"] = kept["settings"]["check"] | {"seeds": 9}
    files.write_json(copy / "compare.json", kept | {"settings": moved})
    assert judged("first") == ([], ["first", "second"])


@pytest.mark.slow
def test_what_makes_a_comparison_stale_is_said(copy, no_training, enter):
    enter("sound", _constant_work)
    compare_estimators(tiny_config(*TRUTH), copy, ["sound"])
    kept = _json(copy / "compare.json")
    train = kept["settings"]["train"] | {"epochs": 3}
    changed = {"settings": kept["settings"] | {"train": train}, "truth": "other"}
    files.write_json(copy / "compare.json", kept | changed)
    told = []
    compare_estimators(tiny_config(*TRUTH), copy, ["sound"], Progress(told.append, SILENT.track))
    assert "judging anew, for train.epochs 3 -> 4; its input truth" in told


@pytest.mark.slow
def test_two_comparisons_at_once_keep_each_others_rows(copy, no_training, enter):
    """On 0.8 the later one wrote the rows that it had read before, and lost those of the other."""
    enter("inner", _constant_work)

    def outer(query):
        if not isinstance(query.x, jax.core.Tracer):
            compare_estimators(tiny_config(*TRUTH), copy, ["inner"])
        return _constant_work(query)

    enter("outer", outer)
    result = compare_estimators(tiny_config(*TRUTH), copy, ["outer"])
    rows = _json(copy / "compare.json")["rows"]
    assert rows == files.plain(result["rows"])
    assert list(dict.fromkeys(row["estimator"] for row in rows)) == ["outer", "inner"]


def test_the_data_are_loaded_once(copy, no_training, enter, monkeypatch):
    """0.8 loaded them to check the names, and again to work."""
    loaded, load = [], data.load
    monkeypatch.setattr(data, "load", lambda **given: loaded.append(1) or load(**given))
    enter("sound", _constant_work)
    compare_estimators(tiny_config(*TRUTH), copy, ["sound"])
    assert len(loaded) == 1


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", None])
def test_a_damaged_or_edited_comparison_is_told_and_left_alone(copy, no_training, enter, text):
    """0.8 believed an edited score, and judged no more."""
    path = copy / "compare.json"
    if text is None:
        enter("sound", _constant_work)
        compare_estimators(tiny_config(*TRUTH), copy, ["sound"])
        text = path.read_text().replace('"candidates": 1', '"candidates": 2', 1)
    enter("sound", lambda query: pytest.fail("judged"))
    path.write_text(text)
    with pytest.raises(ValueError, match=r"compare\.json is damaged or .* delete it to judge"):
        compare_estimators(tiny_config(*TRUTH), copy, ["sound"])
    assert path.read_text() == text


@pytest.mark.slow
def test_what_is_judged_is_the_truth_of_the_store(copy, no_training, enter):
    """An estimator that reads the store scores 1: rows, queries and signs are the store's."""
    outputs = store.read(store.inspect_store(copy / "truth")).mean(0)
    split = make_plan(tiny_config()).split
    place = {x.tobytes(): query for query, x in enumerate(split.test.x)}

    def score(query):
        effects = outputs[0] - outputs[1:11]
        return effects[:, [place[np.asarray(x).tobytes()] for x in query.x]]

    enter("knowing", score)
    single, _ = compare_estimators(tiny_config(*TRUTH), copy, ["knowing"])["rows"]
    np.testing.assert_allclose(single["value"], 1, atol=1e-12)


# Tables and figures


def _row(estimator: str, score: str, value: float = 0.5, **changes) -> dict:
    return {
        "estimator": estimator,
        "score": score,
        "value": value,
        "over_queries": [0.4, 0.6],
        "over_rows": [-0.25, 1.0],
        "undefined": 0,
        "ceiling": 0.9,
        "share_of_ceiling": 0.5554,
        "counterfactuals": 30,
        "offline_seconds": 12.4,
        "online_seconds": 0.0123,
        "settings": {},
        "candidates": 1,
        "tuning_values": [],
    } | changes


def test_the_table_says_what_there_is():
    nan = float("nan")
    undefined = {"over_queries": [nan, nan], "over_rows": [None, None], "undefined": 30}
    classes = {"own_class": 0.9, "own_class_ceiling": 0.99}
    classes |= {"other_class": None, "other_class_ceiling": 0.8}
    rows = [
        _row("a", LDS, settings={"steps": 50, "rewind": 0.0}, candidates=6),
        _row("b", LDS, nan, share_of_ceiling=nan, **undefined),
        _row("c", LEAVE_ONE_OUT, ceiling=None, share_of_ceiling=None, **classes),
        {"estimator": "d", "error": "ValueError: no"},
    ]
    _, lines = evaluate.table({"rows": rows})
    assert lines == [
        ["a", LDS, "0.500", ".400–.600", "-.250–1.000", "0.900", "56%", "12 s", "0.012 s"],
        ["b", LDS, "undefined", "-", "-", "0.900", "-", "12 s", "0.012 s"],
        ["c", LEAVE_ONE_OUT, *lines[0][2:5], "undefined", "-", "12 s", "0.012 s"],
        ["d", "FAILED", *[""] * 7],
    ]
    assert evaluate.notes({"rows": rows}) == [
        f"a, {LDS}: steps 50, rewind 0.0 (best of 6 on the tuning part)",
        f"b, {LDS}: 30 constant queries left out",
        f"c, {LEAVE_ONE_OUT}: groups of the query's class 0.900 (ceiling 0.990); "
        "of other classes undefined (ceiling 0.800)",
        "d, FAILED: ValueError: no",
    ]


def _markers(axes, hollow: bool) -> list:
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    return [dot for dot in dots if (dot.get_markerfacecolor() == "white") == hollow]


@pytest.mark.parametrize("scores", [[LDS], [LEAVE_ONE_OUT, "LDS, keep 0.25", LDS]])
def test_the_figure_has_a_panel_a_score_and_markers_an_estimator(scores):
    names = ["ddm", "grad_dot", "retraining"]
    rows = [
        _row(name, score, 0.2 + 0.1 * index) for index, name in enumerate(names) for score in scores
    ]
    figure = comparison_figure({"rows": [*rows, {"estimator": "x", "error": "no"}]})
    assert len(figure.axes) == len(scores)
    for axes, score in zip(figure.axes, scores, strict=True):
        assert axes.get_title().startswith(f"{score}: 30 removals")
        assert axes.get_xscale() == "log"
        for hollow, seconds in ((True, 0.0123), (False, 12.4123)):
            dots = _markers(axes, hollow)
            assert len(dots) == 3
            np.testing.assert_allclose([dot.get_xdata()[0] for dot in dots], seconds)
            np.testing.assert_allclose([dot.get_ydata()[0] for dot in dots], [0.2, 0.3, 0.4])
            assert len({dot.get_color() for dot in dots}) == 3
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(shown) == 4
    assert set(shown) == {*names, "perfect predictor"}
    figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize(
    "changes",
    [
        {"over_rows": [float("nan"), float("nan")]},
        {"value": float("nan"), "over_rows": [float("nan"), float("nan")]},
        {"ceiling": float("nan")},
        {"value": None, "over_rows": [None, None], "ceiling": None},
        {"value": -0.9, "over_rows": [-0.95, -0.8]},
    ],
)
def test_the_figure_does_without_what_is_undefined(changes):
    figure = comparison_figure({"rows": [_row("a", LDS, **changes), _row("b", LDS)]})
    (axes,) = figure.axes
    assert len(_markers(axes, hollow=True)) == len(_markers(axes, hollow=False)) == 2
    low, high = axes.get_ylim()
    value = changes.get("value", 0)
    assert value is None or np.isnan(value) or low <= min(0, value, 0.5) < high
    figure.savefig(io.BytesIO(), format="png")
