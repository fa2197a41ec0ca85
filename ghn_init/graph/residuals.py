"""Residual branches without a norm: what they add grows with the stream that they add it to."""

from __future__ import annotations

from dataclasses import dataclass

from ghn_init.graph.graph import NO_PASSAGE, NORMS, WEIGHTS, Graph


@dataclass(frozen=True)
class Branch:
    """A branch without a norm between the stream and the sum that it ends in.

    Arguments:
        sum: the node of the sum.
        stream: the node of its other operand, which the branch is computed from.
        end: the branch's last node.
        last: names of the weight that ends the branch and of its bias.
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
        Branch(j, stream, end, last_layer(graph, end), depths[j])
        for j, (stream, end) in pairs.items()
    )
    return [branch for branch in found if branch.last]


def runs_without_norm(graph: Graph) -> list[int]:
    """For each node the most weights in a row that lead to it, itself included, without a norm.

    Residual branches that begin with a norm do not make a run longer.
    """
    run: list[int] = []
    for j, node in enumerate(graph.nodes):
        before = [] if _is_norm(graph, j) else _inputs(graph, j)
        run.append(max((run[i] for i in before), default=0))
        run[j] += node.op in WEIGHTS and node.param not in graph.normalized
    return run


def ends(graph: Graph) -> list[int]:
    """The nodes of the last layers' weights; where there are none, those without a successor."""
    heads = {weight for weight, _ in graph.heads or ()}
    found = [i for i, node in enumerate(graph.nodes) if node.param in heads]
    return found or sorted(set(range(len(graph))) - {i for i, _ in graph.edges})


def last_layer(graph: Graph, end: int) -> tuple[str, ...]:
    """Names of the weight that a node ends, and of its bias; none if it ends otherwise."""
    node = graph.nodes[end]
    if node.op in WEIGHTS and node.param:
        return (node.param,)
    if node.op == "bias" and node.param:
        return (*last_layer(graph, graph.predecessors[end][0]), node.param)
    return last_layer(graph, graph.predecessors[end][0]) if node.op in _PASSED else ()


_PASSED = frozenset({"cse", "max_pool", "avg_pool", "glob_avg"})


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
