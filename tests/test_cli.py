"""The `ddm` command: one line for a mistake, and a run that a signal cannot spoil."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from command import ddm
from tiny_run import TINY, compile_once, finished, tiny_config  # noqa: F401

from ddm_jax import checkpoints, terminal
from ddm_jax.attribution import Attribution
from ddm_jax.judge import store
from ddm_jax.judge.candidates import CANDIDATES, Candidates
from ddm_jax.run import evaluate, report, settings_file, stages
from ddm_jax.run import settings as config
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


@pytest.fixture
def planned(monkeypatch):
    """Keep what `ddm run` would run."""
    calls = []

    def run(chosen, workdir, progress):
        calls.append((chosen, workdir))
        return {"agreement": [], "sentences": [], "updates": {"sentences": []}}

    monkeypatch.setattr(stages, "run", run)
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
    lines = [n.split("  ") for n in result.output.splitlines() if re.match(r"[a-z_.]+=", n)]
    assert config.override(config.preset("mnist"), [n[0] for n in lines]) == config.preset("digits")


def test_settings_says_what_each_may_be():
    lines = ddm("settings").stdout.splitlines()
    assert (
        "distill.items=10                      a whole number, at least 1, at most 100,000" in lines
    )
    (start,) = (line for line in lines if line.startswith("distill.start="))
    assert start.endswith("  pursuit, random, noise")
    assert max(map(len, lines)) <= 120


def test_settings_of_a_preset_and_of_a_run(finished):  # noqa: F811
    assert re.search("^data.name=mnist ", ddm("settings", "--preset", "mnist").stdout, re.MULTILINE)
    lines = ddm("settings", "--workdir", finished).stdout.splitlines()
    chosen = [line.split("  ")[0] for line in lines]
    assert config.override(config.Config(), chosen) == tiny_config()


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
        raise OSError("enough")

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


@pytest.mark.slow
def test_run_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "png", lambda figure: b"")  # drawing takes most of the seconds
    result = ddm("run", "digits", "--workdir", tmp_path / "run", *SET_TINY)
    assert result.exit_code == 0, result.output
    assert "report.html" in result.stdout
    assert (tmp_path / "run" / "report.html").is_file()
    assert settings_file.load(tmp_path / "run" / "config.json") == tiny_config()
    assert Attribution.load(tmp_path / "run" / "attribution.npz").scores.shape == (10, 40)
    for text in (
        "Agreement with exact retraining",
        "one group left out",
        "The network is right on",
    ):
        assert text in result.stdout
    for stage in ("training the target network", "distilling the synset", "report"):
        assert stage in result.stderr


@pytest.mark.slow
def test_a_stage_again_with_another_setting_and_the_run_after_it(finished, tmp_path):  # noqa: F811
    workdir = shutil.copytree(finished, tmp_path / "copy")
    before = Attribution.load(workdir / "attribution.npz").scores
    result = ddm("tune", "--workdir", workdir, "--set", "online.steps=3")
    assert result.exit_code == 0, result.output
    result = ddm("attribute", "--workdir", workdir)
    assert result.exit_code == 0, result.output
    assert f"`ddm run --workdir {workdir}` brings the later stages up to date" in result.stdout
    assert "distilling the synset: done before" in result.stderr
    after = Attribution.load(workdir / "attribution.npz").scores
    assert after.shape == before.shape
    assert not np.array_equal(after, before)
    assert settings_file.load(workdir / "config.json") == tiny_config("online.steps=3")
    old = checkpoints.metadata(workdir / "check" / "predicted")["made"]
    assert ddm("check", "--workdir", workdir).exit_code == 0
    assert checkpoints.metadata(workdir / "check" / "predicted")["made"] != old


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


@pytest.mark.slow
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
        "import sys; from pathlib import Path; from ddm_jax.judge import filling, store\n"
        "opened = store.inspect_store(Path(sys.argv[1]))\n"
        "with filling._Locks(opened) as locks:\n"
        "    missing = [r for r in store.declared(opened) if not store.is_done(opened, r)]\n"
        "    print(locks.take(missing[0]), flush=True); sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(copy / "truth")],
        cwd=Path(__file__).parents[1],
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


@pytest.mark.slow
def test_compare_prints_one_table(copy, monkeypatch):
    _enter(monkeypatch, "sound", _random_scores)
    result = ddm("compare", "--workdir", copy, "--estimators", "sound")
    assert result.exit_code == 0, result.output
    _assert_fits(result.stdout.split("\nscores:")[0])
    assert re.search(r"sound +leave-one-out +-?0\.\d{3} ", result.stdout)
    assert re.search(r"sound +LDS, keep 0\.5 +-?0\.\d{3} ", result.stdout)
    assert f"scores: {copy / 'compare.md'}, figure: {copy / 'compare.png'}" in result.stdout


@pytest.mark.slow
def test_compare_with_an_estimator_that_fails_prints_the_others_and_ends_with_1(copy, monkeypatch):
    def fail(queries):
        raise RuntimeError("out of [bold] memory[/nothing]\nand more of it")

    _enter(monkeypatch, "broken", fail)
    _enter(monkeypatch, "sound", _random_scores)
    result = ddm("compare", "--workdir", copy, "--estimators", "broken,sound")
    assert result.exit_code == 1, result.output
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
        (["run", "--set", "distill.items"], "write section.field=value"),
        (["run", "--set", "distill.items=two"], "distill.items='two'; it must be a valid integer"),
        (["run", "--set", "train.batch_size=5000"], "train.batch_size=5000 exceeds"),
        (["run", "--set", "model.hidden=0"], "model.hidden.0=0; it must be at least 1"),
        (["run", "--set", "online.objective=f1"], "unknown objective 'f1'"),
        (["run", "--workdir", "file"], "file is a file"),
        (["run", "--workdir", "file/inside"], "file"),
        (["run", "--workdir", "full"], "full is not empty and holds no run"),
        (
            ["train", "--workdir", "full"],
            "full holds no run; start one with `ddm run --workdir full`",
        ),
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
    result = ddm("attribute", "--workdir", finished, "--set", "online.steps=3")
    _assert_one_line(result, "online.steps 5 -> 3: that belongs to a stage before this one")


def test_run_refuses_other_settings_in_the_same_place(finished):  # noqa: F811
    result = ddm("run", "--workdir", finished, *SET_TINY, "--set", "distill.items=2")
    _assert_one_line(result, "distill.items 1 -> 2")


def test_a_chunk_below_1_is_refused_and_what_is_done_stays(copy):
    _lose_rows(copy, 2)
    before = {path: path.stat().st_mtime_ns for path in (copy / "truth" / "rows").iterdir()}
    for command in ("truth", "compare"):
        result = ddm(command, "--workdir", copy, "--chunk", 0)
        assert result.exit_code == 1, result.output
        assert (
            result.stderr.splitlines()[-1]
            == "error: chunk=0; it must be a whole number, at least 1"
        )
        assert result.stdout == ""
    after = {path: path.stat().st_mtime_ns for path in (copy / "truth" / "rows").iterdir()}
    assert after == before


def test_truth_refuses_other_data_in_the_same_place(copy):
    result = ddm("truth", "--workdir", copy, "--set", "data.train_size=100")
    _assert_one_line(result, "data.train_size 120 -> 100")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runn"], "No such command 'runn'"),
        (["run", "--set"], "Option '--set' requires an argument"),
        (["run", "--items", "2"], "No such option: --items"),
        (["compare", "--chunk", "x"], "Invalid value for '--chunk'"),
        (["points"], "Missing option '--workdir'"),
    ],
)
def test_arguments_that_do_not_parse_are_one_line(arguments, message):
    result = ddm(*arguments)
    _assert_one_line(result, message)
    assert "--help`" in result.stderr


# errors: one way out


def _fails(error: BaseException):
    def run(*_):
        raise error

    return run


@pytest.mark.parametrize(
    "error",
    [
        EOFError(),
        OverflowError("int too big"),
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED\nwhile allocating"),
        ZeroDivisionError("division"),
        KeyError("x"),
        RecursionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_unexpected_is_one_line_that_names_a_log_file(monkeypatch, tmp_path, error):
    """They were tracebacks, and EOFError "Aborted."."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(stages, "run", _fails(error))
    result = ddm("run", "--workdir", tmp_path / "none")
    assert result.exit_code == 70
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    (log,) = tmp_path.iterdir()
    first = str(error).split("\n")[0]
    told = f"{type(error).__name__}: {first}" if first else type(error).__name__
    assert line == f"error: unexpected {told}; the traceback is in {log}"
    text = log.read_text()
    assert text.splitlines()[-1].startswith("while" if "\n" in str(error) else type(error).__name__)
    assert "Traceback" in text


