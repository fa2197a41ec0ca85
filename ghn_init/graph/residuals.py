"""Residual branches without a norm: what they add grows with the stream that they add it to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ghn_init.graph.graph import NO_PASSAGE, NORMS, WEIGHTS, Graph


@dataclass(frozen=True)
class Branch:
    """A branch without a norm between the stream and the sum that it ends in.

    Arguments:
        sum: the node of the sum.
        stream: the node of its other operand, which the branch is computed from.
        end: the branch's last node.
        last: names of the weights that end the branch, with the names of their biases.
        depth: how many such sums follow each other on this stream.
    """

    sum: int
    stream: int
    end: int
    last: tuple[str, ...]
    depth: int


def branches_without_norm(graph: Graph) -> list[Branch]:
    """The branches, in the order of the graph.

    Weights that the model normalizes itself count as a norm: the model decides on their size.
    """
    above = _above_without_norm(graph)
    pairs: dict[int, tuple[int, int]] = {}
    for j, node in enumerate(graph.nodes):
        before = graph.predecessors[j]
        if node.op == "sum" and len(before) == 2 and above[before[1]] >> before[0] & 1:
            pairs[j] = before[0], before[1]
    depths = _depths({j: stream for j, (stream, _) in pairs.items()})
    found = (
        Branch(j, stream, end, tuple(_last(graph, end)), depths[j])
        for j, (stream, end) in pairs.items()
    )
    return [branch for branch in found if branch.last]


def longest_run(graph: Graph) -> int:
    """The most weights in a row, without a norm in between, in front of a node without successor.

    Residual branches that begin with a norm do not make a run longer.
    """
    run = [0] * len(graph)
    for j, node in enumerate(graph.nodes):
        run[j] = (
            0 if _is_norm(graph, j) else max(map(run.__getitem__, _inputs(graph, j)), default=0)
        )
        run[j] += node.op in WEIGHTS and node.param not in graph.normalized
    ends = set(range(len(graph))) - {i for i, _ in graph.edges}
    return max((run[j] for j in ends), default=0)


def _above_without_norm(graph: Graph) -> list[int]:
    """For each node, as bits, the nodes that reach it without a norm in between."""
    above: list[int] = []
    for j in range(len(graph)):
        bits = 0
        for i in () if _is_norm(graph, j) else graph.predecessors[j]:
            if not graph.passages.get((i, j), NO_PASSAGE).normalized:
                bits |= above[i] | 1 << i
        above.append(bits)
    return above


def _is_norm(graph: Graph, index: int) -> bool:
    node = graph.nodes[index]
    return node.op in NORMS or node.param in graph.normalized


def _inputs(graph: Graph, index: int) -> list[int]:
    """A node's operands; of a gate only the features."""
    before = graph.predecessors[index]
    return before[:1] if graph.nodes[index].op == "cse" else before


def _depths(stream: dict[int, int]) -> dict[int, int]:
    """For each sum the longest way along streams through the sums that it is connected to."""
    root: dict[int, int] = {}
    length: dict[int, int] = {}
    for j, before in stream.items():
        root[j], length[j] = root.get(before, before), length.get(before, 0) + 1
    longest: dict[int, int] = {}
    for j, first in root.items():
        longest[first] = max(longest.get(first, 0), length[j])
    return {j: longest[first] for j, first in root.items()}


def _last(graph: Graph, end: int) -> Iterator[str]:
    """The weights that a branch ends with, and their biases; none if it ends otherwise."""
    node = graph.nodes[end]
    if node.op in WEIGHTS and node.param:
        yield node.param
    elif node.op == "bias" and node.param:
        yield from (*_last(graph, graph.predecessors[end][0]), node.param)
    elif node.op == "cse":
        yield from _last(graph, graph.predecessors[end][0])
