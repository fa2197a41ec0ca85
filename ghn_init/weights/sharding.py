"""Models that are spread over processes: who they are, what each holds, and a whole twin."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.graph.copies import Copies
from ghn_init.graph.tracing import SHARDING

BEFORE = "apply before sharding, or load the files of an export"
"""What to do instead."""

try:  # all of it is there from torch 2.6 on
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.fsdp._runtime_utils import _reshard
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
except ImportError as error:
    raise GHNInitError(
        f"the model is sharded, and torch is {torch.__version__}: {BEFORE}, or use torch 2.6."
    ) from error


def process_groups(model: nn.Module) -> list[dist.ProcessGroup]:
    """The processes of a model: those of a row, or those of the rows and columns of a grid.

    A forward pass leaves some parameters whole; here they become parts again.

    Raises:
        GHNInitError: it cannot be told.
    """
    found = []
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for module in _fsdp1(model):
        handle = module._handle
        if handle.uses_sharded_strategy and hasattr(handle.flat_param, "_full_param_padded"):
            _reshard(module, handle, True)
        between = getattr(module, "_inter_node_pg", None)
        found.append([module.process_group, *([between] if between else [])])
    for param in model.parameters():
        if isinstance(param, DTensor):
            mesh = param.device_mesh
            found.append([mesh.get_group(axis) for axis in range(mesh.ndim)])
    if not found:
        raise _unknown("the model")
    return max(found, key=lambda groups: math.prod(group.size() for group in groups))


def _fsdp1(model: nn.Module) -> list[Any]:
    return [
        module
        for module in model.modules()
        if isinstance(module, FullyShardedDataParallel) and module._handle is not None
    ]


def _unknown(name: str) -> GHNInitError:
    return GHNInitError(f"{name} is sharded in no way that apply knows: {BEFORE}.")


# -- what a process holds


@dataclass(frozen=True)
class Part:
    """What this process holds of a tensor.

    Arguments:
        shape: of the whole tensor.
        held: the part, where it is.
        cut: whole tensor -> the part of it that this process is to hold.
        gather: gives the whole tensor; all processes have to call it. None: it is `held`.
    """

    shape: tuple[int, ...]
    held: Tensor
    cut: Callable[[Tensor], Tensor]
    gather: Callable[[], Tensor] | None = None


def parts_of(model: nn.Module) -> dict[int, Part]:
    """The parts of all parameters and buffers, by the `id` of what the model has in their place.

    Raises:
        GHNInitError: one is sharded in a way that is not supported, or has no values.
    """
    parts = {id(p): part for module in _fsdp1(model) for p, part in _flat_parts(module)}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise GHNInitError(
                f"{name} is on the meta device, and the model is sharded: give it memory and "
                "values first, as by to_empty() and its own initialization; or load the files of "
                "an export."
            )
        if id(tensor) not in parts:
            parts[id(tensor)] = _own_part(name, tensor)
    return parts


def _own_part(name: str, tensor: Tensor) -> Part:
    """The part of a tensor that is sharded by itself, or not at all."""
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return Part(shape, tensor.detach(), lambda whole: whole)
    mesh, placements = tensor.device_mesh, tensor.placements
    held = tensor.to_local().detach()
    size, start = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    where = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
    if any(p.is_partial() for p in placements) or size != held.shape or type(held) is not Tensor:
        raise _unknown(name)

    def gather() -> Tensor:
        placed = DTensor.from_local(
            held.to(mesh.device_type), mesh, placements,
            run_check=False, shape=tensor.shape, stride=tensor.stride(),
        )  # fmt: skip
        return placed.full_tensor()

    return Part(shape, held, lambda whole: whole[where], gather)


def _flat_parts(module: Any) -> list[tuple[nn.Parameter, Part]]:
    """FSDP1 lays a module's parameters one after the other, and cuts that row."""
    flat = module._handle.flat_param
    if flat._params is None or any(type(param) is not nn.Parameter for param in flat._params):
        raise GHNInitError(
            "FullyShardedDataParallel keeps the parameters as one flat parameter: build it with "
            f"use_orig_params=True, and without tensor parallelism; or {BEFORE}."
        )
    if not module._handle.uses_sharded_strategy:
        return []  # every process has all of it
    rows = zip(flat._params, flat._shapes, flat._shard_param_infos, strict=True)
    return [(param, _flat_part(module, param, shape, info)) for param, shape, info in rows]


def _flat_part(module: Any, param: nn.Parameter, shape: torch.Size, info: Any) -> Part:
    held, where = param.detach().view(-1), slice(0, 0)
    if info.in_shard:
        where = slice(info.intra_param_start_idx, info.intra_param_end_idx + 1)

    def gather() -> Tensor:
        whole = torch.zeros(shape.numel(), dtype=held.dtype, device=module.compute_device)
        whole[where] = held.to(whole.device)
        dist.all_reduce(whole.view(torch.uint8), group=module.process_group)  # zeros elsewhere
        return whole.view(shape)

    return Part(tuple(shape), held, lambda whole: whole.reshape(-1)[where], gather)


# -- the twin


def twin_of(model: nn.Module, tensors: Mapping[int, Tensor]) -> nn.Module:
    """A copy of a model without what shards it: wrappers, classes, hooks and states.

    Arguments:
        model: the model.
        tensors: what takes the place of its parameters and buffers, by their `id`.
    """
    return _Twin(model, dict(tensors)).model


class _Twin(Copies):
    def __call__(self, value: Any) -> Any:
        copied = id(value) in self._known or isinstance(value, nn.Module) or not _shards(value)
        return super().__call__(value) if copied else None

    def _module(self, module: nn.Module) -> nn.Module:
        if isinstance(module, FullyShardedDataParallel):
            inner: nn.Module = self(module.module)
            return inner
        copied = super()._module(module)
        copied.__class__ = next(c for c in type(module).__mro__ if not _is_for_sharding(c))
        for hooks in (copied._forward_pre_hooks, copied._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook is None]:
                del hooks[key]
        return copied


def _shards(value: Any) -> bool:
    """Whether an object, a function or a method is one of those that shard a model."""
    value = value.func if isinstance(value, functools.partial) else value
    named = isinstance(getattr(value, "__qualname__", None), str)
    return _is_for_sharding(value if named else type(value))


def _is_for_sharding(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith(SHARDING)
