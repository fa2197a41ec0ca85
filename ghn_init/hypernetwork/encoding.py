"""Graph -> tensors: what a graph hypernetwork looks up for each node and each pair of nodes."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ghn_init.devices import moved
from ghn_init.graph.graph import MAX_DISTANCE, PRIMITIVES, Graph

MAX_DEGREE = 100
MAX_INPUT_DISTANCE = 1000

_INDEX = {op: i for i, op in enumerate(PRIMITIVES)}


def channel_table(num_classes: int) -> list[int]:
    """Channel counts that have an embedding, ascending; the dummy row comes behind them."""
    counts = {
        1,
        3,
        num_classes,
        *range(8, 57, 8),
        *range(64, 4081, 16),
        *range(4096, 8193, 32),
    }
    return sorted(counts)


def kernel_table(kernel: int) -> list[int]:
    """Kernel sizes that have an embedding, ascending; the dummy row comes behind them."""
    return sorted({14, 16, *range(1, max(11, kernel - 1) + 1, 2)})


def channel_row(table: Sequence[int], channels: int) -> int:
    """Row of a number of channels: exact; 4 to 7 as 8; else the nearest, the lower on a tie."""
    return _nearest(table, 8 if 4 <= channels <= 7 and channels not in table else channels)


def kernel_row(table: Sequence[int], size: int) -> int:
    """Row of a kernel size: exact; 2 as 3; else the nearest, the lower on a tie."""
    return _nearest(table, 3 if size == 2 else size)


def _nearest(table: Sequence[int], value: int) -> int:
    right = bisect_left(table, value)
    if right == len(table):
        return right - 1
    if right == 0 or table[right] - value < value - table[right - 1]:
        return right
    return right - 1


def positional_grid(tokens: int) -> int:
    """Side of the square of patches in a positional embedding; class tokens come in front."""
    return math.isqrt(tokens)


def class_tokens(shape: tuple[int, ...]) -> int:
    """How many rows of a positional embedding stand before those of the patches."""
    return shape[1] - positional_grid(shape[1]) ** 2 if len(shape) == 3 else 0


def shape4(shape: tuple[int, ...], positional: bool = False) -> tuple[int, int, int, int]:
    """A parameter's shape as (out, in, height, width) (GHN-2 paper, Section 3.1).

    Arguments:
        shape: one to four sizes.
        positional: whether it is a positional embedding, (1, tokens, channels), and not the weight
            of a 1-d convolution with one output.
    """
    if len(shape) == 4:
        return shape[0], shape[1], shape[2], shape[3]
    if len(shape) == 3:
        if positional:
            side = positional_grid(shape[1])
            return 1, shape[2], side, side
        return shape[0], shape[1], shape[2], 1
    if len(shape) == 2:
        return shape[0], shape[1], 1, 1
    return shape[0], 1, 1, 1


@dataclass(frozen=True)
class EncodedGraphs:
    """A batch of B graphs padded to N nodes, as look-up indices.

    Arguments:
        primitives: `(B, N)` rows of the primitives' embeddings.
        shapes: `(B, N, 4)` rows of the channel table (first two) and the kernel table.
        in_degrees, out_degrees: `(B, N)`, one-hop, at most `MAX_DEGREE`.
        input_distances: `(B, N)` shortest path from node 0; 0 beyond `MAX_DISTANCE`.
        distances: `(B, N, N)` shortest directed paths; 0 for none, int16.
        orders: `(B, 2, N)` nodes in the order in which GHN-2 updates them, forwards and backwards;
            zeros for other hypernetworks.
        sizes: number of nodes of each graph.
        levels: for each graph and direction, how many nodes in a row of `orders` do not depend on
            one another and are updated at once.
    """

    primitives: Tensor
    shapes: Tensor
    in_degrees: Tensor
    out_degrees: Tensor
    input_distances: Tensor
    distances: Tensor
    orders: Tensor
    sizes: tuple[int, ...]
    levels: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    def to(self, device: torch.device) -> EncodedGraphs:
        """The same on another device."""
        tensors = {k: moved(v, device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return EncodedGraphs(**tensors, sizes=self.sizes, levels=self.levels)


def encode(
    graphs: Sequence[Graph], num_classes: int, kernel: int, ordered: bool = False
) -> EncodedGraphs:
    """Look-up indices of a batch of graphs.

    Arguments:
        graphs: at least one graph.
        num_classes: of the hypernetwork; it has a row of its own in the channel table.
        kernel: `S` of the hypernetwork.
        ordered: whether it updates nodes one after the other, and needs to know in which order.
    """
    channels, kernels = channel_table(num_classes), kernel_table(kernel)
    sizes = tuple(len(g) for g in graphs)
    longest = max(sizes)
    primitives = torch.zeros(len(graphs), longest, dtype=torch.long)
    shapes = torch.zeros(len(graphs), longest, 4, dtype=torch.long)
    degrees = torch.zeros(2, len(graphs), longest, dtype=torch.long)
    distances = torch.zeros(len(graphs), longest, longest, dtype=torch.int16)
    orders = torch.zeros(len(graphs), 2, longest, dtype=torch.long)
    levels = []
    dummy = [len(channels), len(channels), len(kernels), len(kernels)]
    for b, graph in enumerate(graphs):
        n = len(graph)
        primitives[b, :n] = torch.tensor([_INDEX[node.op] for node in graph.nodes])
        rows = []
        for node in graph.nodes:
            if node.shape is None:
                rows.append(dummy)
                continue
            out, in_, height, width = shape4(node.shape, node.op == "pos_enc")
            rows.append(
                [
                    channel_row(channels, out),
                    channel_row(channels, in_),
                    kernel_row(kernels, height),
                    kernel_row(kernels, width),
                ]
            )
        shapes[b, :n] = torch.tensor(rows)
        ends = torch.tensor(sorted(set(graph.edges)), dtype=torch.long).view(-1, 2)
        degrees[0, b, :n] = ends[:, 1].bincount(minlength=n)
        degrees[1, b, :n] = ends[:, 0].bincount(minlength=n)
        distances[b, :n, :n] = graph.distances
        if ordered:
            depths = _depths(graph)
            orders[b, :, :n] = depths.argsort(dim=1, stable=True)
            forwards, backwards = (tuple(depth.bincount().tolist()) for depth in depths)
            levels.append((forwards, backwards))
    degrees.clamp_(max=MAX_DEGREE)
    return EncodedGraphs(
        primitives=primitives,
        shapes=shapes,
        in_degrees=degrees[0],
        out_degrees=degrees[1],
        input_distances=distances[:, 0].long().clamp_(max=MAX_INPUT_DISTANCE),
        distances=distances,
        orders=orders,
        sizes=sizes,
        levels=tuple(levels),
    )


def _depths(graph: Graph) -> Tensor:
    """Lengths of the longest paths that lead to each node, and that lead from it: `(2, N)`."""
    to, back = [0] * len(graph), [0] * len(graph)
    for i, j in sorted(graph.edges):
        to[j] = max(to[j], to[i] + 1)
    for i, j in sorted(graph.edges, key=lambda edge: -edge[1]):
        back[i] = max(back[i], back[j] + 1)
    return torch.tensor([to, back])


def pair_rows(distances: Tensor) -> Tensor:
    """Which of the `2 * MAX_DISTANCE + 1` pairs (forward, backward distance) two nodes have.

    On a directed acyclic graph at most one of the two is not 0: row k stands for (k, 0), row
    `MAX_DISTANCE + k` for (0, k), row 0 for two unconnected nodes.

    Arguments:
        distances: `(B, N, N)` shortest directed paths.

    Returns: `(B, N, N)` int32.
    """
    backward = distances.transpose(1, 2).contiguous()
    rows = distances + backward  # in two bytes a pair, as long as it can be
    return rows.add_((backward > 0).to(rows.dtype), alpha=MAX_DISTANCE).int()
