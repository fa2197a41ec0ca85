"""The page of `diagnose`: panels A to G, and what stands out in words."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ghn_init.analysis.extra import plot_extra
from ghn_init.analysis.measure.correlations import BINS
from ghn_init.analysis.measure.measured import Diagnosed, LayerFigures
from ghn_init.analysis.plots.palette import Style, series_style
from ghn_init.analysis.results import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 13.0
_ROW = 2.5
"""Inches: of the page, and of the height of a row of panels."""

_LINE = 0.19
"""Inches of height that a line of words takes."""

_CHARACTERS = 165
"""Characters in a line of words."""

_SMALL = 7


def page(
    name: str,
    batch: str,
    layers: Sequence[str],
    chosen: Sequence[str],
    methods: Sequence[Diagnosed],
    findings: Sequence[str],
) -> Figure:
    """Draw the page; the arguments are the fields of `Diagnosis`."""
    words = [line for text in findings for line in textwrap.wrap(text, _CHARACTERS,
             subsequent_indent="    ")]  # fmt: skip
    with_filters = any(method.filters is not None for method in methods)
    strip = min(_ROW, 0.7 + 0.25 * _WIDTH / len(methods))  # four rows of sixteen filters
    heights = [0.6, strip * with_filters, *[_ROW] * 4, _LINE * (len(words) + 1)]
    figure = new_figure(_WIDTH, sum(heights), dpi=110)
    shown = [height for height in heights if height]
    parts = iter(figure.subfigures(len(shown), 1, squeeze=False, height_ratios=shown).flat)
    styles = [series_style(i) for i in range(len(methods))]
    _head(next(parts), f"{name}: {len(layers)} layers, {batch}", methods, styles)
    if with_filters:
        _filters(next(parts), methods)
    _correlations(next(parts), layers, chosen, methods, styles)
    _similarity_by_depth(next(parts), methods, styles)
    _signals_by_depth(next(parts), methods, styles)
    _spectra(next(parts), chosen, methods, styles)
    next(parts).text(0.01, 1, "\n".join(words), va="top", fontsize=8)
    return figure


def _head(part: Any, title: str, methods: Sequence[Diagnosed], styles: Sequence[Style]) -> None:
    line = plot_extra("matplotlib.lines").Line2D
    handles = [
        line([], [], color=style.color, linestyle=style.dash, marker=style.marker, markersize=5,
             label=method.method)
        for method, style in zip(methods, styles, strict=True)
    ]  # fmt: skip
    part.suptitle(title, fontsize=12)
    part.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)


def _filters(part: Any, methods: Sequence[Diagnosed]) -> None:
    """Panel A: the first layer's filters as image grids."""
    part.suptitle("A  filters of the first layer", fontsize=9, x=0.01, ha="left")
    for method, axes in zip(methods, part.subplots(1, len(methods), squeeze=False)[0], strict=True):
        axes.set_axis_off()
        axes.set_title(method.method, fontsize=8)
        if method.filters is not None:
            axes.imshow(_grid(method.filters).numpy(), interpolation="nearest")


