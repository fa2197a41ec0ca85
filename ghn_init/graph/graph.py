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
"""The vocabulary; a primitive's position is its row in a checkpoint's embedding table."""

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
class Graph:
    """A model as a directed acyclic graph (GHN-3 paper, Section 3.1), in topological order.

    Arguments:
        nodes: node 0 is the input.
        edges: one-hop edges `(i, j)`, `i < j`, sorted.
        left: parameters that no node carries, by name, with the reason.
        shapes: every parameter of the model and its shape, in the model's order.
        notes: whatever is out of the ordinary about the trace.
        stated_classes: the model's own `num_classes`, if it has such an attribute.
    """

    nodes: tuple[Node, ...]
    edges: list[tuple[int, int]]
    left: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stated_classes: int | None = None

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def distances(self) -> Tensor:
        """Shortest directed path lengths, `(nodes, nodes)` int16: `[i, j]` from i to j.

        0 where there is no path, or none within `MAX_DISTANCE` (virtual edges, GHN-2 paper).
        """
        import torch  # here, so that what only names primitives is imported without it

        n = len(self.nodes)
        unreached = torch.iinfo(torch.int16).max - 1
        to_node = torch.full(
            (n, n), unreached, dtype=torch.int16, device="cpu"
        )  # [j, i]: from i to j
        predecessors = self.predecessors
        for j in range(n):
            if predecessors[j]:
                torch.amin(to_node[predecessors[j]], dim=0, out=to_node[j])
                to_node[j].add_(1).clamp_(max=unreached)
            to_node[j, j] = 0
        return to_node.masked_fill_(to_node > MAX_DISTANCE, 0).T.contiguous()

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
        """Names of the weights and biases of normalisation layers, or of some kinds of them."""
        norms = (node for node in self.nodes if node.op in primitives & NORMS)
        return frozenset(name for n in norms for name in (n.param, n.norm_bias) if name)

    @cached_property
    def classifiers(self) -> tuple[tuple[int, int | None], ...]:
        """Indices of the classification layer's weight and bias (None if it has none).

        It is recognised by position: the last node, or the last but one before its bias, being
        the weight of a linear layer or of a 1x1 convolution. Where several such layers are joined
        at the end (the two heads of distillation), it is all of them; otherwise there is none.
        A layer whose outputs are not as many as the model's own `num_classes` is none either.
        """
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
        if self.stated_classes not in (None, node.shape[0]):
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
            self.stated_classes,
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
