"""The low-rank decoder of LoGAH: the published code's numbers, its files, and wide layers."""

from __future__ import annotations

import argparse
import copy
import json
import lzma
import math
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from checkpoint_files import as_torch, same
from test_predict import check_recorded
from torch import Tensor, nn

import ghn_init
from ghn_init import GHN, GHNConfig, GHNInitError
from ghn_init.hypernetwork.low_rank import LowRankDecoder
from ghn_init.loading import convert
from ghn_init.loading.layouts import expected_shapes

CONFIG = GHNConfig("ghn3", 16, 2, 8, (320, 320, 16, 16), 10, rank=6, rows=1024)
"""Sizes at which the recorded models have layers of one row of a factor's numbers and of several,
vectors of each rounding, and layers wider than C."""

SAID = {
    **{"max_shape": (320, 320, 16, 16), "num_classes": 10, "hid": 16, "layers": 2, "heads": 8},
    **{"lora": True, "lora_r": 6, "max_ck_lora": 1024, "use_1d_decoder": False, "is_ghn2": False},
    **{"layernorm": True, "weight_norm": True, "ve": True},
}
"""The configuration that the published trainer writes beside the weights."""

DATA = Path(__file__).parent / "data"
RECORDED = json.loads(lzma.decompress((DATA / "low_rank.json.xz").read_bytes()))


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights that any machine can make again: `RECORDED` was made from them."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    values = torch.sin(0.37 * i * i + 0.91 * i + zlib.crc32(name.encode()) % 1000).view(shape)
    if len(shape) == 1:
        norm = name.endswith("weight")
        return (0.2 * values + norm).float()
    return (values * (1 if "embed" in name else 2 * shape[-1] ** -0.5)).float()


def published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same as the authors' class has it: one map twice, and what it never computes with."""
    unused = {"decoder.l1": (6, 6), "decoder_1d.0": (1, 1), "bias_class.1": (1, 1)}
    found = {"decoder.seq.1.weight": state["decoder.l2.weight"]}
    found["decoder.seq.1.bias"] = state["decoder.l2.bias"]
    for name, shape in unused.items():
        found |= {f"{name}.weight": torch.ones(shape), f"{name}.bias": torch.ones(shape[:1])}
    return {**state, **found}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the published trainer writes it."""
    state = {name: formula(name, shape) for name, shape in expected_shapes(CONFIG).items()}
    path = tmp_path_factory.mktemp("logah") / "checkpoint.pt"
    options = argparse.Namespace(lr=3e-4, name="logah", max_shape=(320, 320, 16, 16))
    others = {"config": SAID, "args": options, "epoch": 3, "step": 1, "ema_state_dict": None}
    path.write_bytes(as_torch({"state_dict": published(state), **others}))
    return path


@pytest.fixture(scope="module")
def ghn(file: Path) -> GHN:
    return ghn_init.load_ghn(file)


def small_vit(width: int = 96) -> nn.Module:
    return torchvision.models.VisionTransformer(32, 4, 2, 4, width, 4 * width, num_classes=10)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_numbers(name: str, ghn: GHN) -> None:
    """The published implementation's predictions, tensor by tensor, to 1e-4."""
    model = small_vit() if name == "vit" else torchvision.models.resnet18(num_classes=10)
    check_recorded(model, ghn, RECORDED[name])


def test_a_published_file_is_read_and_converted(ghn: GHN, file: Path, tmp_path: Path) -> None:
    assert ghn.config == CONFIG
    convert(file, tmp_path / "ghn.safetensors")
    converted = ghn_init.load_ghn(tmp_path / "ghn.safetensors")
    assert converted.config == CONFIG
    assert same(converted.state_dict(), ghn.state_dict())
    ghn_init.save(converted, tmp_path / "folder")
    again = ghn_init.load_ghn(f"local-dir:{tmp_path / 'folder'}")
    assert again.config == CONFIG
    assert same(again.state_dict(), ghn.state_dict())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (None, "does not say its largest shape and number of classes"),
        ({"max_shape": (320, 320, 16)}, "does not say its largest shape"),
        ({"max_shape": 320}, "does not say its largest shape"),
        ({"num_classes": 10**400}, "does not say its largest shape"),
        ({"num_classes": True}, "does not say its largest shape"),
        ({"max_shape": (2**30, 2**30, 16, 16)}, "channels is 1073741824"),
        ({"max_shape": (1024, 1024, 16, 16)}, "rows is 1024, with a rank of 6 and 1024 channels"),
        ({"max_shape": (320, 320, 99, 99)}, "embed_spatial"),
        ({"lora_r": 7}, "lora_r = 7"),
    ],
)
def test_files_that_say_nonsense(file: Path, tmp_path: Path, said: Any, message: str) -> None:
    content = torch.load(file, weights_only=False)
    content["config"] = None if said is None else {**SAID, **said}
    (tmp_path / "bad.pt").write_bytes(as_torch(content))
    with pytest.raises(GHNInitError, match=message):
        ghn_init.load_ghn(tmp_path / "bad.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_1d.fc.0.weight": torch.ones(32, 16)}, "use_1d_decoder"),
        ({"shape_enc.embed_channel.weight": torch.ones(395, 4)}, "LoGAH of language models"),
        ({"decoder.mlp.fc.4.weight": torch.ones(70, 128)}, r"fc\.4\.weight' has the shape \(70"),
        ({"decoder.l2.weight": torch.ones(1024)}, "no GHN-3, GHN-2 or LoGAH"),
    ],
)
def test_files_of_other_hypernetworks(
    file: Path, tmp_path: Path, changes: dict[str, Tensor], message: str
) -> None:
    content = torch.load(file, weights_only=False)
    content["state_dict"] |= changes
    (tmp_path / "bad.pt").write_bytes(as_torch(content))
    with pytest.raises(GHNInitError, match=message):
        ghn_init.load_ghn(tmp_path / "bad.pt")