def _grid(filters: Tensor) -> Tensor:
    """`(n, H, W, 3)` -> one image, sixteen filters a row, white lines in between."""
    count, height, width, _ = filters.shape
    columns = min(16, count)
    rows = -(-count // columns)
    grid = torch.ones(rows * (height + 1) + 1, columns * (width + 1) + 1, 3)
    for i, image in enumerate(filters):
        y, x = 1 + i // columns * (height + 1), 1 + i % columns * (width + 1)
        grid[y : y + height, x : x + width] = image
    return grid


def _correlations(
    part: Any,
    layers: Sequence[str],
    chosen: Sequence[str],
    methods: Sequence[Diagnosed],
    styles: Sequence[Style],
) -> None:
    """Panel B: distributions of channel correlations."""
    part.suptitle("B  correlation between output channels", fontsize=9, x=0.01, ha="left")
    centers = [-1 + (2 * i + 1) / BINS for i in range(BINS)]
    for name, axes in zip(chosen, _panels(part, len(chosen)), strict=True):
        index = layers.index(name)
        for method, style in zip(methods, styles, strict=True):
            shares = method.layers[index].similarity.histogram
            axes.plot(centers, shares, color=style.color, linestyle=style.dash, linewidth=1.2)
        axes.set_title(name.removesuffix(".weight"), fontsize=8)
        axes.set_xlabel("Pearson correlation", fontsize=_SMALL)
        axes.set(xlim=(-1, 1), ylim=(0, None))
    axes.figure.axes[0].set_ylabel("share of pairs", fontsize=_SMALL)


def _similarity_by_depth(part: Any, methods: Sequence[Diagnosed], styles: Sequence[Style]) -> None:
    """Panels C and D: spread of the correlations, and near-duplicate channels."""
    spread, near = _panels(part, 2)
    _by_depth(spread, methods, styles, lambda layer: layer.similarity.spread)
    spread.set_title("C  standard deviation of the channel correlations", fontsize=9, loc="left")
    _by_depth(near, methods, styles, lambda layer: 100 * layer.similarity.near_duplicates)
    near.set_title("D  near-duplicate channels (%)", fontsize=9, loc="left")
    near.set_ylim(-4, 104)


def _signals_by_depth(part: Any, methods: Sequence[Diagnosed], styles: Sequence[Style]) -> None:
    """Panels E and F: variance of activations, and gradient norms."""
    variance, gradient = _panels(part, 2)
    _by_depth(variance, methods, styles, lambda layer: layer.variance)
    variance.set_title("E  variance of the layer's output", fontsize=9, loc="left")
    _by_depth(gradient, methods, styles, lambda layer: layer.gradient_norm)
    gradient.set_title("F  norm of the gradient with respect to the weight", fontsize=9, loc="left")
    for axes in (variance, gradient):
        axes.set_yscale("log")


def _by_depth(
    axes: Axes,
    methods: Sequence[Diagnosed],
    styles: Sequence[Style],
    value: Callable[[LayerFigures], float | None],
) -> None:
    for method, style in zip(methods, styles, strict=True):
        numbered = ((i, value(x)) for i, x in enumerate(method.layers, 1) if not x.is_classifier)
        points = [(i, v) for i, v in numbered if v is not None]
        axes.plot(
            [i for i, _ in points], [v for _, v in points], color=style.color,
            linestyle=style.dash, linewidth=1, marker=style.marker, markersize=3,
        )  # fmt: skip
    axes.set_xlabel("layer", fontsize=_SMALL)
    axes.xaxis.set_major_locator(plot_extra("matplotlib.ticker").MaxNLocator(integer=True))


def _spectra(
    part: Any, chosen: Sequence[str], methods: Sequence[Diagnosed], styles: Sequence[Style]
) -> None:
    """Panel G: singular values, thin those before post-processing."""
    before = any(s.before for method in methods for s in method.spectra.values())
    note = " (thin: before post-processing)" if before else ""
    part.suptitle(f"G  singular values{note}", fontsize=9, x=0.01, ha="left")
    for name, axes in zip(chosen, _panels(part, len(chosen)), strict=True):
        for method, style in zip(methods, styles, strict=True):
            spectrum = method.spectra[name]
            axes.plot(spectrum.values, color=style.color, linestyle=style.dash, linewidth=1.2)
            if spectrum.before is not None:
                axes.plot(spectrum.before, color=style.color, linewidth=0.5)
        axes.set_title(name.removesuffix(".weight"), fontsize=8)
        axes.set_xlabel("index", fontsize=_SMALL)
        axes.set_ylim(bottom=0)


def _panels(part: Any, count: int) -> list[Axes]:
    panels = list(part.subplots(1, count, squeeze=False)[0])
    for axes in panels:
        axes.tick_params(labelsize=_SMALL)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    return panels
