"""How large activations become, estimated from the weights along the graph.

A network without normalization keeps whatever size its weights give the activations: layers that
amplify a little explode in a deep one. The estimate sends vectors through the graph, one value for
each channel, as for an image of one color: every weight is a matrix (the sum over its kernel), and
what stands between the layers counts as far as the graph knows it. No data is needed, and no pass
through the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ghn_init.graph.graph import NO_PASSAGE, NORMS, WEIGHTS, Graph

_PROBES = 16

Tensors = Callable[[str], Tensor]
"""A parameter's whole tensor by its name."""


class Signal:
    """Vectors on their way through a graph, node by node in its order.

    Arguments:
        graph: the graph.
        tensors: the parameters.
    """

    def __init__(self, graph: Graph, tensors: Tensors) -> None:
        self.graph, self.tensors = graph, tensors
        self.at: list[Tensor] = []  # for each node `(probes, channels)`
        self.generator = torch.Generator().manual_seed(0)

    def step(self) -> Tensor:
        """The vectors behind the next node."""
        index = len(self.at)
        node = self.graph.nodes[index]
        before = [self.arriving(i, index) for i in self.graph.predecessors[index]]
        if not before:
            vectors = self._noise(node.shape[1] if node.op == "pos_enc" and node.shape else 3)
        elif node.op in WEIGHTS and node.param:
            vectors = self._weighted(node.param, before[0])
        elif node.op == "bias" and node.param:
            vectors = before[0] + _fit(self.tensors(node.param)[None], before[0].shape[1])
        elif node.op in NORMS and node.param:
            gain = self.tensors(node.param).float().square().mean().sqrt()
            vectors = self._noise(before[0].shape[1]) * gain
        elif node.op == "concat":
            vectors = torch.cat(before, dim=1)
        elif node.op == "sum":
            width = max(x.shape[1] for x in before)
            vectors = torch.stack([_fit(x, width) for x in before]).sum(0)
        elif node.op == "cse":
            vectors = before[0] / 2  # a gate is between 0 and 1
        elif node.op == "msa":
            vectors = before[-1]  # at a single place attention is the identity of its values
        else:
            vectors = before[0]
        self.at.append(vectors)
        return vectors

    def outputs(self) -> list[Tensor]:
        """The vectors of the nodes without a successor, behind all that stands behind these."""
        inner = {i for i, _ in self.graph.edges}
        last = len(self.graph)
        return [self.arriving(i, last) for i in range(last) if i not in inner]

    def arriving(self, source: int, target: int) -> Tensor:
        """The vectors of a predecessor behind what stands in between."""
        x = self.at[source]
        passage = self.graph.passages.get((source, target), NO_PASSAGE)
        if passage.normalized:
            x = x / x.square().mean().sqrt().clamp_min(1e-30)
        if passage.rectified:
            x = x.relu()
        for factor in passage.factors:
            if isinstance(factor, str):
                factor = float(self.tensors(factor).float().square().mean().sqrt())
            x = x * factor
        return x

    def _weighted(self, param: str, x: Tensor) -> Tensor:
        weight = self.tensors(param).float()
        matrix = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        if param in self.graph.normalized:
            matrix = matrix / weight.square().sum().div(len(weight)).sqrt().clamp_min(1e-30)
        out, in_ = matrix.shape
        groups = max(1, x.shape[1] // in_) if weight.dim() > 2 else 1
        if groups == 1 or out % groups:
            return _fit(x, in_) @ matrix.t()
        x = _fit(x, in_ * groups).view(len(x), groups, in_)
        return torch.einsum("pgi,goi->pgo", x, matrix.view(groups, -1, in_)).flatten(1)

    def _noise(self, channels: int) -> Tensor:
        return torch.randn(_PROBES, channels, generator=self.generator)


def _fit(x: Tensor, channels: int) -> Tensor:
    """Vectors of another length: positions become channels (flattening) or the other way around."""
    width = x.shape[1]
    if width == channels:
        return x
    if width < channels:
        return x.repeat_interleave(math.ceil(channels / width), dim=1)[:, :channels]
    return x[:, :: width // channels][:, :channels]


def size(x: Tensor) -> float:
    """Root mean square."""
    return float(x.square().mean().sqrt())


def is_constant(x: Tensor) -> bool:
    """Whether the vectors are one, up to a thousandth of their size."""
    return size(x - x.mean(0)) <= 1e-3 * size(x)
