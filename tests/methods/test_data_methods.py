"""Methods that run the model: what they make better, what they leave, and what they refuse."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from image_folders import bright_and_dark
from safetensors.torch import load_file
from small_nets import CLASSES, PlainNet, ResidualNet, batch
from torch import Tensor, nn

import ghn_init
from ghn_init import GHNInitError
from ghn_init.cli.main import main
from ghn_init.methods import learned_scales

NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": ResidualNet,
    "norm-free": lambda: PlainNet(depth=6, gain=2.5),
}
nets = pytest.mark.parametrize("net", NETS)

DATA = ("lsuv", "gradinit:steps=2", "nio:steps=2,batch=8")
"""Methods that need images."""


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """In training mode but for dropout, as the methods see it."""
    for module in model.modules():
        module.training = not isinstance(module, nn.Dropout)
    return F.cross_entropy(model(images), labels)


# -- what they make better


def loss_after_a_step(model: nn.Module) -> float:
    """GradInit's objective, by torch's own optimizer."""
    model, (images, labels) = copy.deepcopy(model), batch()
    loss_of(model, images, labels).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-9)  # the direction alone
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / 1e-9)
    optimizer.step()
    return loss_of(model, images, labels).item()


@nets
def test_gradinit_lowers_the_loss_after_a_first_step(net: str) -> None:
    model, (images, labels) = NETS[net](), batch()
    before = loss_after_a_step(model)
    method = "gradinit:steps=60,lr=0.03,batch=24"
    _, report = ghn_init.apply(model, method, images=images, labels=labels, return_report=True)
    assert loss_after_a_step(model) < 0.97 * before
    assert any("loss after a first step of sgd" in note for note in report.notes)


def mean_cosine(model: nn.Module) -> float:
    """GradCosine between the two halves of the batch, from `.grad`."""
    images, labels = batch()
    halves = []
    for half in (slice(None, 12), slice(12, None)):
        twin = copy.deepcopy(model)
        for module in twin.modules():
            module.training = isinstance(module, nn.BatchNorm2d)
        F.cross_entropy(twin(images), labels, reduction="none")[half].mean().backward()
        halves.append(
            torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])
        )
    return float(F.cosine_similarity(halves[0], halves[1], dim=0))


@nets
def test_nio_aligns_gradients(net: str) -> None:
    model, (images, labels) = NETS[net](), batch()
    before = mean_cosine(model)
    method = "nio:steps=40,lr=0.03,batch=24,splits=2,overlap=0,norm=0,gamma=100"
    ghn_init.apply(model, method, images=images, labels=labels)
    assert mean_cosine(model) > before + 0.05


def gradient_quotient(model: nn.Module) -> float:
    """MetaInit's objective, with H g from a difference of two gradients, in double precision."""
    model, (images, labels) = copy.deepcopy(model).double().eval(), batch()
    params = list(model.parameters())

    def gradient() -> list[Tensor]:
        loss = F.cross_entropy(model(images.double()), labels)
        return list(torch.autograd.grad(loss, params))

    def moved(by: float) -> list[Tensor]:
        with torch.no_grad():
            for param, start, g in zip(params, starts, at, strict=True):
                param.copy_(start + by * g)
        return gradient()

    starts, at, width = [p.detach().clone() for p in params], gradient(), 1e-6
    pairs = zip(moved(width), moved(-width), strict=True)
    products = [(a - b) / (2 * width) for a, b in pairs]
    flat, hessian = (torch.cat([t.flatten() for t in ts]) for ts in (at, products))
    sign = torch.where(flat >= 0, 1e-5, -1e-5)
    return float(((flat - hessian) / (flat + sign) - 1).abs().mean())


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (ResidualNet, "steps=60,lr=0.005"),
        (lambda: PlainNet(gain=2), "steps=40,lr=0.02,momentum=0.5"),
    ],
)
def test_metainit_lowers_the_gradient_quotient(
    build: Callable[[], nn.Module], settings: str
) -> None:
    model, (images, labels) = build(), batch()
    before = gradient_quotient(model)
    given = {"images": images, "labels": labels, "return_report": True}
    _, report = ghn_init.apply(model, f"metainit:batch=24,{settings}", **given)
    assert gradient_quotient(model) < 0.8 * before
    assert f"gradient quotient {before:.3g}" in " ".join(report.notes)


