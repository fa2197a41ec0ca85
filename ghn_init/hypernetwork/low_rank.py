"""Node features -> parameters as products of two factors: LoGAH (Zhou et al., 2024, Section 3.2).

A weight is a matrix W = A B, A with a row for every output channel and row of its kernel, B with a
column for every input channel and column of its kernel. The factors have K rows and r columns, so
that a decoder of r * K numbers predicts layers of any width up to K without repeating a block.
Vectors are decoded alike, as weights with one input channel.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_init.hypernetwork.config import GHNConfig
from ghn_init.hypernetwork.decoder import VECTORS, Size
from ghn_init.hypernetwork.encoding import shape4


class RowsDecoder(nn.Module):
    """An MLP d -> 4d -> 8d -> 2 * r * r: r rows of r numbers for A, and r for B.

    Arguments:
        hidden_size: width d.
        rank: r.
    """

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        d = hidden_size
        self.rank = rank
        self.fc = nn.Sequential(
            *(nn.Linear(d, 4 * d), nn.ReLU(), nn.Linear(4 * d, 8 * d), nn.ReLU()),
            nn.Linear(8 * d, 2 * rank * rank),
        )

    def forward(self, x: Tensor, counts: tuple[int, int]) -> list[Tensor]:
        """`(N, d)` -> `(N, count, r)`, the first rows for A and the first ones for B."""
        hidden = self.fc[:4](x)
        weight, bias = (p.unflatten(0, (2, self.rank**2)) for p in self.fc[4].parameters())
        ends = [count * self.rank for count in counts]
        flat = [F.linear(hidden, weight[k, :end], bias[k, :end]) for k, end in enumerate(ends)]
        return [rows.unflatten(1, (-1, self.rank)) for rows in flat]


class LowRankDecoder(nn.Module):
    """Decoder of all parameters: W = A B.

    One linear map r -> K makes K numbers of each of a node's rows. Those of the first r rows, one
    after the other, are A read row by row, `(K, r)`; those of the others are B transposed. A layer
    that takes few rows of A needs the first numbers only, and no others are computed.

    Arguments:
        config: sizes; `rank` is r and `rows` K.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        self.channels, self.rank, self.rows = config.channels, config.rank, config.rows
        self.mlp = RowsDecoder(config.hidden_size, config.rank)
        self.l2 = nn.Linear(config.rank, config.rows)

    def size(self, kind: str, shape: tuple[int, ...]) -> Size:
        """Of what is decoded for a parameter; see `ConvDecoder.size`.

        It has at most C channels (a positional embedding any number), and K rows and columns. A
        vector is `(2n, 1, 1, 1)`: n weights of a norm, then n biases.
        """
        if kind in VECTORS:
            return 2 * self._vector_channels(shape[0]), 1, 1, 1
        positional = kind == "position"
        out, in_, height, width = shape4(shape, positional)
        most = self.rows if positional else self.channels
        rows, columns = (max(1, self.rows // k) for k in (height, width))
        return min(out, rows, most), min(in_, columns, most), height, width

    def _vector_channels(self, channels: int) -> int:
        """n for vectors of so many channels. Where biases begin is part of every checkpoint."""
        n = min(channels, self.channels)
        if n % 3 == 0:
            n = n // 3 * 4
        return self.channels if 2 * n >= self.channels else n

    def numbers(self, size: Size) -> int:
        """How many are in memory at a time for a weight of this size: it, and its factors."""
        out, in_, height, width = size
        return math.prod(size) + (out * height + in_ * width) * self.rank

    def forward(self, wanted: Sequence[tuple[Tensor, Size]]) -> list[Tensor]:
        """Decode weights of several sizes at once.

        Arguments:
            wanted: `(N, d)` features of nodes, and the size of their weights, from `size`.

        Returns: for each size, `(N, out, in, height, width)`.
        """
        if not wanted:
            return []
        nodes = [x for x, _ in wanted]
        kernels = [(min(h, self.rows), min(w, self.rows)) for _, (_, _, h, w) in wanted]
        sizes = [(*size[:2], *kernel) for (_, size), kernel in zip(wanted, kernels, strict=True)]
        lengths = [out * h for out, _, h, _ in sizes], [in_ * w for _, in_, _, w in sizes]
        counts = self._rows(max(lengths[0])), self._rows(max(lengths[1]))
        rows = [part.split([len(x) for x in nodes]) for part in self.mlp(torch.cat(nodes), counts)]
        factors = self._factors([*rows[0], *rows[1]], [*lengths[0], *lengths[1]])
        decoded = []
        for k, (out, in_, h, w) in enumerate(sizes):
            product = factors[k] @ factors[len(sizes) + k].mT  # (N, out * h, in * w)
            weight = product.unflatten(2, (in_, w)).unflatten(1, (out, h)).transpose(2, 3)
            if (h, w) != wanted[k][1][2:]:
                larger = F.interpolate(weight.flatten(0, 1), wanted[k][1][2:], mode="bilinear")
                weight = larger.unflatten(0, weight.shape[:2])
            decoded.append(weight)
        return decoded

    def classifier(self, weight: Tensor) -> Tensor:
        """`(N, num_classes, in)` as it is: a classification layer is decoded like the others."""
        return weight

    def _rows(self, length: int) -> int:
        """How many of a node's rows give so many rows of a factor."""
        return -(-length * self.rank // self.rows)

    def _factors(self, rows: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """The linear map r -> K: `(N, rows, r)` -> `(N, length, r)` for each length.

        Lengths that need about as many numbers are computed together.
        """
        members: dict[tuple[int, int], list[int]] = defaultdict(list)
        for k, length in enumerate(lengths):
            power = 1 << (length * self.rank - 1).bit_length()
            members[self._rows(length), min(power, self.rows)].append(k)
        found: dict[int, Tensor] = {}
        for (count, end), ks in members.items():
            joined = torch.cat([rows[k][:, :count] for k in ks]).relu()
            numbers = F.linear(joined, self.l2.weight[:end], self.l2.bias[:end]).flatten(1)
            for k, part in zip(ks, numbers.split([len(rows[k]) for k in ks]), strict=True):
                found[k] = part[:, : lengths[k] * self.rank].unflatten(1, (lengths[k], self.rank))
        return [found[k] for k in range(len(lengths))]
