"""A method of a third party works wherever a method can be named."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from image_folders import bright_and_dark
from models import ConvNet
from safetensors.torch import load_file

import ghn_init
from ghn_init import METHODS, GHNInitError
from ghn_init.analysis import diagnose
from ghn_init.cli.main import main
from ghn_init.methods import Given, Job, Method, register


@pytest.fixture(autouse=True)
def small(registered: dict[str, Method]) -> Method:
    """What a third party writes."""

    def values(job: Job) -> dict[str, torch.Tensor]:
        shapes, draw = job.graph.shapes, job.generator
        return {n: 0.02 * torch.randn(shapes[n], generator=draw) for n in job.layers}

    return register(Method("small", values, "convolution and linear weights from N(0, 0.02)"))


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
    ghn_init.apply(model, "labelled", images=images, labels=torch.full((2,), 3))
    assert (weights(model) == 3).all()


def test_images_labels_and_source_reach_the_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Job] = []

    def values(job: Job) -> dict[str, torch.Tensor]:
        seen.append(job)
        return {}

    register(Method("labelled", values, images=True, labels=True, source=True))
    with pytest.raises(GHNInitError, match="'labelled' needs source"):
        diagnose(ConvNet(), ["labelled"])
    diagnose(ConvNet(), ["labelled"], source="x", input_shape=(3, 16, 16), batch_size=4)
    with pytest.raises(GHNInitError, match=r"labels and source.*apply\(model, 'lab"):
        timm.create_model("resnet10t", pretrained_cfg="labelled")
    bright_and_dark(tmp_path / "data", 16, bright=200, dark=50, spread=10)
    output = tmp_path / "w.safetensors"
    command = ["export", "resnet10t", "--method", "labelled", "--num-classes", "2"]
    assert main([*command, "-o", str(output)]) == 1
    assert "'labelled' needs images: give images=" in capsys.readouterr().err
    files = ["--images", str(tmp_path / "data"), "--source", "y", "-o", str(output)]
    assert main([*command, *files]) == 0
    for job, source, size in zip(seen, ("x", "y"), (16, 176), strict=True):
        assert job.images is not None
        assert job.labels is not None
        assert job.source == source
        assert job.images.shape[1:] == (3, size, size)
        assert len(job.images) == len(job.labels)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([1, 2], torch.zeros(2).long(), "images is a list: give a tensor"),
        (torch.empty(0, 3, 8, 8), torch.zeros(0).long(), "images has no values"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2).long(), "give normalized"),
        (torch.full((2, 3, 8, 8), torch.nan), torch.zeros(2).long(), "not finite"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), "give class indices"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3).long(), "2 images and 3 labels"),
        (torch.zeros(2, 5, 8, 8), torch.zeros(2).long(), "does not run"),
    ],
)
def test_images_that_no_method_can_use_are_refused(
    images: object, labels: object, message: str
) -> None:
    register(Method("labelled", lambda job: {}, images=True, labels=True))
    model = ConvNet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(GHNInitError, match=message):
        ghn_init.apply(model, "labelled", images=images, labels=labels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_second_steps() -> None:
    def halved(job: Job) -> Given:
        own = dict(job.model.named_parameters())
        start = {name: job.tensors.get(name, own[name]) for name in job.layers}
        return Given(
            {n: t.detach() / 2 for n, t in start.items()}, notes=("halved what was there",)
        )

    register(Method("halved", None, refine=halved, labels=True))
    labels = torch.zeros(2).long()
    small = ghn_init.apply(ConvNet(), "small")
    refined, report = ghn_init.apply(ConvNet(), "small+halved", labels=labels, return_report=True)
    assert torch.equal(weights(refined), weights(small) / 2)
    assert report.method == "small+halved"
    assert "halved what was there" in report.notes
    own = ConvNet()
    expected = weights(own) / 2
    assert torch.equal(weights(ghn_init.apply(own, "rand+halved", labels=labels)), expected)
    with pytest.raises(GHNInitError, match=r"'small\+halved' needs labels"):
        ghn_init.apply(ConvNet(), "small+halved")
    with pytest.raises(GHNInitError, match="'small' cannot stand behind another method"):
        ghn_init.apply(ConvNet(), "rand+small")


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
