"""Moving what was computed on the CPU to where a hypernetwork computes."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on another device, in order with what runs there.

    A GPU of CUDA is not waited for, as it would be by `tensor.to(device)`. From pageable memory
    that is safe: the numbers have left the tensor when the call returns.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
