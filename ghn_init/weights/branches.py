"""Sizes of activations in networks that do not normalize them: scaled branches, and a check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ghn_init.graph.graph import Graph
from ghn_init.graph.residuals import (
    Branch,
    branches_without_norm,
    ends,
    last_layer,
    runs_without_norm,
)
from ghn_init.names import abridged
from ghn_init.weights.signal import Signal, is_constant, size
from ghn_init.weights.tiling import repeated

_SHORTEST_CHAIN = 2
"""Residual sums in a row from which their branches are scaled."""

_SHORTEST_RUN = 4
"""Weights in a row, without a norm, from which the size of the outputs is estimated."""

_FAR = 4.0
"""Ratio of the size of a kept layer's inputs to what they had from which they are scaled."""

_TOO_FAR = 100.0
"""Ratio of the outputs' size to that under the model's own initialization that is warned of. (The
estimate tends to the extremes: a VGG-11 of 300 times the size has 146 times.)"""


_UNCHECKED = (
    "the model lacks norms that keep activations at one size, and whether predictions do is not "
    "checked: its own values are not known, as it is on the meta device"
)


@dataclass(frozen=True)
class Stabilized:
    """Values whose residual branches are scaled.

    Arguments:
        tensors: those that changed.
        notes: for the report: what was scaled, and whether the outputs are of an odd size.
    """

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...]


def stabilize(
    graph: Graph, values: Mapping[str, Tensor], own: Mapping[str, Tensor], scale: bool
) -> Stabilized:
    """Scale layers where no norm keeps activations at one size, and compare the outputs' size.

    Two kinds of layers are scaled. A residual sum without a norm may add 1/L of the stream's size,
    L being the sums in a row: they then make it at most e times as large. Where a branch would add
    more, its last layer is scaled, as in Fixup (Zhang et al., 2019,
    https://arxiv.org/abs/1901.09321), which begins with 0. And a last layer of the model that is
    kept gets inputs of the size that it was made for, where several layers before it have no norm.

    Arguments:
        graph: of the model.
        values: new values by name, as a method gives them.
        own: the model's own values, by name.
        scale: whether to scale, or only to compare.
    """
    if is_kept_at_one_size(graph):
        return Stabilized({}, ())
    if graph.shapes.keys() - own.keys():
        return Stabilized({}, (_UNCHECKED,))
    work = _Stabilizer(graph, values, own)
    if scale:
        work.branches = {b.end: b for b in _long_branches(graph)}
        run = runs_without_norm(graph)
        heads = (i for i in ends(graph) if graph.nodes[i].param not in values)
        work.before_heads = {
            i for head in heads if run[head] >= _SHORTEST_RUN for i in graph.predecessors[head]
        }
    for _ in graph.nodes:
        work.step()
    return Stabilized(work.changed, tuple(work.notes()))


def is_kept_at_one_size(graph: Graph) -> bool:
    """Whether norms keep the activations at one size, so that there is nothing to stabilize."""
    run = runs_without_norm(graph)
    longest = max((run[i] for i in ends(graph)), default=0)
    return longest < _SHORTEST_RUN and not _long_branches(graph)


def _long_branches(graph: Graph) -> list[Branch]:
    return [b for b in branches_without_norm(graph) if b.depth >= _SHORTEST_CHAIN]


class _Stabilizer:
    """The signal under new values, which are scaled on its way, beside that under the own ones."""

    def __init__(
        self, graph: Graph, values: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> None:
        self.graph, self.values, self.own = graph, values, own
        self.changed: dict[str, Tensor] = {}
        self.branches: dict[int, Branch] = {}
        self.before_heads: set[int] = set()
        self.damped: list[str] = []
        self.matched: list[str] = []
        self.new, self.old = Signal(graph, self._new_value), Signal(graph, self._own_value)

    def _new_value(self, name: str) -> Tensor:
        tensor = self.changed.get(name, self.values.get(name))
        if tensor is None:
            return self._own_value(name)
        return repeated(tensor, self.graph.shapes[name]).cpu()

    def _own_value(self, name: str) -> Tensor:
        return self.own[name].detach().cpu() * self.graph.factors.get(name, 1.0)

    def step(self) -> None:
        """Pass one node, and scale the layer that ends there if it is too large or too small."""
        index = len(self.new.at)
        old, new = size(self.old.step()), size(self.new.step())
        if (branch := self.branches.get(index)) is not None:
            found = size(self.new.arriving(index, branch.sum))
            allowed = size(self.new.at[branch.stream]) / branch.depth
            if found > allowed:
                self.damped += self._scale(branch.last, index, allowed / found)
        elif index in self.before_heads and not old / _FAR < new < old * _FAR and old * new > 0:
            self.matched += self._scale(last_layer(self.graph, index), index, old / new)

    def _scale(self, layer: Sequence[str], index: int, factor: float) -> list[str]:
        """Scale a layer and the signal behind it; a layer that is used again only once."""
        fixed = self.changed.keys() | self.graph.normalized
        if not layer or layer[0] not in self.values or layer[0] in fixed:
            return []
        written = [name for name in layer if name in self.values]
        self.changed |= {name: self.values[name] * factor for name in written}
        self.new.at[index] = self.new.at[index] * factor
        return written

    def notes(self) -> list[str]:
        """What was scaled, and a warning where the outputs' size is far from the usual one."""
        notes = []
        if self.damped:
            depth = max(branch.depth for branch in self.branches.values())
            notes.append(
                f"{abridged(self.damped)}: scaled down, as they end residual branches without a "
                f"norm, of which {depth} in a row would make the activations explode"
            )
        if self.matched:
            notes.append(
                f"{abridged(self.matched)}: scaled, so that the last layers, which are kept, get "
                "inputs of the size that they had, as no norm sees to that"
            )
        pairs = [(size(self.new.at[i]), size(self.old.at[i])) for i in ends(self.graph)]
        ratios = [new / old for new, old in pairs if old > 0]
        worst = max(ratios, key=lambda ratio: max(ratio, 1 / max(ratio, 1e-30)), default=1.0)
        if not 1 / _TOO_FAR < worst < _TOO_FAR:
            kind = "larger" if worst > 1 else "smaller"
            notes.append(
                f"the first outputs may be far {kind} than with the model's own initialization "
                f"({worst:.0e} times, estimated from the weights): the model lacks norms that keep "
                "activations at one size"
            )
        outputs = zip(self.new.outputs(), self.old.outputs(), strict=True)
        if any(is_constant(new) and not is_constant(old) for new, old in outputs):
            notes.append(
                "the first outputs may hardly depend on the input, estimated from the weights: "
                "the model lacks norms, and activations such as ReLU pass nothing on of what is "
                "negative in all places"
            )
        return notes
