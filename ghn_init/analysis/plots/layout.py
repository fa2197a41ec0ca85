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
    straight in the first lane of each row; other branches keep to lanes of their own below. Lanes
    that a row does not use take no room in it.
    """
    layers = [sorted(layer) for layer in nx.topological_generations(graph)]
    lanes = _lanes(graph, layers)
    if len(layers) <= _ONE_ROW:
        return _folded(layers, lanes, len(layers))
    wanted = range(1, max(2, len(layers) // _ONE_ROW + 1))
    layouts = [_folded(layers, lanes, math.ceil(len(layers) / rows)) for rows in wanted]
    return min(layouts, key=lambda it: abs(math.log(it.columns / (it.height + 1) / _ASPECT)))


def _folded(layers: list[list[int]], lanes: dict[int, int], columns: int) -> Layout:
    """The layout with so many layers in a row."""
    places: dict[int, tuple[float, float]] = {}
    rows: dict[int, int] = {}
    tops: list[float] = []
    lowest = ROW_GAP
    for row, first in enumerate(range(0, len(layers), columns)):
        part = layers[first : first + columns]
        used = sorted({lanes[node] for layer in part for node in layer})
        tops.append(lowest - ROW_GAP)
        for column, layer in enumerate(part):
            x = column if row % 2 == 0 else columns - 1 - column
            for node in layer:
                places[node] = float(x), tops[row] - used.index(lanes[node])
                rows[node] = row
        lowest = tops[row] - (len(used) - 1)
    order = range(len(places))
    return Layout(
        tuple(places[node] for node in order),
        tuple(rows[node] for node in order),
        tuple(tops),
        columns,
        lowest,
    )


def _lanes(graph: nx.DiGraph, layers: list[list[int]]) -> dict[int, int]:
    """A lane for each node: 0 on a longest path, else its first predecessor's if that is free."""
    straight = set(nx.dag_longest_path(graph))
    lanes: dict[int, int] = {}
    for layer in layers:
        taken: set[int] = set()
        for node in sorted(layer, key=lambda node: node not in straight):
            before = [lanes[p] for p in graph.pred[node] if lanes[p] > 0]
            wanted = 0 if node in straight else min(before, default=1)
            while wanted in taken:
                wanted += 1
            lanes[node] = wanted
            taken.add(wanted)
    return lanes
