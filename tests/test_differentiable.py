"""Gradients from a model's loss to the weights of the hypernetwork that predicts the model."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from image_folders import bright_and_dark
from torch import Tensor, nn
from torch.func import functional_call

import ghn_init
from ghn_init import GHN, GHNConfig, GHNInitError
from ghn_init.loading import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("cache")


def small_model() -> nn.Module:
    """A bit of everything: wider than the decoder, norms, a bias, a head."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.SiLU(),
        nn.Conv2d(12, 6, 3, bias=False),
        nn.GroupNorm(2, 6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_model()


@pytest.fixture
def ghn() -> GHN:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return GHN(GHNConfig("ghn3", 8, 2, 2, (8, 8, 3, 3), 5))


def loss(model: nn.Module, ghn: GHN, graph: ghn_init.Graph) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 9, 9, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 4])
    tensors = ghn_init.predict(model, ghn, graph, differentiable=True)
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    return nn.functional.cross_entropy(functional_call(model, tensors, images), labels)


@pytest.mark.parametrize(("arch", "rank"), [("ghn3", 0), ("ghn2", 0), ("ghn3", 4)])
def test_gradients_are_finite_differences(model: nn.Module, arch: str, rank: int) -> None:
    """Along random directions, in double precision but for the tensors (float32) in between."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        heads, layers = (2, 2) if arch == "ghn3" else (1, 1)
        sizes = {"rank": rank, "rows": 24 if rank else 0}
        ghn = GHN(GHNConfig(arch, 8, layers, heads, (8, 8, 3, 3), 5, **sizes)).double()
    graph = ghn_init.trace(model, torch.zeros(2, 3, 9, 9))
    model.double()
    parameters = list(ghn.parameters())
    gradients = torch.autograd.grad(loss(model, ghn, graph), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        pairs = zip(gradients, direction, strict=True)
        expected = sum(float((g * d).sum()) for g, d in pairs if g is not None)
        step, values = 1e-5, []
        for sign in (1, -2, 1):  # there, beyond, and back
            with torch.no_grad():
                for parameter, d in zip(parameters, direction, strict=True):
                    parameter.add_(d, alpha=sign * step)
            values.append(loss(model, ghn, graph).item())
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=0.01, abs=5e-4)
        assert abs(expected) > 5e-3  # or it would say nothing


def test_it_learns_through_a_model(model: nn.Module, ghn: GHN) -> None:
    graph = ghn_init.trace(model, torch.zeros(2, 3, 9, 9))
    model.double()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(ghn.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        value = loss(model, ghn, graph)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters() if p.shape != (5,))


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps through a small network; what is saved predicts, and is not the old one."""
    data = bright_and_dark(tmp_path / "images", 32, bright=160, dark=60, spread=40)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ghn = GHN(GHNConfig("ghn3", 8, 1, 2, (8, 8, 3, 3), 2))
    ghn_init.save(ghn, tmp_path / "before")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "finetune_ghn.py"), "--data", str(data),
         "--model", "resnet18", "--ghn", f"local-dir:{tmp_path / 'before'}", "--steps", "3",
         "--batch-size", "8", "--lr", "1e-3", "--out", str(tmp_path / "after")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers = [float(number) for number in re.findall(r"\d+\.\d{3}", done.stdout)]
    assert len(numbers) == 4
    assert all(map(math.isfinite, numbers))
    model = torchvision.models.resnet18(num_classes=2)
    old = ghn_init.predict(model, f"local-dir:{tmp_path / 'before'}")
    new = ghn_init.predict(model, f"local-dir:{tmp_path / 'after'}")
    assert not torch.equal(old["conv1.weight"], new["conv1.weight"])


def test_it_takes_a_hypernetwork_that_learns(model: nn.Module, ghn: GHN, tmp_path: Path) -> None:
    file = tmp_path / "ghn.safetensors"
    save_checkpoint(file, ghn.state_dict(), ghn.config)
    content = file.read_bytes()
    graph = ghn_init.trace(model, torch.zeros(2, 3, 9, 9))
    with pytest.raises(GHNInitError, match="trainable=True"):
        ghn_init.predict(model, file, graph, differentiable=True)
    with pytest.raises(GHNInitError, match="trainable=True"):
        ghn_init.predict(model, ghn_init.load_ghn(file), graph, differentiable=True)
    trained = ghn_init.load_ghn(file, trainable=True)
    tensors = ghn_init.predict(model, trained, graph, differentiable=True)
    plain = ghn_init.predict(model, trained, graph)
    assert all(tensor.requires_grad for tensor in tensors.values())
    assert not any(tensor.requires_grad for tensor in plain.values())
    assert all(torch.allclose(tensors[n], plain[n], atol=1e-6) for n in plain)
    with torch.no_grad():  # asked for, it is given
        again = ghn_init.predict(model, trained, graph, differentiable=True)
        assert all(tensor.requires_grad for tensor in again.values())
        for parameter in trained.parameters():
            parameter.zero_()
    assert file.read_bytes() == content
    assert not any(p.requires_grad for p in ghn_init.load_ghn(file).parameters())
