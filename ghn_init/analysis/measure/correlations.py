"""How alike the channels of a weight are (second paper, Figure 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 0.99
"""Channels that correlate more than this are near-duplicates."""

BINS = 80
"""Of the histogram of correlations, from -1 to 1."""


@dataclass(frozen=True)
class Similarity:
    """Pearson correlations between a weight's output channels, over all pairs of two.

    Arguments:
        spread: standard deviation of the correlations; 0 for a single pair or none.
        near_duplicates: share of channels that correlate more than `NEAR` with an earlier one.
        duplicates: share of channels that are equal to an earlier one, as tiling makes them.
        histogram: share of the pairs in each of `BINS` bins from -1 to 1; zeros without pairs.
    """

    spread: float
    near_duplicates: float
    duplicates: float
    histogram: tuple[float, ...]


def channel_correlations(weight: Tensor) -> Tensor:
    """`(K, K)` Pearson correlations between the K output channels of a weight, in float32.

    A constant channel correlates with nothing: 0, also on the diagonal.
    """
    rows = weight.detach().reshape(weight.shape[0], -1).float()
    z = F.normalize(rows - rows.mean(dim=1, keepdim=True), dim=1)
    return (z @ z.t()).clamp(-1, 1)


def channel_similarity(weight: Tensor) -> Similarity:
    """Statistics of the correlations between a weight's output channels.

    Arguments:
        weight: output channels first, two or more dimensions.
    """
    channels = weight.shape[0]
    correlations = channel_correlations(weight)
    pairs = correlations[torch.ones_like(correlations, dtype=torch.bool).tril(diagonal=-1)]
    near = correlations.tril(diagonal=-1).gt(NEAR).any(dim=1).sum().item()
    distinct = len(torch.unique(weight.detach().reshape(channels, -1), dim=0))
    counts = torch.histc(pairs, BINS, -1, 1)
    return Similarity(
        spread=pairs.std().item() if len(pairs) > 1 else 0.0,
        near_duplicates=near / channels,
        duplicates=1 - distinct / channels,
        histogram=tuple((counts / max(1, len(pairs))).tolist()),
    )
