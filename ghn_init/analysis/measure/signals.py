"""What flows through a model: activations forward, gradients backward (GHN-3 paper, Figure 6)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ghn_init.analysis.images import Batch, run_on
from ghn_init.errors import GHNInitError

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)

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


def use_batch_statistics(model: nn.Module) -> None:
    """Evaluation mode, except for batch norms."""
    model.eval()
    for module in model.modules():
        if isinstance(module, _BATCH_NORMS):
            module.train()


@contextlib.contextmanager
def watching(model: nn.Module, layers: Sequence[str], record: Any) -> Iterator[None]:
    """In the block, `record(name, output)` is called with the output of each layer.

    `record` may return a tensor to go on with in place of the output.
    """
    modules = dict(model.named_modules())
    handles = []
    try:
        for name in layers:
            module = _source(name, modules)
            if module is not None:
                handles.append(module.register_forward_hook(_hook(name, record)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _source(layer: str, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module whose output is the layer's output, if there is one.

    `nn.MultiheadAttention` uses its projections' weights without calling a module: its own output
    is that of the last one, `out_proj`, and the outputs of the others do not come out.
    """
    owner = layer.rpartition(".")[0]
    parent = modules[owner.rpartition(".")[0]]
    if isinstance(modules[owner], nn.MultiheadAttention):
        return None
    return parent if isinstance(parent, nn.MultiheadAttention) else modules[owner]


def _hook(name: str, record: Any) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(module, nn.MultiheadAttention):
            return record(name, output)
        replaced = record(name, output[0])
        return None if replaced is None else (replaced, output[1])

    return hook


def double_differentiable() -> contextlib.AbstractContextManager[None]:
    """Attention as plain matrix products: fused kernels have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def first_tensor(output: Any) -> Tensor:
    """A model's main output: the first tensor in whatever it returns.

    Raises:
        GHNInitError: there is none.
    """
    for leaf in torch.utils._pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            return leaf
    raise GHNInitError(f"the model returns a {type(output).__name__} without a tensor in it.")


def batch_loss(output: Any, labels: Tensor) -> Tensor:
    """Cross-entropy of a classifier's output; of any other output the mean square.

    Raises:
        GHNInitError: a label that the classifier has no output for.
    """
    scores = first_tensor(output)
    if scores.dim() != 2:
        return scores.square().mean()
    if labels.max() >= scores.shape[1]:
        raise GHNInitError(
            f"there are labels up to {labels.max()} and the model has {scores.shape[1]} outputs: "
            "build it for as many classes as the data has."
        )
    return F.cross_entropy(scores, labels.to(scores.device))
