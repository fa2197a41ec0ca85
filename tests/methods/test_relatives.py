"""Values from a trained relative: weight selection, FRONT, and what they are matched by."""

from __future__ import annotations

import inspect
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from models import Attention
from safetensors.torch import load_file, save_file
from snapshots import snapshot
from timm.models import _hub as timm_hub  # timm 1.0.9 exports only some of it
from torch import Tensor, nn

import ghn_init
from ghn_init import GHNInitError
from ghn_init.methods.alignment import alignment, similarity
from ghn_init.methods.frequency import frequencies, from_frequencies
from ghn_init.methods.matching import role
from ghn_init.methods.selection import evenly_spaced, selected

DATA = Path(__file__).parents[1] / "data" / "relatives.safetensors"
RECORDED = load_file(DATA)
HEADER = json.loads(DATA.read_bytes()[8 : 8 + struct.unpack("<Q", DATA.read_bytes()[:8])[0]])
SETTINGS = {name: json.loads(text) for name, text in HEADER["__metadata__"].items()}


def vit(width: int, depth: int, classes: int = 5, **keywords: Any) -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=width, num_heads=width // 16, depth=depth,
        num_classes=classes, **keywords,
    )  # fmt: skip


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def randomized(model: nn.Module) -> nn.Module:
    """Nothing in it at 0 or 1, as if it had been trained; batch statistics too."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    return model


# -- against the authors


@pytest.mark.parametrize("case", range(5))
def test_selection_agrees_with_the_authors(case: int) -> None:
    """Recorded: `uniform_element_selection` of weight-selection, of the same tensors."""
    expected = RECORDED[f"select.{case}.out"]
    assert torch.equal(selected(RECORDED[f"select.{case}.in"], tuple(expected.shape)), expected)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.qkv(self.norm1(x))[..., : x.shape[-1]]


class Net(nn.Module):
    """What the authors' code was run on, for the names and sizes of its parameters."""

    def __init__(self, width: int, depth: int, tokens: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.patch_embed = nn.Conv2d(3, width, 4)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


@pytest.mark.parametrize("case", range(4))
def test_front_agrees_with_the_authors(case: int) -> None:
    """Recorded: `init_freq_domain_transfer` of FRONT, narrower, wider, alike, and less deep."""
    sizes, wanted = SETTINGS[f"front.{case}"]
    source, model = Net(*sizes), Net(*wanted)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if not name.startswith("head"):
                parameter.copy_(RECORDED[f"front.{case}.in.{name}"])
    image = torch.empty(1, 3, 4, wanted[2] + 3, device="meta")
    _, report = ghn_init.apply(
        model, "front", source=Only(source), example_inputs=image, return_report=True
    )
    # Where the model is deeper, the authors' code gives the source's last block the values of the
    # model's last one, as both are one entry of a dictionary there: this block is not compared.
    aliased = f"blocks.{sizes[1] - 1}." if wanted[1] > sizes[1] else "head"
    for name, value in parameters(model).items():
        if not name.startswith(("head", aliased)):
            assert name in report.written
            expected = RECORDED[f"front.{case}.out.{name}"]
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


class Only(nn.Module):
    """The source inside of a wrapper, whose prefix is to be seen through."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_transform(size: int) -> None:
    """The fast transform is the sum of cosines, and its inverse the inverse."""
    x, n = torch.randn(3, size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)
    cosines = torch.cos(torch.pi * (2 * n[None] + 1) * n[:, None] / (2 * size))
    torch.testing.assert_close(frequencies(x), x @ cosines.T)
    torch.testing.assert_close(from_frequencies(frequencies(x)), x)


@pytest.mark.parametrize("case", range(6))
def test_alignment_agrees_with_the_authors(case: int) -> None:
    """Recorded: `DPMatching` of iatransfer on lists of linear layers."""
    recorded = SETTINGS[f"alignment.{case}"]
    rows = [[similarity(a, b) for b in recorded["source"]] for a in recorded["model"]]
    found = alignment(torch.tensor(rows, dtype=torch.float64))
    assert [list(pair) for pair in found] == recorded["pairs"]


# -- whole models


def test_select_within_a_family() -> None:
    source, model = randomized(vit(96, 4)), vit(48, 2, classes=3)
    head = model.head.weight.detach().clone()
    _, report = ghn_init.apply(model, "select", source=source, return_report=True)
    assert set(report.left) == {"head.weight", "head.bias"}
    assert torch.equal(model.head.weight, head)
    assert "matched by name" in report.notes[0]
    for name in ("cls_token", "pos_embed", "blocks.1.mlp.fc1.weight", "patch_embed.proj.weight"):
        there = source.get_parameter(name).detach()
        assert torch.equal(
            model.get_parameter(name), selected(there, model.get_parameter(name).shape)
        )
    q, k, v = source.blocks[0].attn.qkv.weight.detach().chunk(3)
    apart = torch.cat([part[::2, ::2] for part in (q, k, v)])
    assert torch.equal(model.blocks[0].attn.qkv.weight, apart)


def test_queries_keys_and_values_are_selected_apart_where_sizes_do_not_divide() -> None:
    source, model = randomized(vit(80, 2)), vit(48, 2)
    ghn_init.apply(model, "select", source=source)
    rows = evenly_spaced(80, 48)
    for part, other in zip(
        model.blocks[1].attn.qkv.bias.chunk(3), source.blocks[1].attn.qkv.bias.chunk(3), strict=True
    ):
        assert torch.equal(part, other[rows])


def test_heads_that_alternate() -> None:
    """LeViT's heads each have their queries, keys and values side by side."""
    source = randomized(timm.create_model("levit_128s", num_classes=5))
    model = timm.create_model("levit_128s", num_classes=5)
    ghn_init.apply(model, "select", source=source)
    assert torch.equal(
        model.stages[0].blocks[0].attn.qkv.linear.weight,
        source.stages[0].blocks[0].attn.qkv.linear.weight,
    )


def test_a_file_does_not_say_how_heads_alternate(tmp_path: Path) -> None:
    source = randomized(timm.create_model("levit_128s", num_classes=5))
    save_file(source.state_dict(), tmp_path / "levit.safetensors")
    _, report = ghn_init.apply(
        timm.create_model("levit_128s", num_classes=5), "select",
        source=tmp_path / "levit.safetensors", return_report=True,
    )  # fmt: skip
    assert "as a file does not say" in report.left["stages.0.blocks.0.attn.qkv.linear.weight"]


def test_running_statistics_come_with_the_weights() -> None:
    source = randomized(torchvision.models.resnet34(num_classes=3))
    model, report = ghn_init.apply(
        torchvision.models.resnet18(num_classes=5), "select", source=source, return_report=True
    )
    assert torch.equal(model.layer2[1].bn1.running_var, source.layer2[1].bn1.running_var)
    assert torch.equal(model.layer2[1].conv1.weight, source.layer2[1].conv1.weight)
    assert "layer2.1.bn1.running_var" in report.buffers


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")

    def build(width: int, depth: int) -> nn.Module:
        config = transformers.ViTConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=4,
            intermediate_size=2 * width,
        )  # fmt: skip
        return transformers.ViTForImageClassification(config)

    for method in ("select", "front"):
        source, model = randomized(build(64, 3)), build(32, 2)
        for given in (source, source.vit):  # as what it is, and without its head and prefix
            _, report = ghn_init.apply(model, method, source=given, return_report=True)
            assert set(report.left) == {"classifier.weight", "classifier.bias"}


