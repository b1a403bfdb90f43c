"""The pipeline: what a run leaves, what it does not repeat, and how it goes on after a stop."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ddm
from tiny_run import CHUNK, finished, read_stages, tiny_config  # noqa: F401

from ddm_jax import checkpoints, distill, files, metrics
from ddm_jax.attribution import Attribution
from ddm_jax.cluster import as_groups
from ddm_jax.compute import memory
from ddm_jax.estimators.ddm import make_ddm
from ddm_jax.judge import filling, store
from ddm_jax.judge.truth import Truth, read_truth
from ddm_jax.metrics.intervals import LEVEL
from ddm_jax.run import removals, report, settings_file, stages, workdir, worth
from ddm_jax.run import settings as config
from ddm_jax.run.check import Check, agreement, intervals_of
from ddm_jax.run.finished import open_finished
from ddm_jax.run.jobs import Results
from ddm_jax.run.plan import make_plan
from ddm_jax.run.stages import check_stage_change
from ddm_jax.run.workdir import SILENT, Made, Progress

TRAINING = "training the target network"
DISTILLING = "distilling the synset"
CHECKING = "retraining 10 of 10 networks"
KEPT = {
    "target": "target",
    "groups": "groups",
    "synset": "synset",
    "tuning": "tuning/chosen",
    "attribution": "attribution",
    "check": "check/predicted",
}

# Left open, but for two settings; four halves of the groups, twice each.
TUNED = (
    "tune.subsets=4",
    "tune.seeds=2",
    "online.rewind=0",
    "online.steps=7",
    "online.batch=none",
    "online.momentum=none",
)


class Recorder:
    """A `Progress` that keeps what is said, and may raise at a position of one stage's loop."""

    def __init__(self, what: str = "", position: int = 0, error=KeyboardInterrupt):
        self.said: list[str] = []
        self.what, self.position, self.error = what, position, error

    @property
    def progress(self) -> Progress:
        def track(what: str, total: int):
            def show(done: int, note: str) -> None:
                if what == self.what and done >= self.position:
                    raise self.error

            return show

        return Progress(self.said.append, track)


@pytest.fixture(autouse=True)
def chunk(monkeypatch):
    monkeypatch.setattr(distill, "STEPS_AT_ONCE", CHUNK)


@pytest.fixture
def without_report(monkeypatch):
    """Leave the figures out: they take most of the seconds of a run."""
    monkeypatch.setattr(report, "write", lambda *_: {})


@pytest.fixture
def without_pictures(monkeypatch):
    """Write the report, but draw nothing."""
    monkeypatch.setattr(report, "png", lambda figure: b"")


@pytest.fixture
def copy(finished, tmp_path) -> Path:  # noqa: F811
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def _to(name: str, chosen: config.Config, folder: Path, progress: Progress = SILENT) -> Results:
    """Run up to a stage, without a report, and without a check, which compiles the retraining."""
    folder.mkdir(exist_ok=True)
    return stages.bring(make_plan(chosen), folder, (name,), progress)


def _assert_same_tree(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        left, right = jnp.asarray(left), jnp.asarray(right)
        assert left.shape == right.shape
        if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(left, right)


def _assert_same_results(a: Results, b: Results) -> None:
    for name in ("target", "synset"):
        _assert_same_tree(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.groups.ids, b.groups.ids)
    np.testing.assert_array_equal(a.attribution.scores, b.attribution.scores)
    # How long a network took is no result.
    one, two = (each.check._replace(truth=each.check.truth._replace(seconds=0)) for each in (a, b))
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(left, right)


def _outputs(plan, found: Results):
    """What the method says without some groups, by the updates of the run."""
    return make_ddm(plan.task, None, found.tuning.update).outputs


def _written(folder: Path) -> dict[str, int]:
    return {
        name: (folder / place / checkpoints.MANIFEST).stat().st_mtime_ns
        for name, place in KEPT.items()
    }


# What a run leaves


def test_a_run_leaves_its_files(finished):  # noqa: F811
    names = {p.name for p in finished.iterdir()} - {"lock"}
    left = {"config.json", "attribution.npz", "metrics.json", "figures", "report.html"}
    assert names == {*KEPT, *left}
    assert {p.stem for p in (finished / "figures").iterdir()} == {
        "agreement",
        "matrix",
        "mistakes",
        "synset",
        "matching",
        "groups",
        "training",
    }
    assert settings_file.load(finished / "config.json") == tiny_config()
    assert not list(finished.rglob("*.new*"))


def test_the_stages_have_the_shapes_of_the_settings(finished):  # noqa: F811
    found = read_stages(finished).results
    assert found.target.losses.shape == (12,)
    assert found.target.rows.shape == (12, 40)
    np.testing.assert_array_equal(found.target.steps, [3, 6, 9, 12])
    assert found.groups.ids.shape == (120,)
    assert found.groups.count == 10
    assert found.synset.synset.items.x.shape == (10, 8, 8, 1)
    np.testing.assert_array_equal(found.synset.synset.group, np.arange(10))
    assert found.synset.info.losses.shape == (60,)
    assert np.count_nonzero(found.synset.info.losses) == 60
    assert found.attribution.scores.shape == (10, 40)
    check = found.check
    assert check.truth.effects().shape == (2, 2, 40)
    assert check.truth.subsets.shape == (2, 2, 40)
    np.testing.assert_array_equal(check.truth.masks.sum(1), [5, 5])
    assert check.predicted.shape == (3, 40)
    assert check.grad_dot.shape == check.scores.shape == (10, 40)
    for leaf in jax.tree.leaves((found.target.params, found.synset, check)):
        assert np.isfinite(leaf).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        (("train.epochs=5", "train.checkpoint_every=2", "train.momentum=0.5"), [9, 15]),
        # 150 points in batches of 64, the last one smaller: an epoch is 3 steps, and not 2.
        (("data.train_size=150", "train.batch_size=64", "train.last_batch=keep"), [3, 6, 9, 12]),
        (("train.optimizer=adamw", "train.learning_rate=0.01", "train.clip=2"), [3, 6, 9, 12]),
    ],
)
def test_training_in_pieces_is_training_at_once(tmp_path, changes, steps):
    """0.8 kept other checkpoints than the trainer where last_batch is "keep"."""
    chosen = tiny_config(*changes)
    plan = make_plan(chosen)
    target = _to("target", chosen, tmp_path).target
    np.testing.assert_array_equal(target.steps[-len(steps) :], steps)
    weights = jnp.ones(len(plan.split.train.x))
    whole = jax.jit(plan.trainer.train)(target.key, plan.split.train, weights)
    assert jax.tree.structure(target) == jax.tree.structure(whole)
    np.testing.assert_array_equal(target.rows, whole.rows)
    for left, right in zip(
        jax.tree.leaves(target._replace(key=0)), jax.tree.leaves(whole._replace(key=0)), strict=True
    ):
        assert np.shape(left) == np.shape(right)
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    last = jax.tree.map(lambda leaf: leaf[-1], target.checkpoints)
    _assert_same_tree(last, target.params)


