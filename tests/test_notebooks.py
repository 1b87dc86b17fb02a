"""Every notebook runs on the organism, stores no outputs, and ends by asserting its claim."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from refusal_lens import organism

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 20


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_ends_with_its_claim(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert all(len(cell.source.splitlines()) <= LONGEST_CELL for cell in code)
    assert code[-1].source.splitlines()[-1].startswith("assert ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path) -> None:
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    if not (organism.folder("chat") / "config.json").exists():
        pytest.skip("the organism is not there")
    if "suffix" in path.stem and not (organism.folder("chat").parent / "suffix.json").exists():
        pytest.skip("the organism has no suffix yet: experiments/07_organism_suffix makes it")
    notebook = nbformat.read(path, as_version=4)
    root = path.parents[1]
    client.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(root)}}
    ).execute()
