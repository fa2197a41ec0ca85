"""The zoo: members of real families as target networks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghn_init import GHN, GHNConfig, GHNInitError
from ghn_init.cli.main import main
from ghn_init.hypernetwork.prediction import predict_graphs
from ghn_init.images import load_images
from ghn_init.loading.load import load_ghn
from ghn_init.train.config import TrainConfig
from ghn_init.train.distributed import World
from ghn_init.train.evaluation import Evaluation, evaluate
from ghn_init.train.loop import Schedule, train
from ghn_init.train.networks.built import BuiltNetwork
from ghn_init.train.networks.generate import make_nets, sample, splits_of
from ghn_init.train.networks.nets import build_network, header, load_nets, nets_path
from ghn_init.train.networks.zoo import (
    ZOO_SPLITS,
    ZooNet,
    sample_zoo,
    zoo_from_json,
    zoo_to_json,
)
from ghn_init.train.networks.zoo_families import FAMILIES, HELD_OUT, TRAINED, VITS
from ghn_init.train.networks.zoo_sizes import Sizes
from ghn_init.train.sampling import MetaBatches, Widths
from ghn_init.weights.tiling import repeated_all

TINY = Sizes((16, 24), (1, 2), 32, 1e9, 1e9)
SMALLEST = Sizes((16,), (1,), 32, 1e9, 1e9)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
CPU = World(0, 1, torch.device("cpu"))


def member(family: str, seed: int = 0, sizes: Sizes = TINY) -> ZooNet:
    return ZooNet(family, FAMILIES[family].draw(random.Random(seed), sizes))


def hypernetwork() -> GHN:
    torch.manual_seed(0)
    return GHN(GHNConfig("ghn3", 16, 1, 8, (16, 16, 11, 11), 10))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_is_a_function_of_its_stored_arguments(family: str) -> None:
    net = member(family)
    stored = zoo_from_json(json.loads(json.dumps(zoo_to_json(net))))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = BuiltNetwork(net), BuiltNetwork(stored)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.graph.nodes == second.graph.nodes
    assert first.graph.edges == second.graph.edges
    images = torch.rand(4, 3, 32, 32)
    logits = first(images, {})
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, second(images, {}))
    assert logits.shape == (4, 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_has_every_norm_and_convolution(family: str) -> None:
    for seed in (1, 2):
        net = member(family, seed)
        network, module = BuiltNetwork(net), net.build()
        carried = {name for node in network.graph.nodes for name in (node.param, node.norm_bias)}
        for name, part in module.named_modules():
            if name.endswith("token_projection"):
                continue  # of positions, whatever the image
            if isinstance(part, nn.Conv2d | nn.Linear):
                assert f"{name}.weight" in carried
            if isinstance(part, NORMS) and part.weight is not None:
                assert f"{name}.weight" in carried
        assert network.graph.classifiers
        assert network.graph.num_classes == 10


@pytest.mark.parametrize("family", TRAINED)
def test_gradients_reach_the_hypernetwork_through_every_prediction(family: str) -> None:
    network, ghn = BuiltNetwork(member(family, 3, SMALLEST)), hypernetwork()
    (blocks,) = predict_graphs([network.graph], ghn)
    params = repeated_all(blocks, network.graph.shapes)
    for tensor in params.values():
        tensor.retain_grad()
    labels = torch.arange(8) % 10
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.rand(8, 3, 32, 32), params).float()
    F.cross_entropy(logits, labels).backward()
    assert set(params) == {n for n in network.graph.shapes if n not in network.graph.left}
    assert all(tensor.grad is not None for tensor in params.values())
    gradients = [p.grad for p in ghn.decoder.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert all(g.abs().max() > 0 for g in gradients if g is not None)
    assert all(p.grad is None for p in network._module.parameters())


@pytest.mark.parametrize("family", ["mobilenet_v3", "convnext"])
def test_depthwise_convolutions_are_those_of_the_library(family: str) -> None:
    net = member(family, 4)
    network, module = BuiltNetwork(net), net.build().requires_grad_(True).train()
    params = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    images = torch.rand(4, 3, 32, 32)
    network(images, params).square().sum().backward()
    module(images).square().sum().backward()
    for name, param in module.named_parameters():
        torch.testing.assert_close(params[name].grad, param.grad, rtol=1e-3, atol=1e-4)


def test_held_out_families_never_occur_in_a_training_file(tmp_path: Path) -> None:
    assert len(HELD_OUT) >= 6
    assert not set(HELD_OUT) & set(TRAINED)
    path = make_nets("zoo-train", 6, tmp_path, workers=1)
    found = [json.loads(line)["family"] for line in path.read_text().splitlines()[1:]]
    assert found == list(TRAINED)[:6]
    for split, rules in ZOO_SPLITS.items():
        families = HELD_OUT if split == "zoo-heldout" else VITS if "vits" in split else TRAINED
        assert set(rules.families) <= set(families)


def test_vits_are_wide_and_share_no_network(tmp_path: Path) -> None:
    """The fewer layers, the wider, and at most 10 million parameters."""
    assert splits_of("vits", "eval") == ["vits-val", "vits-test"]
    names = [*splits_of("vits", "train"), *splits_of("vits", "eval")]
    drawn: list[set[str]] = []
    for name in names:
        nets = load_nets(make_nets(name, 4, tmp_path, workers=1).parent, name)
        for net in nets:
            assert isinstance(net, ZooNet)
            assert net.num_params is not None
            assert net.num_params <= 10**7
            width, depth = net.args["width"], net.args["depth"]
            least, most = (128, 256) if depth > 5 else (256, 384) if depth > 3 else (384, 512)
            assert least <= width <= most
            assert width % net.args["heads"] == 0
        drawn.append({json.dumps(zoo_to_json(net)) for net in nets if isinstance(net, ZooNet)})
    assert len(set.union(*drawn)) == sum(map(len, drawn))


def test_a_run_of_vits_with_the_low_rank_decoder(
    tmp_path: Path, config: Callable[..., TrainConfig]
) -> None:
    """Their blocks are as large as their layers."""
    make_nets("vits-train", 2, tmp_path / "nets", workers=1)
    sizes = {"decoder": "low-rank", "rank": 4, "max_channels": 2048}
    run = config(nets=str(tmp_path / "nets"), space="vits", steps=1, batch_size=2, **sizes)
    ghn = load_ghn(train(run, tmp_path / "run", CPU, Schedule(log_every=1, quiet=True)))
    (net, _) = load_nets(tmp_path / "nets", "vits-train")
    graph = build_network(net, 2, 32).graph
    (blocks,) = predict_graphs([graph], ghn)
    assert {name: tuple(block.shape) for name, block in blocks.items()} == {
        name: graph.shapes[name] for name in blocks
    }
    wide = max(blocks.values(), key=lambda block: len(block))
    assert len(wide.unique(dim=0)) == len(wide)


def test_splits_share_no_network_and_unseen_sizes_are_larger() -> None:
    def drawn(split: str) -> list[ZooNet]:
        return [sample_zoo(split, index) for index in range(len(TRAINED)) if index in some]

    some = [list(TRAINED).index(family) for family in ("vgg", "vit", "mixer")]

    train, val, test, sizes = map(drawn, ("zoo-train", "zoo-val", "zoo-test", "zoo-sizes"))
    texts = [{json.dumps(zoo_to_json(n)) for n in nets} for nets in (train, val, test, sizes)]
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert all(
        large.num_params > small.num_params for large, small in zip(sizes, test, strict=True)
    )
    assert [net.family for net in train] == ["vgg", "vit", "mixer"]
    assert drawn("zoo-test") == test
    assert sample_zoo("zoo-test", some[0], seed=1) != test[0]


def test_commands_make_and_evaluate_networks_by_family(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--space", "zoo", "--split", "heldout", "--count", "2", "--workers", "1"]
    assert main(["train", "make-nets", *arguments, "-o", str(tmp_path)]) == 0
    assert splits_of("zoo", "eval") == ["zoo-val", "zoo-test", "zoo-sizes", "zoo-heldout"]
    with pytest.raises(GHNInitError, match="unknown --space"):
        splits_of("imagenet", "test")
    nets = load_nets(tmp_path, "zoo-heldout")
    images = load_images(f"imagefolder:{image_folder}", "test", 32, 0, torch.device("cpu"))
    ghn = GHN(replace(hypernetwork().config, num_classes=len(images.classes)))
    found = evaluate(ghn, nets, images, "zoo-heldout", Evaluation(16, control=1, quiet=True))
    assert found.families == ("edgenext", "xcit")
    assert len(found.predicted) == len(found.random) == 2
    assert f"  edgenext          1 nets  {found.predicted[0]:5.1f}" in found.summary()


def test_a_run_mixes_both_spaces(
    tmp_path: Path, nets_folder: Path, config: Callable[..., TrainConfig]
) -> None:
    folder = tmp_path / "nets"
    folder.mkdir()
    nets_path(folder, "train").write_text(nets_path(nets_folder, "train").read_text())
    lines = [header("zoo-train", 0), *(zoo_to_json(member(f, 0, SMALLEST)) for f in TRAINED)]
    nets_path(folder, "zoo-train").write_text("".join(json.dumps(e) + "\n" for e in lines))
    run = config(nets=str(folder), space="deepnets,zoo", share=0.5, precision="bf16", steps=3)
    path = train(run, tmp_path / "run", CPU, Schedule(log_every=1, quiet=True))
    assert path.exists()
    rows = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert rows[-1]["skipped"] == 0


def test_the_share_is_that_of_the_drawn_networks() -> None:
    nets = [sample("train", 0), sample("train", 1), member("vit"), member("vgg")]

    def share(of: float, nets: list) -> float:
        batches = MetaBatches(nets, 400, Widths((8,), (16,)), 0, 10, 32, share=of)
        return sum(isinstance(net, ZooNet) for net in batches.architectures(0)) / 400

    assert share(0.0, nets) == 0
    assert share(0.25, nets) == pytest.approx(0.25, abs=0.06)
    assert share(0.25, nets[2:]) == 1
    assert share(0.25, nets[:2]) == 0


def test_what_is_wrong_is_said(tmp_path: Path, config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(GHNInitError, match="unknown family 'alexnet'"):
        BuiltNetwork(ZooNet("alexnet", {}))
    with pytest.raises(GHNInitError, match="cannot build a vit"):
        BuiltNetwork(ZooNet("vit", {"width": 10}))
    with pytest.raises(GHNInitError, match="images of 32x32"):
        build_network(member("vgg"), 10, 64)
    with pytest.raises(GHNInitError, match="give deepnets, zoo, vits, deepnets,zoo"):
        config(space="deepnets,imagenet")
    nets_path(tmp_path, "zoo-val").write_text(
        "".join(json.dumps(e) + "\n" for e in (header("zoo-val", 0), {"family": "vit"}))
    )
    with pytest.raises(GHNInitError, match="line 2: not a network of the zoo"):
        load_nets(tmp_path, "zoo-val")
