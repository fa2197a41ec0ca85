"""What flows through a model: activations forward, gradients backward (GHN-3 paper, Figure 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ghn_init.images.batches import Batch
from ghn_init.methods.running import (
    batch_loss,
    double_differentiable,
    run_on,
    use_batch_statistics,
    watching,
)

_SMALL = 1e-3
"""Absolute value up to which a scale counts as nearly zero."""


@dataclass(frozen=True)
class Signals:
    """Signals of one batch, by layer.

    Arguments:
        loss: of the batch.
        variance: of each layer's output, over all its values (population variance).
        gradient_norm: Euclidean norm of the loss's gradient with respect to each weight.
    """

    loss: float
    variance: Mapping[str, float]
    gradient_norm: Mapping[str, float]


def signals(model: nn.Module, layers: Sequence[str], batch: Batch) -> Signals:
    """Run one batch forward and backward.

    Batch norm uses the batch's statistics (its running ones say nothing before training); dropout
    and stochastic depth are off.

    Arguments:
        model: its gradients and running statistics are changed.
        layers: names of weights. A layer whose module is not called, like the projection into
            queries, keys and values in `nn.MultiheadAttention`, has no variance.
        batch: images and labels.
    """
    variance: dict[str, float] = {}

    def record(name: str, output: Tensor) -> None:
        variance.setdefault(name, output.detach().float().var(correction=0).item())

    params = dict(model.named_parameters())
    use_batch_statistics(model)
    model.requires_grad_(True).zero_grad()
    with watching(model, layers, record), double_differentiable():
        loss = batch_loss(run_on(model, batch.images.to(next(model.parameters()))), batch.labels)
    loss.backward()
    gradients = {name: params[name].grad for name in layers}
    norms = {name: g.norm().item() for name, g in gradients.items() if g is not None}
    return Signals(loss.item(), variance, norms)


def small_scales(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that scale channels and are nearly zero.

    Layer scale (Touvron et al., 2021) and the last norm of a residual branch (Goyal et al., 2017)
    start so. A gradient passes through them to whatever stands before, and is as small.
    """
    return tuple(
        name
        for name, param in model.named_parameters()
        if param.numel() == max(param.shape, default=1)  # a vector, perhaps of shape (C, 1, 1)
        and "bias" not in name.rpartition(".")[2]
        and param.abs().max() <= _SMALL
    )


@torch.no_grad()
def set_to_one(model: nn.Module, names: Sequence[str]) -> None:
    """Fill parameters with ones."""
    for name in names:
        model.get_parameter(name).fill_(1.0)
