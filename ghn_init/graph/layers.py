"""Operators with a weight: convolutions, linear layers, attention and norms, as nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ghn_init.graph.graph import Node
from ghn_init.graph.reading import Reading
from ghn_init.graph.recording import Call
from ghn_init.graph.values import NOTHING, Value, union

_NOT_A_LAYER = "multiplied with activations, but not as the weight (out, in) of a linear layer"
_BIAS_WITHOUT_WEIGHT = "bias of a layer that no primitive fits"


def _weight(read: Reading, call: Call, op: str, x: Value, weight: Call, bias: Any) -> Value:
    """A weight's node and, behind it, its bias's."""
    value = read.values[weight]
    param = read.chosen(value, weight)
    if param is None or not 2 <= len(read.shapes[param]) <= 4:
        read.leave(value, read.why_not(value, "weight"))
        read.layers[call] = None
        out = NOTHING.but(sources=union([x, value]))
    else:
        read.layers[call] = param
        read.input_factors.setdefault(param, set()).add(x.factor or 1.0)
        out = read.add_parameter(op, param, value, x)
        out = out.but(open_weight=out.sources[0])
    return _bias(read, out, bias) if isinstance(bias, Call) else out


def _bias(read: Reading, x: Value, bias: Call) -> Value:
    value = read.values[bias]
    if value.is_data:
        return read.join(Node("sum"), [x, value])
    param = read.chosen(value, bias)
    if param is None or len(read.shapes[param]) != 1:
        read.leave(value, read.why_not(value, "bias"))
        return x.but(open_weight=None)
    return read.add_parameter("bias", param, value, x)


def convolution(read: Reading, call: Call) -> Value:
    """A convolution of activations with a parameter."""
    arguments: tuple[Any, ...] = call.args
    x, weight, bias, _, _, dilation, transposed, _, groups = arguments[:9]
    value = read.values[weight]
    if not read.get(x).is_data or value.is_data:
        return read.pass_through(call)
    if transposed or len(weight.shape) > 4:
        kind = "transposed" if transposed else "3-d"
        for operand in (value, read.get(bias)):
            read.leave(operand, f"{kind} convolution: not in the vocabulary")
        read.note_layer(call, value)
        return Value(sources=read.get(x).sources)
    op = "conv"
    if groups > 1:
        op = "dil_conv" if all(d > 1 for d in dilation) else "sep_conv"
    return _weight(read, call, op, read.get(x), weight, bias)


def linear(read: Reading, call: Call) -> Value:
    """A linear layer that is recorded as one operator."""
    x, weight, bias = (*call.args, None)[:3]
    assert isinstance(weight, Call)
    if not read.get(x).is_data or read.values[weight].is_data:
        return read.pass_through(call)
    return _weight(read, call, "conv", read.get(x), weight, bias)


def matmul(read: Reading, call: Call) -> Value:
    """A product of matrices: a linear layer, the end of an attention, or neither."""
    *added, left, right = call.args
    assert isinstance(left, Call)
    assert isinstance(right, Call)
    a, b = read.values[left], read.values[right]
    bias = added[0] if added else None
    if a.is_data and b.is_data:
        if a.attention or b.attention:
            return read.add_node(Node("msa"), [a, b])
        return read.pass_through(call)
    weight, value, x = (right, b, a) if a.is_data else (left, a, b)
    if not x.is_data or not value.params:
        return read.pass_through(call)
    if _is_weight_of_layer(read, value, weight, is_right=weight is right):
        return _weight(read, call, "conv", x, weight, bias)
    read.leave(value, _NOT_A_LAYER)
    read.leave(read.get(bias), _BIAS_WITHOUT_WEIGHT)
    read.note_layer(call, value)
    return NOTHING.but(sources=union([x, read.get(bias)]))


def _is_weight_of_layer(read: Reading, value: Value, weight: Call, is_right: bool) -> bool:
    """Whether a factor is a whole (out, in) matrix: from the left, or transposed from the right."""
    param = read.chosen(value, weight)
    if param is None and value.altered:  # whichever way it is turned, its bias is a layer's
        return True
    param = param or value.params[0]
    whole = math.prod(read.shapes[param]) == math.prod(weight.shape[-2:])
    return value.transposed == is_right and whole and _is_matrix(read.shapes[param])


def _is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a shape is (out, in), with at most a 1x1 kernel behind."""
    return len(shape) > 1 and math.prod(shape) == shape[0] * shape[1]


def fused_attention(read: Reading, call: Call) -> Value:
    """Scaled dot-product attention in one call."""
    factors, tables = read.operands(call)[:3], read.operands(call)[3:]
    for value in factors:
        read.leave(value, _NOT_A_LAYER)
    for value in tables:
        read.leave(value, "relative-position table: no primitive")
    return read.add_node(Node("msa"), factors)


def softmax(read: Reading, call: Call) -> Value:
    """What may turn out to be an attention's."""
    return read.pass_through(call).but(attention=True)


def _norm(read: Reading, op: str, x: Any, weight: Any, bias: Any) -> Value:
    """A norm is one node for its weight; its bias is predicted from it too."""
    value, shift = read.get(weight), read.get(bias)
    param = _vector(read, value, weight)
    if param is None:
        read.leave(value, "norm over several dimensions: not in the vocabulary")
        read.leave(shift, "bias of a norm whose weight is not predicted")
        plain = NOTHING.but(sources=read.get(x).sources, normalized=not value.params)
        return plain.through(normalized=True)
    norm_bias = _vector(read, shift, bias)
    out = read.add_parameter(op, param, value, read.get(x))
    if norm_bias is None:
        read.leave(shift, read.why_not(shift, "bias"))
        return out
    read.carry(norm_bias, shift, "bias")
    read.nodes[-1] = replace(read.nodes[-1], norm_bias=norm_bias)
    return out


def _vector(read: Reading, value: Value, tensor: Any) -> str | None:
    """The parameter of one dimension that a norm's weight or bias is made of."""
    param = read.chosen(value, tensor) if value.params else None
    return param if param and len(read.shapes[param]) == 1 else None


def _batch_norm(read: Reading, call: Call) -> Value:
    x, weight, bias = call.args[:3]
    if not read.get(x).is_data:  # weight standardization
        return read.pass_through(call)
    return _norm(read, "bn", x, weight, bias)


def _group_norm(read: Reading, call: Call) -> Value:
    return _norm(read, "ln", *call.args[:3])


def _layer_norm(read: Reading, call: Call) -> Value:
    x, _, weight, bias = call.args[:4]
    return _norm(read, "ln", x, weight, bias)


def _rms_norm(read: Reading, call: Call) -> Value:
    return _norm(read, "ln", call.args[0], call.args[2], None)


LAYERS: dict[str, Callable[[Reading, Call], Value]] = {
    "aten::convolution": convolution,
    "aten::linear": linear,
    **dict.fromkeys(
        ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mv", "aten::matmul"),
        matmul,
    ),
    **dict.fromkeys(
        (
            "aten::native_batch_norm",
            "aten::_native_batch_norm_legit",
            "aten::_native_batch_norm_legit_functional",
            "aten::_batch_norm_with_update",
            "aten::cudnn_batch_norm",
        ),
        _batch_norm,
    ),
    "aten::native_layer_norm": _layer_norm,
    "aten::native_group_norm": _group_norm,
    "aten::_fused_rms_norm": _rms_norm,
    "aten::_softmax": softmax,
    "aten::_safe_softmax": softmax,
}
"""What reads each operator."""
