"""Spectral norm: its singular vectors belong to a weight, and follow a new one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

_MOST_STEPS = 1000
_CONVERGED = 1e-6


def update_spectral_norms(model: nn.Module, written: Collection[str]) -> tuple[str, ...]:
    """Bring the buffers u and v of spectral norms in line with the weights that were written.

    In evaluation mode a weight W is divided by u'Wv, which is its largest singular value only if u
    and v are its singular vectors (Miyato et al., 2018, https://arxiv.org/abs/1802.05957).

    Arguments:
        model: its parameters have their new values.
        written: names of the parameters that have them.

    Returns: names of the buffers that changed.
    """
    changed: list[str] = []
    with torch.no_grad():
        for found in _normalized(model, written):
            _power_iterations(found.matrix, found.u, found.v)
            changed += found.buffers
    return tuple(changed)


def has_spectral_norms(model: nn.Module) -> bool:
    """Whether there are buffers that `update_spectral_norms` might change."""
    return any(_normalized(model, [name for name, _ in model.named_parameters()]))


@dataclass(frozen=True)
class _Normalized:
    """A weight that is divided by its largest singular value.

    Arguments:
        buffers: names of u and v.
        matrix: the weight, one row for each output.
        u, v: its singular vectors.
    """

    buffers: tuple[str, ...]
    matrix: Tensor
    u: Tensor
    v: Tensor


def _normalized(model: nn.Module, written: Collection[str]) -> Iterator[_Normalized]:
    """Those of them that are made of a parameter that was written."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm) and f"{prefix}{hook.name}_orig" in written:
                weight, u, v = (getattr(module, f"{hook.name}_{x}") for x in ("orig", "u", "v"))
                yield _Normalized(
                    (f"{prefix}{hook.name}_u", f"{prefix}{hook.name}_v"),
                    hook.reshape_weight_to_matrix(weight),
                    u,
                    v,
                )
        if isinstance(module, ParametrizationList):
            yield from _parametrized(prefix, module, written)


def _parametrized(
    prefix: str, steps: ParametrizationList, written: Collection[str]
) -> Iterator[_Normalized]:
    if not any(prefix + name in written for name, _ in steps.named_parameters()):
        return
    names = ["original"] if steps.is_tensor else [f"original{i}" for i in range(steps.ntensors)]
    value = [getattr(steps, name) for name in names]  # the first step takes all that is stored
    last = max((i for i, step in enumerate(steps) if isinstance(step, _SpectralNorm)), default=-1)
    for i, step in enumerate(steps):
        if isinstance(step, _SpectralNorm) and hasattr(step, "_u"):
            buffers = (f"{prefix}{i}._u", f"{prefix}{i}._v")
            yield _Normalized(buffers, step._reshape_weight_to_matrix(value[0]), step._u, step._v)
        if i < last:
            value = [step(*value)]


def _power_iterations(matrix: Tensor, u: Tensor, v: Tensor) -> None:
    """Turn u and v into the first left and right singular vector, in place."""
    matrix = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    left = F.normalize(u.to(matrix.dtype), dim=0)
    if not left.any():
        left = torch.ones_like(left)
    found = 0.0
    for _ in range(_MOST_STEPS):
        right = F.normalize(matrix.mT @ left, dim=0)
        product = matrix @ right
        last, found = found, float(product.norm())
        left = F.normalize(product, dim=0)
        if abs(found - last) <= _CONVERGED * found:
            break
    u.copy_(left)
    v.copy_(right)
