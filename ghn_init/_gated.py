"""GHN-2's graph network: a gated graph neural network with virtual edges (GHN-2 paper, Eq. 3-4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._encoding import EncodedGraphs


class MLP(nn.Module):
    """Linear, ReLU, Linear, ReLU."""

    def __init__(self, size: int, middle: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(size, middle), nn.ReLU(), nn.Linear(middle, size), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


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
        for features, distances, size in zip(x, graphs.distances, graphs.sizes, strict=True):
            distances = distances[:size, :size]
            h = self._sweep(features[:size], distances)
            h = self._sweep(h.flip(0), distances.t().flip(0, 1)).flip(0)
            outputs.append(nn.functional.pad(h, (0, 0, 0, x.shape[1] - size)))
        return torch.stack(outputs)

    def _sweep(self, x: Tensor, distances: Tensor) -> Tensor:
        """Update the nodes in order, those of one depth at once: none depends on another.

        Arguments:
            x: `(N, d)` features in topological order.
            distances: `(N, N)` shortest paths, `[i, j]` from i to j.
        """
        one_hop = (distances == 1).to(x.dtype).t().contiguous()  # [j, i]: i is before j
        weight = torch.where(distances > 0, 1.0 / distances.clamp(min=1), 0.0).to(x.dtype).t()
        parts: list[Tensor] = []
        order: list[Tensor] = []
        sent: list[Tensor] = []
        sent_far: list[Tensor] = []
        for nodes in _levels(distances):
            if order:
                before = torch.cat(order)
                message = one_hop[nodes][:, before] @ torch.cat(sent)
                if self.virtual_edges:
                    message = message + weight[nodes][:, before] @ torch.cat(sent_far)
            else:
                message = torch.zeros_like(x[nodes])
            h = self.gru(message, x[nodes])
            parts.append(h)
            order.append(nodes)
            sent.append(self.mlp(h))
            if self.virtual_edges:
                sent_far.append(self.mlp_ve(h))
        return torch.cat(parts)[torch.cat(order).argsort()]


def _levels(distances: Tensor) -> list[Tensor]:
    """Nodes grouped by the length of the longest path that leads to them."""
    edges = (distances == 1).nonzero().tolist()
    depth = [0] * len(distances)
    for i, j in sorted(edges, key=lambda edge: edge[1]):
        depth[j] = max(depth[j], depth[i] + 1)
    depths = torch.tensor(depth, device=distances.device)
    return [(depths == level).nonzero()[:, 0] for level in range(max(depth) + 1)]