def test_the_log_of_a_run_lies_in_its_folder(monkeypatch, finished, tmp_path):  # noqa: F811
    workdir = shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.setattr(stages, "run", _fails(TypeError("odd")))
    result = ddm("run", "--workdir", workdir)
    (log,) = workdir.glob("ddm-error-*.log")
    assert result.stderr.endswith(f"; the traceback is in {log}\n")


def test_a_log_that_cannot_be_written_hides_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr(stages, "run", _fails(TypeError("odd")))
    result = ddm("run", "--workdir", tmp_path / "none")
    assert result.exit_code == 70
    assert "unexpected TypeError: odd; the traceback is in no file" in result.stderr


def test_a_value_error_of_a_library_is_unexpected_and_ours_is_not(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(stages, "run", lambda *_: jnp.reshape(jnp.zeros(3), (2, 2)))
    assert ddm("run", "--workdir", tmp_path / "none").exit_code == 70
    monkeypatch.setattr(stages, "run", lambda *_: checkpoints.check_folder(Path("a\\b")))
    _assert_one_line(ddm("run", "--workdir", tmp_path / "none"), "has a backslash in its path")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError("no")])
def test_what_the_system_refuses_is_one_line(monkeypatch, tmp_path, error):
    monkeypatch.setattr(stages, "run", _fails(error))
    _assert_one_line(ddm("run", "--workdir", tmp_path / "none"), str(error))


