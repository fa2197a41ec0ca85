"""A model whose own initialization is larger than the memory, built all the same.

What a module draws in its `__init__` depends on all that was drawn before, so that the last layer
can only have its values once all others have had theirs. Here the model is built as ever, on the
CPU, but its large tensors note what was done to them, and forget their values when others need the
memory. When one of them is read again, what was noted is done again, from the same state of the
random generator, as activation checkpointing does for a backward pass.
"""

from __future__ import annotations

import math
import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_LARGE = 2**20
"""Bytes of a tensor from which it may be forgotten."""

_KEPT = 2**16
"""Bytes at the start of a tensor that are kept: its first rows show what kind of values it has."""

_FILLS = {
    "uniform_",
    "normal_",
    "fill_",
    "zero_",
    "copy_",
    "random_",
    "exponential_",
    "log_normal_",
}
"""Operators after which nothing is left of the values before."""

_CHANGES = _FILLS | {
    "bernoulli_", "erfinv_", "add_", "sub_", "mul_", "div_", "neg_", "abs_", "sqrt_", "rsqrt_",
    "square_", "pow_", "exp_", "log_", "sin_", "cos_", "tanh_", "sigmoid_", "reciprocal_",
    "clamp_", "clamp_min_", "clamp_max_", "round_", "floor_", "tril_", "triu_",
}  # fmt: skip
"""Operators that write to their first argument what depends on nothing but their arguments."""

_WHAT = ("dtype", "device")


class _Part(NamedTuple):
    """Where in a memory a tensor lies."""

    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end(self) -> int:
        """Bytes from the start of the memory to the end of the tensor."""
        steps = sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        return (self.offset + steps + 1) * self.dtype.itemsize

    @staticmethod
    def of(tensor: Tensor) -> _Part:
        return _Part(
            int(tensor.storage_offset()), tuple(tensor.size()), tensor.stride(), tensor.dtype
        )


@dataclass(frozen=True)
class _Change:
    """An operator that has written to a tensor: all that is needed to run it again.

    `state` is that of the random generator before, if it draws.
    """

    function: Callable[..., Any]
    part: _Part
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    generator: torch.Generator
    state: Tensor | None

    def run(self, storage: torch.UntypedStorage) -> None:
        """Run it again."""
        tensor = torch.empty(0, dtype=self.part.dtype)
        tensor.set_(storage, self.part.offset, self.part.size, self.part.stride)
        if self.state is None:
            self.function(tensor, *self.args, **self.kwargs)
            return
        now = self.generator.get_state()
        self.generator.set_state(self.state)
        try:
            self.function(tensor, *self.args, **self.kwargs)
        finally:
            self.generator.set_state(now)


@dataclass
class _Memory:
    """The memory of a large tensor.

    Arguments:
        pages: the memory.
        changes: what gave it its values.
        there: whether it has them.
        start: whether at least its first bytes (`_KEPT`) are right.
        fixed: whether it keeps them, as something was done to it that cannot be done again.
    """

    pages: mmap.mmap
    changes: list[_Change] = field(default_factory=list)
    there: bool = True
    start: bool = True
    fixed: bool = False

    def forget(self) -> None:
        """Give the memory back to the system, but for the first bytes."""
        self.pages.madvise(mmap.MADV_DONTNEED, _KEPT, len(self.pages) - _KEPT)
        self.there = False

    def read(self, tensor: Tensor) -> None:
        """See to it that a tensor in this memory has its values."""
        if not (self.start and _Part.of(tensor).end <= _KEPT):
            self.remember(tensor)

    def remember(self, tensor: Tensor) -> None:
        """See to it that all of the memory that a tensor lies in has its values."""
        if not self.there:
            for change in self.changes:
                change.run(tensor.untyped_storage())
            self.there = self.start = True

    def fix(self, tensor: Tensor) -> None:
        """The same, from now on."""
        self.remember(tensor)
        self.fixed = True