@pytest.mark.slow
def test_the_attribution_is_the_method_on_the_synset(finished):  # noqa: F811
    attribution = Attribution.load(finished / "attribution.npz")
    plan, found = read_stages(finished)
    masks = 1 - np.eye(10, dtype=np.float32)[[2, 7]]
    every = np.ones((1, 10), np.float32)
    outputs = _outputs(plan, found)(found.synset, np.concatenate([every, masks]), plan.split.test)
    away = found.groups.shares()[[2, 7]]
    said = metrics.expected(intervals_of(found.check, found.groups), outputs[0] - outputs[1:], away)
    np.testing.assert_allclose(attribution.scores[[2, 7]], said, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(attribution.groups.ids, found.groups.ids)
    np.testing.assert_array_equal(attribution.query_ids, plan.split.test_ids)
    assert attribution.metadata["sizes"] == found.groups.sizes().tolist()
    assert attribution.metadata["objective"] == "margin"
    assert attribution.metadata["seconds"].keys() == {*KEPT}  # the check's, for its error bars
    assert set(attribution.metadata["versions"]) >= {"ddm_jax", "jax", "device"}


@pytest.mark.slow
def test_the_check_is_a_truth_of_what_the_run_explains(finished):  # noqa: F811
    plan, found = read_stages(finished)
    check = found.check
    intervals = intervals_of(check, found.groups)
    said = metrics.expected(intervals, check.scores, found.groups.shares())
    np.testing.assert_allclose(said, found.attribution.scores, rtol=1e-5)
    outputs = _outputs(plan, found)(found.synset, check.truth.masks, plan.split.test)
    np.testing.assert_allclose(check.predicted[1:], outputs, rtol=1e-4, atol=1e-5)
    opened = store.inspect_store(finished / "check")
    assert opened.identity["truth.objective"] == "margin"
    assert filling.status(opened)[:2] == (10, 10)


def test_every_score_has_an_error_bar(finished):  # noqa: F811
    attribution = Attribution.load(finished / "attribution.npz")
    assert attribution.half_widths.shape == attribution.scores.shape == (10, 40)
    assert (attribution.half_widths > 0).all()
    check = read_stages(finished).results.check
    intervals, shares = intervals_of(check, attribution.groups), attribution.groups.shares()
    wide = metrics.half_widths(intervals, check.scores, shares, metrics.reach(check.scores))
    np.testing.assert_allclose(attribution.half_widths, wide, rtol=1e-5)
    said = metrics.expected(intervals, check.scores, shares)
    np.testing.assert_allclose(attribution.scores, said, rtol=1e-5)
    assert (attribution.scores != check.scores).any()
    told = attribution.metadata["times what the updates say"]
    assert list(told.values()) == pytest.approx(intervals.times, rel=0.01)
    # Most of what was retrained is inside: the widths were learnt from it.
    effects, groups = check.truth.effects(), check.truth.groups
    away = np.abs(effects - attribution.scores[groups])
    assert (away <= attribution.half_widths[groups]).mean() == pytest.approx(LEVEL, abs=0.05)


def test_nothing_is_chosen_where_the_settings_say_so(finished):  # noqa: F811
    found = read_stages(finished).results.tuning
    assert vars(found.update).items() <= vars(tiny_config().online).items()
    assert (found.update.steps, found.update.batch, found.update.rewind) == (5, 50, 0.75)
    assert found.tried == found.costs == found.rivals == ()
    told = json.loads((finished / "metrics.json").read_text())["updates"]
    assert told["costs"] == []
    assert told["sentences"][0].startswith("Updates, as the settings say: sgd, 5 steps of 10")
    assert {p.name for p in (finished / "tuning").iterdir()} == {"chosen"}


# A run that chooses its updates


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A finished run that chose what its settings left open; read only."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "STEPS_AT_ONCE", CHUNK)
        patch.setattr(report, "png", lambda figure: b"")
        recorder = Recorder()
        stages.run(tiny_config(*TUNED), folder, recorder.progress)
    (folder.parent / "said").write_text("\n".join(recorder.said))
    return folder


@pytest.mark.slow
def test_a_run_chooses_its_updates_and_says_what_it_costs(tuned):
    found = read_stages(tuned).results.tuning
    every = {(each.update, each.pool) for each in found.tried}
    assert len(found.tried) == len(every) > 8
    best = max(each.agreement for each in found.tried)
    # Its own steps are fixed: told at the one cost that they have.
    assert [each.update for each in found.costs] == [found.update]
    # Deflated and corrected steps must each be better by the margin.
    assert best - 0.021 <= found.costs[0].agreement <= best
    assert [rival.epochs for rival in found.rivals] == [1, 2]
    told = json.loads((tuned / "metrics.json").read_text())["updates"]
    assert told["chosen"] == vars(found.update)
    assert [row["what"] for row in told["costs"]] == [
        f"{worth.POOLS[found.pool]}, the chosen recipe",
        f"{worth.POOLS[found.other.pool]}, the best recipe of theirs",
        "retraining cut to 1 epoch",
        "retraining cut to 2 epochs",
        "one retraining",
    ]
    for row in told["costs"]:
        assert 0 < row["share"] <= 1
        assert -1 <= row["agreement"] <= 1
        assert row["seconds"] is None or row["seconds"] > 0
    assert told["pays_after"] is None or told["pays_after"] > 0
    text = " ".join(told["sentences"])
    assert f"Updates, chosen of {len(found.tried)} recipes by retrained halves: " in text
    assert ("pay after" in text) == (told["pays_after"] is not None)
    assert "Retrain instead" in text or told["pays_after"] is not None
    page = (tuned / "report.html").read_text()
    assert all(f"<td>{row['what']}</td>" in page for row in told["costs"])
    assert "retraining 8 of 8 networks" in (tuned.parent / "said").read_text()


@pytest.mark.slow
def test_what_the_settings_fix_is_not_chosen(tuned):
    found = read_stages(tuned).results.tuning
    for each in (found.update, *(tried.update for tried in found.tried)):
        assert (each.rewind, each.steps) == (0.0, 7)
    open_before = ("batch", "optimizer", "momentum", "schedule", "rate_factor")
    assert all(getattr(tiny_config(*TUNED).online, name) is None for name in open_before)
    assert all(getattr(found.update, name) is not None for name in open_before)


@pytest.mark.slow
def test_the_tuning_and_the_check_share_no_subset_and_no_seed(tuned):
    plan, found = read_stages(tuned)
    assert len({plan.tune.seed, plan.check.seed, plan.truth.seed}) == 3
    chosen = read_truth(plan.tune, store.inspect_store(tuned / "tuning"))
    assert chosen.subsets.shape == (2, 4, 40)
    np.testing.assert_array_equal(chosen.masks.sum(1), 5)
    assert not np.array_equal(chosen.masks[:2], found.check.truth.masks)


@pytest.mark.slow
def test_a_run_that_was_tuned_is_not_tuned_again(tuned, tmp_path, without_pictures):
    copy, recorder = Path(shutil.copytree(tuned, tmp_path / "copy")), Recorder()
    old = json.loads((copy / "metrics.json").read_text())
    metrics = stages.run(tiny_config(*TUNED), copy, recorder.progress)
    assert "choosing the updates: done before" in recorder.said
    assert sum("done before" in text for text in recorder.said) == len(KEPT)
    assert files.plain(metrics["updates"]) == old["updates"]
    before, after = (Attribution.load(each / "attribution.npz") for each in (tuned, copy))
    np.testing.assert_array_equal(after.half_widths, before.half_widths)


@pytest.mark.slow
def test_a_run_killed_after_its_tuning_ends_with_the_same_bits(tuned, tmp_path, without_report):
    copy = Path(shutil.copytree(tuned, tmp_path / "copy"))
    for name in ("tuning/chosen", "attribution", "check/predicted"):
        shutil.rmtree(copy / name)

    class Killed(BaseException):
        pass

    def say(text: str) -> None:
        if text.startswith("leaving out"):
            raise Killed

    with pytest.raises(Killed):
        _to("attribution", tiny_config(*TUNED), copy, Progress(say, SILENT.track))
    assert (copy / KEPT["tuning"] / checkpoints.MANIFEST).is_file()
    assert not (copy / "attribution").exists()
    recorder = Recorder()
    again = _to("attribution", tiny_config(*TUNED), copy, recorder.progress)
    assert "choosing the updates: done before" in recorder.said
    assert not [text for text in recorder.said if text.startswith("retraining")]
    whole = read_stages(tuned).results
    assert again.tuning.update == whole.tuning.update
    # As the updates say: at retraining's size they are with a check alone.
    np.testing.assert_array_equal(again.attribution.scores, whole.check.scores)


@pytest.mark.slow
def test_a_counterfactual_of_a_tuned_run_shows_its_error_bars(tuned, tmp_path):
    copy = Path(shutil.copytree(tuned, tmp_path / "copy"))
    result = ddm("counterfactual", "--workdir", copy, "--without", "1,2")
    assert result.exit_code == 0, result.output
    told = json.loads((copy / "answers" / "counterfactual.json").read_text())
    assert told["table"][0][3] == f"{LEVEL:.0%} of retrainings"
    assert "of retrainings" in result.stdout
    with np.load(copy / "answers" / "counterfactual.npz") as arrays:
        outputs, wide = arrays["outputs"], arrays["half_width"]
    assert wide.shape == (40,)
    assert (wide > 0).all()
    for row in told["table"][1:]:
        low, high = map(float, row[3].split(" to "))
        middle = outputs[1, int(row[0])]
        assert low < middle < high
        assert high - low == pytest.approx(2 * wide[int(row[0])], abs=2e-3)


@pytest.mark.slow
def test_open_steps_are_told_at_several_costs(tuned, tmp_path, without_pictures, monkeypatch):
    monkeypatch.setattr(stages.recipes, "LEAST_TOLD", 0)  # of so small a run none would be told
    copy = Path(shutil.copytree(tuned, tmp_path / "copy"))
    recorder = Recorder()
    stages.run_stage("tuning", copy, ["online.steps=none"], recorder.progress)
    assert not [text for text in recorder.said if text.startswith("retraining 8")]
    metrics = stages.run(tiny_config(*TUNED, "online.steps=none"), copy)
    found = read_stages(copy).results.tuning
    shares = [each.share for each in found.costs]
    assert len(shares) == 4
    assert shares == sorted(shares)
    assert found.update.rewind == 0.0
    assert found.update in [each.update for each in found.costs]  # at less, where that is better
    rows = [row["what"] for row in metrics["updates"]["costs"]]
    assert rows.count(f"{worth.POOLS[found.pool]}, the chosen recipe") == 4


@pytest.mark.slow
def test_a_check_by_itself_leaves_the_error_bars_where_they_are(tuned, tmp_path):
    copy = Path(shutil.copytree(tuned, tmp_path / "copy"))
    before = Attribution.load(copy / "attribution.npz").half_widths
    stages.run_stage("check", copy)
    np.testing.assert_array_equal(Attribution.load(copy / "attribution.npz").half_widths, before)


@pytest.mark.slow
def test_the_same_recipe_at_another_cost_is_another_answer(
    tuned, tmp_path, without_pictures, monkeypatch
):
    allowed = lambda agreement, costs, share: list(costs).index(share)  # noqa: E731
    monkeypatch.setattr(stages.tuning, "best_cost", allowed)  # however good fewer steps are
    copy = Path(shutil.copytree(tuned, tmp_path / "copy"))
    one = ["online.optimizer=sgd", "online.schedule=constant", "online.momentum=0.9"]
    one += ["online.rate_factor=0.5", "online.steps=none"]
    one += ["tune.pools=synset"]  # leaves a single recipe
    stages.run_stage("tuning", copy, one)

    def attribution(compute):
        plan = make_plan(settings_file.load(copy / "config.json"))
        return stages.bring(plan, copy, ("attribution",), compute=compute)

    before = attribution(compute=True)
    stages.run_stage("tuning", copy, ["tune.share=0.1"])
    with pytest.raises(stages.NotDoneError, match="stage 'attribution' is not done"):
        attribution(compute=False)
    after = attribution(compute=True)
    assert len(after.tuning.tried) == 1
    assert after.tuning.update.batch < before.tuning.update.batch


def test_too_few_tuning_subsets_are_refused_in_one_line(tmp_path):
    result = ddm("run", "--workdir", tmp_path / "run", "--set", "tune.subsets=2")
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "tune.subsets=2; it must be at least 4" in result.output
    assert not (tmp_path / "run").exists()


# What is not repeated


@pytest.mark.slow
def test_a_second_run_computes_nothing_again(copy, monkeypatch, without_pictures):
    before, scores = _written(copy), Attribution.load(copy / "attribution.npz").scores
    old = json.loads((copy / "metrics.json").read_text())
    monkeypatch.setattr(checkpoints, "save", lambda *_: pytest.fail("a stage was computed again"))
    monkeypatch.setattr(store, "write_row", lambda *_: pytest.fail("a network was trained"))
    recorder = Recorder()
    metrics = stages.run(tiny_config(), copy, recorder.progress)
    assert _written(copy) == before
    assert sum("done before" in text for text in recorder.said) == len(KEPT)
    assert json.loads((copy / "metrics.json").read_text()) == old
    assert metrics["agreement"] == old["agreement"]
    np.testing.assert_array_equal(Attribution.load(copy / "attribution.npz").scores, scores)


def test_the_data_are_hashed_once_a_run(copy, monkeypatch, without_report):
    """0.8 hashed them at every stage."""
    seen, digest = [], files.digest
    monkeypatch.setattr(files, "digest", lambda *a: seen.append([x.shape for x in a]) or digest(*a))
    stages.run(tiny_config(), copy)
    assert sum((120, 8, 8, 1) in shapes for shapes in seen) == 1


def test_gradients_that_cannot_be_held_are_refused_before_any_work(tmp_path, copy, monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 1000)
    with pytest.raises(ValueError, match="gradients of 10 groups at 2 checkpoints takes"):
        stages.run(tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    before = _written(copy)
    with pytest.raises(ValueError, match="use distance='squared'"):
        stages.run_stage("synset", copy)
    assert _written(copy) == before
    stages.run_stage("groups", copy)  # distils nothing


def test_other_settings_in_the_same_place_are_refused_by_name(copy):
    before = _written(copy)
    with pytest.raises(ValueError, match=r"distill\.items 1 -> 2; online\.steps 5 -> 6\)"):
        stages.run(tiny_config("distill.items=2", "online.steps=6"), copy)
    assert settings_file.load(copy / "config.json") == tiny_config()
    assert _written(copy) == before


@pytest.mark.parametrize("again", [lambda w: stages.run_stage("target", w), None])
def test_an_edited_config_is_a_change_that_is_said(copy, again):
    """On 0.8 a flipped digit retrained everything over the old result."""
    path, before = copy / "config.json", _written(copy)
    path.write_text(path.read_text().replace('"epochs": 4', '"epochs": 5', 1))
    with pytest.raises(ValueError, match=r"was edited since .* \(train\.epochs 4 -> 5\)") as caught:
        again(copy) if again else stages.run(tiny_config("train.epochs=5"), copy)
    assert "\n" not in str(caught.value)
    assert _written(copy) == before


def test_places_that_hold_something_else_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="folder is not empty and holds no run"):
        stages.run(tiny_config(), tmp_path / "folder")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file is a file"):
        stages.run(tiny_config(), tmp_path / "file")
    with pytest.raises(ValueError, match="backslash"):
        stages.run(tiny_config(), tmp_path / "a\\b")
    with pytest.raises(ValueError, match="holds no run"):
        stages.run_stage("target", tmp_path / "none")
    assert {p.name for p in tmp_path.rglob("*")} == {"folder", "mine.txt", "file"}


@pytest.mark.parametrize("stage", KEPT)
def test_a_damaged_stage_is_named_and_mended_by_deleting_it(copy, stage, without_report):
    place = copy / KEPT[stage]
    found = [p for p in place.rglob("*") if p.is_file() and p.name != checkpoints.MANIFEST]
    file = max(found, key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{KEPT[stage]} is damaged.*delete it") as caught:
        stages.run(tiny_config(), copy)
    assert "\n" not in str(caught.value)
    if stage == "groups":
        shutil.rmtree(copy / stage)
        stages.run(tiny_config(), copy)


def test_one_process_at_a_time_works_on_the_stages(copy, without_report):
    """0.8 let two runs trample on each other's files."""
    for again in (
        lambda progress: stages.run(tiny_config(), copy, progress),
        lambda progress: stages.run_stage("groups", copy, (), progress),
    ):
        recorder, waits = Recorder(), threading.Event()

        def say(text: str, recorder=recorder, waits=waits) -> None:
            recorder.said.append(text)
            waits.set()

        with workdir.alone(copy):
            other = threading.Thread(target=again, args=(Progress(say, SILENT.track),))
            other.start()
            assert waits.wait(60)
            assert recorder.said == [f"another process works in {copy}: waiting for it"]
        other.join(60)
        assert not other.is_alive()
        assert len(recorder.said) > 1


# Stopped and resumed


@pytest.mark.slow
def test_interrupted_runs_end_with_the_same_bits(tmp_path, finished, without_report):  # noqa: F811
    """Stopped in training, in distillation (twice) and in the check."""
    folder = tmp_path / "run"
    for what, position, stage in (
        (TRAINING, 6, "target"),
        (DISTILLING, 20, "synset"),
        (DISTILLING, 40, "synset"),
    ):
        with pytest.raises(KeyboardInterrupt):
            stages.run(tiny_config(), folder, Recorder(what, position).progress)
        assert checkpoints.metadata(folder / f"{stage}.partial")["position"] == position
        assert not (folder / stage).exists()
    with pytest.raises(KeyboardInterrupt):
        stages.run(tiny_config(), folder, Recorder(CHECKING, 3).progress)
    done = filling.status(store.inspect_store(folder / "check")).done
    assert 3 <= done < 10
    recorder = Recorder()
    stages.run(tiny_config(), folder, recorder.progress)
    assert f"retraining {10 - done} of 10 networks" in recorder.said
    assert not list(folder.glob("*.partial"))
    _assert_same_results(read_stages(folder).results, read_stages(finished).results)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_what_was_kept(tmp_path, finished, monkeypatch):  # noqa: F811
    """Killed without a chance to save, two positions after the last partial result."""
    monkeypatch.setattr("ddm_jax.run.workdir.SAVE_SECONDS", 0.0)

    class Killed(BaseException):
        pass

    with pytest.raises(Killed):
        _to("target", tiny_config(), tmp_path, Recorder(TRAINING, 9, Killed).progress)
    assert checkpoints.metadata(tmp_path / "target.partial")["position"] == 6
    recorder = Recorder()
    found = _to("target", tiny_config(), tmp_path, recorder.progress)
    assert "  picking up at 6 of 12" in recorder.said
    _assert_same_tree(found.target, read_stages(finished).results.target)


@pytest.mark.slow
def test_a_run_by_adamw_goes_on_with_the_same_bits_and_is_asked(tmp_path, without_pictures):
    chosen = tiny_config("train.optimizer=adamw", "train.learning_rate=0.01", "train.clip=2")
    stages.run(chosen, tmp_path / "whole")
    for what, position in ((TRAINING, 6), (DISTILLING, CHUNK)):
        with pytest.raises(KeyboardInterrupt):
            stages.run(chosen, tmp_path / "killed", Recorder(what, position).progress)
    recorder = Recorder()
    stages.run(chosen, tmp_path / "killed", recorder.progress)
    assert "  picking up at 20 of 60" in recorder.said
    whole, killed = (read_stages(tmp_path / name).results for name in ("whole", "killed"))
    assert whole.target.optimizer.name == "adamw"
    assert jax.tree.leaves(whole.target.second_moments)[0].shape[0] == 4
    _assert_same_results(killed, whole)
    answer, _ = removals.forget(open_finished(tmp_path / "killed"), [3])
    assert all(np.isfinite(values).all() for values in answer.arrays.values())


@pytest.mark.slow
def test_a_partial_result_of_other_settings_is_not_used(tmp_path):
    other = tiny_config("train.learning_rate=0.2")
    with pytest.raises(KeyboardInterrupt):
        _to("target", other, tmp_path, Recorder(TRAINING, 6).progress)
    recorder = Recorder()
    _to("target", tiny_config(), tmp_path, recorder.progress)
    assert not [text for text in recorder.said if "picking up" in text]
    assert not (tmp_path / "target.partial").exists()


def test_a_partial_result_for_other_devices_is_not_taken(tmp_path):
    """Blocks of groups are cut for the devices; on others the stage starts again, and says so."""
    made = Made({}, {}, {}, {})
    told = {"made": made.__dict__, "position": 2, "seconds": 1.0}
    recorder, path = Recorder(), tmp_path / "synset"

    def kept(blocks):
        checkpoints.remove(path)
        checkpoints.save(tmp_path / "synset.partial", {"blocks": np.full((4, 3), 7.0)}, told)

        def compute(loop):
            return loop({"blocks": np.zeros((blocks, 3))}, 3, lambda c, p: (c, p + 1, ""))

        like = {"blocks": np.zeros((blocks, 3))}
        return workdir.keep(path, made, "distil", like, compute, recorder.progress)[0]

    assert kept(2)["blocks"].sum() == 0
    assert any("another number of devices" in text for text in recorder.said)
    assert kept(4)["blocks"].sum() == 4 * 3 * 7


# One stage again


@pytest.mark.parametrize(
    ("stage", "change", "allowed"),
    [
        ("target", "train.epochs=6", True),
        ("target", "model.hidden=4", True),
        ("target", "online.steps=6", True),
        ("target", "data.train_size=100", False),
        ("groups", "cluster.num_groups=12", True),
        ("groups", "train.epochs=6", False),
        ("synset", "distill.items=2", True),
        ("synset", "tune.subsets=4", True),
        ("synset", "check.seeds=3", True),
        ("synset", "cluster.num_groups=12", False),
        ("tuning", "online.steps=6", True),
        ("tuning", "online.objective=loss", True),
        ("tuning", "tune.share=0.5", True),
        ("tuning", "distill.items=2", False),
        ("attribution", "check.groups=3", True),
        ("attribution", "online.objective=loss", False),
        ("attribution", "tune.subsets=4", False),
        ("attribution", "distill.items=2", False),
        ("check", "check.groups=3", True),
        ("check", "online.steps=6", False),
        ("check", "truth.seeds=3", True),
        ("report", "check.groups=3", False),
        ("report", "seed=1", False),
        ("target", "seed=1", False),
    ],
)
def test_a_stage_changes_its_own_settings_and_later_ones_only(stage, change, allowed):
    old, new = tiny_config(), tiny_config(change)
    if allowed:
        check_stage_change(stage, old, new)
        return
    with pytest.raises(ValueError, match=re.escape(change.split("=")[0])):
        check_stage_change(stage, old, new)


@pytest.mark.slow
def test_one_stage_again_leaves_earlier_ones_and_outdates_later_ones(copy, without_report):
    before = _written(copy)
    stages.run_stage("synset", copy, ["distill.steps=20", "check.seeds=3"])
    after = _written(copy)
    assert {n for n in KEPT if after[n] != before[n]} == {"synset"}
    changed = tiny_config("distill.steps=20", "check.seeds=3")
    assert settings_file.load(copy / "config.json") == changed
    recorder = Recorder()
    stages.run(changed, copy, recorder.progress)
    again = {n for n in KEPT if _written(copy)[n] != before[n]}
    assert again == {"synset", "tuning", "attribution", "check"}
    assert sum("done before" in text for text in recorder.said) == 3
    assert "the updates: as the settings say: again, for its input synset" in recorder.said
    assert "leaving out 10 groups: again, for its input synset" in recorder.said
    told = "check.seeds 2 -> 3; its input synset; its input attribution"
    assert f"checking against exact retraining: again, for {told}" in recorder.said
    assert "retraining 5 of 15 networks" in recorder.said  # those of the third seed


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["target", "groups", "tuning", "attribution", "check"])
def test_one_stage_again_gives_the_same_result(copy, finished, stage, without_report):  # noqa: F811
    before = _written(copy)
    stages.run_stage(stage, copy)
    after = _written(copy)
    assert {n for n in KEPT if after[n] != before[n]} == {stage}
    # What comes after it has the same input as before, and is not out of date.
    _assert_same_results(read_stages(copy).results, read_stages(finished).results)


@pytest.mark.slow
def test_a_check_of_another_network_is_retrained(copy, without_report):
    recorder = Recorder()
    stages.run_stage("target", copy, ["train.epochs=5"])
    stages.run(settings_file.load(copy / "config.json"), copy, recorder.progress)
    assert CHECKING in recorder.said
    assert "  the networks that are there were retrained for something else" in recorder.said


@pytest.mark.slow
def test_the_report_again(copy):
    (copy / "report.html").unlink()
    shutil.rmtree(copy / "figures")
    before = _written(copy)
    stages.run_stage("report", copy)
    assert (copy / "report.html").is_file()
    assert len(list((copy / "figures").iterdir())) == 7
    assert _written(copy) == before


# What makes a result stale


def _changes(name: str, folder: Path, plan) -> str:
    with pytest.raises(stages.NotDoneError, match=f"the stage {name!r} is not done") as caught:
        stages.bring(plan, folder, ("attribution",), compute=False)
    return str(caught.value)


def test_settings_inputs_programs_and_versions_make_a_result_stale(finished, monkeypatch):  # noqa: F811
    base = make_plan(tiny_config())
    moved = make_plan(tiny_config("data.data_dir=elsewhere"))
    stages.bring(moved, finished, ("attribution",), compute=False)
    changed = make_plan(tiny_config("online.steps=6"))
    assert "(online.steps 5 -> 6)" in _changes("tuning", finished, changed)
    assert "(seed 0 -> 1" in _changes("target", finished, make_plan(tiny_config("seed=1")))
    other = base._replace(inputs={"data": "other"})
    assert "(its input data)" in _changes("target", finished, other)
    # An edited loss: the network is trained on it, and the synset made for it.
    loss = base.task.loss
    task = base.task._replace(loss=lambda params, batch: 2.0 * loss(params, batch))
    assert "(what it computes)" in _changes("synset", finished, base._replace(task=task))
    same = base.task._replace(loss=lambda weights, examples: loss(weights, examples))
    stages.bring(base._replace(task=same), finished, ("attribution",), compute=False)
    monkeypatch.setattr(stages.packages, "version", lambda name: "9.9")
    assert re.search(r"jax [0-9.]+ -> 9\.9; flax", _changes("target", finished, base))


def test_a_stage_of_08_is_out_of_date_and_not_damaged(tmp_path):
    old = {"files": {}, "shapes": {}, "metadata": {"fingerprint": "0f"}, "sum": "1e"}
    (tmp_path / checkpoints.MANIFEST).write_text(json.dumps(old, indent=1))
    assert workdir.stale(tmp_path, Made({}, {}, {}, {})) == ["it is of version 0.8"]


# Other designs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        (("online.update=forget", "online.learning_rate=0.05"), (10, 40)),
        (("online.objective=loss", "online.rewind=0.5"), (10, 40)),
        (("online.objective=probability",), (10, 40)),
        (("online.objective=logit:3",), (10, 40)),
        (("cluster.method=class", "cluster.num_groups=77"), (10, 40)),
        (("cluster.features=network",), (10, 40)),
        (("cluster.method=point", "data.train_size=20", "train.batch_size=10"), (20, 40)),
        (("distill.steps=0",), (10, 40)),
        (("data.normalise=standard", "data.label_noise=0.2"), (10, 40)),
    ],
)
def test_other_settings_run_to_the_attribution(tmp_path, changes, shape):
    attribution = _to("attribution", tiny_config(*changes), tmp_path).attribution
    assert attribution.scores.shape == shape
    assert attribution.scores.std() > 0
    assert attribution.groups.count == shape[0]
    kept = Attribution.load(tmp_path / "attribution.npz")
    np.testing.assert_array_equal(kept.scores, attribution.scores)


