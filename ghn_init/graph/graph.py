"""The computational graph that a graph hypernetwork reads: fifteen primitives, and edges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ghn_init.names import grouped_by_reason

if TYPE_CHECKING:
    from torch import Tensor

    from ghn_init.graph.attention import Attention

PRIMITIVES = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)
"""The vocabulary. A primitive's position is its row in every checkpoint's embedding table: the
checkpoints freeze the names' order, and new ones could only be added at the end."""

WEIGHTS = frozenset({"conv", "sep_conv", "dil_conv"})
NORMS = frozenset({"bn", "ln"})

MAX_DISTANCE = 50
"""Longest shortest path that counts as a (virtual) edge; longer ones are 0, like no path."""


@dataclass(frozen=True)
class Node:
    """One operation of the model.

    Arguments:
        op: one of `PRIMITIVES`. Linear layers are `conv`; a convolution or linear layer's bias is
            a node of its own.
        param: dotted name of the parameter it carries, or None.
        shape: the parameter's shape; `(1, 1, k, k)` for pooling with a window; else None.
        norm_bias: for `bn` and `ln`, the name of the norm's bias, predicted from the same node.
    """

    op: str
    param: str | None = None
    shape: tuple[int, ...] | None = None
    norm_bias: str | None = None


UNUSED = "not used by the forward pass"
"""Why a parameter is left that no output depends on."""


@dataclass(frozen=True)
class Passage:
    """What a tensor goes through between two nodes.

    Arguments:
        rectified: an activation that passes positive values, such as ReLU or GELU.
        normalized: a norm without parameters, or a function with values in a fixed range.
        factors: what it is multiplied by: numbers, and names of parameters (layer scale).
    """

    rectified: bool = False
    normalized: bool = False
    factors: tuple[float | str, ...] = ()


NO_PASSAGE = Passage()


