"""Networks without normalization: their residual branches are scaled, their outputs checked."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from models import ConvNet, torchvision_model
from torch import Tensor, nn
from zoo_models import ZOO

import ghn_init
from ghn_init.graph.residuals import branches_without_norm, ends, runs_without_norm
from ghn_init.weights.branches import stabilize


def conv(channels: int, out: int | None = None) -> nn.Conv2d:
    return nn.Conv2d(channels, out or channels, 3, padding=1)


class Gated(nn.Module):
    """A residual block of two convolutions, with a gate at its end (RCAN)."""

    def __init__(self, width: int, gate: bool) -> None:
        super().__init__()
        self.a, self.b = conv(width), conv(width)
        squeeze = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU())
        excite = (nn.Conv2d(4, width, 1), nn.Sigmoid())
        self.gate = nn.Sequential(*squeeze, *excite) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        return y * self.gate(y) if self.gate is not None else y


class Restorer(nn.Module):
    """Nested residual sums over a long stream, as in super-resolution."""

    def __init__(self, blocks: int, *, groups: int = 1, gate: bool = False, norm: bool = False,
                 scale: float = 1.0) -> None:  # fmt: skip
        super().__init__()
        width = 32
        self.stem, self.end, self.scale = conv(3, width), conv(width, 3), scale
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.groups = nn.ModuleList(
            nn.ModuleList(Gated(width, gate) for _ in range(blocks)) for _ in range(groups)
        )
        self.joints = nn.ModuleList(conv(width) for _ in range(groups))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for blocks, joint in zip(self.groups, self.joints, strict=True):
            y = x
            for block in blocks:
                y = torch.add(y, self.norm(block(y)), alpha=self.scale)
            x = x + joint(y)
        return self.end(x)


def spread(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float(model.eval()(x).square().mean().sqrt())


@pytest.mark.parametrize(
    "options",
    [{"blocks": 16}, {"blocks": 6, "groups": 3, "gate": True}, {"blocks": 24, "scale": 0.1}],
    ids=["plain", "nested and gated", "scaled"],
)
@pytest.mark.parametrize("method", ["ghn3", "ghn3-orth"])
def test_branches_are_scaled_and_the_report_says_so(options: dict, method: str) -> None:
    torch.manual_seed(0)
    x, model = torch.rand(2, 3, 24, 24), Restorer(**options)
    before = spread(model, x)
    _, report = ghn_init.apply(model, method, ghn="embedded", example_inputs=x, return_report=True)
    assert before / 10 < spread(model, x) < 10 * before
    (note,) = [note for note in report.notes if "scaled down" in note]
    assert note.startswith("groups.")
    assert "far" not in str(report.notes)


def test_branches_with_a_norm_are_not_scaled() -> None:
    (branch,) = branches_without_norm(ghn_init.trace(Restorer(6, norm=True)))
    assert branch.last == ("joints.0.weight", "joints.0.bias")  # no norm is in the outer sum
    for name in ("resnet18", "vit_b_16", "convnext_tiny", "mobilenet_v2", "swin_t"):
        graph = ghn_init.trace(torchvision_model(name))
        assert branches_without_norm(graph) == [], name
        run = runs_without_norm(graph)
        assert max(run[i] for i in ends(graph)) < 4, name


def test_normalized_weights_are_not_scaled() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight / (weight.std() * 30), self.bias)

    model = Restorer(4)
    for group in model.groups:
        for block in group:
            block.b = Standardized(32, 32, 3, padding=1)
    ends = [branch.last[0] for branch in branches_without_norm(ghn_init.trace(model))]
    assert ends == ["joints.0.weight"]


def test_a_deep_plain_network_is_warned_of() -> None:
    """And one that is not deep, or that bounds its activations, is not."""

    def plain(depth: int, activation: type[nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        layers = [m for _ in range(depth) for m in (conv(32), activation())]
        return nn.Sequential(conv(3, 32), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                             nn.Linear(32, 10))  # fmt: skip

    x = torch.rand(2, 3, 24, 24)
    model = plain(16, nn.ReLU)
    before = spread(model, x)
    _, report = ghn_init.apply(model, "ghn3", ghn="embedded", example_inputs=x, return_report=True)
    assert not before / 20 < spread(model, x) < 20 * before
    assert "far" in str(report.notes)
    for other in (plain(1, nn.ReLU), plain(16, nn.Tanh), ConvNet()):
        _, report = ghn_init.apply(other, ghn="embedded", example_inputs=x, return_report=True)
        assert report.notes == ()


@pytest.mark.parametrize("end", ["relu", "pool", "linear"])
def test_outputs_that_hardly_depend_on_the_input_are_warned_of(end: str) -> None:
    """Because a ReLU passes nothing on; it may be the last thing that the model does."""
    layers = [m for _ in range(4) for m in (conv(16), nn.ReLU())]
    tail = {
        "relu": (nn.Conv2d(16, 10, 1), nn.ReLU()),
        "pool": (nn.Conv2d(16, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),  # SqueezeNet
        "linear": (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    }[end]
    model = nn.Sequential(conv(3, 16), *layers, *tail)
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(2)
    graph = ghn_init.trace(model)
    own = dict(model.named_parameters())
    bias = "7.bias" if end == "linear" else "9.bias"
    with torch.no_grad():
        for shift in (-1000.0, 1.0):
            changed = own | {bias: own[bias] + shift}
            notes = stabilize(graph, changed, own, scale=False).notes
            dead = any("hardly depend on the input" in note for note in notes)
            assert dead == (shift < 0), notes
            twin = copy.deepcopy(model)
            twin.load_state_dict(changed)
            outputs = twin(torch.randn(4, 3, 24, 24))
            assert dead == bool((outputs == outputs[:1]).all())


def test_what_is_not_written_is_not_scaled() -> None:
    model = Restorer(4)
    frozen = model.groups[0][3].b.weight.requires_grad_(False)
    before = frozen.clone()
    _, report = ghn_init.apply(model, ghn="embedded", return_report=True)
    assert torch.equal(frozen, before)
    assert any("scaled down" in note for note in report.notes)


def test_layers_before_a_kept_head_keep_its_inputs_at_one_size() -> None:
    """As a detector's towers, which start with small weights in front of a prior."""

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
            self.layers = nn.ModuleList(conv(32) for _ in range(4))
            self.scores, self.boxes = conv(32, 5), conv(32, 4)
            for layer in (*self.layers, self.scores, self.boxes):
                nn.init.normal_(layer.weight, std=0.01)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = F.relu(self.norm(self.stem(x)))
            for layer in self.layers:
                x = F.relu(layer(x))
            return self.scores(x), self.boxes(x)

    def size(model: Tower, x: Tensor) -> float:
        seen: list[Tensor] = []
        with model.scores.register_forward_hook(lambda m, args, out: seen.append(args[0])):
            model(x)
        return float(seen[0].detach().square().mean().sqrt())

    x, model = torch.rand(2, 3, 24, 24), Tower()
    before = size(model, x)
    _, report = ghn_init.apply(model, ghn="embedded", example_inputs=x, return_report=True)
    after = size(model, x)
    assert before / 5 < after < 5 * before
    (note,) = [n for n in report.notes if "which are kept" in n]
    assert note.startswith("layers.3.weight, layers.3.bias:")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.targets])
def test_first_loss(name: str) -> None:
    """Below 20 times that of the model's own initialization, or the report warns."""
    entry = ZOO[name]
    torch.manual_seed(0)
    before = entry.first_loss(entry.build())
    torch.manual_seed(0)
    model = entry.build()
    _, report = ghn_init.apply(
        model, ghn="embedded", example_inputs=entry.inputs(), return_report=True
    )
    after = entry.first_loss(model)
    assert after < 20 * before or any("may be far" in note for note in report.notes)