class Recomputing(TorchDispatchMode):
    """Large tensors that are made under it take up little memory.

    Only the thread that has entered it may read them, and only under it; `made` says when no more
    such tensors are to be made. Values are to the bit what they are without it. A tensor that is
    written to in a way that cannot be repeated keeps its memory; so do all of them where the system
    cannot take back a part of a process's memory (it is not Linux, say).

    Arguments:
        most: bytes that the values of large tensors may take up together.
    """

    def __init__(self, most: int = 2**30) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = most
        self._memories: OrderedDict[int, _Memory] = OrderedDict()  # by address; used last: last
        self._unseen = _Unseen(self)
        self._making = True

    def made(self) -> None:
        """From now on new tensors are ordinary ones."""
        self._making = False

    def given(
        self, size: Sequence[int], dtype: torch.dtype, values: Callable[[Tensor], Any]
    ) -> Tensor:
        """A tensor with values from elsewhere, for use under this.

        Arguments:
            size, dtype: of the tensor.
            values: writes its values; called when it is read after they were forgotten, and of a
                small tensor now.
        """
        tensor = self._empty(torch.empty, size, dtype=dtype)
        for memory, _ in self.used([tensor]):
            change = _Change(values, _Part.of(tensor), (), {}, torch.default_generator, None)
            memory.changes.append(change)
            memory.there = memory.start = False
            return tensor
        values(tensor)
        return tensor

    def __enter__(self) -> Recomputing:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._unseen.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._unseen.__exit__(*error)  # type: ignore[no-untyped-call]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty.memory_format and self._making:
            return self._empty(func, *args, **kwargs)
        if func.is_view:  # reads nothing
            return func(*args, **kwargs)
        values = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        written = [values.pop(a.name) for a in func._schema.arguments
                   if a.alias_info and a.alias_info.is_write and a.name in values]  # fmt: skip
        changed, read = list(self.used(written)), list(self.used(values.values()))
        for memory, tensor in read:
            memory.read(tensor)
        run = True
        if len(changed) == 1 and not read and _is_repeatable(func, args, kwargs):
            run = _note(changed[0][0], func, args, kwargs)
        else:
            for memory, tensor in changed:
                memory.fix(tensor)
        found = func(*args, **kwargs) if run else args[0]
        if changed or read:
            self._forget()
        return found

    def _empty(self, func: Any, size: Sequence[int], **kwargs: Any) -> Tensor:
        """`torch.empty`; a large one is given pages of its own."""
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        length = math.prod(size) * dtype.itemsize
        usual = (None, False, torch.strided, torch.contiguous_format)
        plain = all(value in usual for key, value in kwargs.items() if key not in _WHAT)
        on_cpu = torch.device(kwargs.get("device") or "cpu").type == "cpu"
        if length < _LARGE or not plain or not on_cpu or not hasattr(mmap, "MADV_DONTNEED"):
            found: Tensor = func(size, **kwargs)
            return found
        pages = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        storage = torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()
        self._memories[storage.data_ptr()] = _Memory(pages)
        empty = torch.empty(0, dtype=dtype)
        return empty.set_(storage, 0, tuple(size), torch.empty(size, device="meta").stride())

    def used(self, values: Iterable[Any]) -> Iterator[tuple[_Memory, Tensor]]:
        """The large tensors among an operator's arguments, and their memory."""
        for value in values:
            if isinstance(value, (list, tuple)):
                yield from self.used(value)
            elif isinstance(value, Tensor) and _is_plain(value):
                address = value.untyped_storage().data_ptr()
                if (memory := self._memories.get(address)) is not None:
                    self._memories.move_to_end(address)
                    yield memory, value

    def _forget(self) -> None:
        """Forget what was not used for longest, until the rest is small enough."""
        there = [m for m in self._memories.values() if m.there and not m.fixed]
        taken = sum(len(memory.pages) for memory in there)
        for memory in there:
            if taken <= self.most:
                break
            memory.forget()
            taken -= len(memory.pages)


_WAYS = (
    Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.tolist, Tensor.storage,
    Tensor.__deepcopy__, Tensor.__reduce_ex__,
)  # fmt: skip


class _Unseen(TorchFunctionMode):
    """Lets a tensor keep its values that is handed to code which no operator is seen of."""

    def __init__(self, tensors: Recomputing) -> None:
        super().__init__()
        self._tensors = tensors

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _WAYS:
            with _disable_current_modes():  # what is done again is not to be noted again
                for memory, tensor in self._tensors.used(args):
                    memory.fix(tensor)
        return func(*args, **(kwargs or {}))


def _is_plain(tensor: Tensor) -> bool:
    """Whether its numbers lie in memory as they are."""
    own = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return own and tensor.is_cpu and tensor.layout == torch.strided


def _is_repeatable(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether all that an operator needs can be kept."""
    others = [v for v in (*args[1:], *kwargs.values()) if isinstance(v, Tensor)]
    return _name(func) in _CHANGES and all(_is_plain(v) and v.nbytes < _LARGE for v in others)


def _note(memory: _Memory, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Note an operator that is about to write. Whether it is to run now, or will be with others."""
    tensor, draws = args[0], torch.Tag.nondeterministic_seeded in func.tags
    part = _Part.of(tensor)
    if _name(func) in _FILLS and tensor.is_contiguous() and tensor.nbytes == len(memory.pages):
        memory.changes.clear()
        memory.there = memory.start = True
    elif draws:  # now, as others draw after it
        memory.remember(tensor)
    generator = kwargs.get("generator") or torch.default_generator
    rest = tuple(v.clone() if isinstance(v, Tensor) else v for v in args[1:])
    state = generator.get_state() if draws else None
    memory.changes.append(_Change(func, part, rest, kwargs, generator, state))
    memory.start &= memory.there
    return memory.there


def _name(func: Any) -> str:
    name: str = func._schema.name
    return name.partition("::")[2]
