"""A copy of a model, for a pass to do with as it likes.

A forward pass leaves things behind: caches, counters, hooks, states of random generators. To undo
all of it on the model itself means to know every place where Python can keep something. So the
pass runs on a copy that shares no state with the model, and whatever it leaves goes with the copy.
`copy.deepcopy` does not do: it fails on tensors that were computed and on many helper objects, it
keeps what functions close over, and it copies the weights.
"""

from __future__ import annotations

import collections
import contextlib
import copyreg
import functools
import operator
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ghn_init.errors import GHNInitError

_SHARED = (
    type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, property, range, slice,
    str, bytes, int, float, complex, type(None), type(...), type(NotImplemented),
    torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
"""Kinds of which nothing can be changed, or whose one object is all of Python's."""

_SHARED_KINDS = frozenset({*_SHARED, bool})

INTERNAL = frozenset(vars(nn.Module()))
"""What every module has; no two modules have one of these in common."""


class NotCopyable(GHNInitError):
    """A model that does something when a copy of it is made or dropped."""


class Copies:
    """Copies of a model's modules and of all that they refer to, made once each.

    Modules, containers, objects, functions that close over something, bound methods, caches and
    random generators are copied; weak references point to the copies. What cannot be copied (a
    lock, an open file, an object that refuses) is shared, and so are the numbers of tensors other
    than the given ones: the recorder keeps a pass from writing to those.

    Arguments:
        model: any module.
        tensors: what takes the place of a parameter or a buffer, by the id of that.

    Raises:
        NotCopyable: for a module with `__del__`, which would run when the copy is dropped.
    """

    def __init__(self, model: nn.Module, tensors: dict[int, Tensor]) -> None:
        self._known: dict[int, Any] = dict(tensors)
        self._kept: list[Any] = []  # an id is only an object's as long as that lives
        self.modules: list[tuple[nn.Module, nn.Module]] = []
        self.constants: set[int] = set()  # ids of tensors that are shared
        self.shared: list[Any] = []  # objects that cannot be copied
        self.code: set[Any] = set()  # the classes and functions of what is copied
        self.model: nn.Module = self(model)

    def __call__(self, value: Any) -> Any:
        """The copy of a value."""
        kind = type(value)
        if kind in _SHARED_KINDS:
            return value
        known = self._known.get(id(value))
        if known is not None:
            return known
        copier = _COPIERS.get(kind)
        if copier is None:
            if isinstance(value, nn.Module):
                return self._module(value)
            if isinstance(value, Tensor):
                return self._tensor(value)
            if isinstance(value, _SHARED):
                return value
            copier = Copies._object
        try:
            return copier(self, value)
        except NotCopyable:
            raise
        except Exception:  # whatever a class's own way to be copied raises
            return self._share(value)

    def drop(self) -> None:
        """Empty the copied modules: many refer to themselves, and only a search would free them."""
        for _, module in self.modules:
            module.__dict__.clear()

    def _share(self, value: Any) -> Any:
        self.shared.append(value)
        return self._remember(value, value)

    def _remember(self, value: Any, copied: Any) -> Any:
        self._known[id(value)] = copied
        self._kept.append(value)
        return copied

    def _module(self, module: nn.Module) -> nn.Module:
        kind = type(module)
        if hasattr(kind, "__del__"):
            raise NotCopyable(f"{kind.__name__} has a __del__")
        self.code.add(kind)
        copied: nn.Module = object.__new__(kind)
        self._remember(module, copied)
        self.modules.append((module, copied))
        # Most attributes are one of very few kinds: they are not worth a call each.
        attributes = module.__dict__.copy()
        for name, value in attributes.items():
            if type(value) in _SHARED_KINDS:
                continue
            empty = name in INTERNAL and not value and id(value) not in self._known
            attributes[name] = type(value)() if empty else self(value)
        object.__setattr__(copied, "__dict__", attributes)
        self._slots(module, copied)
        return copied

    def _slots(self, value: Any, copied: Any) -> None:
        for name in slot_names(type(value)):
            if hasattr(value, name):
                object.__setattr__(copied, name, self(getattr(value, name)))

    def _tensor(self, tensor: Tensor) -> Tensor:
        """The same numbers, with a version counter of their own."""
        try:
            copied: Tensor = tensor.data
        except Exception:  # some kinds of tensors do not have it
            copied = tensor
        self.constants.add(id(copied))
        self._remember(tensor, copied)
        return copied

    def _items(self, value: Any) -> Any:
        copied = self._remember(value, type(value)())
        for item in value:
            copied.add(self(item)) if isinstance(value, set) else copied.append(self(item))
        return copied

    def _deque(self, value: Any) -> Any:
        copied = self._remember(value, collections.deque(maxlen=value.maxlen))
        copied.extend(map(self, value))
        return copied

    def _mapping(self, value: Any) -> Any:
        copied = self._remember(value, type(value)())
        for key, item in value.items():
            copied[self(key)] = self(item)
        return copied

    def _tuple(self, value: Any) -> Any:
        if _SHARED_KINDS.issuperset(map(type, value)):
            return value
        items = [self(item) for item in value]
        same = all(map(operator.is_, items, value))
        return self._remember(value, value if same else type(value)(items))

    def _function(self, function: types.FunctionType) -> Any:
        """A function that closes over copies; one that closes over nothing is itself."""
        self.code.add(function)
        if function.__closure__ is None:
            return self._remember(function, function)
        # A function may close over itself, and several over one variable: first the empty cells.
        new = [cell for cell in function.__closure__ if id(cell) not in self._known]
        cells = tuple(
            self._remember(cell, types.CellType()) if cell in new else self._known[id(cell)]
            for cell in function.__closure__
        )
        copied = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            cells,
        )
        self._remember(function, copied)
        copied.__kwdefaults__, copied.__module__ = function.__kwdefaults__, function.__module__
        copied.__dict__.update({name: self(item) for name, item in vars(function).items()})
        for cell in new:
            with contextlib.suppress(ValueError):  # a variable that has no value yet
                self._known[id(cell)].cell_contents = self(cell.cell_contents)
        return copied

    def _method(self, method: types.MethodType) -> Any:
        return self._remember(method, types.MethodType(method.__func__, self(method.__self__)))

    def _partial(self, value: functools.partial[Any]) -> Any:
        keywords = {name: self(item) for name, item in value.keywords.items()}
        copied = functools.partial(self(value.func), *map(self, value.args), **keywords)
        self._remember(value, copied)
        copied.__dict__.update({name: self(item) for name, item in vars(value).items()})
        return copied

    def _lru_cache(self, cached: Any) -> Any:
        """A cache of its own, empty."""
        function = self(cached.__wrapped__)
        return self._remember(cached, functools.lru_cache(**cached.cache_parameters())(function))

    def _reference(self, reference: weakref.ref[Any]) -> Any:
        target = reference()
        copied = self(target)
        return self._remember(reference, reference if copied is target else weakref.ref(copied))

    def _generator(self, generator: torch.Generator) -> Any:
        copied = torch.Generator(generator.device)
        copied.set_state(generator.get_state())
        return self._remember(generator, copied)

    def _object(self, value: Any) -> Any:
        """Any other object, by its own way to be copied (see `copy` and `pickle`)."""
        kind = type(value)
        if hasattr(kind, "__del__"):  # it would release what the original still holds
            return self._share(value)
        self.code.add(kind)
        if (own := getattr(kind, "__deepcopy__", None)) is not None:
            return self._remember(value, own(value, self._known))
        reduced = _reduced(value)
        if isinstance(reduced, str):
            return self._remember(value, value)
        make, args, state, items, pairs, setter = (*reduced, None, None, None, None)[:6]
        copied = self._remember(value, make(*map(self, args)))
        if state is not None:
            self._set_state(copied, self(state), setter)
        for item in items or ():
            copied.append(self(item))
        for key, item in pairs or ():
            copied[self(key)] = self(item)
        return copied

    def _set_state(self, copied: Any, state: Any, setter: Callable[..., Any] | None) -> None:
        if setter is not None:
            setter(copied, state)
        elif hasattr(copied, "__setstate__"):
            copied.__setstate__(state)
        else:
            attributes, slots = state if isinstance(state, tuple) else (state, None)
            copied.__dict__.update(attributes or {})
            for name, item in (slots or {}).items():
                object.__setattr__(copied, name, item)


