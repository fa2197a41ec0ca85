"""torch.fx graph of ATen operators -> graph of the fifteen primitives.

One pass in execution order. Every fx node gets a `Value`: which graph nodes its data comes from,
or, for a tensor that does not depend on the input, which parameters it is made of. Operators that
are a primitive add a node; all others hand on the sources of their operands, so that edges pass
through whatever has no primitive.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from ghn_init.graph.graph import UNUSED, Graph, Node
from ghn_init.graph.inputs import Inputs
from ghn_init.graph.isolation import without_gc
from ghn_init.graph.passes import Pass, record
from ghn_init.graph.squeeze_excitation import find_squeeze_excitation, is_global_pool, op_name
from ghn_init.graph.surroundings import Surroundings
from ghn_init.graph.values import (
    CREATE,
    NOTHING,
    PICK,
    REARRANGE,
    STATISTIC,
    TRANSPOSE,
    Value,
    union,
)

_NO_LAYER = "multiplied with activations, and no layer that stores (out, in)"


def trace_graph(
    model: nn.Module,
    inputs: Inputs,
    how: Pass = Pass(),  # noqa: B008
    surroundings: Surroundings | None = None,
) -> Graph:
    """Trace a model to its graph of primitives.

    Arguments:
        model: the model; it is left as it was.
        inputs: example inputs.
        how: how to run the model.
        surroundings: as in `record`.

    Raises:
        NeedsNumbers: if the model cannot run without numbers.
        GHNInitError: if the model does not run on the inputs.
    """
    with without_gc():
        recorded = record(model, inputs, how, surroundings)
        try:
            return _Builder(model).build(recorded)
        finally:
            for node in recorded.nodes:  # they refer to each other, and would stay for a while
                node.meta.clear()


class _Builder:
    def __init__(self, model: nn.Module) -> None:
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        stated = getattr(model, "num_classes", None)
        self.stated_classes = stated if type(stated) is int else None
        self.nodes: list[Node] = [Node("input")]
        self.predecessors: list[tuple[int, ...]] = [()]
        self.values: dict[fx.Node, Value] = {}
        self.reasons: dict[str, str] = {}
        self.gates: frozenset[fx.Node] = frozenset()
        self.squeezes: frozenset[fx.Node] = frozenset()

    def build(self, recorded: fx.Graph) -> Graph:
        live = _live_nodes(recorded)
        self.gates, self.squeezes = find_squeeze_excitation(live)
        for node in live:
            self.values[node] = self._value(node)
        self._pool_before_classifier()
        edges = sorted((i, j) for j, before in enumerate(self.predecessors) for i in before)
        return Graph(
            tuple(self.nodes),
            edges,
            self._left(),
            self.shapes,
            stated_classes=self.stated_classes,
        )

    # -- one fx node

    def _value(self, node: fx.Node) -> Value:
        if node.op == "placeholder":
            if node.meta.get("input"):
                return Value(sources=(0,))
            param = node.meta.get("param")
            return Value(params=(param,)) if param else NOTHING
        if node.target is operator.getitem:
            return self.values[node.args[0]]  # type: ignore[index]
        name = op_name(node)
        if name.startswith("aten::_scaled_dot_product"):
            return self._fused_attention(node)
        handler = _HANDLERS.get(name)
        return handler(self, node) if handler else self._pass_through(node)

    def _get(self, argument: Any) -> Value:
        return self.values.get(argument, NOTHING) if isinstance(argument, fx.Node) else NOTHING

    def _operands(self, node: fx.Node) -> list[Value]:
        return [self.values[n] for n in node.all_input_nodes]

    def _add_node(self, node: Node, predecessors: tuple[int, ...]) -> Value:
        self.nodes.append(node)
        self.predecessors.append(predecessors)
        return Value(sources=(len(self.nodes) - 1,))

    def _pass_through(self, node: fx.Node) -> Value:
        """An operator without a primitive: sources or parameters of all operands, merged."""
        operands = self._operands(node)
        data = [v for v in operands if v.is_data]
        name = op_name(node)
        if name in CREATE:
            return NOTHING
        if not data:
            params = tuple(dict.fromkeys(p for v in operands for p in v.params))
            flips = name in TRANSPOSE and len(operands) == 1
            return Value(
                params=params,
                transposed=any(v.transposed for v in operands) != flips,
                table=name in PICK or any(v.table for v in operands),
            )
        for value in operands:
            self._leave(
                value,
                f"no primitive for the way it is used ({name.removeprefix('aten::')})",
            )
        if len(data) == 1:
            kept = data[0]
            if name not in REARRANGE:
                kept = replace(kept, open_weight=None, normalised=False, open_norm=None)
            return replace(kept, statistic=kept.statistic or name in STATISTIC)
        return Value(sources=union(data), statistic=name in STATISTIC)

    # -- parameters

    def _leave(self, value: Value, reason: str) -> None:
        if not value.is_data:
            for param in value.params:
                self.reasons.setdefault(param, reason)

    def _param(self, value: Value, size: int) -> str | None:
        """The parameter that a weight is made of: the only one, or the one of the weight's size.

        Weight norm and weight standardisation make a weight of a direction and a gain: the
        direction is the one that counts.
        """
        if value.is_data:
            return None
        if len(value.params) > 1:
            fitting = [p for p in value.params if math.prod(self.shapes[p]) == size]
            return fitting[0] if len(fitting) == 1 else None
        return value.params[0] if value.params else None

    def _left(self) -> dict[str, str]:
        carried = {name for node in self.nodes for name in (node.param, node.norm_bias)}
        return {name: self.reasons.get(name, UNUSED) for name in self.shapes if name not in carried}

    # -- primitives

    def _weight(self, op: str, x: Value, weight: fx.Node, bias: Any) -> Value:
        """A weight's node and, behind it, its bias's."""
        value = self.values[weight]
        param = self._param(value, _size(weight))
        if param is None or not 2 <= len(self.shapes[param]) <= 4:
            self._leave(value, "several parameters, or dimensions, are combined into one weight")
            out = replace(NOTHING, sources=union([x, value]))
        else:
            others = tuple(p for p in value.params if p != param)
            self._leave(Value(params=others), f"part of what {param} is turned into a weight by")
            out = self._add_node(Node(op, param, self.shapes[param]), x.sources)
            out = replace(out, open_weight=out.sources[0])
        return self._bias(out, bias) if isinstance(bias, fx.Node) else out

    def _bias(self, x: Value, bias: fx.Node) -> Value:
        value = self.values[bias]
        if value.is_data:
            return self._join(Node("sum"), [x, value])
        param = self._param(value, _size(bias))
        if param is None or len(self.shapes[param]) != 1:
            self._leave(value, "several parameters, or dimensions, are combined into one bias")
            return replace(x, open_weight=None)
        return self._add_node(Node("bias", param, self.shapes[param]), x.sources)

    def _convolution(self, node: fx.Node) -> Value:
        arguments: tuple[Any, ...] = node.args
        x, weight, bias, _, _, dilation, transposed, _, groups = arguments[:9]
        value = self.values[weight]
        if not self._get(x).is_data or value.is_data:
            return self._pass_through(node)
        if transposed or weight.meta["val"].dim() > 4:
            kind = "transposed" if transposed else "3-d"
            for operand in (value, self._get(bias)):
                self._leave(operand, f"{kind} convolution: not in the vocabulary")
            return Value(sources=self._get(x).sources)
        op = "conv"
        if groups > 1:
            op = "dil_conv" if all(d > 1 for d in dilation) else "sep_conv"
        return self._weight(op, self._get(x), weight, bias)

    def _linear(self, node: fx.Node) -> Value:
        x, weight, bias = (*node.args, None)[:3]
        assert isinstance(weight, fx.Node)
        if not self._get(x).is_data or self.values[weight].is_data:
            return self._pass_through(node)
        return self._weight("conv", self._get(x), weight, bias)

    def _matmul(self, node: fx.Node) -> Value:
        """Products of matrices: a linear layer, the end of an attention, or neither."""
        *added, left, right = node.args
        assert isinstance(left, fx.Node)
        assert isinstance(right, fx.Node)
        a, b = self.values[left], self.values[right]
        bias = added[0] if added else None
        if a.is_data and b.is_data:
            if a.attention or b.attention:
                return self._add_node(Node("msa"), union([a, b]))
            return self._pass_through(node)
        weight, value, x = (right, b, a) if a.is_data else (left, a, b)
        if not x.is_data or not value.params:
            return self._pass_through(node)
        param = self._param(value, _size(weight)) or value.params[0]
        whole = math.prod(self.shapes[param]) == math.prod(weight.meta["val"].shape[-2:])
        # A layer stores (out, in): it is multiplied from the left, or transposed from the right.
        oriented = value.transposed == (weight is right)
        if not (oriented and whole and _is_matrix(self.shapes[value.params[0]])):
            self._leave(value, _NO_LAYER)
            return replace(NOTHING, sources=union([x, self._get(bias)]))
        return self._weight("conv", x, weight, bias)

    def _norm(self, op: str, x: Any, weight: Any, bias: Any) -> Value:
        """A norm is one node for its weight; its bias is predicted from it too."""
        value, shift = self._get(weight), self._get(bias)
        param = self._vector(value, weight)
        if param is None:
            self._leave(value, "norm over several dimensions: not in the vocabulary")
            self._leave(shift, "bias of a norm whose weight is not predicted")
            return replace(NOTHING, sources=self._get(x).sources, normalised=not value.params)
        norm_bias = self._vector(shift, bias)
        node = Node(op, param, self.shapes[param], norm_bias)
        return self._add_node(node, self._get(x).sources)

    def _vector(self, value: Value, tensor: Any) -> str | None:
        """The parameter of one dimension that a norm's weight or bias is made of."""
        param = self._param(value, _size(tensor)) if value.params else None
        return param if param and len(self.shapes[param]) == 1 else None

    def _batch_norm(self, node: fx.Node) -> Value:
        x, weight, bias = node.args[:3]
        if not self._get(x).is_data:  # weight standardisation
            return self._pass_through(node)
        return self._norm("bn", x, weight, bias)

    def _group_norm(self, node: fx.Node) -> Value:
        return self._norm("ln", *node.args[:3])

    def _layer_norm(self, node: fx.Node) -> Value:
        x, _, weight, bias = node.args[:4]
        return self._norm("ln", x, weight, bias)

    def _rms_norm(self, node: fx.Node) -> Value:
        return self._norm("ln", node.args[0], node.args[2], None)

    def _fused_attention(self, node: fx.Node) -> Value:
        factors, tables = self._operands(node)[:3], self._operands(node)[3:]
        for value in factors:
            self._leave(value, _NO_LAYER)
        for value in tables:
            self._leave(value, "relative-position table: no primitive")
        return self._add_node(Node("msa"), union(factors))

    def _softmax(self, node: fx.Node) -> Value:
        return replace(self._pass_through(node), attention=True)

    def _add(self, node: fx.Node) -> Value:
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node)]
        data = [n for n in operands if self.values[n].is_data]
        if len(data) == 2:
            return self._join(Node("sum"), [self.values[n] for n in data])
        shifts = [n for n in operands if self.values[n].params and n not in data]
        if len(data) == 1 and shifts:
            return self._add_parameter(node, self.values[data[0]], shifts[0])
        return self._pass_through(node)

    def _add_parameter(self, node: fx.Node, x: Value, shift: fx.Node) -> Value:
        """A parameter added to activations: a bias, a norm's bias, a positional embedding."""
        value = self.values[shift]
        param = self._param(value, _size(shift))
        shape = self.shapes[param] if param else ()
        if param and len(shape) == 1 and x.open_weight is not None:
            return self._add_node(Node("bias", param, shape), x.sources)
        if param and len(shape) == 1 and x.open_norm is not None:
            self.nodes[x.open_norm] = replace(self.nodes[x.open_norm], norm_bias=param)
            return replace(x, open_norm=None)
        if param and not value.table and _is_positional(shape):
            encoding = self._add_node(Node("pos_enc", param, shape), ())
            return self._join(Node("sum"), [x, encoding])
        table = "relative-position table" if value.table else "added to activations"
        self._leave(value, f"{table}: no primitive")
        return replace(x, open_weight=None, open_norm=None)

    def _multiply(self, node: fx.Node) -> Value:
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node)]
        values = [self.values[n] for n in operands]
        data = [v for v in values if v.is_data]
        if node in self.gates:
            return self._join(Node("cse"), data)
        if len(data) == 2 and any(v.statistic for v in data):
            return replace(NOTHING, sources=union(data), normalised=True)
        if len(data) == 1 and len(operands) == 2:
            factor = operands[0] if values[1].is_data else operands[1]
            return self._multiply_parameter(node, data[0], factor)
        return self._pass_through(node)

    def _multiply_parameter(self, node: fx.Node, x: Value, factor: fx.Node) -> Value:
        value = self.values[factor]
        param = self._param(value, _size(factor))
        if param and x.normalised and len(self.shapes[param]) == 1 and self.shapes[param][0] > 1:
            out = self._add_node(Node("ln", param, self.shapes[param]), x.sources)
            return replace(out, open_norm=out.sources[0])
        self._leave(value, "multiplied with activations (layer scale, gain): no primitive")
        return self._pass_through(node)

    def _concatenate(self, node: fx.Node) -> Value:
        operands = self._operands(node)
        data = [v for v in operands if v.is_data]
        if not data:
            return self._pass_through(node)
        for value in operands:
            self._leave(value, "concatenated with activations (class token): no primitive")
        return self._join(Node("concat"), data)

    def _join(self, node: Node, operands: list[Value]) -> Value:
        """A sum, concatenation or gate; with a single source it is no node."""
        sources = union(operands)
        if len(sources) > 1:
            return self._add_node(node, sources)
        return Value(sources=sources)

    def _mean(self, node: fx.Node) -> Value:
        x = self._get(node.args[0])
        if x.is_data and is_global_pool(node) and node not in self.squeezes:
            return self._add_node(Node("glob_avg"), x.sources)
        return self._pass_through(node)

    def _pool(self, node: fx.Node) -> Value:
        x = self._get(node.args[0])
        if not x.is_data or node in self.squeezes:
            return self._pass_through(node)
        if is_global_pool(node):
            return self._add_node(Node("glob_avg"), x.sources)
        window: Any = node.args[1]
        sizes = [int(k) for k in window]
        op = "max_pool" if "max" in op_name(node) else "avg_pool"
        return self._add_node(Node(op, shape=(1, 1, sizes[0], sizes[-1])), x.sources)

    def _pool_before_classifier(self) -> None:
        """Where a global pool ends the model behind a 1x1 convolution, it goes in front of it.

        Averaging and a 1x1 convolution commute, and the classifier has to come last (SqueezeNet).
        """
        if self.nodes[-1].op != "glob_avg" or len(self.predecessors[-1]) != 1:
            return
        end = len(self.nodes) - 1
        weight = end - 2 if self.nodes[end - 1].op == "bias" else end - 1
        node = self.nodes[weight]
        if node.op != "conv" or node.shape is None or node.shape[2:] not in ((1, 1), ()):
            return
        if self.predecessors[end] != (end - 1,):
            return
        pool = self.nodes.pop()
        self.predecessors.pop()
        self.nodes.insert(weight, pool)
        self.predecessors[weight + 1 :] = [
            tuple(p + 1 for p in before) for before in self.predecessors[weight + 1 :]
        ]
        self.predecessors.insert(weight + 1, (weight,))


