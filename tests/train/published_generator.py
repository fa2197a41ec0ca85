"""What the published generator makes of an architecture: the oracle of our target networks.

`load_official_graph` reads the graphs of the official files. `recorded_graph` derives them from
ours, less the nodes that the published generator loses.

The published builder lists PyTorch's backward operators breadth first from the input. It tells the
product that ends a gate (`cse`) and the copy that ends an attention (`msa`) from any other product
or copy by what stands a fixed number of places before it in that list:

1. a product stays where the operator two places before it is a hardswish;
2. of what is left, a copy stays where the operator eleven places before it is a softmax.

The operators of one branch are neighbours in the list only as long as no other branch has any as
far from the input. Another edge of the cell, or the next cell, which reads the same state, shifts
them. So a `cse` is lost where something runs beside the end of its gate. The softmax of an
attention is ten places before its copy with PyTorch 1.13, and an `msa` stays only where exactly
one operator happens to come in between. Predecessors and successors of what is lost are joined.

All of it depends on how many operators each layer is made of (here: PyTorch 1.13.1), and on a
breadth-first list (NetworkX 2.6 and later). Files made with other versions may have other nodes.
The graphs that hypernetworks are trained on here have all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
import torch.nn.functional as F
from torch import Tensor

from ghn_init.graph.graph import PRIMITIVES, Graph, Node
from ghn_init.train.networks.layers import (
    Apply,
    Attention,
    Concat,
    Conv,
    Gate,
    GlobalPool,
    Layer,
    Linear,
    PositionalEmbedding,
    Subsample,
    Sum,
    shifted,
    squeeze,
    to_image,
    to_tokens,
)
from ghn_init.train.networks.network import Network

_NODES = {
    "product": Node("cse"),
    "copy": Node("msa"),
    "sum": Node("sum"),
    "concat": Node("concat"),
}
"""What operators without parameters are, where they stay."""

_FUNCTIONS: dict[Callable[[Tensor], Tensor], tuple[str, ...]] = {
    squeeze: ("", ""),
    to_tokens: ("", ""),
    to_image: ("", ""),
    shifted: ("", "", "", ""),
    torch.zeros_like: ("product",),
    F.hardswish: ("hardswish",),
}
"""Operators of functions; any other is one."""


@dataclass(frozen=True, slots=True)
class _Operator:
    """A backward operator.

    Arguments:
        kind: product, copy, sum, concat, hardswish, softmax, strided; "" for any other.
        inputs: indices of the operators before it, in the order of the arguments.
        node: the node that it is, if it stays; None for those that never are one.
    """

    kind: str
    inputs: tuple[int, ...]
    node: Node | None = None


def recorded_graph(network: Network) -> Graph:
    """What the published generator records, in its order, which is breadth first.

    Arguments:
        network: for images of 32x32, as the generator records no others.

    Returns: the graph, without what is not in the files: `left`, and all parameters' shapes.
    """
    operators = _Operators(network).found
    order = _breadth_first(operators)
    staying = order
    for kind, places, mark in (("product", 2, "hardswish"), ("copy", 11, "softmax")):
        staying = [
            i
            for place, i in enumerate(staying)
            if operators[i].kind != kind or operators[staying[place - places]].kind == mark
        ]
    stays = set(staying)
    nodes: list[Node] = []
    edges: list[tuple[int, int]] = []
    sources: dict[int, set[int]] = {}
    for i in order:
        operator = operators[i]
        found = {source for j in operator.inputs for source in sources[j]}
        joins = operator.kind in ("sum", "concat")
        if operator.node and i in stays and (not joins or len(found) > 1):
            if operator.node.op != "pos_enc":  # it only comes behind the patches
                edges += [(source, len(nodes)) for source in found]
            found = {len(nodes)}
            nodes.append(operator.node)
        sources[i] = found
    return Graph(tuple(nodes), sorted(edges))


def _breadth_first(operators: list[_Operator]) -> list[int]:
    """Each operator as soon as all of its inputs are listed.

    Those that read the same value come in the order in which a depth-first walk back from the
    output meets them.
    """
    met: dict[int, None] = {}
    stack = [len(operators) - 1]
    while stack:
        i = stack.pop()
        if i not in met:
            met[i] = None
            stack += reversed(operators[i].inputs)
    readers: dict[int, list[int]] = {i: [] for i in met}
    for i in met:
        for j in set(operators[i].inputs):
            readers[j].append(i)
    missing = {i: len(set(operators[i].inputs)) for i in met}
    order = [0]
    for i in order:  # it grows
        for reader in readers[i]:
            missing[reader] -= 1
            if not missing[reader]:
                order.append(reader)
    return order


class _Operators:
    """The operators of a network; the output's is the last."""

    def __init__(self, network: Network) -> None:
        self.found = [_Operator("", (), Node("input"))]
        self._values: dict[int, int] = {0: 0}
        """The operator that computes each value."""
        self._activated: dict[int, int] = {}
        """The values of ReLUs, and what each is computed from."""
        self._in_tokens = False
        for value, (layer, inputs) in network.steps:
            if layer == Apply(F.relu):
                self._activated[value] = inputs[0]
            else:
                self._values[value] = self._layer(
                    layer, tuple(self._read(layer, i) for i in inputs)
                )

    def _read(self, layer: Layer, value: int) -> int:
        """The operator that a layer reads a value from.

        Every module has a ReLU of its own. That of the stem works in place: whatever reads the
        same value later reads it behind the ReLU.
        """
        if value in self._activated and layer != Apply(shifted):
            source = self._activated[value]
            self._values[value] = self._chain((self._values[source],), "")
            if isinstance(layer, Conv) and layer.name.startswith("stem."):
                self._values[source] = self._values[value]
        return self._values[value]

    def _layer(self, layer: Layer, inputs: tuple[int, ...]) -> int:
        match layer:
            case Linear() if self._in_tokens:
                behind = ("",) if layer.bias else ("", "")
                return self._chain(inputs, "", *layer.nodes(), *behind)
            case Attention():
                split = self._chain(inputs, "")
                q, k, v = (self._chain((split,), *[""] * 6) for _ in range(3))
                weights = self._chain((q, k), *[""] * 4, "product", "softmax", *[""] * 4)
                return self._chain((v, weights), *[""] * 5, "copy", "")
            case Gate():
                x, gate = inputs
                return self._chain((x, self._chain((gate,), "")), "product")
            case Sum():
                return self._chain(inputs, "sum")
            case Concat():
                return self._chain(inputs, "concat")
            case GlobalPool():
                return self._chain(inputs, *layer.nodes(), "")
            case Subsample():
                return self._chain(inputs, "", "", "", "strided")
            case PositionalEmbedding():
                return self._chain((len(self.found) - 1,), *layer.nodes())
            case Apply(function=f) if f is squeeze and self.found[inputs[0]].kind == "strided":
                return self._chain(inputs, "copy", "", "")  # it cannot be flattened in place
            case Apply():
                if layer.function in (to_tokens, to_image):
                    self._in_tokens = layer.function is to_tokens
                return self._chain(inputs, *_FUNCTIONS.get(layer.function, ("",)))
        return self._chain(inputs, *layer.nodes())

    def _chain(self, inputs: tuple[int, ...], *parts: str | Node) -> int:
        """One operator behind the other, each a kind or a node; returns the last one."""
        for part in parts:
            kind, node = ("", part) if isinstance(part, Node) else (part, _NODES.get(part))
            self.found.append(_Operator(kind, inputs, node))
            inputs = (len(self.found) - 1,)
        return inputs[0]


