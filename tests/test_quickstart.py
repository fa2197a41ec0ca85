"""examples/quickstart.ipynb: it is short, its outputs are there, and its cells run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from image_folders import ten_levels

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"

SMALLER = {"labels=2000": "labels=60", "test_images=1000": "test_images=30",
           "steps=60, eval_every=10": "steps=2, batch_size=8", "seeds=2": "seeds=1"}  # fmt: skip
"""What makes the comparison short; all of it is in the notebook."""


def cells(kind: str) -> list[dict[str, Any]]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def installs(cell: dict[str, Any]) -> bool:
    return "install" in cell["metadata"].get("tags", ())


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = ten_levels(tmp_path / "images", 32)
    monkeypatch.setenv("GHN_INIT_DATA", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_it_is_short_and_has_its_outputs() -> None:
    assert len(cells("code")) + len(cells("markdown")) <= 20
    assert NOTEBOOK.stat().st_size < 600_000
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    text = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")
    assert len(pictures) == 3
    assert "100.00%" in text
    assert "ghn3 - rand: +" in text
    assert not re.search(r"/(work|tmp|root|home)/", json.dumps([outputs, cells("markdown")]))
    assert not any(output["output_type"] == "error" for output in outputs)


def smaller(source: str) -> str:
    for whole, small in SMALLER.items():
        source = source.replace(whole, small)
    return source


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_its_cells_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other, as Python; only the cell that installs is left out."""
    pytest.importorskip("matplotlib", reason="the pictures need the extra [plot]")
    shown: list[Path] = []
    display, ipython = ModuleType("IPython.display"), ModuleType("IPython")
    display.__dict__["Image"] = lambda name, width: shown.append(Path(name))
    ipython.__dict__.update(version_info=(9, 0), get_ipython=lambda: None)  # matplotlib looks there
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    names: dict[str, Any] = {}
    whole = "\n".join("".join(cell["source"]) for cell in cells("code") if not installs(cell))
    assert all(part in whole for part in SMALLER)
    exec(compile(smaller(whole), NOTEBOOK.name, "exec"), names)
    assert [path.read_bytes()[:4] for path in shown] == [b"\x89PNG"] * 3
    printed = capsys.readouterr().out
    assert "ghn3-orth, checkpoint embedded" in printed
    assert printed.count("100.0%") == 2


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_it_runs_in_jupyter(tmp_path: Path) -> None:
    """The whole notebook by nbclient, which is not among what the tests install: it is large."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        cell.source = smaller(cell.source)
    resources = {"metadata": {"path": str(tmp_path)}}
    done = nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    kinds = [o.output_type for cell in done.cells for o in cell.get("outputs", ())]
    assert kinds.count("execute_result") == 3
    assert "error" not in kinds