@pytest.mark.slow
def test_the_objective_alone_leaves_the_offline_stages(copy, without_report):
    before = _written(copy)
    stages.run_stage("tuning", copy, ["online.objective=loss"])
    stages.run_stage("attribution", copy)
    loss = Attribution.load(copy / "attribution.npz")
    assert {n for n in KEPT if _written(copy)[n] != before[n]} == {"tuning", "attribution"}
    assert loss.metadata["objective"] == "loss"
    assert loss.metadata["lower_is_better"]


@pytest.mark.slow
def test_accuracy_is_one_output_and_a_step_takes_some_items_up_to_the_report(tmp_path):
    """0.8 counted every item of the synset as the cost of an online step."""
    chosen = tiny_config(
        "online.objective=accuracy", "distill.items=3", "online.batch=20", "distill.steps=0"
    )
    metrics = stages.run(chosen, tmp_path / "run")
    attribution = Attribution.load(tmp_path / "run" / "attribution.npz")
    assert attribution.scores.shape == (10, 1)
    np.testing.assert_array_equal(attribution.query_ids, [0])
    # Every score is a whole number of the 40 queries, before it has retraining's size.
    scores = read_stages(tmp_path / "run").results.check.scores
    np.testing.assert_allclose(scores * 40, np.round(scores * 40), atol=1e-4)
    assert attribution.half_widths.shape == (10, 1)
    assert metrics["objective"] == "accuracy"
    # Two batches of 15 of the 30 items, in turn.
    assert metrics["online_example_gradients"]["ddm"] == 5 * 15
    assert metrics["online_example_gradients"]["retraining"] == 12 * 40
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_an_attribution_that_is_made_again_keeps_the_size_of_a_check_that_fits(copy):
    """`ddm attribute` with the same settings left what the updates say, and no error bars."""
    before = Attribution.load(copy / "attribution.npz")
    stages.run_stage("attribution", copy)
    after = Attribution.load(copy / "attribution.npz")
    np.testing.assert_allclose(after.scores, before.scores, rtol=1e-5)
    np.testing.assert_allclose(after.half_widths, before.half_widths, rtol=1e-5)


