"""What the benchmarks share: arguments, averages, timing, writing, and the renderer's cells."""

import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_finds_what_it_imports(name, load):
    try:
        load(name)
    except SystemExit as told:
        assert importlib.util.find_spec("torch") is None
        pytest.skip(str(told))


@pytest.fixture
def asked(load, monkeypatch):
    def ask(*words, **how):
        monkeypatch.setattr(sys, "argv", ["benchmarks/some_script.py", *words])
        harness = load("harness")
        return harness, harness.arguments("What it measures.", quick="ten points", **how)

    return ask


def test_every_script_has_the_same_arguments(asked):
    harness, options = asked(data=True, kills={"type": int, "default": 20})
    assert (options.name, options.quick, options.kills) == ("some_script", False, 20)
    assert options.partitions == [10, 11, 12]
    assert options.work == harness.WORK
    assert options.changes == []


def test_a_quick_form_has_one_partition_and_a_folder_that_goes(asked):
    harness, options = asked("--quick", "--partitions", "7", "8", "--data-dir", "/some/place")
    assert options.partitions == [7]
    assert options.work.is_dir()
    assert harness.WORK not in (options.work, *options.work.parents)
    assert options.changes == ["data.data_dir=/some/place"]


def test_what_is_written_says_how_it_was_measured(asked, tmp_path):
    place = tmp_path / "there" / "found.json"
    harness, options = asked("--quick", "--data-dir", "/home/me", "--output", str(place))
    harness.write(options, {"rows": [{"value": float("nan"), "pair": (1.5, np.float32(2))}]})
    found = json.loads(place.read_text())
    command = "python benchmarks/some_script.py --quick --data-dir DIR --output FILE"
    assert found["command"] == command
    assert found["partitions"] == [10]
    assert found["rows"] == [{"value": None, "pair": [1.5, 2.0]}]
    assert found["versions"]["jax"]
    assert found["seconds"] > 0
    assert found["peak_gib"] > 0.01
    assert found["cores"] >= 1
    assert "/home/me" not in place.read_text()


def test_numbers_are_averaged_over_partitions(load):
    rows = [
        [{"estimator": "a", "value": 1.0, "ends": (0, 1)}],
        [{"estimator": "a", "value": 4.0, "ends": (2, 3)}],
    ]
    (row,) = load("harness").average(rows)
    assert row == {"estimator": "a", "value": 2.5, "value_range": [1.0, 4.0]}


def test_a_second_call_is_timed_unless_the_first_is_long(load):
    harness, calls = load("harness"), []

    def work():
        calls.append(time.sleep(0.02 if calls else 0.1))
        return len(calls)

    result, seconds = harness.timed(work)
    assert (result, len(calls)) == (1, 2)
    assert 0.02 <= seconds < 0.1
    calls.clear()
    result, seconds = harness.timed(work, long=0.05)
    assert (result, len(calls)) == (1, 1)
    assert seconds >= 0.1


def test_rounds_take_turns(load):
    order = []
    runs = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = load("harness").interleaved(runs, 2)
    assert order == ["a", "b", "a", "b"]
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}


def test_a_process_of_its_own_gives_its_last_line_or_its_error(load, monkeypatch, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, json, time\n"
        "print('noise')\n"
        "if sys.argv[1] == 'slow': time.sleep(60)\n"
        "if sys.argv[1] == 'bad': sys.exit('it did not work')\n"
        "print(json.dumps({'said': sys.argv[1]}))\n"
    )
    monkeypatch.setattr(sys, "argv", [str(script)])
    harness = load("harness")
    assert harness.apart(["word"]) == {"said": "word"}
    with pytest.raises(RuntimeError, match="it did not work"):
        harness.apart(["bad"])
    with pytest.raises(RuntimeError, match="not done in 0 minutes"):
        harness.apart(["slow"], minutes=0.01)


MADE = {"versions": {"jax": "1.2", "device": "cpu"}, "cores": 1, "commit": "abc", "command": "run"}
MEASURED = "Measured on 1 cpu core with JAX 1.2, commit abc: `run`."


def test_a_table_is_columns_over_rows_with_a_note(load):
    render = load("render")
    table = render.Table(
        {
            "": render.text("name"),
            "LDS": render.ranged("lds"),
            "deeper": render.score("found.value"),
            "cost": render.share("part"),
        },
        note="{told}K={settings[groups]}. ",
    )
    rows = [
        {"name": "a", "lds": 0.5, "lds_range": [0.4, 0.61], "found": {"value": 0.25}, "part": 0.12},
        {"name": "b", "lds": 0.25, "part": 12.0},
    ]
    result = MADE | {"rows": rows, "partitions": [3, 4], "settings": {"groups": 5}}
    assert render.table(table, result) == (
        "|  | LDS | deeper | cost |\n"
        "| --- | --- | --- | --- |\n"
        "| a | 0.500 (0.40–0.61) | 0.250 | 12 % |\n"
        "| b | 0.250 |  | 1,200 % |\n\n"
        f"Partitions 3, 4. K=5. {MEASURED}"
    )


