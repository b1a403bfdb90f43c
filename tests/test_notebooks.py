"""Execute every notebook from top to bottom."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
FIGURES = {  # at least so many
    "bad_labels": 4,
    "digits": 5,
    "forget": 3,
    "from_csv": 4,
    "is_it_right": 3,
    "language": 2,
    "many_devices": 3,
    "own_model_and_data": 5,
}
OWN = {"own_model_and_data": {"init", "apply", "doubt"}}  # what a user brings along


def test_there_is_a_notebook():
    assert [path.stem for path in NOTEBOOKS] == list(FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, monkeypatch, tmp_path):
    # As a user has it: one device, whatever the tests set.
    monkeypatch.setenv("XLA_FLAGS", "")
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    elsewhere = {"metadata": {"path": str(tmp_path)}}  # one writes files
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=elsewhere).execute()
    figures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) >= FIGURES[path.stem]
    if path.stem == "language":
        check_planted(notebook)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    defined = set(re.findall(r"^ *(?:def|class) (\w+)", source, re.MULTILINE))
    assert defined == OWN.get(path.stem, set()), "notebooks import, never define"


def check_planted(notebook):
    """The document of a made-up fact is named, and forgotten by .8 of what retraining says."""
    said = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "named first: reference/naming.txt" in said
    likely = {
        name: float(re.search(rf"^{name} +(-?[0-9.]+)", said, re.MULTILINE)[1])
        for name in ("as trained", "the document forgotten", "retrained without it")
    }
    before, forgotten, retrained = likely.values()
    assert retrained < before - 10
    assert before - forgotten > 0.8 * (before - retrained)
