"""Where a hypernetwork computes."""

from __future__ import annotations

import torch
from torch import Tensor

from ghn_init.errors import GHNInitError


def usable_device(device: str | torch.device) -> torch.device:
    """A device, if this machine and this torch have it.

    Raises:
        GHNInitError: they have not.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GHNInitError(f"device {device!r} cannot be used: {reason}") from error


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on another device, in order with what runs there.

    A GPU of CUDA is not waited for, as it would be by `tensor.to(device)`. From pageable memory
    that is safe: the numbers have left the tensor when the call returns.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
