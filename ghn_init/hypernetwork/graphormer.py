"""GHN-3's graph network: Graphormer layers (GHN-3 paper, Section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_init.devices import moved
from ghn_init.graph.graph import MAX_DISTANCE
from ghn_init.hypernetwork.encoding import EncodedGraphs, pair_rows

_EDGE_SHIFT = 2
"""Distances stand two rows further down in the published edge embedding table."""

_EDGE_ROWS = 257


class EdgeEmbedding(nn.Module):
    """The table of embeddings e(i, j) of Eq. 9, by shortest path distance."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(_EDGE_ROWS, hidden_size)


class Attention(nn.Module):
    """Multi-head self-attention with the edge term of Eq. 9 added to its logits.

    Arguments:
        hidden_size: width d.
        heads: attention heads k.
        edges: whether this layer (the first) owns the edge embeddings and phi of Eq. 9.
    """

    def __init__(self, hidden_size: int, heads: int, edges: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.to_out = nn.Sequential(nn.Linear(hidden_size, hidden_size))
        if edges:
            self.edge_embed = EdgeEmbedding(hidden_size)
            self.proj_e = nn.Sequential(
                nn.Linear(2 * hidden_size, hidden_size),
                nn.ReLU(),
                nn.Linear(hidden_size, heads),
            )

    def edge_term(self, distances: Tensor) -> Tensor:
        """phi([e(i, j), e(j, i)]) of Eq. 9: `(B, N, N)` distances -> `(B, heads, N, N)`.

        phi is applied to the hundred different pairs of distances instead of to all N^2 pairs of
        nodes, and looked up.
        """
        steps = torch.arange(MAX_DISTANCE + 1, device=distances.device)
        none = torch.zeros_like(steps)
        forward = torch.cat([steps, none[1:]])
        backward = torch.cat([none, steps[1:]])
        embed = self.edge_embed.embed
        pairs = torch.cat([embed(forward + _EDGE_SHIFT), embed(backward + _EDGE_SHIFT)], dim=-1)
        table: Tensor = self.proj_e(pairs).t().contiguous()  # (heads, pairs)
        rows = pair_rows(distances)
        looked_up = table.index_select(1, rows.flatten())
        return looked_up.view(self.heads, *rows.shape).transpose(0, 1)

    def forward(self, x: Tensor, edge_term: Tensor) -> Tensor:
        """`(B, N, d)` node features and `(B, heads, N, N)` edge term -> `(B, N, d)`."""
        b, n, d = x.shape
        q, k, v = self.to_qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=edge_term.to(q.dtype))
        projected: Tensor = self.to_out(out.transpose(1, 2).reshape(b, n, d))
        return projected


class FeedForward(nn.Module):
    """Linear(d -> 4d), GELU, Linear(4d -> d)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size),
            nn.GELU(),
            nn.Identity(),  # the place of a dropout in the published layout
            nn.Linear(4 * hidden_size, hidden_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class GraphormerLayer(nn.Module):
    """Pre-norm transformer layer on the nodes of a graph."""

    def __init__(self, hidden_size: int, heads: int, edges: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(hidden_size)
        self.attn = Attention(hidden_size, heads, edges)
        self.ln2 = nn.LayerNorm(hidden_size)
        self.ff = FeedForward(hidden_size)

    def forward(self, x: Tensor, edge_term: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x), edge_term)
        x = x + self.ff(self.ln2(x))
        return x


class NodeMLPLayer(nn.Module):
    """A Graphormer layer without its attention."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.ln2 = nn.LayerNorm(hidden_size)
        self.ff = FeedForward(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ff(self.ln2(x))
        return x


class NodeMLP(nn.ModuleList):
    """The ablation without edges (GHN-3 paper, Table 5): every node is processed by itself.

    Arguments:
        hidden_size: width d.
        layers: number of layers L.
    """

    def __init__(self, hidden_size: int, layers: int) -> None:
        super().__init__(NodeMLPLayer(hidden_size) for _ in range(layers))

    def forward(self, x: Tensor, graphs: EncodedGraphs) -> Tensor:
        """`(B, N, d)` -> `(B, N, d)`."""
        for layer in self:
            x = layer(x)
        return x


class Graphormer(nn.ModuleList):
    """A stack of Graphormer layers that share the first one's edge term.

    Arguments:
        hidden_size: width d.
        layers: number of layers L.
        heads: attention heads k.
    """

    def __init__(self, hidden_size: int, layers: int, heads: int) -> None:
        super().__init__(GraphormerLayer(hidden_size, heads, edges=i == 0) for i in range(layers))

    def forward(self, x: Tensor, graphs: EncodedGraphs) -> Tensor:
        """`(B, N, d)` -> `(B, N, d)`; what comes out for padding is meaningless."""
        first = self[0]
        assert isinstance(first, GraphormerLayer)
        edge_term = first.attn.edge_term(graphs.distances)
        if min(graphs.sizes) < max(graphs.sizes):
            sizes = moved(torch.tensor(graphs.sizes), x.device)
            padding = torch.arange(x.shape[1], device=x.device) >= sizes[:, None]
            edge_term = edge_term.masked_fill(padding[:, None, None, :], float("-inf"))
        for layer in self:
            x = layer(x, edge_term)
        return x
