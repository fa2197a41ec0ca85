"""Layers of torch's own that are like an earlier one: they repeat its calls, and do not run.

What a layer of `torch.nn` without children calls, its class, its attributes and the sizes of its
tensors tell. A convolutional network consists of hundreds of such layers, and torch takes ten times
as long to run one on meta tensors as it takes to write down what it would call.
"""

from __future__ import annotations

import marshal
import types
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ghn_init.graph.copies import INTERNAL
from ghn_init.graph.recording import Call
from ghn_init.graph.sizes import Size
from ghn_init.graph.surroundings import is_own

# -- which layers are alike


def may_repeat(module: nn.Module) -> bool:
    """Whether a module is one of torch's, without children, that runs as its class says."""
    of_torch = type(module).__module__.startswith("torch.nn.modules.")
    return of_torch and not module._modules and "forward" not in vars(module)


def tensors_of(layer: nn.Module, args: Sequence[Any]) -> list[Any]:
    """What a layer works on: its arguments, parameters and buffers."""
    own = (*layer._parameters.values(), *layer._buffers.values())
    return [*args, *(tensor for tensor in own if tensor is not None)]


_NO_SETTINGS = INTERNAL | {"forward"}


def likeness(layer: nn.Module, given: Sequence[Tensor]) -> Hashable | None:
    """What layers of a class that make the same calls have in common.

    Arguments:
        layer: the layer.
        given: the tensors that it works on.

    Returns: None where a mode of the model's has a say too, where attributes are more than numbers
        and names, and where one tensor is given twice.
    """
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack() > 1:
        return None
    if len(set(map(id, given))) < len(given):
        return None
    settings = {name: value for name, value in vars(layer).items() if name not in _NO_SETTINGS}
    try:  # format 2 writes equal values alike, and 1 and 1.0 differently
        written = marshal.dumps(settings, 2)
    except ValueError:
        return None
    names = *layer._parameters, *layer._buffers
    # As of `Size`, without the time that a named tuple takes: this is done for every layer.
    sizes = tuple([(tensor.shape, tensor.stride(), tensor.dtype) for tensor in given])
    return layer.training, written, names, sizes


_contents: dict[tuple[int, ...], tuple[int, Any]] = {}


def content(kind: type[nn.Module]) -> int | None:
    """A number for a class and the functions it calls; another one once one is exchanged.

    Returns: None if one is not torch's own: that may call what it likes.
    """
    # What is added to nn.Module itself (transformers adds a method) is around `forward`.
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    values = [value for space in (functional, *own) for value in vars(space).values()]
    if any(map(_is_foreign, values)):
        return None
    # The values are kept, so that their ids stay theirs.
    return _contents.setdefault(tuple(map(id, values)), (len(_contents), values))[0]


def _is_foreign(value: Any) -> bool:
    """Whether it is a function that is not torch's, or an object that is called like one."""
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        return is_own(value)
    return callable(value) and type(value).__module__ != "typing"


# -- what they call


@dataclass(frozen=True)
class Step:
    """A call of a layer.

    Arguments:
        name, args, kwargs, size: as of `Call`, with None in the place of calls.
        places: which arguments are calls, and which calls: their numbers among those that the given
            tensors came from and, behind them, those of the steps.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    size: Size | None
    places: tuple[tuple[int, int], ...]

    def again(self, order: int, known: Sequence[Call]) -> Call:
        """The same call of another layer."""
        args = list(self.args)
        for place, which in self.places:
            args[place] = known[which]
        return Call(order, self.name, tuple(args), self.kwargs, self.size)


@dataclass(frozen=True)
class Steps:
    """The calls of a layer, for layers like it.

    Arguments:
        steps: in order.
        written: which of the given tensors are written, and by which call, numbered as in `Step`.
        place: which of the given tensors is returned; None if it is a new one.
        size: of what is returned.
        made: the number of the call that it came from.
    """

    steps: tuple[Step, ...]
    written: tuple[tuple[int, int], ...]
    place: int | None
    size: Size
    made: int

    @classmethod
    def of(
        cls,
        given: Sequence[Call],
        calls: Sequence[Call],
        written: Mapping[int, Call],
        result: Call,
        place: int | None,
    ) -> Steps | None:
        """From the calls that a layer made; None if they work on more than it was given.

        Arguments:
            given: the calls that the given tensors came from.
            calls: those of the layer.
            written: the calls that wrote given tensors, by the place of these.
            result: the one that what is returned came from.
            place: as above.
        """
        used = _used(calls, [result, *written.values()])
        number = {call: i for i, call in enumerate((*given, *used))}
        steps = []
        for call in used:
            places = [(i, arg) for i, arg in enumerate(call.args) if isinstance(arg, Call)]
            needed = set(call.inputs)
            direct = {arg for _, arg in places} == needed  # none in a list, or by keyword
            if not (call.name and direct and number.keys() >= needed):
                return None
            args = tuple(None if isinstance(arg, Call) else arg for arg in call.args)
            numbered = tuple((i, number[arg]) for i, arg in places)
            steps.append(Step(call.name, args, call.kwargs, call.size, numbered))
        if result.size is None or not number.keys() >= {result, *written.values()}:
            return None
        by = tuple((where, number[call]) for where, call in written.items())
        return cls(tuple(steps), by, place, result.size, number[result])


def _used(calls: Sequence[Call], results: Sequence[Call]) -> list[Call]:
    """Those of some calls on which results depend."""
    used, own = set(results), set(calls)
    for call in reversed(calls):
        if call in used:
            used.update(own.intersection(call.inputs))
    return [call for call in calls if call in used]