def test_withheld_rows_are_left_out_and_named(load, monkeypatch, tmp_path):
    render = load("render")
    reason = "measured before a fault was mended"
    asked = (
        render.Withheld(("some", "inner", "rows"), {"estimator": "a"}, reason),
        render.Withheld(("some", "inner", "rows"), {"estimator": "b", "steps": 1}),
        render.Withheld(("other", "rows"), {"estimator": "c"}, reason),
    )
    monkeypatch.setattr(render, "WITHHELD", asked)
    names = [("a", 1), ("b", 1), ("b", 2), ("c", 1)]
    rows = [{"estimator": name, "steps": steps} for name, steps in names]
    path = tmp_path / "some.json"
    path.write_text(json.dumps(MADE | {"inner": {"rows": rows}}))
    found = render.load(path)
    shown = render.Table(
        {"": render.text("estimator"), "steps": render.text("steps")},
        lambda result: result["inner"]["rows"],
        lists=("inner",),
    )
    assert render.table(shown, found) == (
        f"|  | steps |\n| --- | --- |\n| b | 2 |\n| c | 1 |\n\n{MEASURED} Left out: a ({reason})."
    )
    assert "Left out" not in render.table(shown._replace(lists=("another",)), found)


def test_rows_measured_again_take_their_place(load, monkeypatch, tmp_path):
    render = load("render")
    asked = (render.Withheld(("some", "rows"), {"estimator": "a"}, "with a fault", "again"),)
    monkeypatch.setattr(render, "WITHHELD", asked)
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    rows = [{"estimator": "a", "value": 0.25}, {"estimator": "b", "value": 0.5}]
    (tmp_path / "some.json").write_text(json.dumps(MADE | {"rows": rows}))
    others = [{"estimator": "a", "value": 0.75}, {"estimator": "b", "value": 1.0}]
    (tmp_path / "again.json").write_text(json.dumps(MADE | {"rows": others, "command": "anew"}))
    columns = {"": render.text("estimator"), "value": render.score("value")}
    shown = render.table(
        render.Table(columns, lists=("rows",)), render.load(tmp_path / "some.json")
    )
    assert shown == (
        "|  | value |\n| --- | --- |\n| b | 0.500 |\n| a | 0.750 |\n\n"
        f"{MEASURED} a, again (before, with a fault): {MEASURED.replace('`run`', '`anew`')}"
    )


def test_blocks_of_a_page_are_written_and_the_rest_is_left(load, monkeypatch):
    render = load("render")
    monkeypatch.setattr(render, "block", lambda name: f"what {name} says")
    page = "before\n<!-- table: one -->\nold\n<!-- end -->\nbetween\n"
    page += "<!-- table: two.view -->\n<!-- end -->"
    assert render.render(page) == (
        "before\n<!-- table: one -->\nwhat one says\n<!-- end -->\nbetween\n"
        "<!-- table: two.view -->\nwhat two.view says\n<!-- end -->"
    )


def test_every_block_of_a_page_is_declared(load):
    import re

    render = load("render")
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {n for page in pages for n in re.findall(r"<!-- table: (\S+) -->", page.read_text())}
    assert named == set(render.TABLES)


def test_the_updates_of_the_results_are_fixed_in_one_place(asked, load, tmp_path):
    _, options = asked("--quick", "--data-dir", "/some/place", data=True)
    protocol = load("protocol")
    online = protocol.settings_of(options, "digits", 3).online
    assert (online.steps, online.batch, online.momentum, online.rewind) == (50, 250, 0.9, 0.75)
    online = protocol.settings_of(options, "mnist", 3, "cluster.num_groups=20").online
    assert (online.steps, online.batch, online.momentum, online.rewind) == (100, 100, 0.95, 0.0)
    np.save(tmp_path / "ids.npy", np.arange(12) % 4)
    cut = ("cluster.method=file", f"cluster.file={tmp_path / 'ids.npy'}")
    chosen = protocol.settings_of(options, "digits", 3, *cut, "online.rewind=0.5")
    assert (chosen.online.batch, chosen.online.rewind) == (20, 0.5)  # what a script says stays
    open_again = protocol.at_cost(chosen).online
    assert (open_again.steps, open_again.batch, open_again.rewind) == (None, None, 0.5)


def test_a_row_says_what_a_step_took(load):
    render = load("render")
    row = {"estimator": "DDM", "items": 20, "steps": 40}
    assert render.group_name(row) == "DDM, M=20, 40 steps"
    assert render.group_name(row | {"step_items": 5}) == "DDM, M=20, 5 a step, 40 steps"
    batches = row | {"batch": 250, "groups": 50}
    assert render.group_name(batches) == "DDM, M=20, batches of 250, 40 steps"
    assert render.group_name(batches | {"batch": 1000}) == "DDM, M=20, 40 steps"