def test_across_architectures() -> None:
    source = randomized(torchvision.models.resnet50())
    model, report = ghn_init.apply(
        torchvision.models.resnet18(num_classes=5), "select", source=source, return_report=True
    )
    assert "order of the layers" in report.notes[0]
    assert len(report.taken) > 40
    for name, other in report.taken.items():
        here, there = model.get_parameter(name), source.get_parameter(other)
        assert torch.equal(here, selected(there.detach(), here.shape))
        assert here.dim() == there.dim()
    lines = str(report).splitlines()
    assert any(line.strip().startswith("layer2.0.conv1.weight <- layer") for line in lines)
    assert "nothing in ResNet corresponds" in str(report)


def test_numbers_that_do_not_name_a_layer() -> None:
    """VGGs number convolutions and activations alike: features.6 is another layer in each."""
    source, model = (torchvision.models.get_model(n, num_classes=5) for n in ("vgg13", "vgg11"))
    _, report = ghn_init.apply(model, "select", source=source, return_report=True)
    assert report.taken["features.3.weight"] == "features.5.weight"


def test_front_makes_larger_and_deeper_models() -> None:
    source, model = randomized(vit(48, 2)), vit(96, 3)
    _, report = ghn_init.apply(model, "front", source=source, return_report=True)
    assert set(report.left) == {"head.weight", "head.bias"}
    assert "blocks.2.norm1.weight" in report.taken


