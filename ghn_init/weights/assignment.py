"""Writing tensors into a model's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.weights.tiling import fill


def assign(model: nn.Module, tensors: Mapping[str, Tensor], seed: int) -> None:
    """Write tensors into the parameters of that name.

    Storage, dtype, device and `requires_grad` are kept, and no memory is shared with the tensors
    or between parameters; tied parameters are one parameter. A model on the meta device is given
    memory where the tensors are; its modules initialize what is not among the tensors.

    Arguments:
        model: checked by `check_writable`.
        tensors: by parameter name.
        seed: of what the modules initialize.
    """
    device = next((t.device for t in tensors.values()), torch.device("cpu"))
    _materialise(model, device, seed)
    params = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            fill(params[name], tensor)


def check_writable(model: nn.Module, names: Mapping[str, object]) -> None:
    """Refuse a model that `assign` could not write completely.

    Arguments:
        model: the model.
        names: of the parameters that will be written.

    Raises:
        GHNInitError: a parameter was made under inference mode; or one on the meta device will
            not be written and its module has no `reset_parameters` to initialize it.
    """
    for name, param in model.named_parameters():
        if param.is_inference():
            raise GHNInitError(
                f"{name} was made under torch.inference_mode() and cannot be written: build the "
                "model outside of it."
            )
    for path, module in _modules_on_meta(model):
        own = {
            **dict(module.named_parameters(path, recurse=False)),
            **dict(module.named_buffers(path, recurse=False)),
        }
        orphans = [name for name, t in own.items() if t.is_meta and name not in names]
        if orphans and not callable(getattr(module, "reset_parameters", None)):
            raise GHNInitError(
                f"{orphans[0]} is on the meta device and not predicted, and "
                f"{type(module).__name__} has no reset_parameters() to initialize it: build the "
                "model on a real device, or give it memory and values first."
            )


def _modules_on_meta(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(tensor.is_meta for tensor in own):
            yield path, module


def _materialise(model: nn.Module, device: torch.device, seed: int) -> None:
    """Give modules on the meta device memory, and their own initialization."""
    modules = [module for _, module in _modules_on_meta(model)]
    if not modules:
        return
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        for module in modules:
            module.to_empty(device=device, recurse=False)
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
