"""GHN-2's graph network: a gated graph neural network with virtual edges (GHN-2 paper, Eq. 3-4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ghn_init.hypernetwork.encoding import EncodedGraphs


class MLP(nn.Module):
    """Linear, ReLU, Linear, ReLU."""

    def __init__(self, size: int, middle: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(size, middle), nn.ReLU(), nn.Linear(middle, size), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


class GatedGNN(nn.Module):
    """One forward and one backward sweep over the nodes in topological order.

    Arguments:
        hidden_size: width d.
        virtual_edges: whether messages also go along shortest paths, divided by their length.
    """

    def __init__(self, hidden_size: int, virtual_edges: bool) -> None:
        super().__init__()
        middle = hidden_size // 2 if virtual_edges else hidden_size
        self.mlp = MLP(hidden_size, middle)
        if virtual_edges:
            self.mlp_ve = MLP(hidden_size, middle)
        self.gru = nn.GRUCell(hidden_size, hidden_size)
        self.virtual_edges = virtual_edges

    def forward(self, x: Tensor, graphs: EncodedGraphs) -> Tensor:
        """`(B, N, d)` -> `(B, N, d)`; padding stays 0."""
        outputs = []
        for b, size in enumerate(graphs.sizes):
            distances = graphs.distances[b, :size, :size]
            forwards, backwards = graphs.orders[b, :, :size]
            levels, levels_back = graphs.levels[b]
            h = self._sweep(x[b, :size], distances, forwards, levels)
            h = self._sweep(h, distances.t(), backwards, levels_back)
            outputs.append(nn.functional.pad(h, (0, 0, 0, x.shape[1] - size)))
        return torch.stack(outputs)

    def _sweep(self, x: Tensor, distances: Tensor, order: Tensor, levels: Sequence[int]) -> Tensor:
        """Update the nodes in order, those of one depth at once: none depends on another.

        Arguments:
            x: `(N, d)` features.
            distances: `(N, N)` shortest paths, `[i, j]` from i to j.
            order: `(N,)` nodes by depth.
            levels: how many nodes each depth has.
        """
        received = distances.t()[order][:, order]  # [j, i]: from i to j
        one_hop = (received == 1).to(x.dtype)
        weight = torch.where(received > 0, 1.0 / received.clamp(min=1), 0.0).to(x.dtype)
        parts: list[Tensor] = []
        sent: list[Tensor] = []
        sent_far: list[Tensor] = []
        start = 0
        for features in x[order].split(list(levels)):
            nodes = slice(start, start + len(features))
            message = torch.zeros_like(features)
            if start > 0:
                message = one_hop[nodes, :start] @ torch.cat(sent)
                if self.virtual_edges:
                    message = message + weight[nodes, :start] @ torch.cat(sent_far)
            h = self.gru(message, features)
            parts.append(h)
            sent.append(self.mlp(h))
            if self.virtual_edges:
                sent_far.append(self.mlp_ve(h))
            start = nodes.stop
        return torch.cat(parts)[order.argsort()]