def test_the_same_again_and_nothing_shared() -> None:
    source = randomized(vit(48, 2))
    first, second = (ghn_init.apply(vit(48, 2), "select", source=source) for _ in range(2))
    assert torch.equal(first.patch_embed.proj.weight, second.patch_embed.proj.weight)
    with torch.no_grad():
        first.patch_embed.proj.weight.zero_()
    assert source.patch_embed.proj.weight.all()


def test_roles() -> None:
    assert role("encoder.layers.encoder_layer_3.mlp.0.weight") == (
        "encoder.layers.encoder_layer_*.mlp.*.weight"
    )
    assert role("layer1.0.conv1.weight") == "layer1.*.conv1.weight"


# -- where the source comes from


@pytest.mark.parametrize(("name", "save"), [("a.safetensors", save_file), ("a.pth", torch.save)])
def test_a_file(name: str, save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    source = randomized(vit(96, 2))
    expected = ghn_init.apply(vit(48, 2), "select", source=source)
    path = tmp_path / name
    save(source.state_dict(), path)
    by_file = ghn_init.apply(vit(48, 2), "select", source=path)
    for a, b in zip(expected.parameters(), by_file.parameters(), strict=True):
        assert torch.equal(a, b) or a.shape[0] == 5  # the heads are random


@pytest.mark.skipif(
    "local-dir" not in inspect.getsource(timm.models._factory), reason="timm knows no local-dir:"
)
def test_a_name(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=7)
    timm_hub.save_for_hf(randomized(model), tmp_path / "hub", {"architecture": "resnet18"})
    named = ghn_init.apply(
        timm.create_model("resnet10t", num_classes=3), "front", source=f"local-dir:{tmp_path}/hub"
    )
    assert isinstance(named, nn.Module)


def bad_sources(folder: Path) -> dict[str, tuple[Any, str]]:
    torch.save(vit(96, 2), folder / "a.pth")
    (folder / "old.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (folder / "page.safetensors").write_text("<!DOCTYPE html><html></html>")
    save_file({"layer.weight": torch.ones(3, 3)}, folder / "other.safetensors")
    empty = vit(96, 2).to("meta")
    return {
        "narrower": (vit(32, 2), r"smaller than the model: its \S+ is \(.*larger"),
        "less deep": (vit(48, 1), "has fewer layers than the model: no blocks.1"),
        "another family": (torchvision.models.resnet18(), "ResNet is no relative"),
        "another file": (folder / "other.safetensors", "no relative of the model: 0 of 9"),
        "a whole model": (folder / "a.pth", "source: .*refused: it asks for .*Nothing was run"),
        "a pickle of another name": (folder / "old.safetensors", "source: .*is no checkpoint"),
        "a web page": (folder / "page.safetensors", "source: .*web page"),
        "no file": (folder / "none.safetensors", "source: .*there is no file"),
        "no name": ("vit_smal_patch16_224", "no model 'vit_smal_patch16_224'.*Did you mean"),
        "no weights": (empty, "on the meta device"),
        "a number": (3, "source is a int: give"),
    }


def test_bad_sources(tmp_path: Path) -> None:
    model = vit(48, 2)
    before = snapshot(model)
    for what, (source, message) in bad_sources(tmp_path).items():
        with pytest.raises(GHNInitError, match=message) as caught:
            ghn_init.apply(model, "select", source=source)
        assert "\n" not in str(caught.value), what
        assert snapshot(model) == before, what


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    source, model = vit(96, 2), vit(48, 2)
    with torch.no_grad():
        source.blocks[1].mlp.fc1.weight[0, 0] = float("nan")
    before = snapshot(model)
    with pytest.raises(GHNInitError, match=r"select gives values for blocks.1.mlp.fc1.weight"):
        ghn_init.apply(model, "select", source=source)
    assert snapshot(model) == before


def test_an_attention_of_ours() -> None:
    inputs = torch.empty(2, 7, 12, device="meta")
    source = randomized(Attention(True))
    model = ghn_init.apply(Attention(False), "select", source=source, example_inputs=inputs)
    assert torch.equal(model.qkv.weight, source.qkv.weight)
