from __future__ import annotations

import contextlib
import copy
import pickle
import random
from pathlib import Path

import pytest
import torch
import torchvision
from models import ConvNet
from torch import nn
from torch.utils._pytree import tree_map

import ghn_init
from ghn_init import GHN, GHNConfig, GHNInitError
from ghn_init.loading import save_checkpoint

GHN3 = GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), 10)
GHN2 = GHNConfig("ghn2", 16, 1, 1, (32, 32, 11, 11), 10)


def seeded(config: GHNConfig = GHN3) -> GHN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GHN(config, "seeded").requires_grad_(False).eval()


def resnet50() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torchvision.models.resnet50(num_classes=10)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def orthogonality_error(weight: torch.Tensor) -> float:
    matrix = weight.reshape(len(weight), -1)
    gram = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
    return (gram - torch.eye(len(gram))).abs().max().item()


def test_resnet50_with_ghn3_orth() -> None:
    """Acceptance 3: orthogonal to 1e-4, the rest as predicted, deterministic, RNG untouched."""
    ghn, model = seeded(), resnet50()
    predicted = ghn_init.predict(model, ghn)
    rng = torch.get_rng_state(), random.getstate()
    result, report = ghn_init.apply(model, ghn=ghn, return_report=True)
    assert result is model
    assert torch.equal(torch.get_rng_state(), rng[0])
    assert random.getstate() == rng[1]
    assert report.orth_start == 37
    assert len(report.postprocessed) == 54 - 37  # the 54th is the classifier
    for name, param in model.named_parameters():
        if name in report.postprocessed:
            assert orthogonality_error(param) < 1e-4
        else:
            assert torch.equal(param, predicted[name]), name
    again = ghn_init.apply(resnet50(), ghn=ghn)
    assert equal(state(model), state(again))
    other = ghn_init.apply(resnet50(), ghn=ghn, seed=1)
    assert not torch.equal(other.layer4[2].conv3.weight, model.layer4[2].conv3.weight)


def test_without_orth_every_layer_gets_noise() -> None:
    ghn, model = seeded(), ConvNet()
    predicted = ghn_init.predict(model, ghn)
    _, report = ghn_init.apply(model, "ghn3", ghn=ghn, noise=1e-3, return_report=True)
    layers = {f"{name}.weight" for name in ("stem", "depthwise", "squeeze", "excite")}
    assert set(report.postprocessed) == layers
    for name, param in model.named_parameters():
        difference = (param - predicted[name]).abs().max().item()
        assert (0 < difference < 1e-2) if name in layers else difference == 0
    _, report = ghn_init.apply(ConvNet(), "ghn3", ghn=ghn, noise=0, return_report=True)
    assert report.postprocessed == ()


@pytest.mark.parametrize(
    ("start", "layers"), [(3, 2), (1, 4), (0, 4), (5, 0), (0.0, 4), (0.6, 2), (1.0, 0)]
)
def test_orth_start(start: float, layers: int) -> None:
    _, report = ghn_init.apply(
        ConvNet(), "ghn3-orth", ghn=seeded(), orth_start=start, return_report=True
    )
    assert len(report.postprocessed) == layers


@pytest.mark.parametrize(
    "mode",
    [torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.enable_grad()],
    ids=["autocast", "inference_mode", "enable_grad"],
)
def test_the_callers_modes_change_nothing(mode: contextlib.AbstractContextManager[object]) -> None:
    expected, expected_report = ghn_init.apply(ConvNet(), ghn=seeded(), return_report=True)
    model = ConvNet()
    with mode:
        _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
        predicted = ghn_init.predict(ConvNet(), seeded())
    assert report == expected_report
    assert all(param.requires_grad for param in model.parameters())
    assert equal(state(model), state(expected))
    assert all(tensor.dtype == torch.float32 for tensor in predicted.values())
    exact = ghn_init.predict(ConvNet(), seeded())
    assert equal(exact, predicted)


