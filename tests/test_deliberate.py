"""Values that their author meant are left, and named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import ConvNet
from test_apply import seeded, state
from torch import Tensor, nn

import ghn_init
from ghn_init import Report


def applied(model: nn.Module, **options: object) -> Report:
    """The report, after a check that it is true of every parameter."""
    before = {name: p.clone() for name, p in model.named_parameters()}
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True, **options)
    assert report.left.keys() | set(report.written) == before.keys()
    for name, param in model.named_parameters():
        assert torch.equal(param, before[name]) == (name in report.left), name
    return report


class Adapter(nn.Module):
    """A frozen layer with a low-rank update that starts at zero (LoRA)."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.down, self.up = nn.Linear(8, rank, bias=False), nn.Linear(rank, 8, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("rank", [1, 4])
def test_adapters_that_start_at_zero_stay_there(rank: int) -> None:
    model = nn.Sequential(Adapter(rank), nn.ReLU(), Adapter(rank), nn.ReLU(), nn.Linear(8, 10))
    model[-1].requires_grad_(False)
    x = torch.randn(3, 8)
    before = model(x)
    report = applied(model, example_inputs=x)
    assert torch.equal(model(x), before)
    assert {"0.down.weight", "2.down.weight"} == set(report.written)
    assert all("all zero" in report.left[f"{i}.up.weight"] for i in (0, 2))
    report = applied(model, example_inputs=x, include_deliberate=True)
    assert {"0.up.weight", "2.up.weight"} <= set(report.written)


class Controlled(ConvNet):
    """Zero convolutions, a spatial transformer, an identity, an open gate."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Linear(3, 6)
        self.zero = nn.Conv2d(3, 3, 1)
        self.identity = nn.Conv2d(3, 3, 3, padding=1)
        self.gate = nn.Conv2d(3, 3, 1)
        nn.init.zeros_(self.locate.weight)
        with torch.no_grad():
            self.locate.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)
        nn.init.dirac_(self.identity.weight)
        nn.init.constant_(self.gate.bias, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.locate(x.mean((2, 3))).view(-1, 2, 3), x.shape, False)
        x = F.grid_sample(x, grid, align_corners=False)
        x = self.identity(x) * self.gate(x).sigmoid() + self.zero(x)
        return super().forward(x)


def test_zero_and_identity_layers_are_left_with_their_biases() -> None:
    report = applied(Controlled())
    assert {
        name: reason.split(": ")[-1].split(" (")[0] for name, reason in report.left.items()
    } == {
        "locate.weight": "all zero",
        "locate.bias": "the weight it belongs to is deliberate",
        "zero.weight": "all zero",
        "zero.bias": "the weight it belongs to is deliberate",
        "identity.weight": "an identity",
        "identity.bias": "the weight it belongs to is deliberate",
        "gate.bias": "all the same, and large",
    }
    assert "include_deliberate" in str(report)
    assert applied(Controlled(), include_deliberate=True).coverage == 1


def test_ordinary_zeros_are_predicted() -> None:
    """Biases, a classification layer and norms, at zero as many models start them."""
    model = ConvNet()
    for module in (model.depthwise, model.squeeze):
        nn.init.zeros_(module.bias)
    nn.init.constant_(model.excite.bias, 0.02)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.norm.weight)
    assert applied(model).coverage == 1


def test_beside_frozen_parameters_norms_that_start_at_zero_are_left() -> None:
    model = ConvNet()
    nn.init.zeros_(model.norm.weight)
    model.stem.requires_grad_(False)
    report = applied(model)
    assert {n for n, reason in report.left.items() if "starts at 0" in reason} == {
        "norm.weight",
        "norm.bias",
    }


def test_a_model_of_zeros_is_not_initialized_yet() -> None:
    model = ConvNet()
    for param in model.parameters():
        nn.init.zeros_(param)
    assert applied(model).coverage == 1


def test_predictions_do_not_depend_on_values() -> None:
    model = Controlled()
    before = state(model)
    assert "zero.weight" in ghn_init.predict(model, seeded())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
