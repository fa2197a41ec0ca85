"""examples/reproduce/fewshot.py: its choice and its statistics, on tiny data at both scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_detection import clothes

from ghn_init.compare import Outcome, Point, Row
from ghn_init.methods import parse_method

Script = Callable[[str], ModuleType]
Start = Callable[..., str]


def test_the_grid_of_the_paper(script: Script) -> None:
    """Section 4 of the second paper: 5 and 4 rates, 5 decays, 4 lengths, 2 sizes."""
    grid = script("fewshot").GRIDS["paper"]
    tried = [(s.optimizer, s.epochs, s.image_size, p) for s in grid for p in s.points]
    assert len(tried) == len(set(tried)) == (5 + 4) * 5 * 4 * 2
    assert ("sgd", 300, 32, Point(0.01, 0.01)) in tried  # ResNet-50's, in Table 2
    assert ("adamw", 300, 32, Point(0.001, 0.1)) in tried  # ConvNeXt's


def test_the_rows_are_methods(script: Script) -> None:
    for name in script("fewshot").ROWS:
        assert parse_method(name).label == name


def test_what_is_chosen(script: Script) -> None:
    """The best accuracy on held-out images, whatever those on test images are."""
    row = Row("rand", Point(0.1), (Outcome(((1, 99.0),)),), {Point(0.1): 3.0, Point(0.2): None})
    assert script("fewshot").chosen(row) == 3
    assert script("fewshot").chosen(Row("rand", Point(0.1), (), {Point(0.1): None})) == -1


def test_small_scale(
    start: Start, script: Script, tmp_path: Path, nothing_is_computed: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Two settings: each method takes the one that is better on the images to choose on."""
    fewshot = script("fewshot")
    two = tuple(fewshot.replace(fewshot.GRIDS["small"][0], epochs=epochs) for epochs in (1, 3))
    monkeypatch.setitem(fewshot.GRIDS, "small", two)
    fewshot.data.cache_clear()
    command = ("fewshot", "--data", clothes(tmp_path / "clothes"), "--out", tmp_path / "out",
               "--images", 40, 30, 30, "--batch-size", 20, "--seeds", 2,
               "--methods", "rand", "ghn3-orth", "ghn3-orth:noise=0")  # fmt: skip
    first = start(*command)
    content = json.loads((tmp_path / "out" / "fewshot.json").read_text())
    found = content["found"]["mobilenetv3_small_050"]
    for method, one in found.items():
        merits = {}
        for epochs in (1, 3):
            path = tmp_path / "out" / f"mobilenetv3_small_050-{method}-adamw-{epochs}-32.json"
            runs = json.loads(path.read_text())["runs"]
            merits[epochs] = max(r["accuracy"] for r in runs if r["choosing"])
        assert merits[one["epochs"]] == max(merits.values())
        assert len(one["accuracies"]) == 2
        row = next(line for line in first.splitlines() if line.split()[0] == method)
        ours = np.array(one["accuracies"])
        assert f"{ours.mean():.1f} ± {ours.std(ddof=1):.1f}" in row
    row = next(line for line in first.splitlines() if line.startswith("ghn3-orth:noise=0"))
    assert row.split("without the noise")[1].split()[-4:] == ["65.0", "±", "0.4", "-"]
    nothing_is_computed()
    assert start(*command) == first
    assert "rand 60.6 ± 0.5" in first.splitlines()[-1]


@pytest.mark.slow
def test_paper_scale(
    start: Start, script: Script, small_images: Path, published: None, tmp_path: Path
) -> None:
    """Checkpoints from a Hub on this machine; the optimizers and sizes of the grid, one decay."""
    fewshot = script("fewshot")
    for name, optimizer in (("adamw", "adamw"), ("sgd", "sgd")):
        assert any(s.optimizer == optimizer for s in fewshot.GRIDS["paper"]), name
    grid = fewshot.GRIDS["paper"]
    fewshot.GRIDS["paper"] = tuple(fewshot.replace(s, points=s.points[:1]) for s in grid)
    fewshot.data.cache_clear()
    try:
        printed = start(
            "fewshot", "--scale", "paper", "--data", small_images, "--out", tmp_path,
            "--models", "resnet50", "--epochs", 1, "--images", 10, 10, 10, "--batch-size", 10,
            "--seeds", 1, "--methods", "rand", "ghn2-orth", "ghn3",
        )  # fmt: skip
    finally:
        fewshot.GRIDS["paper"] = grid
    assert len(list(tmp_path.glob("resnet50-*.json"))) == 3 * 4  # optimizers and sizes
    row = next(line for line in printed.splitlines() if line.startswith("ghn3 "))
    assert row.endswith("61.8 (ghn2), 72.9 (ghn3xlm16)")
