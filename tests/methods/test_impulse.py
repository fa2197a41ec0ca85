"""Impulse initialization against the authors' function, and on whole models."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import torchvision
from models import ConvNet
from safetensors.torch import load_file
from torch import nn

import ghn_init
from ghn_init.methods.impulse import OFFSETS, QUERY_KEY, impulses, solved

RECORDED = load_file(Path(__file__).parents[1] / "data" / "relatives.safetensors")


def vit(**keywords: object) -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=144, num_heads=3, depth=2, num_classes=5, **keywords
    )


def test_queries_and_keys_agree_with_the_authors() -> None:
    """Recorded: `impulse_init` of the authors, with the noise that it drew."""
    queries, keys = solved(
        RECORDED["impulse.positions"], impulses(5, 4), RECORDED["impulse.noise"], rank=6
    )
    expected = RECORDED["impulse.product"]
    torch.testing.assert_close(queries.mT @ keys, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(queries.norm(dim=(1, 2)), RECORDED["impulse.query_norm"])
    torch.testing.assert_close(keys.norm(dim=(1, 2)), RECORDED["impulse.key_norm"])


def test_impulses() -> None:
    found = impulses(10, 3).view(10, 3, 3, 3, 3)
    assert torch.equal(found[9], found[0])
    for head, (down, right) in enumerate(OFFSETS):
        for row in range(3):
            for column in range(3):
                inside = 0 <= row + down < 3 and 0 <= column + right < 3
                assert found[head, row, column].sum() == inside
                assert not inside or found[head, row, column, row + down, column + right] == 1


def test_each_head_looks_at_a_neighbor() -> None:
    """Of the positions alone: most of the attention of most patches goes where it should."""
    model, report = ghn_init.apply(vit(), "impulse", return_report=True)
    assert set(report.written) == {"pos_embed"} | {
        f"blocks.{i}.attn.{name}.weight" for i in (0, 1) for name in ("qkv", "proj")
    }
    positions = F.layer_norm(model.pos_embed[0, 1:].detach(), (144,))
    for block in model.blocks:
        q, k, _ = block.attn.qkv.weight.detach().chunk(3)
        for head, wanted in enumerate(impulses(3, 8)):
            rows = slice(48 * head, 48 * head + 48)
            assert abs(float(q[rows].norm()) - QUERY_KEY) < 1e-3
            scores = (positions @ q[rows].T) @ (positions @ k[rows].T).T
            there = wanted.sum(1) > 0
            hit = (scores.argmax(1) == wanted.argmax(1))[there].float().mean()
            assert hit > 0.8


def test_the_same_again_whatever_the_model_has() -> None:
    model = ghn_init.apply(vit(), "impulse", seed=3)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    ghn_init.apply(model, "impulse", seed=3)
    assert all(torch.equal(first[name], p) for name, p in model.named_parameters())


def test_fixed_positions_are_used_as_they_are() -> None:
    model = vit()
    model.pos_embed.requires_grad_(False)
    before = model.pos_embed.clone()
    _, report = ghn_init.apply(model, "impulse", return_report=True)
    assert torch.equal(model.pos_embed, before)
    assert "blocks.1.attn.qkv.weight" in report.written


def test_torchvision() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=5)
    _, report = ghn_init.apply(model, "impulse", return_report=True)
    assert "encoder.pos_embedding" in report.written
    assert len(report.written) == 5


def test_what_is_left_is_said() -> None:
    for model in (ConvNet(), timm.create_model("swin_tiny_patch4_window7_224", num_classes=5)):
        _, report = ghn_init.apply(model, "impulse", return_report=True)
        assert not report.written
        assert "impulse has set nothing" in " ".join(report.notes)
