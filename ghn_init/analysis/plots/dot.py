"""A graph in Graphviz's DOT language."""

from __future__ import annotations

import json
from collections.abc import Collection

from ghn_init.analysis.plots.palette import PRIMITIVE_STYLES
from ghn_init.graph.graph import Graph, Node

_SHAPES = {
    "o": "ellipse",
    "8": "octagon",
    "s": "box",
    "*": "star",
    "P": "diamond",
    "X": "Mdiamond",
    "v": "invtriangle",
    "^": "triangle",
    "h": "hexagon",
    "D": "parallelogram",
    "p": "pentagon",
}
"""Graphviz's nearest to matplotlib's markers."""


def dot(name: str, graph: Graph, unpredicted: Collection[int]) -> str:
    """The graph, left to right, in the colors of the picture; `unpredicted` nodes are dashed."""
    lines = [
        f"digraph {json.dumps(name)} {{",
        '  rankdir=LR; node [style="filled", fontname="Helvetica", fontsize=10];',
    ]
    for index, node in enumerate(graph.nodes):
        lines.append(f"  n{index} [{_attributes(node, index in unpredicted)}];")
    lines += [f"  n{i} -> n{j};" for i, j in graph.edges]
    return "\n".join([*lines, "}"]) + "\n"


def _attributes(node: Node, unpredicted: bool) -> str:
    style = PRIMITIVE_STYLES[node.op]
    dark = style.color == PRIMITIVE_STYLES["input"].color
    label = "\n".join(filter(None, (node.op, node.param, _shape(node))))
    values = {
        "label": label,
        "shape": _SHAPES[style.marker],
        "color" if unpredicted else "fillcolor": style.color,
        "fontcolor": "white" if dark and not unpredicted else "black",
    }
    if unpredicted:
        values |= {"style": "dashed"}
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def _shape(node: Node) -> str:
    return "x".join(map(str, node.shape or ()))
