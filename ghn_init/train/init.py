"""Initial weights of a hypernetwork: small predictions, or those of another hypernetwork."""

from __future__ import annotations

import torch
from torch import nn

from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.config import GHNConfig
from ghn_init.hypernetwork.decoder import ConvDecoder, PositionMaps
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.hypernetwork.low_rank import LowRankDecoder
from ghn_init.loading.load import load_ghn
from ghn_init.seeds import seed_of
from ghn_init.train.config import TrainConfig

_FIRST_SCALE = 0.1
"""Of the first predictions, before they are scaled to their fan-in: at 1, networks without
normalization blow up."""


def initialize(config: TrainConfig, num_classes: int) -> GHN:
    """A hypernetwork to be trained, a function of the run's configuration.

    Arguments:
        config: of the run.
        num_classes: of the images.

    Raises:
        GHNInitError: the checkpoint to start from cannot be opened, or is of another size.
    """
    if config.start_from is not None:
        return _copy(load_ghn(config.start_from), config.ghn(num_classes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "ghn"))
        ghn = GHN(config.ghn(num_classes))
        for module in ghn.modules():
            if isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=module.embedding_dim**-0.5)
        if isinstance(ghn.decoder, LowRankDecoder):
            return ghn  # products of two factors are small by themselves
        _small(ghn.decoder_1d.fc[2])
        _small(ghn.decoder.class_layer_predictor[1])
        if config.parametrization == "mup":
            _by_fan_in(ghn.decoder)
        else:
            _small(ghn.decoder.conv[2])
    return ghn


def _copy(source: GHN, config: GHNConfig) -> GHN:
    if source.config != config:
        raise GHNInitError(
            f"{source.name} is a hypernetwork of another size ({source.config}) than the run's "
            f"({config})."
        )
    ghn = GHN(config, defaults=source.defaults)
    ghn.load_state_dict(source.state_dict())
    return ghn


def _small(layer: nn.Module) -> None:
    """Begin with small predictions: norms near the identity, biases near 0."""
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.mul_(0.2)
        layer.bias.zero_()


def _by_fan_in(decoder: ConvDecoder) -> None:
    """Hidden layers that keep the scale of their input (He et al.), and small predictions."""
    for layer, gain in (
        (decoder.fc[0], 1.0),
        (decoder.conv[0], 2**0.5),
        (decoder.conv[2], _FIRST_SCALE * 2**0.5),
    ):
        assert isinstance(layer, nn.Linear | PositionMaps)
        nn.init.normal_(layer.weight, std=gain * layer.weight.shape[-1] ** -0.5)
        nn.init.zeros_(layer.bias)
