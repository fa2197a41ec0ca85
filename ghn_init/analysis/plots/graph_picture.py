"""The picture of a computational graph."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ghn_init.analysis.extra import plot_extra
from ghn_init.analysis.measure.graph_statistics import GraphStatistics, as_networkx
from ghn_init.analysis.plots.layout import ROW_GAP, Layout, layered
from ghn_init.analysis.plots.palette import PRIMITIVE_STYLES
from ghn_init.analysis.results import new_figure
from ghn_init.graph.graph import PRIMITIVES, Graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 13.0
"""Inches that the columns of a folded graph share."""

_PITCH = 0.55
"""Inches a column takes at most."""

_LABELLED = 30
"""Nodes up to which every parameter is named; larger graphs name the first of each row."""

_NAME_SIZE, _NAME_ANGLE = 7.0, 50
"""Of parameter names in a small graph: points, and degrees downwards."""

_NOTE = 130
"""Characters in a line of the note."""

_EDGE = "#555555"


def picture(
    name: str, graph: Graph, statistics: GraphStatistics, unpredicted: Collection[int], note: str
) -> Figure:
    """Draw a graph; nodes in `unpredicted` are left empty, and the note stands below the title."""
    layout = layered(as_networkx(graph))
    pitch = min(_PITCH, _WIDTH / layout.columns)
    figure = new_figure(7, 7)
    axes = figure.add_subplot()
    axes.set_axis_off()
    small = len(graph) <= _LABELLED
    left, right = (-1.0, layout.columns + 1.5) if small else (-3.5, layout.columns + 2.5)
    top, bottom = 1.5, layout.lowest - (_name_height(graph, pitch) if small else 1.0)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    figure.set_size_inches(max(7.0, pitch * (right - left)), pitch * (top - bottom) + 1.0)
    _draw_edges(axes, graph, layout, pitch)
    _draw_nodes(axes, graph, layout, pitch, unpredicted)
    if small:
        _name_nodes(axes, graph, layout)
    else:
        _name_rows(axes, graph, layout, pitch)
    axes.set_title(
        f"{name}: {statistics.nodes} nodes, {statistics.edges} edges, "
        f"average degree {statistics.degree:.2f}, average path {statistics.path:.2f}\n"
        + textwrap.fill(note, _NOTE),
        fontsize=10,
    )
    _add_legend(figure, graph, bool(unpredicted))
    return figure


def _draw_edges(axes: Axes, graph: Graph, layout: Layout, pitch: float) -> None:
    arrow = plot_extra("matplotlib.patches").FancyArrowPatch
    crowded = len(graph.edges) > 2 * len(graph)
    size = _marker_size(pitch)
    style = f"-|>,head_length={0.28 * size},head_width={0.14 * size}"
    for i, j in graph.edges:
        patch = arrow(
            layout.places[i], layout.places[j], arrowstyle=style,
            connectionstyle=_bend(layout, i, j), mutation_scale=1.0, shrinkA=0.5 * size,
            shrinkB=0.5 * size, color=_EDGE, alpha=0.35 if crowded else 0.9,
            linewidth=0.5 if crowded else 0.8, zorder=1,
        )  # fmt: skip
        patch.set_in_layout(False)  # neither do arrows change the limits: both would take seconds
        axes.add_artist(patch)


def _bend(layout: Layout, i: int, j: int) -> str:
    """Neighbors are joined straight; what skips layers passes nodes over, under or outside."""
    (x0, y0), (x1, y1) = layout.places[i], layout.places[j]
    span = abs(x1 - x0)
    side = 1 if layout.rows[i] % 2 == 0 else -1  # where the row ends: right or left
    if layout.rows[i] != layout.rows[j]:
        if span > 1:  # down first, then between the rows
            angle = math.degrees(math.atan2((y1 - y0) / 2, x1 - x0))
            return f"angle3,angleA=90,angleB={angle}"
        around = y0 - y1 > ROW_GAP + 0.5  # there may be another lane in between
        return f"arc3,rad={-side * 0.8 / (y0 - y1) if around else 0}"
    if span <= 1:
        return "arc3,rad=0"
    height = min(1.0, 0.3 + 0.08 * span)  # of the curve's middle, in columns; half its control's
    return f"arc3,rad={-side * 2 * height / span if y0 == y1 else side * 0.15}"


def _marker_size(pitch: float) -> float:
    """Points across a node."""
    return 0.55 * pitch * 72


def _draw_nodes(
    axes: Axes, graph: Graph, layout: Layout, pitch: float, unpredicted: Collection[int]
) -> None:
    alike: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for index, node in enumerate(graph.nodes):
        alike.setdefault((node.op, index in unpredicted), []).append(layout.places[index])
    for (op, empty), places in alike.items():
        marker = _marker(op, (0.6 if op == "bias" else 1.0) * _marker_size(pitch), empty)
        axes.plot(*zip(*places, strict=True), scalex=False, scaley=False, in_layout=False, **marker)


def _marker(op: str, size: float, empty: bool) -> dict[str, Any]:
    style = PRIMITIVE_STYLES[op]
    return {
        "marker": style.marker,
        "markersize": size,
        "markerfacecolor": "white" if empty else style.color,
        "markeredgecolor": style.color if empty else "black",
        "markeredgewidth": 1.5 if empty else 0.5,
        "linestyle": "none",
        "zorder": 3,
    }


def _name_height(graph: Graph, pitch: float) -> float:
    """Columns that the names below a small graph take."""
    longest = max(len(node.param or node.op) for node in graph.nodes)
    return 0.7 + longest * 0.6 * _NAME_SIZE * math.sin(math.radians(_NAME_ANGLE)) / (72 * pitch)


def _name_nodes(axes: Axes, graph: Graph, layout: Layout) -> None:
    """Parameter names of a small graph: below the first lane, or beside a node in another."""
    for node, (x, y) in zip(graph.nodes, layout.places, strict=True):
        name = node.param or node.op
        if y == layout.row_tops[0]:
            y = layout.lowest
        axes.text(
            x, y - 0.5, name, fontsize=_NAME_SIZE, rotation=-_NAME_ANGLE, ha="left", va="center",
            rotation_mode="anchor", zorder=4,
        )  # fmt: skip


def _name_rows(axes: Axes, graph: Graph, layout: Layout, pitch: float) -> None:
    """The first parameter in the first lane of each row, at the end where the row starts."""
    size = max(5.0, min(8.0, 16 * pitch))
    for row, top in enumerate(layout.row_tops):
        rightwards = row % 2 == 0
        lane = sorted(
            (x if rightwards else -x, node.param)
            for node, (x, y) in zip(graph.nodes, layout.places, strict=True)
            if y == top and node.param
        )
        if not lane:
            continue
        name = lane[0][1].removesuffix(".weight")
        text = f"{name} \N{RIGHTWARDS ARROW}" if rightwards else f"\N{LEFTWARDS ARROW} {name}"
        x = -0.7 if rightwards else layout.columns - 0.3
        side = "right" if rightwards else "left"
        axes.text(x, top, text, fontsize=size, ha=side, va="center", zorder=4)


def _add_legend(figure: Figure, graph: Graph, with_empty: bool) -> None:
    line = plot_extra("matplotlib.lines").Line2D
    counts = Counter(node.op for node in graph.nodes)
    handles = [
        line([], [], label=f"{op} ({counts[op]})", **_marker(op, 8, False))
        for op in PRIMITIVES
        if counts[op]
    ]
    if with_empty:
        handles.append(line([], [], label="not predicted", **_marker("conv", 8, True)))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)),
                  fontsize=8, frameon=False)  # fmt: skip
