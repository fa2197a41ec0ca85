"""examples/reproduce/direct.py: its statistics, and runs on tiny data at both scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

Script = Callable[[str], ModuleType]
Start = Callable[..., str]

SMALL = ("--only", "vit-21", "poolformer-24", "--steps", 2, "--batch-size", 8,
         "--images", 0, 0, 0)  # fmt: skip
PAPER = ("--scale", "paper", "--only", "squeezenet1_1", "shufflenet_v2_x0_5", "--steps", 1,
         "--batch-size", 4, "--images", 10, 10, 0)  # fmt: skip


def test_wins(script: Script) -> None:
    """Against numpy; an equal accuracy is no win."""
    names = [f"net{i}" for i in range(30)]
    ours, base = np.random.default_rng(0).integers(0, 10, (2, 30)).astype(float)
    found = script("direct").wins(dict(zip(names, ours, strict=True)),
                                  dict(zip(names, base, strict=True)))  # fmt: skip
    difference = ours - base
    assert (difference == 0).any()
    assert found.share == pytest.approx(100 * (difference > 0).mean())
    assert found.gain == pytest.approx(difference[difference > 0].mean())
    assert found.loss == pytest.approx(difference[difference <= 0].mean())
    assert vars(script("direct").wins({"a": 2.0}, {"a": 1.0})) == {
        "share": 100, "gain": 1, "loss": None,
    }  # fmt: skip


def test_top_networks(script: Script) -> None:
    """Of a hypernetwork the best without training, of RandInit the best after an epoch."""
    direct = script("direct")
    before, after = {"a": 3.0, "b": 1.0, "c": 2.0}, {"a": 1.0, "b": 9.0, "c": 5.0}
    accuracies = {"no training": before, "1/10 epoch": after, "1 epoch": after}
    result = direct.Direct({"RandInit": accuracies, "ghn3": accuracies}, {"ghn3": 1.0}, 2)
    assert result.top_accuracies("RandInit", "1 epoch") == [9, 5]
    assert result.top_accuracies("RandInit", "no training") == [1, 2]
    assert result.top_accuracies("ghn3", "1 epoch") == [1, 5]


def test_the_models_of_the_paper(script: Script) -> None:
    norms = Path(__file__).resolve().parents[2] / "ghn_init" / "published_norms.json"
    known = json.loads(norms.read_text())["ghn3xlm16"]
    assert len(known) == 74
    assert sorted(script("networks").pytorch_models()) == sorted(known)


def test_small_scale(
    start: Start, small_images: Path, out: Path, nothing_is_computed: Callable[[], None]
) -> None:
    command = ("direct", "--data", small_images, "--out", out, "--top", 2, *SMALL)
    first = start(*command)
    # Two networks: untrained, two kinds; random at the end, and at a tenth; predicted at both.
    assert len(list(out.glob("*/*.json"))) == 2 * 2 + 2 + 2 + 2 * 2
    content = json.loads((out / "direct.json").read_text())
    assert set(content["accuracies"]) == {"RandInit", "embedded"}
    assert list(content["accuracies"]["embedded"]["1 epoch"]) == list(SMALL[1:3])
    nothing_is_computed()
    assert start(*command) == first
    assert first.splitlines()[-1].startswith("top 2 after an epoch here: embedded")
    assert "paper (Tables 2 and 4): ghn3xlm16 40.3 ± 3.9" in first.splitlines()[-1]
    if "no picture" not in first:
        assert (out / "direct.png").exists()


def test_other_images_are_refused(script: Script, tmp_path: Path) -> None:
    """What was computed with other settings does not pass for the result of these."""
    remember, error = script("experiment").remember, script("experiment").GHNInitError
    assert remember(tmp_path / "a.json", {"images": (1, 2)}, lambda: 5.0) == 5
    assert remember(tmp_path / "a.json", {"images": (1, 2)}, lambda: 6.0) == 5
    with pytest.raises(error, match="was computed with other settings"):
        remember(tmp_path / "a.json", {"images": (1, 3)}, lambda: 6.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.slow
def test_paper_scale(start: Start, large_images: Path, seeded: list[Path], tmp_path: Path) -> None:
    """The same code on stand-ins: models of torchvision, images of 224x224, two checkpoints."""
    printed = start(
        "direct", "--data", large_images, "--out", tmp_path, "--ghn", *seeded, "--top", 1, *PAPER
    )
    content = json.loads((tmp_path / "direct.json").read_text())["accuracies"]
    assert len(content["ghn3xlm16"]["1 epoch"]) == 2
    assert len(content["ghn3tm8"]["1 epoch"]) == 1
    row = next(line for line in printed.splitlines() if line.startswith("ghn3xlm16"))
    assert row.split()[-9:] == ["11.5", "±", "8.4", "30.6", "±", "7.2", "40.3", "±", "3.9"]
