"""`draw`: a model's computational graph as a picture, and its statistics."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ghn_init.analysis.initializations import load_hypernetwork
from ghn_init.analysis.measure.graph_statistics import GraphStatistics, graph_statistics
from ghn_init.analysis.plots.dot import dot
from ghn_init.analysis.plots.graph_picture import picture
from ghn_init.analysis.results import PICTURES, Result, check_suffix, text_table
from ghn_init.api import Checkpoint
from ghn_init.files import atomic_path
from ghn_init.graph.graph import PRIMITIVES, Graph
from ghn_init.graph.tracing import trace
from ghn_init.methods.kept import kept_parameters
from ghn_init.methods.registry import METHODS
from ghn_init.methods.variants import Variant
from ghn_init.names import abridged, grouped_by_reason

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing(Result):
    """A graph to look at.

    Arguments:
        name: of the model.
        graph: what the hypernetwork sees.
        statistics: degree and path, as in Table 3 of the GHN-3 paper.
        unpredicted: parameters that keep their own initialization, with the reason.
        checkpoint: name of the hypernetwork that was asked; None for any.
    """

    name: str
    graph: Graph
    statistics: GraphStatistics
    unpredicted: Mapping[str, str]
    checkpoint: str | None = None

    @property
    def coverage(self) -> float:
        """Share of scalar parameters that the hypernetwork predicts, or any could."""
        sizes = {name: math.prod(shape) for name, shape in self.graph.shapes.items()}
        left = sum(sizes[name] for name in self.unpredicted)
        return 1 - left / max(1, sum(sizes.values()))

    @property
    def _covered(self) -> str:
        by = "can be predicted" if self.checkpoint is None else f"predicted by {self.checkpoint}"
        return f"{100 * self.coverage:.2f}% of the parameters {by}"

    def unpredicted_nodes(self) -> tuple[int, ...]:
        """Nodes whose parameter keeps its own initialization."""
        nodes = enumerate(self.graph.nodes)
        return tuple(i for i, node in nodes if node.param in self.unpredicted)

    def table(self) -> str:
        """Statistics, primitives and what is not predicted."""
        numbers = self.statistics
        counts = Counter(node.op for node in self.graph.nodes)
        rows = [(op, counts[op]) for op in PRIMITIVES if counts[op]]
        lines = [
            f"{self.name}: {numbers.nodes} nodes, {numbers.edges} edges, "
            f"average degree {numbers.degree:.2f}, average path {numbers.path:.2f}, "
            f"{self._covered}",
            text_table(("primitive", "nodes"), rows),
        ]
        grouped = grouped_by_reason(self.unpredicted)
        lines += [f"not predicted: {names}: {reason}" for names, reason in grouped]
        return "\n".join([*lines, *(f"note: {note}" for note in self.graph.notes)])

    def plot(self) -> Figure:
        """The graph as in Figure 3 of the second paper: one color and shape a primitive.

        Layers run from left to right; a long graph is folded into rows, every other one from
        right to left. Nodes whose parameter is not predicted are empty; parameters that are not
        predicted are named below the title, as most of them have no node.
        """
        note = self._covered
        if self.unpredicted:
            note += f", not {abridged(self.unpredicted)}"
        return picture(self.name, self.graph, self.statistics, self.unpredicted_nodes(), note)

    def dot(self) -> str:
        """The graph in Graphviz's language."""
        return dot(self.name, self.graph, self.unpredicted_nodes())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture as PNG or SVG, or the graph as DOT, by the file's suffix."""
        if check_suffix(path, (*PICTURES, ".dot")) == ".dot":
            with atomic_path(path) as temporary:
                temporary.write_text(self.dot(), encoding="utf-8")
        else:
            super().save(path)

    def content(self) -> dict[str, Any]:
        """Statistics, nodes, edges and what is not predicted."""
        nodes = [{"op": n.op, "param": n.param, "shape": n.shape} for n in self.graph.nodes]
        return {
            "model": self.name,
            **asdict(self.statistics),
            "coverage": self.coverage,
            "unpredicted": dict(self.unpredicted),
            "graph": {"nodes": nodes, "edges": self.graph.edges},
        }


def draw(
    model: nn.Module | Graph,
    *,
    ghn: Checkpoint | None = None,
    head: str = "auto",
    name: str | None = None,
    example_inputs: Any = None,
) -> Drawing:
    """A model's computational graph, to look at (second paper, Figure 3).

    Arguments:
        model: any model that `trace` takes, or a graph that it gave.
        ghn: a hypernetwork, its name or its path: what it leaves is marked, as `apply` leaves it.
            Default: only what no hypernetwork can predict is marked.
        head: as in `apply`.
        name: for the title. Default: the model's class.
        example_inputs: as in `trace`.

    Raises:
        GHNInitError: the model cannot be traced, or the hypernetwork cannot be loaded.
    """
    graph = model if isinstance(model, Graph) else trace(model, example_inputs)
    title = name or ("graph" if isinstance(model, Graph) else type(model).__name__)
    statistics = graph_statistics(graph)
    if ghn is None:
        return Drawing(title, graph, statistics, graph.left)
    hypernetwork = load_hypernetwork(ghn)
    method = next(m for m in METHODS.values() if m.hypernetwork == hypernetwork.config.arch)
    frozen = isinstance(model, Graph)  # whose parameters may all be written
    module = nn.Module() if isinstance(model, Graph) else model
    kept = kept_parameters(module, graph, hypernetwork, Variant(method), head, frozen)
    return Drawing(title, graph, statistics, kept, hypernetwork.name)