def test_norms_can_be_kept() -> None:
    model = ConvNet()
    before = state(model)
    _, report = ghn_init.apply(model, ghn=seeded(), norms="keep", return_report=True)
    kept = {"norm.weight", "norm.bias"}
    assert {n for n, why in report.left.items() if 'norms="keep"' in why} == kept
    assert not kept & {*report.predicted, *report.postprocessed}
    for name, param in model.named_parameters():
        assert torch.equal(param, before[name]) == (name in kept)


def test_methods() -> None:
    predicted = ConvNet()
    ghn_init.apply(predicted, "ghn2-orth", ghn=seeded(GHN2))
    model = ConvNet()
    before = state(model)
    _, report = ghn_init.apply(model, "rand", return_report=True)
    assert equal(before, state(model))
    assert set(report.left) == dict(model.named_parameters()).keys()
    _, report = ghn_init.apply(model, "orth", return_report=True)
    assert len(report.postprocessed) == 4
    assert report.predicted == ()
    for name, param in model.named_parameters():
        if name in report.postprocessed:
            assert orthogonality_error(param) < 1e-5
        else:
            assert torch.equal(param, before[name])


def test_what_is_not_predicted_is_untouched_and_named() -> None:
    model = ConvNet(classes=7)
    model.stem.weight.requires_grad_(False)
    before = state(model)
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    assert set(report.left) == {"stem.weight", "head.weight", "head.bias"}
    assert "requires_grad" in report.left["stem.weight"]
    assert "7 classes" in report.left["head.weight"]
    after = state(model)
    for name in before:
        kept = name in report.left or name not in report.shapes
        assert torch.equal(before[name], after[name]) == kept, name
    assert set(report.predicted) | set(report.left) == set(report.shapes)


def test_dtype_device_flags_and_memory_are_kept() -> None:
    model = ConvNet().to(torch.bfloat16).to(memory_format=torch.channels_last).eval()
    reference = ghn_init.apply(ConvNet(), ghn=seeded())
    pointers = {name: p.data_ptr() for name, p in model.named_parameters()}
    strides = {name: p.stride() for name, p in model.named_parameters()}
    ghn_init.apply(model, ghn=seeded())
    assert not model.training
    for (name, param), expected in zip(
        model.named_parameters(), reference.parameters(), strict=True
    ):
        assert param.dtype == torch.bfloat16
        assert param.requires_grad
        assert param.data_ptr() == pointers[name]
        assert param.stride() == strides[name]
        torch.testing.assert_close(param.float(), expected, rtol=1e-2, atol=1e-2)
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 11


def test_tied_parameters_are_written_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 10)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(torch.relu(self.a(x))))

    model = Tied()
    _, report = ghn_init.apply(model, "ghn3", ghn=seeded(), return_report=True)
    assert model.b.weight is model.a.weight
    assert report.left == {}
    assert report.predicted.count("a.weight") == 1


def test_report_prints_itself() -> None:
    _, report = ghn_init.apply(ConvNet(classes=7), ghn=seeded(), return_report=True)
    assert str(report) == (
        "ConvNet: ghn3-orth, checkpoint seeded, seed 0\n"
        "noise beta 3e-05, orthogonal from layer 3\n"
        "                tensors      parameters     share\n"
        "predicted             9             354    84.89%\n"
        "post-processed        2              32     7.67%\n"
        "left                  2              63    15.11%\n"
        "  left: head.weight, head.bias: classification layer of 7 classes, the checkpoint's has 10"
        ' (head="predict" predicts it all the same)'
    )


