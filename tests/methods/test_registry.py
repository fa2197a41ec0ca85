"""A method of a third party works wherever a method can be named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from models import ConvNet
from safetensors.torch import load_file

import ghn_init
from ghn_init import METHODS, GHNInitError
from ghn_init.analysis import diagnose
from ghn_init.cli.main import main
from ghn_init.methods import Job, Method, register, registry


@pytest.fixture(autouse=True)
def small() -> Iterator[Method]:
    """What a third party writes, and the registry as it was afterwards."""

    def values(job: Job) -> dict[str, torch.Tensor]:
        shapes, draw = job.graph.shapes, job.generator
        return {n: 0.02 * torch.randn(shapes[n], generator=draw) for n in job.layers}

    yield register(Method("small", values, "convolution and linear weights from N(0, 0.02)"))
    for name in ("small", "labelled"):
        registry._registered.pop(name, None)


def weights(model: torch.nn.Module) -> torch.Tensor:
    hidden = [
        p.detach().flatten() for n, p in model.named_parameters() if p.dim() > 1 and "head" not in n
    ]
    return torch.cat(hidden)


def is_small(model: torch.nn.Module) -> bool:
    """Whether the hidden weights have the deviation 0.02, which no other method gives."""
    return 0.018 < float(weights(model).std()) < 0.022


def test_apply() -> None:
    model, report = ghn_init.apply(ConvNet(), "small", return_report=True, seed=3)
    again = ghn_init.apply(ConvNet(), "small", seed=3)
    assert is_small(model)
    assert torch.equal(weights(model), weights(again))
    assert report.method == "small"
    assert report.written
    assert not report.predicted
    assert not report.postprocessed  # it is not orthogonal for want of a hypernetwork
    assert set(report.written) | set(report.left) == set(report.shapes)
    assert "initialized" in str(report)


def test_export_and_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = ghn_init.export(ConvNet(), tmp_path / "a.safetensors", name="net", method="small")
    state = load_file(tmp_path / "a.safetensors")
    assert 0.018 < float(torch.cat([state[n].flatten() for n in report.written]).std()) < 0.022
    output = tmp_path / "b.safetensors"
    assert main(["export", "resnet18", "--method", "small", "-o", str(output)]) == 0
    assert output.exists()
    assert main(["list"]) == 0
    assert "small" in capsys.readouterr().out


def test_timm_hook() -> None:
    model = timm.create_model("resnet10t", pretrained_cfg="small")
    assert 0.018 < float(model.layer1[0].conv1.weight.detach().std()) < 0.022


def test_diagnose() -> None:
    result = diagnose(ConvNet(), ["rand", "small"], input_shape=(3, 16, 16))
    assert [method.method for method in result.methods] == ["rand", "small"]


def test_frozen_parameters_are_left() -> None:
    model = ConvNet()
    frozen = next(model.parameters()).requires_grad_(False)
    before = frozen.clone()
    _, report = ghn_init.apply(model, "small", return_report=True)
    assert torch.equal(frozen, before)
    assert "frozen" in next(iter(report.left.values()))


def test_what_a_method_needs_is_asked_for() -> None:
    def values(job: Job) -> dict[str, torch.Tensor]:
        assert job.images is not None
        assert job.labels is not None
        return {n: torch.zeros(job.graph.shapes[n]) + job.labels[0] for n in job.layers}

    register(Method("labelled", values, images=True, labels=True))
    model, images = ConvNet(), torch.zeros(2, 3, 16, 16)
    with pytest.raises(GHNInitError, match="'labelled' needs images: give images="):
        ghn_init.apply(model, "labelled")
    with pytest.raises(GHNInitError, match="'labelled' uses no source: leave source out"):
        ghn_init.apply(model, "labelled", images=images, labels=torch.ones(2), source="x")
    with pytest.raises(GHNInitError, match="needs images and labels"):
        diagnose(model, ["labelled"])
    ghn_init.apply(model, "labelled", images=images, labels=torch.full((2,), 3))
    assert (weights(model) == 3).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3,), r"the shape \(3,\), and it has"), ((10**3, 1, 1, 1), "the shape"), (None, "none")],
)
def test_values_that_cannot_be_written_are_refused(
    shape: tuple[int, ...] | None, message: str
) -> None:
    def values(job: Job) -> dict[str, torch.Tensor]:
        return {job.layers[0] if shape else "nowhere": torch.zeros(shape or (1,))}

    register(Method("labelled", values))
    model = ConvNet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(GHNInitError, match=message):
        ghn_init.apply(model, "labelled")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_names_are_taken_once() -> None:
    with pytest.raises(GHNInitError, match="there is a method 'rand' already"):
        register(Method("rand", lambda job: {}))
    with pytest.raises(GHNInitError, match="cannot be called 'a:b'"):
        register(Method("a:b", None))
    with pytest.raises(TypeError):
        METHODS["other"] = METHODS["rand"]  # type: ignore[index]
