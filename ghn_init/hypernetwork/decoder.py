"""Node features -> parameter tensors (GHN-2 paper, Section 3.2; GHN-3 paper, Appendix A.1).

A decoder can produce a tensor of `max_shape` for every node. Only the channels and kernel
positions that a layer uses are computed, and the weights of all layers are decoded together: the
last linear map has most of a hypernetwork's parameters, and of a large one each is read once.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_init.hypernetwork.config import GHNConfig
from ghn_init.hypernetwork.encoding import shape4

VECTORS = ("norm", "bias", "class_bias")
"""Kinds of parameters with one dimension; the others are weight, position and class_weight."""

_MOST_ENDS = 24
"""In how many places the channels of the last map are cut at most. No model of torchvision needs
more. Many models together have hundreds of sizes, and a matrix product of 3 channels takes as long
as one of 16."""

_NARROWEST = 16

_READ_AGAIN = 2**28
"""Bytes of the last map that are read more than once, rather than to cut it into pieces."""

_READING = 8
"""Reading a row of the last map takes as long as multiplying it with so many columns."""

_CALL = 4e6
"""A product takes as long as so many of its multiplications, however few it has."""

Size = tuple[int, int, int, int]
"""(out, in, height, width) of a weight."""

_Channels = tuple[int, int]
"""(out, in) of a weight."""


class PositionMaps(nn.Module):
    """A linear map d -> 4d for each of the S x S positions of a kernel.

    Published checkpoints have one map d -> 4d * S * S, where the positions of an output are next to
    each other. Here the outputs of a position are, so that those of small kernels are few
    stretches of a file, and the others need not be read.

    Arguments:
        hidden_size: width d.
        kernel: S.
    """

    def __init__(self, hidden_size: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel, kernel, 4 * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(kernel, kernel, 4 * hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `nn.Linear` does."""
        bound = self.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, rows: slice, columns: slice) -> Tensor:
        """`(N, d)` -> `(h * w * N, 4d)` for the h x w positions of these rows and columns."""
        maps = zip(self.weight[rows, columns], self.bias[rows, columns], strict=True)
        return torch.cat([_products(x, weight, bias) for weight, bias in maps]).flatten(0, 1)


