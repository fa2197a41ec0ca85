"""Where the nodes of a graph go: layers from left to right, folded into rows like a snake."""

from __future__ import annotations

import math
from dataclasses import dataclass

import networkx as nx

ROW_GAP = 1.6
"""Between the lanes of one row and those of the next, in columns."""

_ONE_ROW = 26
"""Layers that fit into a single row."""

_ASPECT = 1.5
"""Width of the picture over its height, about, where there are several rows."""


@dataclass(frozen=True)
class Layout:
    """Places of nodes, in units of a column; y grows upwards.

    Arguments:
        places: `(x, y)` of each node.
        rows: row of each node; even ones run to the right, odd ones to the left.
        row_tops: y of the first lane of each row.
        columns: layers in a row.
        lowest: y of the lowest place.
    """

    places: tuple[tuple[float, float], ...]
    rows: tuple[int, ...]
    row_tops: tuple[float, ...]
    columns: int
    lowest: float

    @property
    def height(self) -> float:
        """From the first lane of the first row to the lowest place."""
        return -self.lowest


def layered(graph: nx.DiGraph) -> Layout:
    """Lay out a directed acyclic graph with nodes 0 to n - 1.

    A node's layer is the longest path that leads to it. A longest path through the graph runs
    straight in the first lane of each row; other branches keep to lanes of their own below.
    """
    layers = [sorted(layer) for layer in nx.topological_generations(graph)]
    lanes = _lanes(graph, layers)
    columns = _columns(len(layers))
    depth = [max(lanes[node] for layer in row for node in layer) for row in _cut(layers, columns)]
    tops = [-sum(d + ROW_GAP for d in depth[:row]) for row in range(len(depth))]
    places: dict[int, tuple[float, float]] = {}
    rows: dict[int, int] = {}
    for index, layer in enumerate(layers):
        row, column = divmod(index, columns)
        x = column if row % 2 == 0 else columns - 1 - column
        for node in layer:
            places[node], rows[node] = (float(x), tops[row] - lanes[node]), row
    order = range(graph.number_of_nodes())
    return Layout(
        tuple(places[node] for node in order),
        tuple(rows[node] for node in order),
        tuple(tops),
        columns,
        tops[-1] - depth[-1],
    )


def _columns(layers: int) -> int:
    """Layers in a row, so that the picture has its aspect and the last row is not much shorter."""
    if layers <= _ONE_ROW:
        return layers
    wanted = max(_ONE_ROW, round(math.sqrt(_ASPECT * (ROW_GAP + 0.5) * layers)))
    return math.ceil(layers / math.ceil(layers / wanted))


def _cut(layers: list[list[int]], columns: int) -> list[list[list[int]]]:
    return [layers[i : i + columns] for i in range(0, len(layers), columns)]


def _lanes(graph: nx.DiGraph, layers: list[list[int]]) -> dict[int, int]:
    """A lane for each node: 0 on a longest path, else its predecessor's if that is free."""
    straight = set(nx.dag_longest_path(graph))
    lanes: dict[int, int] = {}
    for layer in layers:
        taken: set[int] = set()
        for node in sorted(layer, key=lambda node: node not in straight):
            wanted = 0 if node in straight else max(1, *(lanes[p] for p in graph.pred[node]), 1)
            while wanted in taken:
                wanted += 1
            lanes[node] = wanted
            taken.add(wanted)
    return lanes
