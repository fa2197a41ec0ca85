"""Models of libraries as target networks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import ALONE, OFTEN, command, metrics, on_two_processes, same
from torch import Tensor, nn

from ghn_init import GHNInitError
from ghn_init.cli.main import main
from ghn_init.train.config import Schedule, TrainConfig, Widths
from ghn_init.train.loop import train
from ghn_init.train.networks.built import BuiltNetwork
from ghn_init.train.networks.library import LibraryNet, find_models, kept, load_models
from ghn_init.train.networks.nets import load_nets
from ghn_init.train.sampling import MetaBatches

MakeConfig = Callable[..., TrainConfig]

SMALL = "timm:lcnet_035,torchvision:shufflenet_v2_x0_5"


def test_models_are_found_by_patterns() -> None:
    found = find_models("timm:regnetx_00[24], resnet1?t,regnetx_002,torchvision:resnet18")
    assert [str(net) for net in found] == [
        *("timm:regnetx_002", "timm:regnetx_004", "timm:resnet10t", "timm:resnet14t"),
        "torchvision:resnet18",
    ]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("resnet18", r"give a library and names, as in timm:resnet\*,regnet\*"),
        ("timm:", "give a library and names"),
        ("timm:resnet18,", "give a library and names"),
        ("timm:regnetx_02", r"timm has no model 'regnetx_02'. Did you mean "),
        ("keras:resnet18", "'keras' has no list of models: give timm or torchvision"),
    ],
)
def test_patterns_that_name_nothing(
    config: MakeConfig, tmp_path: Path, patterns: str, message: str
) -> None:
    with pytest.raises(GHNInitError, match=message):
        train(config(models=patterns), tmp_path / "run", ALONE, OFTEN)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:squeezenet1_1"])
def test_a_kept_network_computes_what_the_library_does(name: str) -> None:
    """For images of the run's size; of what is predicted it keeps no values."""
    (net,) = find_models(name)
    network, module = kept(net, 3, 48), net.build(3, image_size=48).eval()
    own = dict(module.named_parameters())
    params = {n: p for n, p in own.items() if n not in network.graph.left}
    assert len(params) > 10
    images = torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(network(images, params), module(images))
    held = dict(network._module.named_parameters())
    assert {n for n, p in held.items() if p.is_meta} == set(params)
    assert network.num_params == sum(p.numel() for p in own.values())
    assert pickle.loads(pickle.dumps(network)) is network
    assert len(pickle.dumps(network)) < 1000


class Classifier(nn.Module):
    """Gives what `last` makes of the outputs of a layer."""

    def __init__(self, last: Callable[[Tensor], object], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.last = layer or nn.Linear(3 * 32 * 32, 2), last

    def forward(self, images: Tensor) -> object:
        return self.last(self.layer(images.flatten(1)))


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2] * self.table


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Classifier(lambda x: x / 0), "its loss is not finite"),
        (Classifier(lambda x: x[:, :1]), "it is no classifier"),
        (Classifier(lambda x: {"out": x}), "it is no classifier"),
        (Classifier(lambda x: x, Table()), "nothing in it can be predicted"),
        (Classifier(lambda x: x, nn.Linear(9, 2)), "does not run on"),
        (Classifier(lambda x: x, nn.Linear(3 * 32 * 32, 2000)), "6,146,000 parameters"),
    ],
)
def test_what_cannot_serve_is_left_out_with_the_reason(
    config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: nn.Module,
    message: str,
) -> None:
    build = LibraryNet.build

    def built(net: LibraryNet, *how: int, **size: int) -> nn.Module:
        return copy.deepcopy(module) if net.name == "resnet18" else build(net, *how, **size)

    monkeypatch.setattr(LibraryNet, "build", built)
    run = config(models=f"torchvision:resnet18,{SMALL}", max_model_params=3_000_000)
    kept.cache_clear()
    found = load_models(run, 2, ALONE)
    kept.cache_clear()
    assert [str(net) for net in found] == SMALL.split(",")
    assert all(net.num_nodes and net.num_params for net in found)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("left out: torchvision:resnet18: ")
    assert message in lines[0]
    assert lines[1:] == ["2 of 3 models"]


def test_a_run_without_any_model_does_not_begin(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config(nets=None, models="torchvision:raft_*,vit_h_14")
    assert main(["train", *command(run, tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "none of the 3 models can serve. torchvision:raft_large: " in error
    assert not (tmp_path / "run").exists()
    with pytest.raises(GHNInitError, match="give --nets, --models, or both"):
        config(nets=None)


def test_a_run_on_models_goes_on_as_if_nothing_had_happened(
    config: MakeConfig, tmp_path: Path
) -> None:
    run = config(nets=None, models=SMALL, steps=4, cooldown=1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(run, whole, ALONE, OFTEN)
    train(replace(run, steps=2), parts, ALONE, OFTEN)
    with pytest.raises(GHNInitError, match="holds a run with another models"):
        train(replace(run, models="timm:lcnet_050"), parts, ALONE, OFTEN)
    train(run, parts, ALONE, OFTEN)
    assert same(whole, parts)
    ahead = Schedule(save_every=1, log_every=1, workers=1, quiet=True)
    train(run, tmp_path / "ahead", ALONE, ahead)
    assert same(whole, tmp_path / "ahead")
    on_two_processes(command(run, tmp_path / "two", "--cooldown", "1"))
    one, two = metrics(whole)[0], metrics(tmp_path / "two")[0]
    for name in ("loss", "accuracy", "grad_norm"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)


def test_models_have_their_share(config: MakeConfig) -> None:
    run = config(models=SMALL)
    nets = [*load_nets(Path(run.nets), "train"), *load_models(run, 2, ALONE, quiet=True)]

    def drawn(share: float) -> list[bool]:
        batches = MetaBatches(nets, 200, Widths((8,), (16,)), 0, 2, 32, share=share)
        return [isinstance(net, LibraryNet) for net in batches.architectures(0)]

    assert sum(drawn(0.3)) == pytest.approx(60, abs=20)
    assert not any(drawn(0.0))
    network = MetaBatches(nets, 1, Widths((8,), (16,)), 0, 2, 32, share=1.0)[0][0][1]
    assert isinstance(network, BuiltNetwork)
