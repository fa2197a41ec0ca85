"""examples/reproduce/ablations.py: what each hypernetwork lacks, and runs on tiny data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from image_folders import ten_levels

from ghn_init import GHN
from ghn_init.methods import Method
from ghn_init.train import make_nets

Script = Callable[[str], ModuleType]
Start = Callable[..., str]

TWO = ("GHN-3-T/m8", "no edges, no attention (MLP)")


def test_variants(script: Script) -> None:
    """Each differs from the recipe in what its name says, and the sizes are those of Table 5."""
    ablations = script("ablations")
    whole = replace(ablations.CONFIGS["paper"], nets="nets", data="data")
    assert (whole.gamma, whole.weight_decay, whole.meta_batch) == (3e-5, 0.01, 8)
    for name, changes in ablations.VARIANTS.items():
        found = asdict(replace(whole, **changes))
        other = {key: value for key, value in found.items() if value != asdict(whole)[key]}
        named = dict(part.split("=") for part in name.split(", ") if "=" in part)
        expected = {{"gamma": "gamma", "lambda": "weight_decay"}[k]: float(v)
                    for k, v in named.items()}  # fmt: skip
        assert other == (expected or ({"arch": "mlp"} if "MLP" in name else {})), name
    for name, millions in zip(TWO, (6.91, 6.74), strict=True):
        with torch.device("meta"):
            ghn = GHN(replace(whole, **ablations.VARIANTS[name]).ghn(1000))
        assert sum(p.numel() for p in ghn.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)


def test_small_scale(
    start: Start, script: Script, tmp_path: Path, registered: dict[str, Method],
    nothing_is_computed: Callable[[], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ablations = script("ablations")
    monkeypatch.setitem(ablations.NETWORKS, "small", 2)
    make_nets("zoo-train", 4, tmp_path / "nets", workers=1)
    command = ("ablations", "--data", ten_levels(tmp_path / "images", 32, 7, 3),
               "--out", tmp_path / "out", "--nets", tmp_path / "nets", "--holdout", 0,
               "--train-steps", 1, "--hidden-size", 8, "--steps", 2, "--batch-size", 8,
               "--images", 0, 0, 0, "--top", 2, "--device", "cpu", "--variants", *TWO)  # fmt: skip
    first = start(*command)
    found = json.loads((tmp_path / "out" / "ablations.json").read_text())["accuracies"]
    assert list(found) == list(TWO)
    for name in TWO:
        row = next(line for line in first.splitlines() if line.startswith(name))
        after = np.array(list(found[name]["1 epoch"].values()))
        assert f"{after.mean():.1f} ± {after.std(ddof=1):.1f}" in row
        config = json.loads(
            (
                ablations.folder(script("argparse").Namespace(out=tmp_path / "out"), name)
                / "config.json"
            ).read_text()
        )
        assert config["arch"] == ("mlp" if "MLP" in name else "ghn3")
    row = next(line for line in first.splitlines() if line.startswith("squared norms"))
    assert row.split()[-6:] == ["-", "-", "-", "22.5", "±", "2.2"]
    nothing_is_computed()
    assert start(*command) == first


@pytest.mark.slow
def test_paper_scale(
    start: Start, script: Script, large_images: Path, tmp_path: Path,
    registered: dict[str, Method], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The same code on images of 224x224 and models of torchvision, with smaller numbers."""
    ablations = script("ablations")
    small = replace(ablations.CONFIGS["paper"], batch_size=4, hidden_size=8, meta_batch=1,
                    precision="fp32")  # fmt: skip
    monkeypatch.setitem(ablations.CONFIGS, "paper", small)
    monkeypatch.setitem(ablations.NETS, "paper", ("train", 2))
    printed = start(
        "ablations", "--scale", "paper", "--data", large_images, "--out", tmp_path,
        "--train-steps", 1, "--only", "squeezenet1_1", "shufflenet_v2_x0_5", "--steps", 1,
        "--batch-size", 4, "--images", 10, 10, 0, "--top", 1, "--device", "cpu",
        "--variants", TWO[0],
    )  # fmt: skip
    row = next(line for line in printed.splitlines() if line.startswith(TWO[0]))
    assert row.endswith("23.9 ± 1.0")
