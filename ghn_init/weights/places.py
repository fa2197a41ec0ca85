"""Where a model holds its tensors, and memory in the place of meta tensors."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Place(NamedTuple):
    """Where a module holds a tensor: the module's name, and the keys from its `vars` on."""

    module: str
    keys: tuple[Hashable, ...]

    def __str__(self) -> str:
        inner = self.keys[1:] if self.keys[0] in ("_parameters", "_buffers") else self.keys
        return ".".join(map(str, (self.module, *inner) if self.module else inner))

    def within(self, name: str) -> Place:
        """The same place, seen from a module of that name."""
        return Place(self.module[len(name) :].removeprefix("."), self.keys)

    def find(self, root: nn.Module) -> Tensor | None:
        """The tensor at this place of a model, if there is one."""
        try:
            held = self.holder(root)[self.keys[-1]]
        except (AttributeError, LookupError, TypeError):
            return None
        return held if isinstance(held, Tensor) else None

    def holder(self, root: nn.Module) -> Any:
        """The dictionary or list in which a model has the tensor."""
        held: Any = vars(root.get_submodule(self.module))
        for key in self.keys[:-1]:
            held = held[key]
        return held


def meta_tensors(model: nn.Module) -> dict[Place, Tensor]:
    """Every tensor on meta that the modules hold: parameters, buffers, and plain attributes."""
    return {
        Place(name, keys): tensor
        for name, module in model.named_modules(remove_duplicate=False)
        for keys, tensor in held_tensors(vars(module))
        if tensor.is_meta
    }


def held_tensors(
    value: Any, keys: tuple[Hashable, ...] = ()
) -> Iterator[tuple[tuple[Hashable, ...], Tensor]]:
    """Tensors in nested containers (a module's `vars`, say), with the keys that lead to them."""
    if isinstance(value, Tensor):
        yield keys, value
    elif len(keys) < 5:  # containers that hold themselves end somewhere
        if isinstance(value, Mapping):
            items: Any = value.items()
        else:
            items = enumerate(value) if isinstance(value, (list, tuple)) else ()
        for key, item in list(items):
            yield from held_tensors(item, (*keys, key))


def real_like(
    tensor: Tensor,
    device: torch.device,
    memory: dict[int, torch.UntypedStorage],
    fill: int | None = None,
) -> Tensor:
    """A tensor in real memory; views of one storage on meta become views of one real one.

    Arguments:
        tensor: on meta.
        device: where the memory is.
        memory: the storages there are, by those on meta.
        fill: what every byte is. Default: whatever was in the memory before.
    """
    there = tensor.untyped_storage()
    if there._cdata not in memory:
        raw = torch.empty(there.nbytes(), dtype=torch.uint8, device=device)
        memory[there._cdata] = (raw if fill is None else raw.fill_(fill)).untyped_storage()
    real = torch.empty(0, dtype=tensor.dtype, device=device)
    return real.set_(memory[there._cdata], tensor.storage_offset(), tensor.size(), tensor.stride())
