"""`diversity`: how different the tensors of one shape are over a set of models (Table 9)."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ghn_init.analysis.extra import plot_extra
from ghn_init.analysis.initializations import (
    PRETRAINED,
    Checkpoints,
    architecture,
    check_methods,
    initialized,
    load_hypernetworks,
)
from ghn_init.analysis.plots.palette import series_style
from ghn_init.analysis.results import Result, new_figure, text_table
from ghn_init.errors import GHNInitError
from ghn_init.methods.variants import parse_method
from ghn_init.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHAPES = 3
"""Shapes that are compared by default, the most frequent ones."""

_NAMED = 12
"""Models that the table and the picture name."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Diversity(Result):
    """Mean absolute cosine distances.

    Arguments:
        models: their names.
        shapes: of the tensors.
        counts: tensors of each shape, by method.
        distances: mean over all pairs of tensors of one shape, by method, in the order of the
            shapes; None for fewer than two tensors.
        matched: methods whose output channels were matched before comparing.
    """

    models: tuple[str, ...]
    shapes: tuple[Shape, ...]
    counts: Mapping[str, tuple[int, ...]]
    distances: Mapping[str, tuple[float | None, ...]]
    matched: tuple[str, ...]

    def table(self) -> str:
        """Table 9: a line a method, a column a shape, tensors in brackets."""
        rows = [
            [
                method + ("*" if method in self.matched else ""),
                *(
                    None if distance is None else f"{distance:.3g} ({count})"
                    for distance, count in zip(values, self.counts[method], strict=True)
                ),
            ]
            for method, values in self.distances.items()
        ]
        header = ("method", *map(_label, self.shapes))
        lines = [f"mean absolute cosine distance over {self._named} (tensors)"]
        lines.append(text_table(header, rows))
        if self.matched:
            lines.append("* output channels of each pair matched (Hungarian method)")
        return "\n".join(lines)

    @property
    def _named(self) -> str:
        more = len(self.models) - _NAMED
        names = ", ".join(self.models[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        return f"{len(self.models)} models: {names}"

    def plot(self) -> Figure:
        """Bars: a group a shape, a bar a method."""
        figure = new_figure(7, 3.5)
        axes = figure.add_subplot()
        width = 0.8 / len(self.distances)
        for i, (method, values) in enumerate(self.distances.items()):
            places = [j + (i - (len(self.distances) - 1) / 2) * width for j in range(len(values))]
            label = method + (" (matched)" if method in self.matched else "")
            heights = [value or 0.0 for value in values]
            hatch = ("", "//", "..", "xx", "\\\\", "oo", "--")[i % 7]
            axes.bar(places, heights, 0.92 * width, label=label, color=series_style(i).color,
                     hatch=hatch, edgecolor="white")  # fmt: skip
        axes.set_xticks(range(len(self.shapes)), [_label(shape) for shape in self.shapes])
        axes.set_ylabel("mean absolute cosine distance")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(textwrap.fill(self._named, 100), fontsize=8)
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
        return figure


def diversity(
    models: Mapping[str, nn.Module],
    methods: Sequence[str] = ("ghn3",),
    *,
    ghn: Checkpoints = None,
    pretrained: Mapping[str, nn.Module] | None = None,
    shapes: Sequence[Shape] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Diversity:
    """Diversity of parameters over a set of models (GHN-3 paper, Table 9).

    The absolute cosine distance between two tensors is 1 - |cos| of the angle between them as
    vectors; the mean is over all pairs of different tensors of one shape. Predicted tensors (no
    noise is added to those of `ghn3` and `ghn2`) are compared as they are. Those of other methods
    have no canonical order: for each pair the output channels of one tensor are permuted so that
    the cosine is the largest (Hungarian method), which needs the extra `[plot]`.

    Arguments:
        models: by name; a `LazyModels` keeps one at a time in memory.
        methods: of `apply`, or `"pretrained"`.
        ghn: checkpoint, as in `diagnose`.
        pretrained: the models with published weights, for the method of that name.
        shapes: of the tensors. Default: the three that most convolution and linear weights have.
        seed: of the methods.
        progress: show progress on stderr.

    Raises:
        GHNInitError: a bad argument, model or checkpoint, or no extra.
    """
    methods = check_methods(methods)
    if not models:
        raise GHNInitError("there are no models: give one or more.")
    matched = tuple(method for method in methods if not architecture(method))
    if matched:
        plot_extra("scipy.optimize")  # before the long part
    hypernetworks = load_hypernetworks(methods, ghn)
    shapes = tuple(shapes) if shapes is not None else _frequent_shapes(models)
    found: dict[str, dict[Shape, list[Tensor]]] = {m: {s: [] for s in shapes} for m in methods}
    with Progress(len(models) * len(methods), "model", silent=not progress) as line:
        for name, model in models.items():
            for method in methods:
                own = pretrained[name] if pretrained and method == PRETRAINED else None
                noise = 0.0 if _only_adds_noise(method) else None
                ready, _ = initialized(model, method, hypernetworks, own, noise=noise, seed=seed)
                for param in ready.parameters():
                    if tuple(param.shape) in shapes:
                        found[method][tuple(param.shape)].append(param.detach().float().clone())
                line.step(model=name, method=method)
    return Diversity(
        tuple(models),
        shapes,
        {m: tuple(len(found[m][s]) for s in shapes) for m in methods},
        {m: tuple(mean_distance(found[m][s], m in matched) for s in shapes) for m in methods},
        matched,
    )


def _only_adds_noise(method: str) -> bool:
    """Whether a method predicts parameters, and does nothing to them but add noise."""
    if not architecture(method):
        return False
    variant = parse_method(method)
    return variant.noise is None and not variant.method.orthogonal


def mean_distance(tensors: Sequence[Tensor], match: bool = False) -> float | None:
    """Mean absolute cosine distance over all pairs of tensors of one shape; None without pairs.

    Arguments:
        tensors: of one shape.
        match: permute the output channels of one of each pair to make the cosine the largest.
    """
    if len(tensors) < 2:
        return None
    units = [tensor.flatten(1) / tensor.norm().clamp(min=1e-12) for tensor in tensors]
    if not match:
        rows = torch.stack([unit.flatten() for unit in units])
        cosines = rows @ rows.t()
        pairs = cosines[torch.ones_like(cosines, dtype=torch.bool).tril(diagonal=-1)]
    else:
        both = [matched_cosine(a, b) for i, a in enumerate(units) for b in units[:i]]
        pairs = torch.tensor(both)
    return (1 - pairs.abs().clamp(max=1)).mean().item()


def matched_cosine(a: Tensor, b: Tensor) -> float:
    """The largest dot product of `(K, M)` matrices over all orders of the rows of one."""
    products = (a @ b.t()).numpy()
    rows, columns = plot_extra("scipy.optimize").linear_sum_assignment(products, maximize=True)
    return float(products[rows, columns].sum())


def _frequent_shapes(models: Mapping[str, nn.Module]) -> tuple[Shape, ...]:
    counts: Counter[Shape] = Counter()
    for model in models.values():
        counts.update(tuple(p.shape) for p in model.parameters() if p.dim() > 1)
    return tuple(shape for shape, _ in counts.most_common(_SHAPES))


def _label(shape: Shape) -> str:
    return "x".join(map(str, shape))
