"""The filters of a model's first layer, to look at (GHN-3 paper, Figure 2)."""

from __future__ import annotations

from torch import Tensor

from ghn_init.graph.graph import WEIGHTS, Graph

MOST = 64
"""Filters shown."""


def first_filters(graph: Graph, weights: dict[str, Tensor]) -> Tensor | None:
    """Filters of the first convolution with a window, `(n, H, W, 3)` in [0, 1], n at most `MOST`.

    Each filter is stretched to its own range, as in the paper. The channels of filters that do
    not take RGB are averaged to gray. None if there is no such layer.

    Arguments:
        graph: of the model.
        weights: by parameter name.
    """
    for node in graph.nodes:
        shape = node.shape or ()
        if node.op in WEIGHTS and node.param and len(shape) == 4 and max(shape[2:]) > 1:
            return _as_images(weights[node.param].detach().float()[:MOST])
    return None


def _as_images(filters: Tensor) -> Tensor:
    if filters.shape[1] != 3:
        filters = filters.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    low = filters.amin(dim=(1, 2, 3), keepdim=True)
    high = filters.amax(dim=(1, 2, 3), keepdim=True)
    stretched = (filters - low) / (high - low).clamp(min=1e-12)
    return stretched.permute(0, 2, 3, 1).contiguous()
