"""examples/transfer.py: its models, its protocol on tiny data, and what it says of the results."""

from __future__ import annotations

import gzip
import importlib
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import ghn_init
from ghn_init.compare import Comparison, FineTuning, Outcome, Point, Row

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("transfer")


def feature_maps(model: torch.nn.Module) -> list[int]:
    """Positions of every feature map of a 32 x 32 image, but for those that are pooled to one."""
    sizes: list[int] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: sizes.append(out.shape[-2:].numel()))
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    return [size for size in sizes if size > 1]


def test_models_keep_the_size_of_small_images_for_longer(example: ModuleType) -> None:
    small = importlib.import_module("small_models")
    for name in example.MODELS:
        model = getattr(small, name)(7)
        assert ghn_init.trace(model, torch.empty(2, 3, 32, 32)).num_classes == 7, name
        assert min(feature_maps(model)) >= 4, name


def outcomes(*accuracies: float) -> tuple[Outcome, ...]:
    return tuple(Outcome(((10, a / 2), (20, a))) for a in accuracies)


def test_the_report_is_against_the_better_baseline(example: ModuleType) -> None:
    def comparison(name: str, ghn: tuple[float, ...]) -> Comparison:
        rows = (
            Row("rand", Point(1e-3), outcomes(50, 52, 54), {}),
            Row("orth", Point(1e-3), outcomes(60, 62, 64), {}),
            Row("ghn3-orth", Point(1e-3), outcomes(*ghn), {}),
        )
        return Comparison(name, FineTuning(20), (9, 9, 9), 10, (), (30, 60), rows)

    found = [comparison("one", (64, 66, 68)), comparison("two", (59, 60, 63))]
    assert example.report(found, (30, 60)).splitlines() == [
        "20 steps: points above the better of rand and orth",
        "  one                  ghn3-orth - orth: +4.0 +- 0.0, better in 3 of 3 seeds; "
        "to 60%: 20 steps for 20",
        "  two                  ghn3-orth - orth: -1.3 +- 1.4, better in 0 of 3 seeds; "
        "to 60%: 20 steps for 20",
        "  ghn3-orth: +3 or more on 1 of 2 models, -1 or less on 1; clearly better on 1, clearly "
        "worse on 0",
    ]


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.mark.slow
def test_the_protocol_runs_and_goes_on(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 400), ("t10k", 220)):
        labels = np.arange(count) % 10
        images = random.integers(0, 60, (count, 28, 28)) + 15 * labels[:, None, None]
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
    command = [
        *(sys.executable, EXAMPLES / "transfer.py", "--quick", "--data", tmp_path),
        *(
            "--models",
            "mobilenetv3_small",
            "--methods",
            "rand,ghn3-orth",
            "--out",
            tmp_path / "out",
        ),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first, again = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        for _ in range(2)
    )
    assert first == again
    assert "4 steps: points above the better of rand and orth" in first
    assert "ghn3-orth - rand:" in first
    assert (tmp_path / "out" / "summary.json").exists()
