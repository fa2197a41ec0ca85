"""Global pooling and squeeze-and-excitation, recognised in the recorded operators.

A squeeze-and-excitation block pools its features to one vector a sample, computes a gate from it
and multiplies the features with the gate. The multiplication is the primitive `cse`; the pooling
inside is no node, unlike the one before a classification layer, which looks the same on its own.
"""

from __future__ import annotations

from typing import Any

from ghn_init.graph.recording import Call

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


def is_global_pool(call: Call) -> bool:
    """Whether an operator averages over all positions (or adaptively pools them)."""
    name = call.name
    if "adaptive" in name:
        return True
    if name == "aten::mean":
        return _is_mean_over_positions(call)
    if name in ("aten::avg_pool2d", "aten::avg_pool3d"):
        shape, out = call.args[0].shape, call.shape
        return out[2:] == (1,) * len(out[2:]) and min(shape[2:]) > 3
    return False


def _is_mean_over_positions(call: Call) -> bool:
    shape = call.args[0].shape
    dims: Any = call.args[1] if len(call.args) > 1 else None
    if not isinstance(dims, (list, tuple)):
        return False
    over = {int(d) % len(shape) for d in dims}
    if len(shape) == 3:  # (batch, tokens, channels), or (batch, channels, positions)
        keepdim = bool(call.args[2]) if len(call.args) > 2 else False
        return over == {1} or (over == {2} and not keepdim)
    positions = len(shape) - 2
    channels_first, channels_last = (
        set(range(2, len(shape))),
        set(range(1, len(shape) - 1)),
    )
    return positions > 0 and over in (channels_first, channels_last)


def find_squeeze_excitation(
    calls: list[Call],
) -> tuple[frozenset[Call], frozenset[Call]]:
    """The multiplications that end a squeeze-and-excitation block, and the poolings inside.

    Arguments:
        calls: the recorded operators.
    """
    gates: set[Call] = set()
    squeezes: set[Call] = set()
    for call in calls:
        if call.name not in _MULTIPLY:
            continue
        operands = [a for a in call.args[:2] if isinstance(a, Call)]
        if len(operands) < 2:
            continue
        for features, gate in (operands, operands[::-1]):
            pools = _pools_behind_gate(features, gate)
            if pools:
                gates.add(call)
                squeezes |= pools
                break
    return frozenset(gates), frozenset(squeezes)


def _pools_behind_gate(features: Call, gate: Call) -> set[Call]:
    """Global poolings that a gate is computed from; empty where it is no gate of the features."""
    smaller = gate.numel < features.numel
    if not smaller and not (_is_squashed(gate) and _is_vector(gate)):
        return set()
    pools: set[Call] = set()
    stack, seen = [gate], {features}
    while stack and len(seen) < _SEARCH_LIMIT:
        call = stack.pop()
        if call in seen:
            continue
        seen.add(call)
        if is_global_pool(call):
            pools.add(call)
        elif call.name and _is_vector(call):
            stack.extend(call.inputs)
    return pools


def _is_squashed(call: Call) -> bool:
    """Whether an activation with bounded values comes last, shapes and constants aside."""
    for _ in range(4):
        if call.name in _SQUASH:
            return True
        if len(call.inputs) != 1:
            return False
        call = call.inputs[0]
    return False


def _is_vector(call: Call) -> bool:
    """One value per sample and channel, whatever the layout: no positions left."""
    shape = call.shape
    return len(shape) > 1 and call.numel <= shape[0] * max(shape[1:]) if shape else True
