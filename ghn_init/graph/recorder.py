"""A dispatch mode that writes down the ATen operators that a forward pass calls.

This works on whatever runs eagerly, as `make_fx` does. It is many times faster than `make_fx` or
`torch.export`, because it records the calls directly, not through proxies, and runs them on meta
tensors, not on fake ones.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ghn_init.errors import GHNInitError
from ghn_init.graph.copies import NotCopyable
from ghn_init.graph.outputs import kept_tensors, tensors_in
from ghn_init.graph.recording import FROM_NUMBERS, ITEM, WRITTEN, Call, Recording
from ghn_init.graph.sizes import Size, mapped

_UNTAGGED = ("aten::hardswish", "aten::hardswish_")
"""Pointwise operators that torch does not mark as such."""


class Schema:
    """What matters of an operator's schema."""

    def __init__(self, func: Any) -> None:
        schema = func._schema
        self.name: str = schema.name
        self.is_mutable: bool = schema.is_mutable
        self.takes_device = any(a.name == "device" for a in schema.arguments)
        self.written = [
            (i, a.name)
            for i, a in enumerate(schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
        ]
        self.is_batch_norm = schema.name == "aten::native_batch_norm"
        self.is_pointwise = torch.Tag.pointwise in func.tags or schema.name in _UNTAGGED
        fresh = all(r.alias_info is None for r in schema.returns)
        tensors = any("Tensor" in str(r.type) for r in schema.returns)
        self.aliases = self.is_mutable or not fresh
        self.makes_tensors = fresh and not self.is_mutable and tensors
        self.in_place = (
            not fresh and len(schema.returns) == 1 and [i for i, _ in self.written] == [0]
        )


_schema = functools.cache(Schema)


class NoOutput(GHNInitError):
    """A forward pass that returns no tensor."""


class Recorder(TorchDispatchMode):
    """Writes down each dispatched ATen operator.

    Arguments:
        made: an empty mapping by identity, which tells what made a tensor.

    Attributes:
        calls: what was recorded.
        products: the tensors that operators made.
    """

    def __init__(self, made: MutableMapping[Tensor, Call]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.products: list[weakref.ref[Tensor]] = []
        self._made = made
        self._originals: Collection[int] = ()
        self._constants: Collection[int] = ()
        self._last_write: dict[int, Call] = {}

    def beside(self, device: torch.device) -> AbstractContextManager[Any]:
        """What a forward makes without naming a device is to meet the parameters on theirs."""
        return device

    def expect(self, originals: Collection[int], constants: Collection[int]) -> None:
        """Say which tensors a pass on a copy of a model must not meet, and which it may.

        Arguments:
            originals: ids of the model's own parameters and buffers.
            constants: ids of the tensors that the model holds outside of these.
        """
        self._originals, self._constants = originals, constants

    def prepare(self, modules: Iterable[nn.Module]) -> None:
        """Prepare the modules of a copy that is about to run."""

    def given(self, tensor: Tensor, **what: Any) -> Tensor:
        """Add a copy of a parameter, a buffer or an input."""
        self._add(tensor, **what)
        self.products.append(weakref.ref(tensor))
        return tensor

    def finish(self, output: Any, model: nn.Module) -> Recording:
        """The recording, with what the model returned or, if that is no tensor, keeps on itself.

        Raises:
            NoOutput: if there is neither.
        """
        found = list(tensors_in(output))
        if not found:
            found = [t for t in kept_tensors(model) if self._is_made(t)]
        if not found:
            raise NoOutput(
                f"its forward returns {type(output).__name__}, in which there is no tensor, and "
                "keeps none on its modules. Return a tensor, in any container."
            )
        outputs = tuple(dict.fromkeys(map(self._made_by, found)))
        return Recording(self.calls, outputs)

    def forget(self) -> None:
        """Let go of the recorded tensors, which an exception would hold with its traceback."""
        self._made.clear()
        self.calls.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = _schema(func)
        args, kwargs = self._writable(schema, args, kwargs)
        out = self._call(func, schema, args, kwargs)
        if not isinstance(out, (Tensor, tuple, list)) and not schema.is_mutable:
            return out  # a question about a tensor (its device, its size), nothing to record
        read = mapped(self._made_by, Tensor, args)
        read_kwargs = {name: mapped(self._made_by, Tensor, value) for name, value in kwargs.items()}
        call = self._add_made(out, schema.name, read, read_kwargs)
        if isinstance(out, (tuple, list)):
            for i, item in enumerate(out):
                if isinstance(item, Tensor):
                    self._add_made(item, ITEM, (call, i), {})
        for i, name in schema.written:
            self._write(args[i] if i < len(args) else kwargs.get(name), call)
        return out

    def _writable(
        self, schema: Schema, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """An operator's arguments, without tensors that are not the pass's own to write to."""
        return args, kwargs

    def _call(self, func: Any, schema: Schema, args: tuple[Any, ...], kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def _is_made(self, tensor: Tensor) -> bool:
        """Whether an operator made a tensor, or wrote it."""
        call = self._made.get(tensor)
        return call is not None and bool(call.name)

    def _made_by(self, tensor: Tensor) -> Call:
        """The call that made a tensor, or wrote it last."""
        call = self._made.get(tensor)
        if call is None:
            return self._constant(tensor)
        write = self._last_write.get(storage(tensor)) if self._last_write else None
        if write is None or write.order <= call.order:
            return call
        # Another view of this storage was written after `tensor` was made: it sees both.
        return self._add(tensor, name=WRITTEN, args=(call, write))

    def _constant(self, tensor: Tensor) -> Call:
        """A tensor that the model holds, or makes, outside of its parameters and buffers."""
        if id(tensor) in self._originals:
            raise NotCopyable("its forward pass reaches the parameters past a copy of it")
        return self._add(tensor, number=single_number(tensor))

    def _add_made(
        self, made: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Call:
        if isinstance(made, Tensor) and made not in self._made:
            self.products.append(weakref.ref(made))
        return self._add(made, name=name, args=args, kwargs=kwargs)

    def _add(self, made: Any, **what: Any) -> Call:
        is_one = isinstance(made, Tensor)
        call = Call(len(self.calls), size=Size.of(made) if is_one else None, **what)
        self.calls.append(call)
        if is_one:
            self._made[made] = call
        return call

    def _write(self, target: Any, call: Call) -> None:
        for tensor in target if isinstance(target, (tuple, list)) else (target,):
            if isinstance(tensor, Tensor):
                self._made[tensor] = call
                # A counter that is counted up (batch norm's) is the same news in all its views.
                if len(call.inputs) > 1 or tensor.is_floating_point() or tensor.is_complex():
                    self._last_write[storage(tensor)] = call


class NumberRecorder(Recorder):
    """Records a pass on real tensors.

    The pass may write to what it makes, and to copies; of another tensor, one that the model
    holds outside of its buffers, it gets a copy where it writes to it or takes a view of it.
    Where numbers go through NumPy, what comes back is linked with what was read.
    """

    def __init__(self) -> None:
        # Activations have their memory here: they are not kept.
        super().__init__(WeakIdKeyDictionary())
        self._replaced: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()
        self._foreign: MutableMapping[Tensor, None] = WeakIdKeyDictionary()
        self._read: list[Call] = []

    def beside(self, device: torch.device) -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(super().beside(device))
        stack.enter_context(_NumPyReads(self._note_read))
        return stack

    def _note_read(self, tensor: Tensor) -> None:
        if tensor in self._made:
            self._read.append(self._made_by(tensor))

    def _writable(
        self, schema: Schema, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def own(tensor: Tensor) -> Tensor:
            if tensor in self._replaced:
                return self._replaced[tensor]
            if not schema.aliases or (tensor in self._made and tensor not in self._foreign):
                return tensor
            call = self._made_by(tensor)
            copy = self._replaced[tensor] = tensor.detach().clone()
            self._made[copy] = call
            return copy

        return mapped(own, Tensor, args), {k: mapped(own, Tensor, v) for k, v in kwargs.items()}

    def _constant(self, tensor: Tensor) -> Call:
        self._foreign[tensor] = None
        outside = id(tensor) not in self._constants and tensor.numel() > 1
        if self._read and outside and tensor.is_floating_point():
            return self._add(tensor, name=FROM_NUMBERS, args=tuple(self._read))
        return super()._constant(tensor)


class _NumPyReads(TorchFunctionMode):
    """Calls a function with each tensor whose numbers are given to NumPy."""

    _READING = frozenset({"numpy", "__array__", "__dlpack__"})

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in self._READING:
            self._note(args[0])
        return func(*args, **(kwargs or {}))


def single_number(tensor: Tensor) -> float | None:
    """The value of a tensor that is a single real number, where it has one."""
    is_one = tensor.numel() == 1 and tensor.is_floating_point() and not tensor.is_meta
    return float(tensor) if is_one and not isinstance(tensor, fake_tensor.FakeTensor) else None


def storage(tensor: Tensor) -> int:
    """A number for the memory of a tensor, which its views have too."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
