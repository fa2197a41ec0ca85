"""Zero-cost proxies on networks small enough to work out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import ConvNet
from torch import Tensor, nn
from torch.func import functional_call

from ghn_init import GHNInitError, trace
from ghn_init.analysis import PROXIES, Batch, zero_cost
from ghn_init.weights.postprocess import weight_layers


def linear() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A linear classifier, a batch, and the loss's slope with respect to the scores."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    model = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 4, generator=generator))
    slope = ((x @ model.weight.t()).softmax(dim=1) - F.one_hot(labels)) / 6
    return model, x, labels, slope.detach()


def test_gradnorm_and_snip() -> None:
    model, x, labels, slope = linear()
    gradient = slope.t() @ x
    batch = Batch(x, labels)
    assert zero_cost("gradnorm", model, ["weight"], batch) == pytest.approx(gradient.norm().item())
    expected = (gradient * model.weight).abs().sum().item()
    assert zero_cost("snip", model, ["weight"], batch) == pytest.approx(expected)
    expected = (gradient * model.weight).sum().item()
    assert zero_cost("plain", model, ["weight"], batch) == pytest.approx(expected)


def test_grasp() -> None:
    """H g as the change of the gradient along itself."""
    model, x, labels, _ = linear()
    weight = model.weight.detach().double()

    def gradient(w: Tensor) -> Tensor:
        scores = x.double() @ w.t()
        return ((scores.softmax(dim=1) - F.one_hot(labels)) / 6).t() @ x.double()

    g, step = gradient(weight), 1e-5
    curved = (gradient(weight + step * g) - gradient(weight - step * g)) / (2 * step)
    expected = -(curved * weight).sum().item()
    assert zero_cost("grasp", model, ["weight"], Batch(x, labels)) == pytest.approx(
        expected, rel=1e-4
    )


def test_fisher() -> None:
    model, x, labels, slope = linear()
    scores = (x @ model.weight.t()).detach()
    expected = 0.5 * (scores * slope).square().mean(dim=0).sum().item()
    assert zero_cost("fisher", model, ["weight"], Batch(x, labels)) == pytest.approx(expected)


def test_fisher_sums_over_the_places_of_a_channel() -> None:
    """A convolution with a 1x1 window, then in-place ReLU and the mean over the places."""
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(2, 3, 2, 2, generator=generator), torch.tensor([0, 1])
    conv = nn.Conv2d(3, 2, 1, bias=False)
    model = nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    z = torch.einsum("kc,bchw->bkhw", conv.weight.detach()[:, :, 0, 0], x)
    scores = z.clamp(min=0).mean(dim=(2, 3))
    slope = (scores.softmax(dim=1) - F.one_hot(labels)) / 2
    by_place = slope[:, :, None, None] / 4 * (z > 0)
    expected = 0.5 * (z * by_place).sum(dim=(2, 3)).square().mean(dim=0).sum().item()
    assert zero_cost("fisher", model, ["0.weight"], Batch(x, labels)) == pytest.approx(expected)


def test_synflow() -> None:
    """R = 1^T |W2| |W1| 1: each layer's weights times their gradients sum up to R itself."""
    model = nn.Sequential(
        nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3, bias=False)
    )
    first, second = model[0].weight.detach().abs(), model[3].weight.detach().abs()
    total = (second @ first @ torch.ones(4)).sum().item()
    batch = Batch(torch.randn(2, 4), torch.tensor([0, 1]))
    found = zero_cost("synflow", model, ["0.weight", "3.weight"], batch)
    assert found == pytest.approx(2 * total, rel=1e-5)


def test_synflow_bn() -> None:
    """By the definition, as finite differences: R under weights that are scaled along themselves.

    Batch norm takes the statistics of the input of ones: over the places of its single image.
    """
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 4 * 4, 2, bias=False),
    )  # fmt: skip
    layers = ["0.weight", "3.weight", "5.weight"]
    found = zero_cost(
        "synflow-bn", model, layers, Batch(torch.randn(4, 2, 6, 6), torch.arange(4) % 2)
    )
    positive = {name: p.detach().double().abs() for name, p in model.named_parameters()}

    def total(scaled: str, factor: float) -> float:
        params = {n: p * factor if n == scaled else p for n, p in positive.items()}
        ready = model.double().train()
        with torch.no_grad():
            return float(functional_call(ready, params, torch.ones(1, 2, 6, 6).double()).sum())

    expected = sum((total(n, 1 + 1e-6) - total(n, 1 - 1e-6)) / 2e-6 for n in layers)
    assert found == pytest.approx(expected, rel=1e-5)
    single = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    batch = Batch(torch.randn(2, 4), torch.tensor([0, 1]))  # a single position: the norm gives 0
    assert zero_cost("synflow-bn", single, ["0.weight", "2.weight"], batch) == pytest.approx(0)


def test_jacobcov() -> None:
    """y = relu(W x): the input gradient is the sum of the rows of W that are on."""
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(8, 6, generator=generator))
    x = torch.randn(4, 6, generator=generator)
    weight = model[0].weight.detach().double().numpy()
    on = (x.double().numpy() @ weight.T > 0).astype(float)
    v = np.linalg.eigvalsh(np.corrcoef(on @ weight)) + 1e-5
    expected = -np.sum(np.log(v) + 1 / v)
    batch = Batch(x, torch.zeros(4, dtype=torch.long))
    assert zero_cost("jacobcov", model, [], batch) == pytest.approx(expected, rel=1e-3)
    everything_alike = zero_cost("jacobcov", nn.Linear(6, 2), [], batch)
    v = np.array([4, 0, 0, 0]) + 1e-5
    assert everything_alike == pytest.approx(-np.sum(np.log(v) + 1 / v), rel=1e-2)


def test_a_convolutional_network_is_left_as_it_is() -> None:
    model = ConvNet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = weight_layers(trace(model, torch.zeros(2, 3, 8, 8)))
    batch = Batch(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    for metric in PROXIES:
        assert math.isfinite(zero_cost(metric, model, layers, batch)), metric
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(param.grad is None for param in model.parameters())


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("no second derivative")


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Slope.apply(grad)


class DifferentiableOnce(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return Doubled.apply(x)


def test_errors() -> None:
    model, x, labels, _ = linear()
    with pytest.raises(GHNInitError, match="unknown metric 'magic'"):
        zero_cost("magic", model, ["weight"], Batch(x, labels))
    with pytest.raises(GHNInitError, match="labels up to 7"):
        zero_cost("snip", model, ["weight"], Batch(x, labels + 5))
    missing = nn.Sequential(model, DifferentiableOnce())
    with pytest.raises(GHNInitError, match="no second derivative"):
        zero_cost("grasp", missing, ["0.weight"], Batch(x, labels))
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(GHNInitError, match="not finite"):
        zero_cost("snip", model, ["weight"], Batch(x, labels))
