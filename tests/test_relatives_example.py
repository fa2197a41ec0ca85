"""examples/relatives.py: its models, and its runs on tiny data."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from image_folders import bright_and_dark

import ghn_init

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("relatives")


def test_models(example: ModuleType) -> None:
    """ResNet-20 has its 0.27 million parameters; each smaller model takes all but its head."""
    resnet = example.ResNet(3, 16, 10)
    weights = [p for p in resnet.parameters() if p.dim() > 1]
    assert len(weights) == 20
    assert round(sum(p.numel() for p in resnet.parameters()) / 1e6, 2) == 0.27
    for family in example.FAMILIES.values():
        source, model = family.source(10), family.model(10)
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        _, report = ghn_init.apply(model, "select", source=source, return_report=True)
        assert len(report.left) == 2
        assert "matched by name" in report.notes[0]


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    data = bright_and_dark(tmp_path / "data", 32, bright=130, dark=110, spread=90)
    command = [
        *(sys.executable, EXAMPLES / "relatives.py", "--quick"),
        *("--data", data, "--out", tmp_path / "out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first, again = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        for _ in range(2)
    )
    assert first.count("select - rand:") == 3
    sources = [line for line in first.splitlines() if line.startswith("source of")]
    assert sum("on the test images" in line for line in sources) == 2
    tables = [line for line in first.splitlines() if line not in sources]
    assert again.splitlines() == tables  # nothing is trained again
