"""The `ddm` command: one line for a mistake, and a run that a signal cannot spoil."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import TINY, compile_once, finished, tiny_config  # noqa: F401
from typer.testing import CliRunner

from ddm_jax import checkpoint, config, evaluate, pipeline, report, store
from ddm_jax.attribution import Attribution
from ddm_jax.candidates import CANDIDATES, Candidates
from ddm_jax.cli import app
from ddm_jax.types import Estimator

COMMANDS = (
    "run",
    "train",
    "cluster",
    "distill",
    "attribute",
    "check",
    "report",
    "truth",
    "compare",
    "settings",
)
SET_TINY = [part for setting in TINY for part in ("--set", setting)]
TRUTH = ("truth.seeds=2", "truth.subsets=8", "truth.subset_seeds=2")
SET_TRUTH = [part for setting in TRUTH for part in ("--set", setting)]


def ddm(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def planned(monkeypatch):
    """Keep what `ddm run` would run."""
    calls = []

    def run(chosen, workdir, progress):
        calls.append((chosen, workdir))
        return {"agreement": [], "sentences": []}

    monkeypatch.setattr(pipeline, "run", run)
    return calls


def test_help_lists_the_commands():
    result = ddm("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\s", result.output, re.MULTILINE), command
    for command in COMMANDS:
        assert ddm(command, "--help").exit_code == 0


def test_no_command_shows_help():
    assert "Usage" in ddm().output


# settings


def test_settings_lists_presets_and_all_settings_as_they_can_be_set():
    result = ddm("settings")
    assert result.exit_code == 0
    for name in config.PRESETS:
        assert f"--preset {name} " in result.output
    lines = [n for n in result.output.splitlines() if re.match(r"[a-z_.]+=", n)]
    assert config.override(config.preset("mnist"), lines) == config.preset("digits")


def test_settings_of_a_preset_and_of_a_run(finished):  # noqa: F811
    assert "data.name=mnist" in ddm("settings", "--preset", "mnist").output.splitlines()
    lines = ddm("settings", "--workdir", finished).output.splitlines()
    assert config.override(config.Config(), lines) == tiny_config()


# run: what is asked for


@pytest.mark.parametrize(
    ("arguments", "chosen", "workdir"),
    [
        ([], config.preset("digits"), "runs/digits"),
        (["digits"], config.preset("digits"), "runs/digits"),
        (["mnist"], config.preset("mnist"), "runs/mnist"),
        (
            ["svhn_cropped"],
            config.override(config.preset("images"), ["data.name=svhn_cropped"]),
            "runs/svhn_cropped",
        ),
        (["--preset", "mnist-convnet"], config.preset("mnist-convnet"), "runs/mnist-convnet"),
        (
            ["mnist", "--data-dir", "here", "--set", "seed=2", "--set", "distill.items=3"],
            config.override(
                config.preset("mnist"), ["data.data_dir=here", "seed=2", "distill.items=3"]
            ),
            "runs/mnist",
        ),
        (
            ["mnist", "--set", "data.name=fashion_mnist", "--workdir", "w"],
            config.override(config.preset("mnist"), ["data.name=fashion_mnist"]),
            "w",
        ),
    ],
)
def test_run_chooses_preset_overrides_and_place(
    planned, tmp_path, monkeypatch, arguments, chosen, workdir
):
    monkeypatch.chdir(tmp_path)
    result = ddm("run", *arguments)
    assert result.exit_code == 0, result.output
    assert planned == [(chosen, Path(workdir))]
    assert f"report: {workdir}/report.html" in result.output


@pytest.mark.parametrize("command", ["truth", "compare"])
def test_truth_and_compare_choose_like_run(tmp_path, monkeypatch, command):
    calls = []

    def stop(*arguments):
        calls.append(arguments)
        raise ValueError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "fill_truth", stop)
    monkeypatch.setattr(evaluate, "compare_estimators", stop)
    names = [] if command == "truth" else ["--estimators", " retraining,ddm, "]
    assert ddm(command, "mnist", *names, "--set", "truth.seeds=3").exit_code == 1
    assert ddm(command, *names, "--workdir", "w", "--chunk", "5").exit_code == 1
    chosen = [config.override(config.preset("mnist"), ["truth.seeds=3"]), config.preset("digits")]
    assert [call[:2] for call in calls] == [
        (chosen[0], Path("runs/mnist")),
        (chosen[1], Path("w")),
    ]
    assert [call[-1] for call in calls] == [None, 5]
    if command == "compare":
        assert [call[2] for call in calls] == [["retraining", "ddm"]] * 2


def test_run_with_a_workdir_alone_goes_on_with_what_it_holds(planned, finished):  # noqa: F811
    assert ddm("run", "--workdir", finished).exit_code == 0
    assert planned == [(tiny_config(), finished)]


# run and the stages: what they do


def test_run_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_png", lambda figure: b"")  # drawing takes most of the seconds
    result = ddm("run", "digits", "--workdir", tmp_path / "run", *SET_TINY)
    assert result.exit_code == 0, result.output
    assert "report.html" in result.stdout
    assert (tmp_path / "run" / "report.html").is_file()
    assert config.load(tmp_path / "run" / "config.json") == tiny_config()
    assert Attribution.load(tmp_path / "run" / "attribution.npz").scores.shape == (10, 40)
    for text in (
        "Agreement with exact retraining",
        "one group left out",
        "The network is right on",
    ):
        assert text in result.stdout
    for stage in ("training the target network", "distilling the synset", "report"):
        assert stage in result.stderr


def test_a_stage_again_with_another_setting_and_the_run_after_it(finished, tmp_path):  # noqa: F811
    workdir = shutil.copytree(finished, tmp_path / "copy")
    before = Attribution.load(workdir / "attribution.npz").scores
    result = ddm("attribute", "--workdir", workdir, "--set", "online.steps=3")
    assert result.exit_code == 0, result.output
    assert f"`ddm run --workdir {workdir}` brings the later stages up to date" in result.stdout
    assert "distilling the synset: done before" in result.stderr
    after = Attribution.load(workdir / "attribution.npz").scores
    assert after.shape == before.shape
    assert not np.array_equal(after, before)
    assert config.load(workdir / "config.json") == tiny_config("online.steps=3")
    old = checkpoint.metadata(workdir / "check")["fingerprint"]
    assert ddm("check", "--workdir", workdir).exit_code == 0
    assert checkpoint.metadata(workdir / "check")["fingerprint"] != old


# truth and compare: what they do


@pytest.fixture(scope="module")
def filled(finished, tmp_path_factory):  # noqa: F811
    """A finished run with a full truth store, read only, and what the command said."""
    workdir = Path(shutil.copytree(finished, tmp_path_factory.mktemp("filled") / "run"))
    return workdir, ddm("truth", "--workdir", workdir, "--chunk", 4, *SET_TRUTH)


@pytest.fixture
def copy(filled, tmp_path) -> Path:
    return Path(shutil.copytree(filled[0], tmp_path / "copy"))


def _lose_rows(workdir: Path, count: int) -> None:
    for mark in sorted((workdir / "truth" / "rows").glob("*.json"))[:count]:
        mark.unlink()


def _assert_fits(text: str) -> None:
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text, "a table is cut"


def test_truth_twice_says_the_same_and_trains_once(filled, monkeypatch):
    workdir, first = filled
    assert first.exit_code == 0, first.output
    assert "retraining 38 of 38 networks" in first.stderr
    monkeypatch.setattr(store, "write_row", lambda *_: pytest.fail("a network was trained"))
    # The work directory holds the settings; they need not be said again.
    second = ddm("truth", "--workdir", workdir)
    assert second.exit_code == 0, second.output
    assert second.stdout == first.stdout
    assert "38 retrained networks: done before" in second.stderr
    _assert_fits(first.stdout)
    for text in ("leave-one-out", "LDS, keep 0.5", "38 networks of", "checksum", f"{workdir}"):
        assert text in first.stdout.replace("\n", "")


def test_inspect_says_what_a_store_holds_and_leaves_it(filled, copy, monkeypatch):
    monkeypatch.setattr(evaluate, "fill_truth", lambda *_: pytest.fail("computes"))
    full = ddm("truth", "--workdir", filled[0], "--inspect")
    _lose_rows(copy, 5)
    (copy / "config.json").unlink()  # it needs nothing but the store
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    part = ddm("truth", "--workdir", copy, "--inspect")
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    for result, done in ((full, 38), (part, 33)):
        assert result.exit_code == 0, result.output
        for name, count in (("declared", 38), ("done", done), ("being trained", 0)):
            assert re.search(rf"{name}\D* {count} ", result.stdout), name
        assert ("left on one process" in result.stdout) == (done < 38)
        assert "  truth.objective: loss" in result.stdout.splitlines()
        assert "  model.hidden: [8]" in result.stdout.splitlines()


def test_inspect_of_a_claimed_row_says_so(copy):
    """The lock of another process, as a process that trains holds it."""
    _lose_rows(copy, 2)
    code = (
        "import sys; from pathlib import Path; from ddm_jax import filling, store\n"
        "opened = store.inspect_store(Path(sys.argv[1]))\n"
        "with filling._lock_file(opened) as lock:\n"
        "    missing = [r for r in store.declared(opened) if not store.is_done(opened, r)]\n"
        "    print(filling._lock(lock, missing[0]), flush=True); sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(copy / "truth")],
        cwd=Path(pipeline.__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "True\n"
            result = ddm("truth", "--workdir", copy, "--inspect")
        finally:
            process.kill()
    assert re.search(r"done\D* 36 ", result.stdout)
    assert re.search(r"being trained by some process\D* 1 ", result.stdout)


def _enter(monkeypatch, name, score) -> None:
    """Add an estimator without settings."""
    estimator = Estimator(lambda *_: jnp.zeros(()), lambda state, query: score(len(query.x)))
    monkeypatch.setitem(CANDIDATES, name, Candidates(lambda *_: estimator, {}, {}))


def _random_scores(queries):
    return np.random.default_rng(0).normal(size=(10, queries))


def test_compare_prints_one_table(copy, monkeypatch):
    _enter(monkeypatch, "sound", _random_scores)
    result = ddm("compare", "--workdir", copy, "--estimators", "sound")
    assert result.exit_code == 0, result.output
    _assert_fits(result.stdout.split("\nscores:")[0])
    assert re.search(r"sound +leave-one-out +-?0\.\d{3} ", result.stdout)
    assert re.search(r"sound +LDS, keep 0\.5 +-?0\.\d{3} ", result.stdout)
    assert f"scores: {copy / 'compare.md'}, figure: {copy / 'compare.png'}" in result.stdout


def test_compare_with_an_estimator_that_fails_prints_the_others_and_ends_with_1(copy, monkeypatch):
    def fail(queries):
        raise RuntimeError("out of [bold] memory[/nothing]\nand more of it")

    _enter(monkeypatch, "broken", fail)
    _enter(monkeypatch, "sound", _random_scores)
    result = ddm("compare", "--workdir", copy, "--estimators", "broken,sound")
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert re.search(r"broken +FAILED", result.stdout)
    assert re.search(r"sound +leave-one-out +-?0\.\d{3} ", result.stdout)
    told = "RuntimeError: out of [bold] memory[/nothing]"  # no markup
    assert f"broken, FAILED: {told}" in result.stdout.splitlines()
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: 1 of 2 estimators failed: broken ({told})")
    assert "Traceback" not in result.output


def test_the_widest_table_fits_in_120_columns(tmp_path, monkeypatch):
    """The longest name and score, negative intervals, and queries without a correlation."""
    row = {
        "estimator": "retraining",
        "score": "leave-one-out",
        "value": -0.123,
        "over_queries": [-0.567, -0.123],
        "over_rows": [-0.567, -0.123],
        "undefined": 1234,
        "ceiling": float("nan"),
        "share_of_ceiling": 1.234,
        "offline_seconds": 123456.7,
        "online_seconds": 0.0001234,
        "settings": {"steps": 200, "rewind": 0.75},
        "candidates": 6,
    }
    rows = [row, row | {"score": "LDS, keep 0.25", "value": float("nan")}]
    monkeypatch.setattr(evaluate, "compare_estimators", lambda *_: {"rows": rows})
    result = ddm("compare", "--workdir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    table = result.stdout.split("\nscores:")[0]
    _assert_fits(table)
    for text in ("undefined", "-.567–-.123", "123%", "123457 s", "0.00012 s"):
        assert text in table
    # What does not fit stands below it.
    below = "steps 200, rewind 0.75 (best of 6 on the tuning part); 1234 constant queries left out"
    assert f"retraining, leave-one-out: {below}" in table.splitlines()


# mistakes


def _assert_one_line(result, message: str) -> None:
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nosuchdata"], "unknown data set 'nosuchdata'"),
        (["run", "mnist", "--data-dir", "nowhere"], "data_dir=nowhere is not a directory"),
        (["run", "--preset", "digit"], "unknown preset 'digit'"),
        (["run", "--set", "distill.item=3"], "did you mean distill.items?"),
        (["run", "--set", "distill.items"], "write stage.field=value"),
        (["run", "--set", "distill.items=two"], "items='two'; it must be of type int"),
        (["run", "--set", "train.batch_size=5000"], "train.batch_size=5000 exceeds"),
        (["run", "--set", "model.hidden=0"], "model.hidden=0"),
        (["run", "--set", "online.objective=f1"], "unknown objective 'f1'"),
        (["run", "--workdir", "file"], "file is a file"),
        (["run", "--workdir", "file/inside"], "file"),
        (["run", "--workdir", "full"], "full is not empty and holds no run"),
        (["train", "--workdir", "full"], "full holds no run; start one with `ddm run`"),
        (["distill", "--workdir", "gone"], "gone holds no run"),
        (["truth", "--set", "truth.seeds=1"], "truth.seeds=1; it must be at least 2"),
        (["truth", "--workdir", "file"], "file is a file"),
        (["truth", "--workdir", "gone", "--inspect"], "truth holds no truth store; `ddm truth`"),
        (["compare", "--estimators", "nope"], "unknown estimator 'nope'; choose from ddm,"),
        (["compare", "--estimators", ","], "no estimators are named; choose from ddm,"),
        (["compare", "--estimators", "ddm,ddm"], "estimator 'ddm' is named twice"),
        (["compare", "--set", "truth.objective=accuracy"], "truth.objective=accuracy has no"),
        (["settings", "--preset", "digit"], "unknown preset 'digit'"),
        (["settings", "--workdir", "gone"], "config.json cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("x")
    _assert_one_line(ddm(*arguments), message)
    assert {p.name for p in tmp_path.rglob("*")} == {"file", "full", "mine.txt"}


def test_a_stage_refuses_settings_of_an_earlier_one(finished):  # noqa: F811
    result = ddm("distill", "--workdir", finished, "--set", "data.train_size=99")
    _assert_one_line(result, "data.train_size 120 -> 99: that belongs to a stage before this one")


def test_run_refuses_other_settings_in_the_same_place(finished):  # noqa: F811
    result = ddm("run", "--workdir", finished, *SET_TINY, "--set", "distill.items=2")
    _assert_one_line(result, "distill.items 1 -> 2")


def test_a_chunk_below_1_is_refused_and_what_is_done_stays(copy):
    _lose_rows(copy, 2)
    before = {path: path.stat().st_mtime_ns for path in (copy / "truth" / "rows").iterdir()}
    for command in ("truth", "compare"):
        result = ddm(command, "--workdir", copy, "--chunk", 0)
        assert result.exit_code == 1, result.output
        assert result.stderr.splitlines()[-1] == "error: chunk=0; it must be at least 1"
        assert result.stdout == ""
    after = {path: path.stat().st_mtime_ns for path in (copy / "truth" / "rows").iterdir()}
    assert after == before


def test_truth_refuses_other_data_in_the_same_place(copy):
    result = ddm("truth", "--workdir", copy, "--set", "data.train_size=100")
    _assert_one_line(result, "data.train_size 120 -> 100")


def test_other_errors_keep_their_traceback(monkeypatch):
    def run(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "run", run)
    assert isinstance(ddm("run").exception, ZeroDivisionError)


# signals


def test_an_interrupt_says_how_to_go_on(monkeypatch):
    def run(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", run)
    result = ddm("run")
    assert result.exit_code == 130
    assert "the same command picks up where it was" in result.stderr
    assert "Traceback" not in result.output


def _wait_for(condition, process, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM ends a process at once on Windows")
def test_sigterm_leaves_a_run_that_goes_on(tmp_path, compile_once):  # noqa: F811
    workdir, partial = tmp_path / "run", tmp_path / "run" / "synset.partial"
    # A partial result every three seconds shows from outside that the loop is running.
    code = "from ddm_jax import cli, workdir; workdir.SAVE_SECONDS = 3; cli.main()"
    settings = [*SET_TINY, "--set", "distill.steps=1000000"]
    command = [sys.executable, "-c", code, "run", "--workdir", workdir, *settings]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(compile_once),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    positions = []
    for _ in range(2):
        with subprocess.Popen(
            [str(part) for part in command],
            cwd=Path(pipeline.__file__).parents[1],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                before = positions[-1] if positions else 0
                _wait_for(
                    lambda before=before: (
                        checkpoint.exists(partial)
                        and checkpoint.metadata(partial)["position"] > before
                    ),
                    process,
                )
                seen = checkpoint.metadata(partial)["position"]
                time.sleep(0.5)
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 130, errors
        assert errors.rstrip().endswith("interrupted; the same command picks up where it was")
        assert "Traceback" not in errors
        if positions:
            assert f"picking up at {positions[-1]} of 1000000" in errors
            assert "training the target network: done before" in errors
        positions.append(checkpoint.metadata(partial)["position"])
        assert positions[-1] > seen, "what was done since the last save is kept"
    assert 0 < positions[0] < positions[1] < 1000000
    assert checkpoint.exists(workdir / "groups")
    assert not checkpoint.exists(workdir / "synset")


def test_help_answers_without_jax():
    code = "import sys, ddm_jax.cli; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


PREPARED = """
import jax
from ddm_jax import terminal
terminal.prepare_jax()
def slow_to_compile(x):
    for _ in range(100):
        x = jax.numpy.sort(jax.numpy.sin(x @ x), 0)
    return x
jax.jit(slow_to_compile)(jax.numpy.eye(9))
print(jax.local_device_count(), jax.config.jax_compilation_cache_dir)
"""


def prepared(**environment):
    names = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR")
    cleared = {name: value for name, value in os.environ.items() if name not in names}
    told = subprocess.run(
        [sys.executable, "-c", PREPARED],
        env=cleared | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.split()


def test_the_command_uses_every_core_and_keeps_compiled_programs(tmp_path):
    devices, folder = prepared(XDG_CACHE_HOME=str(tmp_path), JAX_PLATFORMS="cpu")
    assert int(devices) == min(len(os.sched_getaffinity(0)), 8)
    assert folder == str(tmp_path / "ddm_jax" / platform.node())
    assert any((tmp_path / "ddm_jax").rglob("*-cache"))


def test_what_the_user_set_stands(tmp_path):
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"), "JAX_PLATFORMS": "cpu"}
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    assert prepared(**own, **flags) == ["3", str(tmp_path / "own")]
    assert prepared(**own, JAX_NUM_CPU_DEVICES="5")[0] == "5"
