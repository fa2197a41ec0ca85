"""A layer that repeats the calls of an earlier one must record what running it records."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

import ghn_init
from ghn_init.graph import meta_recorder
from ghn_init.graph.inputs import given_inputs
from ghn_init.graph.meta_recorder import MetaRecorder
from ghn_init.graph.passes import Pass, record
from ghn_init.graph.recording import Call

IMAGE = torch.zeros(2, 8, 12, 12)


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    MetaRecorder._known.clear()


def described(model: nn.Module, inputs: Any = IMAGE, training: bool = True) -> list[Any]:
    """All that a recording says, with numbers in the place of calls."""
    live = record(model, given_inputs(inputs), Pass(training=training)).live()
    number = {call: i for i, call in enumerate(live)}

    def plain(value: Any) -> Any:
        if isinstance(value, Call):
            return f"call {number[value]}"
        return (
            tuple(map(plain, value)) if isinstance(value, (tuple, list)) else (type(value), value)
        )

    return [
        (c.name, plain(c.args), [(k, plain(v)) for k, v in c.kwargs.items()], c.size, c.param)
        for c in live
    ]


def described_without(model: nn.Module, inputs: Any = IMAGE, training: bool = True) -> list[Any]:
    """The same with every layer run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(meta_recorder, "may_repeat", lambda module: False)
        return described(model, inputs, training)


LAYERS: Sequence[tuple[nn.Module, tuple[int, ...]]] = (
    (nn.Conv1d(8, 4, 3, padding="same"), (2, 8, 12)),
    (nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"), (2, 8, 12, 12)),
    (nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=False), (2, 8, 12, 12)),
    (nn.ConvTranspose2d(8, 4, 2, stride=2), (2, 8, 12, 12)),
    (nn.BatchNorm2d(8), (2, 8, 12, 12)),
    (nn.BatchNorm2d(8, affine=False, track_running_stats=False), (2, 8, 12, 12)),
    (nn.InstanceNorm2d(8, affine=True), (2, 8, 12, 12)),
    (nn.GroupNorm(2, 8), (2, 8, 12, 12)),
    (nn.LayerNorm([12, 12]), (2, 8, 12, 12)),
    (nn.Linear(12, 5), (2, 8, 12)),
    (nn.Bilinear(12, 12, 5), (2, 12)),
    (nn.PReLU(), (2, 8)),
    (nn.ReLU(inplace=True), (2, 8)),
    (nn.Hardswish(inplace=True), (2, 8)),
    (nn.GELU("tanh"), (2, 8)),
    (nn.Softmax(dim=-1), (2, 8)),
    (nn.Dropout(0.3), (2, 8)),
    (nn.Dropout2d(0.3, inplace=True), (2, 8, 12, 12)),
    (nn.AdaptiveAvgPool2d(1), (2, 8, 12, 12)),
    (nn.MaxPool2d(2, return_indices=False), (2, 8, 12, 12)),
    (nn.Flatten(), (2, 8, 12, 12)),
    (nn.Unflatten(1, (2, 4)), (2, 8)),
    (nn.PixelShuffle(2), (2, 8, 12, 12)),
    (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 8, 12, 12)),
    (nn.ZeroPad2d(1), (2, 8, 12, 12)),
    (nn.Identity(), (2, 8)),
    (nn.LocalResponseNorm(3), (2, 8, 12, 12)),
)


