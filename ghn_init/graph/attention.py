"""Where a model attends: the weights that queries, keys, values and the output come from.

An attention is found by its operators, whatever class it is in. Which rows of a weight make the
queries, and of which head, depends on how a model cuts and turns what its layers give: the numbers
of the channels are sent the same way, through the recorded operators, and are read at the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ghn_init.graph.reading import Reading
from ghn_init.graph.recording import ITEM, Call
from ghn_init.graph.sizes import has_numbers
from ghn_init.graph.values import REARRANGE
from ghn_init.graph.weight_functions import TRANSPOSE

_MOVE = (REARRANGE | TRANSPOSE) - {"aten::_to_copy", "aten::clone", "aten::detach"} | {
    f"aten::{name}"
    for name in ("cat", "chunk", "select", "slice", "split", "split_with_sizes", "stack", "unbind")
}
"""Operators that put numbers elsewhere. All others that keep a tensor's size change them in place
(a scale, a norm, a rotation by position), which leaves a channel the channel that it was."""

_RESHAPE = frozenset({"aten::view", "aten::_unsafe_view", "aten::_reshape_alias"})
_MATMUL = frozenset({"aten::mm", "aten::bmm", "aten::baddbmm", "aten::matmul"})
_FUSED = "aten::_scaled_dot_product"


@dataclass(frozen=True)
class Projection:
    """The weight of a layer into an attention or out of it, and the part of it that counts.

    Arguments:
        param: name of the weight, `(out, in)` or `(out, in, 1, 1)`.
        heads: for each head the rows of the weight that give its channels; for the layer behind
            the attention the columns that take them.
    """

    param: str
    heads: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Attention:
    """One attention between tokens.

    Arguments:
        query, key, value: the layers in front of it. Grouped queries have fewer heads of keys and
            values.
        out: the layer behind it; None if there is none that takes all of its channels.
        tokens: number of the queries.
        on_itself: whether queries and keys are computed from the same tokens.
    """

    query: Projection
    key: Projection
    value: Projection
    out: Projection | None
    tokens: int
    on_itself: bool

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The layers that there are."""
        return (self.query, self.key, self.value, *([self.out] if self.out else []))

    def with_prefix(self, prefix: str) -> Attention:
        """The same inside a wrapper that prefixes its parameters' names."""

        def renamed(projection: Projection) -> Projection:
            return replace(projection, param=prefix + projection.param)

        out = renamed(self.out) if self.out else None
        return replace(
            self,
            query=renamed(self.query),
            key=renamed(self.key),
            value=renamed(self.value),
            out=out,
        )


def find_attentions(read: Reading, live: Sequence[Call]) -> tuple[Attention, ...]:
    """The attentions whose queries, keys and values each come from a layer, in execution order.

    Arguments:
        read: all recorded operators, read.
        live: the recorded operators that an output depends on.
    """
    users: dict[Call, list[Call]] = {call: [] for call in live}
    for call in live:
        for operand in call.inputs:
            users[operand].append(call)
    with torch.device("cpu"):  # whatever device the caller makes tensors on
        found = [_attention(read, users, *candidate) for candidate in _candidates(read, live)]
    return tuple(attention for attention in found if attention is not None)


def _candidates(
    read: Reading, live: Sequence[Call]
) -> Iterator[tuple[Call, Call, Call, Call, bool]]:
    """The end of an attention, its queries, keys and values; whether the keys are transposed."""
    for call in live:
        args: tuple[Any, ...] = call.args
        if call.name.startswith(_FUSED):
            yield call, args[0], args[1], args[2], False
        elif call.name in _MATMUL and read.get(args[-2]).attention:
            scores: Call | None = args[-2]
            while scores is not None and len(data := _data(read, scores)) < 2:
                scores = data[0] if data else None
            if scores is not None and scores.name in _MATMUL:
                yield call, scores.args[-2], scores.args[-1], args[-1], True


def _data(read: Reading, call: Call) -> list[Call]:
    return [operand for operand in call.inputs if read.values[operand].is_data]


def _attention(
    read: Reading,
    users: Mapping[Call, Sequence[Call]],
    end: Call,
    query: Call,
    key: Call,
    value: Call,
    transposed: bool,
) -> Attention | None:
    sides = [_side(read, query), _side(read, key, transposed), _side(read, value)]
    if any(side is None for side in sides):
        return None
    q, k, v = (side for side in sides if side is not None)
    sources = [
        {s for operand in _data(read, side.layer) for s in read.values[operand].sources}
        for side in (q, k)
    ]
    return Attention(
        q.projection,
        k.projection,
        v.projection,
        _behind(read, users, end, v),
        query.shape[-2],
        sources[0] == sources[1],
    )


# -- in front of the attention


@dataclass(frozen=True)
class _Side:
    """Where queries, keys or values come from.

    Arguments:
        layer: the recorded operator of the layer.
        projection: its weight.
        order: for each matrix in the batch of them the head that it belongs to.
    """

    layer: Call
    projection: Projection
    order: tuple[int, ...]


def _side(read: Reading, call: Call, transposed: bool = False) -> _Side | None:
    path, layer = [], call
    while layer not in read.layers:
        operands = _data(read, layer)
        if not operands or not layer.name:
            return None
        path.append(_Step.of(layer, operands[0]))
        layer = operands[0]
    param, size = read.layers[layer], layer.shape
    axis = _channel_axis(layer, len(size))
    shape = () if param is None else read.shapes[param]
    if param is None or math.prod(shape[2:]) > 1 or shape[0] != size[axis]:
        return None
    vectors = _vectors(size, axis, tuple(path[::-1]), transposed)
    heads = {head: i for i, head in enumerate(dict.fromkeys(vectors))}
    if not heads or len({c for head in heads for c in head}) < sum(map(len, heads)):
        return None  # an attention between channels, or one that mixes heads
    return _Side(layer, Projection(param, tuple(heads)), tuple(heads[v] for v in vectors))


