"""A recorder that runs operators on meta tensors, and runs none that it knows already."""

from __future__ import annotations

import types
import weakref
from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ghn_init.graph.recorder import Recorder, Schema, storage
from ghn_init.graph.recording import Call
from ghn_init.graph.repeats import Steps, content, likeness, may_repeat, tensors_of
from ghn_init.graph.sizes import META, Size, mapped, on_meta, sizes_in, which_size


class MetaRecorder(Recorder):
    """Runs the operators on meta tensors, whatever device was meant.

    Which sizes an operator makes of which is remembered: torch finds many of them out in Python,
    in a hundred times the time, and the layers of a model, and of models, are much alike. An
    operator that makes the same of every size is asked for one size only. A layer of torch's own
    that is like an earlier one does not run at all: it repeats the calls of that one.
    """

    _known: ClassVar[dict[Hashable, Any]] = {}
    _MOST_KNOWN = 1 << 14

    def __init__(self) -> None:
        super().__init__({})
        self._contents: dict[type[nn.Module], int | None] = {}

    def beside(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext()  # all is run on meta anyway

    def prepare(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            if may_repeat(module):
                vars(module)["forward"] = types.MethodType(self._layer, module)

    # -- operators

    def _call(self, func: Any, schema: Schema, args: tuple[Any, ...], kwargs: Any) -> Any:
        if not (schema.makes_tensors or schema.in_place):
            return self._run(func, schema, args, kwargs)
        key = func, sizes_in(args), sizes_in(tuple(kwargs.items()))
        known = self._known.get(key)
        if known is None:
            pattern = None if kwargs else _pattern(schema, args)
            like = pattern and self._known.get((func, pattern))
            if like is None:
                out = self._run(func, schema, args, kwargs)
                known = mapped(Size.of, Tensor, out)
                if schema.in_place and known != key[1][0]:
                    return out
                if pattern:
                    self._remember((func, pattern), which_size(known, key[1]))
            else:
                known = mapped(key[1].__getitem__, int, like)
            self._remember(key, known)
        if schema.in_place:
            return on_meta(args[0])
        return known.tensor() if type(known) is Size else mapped(Size.tensor, Size, known)

    def _run(self, func: Any, schema: Schema, args: tuple[Any, ...], kwargs: Any) -> Any:
        if schema.takes_device:
            kwargs = {**kwargs, "device": META}
        return func(*on_meta(args), **{name: on_meta(value) for name, value in kwargs.items()})

    def _remember(self, key: Hashable, value: Any) -> None:
        if len(self._known) == self._MOST_KNOWN:
            self._known.clear()
        self._known[key] = value

    # -- layers

    def _layer(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run a layer of torch's own, or repeat what one like it has called."""
        kind, given = type(layer), tensors_of(layer, args)
        plain = not kwargs and all(type(tensor) is Tensor for tensor in given)
        if not plain or not all(tensor in self._made for tensor in given):
            return kind.forward(layer, *args, **kwargs)
        if kind not in self._contents:
            self._contents[kind] = content(kind)
        key = self._contents[kind], likeness(layer, given)
        if None in key:
            return kind.forward(layer, *args)
        before = [self._made_by(tensor) for tensor in given]
        known: Steps | None = self._known.get(key)
        if known is not None:
            return self._repeat(known, given, before)
        start = len(self.calls)
        output = kind.forward(layer, *args)
        if (steps := self._steps(output, start, given, before)) is not None:
            self._remember(key, steps)
        return output

    def _steps(
        self, output: Any, start: int, given: list[Tensor], before: list[Call]
    ) -> Steps | None:
        """What a layer like one that has just run can repeat.

        Arguments:
            output: what the layer returned.
            start: how many calls there were before it.
            given: the tensors that it was given.
            before: the calls that these came from.
        """
        if not isinstance(output, Tensor) or output not in self._made:
            return None
        storages = [storage(tensor) for tensor in given]
        place = next((i for i, tensor in enumerate(given) if tensor is output), None)
        if place is None and storage(output) in storages:
            return None  # a view: what is written to it is written to what was given
        written = {}
        for i, (tensor, call) in enumerate(zip(given, before, strict=True)):
            now, last = self._made[tensor], self._last_write.get(storages[i])
            if last is not None and last.order >= start and last is not now:
                return None  # written through a view
            if now is not call:
                written[i] = now
        return Steps.of(before, self.calls[start:], written, self._made[output], place)

    def _repeat(self, steps: Steps, given: list[Tensor], calls: list[Call]) -> Tensor:
        """Write down the calls of a layer that is like an earlier one.

        Arguments:
            steps: those of the earlier one.
            given: the tensors that this one is given.
            calls: those that these come from.
        """
        for step in steps.steps:
            call = step.again(len(self.calls), calls)
            self.calls.append(call)
            calls.append(call)
        for place, which in steps.written:
            self._write(given[place], calls[which])
        if steps.place is not None:
            return given[steps.place]
        with torch._C._DisableTorchDispatch():
            output = steps.size.tensor()
        self._made[output] = calls[steps.made]
        self.products.append(weakref.ref(output))
        return output


def _pattern(schema: Schema, args: tuple[Any, ...]) -> Hashable | None:
    """What an operator that makes the same of every size knows of its arguments.

    None for other operators, and where tensors are not of one size (that of the channels, for the
    vectors of a batch norm).
    """
    if not (schema.is_pointwise or schema.is_batch_norm) or not isinstance(args[0], Tensor):
        return None
    shape = args[0].shape
    pattern: list[Any] = [len(shape)]
    for value in args:
        if not isinstance(value, Tensor):
            pattern.append(sizes_in(value))
            continue
        vector = schema.is_batch_norm and value.shape == shape[1:2]
        if not (vector or value.shape == shape) or not value.is_contiguous():
            return None
        pattern.append((value.dtype, vector))
    return tuple(pattern)
