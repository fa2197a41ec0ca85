"""Each shortcut of the hypernetworks against the plain computation that it stands for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import ConvNet
from published_shapes import published_shapes

import ghn_init
from ghn_init import GHN, GHNConfig, GHNInitError, Graph, Node
from ghn_init.hypernetwork.decoder import (
    cut,
    normalize_bias,
    normalize_norm_weight,
    normalize_weight,
)
from ghn_init.hypernetwork.encoding import (
    channel_row,
    channel_table,
    encode,
    kernel_row,
    kernel_table,
    shape4,
)
from ghn_init.loading.layouts import expected_shapes
from ghn_init.weights.tiling import fill, repeated

GHN3 = GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), 10)
GHN2 = GHNConfig("ghn2", 16, 1, 1, (32, 32, 11, 11), 10)


def make(config: GHNConfig) -> GHN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GHN(config).requires_grad_(False).eval()


def some_graph() -> Graph:
    return ghn_init.trace(ConvNet(), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    "config",
    [
        GHN3,
        GHN2,
        GHNConfig("ghn3", 384, 24, 16, (384, 384, 16, 16), 1000),
        GHNConfig("ghn3", 8, 1, 4, (4, 4, 3, 3), 7, final_layernorm=False),
        GHNConfig("ghn2", 32, 1, 1, (64, 64, 16, 16), 3, virtual_edges=False),
        GHNConfig("mlp", 16, 2, 1, (16, 16, 11, 11), 10),
        GHNConfig("ghn3", 64, 3, 8, (2048, 2048, 16, 16), 100, rank=32, rows=2048 * 16),
    ],
)
def test_state_dict_has_the_published_names_and_shapes(config: GHNConfig) -> None:
    """Checkpoints that anyone has made must go on loading."""
    assert expected_shapes(config) == published_shapes(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": "ghn4"},
        {"heads": 3},
        {"heads": 0},
        {"heads": -8},
        {"heads": 10_000},
        {"hidden_size": 18, "heads": 2},
        {"hidden_size": 0},
        {"hidden_size": 16.0},
        {"layers": 0},
        {"layers": 10**6},
        {"num_classes": True},
        {"max_shape": (16, 8, 3, 3)},
        {"max_shape": (16, 16, 3)},
        {"max_shape": (16, 16, 0, 0)},
        {"max_shape": (10**9, 10**9, 3, 3)},
        {"rank": -1},
        {"rank": 10**6, "rows": 64},
        {"rows": 64},
    ],
)
def test_sizes_that_no_hypernetwork_has(changes: dict[str, Any]) -> None:
    words = r"arch|heads|hidden|layers|num_classes|max_shape|kernel|channels|rank|rows"
    with pytest.raises(GHNInitError, match=words):
        replace(GHN3, **changes)


def test_look_up_tables() -> None:
    channels = channel_table(1000)
    assert len(channels) + 1 == 392
    rows = {n: channels[channel_row(channels, n)] for n in (1, 2, 3, 4, 7, 9, 60, 1000, 9999)}
    assert rows == {1: 1, 2: 1, 3: 3, 4: 8, 7: 8, 9: 8, 60: 56, 1000: 1000, 9999: 8192}
    assert channels[channel_row(channels, 1001)] == 1000
    kernels = kernel_table(16)
    assert kernels == [1, 3, 5, 7, 9, 11, 13, 14, 15, 16]
    assert len(kernel_table(11)) + 1 == 9
    assert [kernels[kernel_row(kernels, n)] for n in (1, 2, 4, 14, 99)] == [1, 3, 3, 14, 16]
    assert channel_row(channel_table(5), 5) == channel_table(5).index(5)


def test_shapes_as_four_numbers() -> None:
    assert shape4((7,)) == (7, 1, 1, 1)
    assert shape4((7, 5)) == (7, 5, 1, 1)
    assert shape4((1, 197, 768), positional=True) == (1, 768, 14, 14)
    assert shape4((1, 8, 3)) == (1, 8, 3, 1)
    assert shape4((8, 4, 3)) == (8, 4, 3, 1)
    assert shape4((8, 4, 3, 5)) == (8, 4, 3, 5)


def test_edge_term_is_the_network_on_every_pair() -> None:
    ghn, graph = make(GHN3), some_graph()
    distances = encode([graph], 10, 11).distances
    attention = ghn.gnn[0].attn
    d = distances[0].long()
    embed = attention.edge_embed.embed
    pairs = torch.cat([embed(d + 2), embed(d.t() + 2)], dim=-1)
    expected = attention.proj_e(pairs).permute(2, 0, 1)
    torch.testing.assert_close(attention.edge_term(distances)[0], expected)


def test_gated_network_is_the_sequential_one() -> None:
    ghn, graph = make(GHN2), some_graph()
    gnn, encoded = ghn.gnn, ghn.encode([graph])
    x = torch.randn(1, len(graph), 16, generator=torch.Generator().manual_seed(1))
    h = list(x[0])
    d = graph.distances.tolist()
    n = len(graph)
    for order, towards in ((range(n), False), (reversed(range(n)), True)):
        for j in order:
            message = torch.zeros(16)
            for i in range(n):
                distance = d[j][i] if towards else d[i][j]
                if distance == 1:
                    message = message + gnn.mlp(h[i])
                if distance > 0:
                    message = message + gnn.mlp_ve(h[i]) / distance
            h[j] = gnn.gru(message[None], h[j][None])[0]
    torch.testing.assert_close(gnn(x, encoded)[0], torch.stack(h))


@pytest.mark.parametrize("config", [GHN3, GHN2])
@pytest.mark.parametrize("size", [(16, 3, 3, 3), (5, 16, 1, 1), (4, 4, 2, 5), (8, 1, 11, 11)])
def test_decoder_cuts_before_it_computes(config: GHNConfig, size: tuple[int, ...]) -> None:
    """The selected rows give what cutting the full tensor gives."""
    decoder, d, s, c = make(config).decoder, 16, 11, config.channels
    x = torch.randn(3, d, generator=torch.Generator().manual_seed(2))
    out, in_, h, w = size
    full = decoder.fc[0](x, slice(s), slice(s)).view(s, s, 3, 4 * d).permute(2, 0, 1, 3)
    full = decoder.conv(full.relu()).view(3, s, s, c, c).permute(0, 3, 4, 1, 2)
    top, left = (s // 2 - h // 2, s // 2 - w // 2) if config.arch == "ghn3" else (0, 0)
    expected = full[:, :out, :in_, top : top + h, left : left + w]
    torch.testing.assert_close(decoder([(x, size)])[0], expected)


@pytest.mark.parametrize("config", [GHN3, GHN2])
def test_what_is_not_needed_is_not_read(config: GHNConfig) -> None:
    """Positions and channels beyond those of the layers: were they read, nothing were finite."""
    decoder, s, c = make(config).decoder, 11, config.channels
    first, last = decoder.fc[0].weight, decoder.conv[2].weight.view(c, c, -1)
    top = s // 2 - 1 if config.arch == "ghn3" else 0
    unread = torch.ones(s, s, dtype=torch.bool)
    unread[top : top + 3, top : top + 3] = False
    first[unread] = last[12:] = last[:, 9:] = torch.nan
    sizes = [(12, 9, 3, 3), (5, 9, 1, 1)]
    decoded = decoder([(torch.ones(2, 16), size) for size in sizes])
    assert all(weight.isfinite().all() for weight in decoded)


def test_decoder_interpolates_larger_kernels() -> None:
    decoder = make(GHN3).decoder
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    full, larger = decoder([(x, (4, 4, 11, 11)), (x, (4, 4, 15, 15))])
    expected = F.interpolate(full[0], (15, 15), mode="bilinear")[None]
    torch.testing.assert_close(larger, expected)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("costs", [{}, {"_READ_AGAIN": -1}, {"_CALL": -math.inf}])
@pytest.mark.parametrize("config", [GHN3, GHN2])
def test_decoder_decodes_several_sizes_at_once(
    config: GHNConfig, costs: dict[str, float], grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By pieces (with gradients, or where reading is dear), by size, or all as the largest."""
    for name, cost in costs.items():
        monkeypatch.setattr(f"ghn_init.hypernetwork.decoder.{name}", cost)
    decoder = make(config).decoder
    generator = torch.Generator().manual_seed(2)
    sizes = [
        (16, 3, 3, 3),
        (5, 16, 1, 1),
        (4, 4, 2, 5),
        (8, 1, 11, 11),
        (1, 9, 3, 3),
        (16, 16, 1, 1),
    ]
    wanted = [(torch.randn(n + 1, 16, generator=generator), s) for n, s in enumerate(sizes)]
    with torch.set_grad_enabled(grad):
        for one, weight in zip(wanted, decoder(wanted), strict=True):
            torch.testing.assert_close(weight, decoder([one])[0])