def test_a_message_of_many_lines_is_printed_on_one(monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "run", _fails(OSError("one\ntwo\x1b[31m\udcff")))
    result = ddm("run", "--workdir", tmp_path / "none")
    assert result.stderr == "error: one two [31m \n"


def test_markup_in_a_name_is_text(planned, tmp_path, monkeypatch):
    monkeypatch.setattr(
        stages,
        "run",
        lambda *_: {
            "agreement": [
                dict.fromkeys(report.AGREEMENT, 0.5)
                | {"what": "[red]x", "ddm_interval": [None] * 2}
            ],
            "sentences": ["[/red] it"],
            "updates": {"sentences": ["[/red] too"]},
        },
    )
    workdir = tmp_path / "w[/red]x"
    result = ddm("run", "--workdir", workdir)
    assert result.exit_code == 0, result.stderr
    assert f"report: {workdir}/report.html" in result.stdout
    assert "[red]x" in result.stdout
    assert "[/red] it" in result.stdout


def test_progress_of_a_name_with_markup_is_text(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich then draws its bars
    with terminal.progress() as progress:
        progress.track("[/red]what", 2)(1, "[/blue]note")
        progress.say("[/green]said")
    assert "[/green]said" in capsys.readouterr().err


def command(*arguments, code: str = "", **environment) -> subprocess.CompletedProcess:
    """The command in a process of its own; `code` runs before it."""
    start = ["-c", f"{code}\nfrom ddm_jax.__main__ import main\nraise SystemExit(main())"]
    return subprocess.run(
        [sys.executable, *(start if code else ["-m", "ddm_jax"]), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.slow
def test_a_platform_that_there_is_not_is_one_line(tmp_path):
    result = command("run", "--workdir", tmp_path / "run", JAX_PLATFORMS="bogus")
    assert result.returncode == 1
    assert re.fullmatch(
        r"error: JAX finds no device with JAX_PLATFORMS='bogus' .*\n", result.stderr
    )


def test_an_ascii_terminal_gets_what_it_can_show(tmp_path):
    """The dash of an interval ended in a traceback."""
    code = (
        "from ddm_jax import cli, terminal\n"
        "cli.call = lambda _: terminal._print_table('', ['interval'], [['.1\\u2013.2']])"
    )
    result = command(code=code, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert result.returncode == 0, result.stderr
    assert " .1?.2 " in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no such pipe")
def test_a_reader_that_has_enough_ends_the_command_in_silence():
    line = f"{sys.executable} -m ddm_jax settings | head -1; echo ${{PIPESTATUS[0]}}"
    told = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    assert told.stdout.splitlines()[1] in ("0", "141")  # 0: it was faster than the reader


# signals


def test_an_interrupt_says_how_to_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "run", _fails(KeyboardInterrupt()))
    result = ddm("run", "--workdir", tmp_path / "none")
    assert result.exit_code == 130
    assert result.stderr == "interrupted; the same command picks up where it was\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_load_is_no_traceback(number):
    """Whatever is being imported: also a module that makes another error of it."""
    code = (
        "import builtins, os; load = builtins.__import__\n"
        "def stop(name, *rest, **more):\n"
        "    if name == 'typer':\n"
        f"        try: os.kill(os.getpid(), {int(number)})\n"
        "        except KeyboardInterrupt: raise ImportError('half of a module')\n"
        "    return load(name, *rest, **more)\n"
        "builtins.__import__ = stop"
    )
    result = command("settings", code=code)
    assert result.returncode == 128 + number
    assert result.stderr == "interrupted; the same command picks up where it was\n"


def _wait_for(condition, process, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGTERM ends a process at once on Windows")
def test_sigterm_leaves_a_run_that_goes_on(tmp_path, compile_once):  # noqa: F811
    workdir, partial = tmp_path / "run", tmp_path / "run" / "synset.partial"
    # A partial result every three seconds shows from outside that the loop is running.
    code = (
        "from ddm_jax.__main__ import main; from ddm_jax.run import workdir; "
        "workdir.SAVE_SECONDS = 3; raise SystemExit(main())"
    )
    settings = [*SET_TINY, "--set", "distill.steps=1000000"]
    command = [sys.executable, "-c", code, "run", "--workdir", workdir, *settings]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(compile_once),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",  # JAX is there before `main`, and would fill the pipe
    }
    positions = []
    for _ in range(2):
        with subprocess.Popen(
            [str(part) for part in command],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                before = positions[-1] if positions else 0
                _wait_for(
                    lambda before=before: (
                        checkpoints.exists(partial)
                        and checkpoints.metadata(partial)["position"] > before
                    ),
                    process,
                )
                seen = checkpoints.metadata(partial)["position"]
                time.sleep(0.5)
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 128 + signal.SIGTERM, errors
        assert errors.rstrip().endswith("interrupted; the same command picks up where it was")
        assert "Traceback" not in errors
        if positions:
            assert f"picking up at {positions[-1]} of 1000000" in errors
            assert "training the target network: done before" in errors
        positions.append(checkpoints.metadata(partial)["position"])
        assert positions[-1] > seen, "what was done since the last save is kept"
    assert 0 < positions[0] < positions[1] < 1000000
    assert checkpoints.exists(workdir / "groups")
    assert not checkpoints.exists(workdir / "synset")


def test_help_answers_at_once_without_what_computes():
    heavy = {"jax", "numpy", "flax", "pydantic", "matplotlib", "orbax"}
    code = (
        "import sys, time; begin = time.process_time()\n"
        "from ddm_jax.__main__ import main\n"
        f"code, loaded = main(['--help']), sorted({heavy} & set(sys.modules))\n"
        "print(code, loaded, time.process_time() - begin)\n"
        "import os; assert os.environ['TF_CPP_MIN_LOG_LEVEL'] == '3'"
    )
    clean = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    told = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    code, loaded, seconds = told.stdout.splitlines()[-1].split(" ")
    assert (code, loaded) == ("0", "[]")
    assert float(seconds) < 1  # .15 on a quiet core


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


@pytest.mark.slow
def test_what_the_user_set_stands(tmp_path):
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"), "JAX_PLATFORMS": "cpu"}
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    assert prepared(**own, **flags) == ["3", str(tmp_path / "own")]
    assert prepared(**own, JAX_NUM_CPU_DEVICES="5")[0] == "5"