def slot_names(kind: type) -> Iterator[str]:
    """Names of a class's attributes that are not in `__dict__`."""
    for base in kind.__mro__:
        if (slots := base.__dict__.get("__slots__")) is None:
            continue
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                private = name.startswith("__") and not name.endswith("__")
                yield f"_{base.__name__.lstrip('_')}{name}" if private else name


def _reduced(value: Any) -> Any:
    """How to make an object again, in the words of `pickle`, which notes its slots on the class."""
    kind = type(value)
    noted = "__slotnames__" in vars(kind)
    registered = copyreg.dispatch_table.get(kind)
    try:
        return registered(value) if registered else value.__reduce_ex__(4)
    finally:
        if not noted and "__slotnames__" in vars(kind):
            del kind.__slotnames__


_COPIERS: dict[type, Callable[[Copies, Any], Any]] = {
    dict: Copies._mapping,
    collections.OrderedDict: Copies._mapping,
    list: Copies._items,
    set: Copies._items,
    tuple: Copies._tuple,
    collections.deque: Copies._deque,
    types.FunctionType: Copies._function,
    types.MethodType: Copies._method,
    functools.partial: Copies._partial,
    type(functools.lru_cache(lambda: None)): Copies._lru_cache,
    weakref.ref: Copies._reference,
    torch.Generator: Copies._generator,
}
