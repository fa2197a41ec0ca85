"""Global pooling and squeeze-and-excitation, recognised in the recorded operators.

A squeeze-and-excitation block pools its features to one vector a sample, computes a gate from it
and multiplies the features with the gate. The multiplication is the primitive `cse`; the pooling
inside is no node, unlike the one before a classification layer, which looks the same on its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

_MULTIPLY = frozenset({"aten::mul", "aten::mul_"})
_SQUASH = frozenset(
    {
        "aten::_softmax",
        "aten::clamp",
        "aten::hardsigmoid",
        "aten::hardtanh",
        "aten::sigmoid",
        "aten::tanh",
    }
)
_SEARCH_LIMIT = 64
"""Operators looked at between a gate and its pooling: blocks have about ten."""


def op_name(node: fx.Node) -> str:
    """`aten::conv2d` and the like, without the overload; empty for what is no operator."""
    name: str = node.meta.get("name", "")
    return name


def is_global_pool(node: fx.Node) -> bool:
    """Whether an operator averages over all positions (or adaptively pools them)."""
    name = op_name(node)
    if "adaptive" in name:
        return True
    if name == "aten::mean":
        return _is_mean_over_positions(node)
    if name in ("aten::avg_pool2d", "aten::avg_pool3d"):
        shape, out = _shape(node.args[0]), _shape(node)
        return out[2:] == (1,) * len(out[2:]) and min(shape[2:]) > 3
    return False


def _is_mean_over_positions(node: fx.Node) -> bool:
    shape = _shape(node.args[0])
    dims: Any = node.args[1] if len(node.args) > 1 else None
    if not isinstance(dims, (list, tuple)):
        return False
    over = {int(d) % len(shape) for d in dims}
    if len(shape) == 3:  # (batch, tokens, channels), or (batch, channels, positions)
        keepdim = bool(node.args[2]) if len(node.args) > 2 else False
        return over == {1} or (over == {2} and not keepdim)
    positions = len(shape) - 2
    channels_first, channels_last = (
        set(range(2, len(shape))),
        set(range(1, len(shape) - 1)),
    )
    return positions > 0 and over in (channels_first, channels_last)


def find_squeeze_excitation(
    nodes: list[fx.Node],
) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
    """The multiplications that end a squeeze-and-excitation block, and the poolings inside.

    Arguments:
        nodes: the recorded operators.
    """
    gates: set[fx.Node] = set()
    squeezes: set[fx.Node] = set()
    for node in nodes:
        if op_name(node) not in _MULTIPLY:
            continue
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node)]
        if len(operands) < 2:
            continue
        for features, gate in (operands, operands[::-1]):
            pools = _pools_behind_gate(features, gate)
            if pools:
                gates.add(node)
                squeezes |= pools
                break
    return frozenset(gates), frozenset(squeezes)


def _pools_behind_gate(features: fx.Node, gate: fx.Node) -> set[fx.Node]:
    """Global poolings that a gate is computed from; empty where it is no gate of the features."""
    smaller = _numel(gate) < _numel(features)
    if not smaller and not (_is_squashed(gate) and _is_vector(gate)):
        return set()
    pools: set[fx.Node] = set()
    stack, seen = [gate], {features}
    while stack and len(seen) < _SEARCH_LIMIT:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_global_pool(node):
            pools.add(node)
        elif node.op == "call_function" and _is_vector(node):
            stack.extend(node.all_input_nodes)
    return pools


def _is_squashed(node: fx.Node) -> bool:
    """Whether an activation with bounded values comes last, shapes and constants aside."""
    for _ in range(4):
        if op_name(node) in _SQUASH:
            return True
        if len(node.all_input_nodes) != 1:
            return False
        node = node.all_input_nodes[0]
    return False


def _is_vector(node: fx.Node) -> bool:
    """One value per sample and channel, whatever the layout: no positions left."""
    shape = _shape(node)
    return len(shape) > 1 and _numel(node) <= shape[0] * max(shape[1:]) if shape else True


def _shape(node: object) -> tuple[int, ...]:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _numel(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0