@dataclass(frozen=True)
class Graph:
    """A model as a directed acyclic graph (GHN-3 paper, Section 3.1), in topological order.

    Arguments:
        nodes: node 0 is the input.
        edges: one-hop edges `(i, j)`, `i < j`, sorted.
        left: parameters that no node carries, by name, with the reason.
        shapes: every parameter of the model and its shape, in the model's order.
        notes: whatever is out of the ordinary about the trace.
        heads: the model's last layers, in the order of the graph: names of the weight and of the
            bias (None without one). None where they are not known, as in a graph that was not
            traced.
        factors: constants that the model multiplies a parameter by before it uses it (as in
            equalized learning rates), by name. Predictions are divided by them.
        input_factors: constants that the model multiplies the input of a layer by, right before it,
            by the name of the layer's weight.
        normalized: weights that the model normalizes itself (weight norm, weight standardization,
            spectral norm): their size does not matter.
        passages: what stands between nodes, by edge, where anything does; for what stands in front
            of an output, `len(nodes)` is the edge's second index. (Graphs are equal
            without them: an attention's scale is seen or not, as it is fused or not.)
        attentions: which weights each attention's queries, keys and values come from.
    """

    nodes: tuple[Node, ...]
    edges: list[tuple[int, int]]
    left: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    heads: tuple[tuple[str, str | None], ...] | None = None
    factors: Mapping[str, float] = field(default_factory=dict)
    input_factors: Mapping[str, float] = field(default_factory=dict)
    normalized: frozenset[str] = frozenset()
    passages: Mapping[tuple[int, int], Passage] = field(default_factory=dict, compare=False)
    attentions: tuple[Attention, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def distances(self) -> Tensor:
        """Shortest directed path lengths, `(nodes, nodes)` int16: `[i, j]` from i to j.

        0 where there is no path, or none within `MAX_DISTANCE` (virtual edges, GHN-2 paper).
        """
        import numpy as np  # here, so that what only names primitives is imported without them
        import torch

        n = len(self.nodes)
        unreached = 2**14  # paths that begin at no node are as long as that, and longer
        to_node = np.full((n, n), unreached, np.int16 if n < unreached else np.int32)
        np.fill_diagonal(to_node, 0)
        for j, before in enumerate(self.predecessors):  # [j, i]: from i to j
            row = to_node[j, :j]
            for i in before:
                np.minimum(row, to_node[i, :j] + 1, out=row)
        found = torch.from_numpy(to_node)
        return found.masked_fill_(found > MAX_DISTANCE, 0).T.to(torch.int16).contiguous()

    @cached_property
    def predecessors(self) -> list[list[int]]:
        """For each node, the nodes that it is computed from."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for i, j in self.edges:
            found[j].append(i)
        return found

    def unused(self) -> frozenset[str]:
        """Names of the parameters that no output depends on."""
        return frozenset(name for name, reason in self.left.items() if reason == UNUSED)

    def norm_parameters(self, primitives: AbstractSet[str] = NORMS) -> frozenset[str]:
        """Names of the weights and biases of normalization layers, or of some kinds of them."""
        norms = (node for node in self.nodes if node.op in primitives & NORMS)
        return frozenset(name for n in norms for name in (n.param, n.norm_bias) if name)

    @cached_property
    def classifiers(self) -> tuple[tuple[int, int | None], ...]:
        """Indices of the classification layer's weight and bias (None if it has none).

        It is recognised by position: the last node, or the last but one before its bias, being
        the weight of a linear layer or of a 1x1 convolution. Where several such layers are joined
        at the end (the two heads of distillation), it is all of them; otherwise there is none.
        A traced model's classification layer is also one of its last layers (`heads`), and none of
        them has another number of outputs: a detector has none.
        """
        outputs = {self.shapes[weight][0] for weight, _ in self.heads or ()}
        if self.heads is not None and len(outputs) != 1:
            return ()
        last = len(self.nodes) - 1
        ends = self.predecessors[last] if self.nodes[last].op in ("sum", "concat") else [last]
        heads = [self._head(end) for end in ends]
        return tuple(head for head in heads if head) if all(heads) else ()

    def _head(self, end: int) -> tuple[int, int | None] | None:
        """Weight and bias of the classification layer that ends at a node, if it is one."""
        if self.nodes[end].op != "bias":
            return (end, None) if self._is_dense_weight(end) else None
        weight = self.predecessors[end][0]
        return (weight, end) if self._is_dense_weight(weight) else None

    def _is_dense_weight(self, index: int) -> bool:
        node = self.nodes[index]
        if node.op != "conv" or node.shape is None:
            return False
        if self.heads is not None and node.param not in dict(self.heads):
            return False
        return len(node.shape) == 2 or (len(node.shape) == 4 and node.shape[2:] == (1, 1))

    @property
    def num_classes(self) -> int | None:
        """Outputs of the classification layer; None without one."""
        if not self.classifiers:
            return None
        shape = self.nodes[self.classifiers[0][0]].shape
        assert shape is not None
        return shape[0]

    @property
    def head_parameters(self) -> frozenset[str]:
        """Names of the weights and biases of all last layers."""
        last = self.heads
        if last is None:
            params = [
                [self.nodes[i].param for i in both if i is not None] for both in self.classifiers
            ]
            return frozenset(name for names in params for name in names if name)
        return frozenset(name for both in last for name in both if name)

    def with_prefix(self, prefix: str) -> Graph:
        """The graph of the same model inside a wrapper that prefixes its parameters' names."""

        def renamed(name: str | None) -> str | None:
            return name and prefix + name

        nodes = (
            replace(node, param=renamed(node.param), norm_bias=renamed(node.norm_bias))
            for node in self.nodes
        )
        return Graph(
            tuple(nodes),
            self.edges,
            {prefix + name: reason for name, reason in self.left.items()},
            {prefix + name: shape for name, shape in self.shapes.items()},
            self.notes,
            None if self.heads is None else tuple((prefix + w, renamed(b)) for w, b in self.heads),
            {prefix + name: factor for name, factor in self.factors.items()},
            {prefix + name: factor for name, factor in self.input_factors.items()},
            frozenset(prefix + name for name in self.normalized),
            {
                edge: replace(
                    passage,
                    factors=tuple(prefix + f if isinstance(f, str) else f for f in passage.factors),
                )
                for edge, passage in self.passages.items()
            },
            tuple(attention.with_prefix(prefix) for attention in self.attentions),
        )

    def summary(self) -> str:
        """A short table: size, primitives, coverage, and what was left out and why."""
        counts = Counter(node.op for node in self.nodes)
        carried = {n for node in self.nodes for n in (node.param, node.norm_bias) if n}
        total = sum(math.prod(s) for s in self.shapes.values())
        covered = sum(math.prod(self.shapes[n]) for n in carried if n in self.shapes)
        lines = [
            f"nodes {len(self.nodes)}, edges {len(self.edges)}, "
            f"average degree {2 * len(self.edges) / max(1, len(self.nodes)):.2f}, "
            f"longest shortest path {int(self.distances.max())}",
            "  ".join(f"{op} {counts[op]}" for op in PRIMITIVES if counts[op]),
            f"parameters in the graph {covered:,} of {total:,} "
            f"({100 * covered / max(1, total):.2f}%), tensors {len(carried)} of {len(self.shapes)}",
        ]
        lines += [f"  left: {names}: {reason}" for names, reason in grouped_by_reason(self.left)]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
