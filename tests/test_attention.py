"""Which weights an attention's queries, keys, values and output come from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from models import Attention, ConvNet, timm_model
from torch import Tensor, nn

from ghn_init import trace
from ghn_init.graph.attention import Attention as Found


class HeadFirst(nn.Module):
    """Fused queries, keys and values that lie side by side for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.proj = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 12).transpose(1, 2).chunk(3, dim=3)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 12))


class Cross(nn.Module):
    """A sequence that attends another; keys and values are from one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(4, 8)
        self.q, self.kv, self.proj = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(self.first(x)).view(b, n, 2, 4).transpose(1, 2)
        k, v = self.kv(F.relu(self.second(x))).view(b, n, 2, 2, 4).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Convolutional(nn.Module):
    """1x1 convolutions around an attention between the pixels of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Conv2d(6, 6, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        attention = (q.transpose(1, 2) @ k).softmax(-1)
        return self.out((v @ attention.transpose(1, 2)).view_as(x))


class OfChannels(nn.Module):
    """Channels that attend each other, not tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.proj(((q @ k.transpose(1, 2)).softmax(-1) @ v).transpose(1, 2))


def only(model: nn.Module, *size: int) -> Found:
    (found,) = trace(model, torch.empty(size, device="meta")).attentions
    return found


@pytest.mark.parametrize("fused", [True, False])
def test_fused_weights(fused: bool) -> None:
    found = only(Attention(fused), 2, 7, 12)
    assert [p.param for p in found.projections] == ["qkv.weight"] * 3 + ["proj.weight"]
    assert found.query.heads == (tuple(range(8)), tuple(range(8, 16)))
    assert found.key.heads == (tuple(range(16, 24)), tuple(range(24, 32)))
    assert found.value.heads == (tuple(range(32, 40)), tuple(range(40, 48)))
    assert found.out is not None
    assert found.out.heads == (tuple(range(8)), tuple(range(8, 16)))
    assert (found.tokens, found.on_itself) == (7, True)


def test_weights_that_alternate_by_head() -> None:
    found = only(HeadFirst(), 2, 7, 12)
    assert found.query.heads == tuple(tuple(range(12 * h, 12 * h + 4)) for h in range(3))
    assert found.value.heads == tuple(tuple(range(12 * h + 8, 12 * h + 12)) for h in range(3))


def test_one_sequence_that_attends_another() -> None:
    found = only(Cross(), 2, 7, 4)
    assert not found.on_itself
    assert [p.param for p in found.projections[:3]] == ["q.weight", "kv.weight", "kv.weight"]
    assert found.query.heads == found.key.heads == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert found.value.heads == ((8, 9, 10, 11), (12, 13, 14, 15))


def test_no_attention_between_tokens() -> None:
    assert trace(OfChannels(), torch.empty(2, 5, 8, device="meta")).attentions == ()
    assert trace(ConvNet()).attentions == ()
    assert trace(Convolutional(), torch.empty(2, 6, 4, 4, device="meta")).attentions == ()


@pytest.mark.parametrize(
    ("name", "count", "tokens"),
    [
        ("vit_tiny_patch16_224", 12, 197),
        ("swin_tiny_patch4_window7_224", 12, 49),
        ("levit_128s", 11, 196),
        ("eva02_tiny_patch14_224", 12, 257),
    ],
)
def test_timm(name: str, count: int, tokens: int) -> None:
    graph = trace(timm_model(name))
    assert len(graph.attentions) == count
    assert graph.attentions[0].tokens == tokens
    for attention in graph.attentions:
        assert attention.on_itself
        assert attention.out is not None
        rows = graph.shapes[attention.query.param][0]
        heads = (*attention.query.heads, *attention.key.heads, *attention.value.heads)
        assert attention.query.param != attention.value.param or sorted(sum(heads, ())) == list(
            range(rows)
        )


def test_torchvision_and_a_wrapper() -> None:
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    graph = trace(nn.DataParallel(model))
    assert len(graph.attentions) == 12
    names = {p.param for a in graph.attentions for p in a.projections}
    assert names <= set(graph.shapes)
    assert "module.encoder.layers.encoder_layer_3.self_attention.in_proj_weight" in names


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    for implementation in ("sdpa", "eager"):
        config._attn_implementation = implementation
        graph = trace(transformers.ViTForImageClassification(config))
        assert len(graph.attentions) == 2
        separate = {p.param for p in graph.attentions[0].projections}
        assert len(separate) == 4
