"""`diversity`: distances by hand and by trying every order."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from models import ConvNet
from torch import nn

import ghn_init
from ghn_init import GHN, GHNConfig, GHNInitError
from ghn_init.analysis import diversity
from ghn_init.analysis.tensor_diversity import matched_cosine, mean_distance


def seeded() -> GHN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GHN(GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), 10), "seeded").eval()


def test_by_hand() -> None:
    """Angles of 60, 90 and 150 degrees: |cos| of 1/2, 0 and sqrt(3)/2."""
    angles = [0.0, math.pi / 3, -math.pi / 2]
    tensors = [torch.tensor([[math.cos(a)], [math.sin(a)]]) * (i + 1) for i, a in enumerate(angles)]
    expected = ((1 - 0.5) + (1 - 0) + (1 - math.sqrt(3) / 2)) / 3
    assert mean_distance(tensors) == pytest.approx(expected, abs=1e-6)
    assert mean_distance(tensors[:1]) is None
    assert mean_distance([tensors[0], -tensors[0]]) == pytest.approx(0, abs=1e-6)


def test_matching() -> None:
    pytest.importorskip("scipy")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 3, generator=generator)
    best = max((a * b[list(p)]).sum().item() for p in itertools.permutations(range(5)))
    assert matched_cosine(a, b) == pytest.approx(best, rel=1e-5)
    shuffled = a[torch.tensor([3, 1, 4, 0, 2])]
    assert mean_distance([a, shuffled]) > 0.1
    assert mean_distance([a, shuffled], match=True) == pytest.approx(0, abs=1e-6)


def test_predicted_tensors() -> None:
    """Against pairwise cosines of what `predict` gives for all models."""
    ghn = seeded()
    models = {"a": ConvNet(width=16), "b": ConvNet(width=16, classes=7), "c": ConvNet(width=24)}
    shape = (16, 1, 3, 3)
    result = diversity(models, ["ghn3"], ghn=ghn, shapes=[shape])
    tensors = [ghn_init.predict(models[k], ghn)["depthwise.weight"].flatten() for k in "ab"]
    cosine = F.cosine_similarity(*tensors, dim=0).item()
    assert result.counts == {"ghn3": (2,)}
    assert result.distances["ghn3"][0] == pytest.approx(1 - abs(cosine), abs=1e-6)
    assert result.matched == ()


def test_methods_and_shapes() -> None:
    pytest.importorskip("scipy")
    models: dict[str, nn.Module] = {str(i): ConvNet() for i in range(3)}
    result = diversity(
        models,
        ["ghn3", "rand", "pretrained"],
        ghn=seeded(),
        pretrained={**models, "1": models["0"]},
    )
    assert len(result.shapes) == 3
    assert all(count == 3 for counts in result.counts.values() for count in counts)
    assert result.matched == ("rand", "pretrained")
    assert min(result.distances["rand"]) > 0.01
    assert json.loads(result.to_json())["distances"]["ghn3"] == list(result.distances["ghn3"])
    lines = result.table().splitlines()
    assert lines[0] == "mean absolute cosine distance over 3 models: 0, 1, 2 (tensors)"
    assert lines[3].startswith("rand*")
    pytest.importorskip("matplotlib")
    assert len(result.plot().axes[0].patches) == 9


def test_errors() -> None:
    with pytest.raises(GHNInitError, match="there are no models"):
        diversity({}, ["rand"])
    pytest.importorskip("scipy")
    with pytest.raises(GHNInitError, match="method pretrained needs the pretrained model"):
        diversity({"a": ConvNet()}, ["pretrained"])