def load_official_graph(folder: Path, split: str, index: int) -> Graph:
    """A graph of an official HDF5 file as it is, without shapes.

    The published generator wrote the nodes cell by cell, and the adjacency in its own order. Where
    cells overlap, the edges of a file therefore join other nodes than those of the network.

    Arguments:
        folder: with `deepnets1m_<train or eval>.hdf5` and the meta file.
        split: name of the split.
        index: number of the architecture.
    """
    name = "train" if split == "train" else "eval"
    meta = json.loads((folder / f"deepnets1m_{name}_meta.json").read_bytes())[split]["meta"]
    with h5py.File(folder / f"deepnets1m_{name}.hdf5") as file:
        group = file[split][str(index)]
        adjacency, rows = torch.from_numpy(group["adj"][()]), group["nodes"][()]
    nodes = tuple(
        Node(_official_op(meta["primitives_ext"][str(op)]), meta["unique_op_names"][str(param)])
        for op, _, param in rows.tolist()
    )
    return Graph(nodes, [(i, j) for i, j in (adjacency == 1).nonzero().tolist()])


def _official_op(name: str) -> str:
    """The primitive: official names of convolutions and pools may have a kernel size behind."""
    name = "bias" if name == "fc-b" else name
    return next(op for op in (name, name.rpartition("_")[0]) if op in PRIMITIVES)