def test_metainit_needs_no_data() -> None:
    given = {"example_inputs": batch()[0][:2], "return_report": True}
    method = "metainit:steps=60,batch=24,lr=0.05,momentum=0"
    _, report = ghn_init.apply(PlainNet(gain=2), method, **given)
    before, after = re.findall(r"quotient ([\d.]+) before and ([\d.]+) after", report.notes[-1])[0]
    assert float(after) < 0.8 * float(before)
    model = timm.create_model("test_byobnet", pretrained_cfg="metainit:steps=1,batch=2")
    assert isinstance(model, nn.Module)
    with pytest.raises(GHNInitError, match=r"'lsuv' needs images, which timm\.create_model cannot"):
        timm.create_model("test_byobnet", pretrained_cfg="lsuv")


def variances(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Of the outputs of all convolution and linear layers, in training mode but for dropout."""
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda _, __, output, name=name: found.update({name: float(output.detach().var())})
            )
    for module in model.modules():
        module.training = not isinstance(module, nn.Dropout)
    model(images)
    return found


@pytest.mark.parametrize("method", ["lsuv", "rand+lsuv", "orth+lsuv"])
@nets
def test_lsuv_gives_every_layer_unit_variance(net: str, method: str) -> None:
    model, (images, _) = NETS[net](), batch()
    _, report = ghn_init.apply(model, method, images=images, return_report=True)
    found = variances(model, images)
    assert len(found) > 4
    assert all(0.85 < variance < 1.15 for variance in found.values()), found
    assert any("variance of the layers' outputs" in note for note in report.notes)


def test_lsuv_is_orthonormal_and_has_no_biases() -> None:
    model, (images, _) = PlainNet(), batch()
    ghn_init.apply(model, "lsuv", images=images)
    assert all(not p.any() for name, p in model.named_parameters() if "bias" in name)
    for conv in model.convs:
        rows = conv.weight.detach().flatten(1)
        gram = rows @ rows.t()
        assert torch.allclose(gram, gram[0, 0] * torch.eye(len(gram)), atol=1e-4)


def test_lsuv_reaches_projections_of_attention() -> None:
    """`nn.MultiheadAttention` calls no module for its queries, keys and values."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x.flatten(2).transpose(1, 2))
            return self.head(self.attention(x, x, x)[0].mean(1))

    model, (images, _) = Net(), batch()
    ghn_init.apply(model, "rand+lsuv", images=images)
    x = model.embed(images.flatten(2).transpose(1, 2))
    projected = F.linear(x, model.attention.in_proj_weight, model.attention.in_proj_bias)
    assert 0.85 < float(projected.var()) < 1.15


def test_second_steps_behind_a_hypernetwork() -> None:
    """Where no norm keeps activations at one size, a prediction is rescaled on images."""
    model, (images, labels) = PlainNet(depth=8), batch()
    predicted = ghn_init.apply(copy.deepcopy(model), "ghn3-orth", ghn="embedded")
    given = {"ghn": "embedded", "images": images, "head": "predict"}
    ghn_init.apply(model, "ghn3-orth+lsuv", **given)
    assert all(0.85 < variance < 1.15 for variance in variances(model, images).values())
    before, after = predicted.convs[3].weight, model.convs[3].weight
    factor = float((before * after).sum() / before.square().sum())
    assert torch.allclose(after, factor * before, atol=1e-4 * abs(factor))  # only scaled
    _, report = ghn_init.apply(
        model, "ghn3-orth+lsuv+gradinit:steps=3", **given, labels=labels, return_report=True
    )
    assert report.method == "ghn3-orth+lsuv+gradinit"
    assert [note.partition(",")[0].partition(":")[0] for note in report.notes[-2:]] == [
        "lsuv",
        "gradinit",
    ]


# -- what they leave


@pytest.mark.parametrize("method", [*DATA, "metainit:steps=2,batch=4"])
def test_nothing_but_the_report_s_parameters_changes(method: str) -> None:
    model, (images, labels) = ResidualNet(), batch()
    model.convs[1].weight.requires_grad_(False)
    model.head.eval()
    before, modes = state_of(model), [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    given = {"images": images, "labels": labels}
    used = {k: v for k, v in given.items() if k == "images" or "lsuv" not in method}
    _, report = ghn_init.apply(model, method, **used, return_report=True)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in model.modules()] == modes
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert changed <= set(report.written)
    assert "frozen" in report.left["convs.1.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert not model.convs[1].weight.requires_grad
    again = ghn_init.apply(ResidualNet(), method, **used)
    other = ghn_init.apply(ResidualNet(), method, **used)
    assert is_unchanged(again, state_of(other))  # dropout or not


@pytest.mark.parametrize("method", DATA)
def test_ties_wrappers_and_half_precision(method: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
            self.second.weight = self.first.weight
            self.head = nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))

    images, labels = batch()
    given = {"images": images} if method == "lsuv" else {"images": images, "labels": labels}
    model = Tied().bfloat16()
    before = state_of(model)
    ghn_init.apply(nn.DataParallel(model), method, **given)
    assert model.first.weight is model.second.weight
    assert model.first.weight.dtype == torch.bfloat16
    assert not is_unchanged(model, before)


@pytest.mark.parametrize("method", ["gradinit", "nio", "metainit:batch=8"])
def test_hard_sigmoids_have_a_second_derivative(method: str) -> None:
    """PyTorch's kernel, which MobileNetV3 uses, has none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Hardsigmoid(), nn.Conv2d(8, 8, 3), nn.Hardsigmoid(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip
        images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    given = {"images": images, "labels": labels} if "metainit" not in method else {}
    _, report = ghn_init.apply(
        model, method, steps=1, **given, example_inputs=images, return_report=True
    )
    assert report.written


def test_head_keep_leaves_the_last_layer() -> None:
    model, (images, labels) = PlainNet(), batch()
    before = model.head.weight.clone()
    ghn_init.apply(model, "lsuv", images=images, head="keep")
    ghn_init.apply(model, "gradinit:steps=2", images=images, labels=labels, head="keep")
    assert torch.equal(model.head.weight, before)


# -- going on


@pytest.mark.parametrize("method", ["gradinit", "nio", "metainit"])
def test_an_interrupted_run_goes_on(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = batch()
    given = {"images": images, "labels": labels}
    if method == "metainit":
        given = {"example_inputs": images[:2]}
    text = f"{method}:steps=6,batch=8"
    whole = ghn_init.apply(PlainNet(), text, **given)
    monkeypatch.setattr(learned_scales, "_SAVE_EVERY", 0.0)
    descent, steps = learned_scales._descent, []

    def interrupted(*args: object) -> object:
        steps.append(args[-1])
        if len(steps) == 4:
            raise KeyboardInterrupt
        return descent(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(learned_scales, "_descent", interrupted)
    file, model = tmp_path / "state.json", PlainNet()
    with pytest.raises(KeyboardInterrupt):
        ghn_init.apply(model, text, **given, state=file)
    assert is_unchanged(model, state_of(PlainNet()))
    ghn_init.apply(model, text, **given, state=file)
    assert steps == [0, 1, 2, 3, 3, 4, 5]
    assert is_unchanged(model, state_of(whole))
    with pytest.raises(GHNInitError, match="holds results with other settings: seed"):
        ghn_init.apply(model, text, **given, state=file, seed=1)


def test_two_steps_have_a_state_each(tmp_path: Path) -> None:
    images, labels = batch()
    given = {"images": images, "labels": labels, "state": tmp_path / "state"}
    method = "rand+gradinit:steps=1+nio:steps=1,batch=8"
    first = ghn_init.apply(PlainNet(), method, **given)
    assert {p.name for p in tmp_path.iterdir()} == {"state.gradinit", "state.nio"}
    assert is_unchanged(ghn_init.apply(PlainNet(), method, **given), state_of(first))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bright_and_dark(tmp_path / "data", 32, bright=200, dark=50, spread=10)
    shared = ["export", "test_byobnet", "--num-classes", "2", "--images", str(data)]
    output, state = tmp_path / "w.safetensors", tmp_path / "state.json"
    learned = ["--method", "gradinit:batch=4", "--steps", "1", "--state", str(state)]
    assert main([*shared, *learned, "-o", str(output)]) == 0
    assert "gradinit, 1 steps: loss after a first step" in capsys.readouterr().out
    assert state.exists()
    assert load_file(output)
    assert main([*shared, "--method", "orth", "-o", str(output)]) == 1
    assert capsys.readouterr().err == "ghn-init: method 'orth' uses no images: leave images out.\n"
    assert main([*shared, "--method", "lsuv", "--state", str(state), "-o", str(output)]) == 0


# -- what they refuse


def test_what_is_missing_is_said() -> None:
    model, (images, labels) = PlainNet(), batch()
    before = state_of(model)
    for method, given, message in (
        ("lsuv", {}, "'lsuv' needs images: give images="),
        ("gradinit", {"images": images}, "'gradinit' needs labels: give labels="),
        ("ghn3+nio", {"labels": labels}, r"'ghn3\+nio' needs images"),
        ("orth", {"steps": 5}, "steps: method 'orth' has no such setting. Leave it out"),
        ("gradinit:steps=0", {"images": images, "labels": labels}, "steps is 0: give 1 or more"),
        ("gradinit:gamma=x", {}, "'gamma=x' in method 'gradinit:gamma=x': give a number"),
        ("gradinit:steps=5", {"steps": 5}, "steps is given twice"),
        ("gradinit+orth", {}, "'orth' cannot stand behind another method.*Those that can: lsuv"),
        ("rand+lsuv:noise=0", {}, "noise: method 'lsuv' adds no noise"),
        ("nio:splits=25", {"images": images, "labels": labels}, "there are 24 images: give more"),
    ):
        with pytest.raises(GHNInitError, match=message):
            ghn_init.apply(model, method, **given)
    assert is_unchanged(model, before)


@pytest.mark.parametrize("method", ["gradinit", "nio", "metainit", "lsuv+gradinit"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.arange(24), f"labels are from 0 to 23, and the model has {CLASSES} outputs"),
        (torch.arange(24) % 5 - 1, f"labels are from -1 to 3, and the model has {CLASSES} outputs"),
    ],
)
def test_labels_out_of_range(method: str, labels: Tensor, message: str) -> None:
    model, (images, _) = PlainNet(), batch()
    before = state_of(model)
    with pytest.raises(GHNInitError, match=message):
        ghn_init.apply(model, f"{method}:steps=2,batch=24", images=images, labels=labels)
    assert is_unchanged(model, before)


@pytest.mark.parametrize("method", [*DATA, "metainit:steps=2"])
def test_a_loss_that_is_not_finite(method: str) -> None:
    model, (images, labels) = PlainNet(), batch()
    with torch.no_grad():
        model.convs[2].weight.fill_(1e30)
        model.convs[3].weight.mul_(1e30)
    model.convs[2].weight.data[0, 0, 0, 0] = 1e29  # or it counts as deliberate
    before = state_of(model)
    given = {"images": images, "labels": labels}
    if method == "lsuv":  # its own weights are never so large; the images are
        given = {"images": images * 1e38}
    with pytest.raises(GHNInitError, match="not finite"):
        ghn_init.apply(model, method, **given)
    assert is_unchanged(model, before)


@pytest.mark.parametrize("method", DATA)
def test_models_that_they_cannot_run(method: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = PlainNet()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.net(a - b)

    class Map(nn.Conv2d):
        """No classifier."""

    images, labels = batch()
    given = {"images": images} if method == "lsuv" else {"images": images, "labels": labels}
    cases: list[tuple[nn.Module, str]] = [
        (Two(), "Two takes 2 inputs, and this method has images only"),
        (PlainNet().to("meta"), "on the meta device, and this method has to run it"),
    ]
    if method != "lsuv":
        cases.append((Map(3, 4, 1), r"output for \d+ images is \(\d+, 4, 8, 8\): a method that"))
    for model, message in cases:
        before = [(p, p.is_meta or p.detach().clone()) for p in model.parameters()]
        with pytest.raises(GHNInitError, match=message):
            ghn_init.apply(model, method, **given)
        assert all(p.is_meta or torch.equal(p, value) for p, value in before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", DATA)
def test_on_a_gpu(method: str) -> None:
    images, labels = batch()
    given = {"images": images} if method == "lsuv" else {"images": images, "labels": labels}
    on_cpu = ghn_init.apply(PlainNet(), method, **given)
    on_gpu = ghn_init.apply(PlainNet().cuda(), method, **given)
    for a, b in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-3)