def _is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a shape is (out, in), with at most a 1x1 kernel behind."""
    return len(shape) > 1 and math.prod(shape) == shape[0] * shape[1]


def _is_positional(shape: tuple[int, ...]) -> bool:
    """Whether it holds a vector per token: (1, tokens, channels) or (1, channels, side, side).

    (1, side, side, channels), which a hypernetwork would take for a very wide kernel, is not.
    """
    if len(shape) == 4 and (shape[2] != shape[3] or shape[1] == shape[2]):
        return False
    return len(shape) in (3, 4) and shape[0] == 1 and min(shape[1:]) > 1


def _size(node: Any) -> int:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.numel() if isinstance(value, Tensor) else 0


def _live_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that an output depends on, in execution order."""
    output = graph.output_node()
    live: set[fx.Node] = set()
    stack = list(output.all_input_nodes)
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack.extend(node.all_input_nodes)
    return [node for node in graph.nodes if node in live]


_HANDLERS: dict[str, Callable[[_Builder, fx.Node], Value]] = {
    "aten::convolution": _Builder._convolution,
    "aten::linear": _Builder._linear,
    **dict.fromkeys(
        (
            "aten::mm",
            "aten::addmm",
            "aten::bmm",
            "aten::baddbmm",
            "aten::mv",
            "aten::matmul",
        ),
        _Builder._matmul,
    ),
    **dict.fromkeys(
        (
            "aten::native_batch_norm",
            "aten::_native_batch_norm_legit",
            "aten::_native_batch_norm_legit_functional",
            "aten::_batch_norm_with_update",
            "aten::cudnn_batch_norm",
        ),
        _Builder._batch_norm,
    ),
    "aten::native_layer_norm": _Builder._layer_norm,
    "aten::native_group_norm": _Builder._group_norm,
    "aten::_fused_rms_norm": _Builder._rms_norm,
    "aten::_softmax": _Builder._softmax,
    "aten::_safe_softmax": _Builder._softmax,
    "aten::add": _Builder._add,
    "aten::add_": _Builder._add,
    "aten::mul": _Builder._multiply,
    "aten::mul_": _Builder._multiply,
    "aten::div": _Builder._multiply,
    "aten::cat": _Builder._concatenate,
    "aten::stack": _Builder._concatenate,
    "aten::mean": _Builder._mean,
    **dict.fromkeys(
        (
            "aten::max_pool2d_with_indices",
            "aten::max_pool3d_with_indices",
            "aten::avg_pool2d",
            "aten::avg_pool3d",
            "aten::_adaptive_avg_pool2d",
            "aten::_adaptive_avg_pool3d",
            "aten::adaptive_max_pool2d",
            "aten::adaptive_max_pool3d",
        ),
        _Builder._pool,
    ),
}
