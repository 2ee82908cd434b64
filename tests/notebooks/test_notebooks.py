"""Each notebook is the same as the text beside it, and does what it says against the embedded stack."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = Path(__file__).parents[2]
TEXTS = sorted((REPOSITORY / "notebooks").glob("*.py"))


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_the_pair_is_in_step_and_carries_no_output(text: Path):
    notebook = nbformat.read(text.with_suffix(".ipynb"), as_version=4)
    assert cells(notebook) == cells(jupytext.read(text))
    assert not [cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs]


@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.timeout(1500)
def test_the_quickstart_goes_twice_round_the_loop(stack: Any, serving: Any, tmp_path: Path):
    repository = tmp_path / "code"
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(repository)], check=True)
    notebook = jupytext.read(REPOSITORY / "notebooks" / "01-quickstart.py")
    chosen = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    model = f"quickstart-{tmp_path.name}"
    chosen.source = f"{chosen.source}\nSTACK = Path({str(stack.state_dir)!r})\nMODEL = {model!r}\nNODES = 1"
    shutil.rmtree(stack.layout.data("notebook"), ignore_errors=True)
    executed = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(repository)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert printed.count("everything given back: True") == 2
    assert f"models:/{model}/2" in printed
    assert "cpp" in printed
