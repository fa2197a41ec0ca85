"""Sums, products, concatenations and poolings, as nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ghn_init.graph.graph import Node
from ghn_init.graph.reading import Reading
from ghn_init.graph.recording import Call
from ghn_init.graph.squeeze_excitation import is_global_pool
from ghn_init.graph.values import NOTHING, Value, union
from ghn_init.graph.weight_functions import known_number


def _add(read: Reading, call: Call) -> Value:
    operands = [a for a in call.args[:2] if isinstance(a, Call)]
    data = [n for n in operands if read.values[n].is_data]
    if len(data) == 2:
        first, second = (read.values[n] for n in data)
        return read.join(Node("sum"), [first, _times(second, call.kwargs.get("alpha", 1))])
    shifts = [n for n in operands if read.values[n].params and n not in data]
    if len(data) == 1 and shifts:
        return _add_parameter(read, read.values[data[0]], shifts[0])
    return read.pass_through(call)


def _add_parameter(read: Reading, x: Value, shift: Call) -> Value:
    """A parameter added to activations: a bias, a norm's bias, a positional embedding."""
    value = read.values[shift]
    param = read.chosen(value, shift)
    shape = read.shapes[param] if param else ()
    if param and len(shape) == 1 and x.open_weight is not None:
        return read.add_parameter("bias", param, value, x)
    if param and len(shape) == 1 and x.open_norm is not None:
        read.carry(param, value, "bias")
        read.nodes[x.open_norm] = replace(read.nodes[x.open_norm], norm_bias=param)
        return x.but(open_norm=None)
    if param and not value.table and _is_positional(shape):
        encoding = read.add_parameter("pos_enc", param, value)
        return read.join(Node("sum"), [x, encoding])
    table = "relative-position table" if value.table else "added to activations"
    read.leave(value, f"{table}: no primitive")
    return x.but(open_weight=None, open_norm=None, factor=1.0)


def _is_positional(shape: tuple[int, ...]) -> bool:
    """Whether it holds a vector per token: (1, tokens, channels) or (1, channels, side, side).

    (1, side, side, channels), which a hypernetwork would take for a very wide kernel, is not.
    """
    if len(shape) == 4 and (shape[2] != shape[3] or shape[1] == shape[2]):
        return False
    return len(shape) in (3, 4) and shape[0] == 1 and min(shape[1:]) > 1


def _multiply(read: Reading, call: Call) -> Value:
    operands = [a for a in call.args[:2] if isinstance(a, Call)]
    values = [read.values[n] for n in operands]
    data = [v for v in values if v.is_data]
    if call in read.gates:
        return read.join(Node("cse"), data)
    if len(data) == 2 and any(v.statistic for v in data):
        return NOTHING.but(sources=union(data), normalized=True).through(normalized=True)
    if len(data) == 1 and len(operands) == 2:
        factor = operands[0] if values[1].is_data else operands[1]
        return _multiply_parameter(read, call, data[0], factor)
    if len(operands) == 1 and data and isinstance(number := call.args[1], (int, float)):
        return _multiply_number(read, call, data[0], number)
    return read.pass_through(call)


def _multiply_number(read: Reading, call: Call, x: Value, number: float) -> Value:
    out = read.pass_through(call)
    if not number:
        return out
    by = 1 / number if call.name == "aten::div" else number
    return _times(out, by).but(factor=(x.factor or 1.0) * by)


def _times(x: Value, *factors: Any) -> Value:
    """Activations, multiplied by numbers or parameters."""
    new = tuple(factor for factor in factors if factor != 1)
    return x.through(factors=x.passage.factors + new) if x.is_data and new else x


def _multiply_parameter(read: Reading, call: Call, x: Value, factor: Call) -> Value:
    value = read.values[factor]
    number = known_number(factor)
    if number is not None and (call.name != "aten::div" or call.args[1] is factor):
        return _multiply_number(read, call, x, number)
    param = read.chosen(value, factor)
    if param and x.normalized and len(read.shapes[param]) == 1 and read.shapes[param][0] > 1:
        out = read.add_parameter("ln", param, value, x)
        return out.but(open_norm=out.sources[0])
    read.leave(value, "multiplied with activations (layer scale, gain): no primitive")
    return _times(read.pass_through(call), *(value.unaltered if value.is_whole else ()))


def _concatenate(read: Reading, call: Call) -> Value:
    operands = read.operands(call)
    data = [v for v in operands if v.is_data]
    if not data:
        return read.pass_through(call)
    for value in operands:
        read.leave(value, "concatenated with activations (class token): no primitive")
    return read.join(Node("concat"), data)


def _mean(read: Reading, call: Call) -> Value:
    x = read.get(call.args[0])
    if x.is_data and is_global_pool(call) and call not in read.squeezes:
        return read.add_node(Node("glob_avg"), [x])
    return read.pass_through(call)


def _pool(read: Reading, call: Call) -> Value:
    x = read.get(call.args[0])
    if not x.is_data or call in read.squeezes:
        return read.pass_through(call)
    if is_global_pool(call):
        return read.add_node(Node("glob_avg"), [x])
    window: Any = call.args[1]
    sizes = [int(k) for k in window]
    op = "max_pool" if "max" in call.name else "avg_pool"
    return read.add_node(Node(op, shape=(1, 1, sizes[0], sizes[-1])), [x])


ELEMENTWISE: dict[str, Callable[[Reading, Call], Value]] = {
    "aten::add": _add,
    "aten::add_": _add,
    "aten::mul": _multiply,
    "aten::mul_": _multiply,
    "aten::div": _multiply,
    "aten::cat": _concatenate,
    "aten::stack": _concatenate,
    "aten::mean": _mean,
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
        _pool,
    ),
}
"""What reads each operator."""
