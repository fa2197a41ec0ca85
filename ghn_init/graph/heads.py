"""A model's last layers: the weights that reach an output without another weight behind them.

They are found by going back from the outputs. What ends in features has no last layer: going back
stops at a norm with parameters, at the end of an attention or of a gate, at max pooling and at an
activation that only stands inside of networks. Two things may stand behind a last layer or behind
features: ReLU (the boxes of FCOS, or VGG's features), and a sum with what the layer was computed
from (the boxes of DETR, or a residual stream). There a layer counts if it has few outputs for its
inputs: features are wide; a box, a map of depth or an image is narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ghn_init.graph.graph import NORMS, WEIGHTS
from ghn_init.graph.reading import Reading
from ghn_init.graph.recording import Call
from ghn_init.graph.squeeze_excitation import is_global_pool
from ghn_init.graph.values import INNER_ACTIVATIONS, RELU

_NARROWS = 8
"""Inputs for one output from which a layer is narrow. An MLP's second layer has at most 4."""

_SUMS = frozenset({"aten::add", "aten::add_", "aten::sub", "aten::sub_"})
_STOPS = NORMS | {"msa", "cse", "max_pool"}


@dataclass(frozen=True)
class _Behind:
    """What stands between a layer and an output.

    Arguments:
        relu: a ReLU.
        summed: the shape in which it is added to what it was computed from; None if it is not.
        pooled: global pooling, with no concatenation in front of it.
        is_map: more than one vector for each sample.
    """

    relu: bool = False
    summed: tuple[int, ...] | None = None
    pooled: bool = False
    is_map: bool = False


def last_layers(
    read: Reading, outputs: Sequence[Call], num_classes: object
) -> tuple[tuple[str, str | None], ...]:
    """Names of the last layers' weights and biases (None without one), in the graph's order.

    Arguments:
        read: all recorded operators, read.
        outputs: the recorded outputs.
        num_classes: what the model says. 0 makes features of a map, or of what ReLU follows; no
            other number counts, as it is often one that a layer had before it was replaced.
    """
    search = _Search(read, num_classes == 0 and num_classes is not False)
    found = {param for root in outputs for param in search.from_output(root)}
    biases = {
        read.nodes[before[0]].param: node.param
        for node, before in zip(read.nodes, read.predecessors, strict=True)
        if node.op == "bias" and len(before) == 1
    }
    order = dict.fromkeys(n.param for n in read.nodes if n.op in WEIGHTS and n.param in found)
    return tuple((param, biases.get(param)) for param in order if param)


class _Search:
    def __init__(self, read: Reading, says_features: bool) -> None:
        self.read, self.says_features = read, says_features
        self.ancestors: list[int] = []  # as bits
        for before in read.predecessors:
            self.ancestors.append(0)
            for i in before:
                self.ancestors[-1] |= self.ancestors[i] | 1 << i
        self.seen: set[tuple[Call, _Behind]] = set()

    def from_output(self, root: Call) -> Iterator[str]:
        stack = [(root, _Behind(is_map=len(root.shape) > 2))]
        while stack:
            call, behind = stack.pop()
            if (call, behind) in self.seen or not self.read.values[call].is_data:
                continue
            self.seen.add((call, behind))
            if call in self.read.layers:
                param = self.read.layers[call]
                if param is not None and self._is_last(param, behind):
                    yield param
            elif (before := self._step(call, behind)) is not None:
                stack += [(operand, before) for operand in call.inputs]

    def _is_last(self, param: str, behind: _Behind) -> bool:
        out, in_, *kernel = self.read.shapes[param]
        if out * _NARROWS <= in_:
            return True
        if behind.relu:  # SqueezeNet's classifier
            return behind.pooled and all(k == 1 for k in kernel) and not self.says_features
        if behind.summed is not None:
            return out not in behind.summed
        return not (behind.is_map and self.says_features)

    def _step(self, call: Call, behind: _Behind) -> _Behind | None:
        """What stands behind an operator's operands; None to stop."""
        name, primitive = call.name, self._primitive(call)
        if name in INNER_ACTIVATIONS or primitive in _STOPS:
            return None
        if name in RELU:
            return replace(behind, relu=True)
        if is_global_pool(call):
            return replace(behind, pooled=True)
        if primitive == "concat":
            return replace(behind, pooled=False)
        if name in _SUMS and self._is_residual(call.inputs):
            return replace(behind, summed=call.shape)
        return behind

    def _primitive(self, call: Call) -> str | None:
        """The primitive that an operator is a node for."""
        sources = self.read.values[call].sources
        before = {s for operand in call.inputs for s in self.read.values[operand].sources}
        return self.read.nodes[sources[0]].op if not before.issuperset(sources) else None

    def _is_residual(self, operands: Sequence[Call]) -> bool:
        """Whether one operand is computed from the other, and that from a weight."""
        sources = [self.read.values[call].sources for call in operands]
        if len(sources) < 2:
            return False
        for stream, branch in (sources[:2], sources[1::-1]):
            above = 0
            for i in branch:
                above |= self.ancestors[i]
            if stream and stream != (0,) and all(above >> i & 1 for i in stream):
                return True
        return False
