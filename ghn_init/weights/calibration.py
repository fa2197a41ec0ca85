"""Running statistics of batch norms, from a few batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghn_init.errors import GHNInitError


def calibrate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Set the running statistics of a model's batch norms from a few batches, in place.

    A predicted model has running means of 0 and variances of 1, as a new one has, and they do not
    fit its weights: in evaluation mode its accuracy means nothing until they are set. Training sets
    them anyway. Afterwards each mean and variance is the average over the batches
    (`momentum=None` in `torch.nn.BatchNorm2d`). All other layers run in evaluation mode, so that
    dropout does not disturb the statistics. (`torch.optim.swa_utils.update_bn` runs them in
    training mode.)

    Arguments:
        model: it computes on the device that it is on. One without batch norms is left as it is.
        batches: what a DataLoader gives: tensors `(B, C, H, W)`; tuples or lists, of which the
            first item is taken; or dicts of keyword arguments of `model.forward`.

    Returns: the same model, each module in the mode that it was in.

    Raises:
        GHNInitError: there is no batch. If the model does not run on a batch, its own exception is
            raised. The model's statistics are then as they were.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return model
    with _calibrating(model, norms), torch.no_grad():
        seen = False
        for batch in batches:
            _run(model, batch)
            seen = True
        if not seen:
            raise GHNInitError("there are no batches: give one or more to set the statistics from.")
    return model


@contextlib.contextmanager
def _calibrating(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms that collect anew, all else in evaluation mode; as it was after an error."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    before = [[buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms]
    try:
        for module, _ in modes:
            module.training = False
        for norm in norms:
            norm.reset_running_stats()
            norm.training, norm.momentum = True, None
        yield
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            for buffer, value in zip(norm.buffers(recurse=False), buffers, strict=True):
                buffer.copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training


def _run(model: nn.Module, batch: Any) -> None:
    device = next(model.parameters()).device
    if isinstance(batch, Mapping):
        model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})
    else:
        model((batch[0] if isinstance(batch, (tuple, list)) else batch).to(device))
