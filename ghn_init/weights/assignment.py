"""Writing tensors into a model's parameters: completely, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.weights.meta import OwnValues, is_on_meta, own_values
from ghn_init.weights.places import Place, meta_tensors, real_like
from ghn_init.weights.tiling import fill

_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
"""Of parameters that a layer computes with as they are; 8-bit numbers have a scale beside them."""


def unfit_parameters(model: nn.Module) -> dict[str, str]:
    """Parameters that predicted values cannot be written into, with the reason."""
    unfit = {}
    shared = _shared_memory(model)
    for name, param in model.named_parameters():
        if param.dtype not in _DTYPES:
            kind = str(param.dtype).removeprefix("torch.")
            unfit[name] = f"its dtype is {kind}: only real floating-point parameters are predicted"
        elif type(param).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            unfit[name] = f"it is a {type(param).__name__}, which stores its values in its own way"
        elif param.layout != torch.strided:
            layout = str(param.layout).removeprefix("torch.")
            unfit[name] = f"its layout is {layout}: only dense parameters are predicted"
        elif name in shared:
            unfit[name] = f"it shares its memory with {shared[name]}"
    return unfit


def _shared_memory(model: nn.Module) -> dict[str, str]:
    """Parameters that lie in an earlier one's memory: views of it, or copies tied by `.data`."""
    by_storage: dict[int, list[tuple[int, str, Tensor]]] = {}
    for order, (name, param) in enumerate(model.named_parameters()):
        if param.layout == torch.strided and param.numel():
            storage = param.untyped_storage()._cdata
            by_storage.setdefault(storage, []).append((order, name, param))
    shared: dict[str, str] = {}
    for members in by_storage.values():
        for cluster in _overlapping(members) if len(members) > 1 else ():
            first, *others = sorted(cluster)
            shared |= {name: first[1] for _, name in others}
    return shared


def _overlapping(members: list[tuple[int, str, Tensor]]) -> Iterator[list[tuple[int, str]]]:
    """Groups of (order, name) of tensors of one storage that overlap."""
    spans = []
    for order, name, tensor in members:
        start = int(tensor.storage_offset()) * tensor.element_size()
        spans.append((start, start + _extent(tensor), order, name))
    group: list[tuple[int, str]] = []
    reached = 0
    for start, end, order, name in sorted(spans):
        if group and start >= reached:
            yield group
            group = []
        group.append((order, name))
        reached = max(reached, end)
    yield group


def _extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to its last."""
    steps = zip(tensor.size(), tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.element_size()


def assign(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    seed: int,
    own: OwnValues | None = None,
) -> tuple[str, ...]:
    """Write tensors into the parameters of that name.

    Storage, dtype, device and `requires_grad` are kept, and no memory is shared with the tensors
    or between parameters; tied parameters are one parameter. Tensors on the meta device become
    real ones, where the given tensors are, without ceasing to be the same objects; those that are
    not among the tensors get their own initialization.

    Arguments:
        model: the model.
        tensors: by parameter name; none of them names one of `unfit_parameters`.
        seed: of what a model on the meta device initializes itself.
        own: its own values, if they are known already.

    Returns: notes for the report.

    Raises:
        GHNInitError: a parameter cannot be written, or the values of a tensor on the meta device
            cannot be had; nothing has been written then.
    """
    params = dict(model.named_parameters())
    for name in tensors:
        check_writable(name, params[name])
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch._C.DisableTorchFunctionSubclass(),
    ):
        exchanges, notes = _exchanges(model, tensors, seed, own)
        on_meta = {name for name in tensors if params[name].is_meta}
        for name in on_meta:
            fill(exchanges[id(params[name])].new, tensors[name])
        with _off_meta(model, exchanges.values()):
            for name in tensors.keys() - on_meta:
                fill(params[name], tensors[name])
    return notes


def write_buffers(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Write tensors into the buffers of that name and size, as `assign` does into parameters.

    Returns: their names.
    """
    buffers = dict(model.named_buffers())
    with torch.inference_mode(False), torch.no_grad():
        for name, tensor in tensors.items():
            buffers[name].copy_(tensor)
    return tuple(tensors)


# -- what can be written


