"""The code of the pages runs, their tables are those of the results, and their links lead on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {path.name: path.read_text() for path in PAGES}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT[page], flags=re.DOTALL)


def run_blocks(page, scope):
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), scope)  # the documents are ours


@pytest.fixture(scope="module")
def scope(tmp_path_factory):
    """What the README's blocks leave behind, and what they print."""
    import contextlib
    import io

    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("pages"))  # one of them keeps a truth
    found = {}
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            run_blocks("README.md", found)
        yield found | {"printed": printed.getvalue()}
    finally:
        os.chdir(before)


def test_the_readme_is_a_page():
    assert len(TEXT["README.md"].splitlines()) <= 250
    assert len(blocks("README.md", "python")) == 4


@pytest.mark.slow
def test_the_readme_runs(scope):
    assert scope["attribution"].scores.shape == (50, 797)
    printed = scope["printed"]
    assert "(50,) (50,)" in printed
    assert "(50, 797)" in printed
    assert "(10, 200)" in printed
    assert "(3, 797)" in printed


@pytest.mark.slow
def test_the_questions_run(scope, capsys):
    run_blocks("answers.md", scope)
    printed = capsys.readouterr().out
    assert "(1000, 797)" in printed
    assert "(1, 797)" in printed
    assert "(50, 1)" in printed


@pytest.mark.slow
def test_the_estimators_run_and_are_judged(scope, capsys):
    run_blocks("estimators.md", scope)
    printed = capsys.readouterr().out
    assert "(1000, 797)" in printed
    assert re.search(r"\nLDS 0\.\d\d, 95 % over subsets", printed)
    assert re.search(r"\nLDS, keep 0\.5: 0\.\d\d of 0\.\d\d, \{'width'", printed)


# Many small programs, each run once: compiled fast, not well. XLA reads its flags at the start.
FAST = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
}
# Each recipe goes on from the common block, the first, and from no other.
RECIPES = """
import json, sys
common, *recipes = json.load(sys.stdin)
before = {}
exec(compile(common, "the common part", "exec"), before)
for number, recipe in enumerate(recipes):
    print(f"recipe {number}")
    exec(compile(recipe, f"recipe {number}", "exec"), dict(before))
"""


# The blocks go on from each other.
PAGE = """
import json, sys
scope = {}
for number, block in enumerate(json.load(sys.stdin)):
    exec(compile(block, f"block {number}", "exec"), scope)
"""


def run_elsewhere(page, program, folder):
    """What the blocks of a page print, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program],
        input=json.dumps(page),
        cwd=folder,
        env=os.environ | FAST | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.slow
def test_the_study_runs_and_answers(tmp_path):
    printed = run_elsewhere(blocks("study.md", "python"), PAGE, tmp_path).stdout
    assert "Study(digits: 300 training points, 100 queries, margin; runs/study)" in printed
    one_by_one = re.search(r"all pairs, Pearson; ddm (\d\.\d\d);", printed)
    assert float(one_by_one.group(1)) > 0.8
    assert printed.count("Study(your data: 160 training points, 40 queries, margin;") == 4
    assert "\n('Bonn', 'Lima', 'Oslo', 'Rome')\n" in printed
    assert "\nTrue\n" in printed
    assert "(1, 100) (1, 100)" in printed
    assert (tmp_path / "runs" / "study" / "report.html").exists()


@pytest.mark.slow
def test_the_page_of_language_models_runs(tmp_path):
    printed = run_elsewhere(blocks("language.md", "python"), PAGE, tmp_path).stdout
    assert "6 documents in 3 groups: 4,501 tokens" in printed
    assert "['sea' 'sea' 'sea' 'sea' 'sea' 'sea' 'sea' 'sea']" in printed
    own = re.search(r"one group left out \(3 groups\), per query, Spearman (\d\.\d+)", printed)
    assert float(own.group(1)) > 0.6
    assert "\n(3, 4)\n" in printed


@pytest.mark.slow
def test_the_recipes_run_and_agree_with_retraining(tmp_path):
    page = blocks("your-model.md", "python")
    done = run_elsewhere(page, RECIPES, tmp_path)
    told = re.split(r"^recipe \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    assert len(told) == len(page) - 1
    for recipe, lines in zip(page[1:], told, strict=True):
        found = re.findall(
            r"^.+: LDS (-?\d\.\d\d) \[.+\]; one retraining (-?\d\.\d\d), perfect \d\.\d\d$",
            lines,
            flags=re.MULTILINE,
        )
        assert found, recipe
        assert len(found) == len(lines.splitlines()), lines
        for value, one_retraining in found:
            assert float(value) > float(one_retraining) - 0.2, lines


def test_every_recipe_is_in_the_table_of_contents():
    text = TEXT["your-model.md"]
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    table = re.findall(r"^\| .+ \| \[(.+)\]\(#", text, re.MULTILINE)
    assert heads[0] == "The common part"
    assert [head.lower() for head in heads[1:]] == [row.lower() for row in table]


@pytest.mark.parametrize("page", TEXT)
def test_python_blocks_are_python(page):
    for block in blocks(page, "python"):
        compile(block, page, "exec")


def test_the_commands_exist():
    from typer.testing import CliRunner

    from ddm_jax.cli import app

    commands = [
        line for page in TEXT for block in blocks(page, "bash") for line in block.split("\n")
    ]
    assert "python -m pip install . && ddm run" in commands
    tests = 'python -m pytest -n auto --dist loadfile -m "not slow"'
    assert f"python -m pip install '.[test]' && {tests}" in commands
    known = CliRunner().invoke(app, ["--help"]).output
    for line in commands:
        for name in re.findall(r"\bddm ([a-z-]+)", line):
            assert name in known


def test_every_setting_and_preset_that_a_page_names_exists():
    from ddm_jax.run import settings

    for page in TEXT:
        for assignment in re.findall(r"--set ([\w.]+=[^\s`]+)", TEXT[page]):
            settings.override(settings.Config(), [assignment])
        for name in re.findall(r"--preset ([\w-]+)", TEXT[page]):
            settings.preset(name)


def test_the_files_are_all_told():
    table = TEXT["method.md"].split("## The files")[1].split("## Limits")[0]
    for path in (ROOT / "ddm_jax").iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"`{path.name}/`" in table
        elif path.suffix == ".py" and not path.name.startswith("__"):
            assert f"`{path.name}`" in table


def test_the_estimators_are_all_told():
    from ddm_jax.estimators import ESTIMATORS
    from ddm_jax.judge.candidates import CANDIDATES

    for name in {*ESTIMATORS, *CANDIDATES} - {"trak_10"}:
        assert f"`{name}`" in TEXT["estimators.md"], name


def test_the_tables_are_rendered_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import render

    for page, text in TEXT.items():
        assert render.render(text) == text, f"run benchmarks/render.py: {page}"
        assert "not measured yet" not in text


def test_withheld_rows_are_shown_nowhere(monkeypatch):
    """Each names rows that are there, which no table of the pages has as they are."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import json

    import render

    for (file, *keys), asked, *_ in render.WITHHELD:
        path = render.RESULTS / f"{file}.json"
        rows = render.rows_at(json.loads(path.read_text()), keys)
        shown = render.rows_at(render.load(path), keys)
        out = [row for row in rows if asked.items() <= row.items()]
        assert out, asked
        assert not [row for row in shown if row in out]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        found = page if not file else (page.parent / file).resolve()
        assert found.exists(), target
        if heading:
            heads = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            slugs = [
                re.sub(r"[^\w\s-]", "", head).strip().lower().replace(" ", "-") for head in heads
            ]
            assert heading in slugs, target
