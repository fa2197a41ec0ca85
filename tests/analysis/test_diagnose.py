"""`diagnose`: each figure against an independent computation, and the words."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import ConvNet
from torch import nn

from ghn_init import GHN, GHNConfig, GHNInitError
from ghn_init.analysis import Batch, diagnose
from ghn_init.analysis.diagnosis import singular_values
from ghn_init.analysis.measure.correlations import BINS, channel_correlations, channel_similarity
from ghn_init.analysis.measure.filters import first_filters
from ghn_init.analysis.measure.findings import findings
from ghn_init.analysis.measure.measured import Diagnosed, LayerFigures
from ghn_init.analysis.measure.signals import signals

METHODS = ("rand", "orth", "ghn3", "ghn3-orth")


@pytest.fixture(scope="module")
def ghn() -> GHN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), 1000)
        return GHN(config, "seeded").requires_grad_(False).eval()


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvNet(width=32)


# -- channels


def test_correlations() -> None:
    weight = torch.randn(12, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.corrcoef(weight.reshape(12, 27))
    torch.testing.assert_close(channel_correlations(weight), expected)
    below = expected.numpy()[np.tril_indices(12, -1)]
    found = channel_similarity(weight)
    assert found.spread == pytest.approx(below.std(ddof=1), rel=1e-5)
    counts, _ = np.histogram(below, BINS, (-1, 1))
    assert found.histogram == pytest.approx(tuple(counts / 66))
    assert found.duplicates == found.near_duplicates == 0


def test_duplicates() -> None:
    """Eight channels: 4 and 5 copy 0 and 1; 6 is twice 2 and 7 a little off 3."""
    weight = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    weight[4:6] = weight[:2]
    weight[6] = 2 * weight[2]
    weight[7] = weight[3] + 1e-4 * weight[0]
    found = channel_similarity(weight)
    assert found.duplicates == 2 / 8
    assert found.near_duplicates == 4 / 8


def test_channels_without_correlation() -> None:
    assert channel_similarity(torch.ones(1, 4)).spread == 0
    constant = torch.stack([torch.ones(4), torch.arange(4.0)])
    assert channel_correlations(constant)[0].tolist() == [0, 0]
    assert channel_similarity(constant).near_duplicates == 0


def test_singular_values() -> None:
    for shape in ((6, 2, 3, 3), (20, 7)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        expected = torch.linalg.svdvals(weight.reshape(shape[0], -1))
        torch.testing.assert_close(torch.tensor(singular_values(weight)), expected)
    assert singular_values(torch.ones(3, 4)) == pytest.approx((12**0.5, 0, 0), abs=1e-6)


def test_filters() -> None:
    from ghn_init import trace

    model = net()
    graph = trace(model, torch.zeros(2, 3, 8, 8))
    filters = first_filters(graph, dict(model.named_parameters()))
    assert filters.shape == (32, 3, 3, 3)
    assert filters.amin(dim=(1, 2, 3)).tolist() == [0] * 32
    assert filters.amax(dim=(1, 2, 3)).tolist() == [1] * 32
    first = model.stem.weight.detach()[0]
    expected = (first - first.min()) / (first.max() - first.min())
    torch.testing.assert_close(filters[0], expected.permute(1, 2, 0))


# -- signals


def test_variance_and_gradients() -> None:
    """A linear network, worked out with matrix products."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 5, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(inplace=True), nn.Linear(4, 3))
    found = signals(model, ["0.weight", "2.weight"], Batch(x, labels))
    first, second, bias = (p.detach() for p in model.parameters())
    z = x @ first.t()
    hidden = z.clamp(min=0)
    scores = hidden @ second.t() + bias
    assert found.variance["0.weight"] == pytest.approx(z.numpy().var(), rel=1e-5)
    assert found.variance["2.weight"] == pytest.approx(scores.numpy().var(), rel=1e-5)
    slope = (scores.softmax(dim=1) - F.one_hot(labels)) / 6
    assert found.gradient_norm["2.weight"] == pytest.approx((slope.t() @ hidden).norm().item())
    back = (slope @ second) * (z > 0)
    assert found.gradient_norm["0.weight"] == pytest.approx((back.t() @ x).norm().item())
    expected = -scores.log_softmax(dim=1)[range(6), labels].mean()
    assert found.loss == pytest.approx(expected.item())


def test_batch_statistics_and_no_dropout() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(4))
    x = 7 + 3 * torch.randn(64, 4, generator=torch.Generator().manual_seed(4))
    found = signals(model, ["2.weight"], Batch(x, torch.zeros(64, dtype=torch.long)))
    assert found.variance["2.weight"] == pytest.approx(1, rel=1e-3)