class ConvDecoder(nn.Module):
    """Decoder of weights: convolutions, linear layers, positional embeddings, classifiers.

    Arguments:
        config: sizes; `max_shape` is `(C, C, S, S)`.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        d, c, s = config.hidden_size, config.channels, config.kernel
        self.channels, self.kernel, self.centered = c, s, config.arch != "ghn2"
        self.fc = nn.ModuleList([PositionMaps(d, s)])
        self.conv = nn.Sequential(nn.Linear(4 * d, 8 * d), nn.ReLU(), nn.Linear(8 * d, c * c))
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), nn.Linear(c, config.num_classes))

    def size(self, kind: str, shape: tuple[int, ...]) -> Size | None:
        """Of what is decoded for a parameter; None for one that another decoder decodes.

        Arguments:
            kind: `"weight"`, `"position"`, `"class_weight"`, or one of `VECTORS`.
            shape: of the parameter.
        """
        if kind in VECTORS:
            return None
        if kind == "class_weight":
            return self.channels, min(shape[1], self.channels), 1, 1
        out, in_, height, width = shape4(shape, kind == "position")
        return min(out, self.channels), min(in_, self.channels), height, width

    def numbers(self, size: Size) -> int:
        """How many are in memory at a time for a weight of this size."""
        return math.prod(size)

    def forward(self, wanted: Sequence[tuple[Tensor, Size]]) -> list[Tensor]:
        """Decode weights of several sizes at once.

        Arguments:
            wanted: `(N, d)` features of nodes, and the size of their weights: out and in at most
                C; a kernel larger than S is bilinearly interpolated.

        Returns: for each size, `(N, out, in, height, width)`.
        """
        if not wanted:
            return []
        kernels = [(min(h, self.kernel), min(w, self.kernel)) for _, (_, _, h, w) in wanted]
        columns = self._hidden([x for x, _ in wanted], kernels)
        weights = self._channels(columns, [size[:2] for _, size in wanted])
        decoded = []
        for (x, (_, _, *kernel)), weight, (h, w) in zip(wanted, weights, kernels, strict=True):
            weight = weight.unflatten(1, (h, w, len(x))).permute(3, 0, 4, 1, 2)
            if [h, w] != kernel:
                larger = F.interpolate(weight.flatten(0, 1), kernel, mode="bilinear")
                weight = larger.unflatten(0, weight.shape[:2])
            decoded.append(weight)
        return decoded

    def classifier(self, weight: Tensor) -> Tensor:
        """`(N, C, in)` decoded weights -> `(N, num_classes, in)`."""
        scores: Tensor = self.class_layer_predictor(weight.transpose(1, 2))
        return scores.transpose(1, 2)

    def _hidden(self, nodes: Sequence[Tensor], kernels: Sequence[tuple[int, int]]) -> list[Tensor]:
        """All but the last linear map: `(N, d)` -> `(h * w * N, 8d)` for each kernel size."""
        members: dict[tuple[int, int], list[int]] = defaultdict(list)
        for k, kernel in enumerate(kernels):
            members[kernel].append(k)
        hidden: dict[int, Tensor] = {}
        for (h, w), ks in members.items():
            positions = self._positions(torch.cat([nodes[k] for k in ks]), h, w)
            x = self.conv[1](self.conv[0](F.relu(positions))).unflatten(0, (h * w, -1))
            split = x.split([len(nodes[k]) for k in ks], dim=1)
            hidden |= zip(ks, (part.flatten(0, 1) for part in split), strict=True)
        return [hidden[k] for k in range(len(nodes))]

    def _positions(self, x: Tensor, h: int, w: int) -> Tensor:
        """First linear map, for the kernel positions in use: `(N, d)` -> `(h * w * N, 4d)`."""
        s = self.kernel
        top, left = (s // 2 - h // 2, s // 2 - w // 2) if self.centered else (0, 0)
        positions: Tensor = self.fc[0](x, slice(top, top + h), slice(left, left + w))
        return positions

    def _channels(
        self, columns: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Last linear map, for the channels in use: `(M, 8d)` -> `(out, M, in)` for each size.

        Some sizes are rounded up to a larger one, and the channels that are too many are dropped.
        Sizes that are then equal are computed together.
        """
        weight, bias = self._last_map()
        lengths = [len(x) for x in columns]
        larger = _joined(sizes, lengths, weight.shape[2])
        read = [math.prod(size) for size in set(larger.values())]
        again = (sum(read) - max(read)) * weight[0, 0].nbytes
        by_pieces = again > _READ_AGAIN or torch.is_grad_enabled()
        larger = _rounded(sizes) if by_pieces else larger
        members: dict[tuple[int, int], list[int]] = defaultdict(list)
        for k, size in enumerate(sizes):
            members[larger[size]].append(k)
        joined = [torch.cat([columns[k] for k in ks]) for ks in members.values()]
        if by_pieces:
            wholes = self._by_pieces(joined, list(members))
        else:
            wholes = [
                _shorter_products(x, weight[:out, :in_], bias[:out, :in_])
                for x, (out, in_) in zip(joined, members, strict=True)
            ]
        found: dict[int, Tensor] = {}
        for ks, whole in zip(members.values(), wholes, strict=True):
            parts = whole.split([lengths[k] for k in ks], dim=1)
            for k, part in zip(ks, parts, strict=True):
                out, in_ = sizes[k]
                found[k] = part[:out, :, :in_]
        return [found[k] for k in range(len(sizes))]

    def _last_map(self) -> tuple[Tensor, Tensor]:
        """Weight `(C, C, 8d)` and bias `(C, C)` of the last linear map."""
        weight, bias = (p.unflatten(0, (self.channels, -1)) for p in self.conv[2].parameters())
        return weight, bias

    def _by_pieces(
        self, columns: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Last linear map for few, different sizes: `(M, 8d)` -> `(out, M, in)` for each size.

        The map's output channels are cut where a size ends, and each strip's input channels
        likewise. A piece is multiplied once with the columns of all sizes that reach it. For sizes
        A = (64, 32), B = (64, 16) and C = (32, 64):

                          in 0..16      16..32      32..64
            out 0..32     A, B, C       A, C        C
            out 32..64    A, B          A

        Five products, in which no number is computed in vain. A's weights are its two pieces of
        the upper strip side by side, above its two of the lower one.

        Pieces are views of the map: in inference they are not copied, in training their gradients
        are put together once.
        """
        weight, bias = self._last_map()
        strips: list[list[Tensor]] = [[] for _ in sizes]
        widest_first = sorted(range(len(sizes)), key=lambda k: -sizes[k][1])
        for out_end, rows, shift in _cut(weight, bias, 0, {out for out, _ in sizes}):
            # Widest first, so that the sizes that reach a piece are the first ones.
            members = [k for k in widest_first if sizes[k][0] >= out_end]
            joined = torch.cat([columns[k] for k in members])
            pieces: dict[int, list[Tensor]] = {k: [] for k in members}
            for in_end, piece, add in _cut(rows, shift, 1, {sizes[k][1] for k in members}):
                reaching = [k for k in members if sizes[k][1] >= in_end]
                lengths = [len(columns[k]) for k in reaching]
                products = _shorter_products(joined[: sum(lengths)], piece, add)
                for k, product in zip(reaching, products.split(lengths, dim=1), strict=True):
                    pieces[k].append(product)
            for k in members:
                strips[k].append(torch.cat(pieces[k], dim=2))
        return [torch.cat(parts) for parts in strips]


def _rounded(sizes: Sequence[_Channels]) -> dict[_Channels, _Channels]:
    """Sizes -> the same or larger ones, with at most `_MOST_ENDS` numbers of out and of in."""
    ends = []
    for distinct in map(set, zip(*sizes, strict=True)):
        largest = max(distinct)
        step = max(_NARROWEST, -(-largest // _MOST_ENDS)) if len(distinct) > _MOST_ENDS else 1
        ends.append({size: min(-(-size // step) * step, largest) for size in distinct})
    outs, ins = ends
    return {(out, in_): (outs[out], ins[in_]) for out, in_ in sizes}


def _joined(
    sizes: Sequence[_Channels], lengths: Sequence[int], depth: int
) -> dict[_Channels, _Channels]:
    """Sizes -> the same or larger ones: larger where that costs less than a product more.

    Arguments:
        sizes, lengths: of weights, and the columns that each is decoded from.
        depth: of the map.
    """
    columns: Counter[_Channels] = Counter()
    for size, length in zip(sizes, lengths, strict=True):
        columns[size] += length
    found: dict[_Channels, _Channels] = {}
    for size in sorted(columns, key=math.prod, reverse=True):
        around = [other for other in found.values() if other[0] >= size[0] and other[1] >= size[1]]
        nearest, rows = min(around, key=math.prod, default=size), math.prod(size)
        in_vain = columns[size] * (math.prod(nearest) - rows)
        found[size] = nearest if in_vain < rows * _READING + _CALL / depth else size
    return found


def _cut(
    weight: Tensor, bias: Tensor, axis: int, ends: set[int]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Cut the rows of a linear map at the given ends: each end, and what lies before it."""
    lengths = [b - a for a, b in pairwise([0, *sorted(ends | {weight.shape[axis]})])]
    parts = zip(weight.split(lengths, axis), bias.split(lengths, axis), strict=True)
    return ((end, *part) for end, part in zip(sorted(ends), parts, strict=False))


def _shorter_products(columns: Tensor, piece: Tensor, bias: Tensor) -> Tensor:
    """`_products`, which makes one product for every A, along the shorter side of the piece."""
    if len(piece) <= piece.shape[1]:
        return _products(columns, piece, bias)
    return _products(columns, piece.transpose(0, 1), bias.t()).transpose(0, 2)


def _products(columns: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """A linear map whose rows are cut out of a larger one, and not next to each other.

    Arguments:
        columns: `(M, K)`, what it is applied to.
        rows: `(A, B, K)` weight; rows of one A have a constant distance.
        bias: `(A, B)`.

    Returns: `(A, M, B)`.
    """
    if torch.is_grad_enabled():  # rows are copied, but the gradients are one product each
        products = F.linear(columns, rows.flatten(0, 1), bias.flatten())
        by_row: Tensor = products.unflatten(1, bias.shape)
        return by_row.transpose(0, 1)
    if columns.is_cpu and columns.dtype == torch.bfloat16:  # for which baddbmm copies the rows
        return torch.stack([F.linear(columns, r, b) for r, b in zip(rows, bias, strict=True)])
    return torch.baddbmm(bias[:, None], columns.expand(len(rows), -1, -1), rows.mT)


class VectorDecoder(nn.Module):
    """Decoder of norm weights (row 0) and of biases (row 1): an MLP d -> 2d -> 2C."""

    def __init__(self, hidden_size: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(hidden_size, 2 * hidden_size),
            nn.ReLU(),
            nn.Linear(2 * hidden_size, 2 * channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, d)` node features -> `(N, 2, C)`."""
        pairs: Tensor = self.fc(x).unflatten(-1, (2, -1))
        return pairs


def cut(decoded: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first channels of decoded tensors, as many as a parameter has.

    Arguments:
        decoded: `(N, out, ...)` or `(N, out, in, ...)`.
        shape: sizes of the parameter's channels, `(out,)` or `(out, in)`.
    """
    for axis, size in enumerate(shape[:2], start=1):
        decoded = decoded.narrow(axis, 0, min(size, decoded.shape[axis]))
    return decoded


def normalize_weight(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Scale a decoded weight to its fan-in (GHN-2 paper, Appendix A): times sqrt(beta / fan-in).

    beta is 2 (He et al.), except for depth-wise and row kernels, where it is 1.

    Arguments:
        weight: as it was decoded.
        shape: of the parameter that it becomes.
    """
    narrow = len(shape) > 2 and shape[1] == 1
    row = len(shape) > 3 and shape[2] < shape[3]
    scale: float = ((1 if narrow or row else 2) / math.prod(shape[1:])) ** 0.5
    return weight * scale


def normalize_norm_weight(weight: Tensor) -> Tensor:
    """Keep a norm's weight in (0, 2), around 1."""
    return 2 * torch.sigmoid(0.5 * weight)


def normalize_bias(bias: Tensor) -> Tensor:
    """Keep a bias in (-1, 1), around 0."""
    return torch.tanh(0.2 * bias)
