"""Names beside points, where they cover no point and no other name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ghn_init.analysis.extra import plot_extra
from ghn_init.analysis.plots.palette import GRAY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKER = 5.0
"""Points from the middle of a marker to where a name may begin."""

_SIDES = ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1.4), (0, -1.4))
"""Where a name may go, best first: right or left of the point, and above or below."""

_AWAY = (1.0, 2.2, 3.6, 5.5, 8.0, 11.0, 15.0, 20.0)
"""How far, in `_MARKER`s; from the second on a line leads to the point."""


def name_points(
    figure: Figure, axes: Axes, names: Sequence[str], places: Sequence[tuple[float, float]]
) -> None:
    """Write names at the first free place near their points; one that finds none is left out.

    Arguments:
        figure: finished but for the names.
        axes: where the points are.
        names: one a point.
        places: `(x, y)` of the points, in the units of the axes.
    """
    figure.draw_without_rendering()  # the layout settles, and so do places on the page
    box = plot_extra("matplotlib.transforms").Bbox
    unit = _MARKER * figure.dpi / 72
    centers = axes.transData.transform(places)
    taken = [box.from_extents(x - unit, y - unit, x + unit, y + unit) for x, y in centers]
    for name, place, (x, y) in zip(names, places, centers, strict=True):
        text = axes.annotate(name, place, (0, 0), textcoords="offset points", fontsize=6)
        size = text.get_window_extent()
        text.remove()
        for away, (right, up) in itertools.product(_AWAY, _SIDES):
            left = x + away * right * unit - size.width * (1 - right) / 2
            bottom = y + away * up * unit - size.height / 2
            extent = box.from_bounds(left, bottom, size.width, size.height)
            inside = axes.bbox.contains(*extent.min) and axes.bbox.contains(*extent.max)
            if extent.count_overlaps(taken) or not inside:
                continue
            leader = {"arrowstyle": "-", "color": GRAY, "linewidth": 0.4} if away > 1 else None
            axes.annotate(
                name, place, (away * right * _MARKER, away * up * _MARKER), fontsize=6,
                textcoords="offset points", va="center", arrowprops=leader,
                ha={-1: "right", 0: "center", 1: "left"}[right],
            )  # fmt: skip
            taken.append(extent)
            break
