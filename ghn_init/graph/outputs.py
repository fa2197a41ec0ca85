"""Where a forward pass has its outputs: in what it returns, or on its modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn

from ghn_init.graph.copies import INTERNAL, slot_names

_MOST_OUTPUTS = 10_000
"""Items that are taken from an output's iterator: it might have no end."""


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Every tensor in a model's output: containers, iterators, dataclasses, any object."""
    return _tensors_in(output, {})


def kept_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors on modules, outside of parameters and buffers."""
    seen: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in INTERNAL:
                yield from _tensors_in(value, seen)


def _tensors_in(value: Any, seen: dict[int, Any]) -> Iterator[Tensor]:
    if id(value) in seen or isinstance(value, _WITHOUT_TENSORS):
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item, seen)
    else:
        found = False
        for item in _attributes(value):
            for tensor in _tensors_in(item, seen):
                found = True
                yield tensor
        if not found and isinstance(value, Iterable):
            for item in islice(value, _MOST_OUTPUTS):
                yield from _tensors_in(item, seen)


_WITHOUT_TENSORS = (str, bytes, int, float, complex, type(None), type, range, nn.Module)


def _attributes(value: Any) -> Iterator[Any]:
    """What an object's attributes refer to, its slots' too."""
    yield from getattr(value, "__dict__", {}).values()
    for name in slot_names(type(value)):
        if hasattr(value, name):
            yield getattr(value, name)
