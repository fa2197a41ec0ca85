"""A snapshot of everything that can be reached from a model, to be compared with another.

A snapshot describes what it finds by kind and value; objects are named in the order in which they
are met, so that two snapshots of one unchanged model are equal, and differences have a path.
"""

from __future__ import annotations

import collections
import functools
import gc
import logging
import random
import sys
import types
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

_LRU_CACHE = type(functools.lru_cache(lambda: None))
_PLAIN = (bool, int, float, complex, str, bytes, range, slice, type(None), type(...))
_CODE = (
    type, types.ModuleType, types.BuiltinFunctionType, types.MethodWrapperType, logging.Logger
)  # fmt: skip
# (Loggers remember which levels are on.)


def snapshot(model: nn.Module) -> dict[str, str]:
    """What can be reached from a model, by path: attributes, hooks, buffers, containers, modes.

    Parameters are described without their values. Also within: the global variables of the Python
    modules of its classes, the classes' attributes, and the sizes of the functools caches there.
    """
    seen = _Snapshot({id(p) for p in model.parameters()})
    seen.walk("model", model)
    classes = {base for m in model.modules() for base in type(m).__mro__}
    for kind in sorted(classes, key=lambda k: (k.__module__, k.__qualname__)):
        if kind.__module__.partition(".")[0] not in ("torch", "builtins"):
            seen.walk_all(f"<{kind.__module__}.{kind.__qualname__}>", vars(kind))
            module = sys.modules.get(kind.__module__)
            if module is not None:
                seen.walk_all(f"<{kind.__module__}>", vars(module))
    return seen.found


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """One line for each path at which two snapshots differ."""
    return [
        f"{path}: {before.get(path, 'missing')} -> {after.get(path, 'missing')}"
        for path in {**before, **after}
        if before.get(path) != after.get(path)
    ]


def without_numbers(model: nn.Module) -> list[str]:
    """Where a meta or fake tensor can be reached from a model that has none of its own."""
    return [
        f"{path}: {text}"
        for path, text in snapshot(model).items()
        if "FakeTensor" in text or "@meta" in text
    ]


def living_fakes() -> list[Tensor]:
    """Every meta or fake tensor in the process that something still holds."""
    gc.collect()
    return [t for t in gc.get_objects() if issubclass(type(t), Tensor) and _is_fake(t)]


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) or tensor.is_meta


class _Snapshot:
    def __init__(self, parameters: set[int]) -> None:
        self.found: dict[str, str] = {}
        self._parameters = parameters
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []

    def walk_all(self, path: str, variables: Mapping[str, Any]) -> None:
        """Describe the variables of a module or a class."""
        for name, value in tuple(variables.items()):
            if name in ("__loader__", "__spec__", "__builtins__"):
                continue
            self.walk(f"{path}.{name}", value)

    def walk(self, path: str, value: Any) -> None:
        """Describe a value and what it refers to, unless it was met before."""
        stack: collections.deque[tuple[str, Any]] = collections.deque([(path, value)])
        while stack:
            path, value = stack.popleft()
            if isinstance(value, _PLAIN):
                self.found[path] = f"{type(value).__name__} {value!r}"
            elif isinstance(value, _CODE):
                self.found[path] = f"{type(value).__name__} {getattr(value, '__name__', '')}"
            elif id(value) in self._names:
                self.found[path] = f"same as {self._names[id(value)]}"
            else:
                self._names[id(value)] = path
                self._kept.append(value)
                self.found[path] = self._describe(value)
                stack.extend((f"{path}{key}", item) for key, item in _parts(value))

    def _describe(self, value: Any) -> str:
        kind = f"{type(value).__name__} at {id(value):x}"
        if isinstance(value, Tensor):
            text = f"{kind} {value.dtype} {tuple(value.shape)} @{value.device}"
            if id(value) in self._parameters:
                return f"{text} requires_grad {value.requires_grad}"
            return f"{text} version {value._version} {_values(value)}"
        if isinstance(value, (list, dict, set, frozenset, tuple, collections.deque)):
            return f"{kind} of {len(value)}"
        if isinstance(value, _LRU_CACHE):
            return f"{kind} {value.cache_info().currsize} cached"
        if isinstance(value, torch.Generator):
            return f"{kind} {value.get_state().sum().item()}"
        if isinstance(value, random.Random):
            return f"{kind} {hash(value.getstate())}"
        if type(value).__module__.startswith("numpy.random"):
            state = value.bit_generator.state if hasattr(value, "bit_generator") else value
            return f"{kind} {state}" if isinstance(state, dict) else kind
        return kind


def _values(tensor: Tensor) -> str:
    if _is_fake(tensor) or tensor.layout is not torch.strided:
        return ""
    numbers = tensor.detach().cpu().contiguous().reshape(-1)
    return str(hash(numbers.view(torch.uint8).numpy().tobytes())) if numbers.numel() else ""


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    """What a value refers to, with the step of a path to each."""
    if isinstance(value, (Tensor, _LRU_CACHE)):
        return []
    if isinstance(value, (weakref.ref, weakref.ProxyType, torch.Generator, random.Random)):
        return []
    if isinstance(value, dict):
        return [(f"[{_key(key)}]", item) for key, item in dict.items(value)]
    if isinstance(value, (list, tuple, collections.deque)):
        return [(f"[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, types.FunctionType):
        cells = [c.cell_contents for c in value.__closure__ or () if _filled(c)]
        return [*((f"<{i}>", c) for i, c in enumerate(cells)), *_attributes(value)]
    if isinstance(value, types.MethodType):
        return [(".__self__", value.__self__)]
    if isinstance(value, functools.partial):
        return [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    return _attributes(value)


def _attributes(value: Any) -> list[tuple[str, Any]]:
    found = dict(getattr(value, "__dict__", None) or {})
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return [(f".{name}", item) for name, item in found.items()]


def _key(key: Any) -> str:
    return repr(key) if isinstance(key, _PLAIN) else f"{type(key).__name__} {id(key):x}"


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