def test_checkpoint_from_a_file(tmp_path: Path, cache: Path) -> None:
    ghn = seeded()
    path = tmp_path / "ghn.safetensors"
    save_checkpoint(path, ghn.state_dict(), ghn.config)
    expected = ghn_init.apply(ConvNet(), ghn=ghn)
    model, report = ghn_init.apply(ConvNet(), ghn=path, return_report=True)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    again = ghn_init.apply(ConvNet(), ghn=path)
    assert equal(dict(model.named_parameters()), dict(again.named_parameters()))
    assert len(report.checkpoint_sha256) == 64
    assert report.checkpoint == str(path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("evil-ran", "w")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "ghn4"}, "unknown method 'ghn4': choose one of .*ghn3-orth.*Did you mean ghn3"),
        ({"head": "no"}, "unknown head 'no'"),
        ({"norms": "no"}, "unknown norms 'no': choose one of auto, predict, keep"),
        ({"ghn": "ghn3xxl"}, "ghn3xxl.*ghn3xlm16"),
        ({"ghn": "nowhere.pt"}, "nowhere.pt"),
        ({"noise": -1.0}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"method": "orth", "noise": 1.0}, "adds no noise"),
        ({"method": "rand", "ghn": "ghn3tm8"}, "uses no checkpoint|leave ghn out"),
        ({"method": "ghn3", "orth_start": 3}, "no orthogonal step"),
        ({"orth_start": 37.0}, "give an int: 37"),
        ({"orth_start": -1}, "orth_start"),
        ({"seed": 0.5}, "seed"),
        ({"device": "nonsense"}, "device"),
        ({"ghn": seeded(GHN2)}, "needs a ghn3 checkpoint.*method='ghn2-orth'"),
        ({"example_inputs": torch.zeros(2, 4, 8, 8), "ghn": seeded()}, "example input"),
    ],
)
def test_errors_leave_the_model_as_it_was(
    arguments: dict, message: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = ConvNet()
    before, training = state(model), model.training
    versions = tree_map(lambda p: p._version, list(model.parameters()))
    with pytest.raises(GHNInitError, match=message):
        ghn_init.apply(model, **arguments)
    assert equal(before, state(model))
    assert versions == tree_map(lambda p: p._version, list(model.parameters()))
    assert model.training == training


def test_bad_checkpoint_files(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ghn = seeded()
    good = tmp_path / "good.safetensors"
    save_checkpoint(good, ghn.state_dict(), ghn.config)
    files = {
        "truncated": good.read_bytes()[:-100],
        "noise": b"\x80\x04 no checkpoint at all",
        "empty": b"",
        "evil": pickle.dumps(Evil()),
    }
    model = ConvNet()
    before = state(model)
    for name, content in files.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        with pytest.raises(GHNInitError, match=name):
            ghn_init.apply(model, ghn=path)
    torch.save(ConvNet().state_dict(), tmp_path / "other.pt")
    with pytest.raises(GHNInitError, match="GHN"):
        ghn_init.apply(model, ghn=tmp_path / "other.pt")
    assert equal(before, state(model))
    assert not (tmp_path / "evil-ran").exists()


def test_models_that_cannot_be_written() -> None:
    with pytest.raises(GHNInitError, match="no parameters"):
        ghn_init.apply(nn.ReLU(), ghn=seeded())
    with pytest.raises(GHNInitError, match="lazy"):
        ghn_init.apply(nn.LazyLinear(3), ghn=seeded())
    scripted = nn.Sequential(nn.Conv2d(3, 8, 3), torch.jit.script(nn.Conv2d(8, 8, 3)))
    with pytest.raises(GHNInitError, match=r"^1 is a ScriptModule"):
        ghn_init.apply(scripted, ghn=seeded())
    with torch.inference_mode():
        model = ConvNet()
    with pytest.raises(GHNInitError, match="inference_mode"):
        ghn_init.apply(model, ghn=seeded())
    with pytest.raises(GHNInitError, match=r"torch.nn.Module"):
        ghn_init.apply("resnet50", ghn=seeded())  # type: ignore[call-overload]


def test_a_hypernetwork_that_predicts_nonsense_is_refused() -> None:
    ghn = copy.deepcopy(seeded())
    ghn.decoder.conv[2].bias[0] = float("inf")
    model = ConvNet()
    before = state(model)
    with pytest.raises(GHNInitError, match="not finite"):
        ghn_init.apply(model, ghn=ghn)
    assert equal(before, state(model))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    on_cpu = ghn_init.apply(ConvNet(), ghn=seeded())
    for where in ({}, {"device": "cuda"}):
        model = ConvNet().cuda()
        ghn_init.apply(model, ghn=seeded(), **where)
        for a, b in zip(model.parameters(), on_cpu.parameters(), strict=True):
            assert a.is_cuda
            torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)