def _channel_axis(layer: Call, axes: int) -> int:
    return 1 if layer.name == "aten::convolution" else axes - 1


@functools.lru_cache(maxsize=256)  # the blocks of a model are alike
def _vectors(
    size: tuple[int, ...], axis: int, path: tuple[_Step, ...], transposed: bool
) -> list[tuple[int, ...]]:
    """For each matrix that an attention gets, the channels of the layer that are its columns."""
    channels = torch.arange(size[axis]).view([-1 if i == axis else 1 for i in range(len(size))])
    numbers = _sent(channels.expand(size), path)
    if numbers is None or numbers.dim() < 3:
        return []
    numbers = numbers.transpose(-1, -2) if transposed else numbers
    for token in (-1, 0, numbers.shape[-2] // 2):  # class tokens stand in front, if not behind
        vectors = numbers[..., token, :].flatten(0, -2)
        if bool((vectors >= 0).all()):
            return [tuple(vector) for vector in vectors.tolist()]
    return []


# -- behind the attention


def _behind(
    read: Reading, users: Mapping[Call, Sequence[Call]], end: Call, value: _Side
) -> Projection | None:
    """The layer that takes what an attention gives."""
    first = next((user for user in users[end] if user.name == ITEM), end)
    heads, size = len(value.projection.heads), first.shape
    width = len(value.projection.heads[0])
    if size[-1] != width or math.prod(size[:-2]) != len(value.order):
        return None
    for path, layer in _ways_to_layers(read, users, first):
        param = read.layers[layer]
        if param is None:
            continue
        columns = _columns(size, value.order, path, layer.name == "aten::convolution")
        if sorted(columns) == list(range(heads * width)) == list(range(read.shapes[param][1])):
            place = {channel: column for column, channel in enumerate(columns)}
            numbered = [range(h * width, (h + 1) * width) for h in range(heads)]
            return Projection(param, tuple(tuple(place[c] for c in head) for head in numbered))
    return None


@functools.lru_cache(maxsize=256)
def _columns(
    size: tuple[int, ...], order: tuple[int, ...], path: tuple[_Step, ...], is_map: bool
) -> tuple[int, ...]:
    """For each channel that a layer gets, the one of the attention's (head by head) that it is."""
    width = size[-1]
    heads = torch.tensor(order).view(*size[:-2], 1, 1)
    sent = _sent((heads * width + torch.arange(width)).expand(size), path)
    if sent is None:
        return ()
    return tuple(sent.transpose(1 if is_map else -1, -1)[(0,) * (sent.dim() - 1)].tolist())


def _ways_to_layers(
    read: Reading, users: Mapping[Call, Sequence[Call]], start: Call, most: int = 30
) -> Iterator[tuple[tuple[_Step, ...], Call]]:
    """Layers that are reached from an operator, and the operators on the way, nearest first."""
    ways: list[tuple[tuple[_Step, ...], Call]] = [((), start)]
    seen = {start}
    while ways and len(seen) < most:
        path, call = ways.pop(0)
        for user in users[call]:
            if user in read.layers:
                yield path, user
            elif user not in seen:
                seen.add(user)
                ways.append(((*path, _Step.of(user, call)), user))


# -- numbers of channels, sent through operators


_HERE = "here"
"""Stands for the operand that the numbers are in the place of."""


@dataclass(frozen=True)
class _Other:
    """Stands for another tensor, such as class tokens."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Step:
    """An operator on the way: what it does, without the calls, so that equal ones are equal."""

    name: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, call: Call, operand: Call) -> _Step:
        """A call, for numbers in the place of one of its operands."""

        def plain(argument: Any) -> Any:
            if argument is operand:
                return _HERE
            if isinstance(argument, Call):
                return _Other(argument.shape)
            if has_numbers(argument):
                return tuple(argument)
            return tuple(map(plain, argument)) if isinstance(argument, (tuple, list)) else argument

        kwargs = tuple((name, plain(value)) for name, value in call.kwargs.items())
        return cls(call.name, plain(call.args), kwargs, operand.shape, call.shape)

    def moved(self, numbers: Any) -> Any:
        """What becomes of numbers where the operator puts them elsewhere."""

        def filled(argument: Any) -> Any:
            if argument is _HERE:
                return numbers
            if isinstance(argument, tuple):
                return [filled(item) for item in argument]
            return torch.full(argument.shape, -1) if isinstance(argument, _Other) else argument

        if self.name in _RESHAPE:
            return numbers.reshape(self.args[1])
        function = getattr(torch.ops.aten, self.name.removeprefix("aten::"))
        return function(*map(filled, self.args), **dict(self.kwargs))


def _sent(numbers: Tensor, path: Sequence[_Step]) -> Tensor | None:
    """Numbers in the shape of the first operand, sent on; None where it is not known how."""
    now: Any = numbers
    for step in path:
        if step.name == ITEM:
            now = now[step.args[1]] if isinstance(now, (tuple, list)) else now
        elif step.name in _MOVE:
            try:
                now = step.moved(now)
            except (RuntimeError, IndexError, TypeError, ValueError):
                return None
        elif step.after and step.after != step.before:
            return None
    return now if isinstance(now, Tensor) else None
