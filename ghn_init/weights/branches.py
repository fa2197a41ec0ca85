"""Sizes of activations in networks that do not normalize them: scaled branches, and a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ghn_init.graph.graph import Graph
from ghn_init.graph.residuals import Branch, branches_without_norm, longest_run
from ghn_init.names import abridged
from ghn_init.weights.signal import Signal, size
from ghn_init.weights.tiling import repeated

_SHORTEST_CHAIN = 2
"""Residual sums in a row from which their branches are scaled."""

_SHORTEST_RUN = 4
"""Weights in a row, without a norm, from which the size of the outputs is estimated."""

_TOO_FAR = 20.0
"""Ratio of the outputs' size to that under the model's own initialization that is warned of."""


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
    """Scale residual branches without a norm, and compare the size of the outputs.

    Each such sum may add 1/L of the stream's size, L being the sums in a row: they then make it at
    most e times as large. Where a branch would add more, its last layer is scaled, as in Fixup
    (Zhang et al., 2019, https://arxiv.org/abs/1901.09321), which begins with 0.

    Arguments:
        graph: of the model.
        values: new values by name, as a method gives them.
        own: the model's own values of all parameters.
        scale: whether to scale, or only to compare.
    """
    branches = [b for b in branches_without_norm(graph) if b.depth >= _SHORTEST_CHAIN]
    if not branches and longest_run(graph) < _SHORTEST_RUN:
        return Stabilized({}, ())
    if any(tensor.is_meta for tensor in own.values()):
        return Stabilized({}, ())
    changed: dict[str, Tensor] = {}

    def new(name: str) -> Tensor:
        tensor = changed.get(name, values.get(name))
        return _own(name) if tensor is None else repeated(tensor, graph.shapes[name]).cpu()

    def _own(name: str) -> Tensor:
        return own[name].detach().cpu() * graph.factors.get(name, 1.0)

    signal = Signal(graph, new)
    writable = {b.end: b for b in branches if scale and b.last[0] in values}
    for index in range(len(graph)):
        signal.step()
        if index in writable:
            factor = _damp(signal, writable[index])
            last = [name for name in writable[index].last if name in values and factor < 1]
            changed |= {name: changed.get(name, values[name]) * factor for name in last}
    notes = [_scaled_note(changed, branches[0].depth)] if changed else []
    before = Signal(graph, _own)
    for _ in graph.nodes:
        before.step()
    return Stabilized(changed, (*notes, *_size_notes(signal, before)))


def _damp(signal: Signal, branch: Branch) -> float:
    """Scale the vectors at the end of a branch to what it may add; the factor, at most 1."""
    found = size(signal.arriving(branch.end, branch.sum))
    allowed = size(signal.at[branch.stream]) / branch.depth
    factor = allowed / found if found > allowed else 1.0
    signal.at[branch.end] = signal.at[branch.end] * factor
    return factor


def _scaled_note(changed: Mapping[str, Tensor], depth: int) -> str:
    return (
        f"{abridged(tuple(changed))}: scaled down, as they end residual branches without a norm, "
        f"of which {depth} in a row would make the activations explode"
    )


def _size_notes(signal: Signal, before: Signal) -> list[str]:
    """A warning where the outputs' size is far from that of the model's own initialization."""
    ends = set(range(len(signal.graph))) - {i for i, _ in signal.graph.edges}
    pairs = [(size(signal.at[i]), size(before.at[i])) for i in sorted(ends)]
    ratios = [new / old for new, old in pairs if old > 0]
    worst = max(ratios, key=lambda ratio: max(ratio, 1 / max(ratio, 1e-30)), default=1.0)
    if 1 / _TOO_FAR < worst < _TOO_FAR:
        return []
    kind = "larger" if worst > 1 else "smaller"
    return [
        f"the first outputs may be far {kind} than with the model's own initialization "
        f"({worst:.0e} times, estimated from the weights): the model lacks norms that keep "
        "activations at one size"
    ]
