"""The notebook of the examples runs from its first cell to its last, in a kernel of its own."""

import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def outputs_of(cell: Any, kind: str) -> str:
    """Return what a cell shows in one form."""
    return "\n".join(each["data"].get(kind, "") for each in cell.outputs if "data" in each)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The cells of code, executed."""
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        cell.outputs = [] if cell.cell_type == "code" else cell.get("outputs", [])
    folder = tmp_path_factory.mktemp("notebook")
    client = nbclient.NotebookClient(
        notebook, timeout=3_000, resources={"metadata": {"path": folder}}
    )
    client.execute()
    assert (folder / "quickstart-model" / "manifest.json").is_file()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_shows_progress_figures_curves_and_titles(executed: list[Any]) -> None:
    _, train, plot, known, new, added, checked = executed
    progress, trained = (each["data"]["text/html"] for each in train.outputs)
    assert "validation ndcg@10" in progress, "a notebook has the progress of a notebook"
    assert "made-up shop: 2,000 events, 200 queries, 200 items" in progress
    assert "two-tower" in trained
    drawn = outputs_of(plot, "image/svg+xml")
    assert "Validation NDCG@10" in drawn or "found in closed form" in drawn
    assert outputs_of(known, "text/html").count(" for ") >= 5
    assert "5 items for a query without an id" in outputs_of(new, "text/html")
    assert ">green<" not in outputs_of(new, "text/html")
    assert "tent" in outputs_of(added, "text/plain")
    assert "info: " in checked.outputs[0].text


def test_nothing_is_on_the_standard_error(executed: list[Any]) -> None:
    for cell in executed:
        assert [each for each in cell.outputs if each.get("name") == "stderr"] == []


def test_the_stored_one_shows_what_it_gave_and_no_place_of_a_machine() -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    text = NOTEBOOK.read_text("utf-8")
    assert str(ROOT) not in text
    assert str(Path.home()) not in text
    assert tempfile.gettempdir() not in text
    assert len(text) < 60_000
