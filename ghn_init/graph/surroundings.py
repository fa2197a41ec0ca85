"""What a pass leaves outside of the model: in globals, on classes, in caches.

A copy of the model (see `copies`) does not help where a forward pass keeps something in a global
variable, on a class or in a `functools.lru_cache`. The globals that the model's code names, and
its classes, are compared with what they were, and put back. Whatever else still holds a tensor of
the pass afterwards is found through Python's garbage collector, and made to let go of it. As a
rule nothing does, and nothing is searched.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import operator
import random
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ghn_init.graph.isolation import one_at_a_time

_LRU_CACHE = type(functools.lru_cache(lambda: None))
_CONTAINERS: tuple[Any, ...] = (collections.OrderedDict, dict, list, set, collections.deque)
_OPAQUE = (type, types.ModuleType, types.FunctionType, str, bytes, int, float, Tensor, nn.Module)
"""Kinds of which the content is not saved (of classes it is, where the model's code names them)."""

_FOREIGN = frozenset(sys.stdlib_module_names) - {"__main__"} | {"torch", "numpy", "ghn_init"}
"""Packages whose globals keep nothing of a model."""

_MOST_ITEMS = 4096
"""Of containers with more items it is not saved what their items contain."""

_DEEPEST = 8
"""How many objects may stand between a tensor and what holds it for good."""


@contextlib.contextmanager
def nothing_left() -> Iterator[Surroundings]:
    """Undo what passes within the block leave outside of the model.

    One thread at a time: two traces would take each other's tensors for what was there before.
    """
    with one_at_a_time():
        surroundings = Surroundings()
        try:
            yield surroundings
        finally:
            surroundings.restore()


class Surroundings:
    """What passes can reach without the model, as it was before them."""

    def __init__(self) -> None:
        self._made: list[weakref.ref[Any]] = []
        self._code = _Code()
        self._saved = Saved()

    def before(self, code: Iterable[Any]) -> None:
        """Save what classes and functions refer to by name; what is saved already stays so."""
        for space, names in self._code.follow(code):
            if names is None:
                self._saved.save(space, depth=3)
            else:
                self._saved.save_variables(space, names)

    def shared(self, objects: Iterable[Any]) -> None:
        """Save what objects that a pass shares with the model refer to."""
        for value in objects:
            self._saved.save(value, depth=3)

    def made(self, objects: Iterable[weakref.ref[Any]]) -> None:
        """Note tensors and modules that nothing should hold when the passes are over."""
        self._made.extend(objects)

    def restore(self) -> None:
        """Put back what has changed, and look for what was made."""
        self._saved.restore()
        for generation in (0, 2):  # much of what was made refers to itself, and is still young
            if self._left():
                gc.collect(generation)
        if left := self._left():
            _release(left)
        self._made.clear()

    def _left(self) -> list[Any]:
        return [found for ref in self._made if (found := ref()) is not None]


class _Code:
    """Finds the classes and the global variables that code names, and the code in those."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}

    def follow(self, code: Iterable[Any]) -> Iterator[tuple[Any, set[str] | None]]:
        """Where code may keep something, and under which names, or None for all of it.

        Dicts of global variables, classes, attributes of functions and what those close over.
        """
        stack = list(code)
        while stack:
            value = stack.pop()
            if id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            if isinstance(value, types.FunctionType) and is_own(value):
                names = _names(value.__code__)
                cells = value.__closure__ or ()
                stack += [cell.cell_contents for cell in cells if _filled(cell)]
                yield from ((place, None) for place in (vars(value), *cells))
                spaces = [value.__globals__]
                for name in names:
                    found = value.__globals__.get(name)
                    if isinstance(found, types.ModuleType) and is_own(found):
                        spaces.append(vars(found))
                for space in spaces:
                    stack.extend(space[name] for name in names if name in space)
                    yield space, names
            elif isinstance(value, type) and is_own(value):
                content = dict(vars(value))
                stack.extend((*value.__bases__, *content.values()))
                yield value, set(content)
            elif isinstance(value, _WRAPPERS):
                stack += [getattr(value, name, None) for name in _WRAPPED]


_WRAPPED = ("__wrapped__", "__func__", "fget", "func")
_WRAPPERS = (
    _LRU_CACHE, types.MethodType, staticmethod, classmethod, property, functools.partial,
    functools.cached_property,
)  # fmt: skip


def _names(code: types.CodeType) -> set[str]:
    """The names of global variables and attributes in code, and in functions within it."""
    within = (_names(item) for item in code.co_consts if isinstance(item, types.CodeType))
    return set(code.co_names).union(*within)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def is_own(value: Any) -> bool:
    """Whether it comes from a package that may keep something of a model."""
    if isinstance(value, types.FunctionType):  # functools.wraps gives it another's __module__
        name = value.__globals__.get("__name__")
    else:
        name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return isinstance(name, str) and name.partition(".")[0] not in _FOREIGN


_MISSING = object()


class Saved:
    """Contents of variables, containers and objects, to be put back as they were."""

    def __init__(self) -> None:
        self._spaces: dict[int, tuple[Any, dict[str, Any], set[str]]] = {}
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._states: dict[int, tuple[Callable[[Any], None], Any]] = {}

    def save_variables(self, space: Any, names: set[str]) -> None:
        """Save variables of a module (a dict), or of a class, and what they contain."""
        variables = space if isinstance(space, dict) else vars(space)
        _, before, known = self._spaces.setdefault(id(space), (space, dict(variables), set()))
        for name in names - known:
            self.save(before.get(name), depth=3)
        known |= names

    def save(self, value: Any, depth: int) -> None:
        """Save the items of a container or an object, and of what they are, down to a depth."""
        if depth == 0 or isinstance(value, _OPAQUE) or value is None or id(value) in self._contents:
            return
        if (state := _state(value)) is not None:
            self._states.setdefault(id(value), state)
            return
        content = _content(value)
        if content is None:
            return
        self._contents[id(value)] = value, content
        if len(content) <= _MOST_ITEMS:
            for item in tuple(content.values() if isinstance(content, dict) else content):
                self.save(item, depth - 1)

    def restore(self) -> None:
        """Put back what has changed."""
        for space, before, names in self._spaces.values():
            _restore_variables(space, before, names)
        for value, content in self._contents.values():
            _restore_content(value, content)
        for put, state in self._states.values():
            put(state)


def _content(value: Any) -> Any:
    """A container's items, or an object's attributes; None for what has neither.

    Containers are read and written past whatever their class makes of reading and writing.
    """
    base = next((kind for kind in _CONTAINERS if isinstance(value, kind)), None)
    if isinstance(value, types.CellType):
        return {"cell_contents": value.cell_contents} if _filled(value) else {}
    if base is not None:
        return dict(base.items(value)) if issubclass(base, dict) else list(base.__iter__(value))
    try:
        return dict(vars(value))
    except Exception:  # no attributes, or a proxy that is not ready to show them
        return None


def _restore_variables(space: Any, before: dict[str, Any], names: set[str]) -> None:
    if isinstance(space, type):  # what a class has got meanwhile is the pass's
        names = names | set(vars(space))
    for name in names:
        old = before.get(name, _MISSING)
        now = (space if isinstance(space, dict) else vars(space)).get(name, _MISSING)
        # What was imported or defined meanwhile stays: others rely on it.
        if now is old or isinstance(now, (type, types.ModuleType, types.FunctionType)):
            continue
        if isinstance(space, dict):
            space.pop(name, None)
            space.update({} if old is _MISSING else {name: old})
        elif old is _MISSING:
            delattr(space, name)
        else:
            setattr(space, name, old)


def _restore_content(value: Any, content: Any) -> None:
    """Put back items, unless they are the same ones."""
    now = _content(value)
    if isinstance(content, dict):
        same = list(content) == list(now) and all(map(operator.is_, content.values(), now.values()))
    else:
        same = len(content) == len(now) and all(map(operator.is_, content, now))
    if same:
        return
    if isinstance(value, types.CellType):
        value.cell_contents = content.get("cell_contents")
        return
    target = value if isinstance(value, _CONTAINERS) else vars(value)
    base: Any = next(kind for kind in _CONTAINERS if isinstance(target, kind))
    base.clear(target)
    if issubclass(base, dict):
        for key, item in content.items():
            base.__setitem__(target, key, item)
    elif base is set:
        base.update(target, content)
    else:
        base.extend(target, content)


_STATES: tuple[tuple[type, str, str], ...] = (
    (random.Random, "getstate", "setstate"),
    (torch.Generator, "get_state", "set_state"),
)


def _state(value: Any) -> tuple[Callable[[Any], None], Any] | None:
    """How to set a random generator's state, and the state; None for anything else."""
    for kind, get, put in _STATES:
        if isinstance(value, kind):
            return getattr(value, put), getattr(value, get)()
    module = type(value).__module__
    if module.startswith("numpy.random"):
        if hasattr(value, "bit_generator"):
            source = value.bit_generator
            return functools.partial(setattr, source, "state"), source.state
        if hasattr(value, "set_state"):
            return value.set_state, value.get_state()
    return None


# -- what still holds a tensor of a pass


def _release(left: list[Any]) -> None:
    """Make whatever holds the objects let go of them."""
    held, known = left, {id(item) for item in left}
    for _ in range(_DEEPEST):
        own = {id(held), id(left), id(sys._getframe())}
        holders = [h for h in gc.get_referrers(*held) if id(h) not in known | own]
        held = [h for h in holders if not (isinstance(h, _RUNNING) or _let_go(h, known))]
        known |= {id(h) for h in held}
        if not held:
            return


_RUNNING = (types.FrameType, types.GeneratorType, types.CoroutineType)


def _let_go(holder: Any, known: set[int]) -> bool:
    """Remove items from a container, attributes from an object; False for what has neither."""
    if isinstance(holder, _LRU_CACHE):
        holder.cache_clear()
    elif isinstance(holder, dict):
        for key in [k for k, v in holder.items() if id(k) in known or id(v) in known]:
            del holder[key]
    elif isinstance(holder, (list, collections.deque)):
        kept = [item for item in holder if id(item) not in known]
        holder.clear()
        holder.extend(kept)
    elif isinstance(holder, set):
        holder -= {item for item in holder if id(item) in known}
    elif isinstance(holder, types.CellType):
        holder.cell_contents = None
    elif names := [n for n, v in getattr(holder, "__dict__", {}).items() if id(v) in known]:
        for name in names:
            object.__delattr__(holder, name)
    else:
        return False
    return True
