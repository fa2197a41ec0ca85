"""Mimetic initialization against the authors' function, and on whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from models import Attention, ConvNet
from safetensors.torch import load_file
from torch import nn

import ghn_init
from ghn_init.methods import mimetic

RECORDED = load_file(Path(__file__).parents[1] / "data" / "relatives.safetensors")


@pytest.mark.parametrize(
    ("what", "rank", "alpha", "beta"),
    [("query_key", 4, *mimetic.QUERY_KEY), ("value_out", 12, *mimetic.VALUE_OUT)],
)
def test_factors_agree_with_the_authors(what: str, rank: int, alpha: float, beta: float) -> None:
    """Recorded: `get_ortho_like` of the authors, of the same noise, cut at the rank."""
    left, right = mimetic.factors(RECORDED[f"mimetic.{what}.noise"], rank, alpha, beta)
    torch.testing.assert_close(left @ right.T, RECORDED[f"mimetic.{what}.product"])
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=0))  # shared evenly


def vit(width: int = 48, heads: int = 3) -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=width, num_heads=heads, depth=2, num_classes=5
    )


def test_products_of_a_vision_transformer() -> None:
    model, report = ghn_init.apply(vit(), "mimetic", return_report=True)
    assert set(report.written) == {
        f"blocks.{i}.attn.{name}.weight" for i in (0, 1) for name in ("qkv", "proj")
    }
    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.detach().chunk(3)
        out = block.attn.proj.weight.detach() @ v  # as x W_V W_proj, transposed
        assert out.diagonal().mean() == pytest.approx(-0.4, abs=0.05)
        off = out[~torch.eye(48, dtype=torch.bool)]
        assert float(off.std()) == pytest.approx(0.4 / 48**0.5, rel=0.1)
        for head in range(3):
            rows = slice(16 * head, 16 * head + 16)
            product = q[rows].T @ k[rows]
            assert torch.linalg.matrix_rank(product, rtol=1e-4) == 16
            assert product.diagonal().mean() > 0.2  # of 0.7, at a third of the rank
        assert not torch.allclose(q[:16], q[16:32])


def test_the_same_whatever_the_class() -> None:
    """Fused or spelled out: the noise is drawn in the order of the attentions."""
    inputs = torch.empty(2, 7, 12, device="meta")
    one, other = (
        ghn_init.apply(Attention(fused), "mimetic", seed=5, example_inputs=inputs)
        for fused in (True, False)
    )
    assert torch.equal(one.qkv.weight, other.qkv.weight)
    assert torch.equal(one.proj.weight, other.proj.weight)


def test_torchvision_and_transformers() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=5)
    attention = ghn_init.apply(model, "mimetic").encoder.layers[0].self_attention
    value = attention.in_proj_weight.detach()[128:]
    assert (attention.out_proj.weight.detach() @ value).diagonal().mean() < -0.3
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128
    )
    hf, report = ghn_init.apply(
        transformers.ViTForImageClassification(config), "mimetic", return_report=True
    )
    assert len(report.written) == 4
    weights = {name: p.detach() for name, p in hf.named_parameters() if name in report.written}
    q, k, v, out = (weights[name] for name in report.written)
    assert (q[:16].T @ k[:16]).diagonal().mean() > 0.1
    assert (out @ v).diagonal().mean() < -0.3


def test_what_is_left_is_said() -> None:
    model = ConvNet()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _, report = ghn_init.apply(model, "mimetic", return_report=True)
    assert not report.written
    assert "no self-attention" in " ".join(report.notes)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    _, report = ghn_init.apply(
        timm.create_model("pvt_v2_b0", num_classes=5), "mimetic", return_report=True
    )
    assert "different tokens" in report.left["stages.0.blocks.0.attn.q.weight"]  # fewer keys
    assert "stages.3.blocks.0.attn.q.weight" in {*report.written, *report.left}


def test_weights_with_other_rows_are_left() -> None:
    """A weight that holds an MLP's rows too is not half overwritten."""
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, num_heads=3, depth=1, num_classes=5,
        block_fn=timm.models.vision_transformer.ParallelScalingBlock,
    )  # fmt: skip
    before = model.blocks[0].in_proj.weight.detach().clone()
    _, report = ghn_init.apply(model, "mimetic", return_report=True)
    assert torch.equal(model.blocks[0].in_proj.weight, before)
    assert "mimetic" in report.left["blocks.0.in_proj.weight"]
