"""What is known so far while a model's recorded operators are read, and how a node is added."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ghn_init.graph.graph import NO_PASSAGE, UNUSED, Node, Passage
from ghn_init.graph.recording import Call
from ghn_init.graph.values import (
    BOUNDED,
    INNER_ACTIVATIONS,
    NOTHING,
    REARRANGE,
    RELU,
    STATISTIC,
    Value,
    union,
)
from ghn_init.graph.weight_functions import CREATE, function_of_parameters


class Reading:
    """A graph that grows while the recorded operators are read.

    Arguments:
        model: the model that was recorded.
        gates: multiplications that end a squeeze-and-excitation block.
        squeezes: global poolings inside of one.
    """

    def __init__(self, model: nn.Module, gates: frozenset[Call], squeezes: frozenset[Call]) -> None:
        params = dict(model.named_parameters())
        self.shapes = {name: tuple(p.shape) for name, p in params.items()}
        self.odd_dtypes = {
            name: str(p.dtype).removeprefix("torch.")
            for name, p in params.items()
            if not p.is_floating_point()
        }
        self.gates, self.squeezes = gates, squeezes
        self.nodes: list[Node] = [Node("input")]
        self.predecessors: list[tuple[int, ...]] = [()]
        self.values: dict[Call, Value] = {}
        self.reasons: dict[str, str] = {}
        self.factors: dict[str, float] = {}
        self.input_factors: dict[str, set[float]] = {}
        self.normalized: set[str] = set()
        self.passages: dict[tuple[int, int], Passage] = {}
        self.layers: dict[Call, str | None] = {}
        """For each operator with a weight the weight's name; None where it has no node."""

    # -- values

    def get(self, argument: Any) -> Value:
        """The value of an operator's argument."""
        return self.values.get(argument, NOTHING) if isinstance(argument, Call) else NOTHING

    def operands(self, call: Call) -> list[Value]:
        """The values of an operator's tensors."""
        return [self.values[operand] for operand in call.inputs]

    def pass_through(self, call: Call) -> Value:
        """An operator without a primitive: sources or parameters of all operands, merged."""
        operands = self.operands(call)
        data = [v for v in operands if v.is_data]
        name = call.name
        if name in CREATE:
            return NOTHING
        if not data:
            return function_of_parameters(name, call, operands)
        for value in operands:
            self.leave(value, f"no primitive fits its operator ({name.removeprefix('aten::')})")
            self.note_layer(call, value)
        if len(data) == 1:
            kept = data[0]
            if name in REARRANGE:
                return kept
            passed: dict[str, Any] = {}
            if name in RELU or name in INNER_ACTIVATIONS:
                passed = {"rectified": True}
            elif name in BOUNDED:
                passed = {"normalized": True}
            return kept.but(
                open_weight=None,
                normalized=False,
                open_norm=None,
                factor=1.0,
                statistic=kept.statistic or name in STATISTIC,
                passage=replace(kept.passage, **passed) if passed else kept.passage,
            )
        return Value(sources=union(data), statistic=name in STATISTIC)

    def note_layer(self, call: Call, value: Value) -> None:
        """Note that an operator has a weight, though none that a node carries."""
        if not value.is_data and any(len(self.shapes[p]) > 1 for p in value.params):
            self.layers.setdefault(call, None)

    # -- parameters

    def leave(self, value: Value, reason: str) -> None:
        """Note why the parameters that a value is made of are left, if nothing is noted yet."""
        if value.is_data:
            return
        altered = dict(value.altered)
        for param in value.params:
            why = reason
            if param in self.odd_dtypes:
                why = f"its dtype is {self.odd_dtypes[param]}: only real numbers are predicted"
            elif param in altered:
                why = (
                    f"not the weight itself: the layer computes its weight from it "
                    f"({altered[param]}), and a prediction is for the weight"
                )
            self.reasons.setdefault(param, why)

    def chosen(self, value: Value, tensor: Call) -> str | None:
        """The parameter that a weight is: the only one, or the one of the weight's size.

        Weight norm and weight standardization make a weight of a direction and a gain: the
        direction is the one that counts.
        """
        if not value.is_whole or value.factor is None:
            return None
        names = [p for p in value.unaltered if p not in self.odd_dtypes]
        if len(names) == 1 and len(value.params) == 1:
            return names[0]
        fitting = [p for p in names if math.prod(self.shapes[p]) == tensor.numel]
        return fitting[0] if len(fitting) == 1 else None

    def why_not(self, value: Value, what: str) -> str:
        """Why no parameter was chosen for a weight or a bias."""
        if value.factor is None:
            return (
                f"the model multiplies it by a number that the trace does not know, for its {what}"
            )
        return f"several parameters, or dimensions, are combined into one {what}"

    # -- nodes

    def add_node(self, node: Node, operands: Sequence[Value]) -> Value:
        """Add a node that works on some values; its own value has no other source."""
        index = len(self.nodes)
        self.nodes.append(node)
        self.predecessors.append(union(operands))
        self.note_passages(operands, index)
        return NOTHING.but(sources=(index,))

    def note_passages(self, operands: Iterable[Value], index: int) -> None:
        """Note what stands between the sources of some values and the node that works on them."""
        for value in operands:
            if value.passage != NO_PASSAGE:
                self.passages |= {(i, index): value.passage for i in value.sources}

    def add_parameter(self, op: str, param: str, value: Value, *before: Value) -> Value:
        """Add the node of a parameter.

        Arguments:
            op: its primitive.
            param: its name.
            value: what the model makes of it.
            before: what it works on.
        """
        self.carry(param, value, _KINDS.get(op, "weight"))
        if value.normalized:
            self.normalized.add(param)
        return self.add_node(Node(op, param, self.shapes[param]), before)

    def carry(self, param: str, value: Value, what: str) -> None:
        """Note what comes with a parameter that a node carries: its factor, other parameters."""
        if value.factor and not value.normalized and value.factor != 1:
            self.factors.setdefault(param, value.factor)
        if others := tuple(p for p in value.params if p != param):
            reason = f"part of what {param} is turned into a {what} by"
            self.leave(value.but(params=others), reason)

    def join(self, node: Node, operands: Sequence[Value]) -> Value:
        """A sum, concatenation or gate; with a single source it is no node."""
        sources = union(operands)
        if len(sources) > 1:
            return self.add_node(node, operands)
        return NOTHING.but(sources=sources)

    def left(self) -> Mapping[str, str]:
        """The parameters that no node carries, with the reason."""
        carried = {name for node in self.nodes for name in (node.param, node.norm_bias)}
        return {name: self.reasons.get(name, UNUSED) for name in self.shapes if name not in carried}


_KINDS = {"bias": "bias", "pos_enc": "positional embedding"}
