"""What a recorder writes down: the operators of a forward pass, and what they work on.

A `torch.fx.Graph` holds the same, but also what only generated code needs (unique names, who uses a
result, checked arguments): it took half of a trace's time. A call here refers to earlier ones only,
so that Python frees all of them without a search for cycles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ghn_init.graph.sizes import Size


@dataclass(eq=False, slots=True)
class Call:
    """An operator that was called, or a tensor that was there before (`name` is empty then).

    Arguments:
        order: its place in the recording.
        name: the operator, without the overload (`aten::linear`), or one of the markers below.
        args, kwargs: what it was called with: calls in the place of tensors.
        size: of the tensor that came of it; None if it is none, or several.
        param: the dotted name of the parameter that a tensor is.
        is_input: whether a tensor is one of the model's inputs.
        number: the value of a tensor that is a single number.
        inputs: the calls among its arguments, each once.
    """

    order: int
    name: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    size: Size | None = None
    param: str | None = None
    is_input: bool = False
    number: float | None = None
    inputs: tuple[Call, ...] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[Call, None] = {}
        _find(self.args, found)
        if self.kwargs:
            _find(tuple(self.kwargs.values()), found)
        self.inputs = tuple(found)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that came of it; () without one."""
        return () if self.size is None else tuple(self.size.shape)

    @property
    def numel(self) -> int:
        """How many numbers came of it; 0 if it is no tensor."""
        return 0 if self.size is None else math.prod(self.size.shape)


ITEM = "item"
"""Marker: one of the tensors of a call that returned several; `args` are the call and an index."""

WRITTEN = "written"
"""Marker: the value of a view (the first argument) after a write through another view."""

FROM_NUMBERS = "from_numbers"
"""Marker: a tensor that was made outside of torch of numbers that were read before."""


@dataclass(frozen=True)
class Recording:
    """One forward pass.

    Arguments:
        calls: in the order of execution.
        outputs: those of the tensors that the model returned.
    """

    calls: Sequence[Call]
    outputs: tuple[Call, ...]

    def live(self) -> list[Call]:
        """The calls that an output depends on, in execution order."""
        live: set[Call] = set()
        stack = list(self.outputs)
        while stack:
            call = stack.pop()
            if call not in live:
                live.add(call)
                stack.extend(call.inputs)
        return [call for call in self.calls if call in live]


def _find(arguments: Sequence[Any], found: dict[Call, None]) -> None:
    for argument in arguments:
        if isinstance(argument, Call):
            found[argument] = None
        elif isinstance(argument, (tuple, list)):
            _find(argument, found)