def check_writable(name: str, param: Tensor) -> None:
    """Refuse a parameter that cannot be written.

    Raises:
        GHNInitError: saying why.
    """
    problem = ""
    if param.is_inference():
        problem = "was made under torch.inference_mode(): build the model outside of it"
    elif _overlaps_itself(param):
        problem = "is an expanded tensor, several of whose entries are one number: clone() it first"
    elif not _memory_is_writable(param):
        problem = "lies in read-only memory (a file mapped into memory, say): clone() it first"
    if problem:
        raise GHNInitError(f"{name} cannot be written, as it {problem}.")


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether two entries may be one number in memory."""
    if tensor.is_contiguous():
        return False
    reached = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.size(), strict=True)):
        if size > 1:
            if stride <= reached:
                return True
            reached += (size - 1) * stride
    return False


def _memory_is_writable(tensor: Tensor) -> bool:
    """Whether writing would not end the process; for memory that torch has not allocated itself."""
    foreign = tensor.device.type == "cpu" and not tensor.untyped_storage().resizable()
    if not foreign or not tensor.numel() or not hasattr(os, "readv"):
        return True
    reader, writer = os.pipe()
    try:
        first = tensor.data_ptr()
        for address in (first, first + _extent(tensor) - 1):
            byte = (ctypes.c_char * 1).from_address(address)
            os.write(writer, bytes(byte))
            os.readv(reader, [byte])  # the same byte; where a write would fault, so does the kernel
    except OSError:
        return False
    finally:
        os.close(reader)
        os.close(writer)
    return True


# -- off the meta device


@dataclass(frozen=True)
class _Exchange:
    """A tensor on meta, where the modules hold it, and the real one that takes its place."""

    old: Tensor
    places: tuple[Place, ...]
    new: Tensor

    def make(self, model: nn.Module) -> None:
        """Exchange them; once more, and all is as before.

        The two objects swap what they are, so that a parameter stays the same object wherever it is
        held: tied, in a list, or in an optimizer. A buffer of which there are views refuses that:
        the modules hold the other object then.
        """
        if weakref.getweakrefs(self.old):  # of an LSTM; they stay right, as the object stays
            torch._C._swap_tensor_impl(self.old, self.new)
            return
        if isinstance(self.old, nn.Parameter) or self.old._use_count() == 1:  # type: ignore[attr-defined]
            torch.utils.swap_tensors(self.old, self.new)
            return
        for place in self.places:
            holder = place.holder(model)
            held = holder[place.keys[-1]]
            holder[place.keys[-1]] = self.new if held is self.old else self.old


def _exchanges(
    model: nn.Module, tensors: Mapping[str, Tensor], seed: int, own: OwnValues | None
) -> tuple[dict[int, _Exchange], tuple[str, ...]]:
    """What is to be done to take a model off meta, by the id of each tensor; notes for the report.

    The real tensors have their values but for those that are going to be written.
    """
    places = meta_tensors(model) if is_on_meta(model) else {}
    if not places:
        return {}, ()
    needed = (own or own_values(model, seed, tensors)).without(model, tensors)
    device = next((t.device for t in tensors.values()), torch.device("cpu"))
    memory: dict[int, torch.UntypedStorage] = {}
    exchanges: dict[int, _Exchange] = {}
    for place, old in places.items():
        if id(old) in exchanges:
            continue
        try:
            new = real_like(old, device, memory)
            if (value := needed.on_meta.get(place)) is not None:
                new = value.to(new) if _overlaps_itself(old) else new.copy_(value)
        except RuntimeError as error:
            raise GHNInitError(f"{place} cannot be given memory: {error}") from error
        held = tuple(other for other, tensor in places.items() if tensor is old)
        exchanges[id(old)] = _Exchange(old, held, _in_the_guise_of(old, new))
    return exchanges, needed.notes()


def _in_the_guise_of(old: Tensor, new: Tensor) -> Tensor:
    """The new tensor with the class and attributes of the old one."""
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, old.requires_grad)
    new.__class__ = type(old)
    new.__dict__.update(vars(old))
    return new


@contextlib.contextmanager
def _off_meta(model: nn.Module, exchanges: Collection[_Exchange]) -> Iterator[None]:
    """Make the exchanges; and undo them if one fails, or what is done with the model then."""
    done: list[_Exchange] = []
    try:
        for exchange in exchanges:
            exchange.make(model)
            done.append(exchange)
        yield
    except BaseException as error:
        for exchange in done:
            exchange.make(model)
        if isinstance(error, (RuntimeError, TypeError)):
            raise GHNInitError(
                f"the model cannot be taken off the meta device ({error}): build it on a real one."
            ) from error
        raise