def test_decoder_decodes_more_sizes_than_it_cuts() -> None:
    decoder = make(GHN2).decoder
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(2))
    wanted = [(x, (n, 33 - n, 1, 1)) for n in range(1, 33)]
    whole = decoder([(x, (32, 32, 1, 1))])[0]
    for (_, (out, in_, _, _)), weight in zip(wanted, decoder(wanted), strict=True):
        torch.testing.assert_close(weight, whole[:, :out, :in_])


def test_cutting_keeps_the_first_channels() -> None:
    block = torch.arange(6.0).view(1, 2, 3)
    assert cut(block, (1, 2))[0].tolist() == [[0, 1]]
    assert cut(block, (3, 5)).shape == block.shape


@pytest.mark.parametrize("shape", [(7,), (3, 5), (9, 3), (16, 16, 3, 3), (1, 2, 5)])
def test_blocks_are_repeated_along_two_axes(shape: tuple[int, ...]) -> None:
    """Against whole copies of the block that are cut, and their gradients."""
    block = torch.randn(tuple(map(min, shape, (4, 3, 9, 9))), requires_grad=True)
    times = [-(-size // b) for size, b in zip(shape, block.shape, strict=True)]
    expected = block.repeat(times)[tuple(map(slice, shape))]
    found = repeated(block, shape)
    assert torch.equal(found, expected)
    weights = torch.randn(shape)
    gradients = [torch.autograd.grad((x * weights).sum(), block)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)
    strided = torch.zeros(*shape, 2)[..., 0]
    fill(strided, block.detach())
    assert torch.equal(strided, expected)


def test_normalisation() -> None:
    def scale(*shape: int) -> float:
        return normalize_weight(torch.ones(1), shape).item() ** 2

    assert scale(8, 4, 3, 3) == pytest.approx(2 / 36)
    assert scale(8, 1, 3, 3) == pytest.approx(1 / 9)
    assert scale(8, 4, 1, 7) == pytest.approx(1 / 28)
    assert scale(8, 4, 7, 1) == pytest.approx(2 / 28)
    assert scale(8, 1) == pytest.approx(2)
    assert normalize_norm_weight(torch.zeros(1)).item() == 1
    assert normalize_norm_weight(torch.tensor([2.0])).item() == pytest.approx(
        2 / (1 + math.exp(-1))
    )
    assert normalize_bias(torch.tensor([5.0])).item() == pytest.approx(math.tanh(1))


@pytest.mark.parametrize("config", [GHN3, GHN2])
def test_batch_of_graphs_equals_single_ones(config: GHNConfig) -> None:
    ghn = make(config)
    chain = Graph(tuple(Node("sum") for _ in range(4)), [(0, 1), (1, 2), (2, 3)])
    graphs = [some_graph(), chain]
    together = ghn(ghn.encode(graphs))
    for graph, features in zip(graphs, together, strict=True):
        torch.testing.assert_close(features[: len(graph)], ghn(ghn.encode([graph]))[0])
