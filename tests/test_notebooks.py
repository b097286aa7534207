"""The notebooks run from the first cell to the last, and are kept with their outputs."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
sys.path.insert(0, str(FOLDER))

from build import NOTEBOOKS, executed  # noqa: E402 - it lies beside the notebooks

SETUP = "# Set-up: in Colab, or wherever sdkit is not installed, this fetches it."


def test_the_course_has_six_notebooks_in_order():
    assert [path.name[0] for path in NOTEBOOKS] == list("123456")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end_and_shows_what_it_says(path, monkeypatch):
    monkeypatch.setenv("SDKIT_QUICK", "1")  # notebook 6 then trains for a few steps only
    notebook = executed(path, timeout=240)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert (
        sum(
            bool({"image/png", "image/jpeg"} & output.get("data", {}).keys())
            for cell in code
            for output in cell.outputs
        )
        >= 5
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_small_and_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    assert any(cell.get("outputs") for cell in notebook.cells)
    title, setup = notebook.cells[0].source, next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert title.startswith(f"# {path.name[0]}. ")
    assert f"/notebooks/{path.name})" in title  # the badge opens this very notebook
    assert setup.startswith(SETUP)
    assert "# model = sdkit.load(" in setup  # one line to a real checkpoint
    assert not re.search(r"/(tmp|root|home|work)/", path.read_text(encoding="utf-8"))