@pytest.mark.slow
def test_a_check_without_random_halves_up_to_the_report(copy, without_pictures):
    stages.run_stage("check", copy, ["check.subsets=0"])
    metrics = stages.run(tiny_config("check.subsets=0"), copy)
    assert [row["what"].split(" (")[0] for row in metrics["agreement"]] == [
        "one group left out"
    ] * 2


@pytest.mark.parametrize(("halves", "rows"), [(0, 2), (1, 2), (2, 3)])
def test_one_random_half_has_no_order(halves, rows, rng):
    truth = Truth(
        full=rng.normal(size=(2, 5)),
        single=rng.normal(size=(2, 3, 5)),
        groups=np.array([0, 1, 4]),
        masks=np.eye(6, dtype=np.float32)[:halves],
        keep=np.full(halves, 0.5),
        subsets=rng.normal(size=(2, halves, 5)),
        seconds=1.0,
    )
    scores = rng.normal(size=(2, 6, 5))
    check = Check(truth, rng.normal(size=(1 + halves, 5)), *scores)
    told = agreement(check, as_groups(np.arange(12) % 6))
    assert len(told) == rows
    assert all(np.isfinite([row["ddm"], row["grad_dot"]]).all() for row in told)


@pytest.mark.slow
def test_groups_from_a_file_and_a_change_of_that_file(tmp_path):
    file = tmp_path / "groups.npy"
    np.save(file, np.arange(120) % 10)
    chosen = tiny_config("cluster.method=file", f"cluster.file={file}")
    found = _to("attribution", chosen, tmp_path / "run").attribution
    np.testing.assert_array_equal(found.groups.ids, np.arange(120) % 10)
    np.save(file, np.arange(120) // 12)
    recorder = Recorder()
    again = _to("attribution", chosen, tmp_path / "run", recorder.progress).attribution
    np.testing.assert_array_equal(again.groups.ids, np.arange(120) // 12)
    assert again.scores.shape == found.scores.shape == (10, 40)
    assert not np.allclose(again.scores, found.scores)
    assert [t for t in recorder.said if "done before" in t] == [f"{TRAINING}: done before"]
    assert "clustering: again, for its input cluster.file" in recorder.said


# What cannot run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("model.kind=convnet model.depth=9", "depth=9 halves the image 9 times"),
        ("train.batch_size=121", r"train\.batch_size=121 exceeds the 120 training points"),
        (
            "cluster.method=file cluster.file=gone.npy",
            r"cluster\.file=gone\.npy cannot be read",
        ),
        ("cluster.num_groups=121", r"num_groups=121; it must be .* 2\.\.120"),
        ("cluster.num_groups=5", "num_groups=5; class_kmeans needs"),
        ("cluster.num_groups=119", "num_groups=119 asks for 12 groups of class"),
        ("online.objective=logit:10", "class_index=10; with 10 classes"),
        ("online.objective=f1", "unknown objective 'f1'"),
        ("truth.objective=f1", "unknown objective 'f1'"),
        ("data.name=digits data.train_size=2000", "train_size=2000; digits has only 1000"),
        ("data.normalise=0.1", r"normalise='0\.1'"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_named_before_any_work(tmp_path, changes, message):
    recorder = Recorder()
    with pytest.raises(ValueError, match=message) as caught:
        stages.run(tiny_config(*changes.split()), tmp_path / "run", recorder.progress)
    assert "\n" not in str(caught.value)
    assert recorder.said == []
    assert not (tmp_path / "run").exists()


def test_groups_from_a_file_of_another_length_are_refused_before_any_work(tmp_path):
    np.save(tmp_path / "groups.npy", np.arange(119) % 6)
    chosen = tiny_config("cluster.method=file", f"cluster.file={tmp_path / 'groups.npy'}")
    with pytest.raises(ValueError, match=r"cluster\.file=.*groups have shape \(119,\)"):
        stages.run(chosen, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_diverging_training_names_the_step_and_the_setting(tmp_path):
    chosen = tiny_config("train.learning_rate=1e6", "train.final_learning_rate=1e6")
    with pytest.raises(ValueError, match=r"training diverged at step [1-9][0-9]* of 12") as caught:
        stages.run(chosen, tmp_path / "run")
    assert "lower train.learning_rate (now 1000000.0)" in str(caught.value)
    assert not (tmp_path / "run" / "target").exists()


@pytest.mark.slow
def test_diverging_distillation_names_the_step_and_the_setting(copy):
    changes = ["distill.optimizer=sgd", "distill.learning_rate=1e30"]
    with pytest.raises(
        ValueError, match=r"distillation diverged at step [1-9][0-9]* of 60"
    ) as caught:
        stages.run_stage("synset", copy, changes)
    assert "lower distill.learning_rate (now 1e+30)" in str(caught.value)
    assert not (copy / "synset").exists()


def test_a_diverging_online_stage_names_the_groups(copy):
    stages.run_stage("tuning", copy, ["online.learning_rate=1e20"])
    with pytest.raises(ValueError, match=r"10 of 10 groups are not finite.*online fine-tune"):
        stages.run_stage("attribution", copy)


def test_moments_that_nobody_keeps_are_missed_before_any_work(tmp_path):
    asked = "online.optimizer=preconditioned"
    with pytest.raises(
        ValueError, match="needs the squared gradients of a training by Adam's kind"
    ):
        stages.run(tiny_config(asked), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    make_plan(tiny_config(asked, "train.optimizer=adamw", "train.learning_rate=0.001"))


def test_other_recipes_are_chosen_from_anew(finished, monkeypatch):  # noqa: F811
    """What another version kept has another shape, and was refused as no checkpoint of the run."""
    plan = make_plan(tiny_config())
    before = stages.PROGRAMS["recipes"](plan)
    monkeypatch.setattr(stages.recipes, "DEFLATED", stages.recipes.DEFLATED[1:])
    assert stages.PROGRAMS["recipes"](plan) != before
    with pytest.raises(stages.NotDoneError, match=r"'tuning' is not done .*what it computes"):
        open_finished(finished)
