"""`embed`: the embedding and its principal components."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import ConvNet, torchvision_model
from safetensors.torch import load_file
from torch import nn

import ghn_init
from ghn_init import GHN, GHNConfig, GHNInitError
from ghn_init.analysis import Embedding, embed
from ghn_init.analysis.embedding import principal_components


def seeded() -> GHN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GHN(GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), 10), "seeded").eval()


def test_principal_components() -> None:
    """Against the eigenvectors of the covariance."""
    vectors = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 5)
    places, explained = principal_components(vectors)
    x = vectors.double().numpy()
    sizes, directions = np.linalg.eigh(np.cov(x.T))
    expected = (x - x.mean(axis=0)) @ directions[:, [-1, -2]]
    np.testing.assert_allclose(places.abs().numpy(), np.abs(expected), rtol=1e-5)
    assert explained == pytest.approx(tuple(sizes[[-1, -2]] / sizes.sum()))
    again, _ = principal_components(vectors.flip(0))
    torch.testing.assert_close(again.flip(0), places)


def test_embedding(tmp_path: Path) -> None:
    ghn = seeded()
    models: dict[str, nn.Module] = {
        "convnet": ConvNet(),
        "wide": ConvNet(width=16),
        "alexnet": torchvision_model("alexnet"),
    }
    result = embed(models, ghn)
    with torch.no_grad():
        features = ghn(ghn.encode([ghn_init.trace(models["wide"])]))
    torch.testing.assert_close(result.nodes["wide"], features[0])
    torch.testing.assert_close(result.vectors[1], features[0].mean(dim=0))
    result.save_vectors(tmp_path / "vectors.safetensors")
    saved = load_file(tmp_path / "vectors.safetensors")
    assert list(saved) == sorted(f"{name}{part}" for name in models for part in ("", "/nodes"))
    assert torch.equal(saved["alexnet"], result.vectors[2])
    assert torch.equal(saved["wide/nodes"], result.nodes["wide"])
    size = sum(p.numel() for p in models["alexnet"].parameters()) / 1e6
    assert result.values["alexnet"] == pytest.approx(size)
    content = json.loads(result.to_json())
    assert content["models"]["wide"]["place"] == pytest.approx(result.places[1].tolist())
    assert result.table().splitlines()[0].split() == [
        "model", "PC1", f"({100 * result.explained[0]:.0f}%)", "PC2",
        f"({100 * result.explained[1]:.0f}%)", "parameters", "(M)",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [float, str])
def test_map(kind: type) -> None:
    """Names cover neither each other nor a point; a model without a value is shown all the same."""
    Text = pytest.importorskip("matplotlib.text").Text
    names = tuple(f"model_number_{i}" for i in range(25))
    places = torch.randn(25, 2, generator=torch.Generator().manual_seed(0))
    values = {name: kind(i % 9) for i, name in enumerate(names[1:])}
    result = Embedding(names, places, places, (0.6, 0.3), "column", values)
    figure = result.plot()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without their leaders
    assert [text.get_text() for text in axes.texts] == list(names)
    points = axes.transData.transform(places.numpy())
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert sum(len(c.get_offsets()) for c in axes.collections) == 25


def test_too_few_models() -> None:
    with pytest.raises(GHNInitError, match="1 models make no map"):
        embed({"a": ConvNet()}, seeded())
