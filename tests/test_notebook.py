"""The notebook of the examples is stored without outputs, and runs in Jupyter."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_run.ipynb"


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    assert "<p>Ship " in shown and "<th>rank</th><th>item_id</th><th>score</th><th>title</th>" in shown
    assert not [output for output in outputs if output.output_type == "display_data"]  # tables of the terminal
    assert "On validation (" in str(outputs[-1]) and (tmp_path / "out" / "notebook" / "run" / "best").is_dir()
