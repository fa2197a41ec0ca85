"""The optimizer of a run, and the learning rate of each of the hypernetwork's layers."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.train.config import TrainConfig

_REFERENCE_FAN_IN = 64
_EMBEDDING_FACTOR = 0.1


def make_optimizer(ghn: GHN, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or another optimizer that timm knows by name.

    Arguments:
        ghn: whose parameters it changes.
        config: of the run.

    Raises:
        GHNInitError: timm has no optimizer of that name, or it needs what is not installed.
    """
    groups = parameter_groups(ghn, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay, fused=True)
    create = importlib.import_module("timm.optim").create_optimizer_v2
    try:
        made = create(groups, config.optimizer, config.lr, weight_decay=config.weight_decay)
    except Exception as error:  # whatever timm or an optimizer raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GHNInitError(
            f"optimizer {config.optimizer!r} cannot be used ({reason}): give one of "
            "timm.optim.list_optimizers()."
        ) from error
    assert isinstance(made, torch.optim.Optimizer)
    return made


def parameter_groups(ghn: GHN, config: TrainConfig) -> list[dict[str, Any]]:
    """The hypernetwork's parameters as an optimizer takes them, with their `lr_factor`.

    With muP and Adam, the learning rate of a matrix is inversely proportional to its fan-in, so
    that no layer changes what it computes faster than the others do. Factors are relative to a
    fan-in of 64; embeddings, which are looked up, take a tenth.
    """
    if config.parametrization == "standard":
        return [{"params": list(ghn.parameters()), "lr_factor": 1.0}]
    factors: dict[float, list[nn.Parameter]] = {}
    for module in ghn.modules():
        for parameter in module.parameters(recurse=False):
            factor = 1.0
            if isinstance(module, nn.Embedding):
                factor = _EMBEDDING_FACTOR
            elif parameter.dim() in (2, 4):  # a matrix, or one for every kernel position
                factor = _REFERENCE_FAN_IN / parameter.shape[-1]
            factors.setdefault(factor, []).append(parameter)
    return [{"params": params, "lr_factor": factor} for factor, params in factors.items()]