def test_multihead_attention() -> None:
    """Its projections are called by no module: the output stands for the last of them."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x)[0].mean(dim=1)

    model = Model()
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(5))
    names = ["attention.in_proj_weight", "attention.out_proj.weight"]
    found = signals(model, names, Batch(x, torch.tensor([0, 1, 2])))
    attended = model.attention(x, x, x)[0].detach()
    assert found.variance == {names[1]: pytest.approx(attended.numpy().var(), rel=1e-4)}
    assert set(found.gradient_norm) == set(names)


def test_labels_without_outputs() -> None:
    batch = Batch(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 10]))
    with pytest.raises(GHNInitError, match="labels up to 10 and the model has 10 outputs"):
        diagnose(net(), ["rand"], batch=batch)


# -- the whole


def test_diagnosis(ghn: GHN, tmp_path: Path) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    result = diagnose(model, METHODS, ghn=ghn, input_shape=(3, 16, 16), batch_size=4)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [method.method for method in result.methods] == list(METHODS)
    assert result.layers == tuple(
        f"{name}.weight" for name in ("stem", "depthwise", "squeeze", "excite", "head")
    )
    rand, orth, ghn3, ghn3_orth = result.methods
    assert rand.coverage is None
    assert ghn3.coverage == pytest.approx(ghn3_orth.coverage)
    chosen = result.chosen[-1]
    assert orth.spectra[chosen].values == pytest.approx((1.0,) * 2, abs=1e-5)
    assert rand.spectra[chosen].before is None
    processed = ghn3_orth.spectra[chosen]
    assert processed.values == pytest.approx((1.0,) * 2, abs=1e-5)
    assert processed.before is not None
    assert max(processed.before) > 1.1 or min(processed.before) < 0.9
    tiled = ghn3.layers[0].similarity  # 32 channels from a decoder of 16, told apart by the noise
    assert tiled.near_duplicates >= 0.5
    assert tiled.duplicates == 0
    again = diagnose(model, METHODS, ghn=ghn, input_shape=(3, 16, 16), batch_size=4)
    assert again.to_json() == result.to_json()
    content = json.loads(result.to_json())
    assert content["methods"][0]["layers"][0]["variance"] == rand.layers[0].variance
    assert any("near-duplicates, correlation above 0.99" in text for text in result.findings)
    assert any("left at the library's initialization" in text for text in result.findings)
    assert result.table().startswith("ConvNet: 5 layers, 4 random images of 3x16x16\nmethod ")


def test_page(ghn: GHN, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = diagnose(net(), METHODS, ghn=ghn, input_shape=(3, 16, 16), batch_size=4)
    result.save(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    words = [text.get_text() for part in result.plot().subfigs for text in part.texts]
    assert any("near-duplicates" in text for text in words)


def test_pretrained() -> None:
    trained = net()
    with torch.no_grad():
        trained.stem.weight.mul_(3)
    options = {"input_shape": (3, 16, 16), "batch_size": 4}
    result = diagnose(net(), ["rand", "pretrained"], pretrained=trained, **options)
    rand, pretrained = (method.layers[0].variance for method in result.methods)
    assert pretrained == pytest.approx(9 * rand, rel=1e-4)
    with pytest.raises(GHNInitError, match="method pretrained needs the pretrained model"):
        diagnose(net(), ["pretrained"], **options)
    with pytest.raises(GHNInitError, match=r"no parameter 'stem\.weight'.*another model"):
        diagnose(net(), ["pretrained"], pretrained=nn.Sequential(nn.Conv2d(3, 4, 3)), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["magic"]}, "unknown method 'magic'"),
        ({"methods": []}, "give a list of one or more"),
        ({"methods": ["rand"], "layers": ["nothing"]}, "no layer 'nothing'"),
        ({"methods": ["rand"], "batch_size": 1}, "give 2 or more"),
        ({"methods": ["ghn3"], "ghn": "missing.pt"}, r"missing\.pt"),
        ({"methods": ["rand"], "input_shape": (5, 8, 8)}, "does not run"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(GHNInitError, match=message):
        diagnose(net(), **arguments)


# -- words


def figures(**changes: object) -> Diagnosed:
    """A method with three unremarkable layers and a classifier, the second one changed."""
    similarity = channel_similarity(torch.eye(4))
    layers = [LayerFigures(f"l{i}.weight", 4, similarity, 1.0, 1.0, None, i == 3) for i in range(4)]
    layers[1] = replace(layers[1], **changes)
    return Diagnosed("m", 1.0, tuple(layers), {}, (), None, None, {}, ())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "m: nothing stands out."),
        (
            {"variance": 2e4},
            "m: exploding variance: 1 in l0.weight, 2e+04 in l1.weight (panel E).",
        ),
        (
            {"variance": 2e-5},
            "m: vanishing variance: 1 in l0.weight, 2e-05 in l1.weight (panel E).",
        ),
        (
            {"variance": 0.0},
            "m: 1 of 3 layers dead: output variance at most 1e-12 (panel E): l1.weight.",
        ),
        (
            {"variance": float("inf")},
            "m: exploding activations: not finite from l1.weight on (variance, panel E).",
        ),
        (
            {"gradient_norm": 0.0},
            "m: 1 of 3 layers without gradient: norm at most 0 (panel F): l1.weight.",
        ),
        (
            {"similarity": channel_similarity(torch.eye(4)[[0, 1, 2, 2]])},
            "m: 1 of 3 layers with more than 10% of the channels equal to an earlier one, as "
            "tiling makes them; most in l1.weight, 25% of 4 (panel D).",
        ),
        ({"variance": None, "gradient_norm": None}, "m: nothing stands out."),
    ],
)
def test_findings(changes: dict[str, object], expected: str) -> None:
    assert findings(figures(**changes)) == (expected,)


def test_findings_about_parameters_left_and_rank() -> None:
    method = replace(figures(), coverage=0.9, left={"a": "why"}, rank_deficient=("l0.weight",))
    assert findings(method) == (
        "m: 10.00% of the parameters left at the library's initialization: a.",
        "m: 1 of 3 layers lacked full rank before the orthogonal step (panel G): l0.weight.",
    )


def test_findings_about_small_scales() -> None:
    """Whether layers have a gradient is asked again with the scales at 1."""
    stuck = figures(gradient_norm=0.0, unscaled_gradient_norm=1.0)
    (text,) = findings(replace(stuck, small_scales=("a.gamma", "b.gamma")))
    assert text == (
        "m: 1 of 3 layers without gradient: norm at most 0 (panel F): l1.weight. Their gradient "
        "passes through scales that are nearly zero, as many models start: a.gamma, b.gamma. With "
        "these at 1, none is without gradient."
    )
    dead = figures(gradient_norm=0.0, unscaled_gradient_norm=0.0)
    (text,) = findings(replace(dead, small_scales=("a.gamma",)))
    assert text.endswith("With these at 1, 1 of 3 layers are without gradient.")


class Residual(nn.Module):
    """Two residual branches: one ends in a norm whose weight is zero, one in layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.a, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.gamma = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Parameter(torch.full((8, 1, 1), 1e-7)),
        )
        self.head = nn.Linear(8, 10)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.norm(self.a(x))
        x = x + self.gamma * self.b(x)
        return self.head(x.mean((2, 3)))


