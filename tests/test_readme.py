"""The README's code blocks run, in order, and its tables are those of the results."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_blocks_run_one_after_the_other(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # one of them keeps a truth
    scope = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)  # the document is ours
    assert scope["attribution"].scores.shape == (50, 797)
    printed = capsys.readouterr().out
    assert "(50, 797)" in printed
    assert "(20, 797)" in printed
    assert "(10, 200)" in printed
    assert re.search(r"\nLDS 0\.\d\d, 95 % over subsets", printed)
    assert re.search(r"\nLDS, keep 0\.5: 0\.\d\d of 0\.\d\d, \{'width'", printed)


def test_the_commands_exist():
    from typer.testing import CliRunner

    from ddm_jax.cli import app

    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert "python -m pip install . && ddm run" in commands
    assert "python -m pip install '.[test]' && python -m pytest -n auto --dist loadfile" in commands
    known = CliRunner().invoke(app, ["--help"]).output
    for line in commands:
        for name in re.findall(r"\bddm (\w+)", line):
            assert name in known


def test_every_setting_and_preset_that_the_readme_names_exists():
    from ddm_jax import config

    for block in blocks("bash"):
        for assignment in re.findall(r"--set (\S+)", block):
            config.override(config.Config(), [assignment])
        for name in re.findall(r"--preset (\S+)", block):
            config.preset(name)


def test_the_stage_table_names_every_file():
    table = README.split("## The stages")[1].split("## Results")[0]
    for path in (ROOT / "ddm_jax").iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert f"`{path.name}`" in table
    assert "`estimators/`" in table


def test_the_tables_are_rendered_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    render_tables = pytest.importorskip("render_tables")
    for page in (README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))):
        assert render_tables.render(page) == page
        assert "not measured yet" not in page
    sys.modules.pop("render_tables")


def test_linked_files_are_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