@pytest.mark.parametrize("rows", [0, 639])
def test_rows_that_no_decoder_has(rows: int) -> None:
    with pytest.raises(GHNInitError, match=f"rows is {rows}"):
        replace(CONFIG, rows=rows)


def decoder_of(ghn: GHN) -> LowRankDecoder:
    assert isinstance(ghn.decoder, LowRankDecoder)
    return copy.deepcopy(ghn.decoder)


def whole_factors(decoder: LowRankDecoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """A and B as the paper has them, of all their rows."""
    r = decoder.rank
    numbers = decoder.l2(decoder.mlp.fc(x).view(len(x), 2 * r, r).relu())
    a, b = numbers.view(len(x), 2, decoder.rows, r).unbind(1)
    return a, b.transpose(1, 2)


def test_factors_are_cut_before_they_are_computed(ghn: GHN) -> None:
    """Many sizes at once, each against the whole factors."""
    decoder = decoder_of(ghn)
    sizes = [(320, 3, 3, 3), (96, 320, 1, 1), (7, 5, 2, 5), (640, 1, 1, 1), (1, 90, 8, 8)]
    generator = torch.Generator().manual_seed(2)
    wanted = [(torch.randn(n + 1, 16, generator=generator), s) for n, s in enumerate(sizes)]
    for (x, (out, in_, h, w)), weight in zip(wanted, decoder(wanted), strict=True):
        a, b = whole_factors(decoder, x)
        product = a[:, : out * h] @ b[..., : in_ * w]
        expected = product.view(len(x), out, h, in_, w).permute(0, 1, 3, 2, 4)
        torch.testing.assert_close(weight, expected)


def test_what_a_layer_does_not_use_is_not_read(ghn: GHN) -> None:
    decoder = decoder_of(ghn)
    decoder.l2.weight[512:] = torch.nan  # 64 rows of A have 384 numbers
    decoder.mlp.fc[4].weight[6:36] = decoder.mlp.fc[4].weight[42:] = torch.nan
    assert decoder([(torch.ones(2, 16), (64, 30, 1, 1))])[0].isfinite().all()


def test_a_kernel_of_more_positions_than_rows_is_interpolated() -> None:
    decoder = LowRankDecoder(GHNConfig("ghn3", 8, 1, 8, (4, 4, 3, 3), 7, rank=2, rows=8))
    size = decoder.size("weight", (3, 3, 16, 16))
    assert size == (1, 1, 16, 16)
    assert decoder([(torch.ones(2, 8), size)])[0].shape == (2, 1, 1, 16, 16)


def distinct(weight: Tensor) -> int:
    return len(weight.flatten(1).unique(dim=0))


def test_a_wide_layer_has_no_repeated_blocks(ghn: GHN) -> None:
    """Of a hypernetwork 16 wide, which itself decodes no more than 16 channels without tiling."""
    model = nn.Sequential(nn.Conv2d(3, 200, 3), nn.ReLU(), nn.Conv2d(200, 300, 3), nn.ReLU())
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(300, 10)])
    tiled = GHN(replace(CONFIG, max_shape=(16, 16, 16, 16), rank=0, rows=0)).requires_grad_(False)
    found = {}
    for name, kind in {"tiled": tiled, "low-rank": ghn}.items():
        weight = ghn_init.predict(model, kind)["2.weight"]
        found[name] = [distinct(weight), distinct(weight.transpose(0, 1))]
    assert found == {"tiled": [16, 16], "low-rank": [300, 200]}


def test_a_layer_wider_than_the_largest_shape_is_tiled(ghn: GHN) -> None:
    weight = ghn_init.predict(small_vit(96), ghn)["encoder.layers.encoder_layer_0.mlp.0.weight"]
    assert weight.shape == (384, 96)
    assert torch.equal(weight[:64], weight[320:])
    assert distinct(weight) == 320


def test_bfloat16(ghn: GHN) -> None:
    model = small_vit()
    exact = ghn_init.predict(model, ghn)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ghn_init.predict(model, ghn)
    for name, tensor in exact.items():
        assert (rounded[name].float() - tensor).norm() < 0.1 * tensor.norm(), name


def test_an_exported_model_is_initialized(ghn: GHN) -> None:
    _, report = ghn_init.apply(small_vit(), "ghn3-orth", ghn=ghn, return_report=True)
    assert list(report.left) == ["class_token"]