def test_small_scales_are_found_to_be_the_reason() -> None:
    result = diagnose(Residual(), ["rand"], input_shape=(3, 16, 16), batch_size=4)
    (method,) = result.methods
    assert method.small_scales == ("gamma", "norm.weight")
    figures = {layer.name: layer for layer in method.layers}
    assert figures["a.weight"].gradient_norm == 0
    assert figures["b.weight"].gradient_norm == pytest.approx(0, abs=1e-6)
    assert all(layer.unscaled_gradient_norm > 1e-3 for layer in method.layers)
    assert "2 of 3 layers without gradient" in result.findings[0]
    assert "With these at 1, none is without gradient" in result.findings[0]


def test_models_without_small_scales() -> None:
    (method,) = diagnose(net(), ["rand"], input_shape=(3, 16, 16)).methods
    assert method.small_scales == ()
    assert all(layer.unscaled_gradient_norm is None for layer in method.layers)


def test_a_model_of_two_inputs(ghn: GHN) -> None:
    """Each gets the images, as in `trace`; a model that names its input gets it by name."""

    class Pairs(ConvNet):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return super().forward(left) + 2 * super().forward(right.sigmoid())

    class Named(ConvNet):
        def forward(self, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
            assert pixel_values is not None
            return super().forward(pixel_values)

    for cls in (Pairs, Named):
        result = diagnose(cls(), ("rand", "ghn3"), ghn=ghn, input_shape=(3, 16, 16))
        assert [method.method for method in result.methods] == ["rand", "ghn3"]
        for method in result.methods:
            figures = [layer for layer in method.layers if layer.variance is not None]
            assert len(figures) == len(result.layers)
            assert all(layer.gradient_norm is not None for layer in figures)