class Between(nn.Module):
    """A layer between others, one of which reads what the layer may have written."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        x = x.mul(self.scale[0])
        view = x.view(-1)
        out = self.layer(x, x + 1) if isinstance(self.layer, nn.Bilinear) else self.layer(x)
        return out.sum() * view.sum() * x.mean()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda x: type(x).__name__)
def test_repeated_is_what_was_run(layer: nn.Module, shape: tuple[int, ...], training: bool) -> None:
    model, inputs = Between(layer, 8), torch.zeros(shape)
    run = described_without(model, inputs, training)
    described(model, inputs, not training)
    for _ in range(2):
        assert described(model, inputs, training) == run


def test_like_layers_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[str] = []
    call = MetaRecorder._call

    def counted(self: MetaRecorder, func: Any, *rest: Any) -> Any:
        run.append(func.__name__)
        return call(self, func, *rest)

    monkeypatch.setattr(MetaRecorder, "_call", counted)
    monkeypatch.setattr(nn.Module, "smart_apply", lambda self: None, raising=False)  # transformers
    block = [nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    ghn_init.trace(nn.Sequential(*block), IMAGE)
    assert "convolution.default" in run
    run.clear()
    more = nn.Sequential(*block, *copy.deepcopy(block))
    assert len(ghn_init.trace(more, IMAGE)) == 7
    assert run == []


def pair(forward: Callable[..., Tensor], **layers: nn.Module) -> Callable[[], nn.Module]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

    Model.forward = forward  # type: ignore[assignment]
    return Model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    return model


def exchanged(self: Any, x: Tensor) -> Tensor:
    return functional_call(self.a, {"weight": self.a.weight.exp(), "bias": self.a.bias}, (x,))


def padded(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    self.a.padding = (0, 0)
    return self.a(x)


def copied(self: Any, x: Tensor) -> Tensor:
    other = copy.deepcopy(self.a)
    other.padding = (0, 0)
    return other(self.a(x))


def cast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return self.a(x)


class _Doubled(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        return out.sigmoid() if func is F.conv2d else out


def doubled(self: Any, x: Tensor) -> Tensor:
    with _Doubled():
        return self.a(x)


def aliased(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    view = x.view(-1)
    self.act(x)
    return view.sum()


def viewed(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    self.flat(x).mul_(2).sigmoid_()
    return x.sum()


def twice(self: Any, x: Tensor) -> Tensor:
    x = x.sum((2, 3))
    return self.a(x, x) * self.a(x, x + 1)


def written(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    return self.act(x) * x


class WritesToAView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out = x + 1
        x.view(-1).sigmoid_()
        return out


WritesToAView.__module__ = "torch.nn.modules.of_another_version"
CONV = nn.Conv2d(8, 8, 3, padding=1)


MODELS = {
    "padded": pair(padded, a=CONV),
    "copied": pair(copied, a=CONV),
    "cast": pair(cast, a=CONV),
    "doubled": pair(doubled, a=CONV),
    "exchanged": pair(exchanged, a=CONV),
    "aliased": pair(aliased, a=CONV, act=nn.ReLU(inplace=True)),
    "viewed": pair(viewed, a=CONV, flat=nn.Flatten()),
    "twice": pair(twice, a=nn.Bilinear(8, 8, 8)),
    "written": pair(written, a=CONV, act=WritesToAView()),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_else_has_a_say_is_heard(name: str) -> None:
    expected = described_without(MODELS[name]())
    described(nn.Sequential(CONV, nn.ReLU(inplace=True)))
    for _ in range(3):  # with like layers known, and with what this model has taught too
        assert described(MODELS[name]()) == expected


def test_tied_weights() -> None:
    ghn_init.trace(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.zeros(2, 8))
    params = [node.param for node in ghn_init.trace(tied(), torch.zeros(2, 8)).nodes if node.param]
    assert params == ["0.weight", "0.bias", "0.weight", "1.bias"]


def test_attributes_in_another_order() -> None:
    other = nn.LayerNorm(8)
    weight = other.weight
    del other.weight
    other.weight = weight  # behind the bias now, which has the same size
    for layer in (nn.LayerNorm(8), other):
        node = ghn_init.trace(nn.Sequential(nn.Linear(8, 8), layer), torch.zeros(2, 8)).nodes[3]
        assert (node.op, node.param, node.norm_bias) == ("ln", "1.weight", "1.bias")


@pytest.mark.parametrize("wrapped", [lambda f: f, functools.wraps(F.silu), functools.partial])
def test_functions_exchanged_for_ones_with_a_state(
    monkeypatch: pytest.MonkeyPatch, wrapped: Callable[[Any], Any]
) -> None:
    chosen = [torch.relu]
    monkeypatch.setattr(F, "gelu", wrapped(lambda x, **options: chosen[0](x)))
    model, inputs = nn.Sequential(nn.Linear(8, 8), nn.GELU()), torch.zeros(2, 8)
    for function in (torch.relu, torch.tanh):
        chosen[0] = function
        assert described(model, inputs)[-1][0] == f"aten::{function.__name__}"


def test_exchanged_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    inputs = torch.zeros(2, 8)
    assert "aten::gelu" in [name for name, *_ in described(model, inputs)]
    monkeypatch.setattr(F, "gelu", lambda x, approximate: x * torch.sigmoid(1.7 * x))
    assert "aten::gelu" not in [name for name, *_ in described(model, inputs)]
    monkeypatch.undo()
    monkeypatch.setattr(nn.GELU, "forward", nn.Tanh.forward)
    assert "aten::tanh" in [name for name, *_ in described(model, inputs)]


def test_hooks_are_called() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    before = described(model)
    model[1].register_forward_hook(lambda module, args, out: out.sigmoid())
    assert described(model) != before
    assert described(model) == described(model)


def test_a_size_that_does_not_fit_is_refused_again() -> None:
    ghn_init.trace(CONV, IMAGE)
    for _ in range(2):
        with pytest.raises(ghn_init.GHNInitError, match="does not run"):
            ghn_init.trace(CONV, torch.zeros(2, 3, 12, 12))
