"""The sizes of tensors among an operator's arguments, and meta tensors of these sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

META = torch.device("meta")


class Size(NamedTuple):
    """All that an operator knows of a meta tensor. A sparse one has no strides."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Size:
        strides = tensor.stride() if tensor.layout is torch.strided else ()
        return cls(tensor.shape, strides, tensor.dtype)

    def tensor(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=META)


def sizes_in(value: Any) -> Any:
    """A value with sizes in the place of tensors; numbers beside their type, as 1 equals 1.0."""
    if isinstance(value, Tensor):
        return Size(value.shape, value.stride(), value.dtype)
    if has_numbers(value):
        return *map(type, value), *value
    if isinstance(value, (tuple, list)):
        return tuple([sizes_in(item) for item in value])
    return (type(value), value) if isinstance(value, (int, float, complex)) else value


def has_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers: of an operator's lists, all items are of one kind."""
    return type(value) is list and bool(value) and type(value[0]) in (int, float, bool)


def which_size(made: Any, given: tuple[Any, ...]) -> Any:
    """Which size that an operator was given each is that it made; None if one is new."""
    try:
        return mapped(given.index, Size, made)
    except ValueError:
        return None


def on_meta(value: Any) -> Any:
    """A value with tensors on meta in the place of others."""
    return mapped(lambda tensor: tensor if tensor.is_meta else meta_like(tensor), Tensor, value)


def meta_like(tensor: Tensor) -> Tensor:
    """A tensor of the same size on meta; a dense one for a sparse one, which has no strides."""
    if tensor.layout is not torch.strided:
        return torch.empty(tensor.size(), dtype=tensor.dtype, device=META)
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)


def mapped(function: Callable[[Any], Any], kind: type, value: Any) -> Any:
    """Apply a function to what is of a kind in nested tuples and lists."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (tuple, list)) and not has_numbers(value):
        return type(value)([mapped(function, kind, item) for item in value])
    return value
