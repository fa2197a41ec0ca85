"""Initial weights of a hypernetwork: small predictions, or those of another hypernetwork."""

from __future__ import annotations

import torch
from torch import nn

from .._config import GHNConfig
from .._errors import GHNInitError
from .._ghn import GHN
from .._loading import load_ghn
from ._seeds import seed_of


def initialise(config: GHNConfig, seed: int, start_from: str | None = None) -> GHN:
    """A hypernetwork to be trained.

    Arguments:
        config: sizes.
        seed: new weights are a function of it.
        start_from: checkpoint whose weights to take instead, by name or path.

    Raises:
        GHNInitError: the checkpoint cannot be opened, or is of another size.
    """
    if start_from is not None:
        return _copy(load_ghn(start_from), config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "ghn"))
        ghn = GHN(config)
        for module in ghn.modules():
            if isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=module.embedding_dim**-0.5)
        _small(ghn.decoder.conv[2])
        _small(ghn.decoder_1d.fc[2])
        _small(ghn.decoder.class_layer_predictor[1])
    return ghn


def _copy(source: GHN, config: GHNConfig) -> GHN:
    if source.config != config:
        raise GHNInitError(
            f"{source.name} is a hypernetwork of another size ({source.config}) than the run's "
            f"({config})."
        )
    ghn = GHN(config)
    ghn.load_state_dict(source.state_dict())
    return ghn


def _small(layer: nn.Module) -> None:
    """Begin with small predictions: norms near the identity, biases near 0."""
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.mul_(0.2)
        layer.bias.zero_()
