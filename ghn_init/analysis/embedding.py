"""`embed`: architectures as a hypernetwork sees them, on a map (second paper, Figure 5)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ghn_init.analysis.initializations import load_hypernetwork
from ghn_init.analysis.plots.labels import name_points
from ghn_init.analysis.plots.palette import GRAY, series_style
from ghn_init.analysis.results import Result, new_figure, text_table
from ghn_init.api import Checkpoint
from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path, check_safetensors_name
from ghn_init.graph.tracing import trace
from ghn_init.loading.load import load_default
from ghn_init.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Embedding(Result):
    """Architectures in the space of a hypernetwork's node features.

    Arguments:
        names: of the models.
        vectors: `(models, d)`, the mean of each model's node features.
        places: `(models, 2)`, on the first two principal components.
        explained: share of the variance along each of the two.
        column: what the colors stand for.
        values: of the column, by model: all numbers, or names; a model without one is gray.
        nodes: by model, `(nodes, d)`, the features of the nodes of its graph, in the order of
            `ghn_init.trace`.
    """

    names: tuple[str, ...]
    vectors: Tensor
    places: Tensor
    explained: tuple[float, float]
    column: str
    values: Mapping[str, float | str]
    nodes: Mapping[str, Tensor] = field(default_factory=dict)

    def table(self) -> str:
        """Places on the map, and the column."""
        rows = [
            (name, x, y, self.values.get(name))
            for name, (x, y) in zip(self.names, self.places.tolist(), strict=True)
        ]
        first, second = (f"PC{i} ({100 * s:.0f}%)" for i, s in enumerate(self.explained, 1))
        return text_table(("model", first, second, self.column), rows)

    def plot(self) -> Figure:
        """The map, colored by the column; numbers on a scale, names each in its own style."""
        figure = new_figure(8, 6)
        axes = figure.add_subplot()
        if any(isinstance(value, str) for value in self.values.values()):
            self._plot_groups(axes)
        else:
            self._plot_numbers(figure, axes)
        for side, share in zip(("x", "y"), self.explained, strict=True):
            text = f"principal component {1 + (side == 'y')} ({100 * share:.0f}% of the variance)"
            axes.set(**{f"{side}label": text})
        axes.margins(0.12)
        axes.spines[["top", "right"]].set_visible(False)
        name_points(figure, axes, self.names, self.places.tolist())
        return figure

    def _plot_numbers(self, figure: Figure, axes: Axes) -> None:
        known = [i for i, name in enumerate(self.names) if name in self.values]
        other = [i for i in range(len(self.names)) if i not in known]
        xs, ys = self.places[other].t().tolist()
        axes.scatter(xs, ys, color=GRAY, marker="x", s=30)
        numbers = [self.values[self.names[i]] for i in known]
        xs, ys = self.places[known].t().tolist()
        points = axes.scatter(
            xs, ys, c=numbers, cmap="viridis", s=40, edgecolor="black", linewidth=0.5
        )
        figure.colorbar(points, label=self.column, shrink=0.7)

    def _plot_groups(self, axes: Axes) -> None:
        groups: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            groups.setdefault(str(self.values.get(name, "unknown")), []).append(index)
        for i, (group, members) in enumerate(groups.items()):
            style = series_style(i)
            marker = "osD^vPXph*<>"[(i + i // 7) % 12]  # seven colors by twelve shapes: 84 differ
            xs, ys = self.places[members].t().tolist()
            axes.scatter(xs, ys, label=group, color=style.color, marker=marker, s=40,
                         edgecolor="black", linewidth=0.5)  # fmt: skip
        axes.legend(title=self.column, fontsize=7, title_fontsize=8, loc="upper left",
                    bbox_to_anchor=(1.01, 1), frameon=False)  # fmt: skip

    def content(self) -> dict[str, Any]:
        """Vectors and places by model."""
        models = {
            name: {"vector": vector, "place": place, self.column: self.values.get(name)}
            for name, vector, place in zip(
                self.names, self.vectors.tolist(), self.places.tolist(), strict=True
            )
        }
        return {"explained": self.explained, "models": models}

    def save_vectors(self, path: str | os.PathLike[str]) -> None:
        """Write the vectors, and the features of the nodes, as a safetensors file.

        Its tensors are `NAME`, `(d,)`, and `NAME/nodes`, `(nodes, d)`, for every model.

        Raises:
            GHNInitError: the file cannot be written, or its name says another format.
        """
        check_safetensors_name(path)
        tensors = dict(zip(self.names, self.vectors, strict=True))
        tensors |= {f"{name}/nodes": features for name, features in self.nodes.items()}
        with atomic_path(path) as temporary:
            save_file({name: t.contiguous().clone() for name, t in tensors.items()}, temporary)


def embed(
    models: Mapping[str, nn.Module],
    ghn: Checkpoint | None = None,
    *,
    column: str = "parameters (M)",
    values: Mapping[str, float | str] | None = None,
    progress: bool = False,
) -> Embedding:
    """Embed architectures: their node features behind the graph network, the mean, and its PCA.

    As in Figure 5 of the second paper. It does not depend on the models' weights.

    Arguments:
        models: by name, two or more; a `LazyModels` keeps one at a time in memory.
        ghn: a hypernetwork, its name or its path. Default: that of `apply` for the ghn3 methods.
        column: name of the values.
        values: to color the map by: numbers, or names of groups. Default: millions of parameters.
        progress: show progress on stderr.

    Raises:
        GHNInitError: fewer than two models, one that cannot be traced, or a bad checkpoint.
    """
    if len(models) < 2:
        raise GHNInitError(f"{len(models)} models make no map: give two or more.")
    hypernetwork = load_default("ghn3")[0] if ghn is None else load_hypernetwork(ghn)
    nodes, sizes = {}, {}
    with Progress(len(models), "model", silent=not progress) as line, torch.no_grad():
        for name, model in models.items():
            sizes[name] = sum(p.numel() for p in model.parameters()) / 1e6
            nodes[name] = hypernetwork(hypernetwork.encode([trace(model)]))[0].cpu()
            line.step(model=name)
    stacked = torch.stack([features.mean(dim=0) for features in nodes.values()])
    places, explained = principal_components(stacked)
    shown = sizes if values is None else {k: v for k, v in values.items() if k in sizes}
    return Embedding(tuple(models), stacked, places, explained, column, shown, nodes)


def principal_components(vectors: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """`(n, d)` -> `(n, 2)` on the first two principal components, and their variance's shares.

    Signs are such that each component's largest loading is positive.
    """
    centered = (vectors - vectors.mean(dim=0)).double()
    _, sizes, directions = torch.linalg.svd(centered, full_matrices=False)
    axes = directions[:2]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    shares = sizes.square() / sizes.square().sum().clamp(min=1e-300)
    return (centered @ axes.t()).float(), (shares[0].item(), shares[1].item())
