"""Layers of two graphs that correspond, in order, as in DPIAT (https://arxiv.org/abs/2212.13970).

Both models are sequences of layers. An alignment gives layers of the source to layers of the
model, in order; one layer of the source may serve several in a row, each for less. The best one is
found by dynamic programming. DPIAT reads the order of the layers off the modules; here it is that
of the graphs, in which a layer has its place whatever module it is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ghn_init.graph.graph import NORMS, WEIGHTS, Graph

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Layer:
    """A weight or norm: its kind, and the names and shapes of its parameters, weight first."""

    kind: tuple[str, int, str]
    params: tuple[str, ...]
    shapes: tuple[Shape, ...]


def aligned(
    graph: Graph, source: Graph, wanted: Collection[str], fits: Callable[[Shape, Shape], bool]
) -> dict[str, str]:
    """By parameter of the model that of the source which corresponds.

    Arguments:
        graph, source: of the two models. Last layers take no part.
        wanted: the model's parameters that may be matched.
        fits: whether a shape of the source's (the second) can be made into one of the model's.
    """
    layers = [layer for layer in _layers(graph) if layer.params[0] in wanted]
    others = _layers(source)
    scores = torch.zeros(len(layers), len(others), dtype=torch.float64)
    for i, layer in enumerate(layers):
        for j, other in enumerate(others):
            if layer.kind == other.kind and fits(layer.shapes[0], other.shapes[0]):
                scores[i, j] = similarity(layer.shapes[0], other.shapes[0])
    found: dict[str, str] = {}
    for i, j in alignment(scores):
        layer, other = layers[i], others[j]
        for name, shape, n, s in zip(
            layer.params, layer.shapes, other.params, other.shapes, strict=False
        ):
            if name in wanted and fits(shape, s):
                found[name] = n
    return found


def _layers(graph: Graph) -> list[_Layer]:
    """Weights and norms in the graph's order, each with its bias."""
    biases = {
        before[0]: node.param
        for node, before in zip(graph.nodes, graph.predecessors, strict=True)
        if node.op == "bias" and node.param and len(before) == 1
    }
    layers, roles = [], _attention_roles(graph)
    for index, node in enumerate(graph.nodes):
        if node.op in WEIGHTS | NORMS and node.param and node.param not in graph.head_parameters:
            bias = node.norm_bias if node.op in NORMS else biases.get(index)
            names = tuple(name for name in (node.param, bias) if name)
            shapes = tuple(graph.shapes[name] for name in names)
            kind = (node.op, len(shapes[0]), roles.get(node.param, ""))
            layers.append(_Layer(kind, names, shapes))
    return layers


def _attention_roles(graph: Graph) -> dict[str, str]:
    """Weights in front of an attention, by what they give, and behind one."""
    found: dict[str, str] = {}
    for attention in graph.attentions:
        for role in ("query", "key", "value", "out"):
            if projection := getattr(attention, role):
                found[projection.param] = f"{found.get(projection.param, '')} {role}"
    return found


def similarity(shape: Shape, other: Shape) -> float:
    """How alike two sizes are, from 0 to 1: the product of the axes' ratios (DPIAT's score)."""
    return math.prod(min(a / b, b / a) for a, b in zip(shape, other, strict=True))


def alignment(scores: Tensor) -> list[tuple[int, int]]:
    """The pairs of the best alignment.

    With the total `best[i, j]` of the first i layers of the model and the first j of the source,
    `best[i, j] = max(best[i-1, j], best[i, j-1], max_k sum(scores[k..i, j]) / sqrt(i-k+1) +
    best[k-1, j-1])`: a source layer that serves d layers counts for the square root of d.

    Arguments:
        scores: (layers of the model, layers of the source), 0 for a pair that does not fit.

    Returns: pairs that fit, in order.
    """
    n, m = scores.shape
    best = torch.zeros(m + 1, n + 1, dtype=scores.dtype)
    start = torch.zeros(m + 1, n + 1, dtype=torch.long)  # where the layers of a source layer begin
    numbers = torch.arange(n + 1)
    lengths = (numbers[:, None] - numbers[None, :]).clamp(min=1).to(scores.dtype).sqrt()
    impossible = numbers[None, :] >= numbers[:, None]
    for j in range(1, m + 1):
        sums = torch.cat([scores.new_zeros(1), scores[:, j - 1].cumsum(0)])
        totals = (sums[:, None] - sums[None, :]) / lengths + best[j - 1][None, :]
        used, start[j] = totals.masked_fill(impossible, -math.inf).max(1)
        best[j] = torch.maximum(used, best[j - 1]).cummax(0).values
    pairs, i, j = [], n, m
    while i and j:
        if best[j, i] == best[j - 1, i]:
            j -= 1
        elif best[j, i] == best[j, i - 1]:
            i -= 1
        else:
            begin = int(start[j, i])
            pairs += [(k, j - 1) for k in reversed(range(begin, i)) if scores[k, j - 1] > 0]
            i, j = begin, j - 1
    return pairs[::-1]
