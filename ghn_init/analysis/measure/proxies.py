"""Zero-cost proxies: scores of an untrained network from one mini-batch.

The metrics that Abdelfattah et al. (2021) compare, by the definitions of their Section 3.2; and the
plain and synflow-bn of Table 13 of the GHN-3 paper, which are variants of two of them. What is
summed over the network there is summed here over the convolution and linear weights. There is no
maintained package for them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.images.batches import Batch
from ghn_init.methods.running import (
    batch_loss,
    double_differentiable,
    first_tensor,
    run_on,
    use_batch_statistics,
    watching,
)

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

_JITTER = 1e-5
"""k of jacobcov: keeps the logarithm finite where the correlations are singular."""


def zero_cost(metric: str, model: nn.Module, layers: Sequence[str], batch: Batch) -> float:
    """The score of a model; more is better.

    Batch norm uses the batch's statistics; dropout and stochastic depth are off.

    Arguments:
        metric: one of `PROXIES`.
        model: it is left as it is.
        layers: names of the weights that count.
        batch: images and labels.

    Raises:
        GHNInitError: an unknown metric, or labels that the model has no outputs for; or the model
            has no such score: a derivative is missing, or the score is not finite.
    """
    if metric not in PROXIES:
        raise GHNInitError(f"unknown metric {metric!r}: choose among {', '.join(PROXIES)}.")
    ready = copy.deepcopy(model).requires_grad_(True)
    use_batch_statistics(ready)
    batch = replace(batch, images=batch.images.to(next(ready.parameters())))
    try:
        with double_differentiable():
            score = PROXIES[metric](ready, layers, batch)
    except RuntimeError as error:
        raise GHNInitError(str(error).splitlines()[0]) from error
    if not math.isfinite(score):
        raise GHNInitError("the score is not finite")
    return score


def _gradnorm(model: nn.Module, layers: Sequence[str], batch: Batch) -> float:
    """Sum of the weights' gradient norms."""
    gradients = _gradients(_loss(model, batch), _weights(model, layers))
    return float(sum(g.norm().item() for g in gradients))


def _snip(model: nn.Module, layers: Sequence[str], batch: Batch) -> float:
    """Sum of |gradient * weight| (Lee et al., 2019)."""
    weights = _weights(model, layers)
    gradients = _gradients(_loss(model, batch), weights)
    return sum((g * w).abs().sum().item() for g, w in zip(gradients, weights, strict=True))


def _plain(model: nn.Module, layers: Sequence[str], batch: Batch) -> float:
    """Sum of gradient * weight: snip without its absolute values."""
    weights = _weights(model, layers)
    gradients = _gradients(_loss(model, batch), weights)
    return sum((g * w).sum().item() for g, w in zip(gradients, weights, strict=True))


def _grasp(model: nn.Module, layers: Sequence[str], batch: Batch) -> float:
    """Sum of -(H g) * weight, H being the loss's Hessian and g its gradient (Wang et al., 2020)."""
    weights = _weights(model, layers)
    gradients = _gradients(_loss(model, batch), weights, create_graph=True)
    product = torch.stack([(g * g.detach()).sum() for g in gradients]).sum()
    curved = _gradients(product, weights)
    return -sum((h * w).sum().item() for h, w in zip(curved, weights, strict=True))


def _synflow(model: nn.Module, layers: Sequence[str], batch: Batch) -> float:
    """Sum of gradient * weight for R = the sum of the outputs (Tanaka et al., 2020).

    All parameters are replaced by their absolute values, the input by ones, and norms are left
    out: data plays no part. In double precision, as R grows with the depth.
    """
    model.eval()  # a batch norm in training mode would refuse the single input
    for module in model.modules():
        if isinstance(module, _NORMS):
            module.forward = nn.Identity().forward  # type: ignore[method-assign]
    return _flow(model, layers, torch.ones_like(batch.images[:1]))


def _synflow_bn(model: nn.Module, layers: Sequence[str], batch: Batch) -> float:
    """`_synflow` with the norms left in: batch norm uses the statistics of the input of ones.

    The input is there twice, and half of R is taken. That changes nothing, but that batch norm
    can also be computed where a layer sees a single position.
    """
    return _flow(model, layers, torch.ones_like(batch.images[:2])) / 2


def _flow(model: nn.Module, layers: Sequence[str], ones: Tensor) -> float:
    model.double()
    with torch.no_grad():
        for param in model.parameters():
            param.abs_()
    weights = _weights(model, layers)
    gradients = _gradients(first_tensor(run_on(model, ones.double())).sum(), weights)
    return sum((g * w).sum().item() for g, w in zip(gradients, weights, strict=True))


def _fisher(model: nn.Module, layers: Sequence[str], batch: Batch) -> float:
    """Sum over channels of the mean over the batch of (activation . gradient)^2 / 2.

    The product is summed over a channel's places (Theis et al., 2018; Turner et al., 2020).
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> Tensor:
        outputs.setdefault(name, output)
        return output.clone()  # what follows may work in place

    with watching(model, layers, keep):
        loss = _loss(model, batch)
    dims = {name: 1 if w.dim() > 2 else -1 for name, w in model.named_parameters()}
    gradients = _gradients(loss, list(outputs.values()))
    return sum(
        0.5 * _by_channel(z * g, dims[name]).square().sum().item() / len(batch.images)
        for (name, z), g in zip(outputs.items(), gradients, strict=True)
    )


def _by_channel(products: Tensor, channel: int) -> Tensor:
    """`(B, ..., C, ...)` -> `(B, C)`, summed over all the rest."""
    return products.movedim(channel, 1).flatten(2).sum(dim=2) if products.dim() > 2 else products


def _jacobcov(model: nn.Module, layers: Sequence[str], batch: Batch) -> float:
    """-sum(log(v + k) + 1 / (v + k)) over the eigenvalues v of the correlations between the
    images' input gradients (Mellor et al., 2020)."""
    images = batch.images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(first_tensor(run_on(model, images)).sum(), images)
    correlations = torch.corrcoef(gradient.flatten(1).double())
    v = torch.linalg.eigvalsh(correlations) + _JITTER
    return float(-(v.log() + 1 / v).sum())


PROXIES: dict[str, Callable[[nn.Module, Sequence[str], Batch], float]] = {
    "gradnorm": _gradnorm,
    "snip": _snip,
    "fisher": _fisher,
    "plain": _plain,
    "grasp": _grasp,
    "synflow": _synflow,
    "synflow-bn": _synflow_bn,
    "jacobcov": _jacobcov,
}
"""The metrics of `zero_cost`, by name."""


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return batch_loss(run_on(model, batch.images), batch.labels)


def _weights(model: nn.Module, layers: Sequence[str]) -> list[Tensor]:
    params = dict(model.named_parameters())
    return [params[name] for name in layers]


def _gradients(
    output: Tensor, inputs: Sequence[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Gradients; zeros for what the output does not depend on (auxiliary heads)."""
    return torch.autograd.grad(
        output, inputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
