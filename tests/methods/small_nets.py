"""Small networks with the same numbers everywhere, on which the authors' code was run.

`tests/data/initializers.json` has what their code made of them: GradInit's and NIO's from
github.com/zhuchen03/gradinit and github.com/HarborYuan/GradCosine, LSUV's from
github.com/ducha-aiki/LSUV-pytorch, MetaInit's from a public transcription of the listing in its
paper. All were given the batches that our code draws.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, SIZE, COUNT = 5, 8, 24


class PlainNet(nn.Module):
    """No norm and no skip connection."""

    def __init__(self, bias: bool = True, depth: int = 4, gain: float = 1.2) -> None:
        super().__init__()
        widths = [3, *[8] * depth]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=bias) for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Linear(8, CLASSES, bias=bias)
        fill(self, gain)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.head(x.mean((2, 3)))


class ResidualNet(nn.Module):
    """Batch norms, skip connections and dropout."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(depth))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, CLASSES)
        fill(self, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.relu(norm(conv(x)))
        return self.head(self.drop(x.mean((2, 3))))


def fill(model: nn.Module, gain: float) -> None:
    """Fill a model from a generator of its own; norms' weights around 1."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            values = torch.randn(param.shape, generator=draw)
            if param.dim() > 1:
                param.copy_(values * gain / param[0].numel() ** 0.5)
            else:
                param.copy_(0.1 * values + ("norm" in name and "weight" in name))


def batch(count: int = COUNT) -> tuple[Tensor, Tensor]:
    """Images and labels that can be told apart a little."""
    draw = torch.Generator().manual_seed(2)
    labels = torch.arange(count) % CLASSES
    images = torch.randn(count, 3, SIZE, SIZE, generator=draw)
    images[:, 0, :2] += labels[:, None, None].float()
    return images, labels
