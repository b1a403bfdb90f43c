"""The pipeline: what a run leaves, what it does not repeat, and how it goes on after a stop."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import CHUNK, compile_once, finished, read_stages, tiny_config  # noqa: F401

from ddm_jax import checkpoint, config, offline, pipeline, report, workdir
from ddm_jax.attribution import Attribution
from ddm_jax.pipeline import DEPENDS, SILENT, Progress
from ddm_jax.plan import make_plan
from ddm_jax.workdir import check_stage_change, fingerprint_of

TRAINING = "training the target network"
DISTILLING = "distilling the synset"
CHECKING = "retraining 10 networks to check"


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
    monkeypatch.setattr(offline, "STEPS_AT_ONCE", CHUNK)


@pytest.fixture
def without_report(monkeypatch):
    """Leave the figures out: they take most of the seconds of a run."""
    monkeypatch.setattr(pipeline, "report_stage", lambda *_: {})


@pytest.fixture
def without_pictures(monkeypatch):
    """Write the report, but draw nothing."""
    monkeypatch.setattr(report, "_png", lambda figure: b"")


@pytest.fixture
def without_check(without_report, monkeypatch):
    """Leave the check out too, which compiles the retraining anew for other shapes."""
    monkeypatch.setattr(pipeline, "check_stage", lambda *_: None)


@pytest.fixture
def copy(finished, tmp_path) -> Path:  # noqa: F811
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def _assert_same_tree(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.shape == right.shape
        if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(left, right)


def _written(workdir: Path) -> dict[str, int]:
    return {n: (workdir / n / checkpoint.MANIFEST).stat().st_mtime_ns for n in DEPENDS}


# What a run leaves


def test_a_run_leaves_its_files(finished):  # noqa: F811
    names = {p.name for p in finished.iterdir()}
    assert names == {*DEPENDS, "config.json", "attribution.npz", "metrics.json", "figures"} | {
        "report.html"
    }
    figures = {p.name for p in (finished / "figures").iterdir()}
    assert figures == {
        f"{n}.png"
        for n in ("agreement", "matrix", "mistakes", "synset", "matching", "groups", "training")
    }
    assert config.load(finished / "config.json") == tiny_config()


def test_the_stages_have_the_shapes_of_the_settings(finished):  # noqa: F811
    stages = read_stages(finished)
    assert stages.target.losses.shape == (12,)
    assert stages.target.rows.shape == (12, 40)
    assert jax.tree.leaves(stages.target.checkpoints)[0].shape[0] == 4
    assert stages.groups.shape == (120,)
    assert stages.synset.synset.x.shape == (10, 1, 8, 8, 1)
    assert stages.synset.losses.shape == (60,)
    assert stages.check.masks.shape == (5, 10)
    assert stages.check.retrained.shape == (2, 5, 40)
    assert stages.check.predicted.shape == (5, 40)
    assert stages.check.grad_dot.shape == (10, 40)
    for leaf in jax.tree.leaves((stages.target.params, stages.synset, stages.check)):
        assert np.isfinite(leaf).all()
    assert np.count_nonzero(stages.synset.losses) == 60


def test_training_in_pieces_is_training_at_once(tmp_path):
    """Two epochs a piece, of five: the first piece is one epoch, with no checkpoint."""
    chosen = tiny_config("train.epochs=5", "train.checkpoint_every=2", "train.momentum=0.5")
    plan = make_plan(chosen)
    target = pipeline.target_stage(plan, tmp_path, SILENT)
    whole = jax.jit(plan.trainer.train)(target.key, plan.split.train, jnp.ones(120))
    assert target.losses.shape == (15,)
    assert jax.tree.structure(target) == jax.tree.structure(whole)
    np.testing.assert_array_equal(target.rows, whole.rows)
    for left, right in zip(
        jax.tree.leaves(target._replace(key=0)), jax.tree.leaves(whole._replace(key=0)), strict=True
    ):
        assert np.shape(left) == np.shape(right)
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    last = jax.tree.map(lambda leaf: leaf[-1], target.checkpoints)
    _assert_same_tree(last, target.params)


def test_the_attribution_is_the_difference_that_the_check_predicts(finished):  # noqa: F811
    attribution = Attribution.load(finished / "attribution.npz")
    stages = read_stages(finished)
    assert attribution.scores.shape == (10, 40)
    left_out, predicted = stages.check.groups, np.asarray(stages.check.predicted)
    np.testing.assert_array_equal(stages.check.masks[1:3].argmin(1), left_out)
    np.testing.assert_array_equal(stages.check.masks[3:].sum(1), [5, 5])
    np.testing.assert_allclose(
        attribution.scores[left_out], predicted[0] - predicted[1:3], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(attribution.groups, stages.groups)
    np.testing.assert_array_equal(attribution.query_ids, stages.plan.split.test_ids)
    assert attribution.metadata["sizes"] == np.bincount(stages.groups).tolist()
    assert attribution.metadata["objective"] == "margin"
    assert set(attribution.metadata["versions"]) >= {"ddm_jax", "jax", "device"}


def test_the_check_retrains_exactly(finished):  # noqa: F811
    """One entry of the check, again by hand: weights of zero for the left-out group."""
    stages = read_stages(finished)
    plan, group = stages.plan, int(stages.check.groups[1])
    key = jax.random.split(jax.random.fold_in(pipeline._key(plan, "check"), 2), 2)[1]
    weights = jnp.asarray(stages.groups != group, jnp.float32)
    run = jax.jit(plan.trainer.train)(key, plan.split.train, weights)
    output = plan.output(run.params, plan.split.test)
    assert output.shape == stages.check.retrained[1, 2].shape
    np.testing.assert_allclose(output, stages.check.retrained[1, 2], rtol=1e-3, atol=1e-4)


# What is not repeated


def test_a_second_run_computes_nothing_again(copy, monkeypatch, without_pictures):
    before, scores = _written(copy), Attribution.load(copy / "attribution.npz").scores
    old = json.loads((copy / "metrics.json").read_text())
    monkeypatch.setattr(checkpoint, "save", lambda *_: pytest.fail("a stage was computed again"))
    recorder = Recorder()
    metrics = pipeline.run(tiny_config(), copy, recorder.progress)
    assert _written(copy) == before
    assert sum("done before" in text for text in recorder.said) == len(DEPENDS)
    assert json.loads((copy / "metrics.json").read_text()) == old
    assert metrics["agreement"] == old["agreement"]
    np.testing.assert_array_equal(Attribution.load(copy / "attribution.npz").scores, scores)


def test_gradients_that_cannot_be_held_are_refused_before_any_work(tmp_path, copy, monkeypatch):
    monkeypatch.setattr(offline, "device_memory", lambda: 1000)
    with pytest.raises(ValueError, match="gradients of 10 groups at 2 checkpoints at once, 0 GiB"):
        pipeline.run(tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    before = _written(copy)
    with pytest.raises(ValueError, match="use distance='squared'"):
        pipeline.run_stage("synset", copy, tiny_config())
    assert _written(copy) == before
    pipeline.run_stage("groups", copy, tiny_config())  # distils nothing


def test_other_settings_in_the_same_place_are_refused_by_name(copy):
    before = _written(copy)
    with pytest.raises(ValueError, match=r"distill\.items 1 -> 2; online\.steps 5 -> 6\)"):
        pipeline.run(tiny_config("distill.items=2", "online.steps=6"), copy)
    assert config.load(copy / "config.json") == tiny_config()
    assert _written(copy) == before


def test_places_that_hold_something_else_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="folder is not empty and holds no run"):
        pipeline.run(tiny_config(), tmp_path / "folder")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file is a file"):
        pipeline.run(tiny_config(), tmp_path / "file")
    assert {p.name for p in tmp_path.rglob("*")} == {"folder", "mine.txt", "file"}


@pytest.mark.parametrize("stage", DEPENDS)
def test_a_damaged_stage_is_named_and_mended_by_deleting_it(copy, stage, without_report):
    files = [p for p in (copy / stage / "tree").rglob("*") if p.is_file()]
    file = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{stage} is damaged.*delete the folder"):
        pipeline.run(tiny_config(), copy)
    if stage == "groups":
        shutil.rmtree(copy / stage)
        pipeline.run(tiny_config(), copy)


# Stopped and resumed


def test_interrupted_runs_end_with_the_same_bits(tmp_path, finished, without_report):  # noqa: F811
    """Stopped in training, in distillation (twice) and in the check."""
    workdir = tmp_path / "run"
    for what, position, stage in (
        (TRAINING, 6, "target"),
        (DISTILLING, 20, "synset"),
        (DISTILLING, 40, "synset"),
        (CHECKING, 3, "check"),
    ):
        recorder = Recorder(what, position)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(tiny_config(), workdir, recorder.progress)
        partial = workdir / f"{stage}.partial"
        assert checkpoint.metadata(partial)["position"] == position
        assert not (workdir / stage).exists()
    recorder = Recorder()
    pipeline.run(tiny_config(), workdir, recorder.progress)
    assert "  picking up at 3 of 4" in recorder.said
    assert not list(workdir.glob("*.partial"))

    resumed, straight = read_stages(workdir), read_stages(finished)
    _assert_same_tree(resumed[1:], straight[1:])
    scores = [Attribution.load(w / "attribution.npz").scores for w in (workdir, finished)]
    assert scores[0].shape == scores[1].shape == (10, 40)
    np.testing.assert_array_equal(*scores)


def test_a_killed_run_goes_on_from_what_was_kept(tmp_path, finished, monkeypatch):  # noqa: F811
    """Killed without a chance to save, two positions after the last partial result."""
    monkeypatch.setattr("ddm_jax.workdir.SAVE_SECONDS", 0.0)

    class Killed(BaseException):
        pass

    plan = make_plan(tiny_config())
    with pytest.raises(Killed):
        pipeline.target_stage(plan, tmp_path, Recorder(TRAINING, 9, Killed).progress)
    assert checkpoint.metadata(tmp_path / "target.partial")["position"] == 6
    recorder = Recorder()
    target = pipeline.target_stage(plan, tmp_path, recorder.progress)
    assert "  picking up at 6 of 12" in recorder.said
    _assert_same_tree(target, read_stages(finished).target)


def test_a_partial_result_of_other_settings_is_not_used(tmp_path):
    other = make_plan(tiny_config("train.learning_rate=0.2"))
    with pytest.raises(KeyboardInterrupt):
        pipeline.target_stage(other, tmp_path, Recorder(TRAINING, 6).progress)
    recorder = Recorder()
    plan = make_plan(tiny_config())
    pipeline.target_stage(plan, tmp_path, recorder.progress)
    assert not [text for text in recorder.said if "picking up" in text]
    assert not (tmp_path / "target.partial").exists()


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
        ("synset", "check.seeds=3", True),
        ("synset", "cluster.num_groups=12", False),
        ("attribution", "online.objective=loss", True),
        ("attribution", "distill.items=2", False),
        ("check", "check.groups=3", True),
        ("check", "online.steps=6", False),
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


def test_one_stage_again_leaves_earlier_ones_and_outdates_later_ones(copy, without_report):
    before = _written(copy)
    changed = tiny_config("distill.steps=20")
    pipeline.run_stage("synset", copy, changed)
    after = _written(copy)
    assert {n for n in DEPENDS if after[n] != before[n]} == {"synset"}
    assert config.load(copy / "config.json") == changed
    recorder = Recorder()
    pipeline.run(changed, copy, recorder.progress)
    assert {n for n in DEPENDS if _written(copy)[n] != before[n]} == {
        "synset",
        "attribution",
        "check",
    }
    assert sum("done before" in text for text in recorder.said) == 3


@pytest.mark.parametrize("stage", ["target", "groups", "attribution", "check"])
def test_one_stage_again_gives_the_same_result(copy, finished, stage, without_report):  # noqa: F811
    before = _written(copy)
    pipeline.run_stage(stage, copy, tiny_config())
    after = _written(copy)
    assert {n for n in DEPENDS if after[n] != before[n]} == {stage}
    _assert_same_tree(read_stages(copy)[1:], read_stages(finished)[1:])


def test_the_report_again(copy):
    (copy / "report.html").unlink()
    shutil.rmtree(copy / "figures")
    before = _written(copy)
    pipeline.run_stage("report", copy, tiny_config())
    assert (copy / "report.html").is_file()
    assert len(list((copy / "figures").iterdir())) == 7
    assert _written(copy) == before


# Other designs


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        (("online.design=masks",), (10, 40)),
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
def test_other_settings_run_to_the_attribution(tmp_path, changes, shape, without_check):
    pipeline.run(tiny_config(*changes), tmp_path / "run")
    attribution = Attribution.load(tmp_path / "run" / "attribution.npz")
    assert attribution.scores.shape == shape
    assert attribution.scores.std() > 0
    assert attribution.groups.max() == shape[0] - 1


def test_the_objective_alone_leaves_the_offline_stages(copy, without_report):
    before = _written(copy)
    pipeline.run_stage("attribution", copy, tiny_config("online.objective=loss"))
    margin = Attribution.load(copy / "attribution.npz")
    assert {n for n in DEPENDS if _written(copy)[n] != before[n]} == {"attribution"}
    assert margin.metadata["objective"] == "loss"


def test_accuracy_is_one_output_up_to_the_report(tmp_path):
    metrics = pipeline.run(tiny_config("online.objective=accuracy"), tmp_path / "run")
    attribution = Attribution.load(tmp_path / "run" / "attribution.npz")
    assert attribution.scores.shape == (10, 1)
    np.testing.assert_array_equal(attribution.query_ids, [0])
    # Every score is a whole number of the 40 queries.
    np.testing.assert_allclose(
        attribution.scores * 40, np.round(attribution.scores * 40), atol=1e-4
    )
    assert metrics["objective"] == "accuracy"
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_check_without_random_halves_up_to_the_report(copy, without_pictures):
    chosen = tiny_config("check.subsets=0")
    pipeline.run_stage("check", copy, chosen)
    metrics = pipeline.run(chosen, copy)
    assert [row["what"].split(" (")[0] for row in metrics["agreement"]] == [
        "one group left out"
    ] * 2


def test_groups_from_a_file_and_a_change_of_that_file(tmp_path, without_check):
    file = tmp_path / "groups.npy"
    np.save(file, np.arange(120) % 10)
    chosen = tiny_config("cluster.method=file", f"cluster.file={file}")
    pipeline.run(chosen, tmp_path / "run")
    attribution = Attribution.load(tmp_path / "run" / "attribution.npz")
    np.testing.assert_array_equal(attribution.groups, np.arange(120) % 10)
    np.save(file, np.arange(120) // 12)
    recorder = Recorder()
    pipeline.run(chosen, tmp_path / "run", recorder.progress)
    again = Attribution.load(tmp_path / "run" / "attribution.npz")
    np.testing.assert_array_equal(again.groups, np.arange(120) // 12)
    assert again.scores.shape == attribution.scores.shape == (10, 40)
    assert not np.allclose(again.scores, attribution.scores)
    assert [t for t in recorder.said if "done before" in t] == [f"{TRAINING}: done before"]


# What cannot run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("model.kind=vit", r"model\.kind='vit'; choose one of logistic"),
        ("model.norm=batch", r"model\.norm='batch'"),
        ("model.hidden=8,0", r"model\.hidden=0; it must be at least 1"),
        ("model.kind=convnet model.width=0", r"model\.width=0"),
        ("model.kind=convnet model.depth=9", "depth=9 halves the image 9 times"),
        ("model.kind=resnet model.blocks=1,-1", r"model\.blocks=-1"),
        ("train.epochs=0", r"train\.epochs=0; it must be at least 1"),
        ("train.batch_size=121", r"train\.batch_size=121 exceeds the 120 training points"),
        ("train.checkpoint_every=3", "train.checkpoint_every=3 keeps fewer than two"),
        ("train.learning_rate=0", r"train\.learning_rate=0\.0; it must be positive"),
        ("train.learning_rate=inf", r"train\.learning_rate=inf"),
        ("train.learning_rate=nan", r"train\.learning_rate=nan"),
        ("train.final_learning_rate=-1", r"train\.final_learning_rate=-1"),
        ("train.warmup_epochs=4", r"train\.warmup_epochs=4; it must be below train\.epochs"),
        ("train.momentum=1", r"train\.momentum=1\.0; it must be in \[0, 1\)"),
        ("train.weight_decay=-1", "weight_decay=-1"),
        ("cluster.method=spectral", r"cluster\.method='spectral'"),
        ("cluster.method=file", r"cluster\.method=file needs cluster\.file"),
        ("cluster.method=file cluster.file=gone.npy", r"cluster\.file=gone\.npy cannot be read"),
        ("cluster.num_groups=1", r"cluster\.num_groups=1; it must be at least 2"),
        ("cluster.num_groups=121", r"num_groups=121; it must be in 1\.\.120"),
        ("cluster.num_groups=5", "num_groups=5; class_kmeans needs"),
        ("cluster.num_groups=119", "num_groups=119 asks for 12 groups of class"),
        ("cluster.features=logits", r"cluster\.features='logits'"),
        ("distill.start=zero", r"distill\.start='zero'"),
        ("distill.optimizer=lion", r"distill\.optimizer='lion'"),
        ("distill.items=0", r"distill\.items=0"),
        ("distill.part=0", r"distill\.part=0\.0; it must be in \(0, 1\]"),
        ("distill.balance=2", "balance=2"),
        ("distill.learn=z", r"learn=\('z',\)"),
        ("distill.learn=", r"learn=\(\)"),
        ("distill.distance=cosine", "unknown distance 'cosine'"),
        ("online.update=relearn", "unknown update 'relearn'"),
        ("online.design=lasso", r"online\.design='lasso'"),
        ("online.objective=logit:10", "class_index=10; with 10 classes"),
        ("online.objective=f1", "unknown objective 'f1'"),
        ("online.rewind=1", r"online\.rewind=1\.0"),
        ("online.step_items=0", r"online\.step_items=0; it must be at least 1"),
        ("check.seeds=1", r"check\.seeds=1; it must be at least 2"),
        ("check.groups=1", r"check\.groups=1; it must be at least 2"),
        ("data.name=digits data.train_size=2000", "train_size=2000; digits has only 1000"),
        ("data.label_noise=1", "label_noise=1"),
        ("seed=-1", r"seed=-1; it must be in 0\.\."),
        ("seed=4294967296", "seed=4294967296"),
    ],
)
def test_wrong_settings_are_named_before_any_work(tmp_path, changes, message):
    recorder = Recorder()
    with pytest.raises(ValueError, match=message) as caught:
        pipeline.run(tiny_config(*changes.split()), tmp_path / "run", recorder.progress)
    assert "\n" not in str(caught.value)
    assert recorder.said == []
    assert not (tmp_path / "run").exists()


def test_groups_from_a_file_of_another_length_are_refused_before_any_work(tmp_path):
    np.save(tmp_path / "groups.npy", np.arange(119) % 6)
    chosen = tiny_config("cluster.method=file", f"cluster.file={tmp_path / 'groups.npy'}")
    with pytest.raises(ValueError, match=r"groups have shape \(119,\); 120 points need \(120,\)"):
        pipeline.run(chosen, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_diverging_training_names_the_step_and_the_setting(tmp_path):
    chosen = tiny_config("train.learning_rate=1e6", "train.final_learning_rate=1e6")
    with pytest.raises(ValueError, match=r"training diverged at step [1-9][0-9]* of 12") as caught:
        pipeline.run(chosen, tmp_path / "run")
    assert "lower train.learning_rate (now 1000000.0)" in str(caught.value)
    assert not (tmp_path / "run" / "target").exists()


def test_diverging_distillation_names_the_step_and_the_setting(copy):
    chosen = tiny_config("distill.optimizer=sgd", "distill.learning_rate=1e30")
    with pytest.raises(
        ValueError, match=r"distillation diverged at step [1-9][0-9]* of 60"
    ) as caught:
        pipeline.run_stage("synset", copy, chosen)
    assert "lower distill.learning_rate (now 1e+30)" in str(caught.value)
    assert not (copy / "synset").exists()


def test_a_diverging_online_stage_names_the_groups(copy):
    with pytest.raises(ValueError, match=r"10 of 10 groups are not finite.*online fine-tune"):
        pipeline.run_stage("attribution", copy, tiny_config("online.learning_rate=1e20"))


def test_the_fingerprint_follows_settings_and_data_but_not_where_they_lie():
    base = make_plan(tiny_config())

    def prints(plan):
        return [fingerprint_of(plan, name) for name in DEPENDS]

    assert prints(base) == prints(make_plan(tiny_config("data.data_dir=elsewhere")))
    changed = prints(make_plan(tiny_config("online.steps=6")))
    assert [a != b for a, b in zip(prints(base), changed, strict=True)] == [False] * 3 + [True] * 2
    train = base.split.train._replace(x=base.split.train.x + np.float32(1e-6))
    moved = base._replace(split=base.split._replace(train=train))
    assert all(a != b for a, b in zip(prints(base), prints(moved), strict=True))
    assert all(
        a != b for a, b in zip(prints(base), prints(make_plan(tiny_config("seed=1"))), strict=True)
    )


def test_a_partial_result_for_other_devices_is_not_taken(tmp_path, monkeypatch):
    """Blocks of groups are cut for the devices; on others the stage starts again, and says so."""
    monkeypatch.setattr(workdir, "fingerprint_of", lambda plan, name: "same")
    checkpoint.save(
        tmp_path / "synset.partial",
        {"blocks": np.full((4, 3), 7.0)},
        {"fingerprint": "same", "position": 2, "seconds": 1.0},
    )
    said = []
    progress = workdir.Progress(said.append, lambda what, total: lambda done, note: None)

    def kept(blocks):
        def compute(resume):
            return resume({"blocks": np.zeros((blocks, 3))}, 3, lambda c, p: (c, p + 1, ""))

        like = {"blocks": np.zeros((blocks, 3))}
        return workdir.keep_stage(None, tmp_path, "synset", "distil", like, compute, progress)

    assert kept(2)["blocks"].sum() == 0
    assert any("another number of devices" in text for text in said)
    checkpoint.save(
        tmp_path / "synset.partial",
        {"blocks": np.full((4, 3), 7.0)},
        {"fingerprint": "same", "position": 2, "seconds": 1.0},
    )
    checkpoint.remove(tmp_path / "synset")
    assert kept(4)["blocks"].sum() == 4 * 3 * 7
