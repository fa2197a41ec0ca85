"""How large members of real families are drawn, and what several families draw alike."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

Arguments = dict[str, Any]
"""Of a family's builder; everything in it can be written as JSON."""

ACTIVATIONS = ("relu", "relu", "gelu", "silu", "hard_swish", "leaky_relu")
"""timm's names of the activations that convolutional families draw from."""

NORMS = ("batchnorm2d",) * 8 + ("layernorm2d", "groupnorm1")
"""timm's names of the norms that families built on batch normalization draw from."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of networks.

    Arguments:
        widths: channels of the first stage, or of all tokens.
        depths: blocks of a stage; a network without stages has three times as many.
        max_width: most channels of a later stage.
        max_macs: multiplications for one image of 32x32.
        max_params: parameters.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    max_width: int
    max_macs: float
    max_params: float

    def stages(self, rng: random.Random, count: int = 4) -> tuple[list[int], list[int]]:
        """Channels and blocks of each stage; channels are multiples of 8."""
        width, growth = rng.choice(self.widths), rng.choice((1.25, 1.5, 2.0))
        widths = [min(self.max_width, round(width * growth**i / 8) * 8) for i in range(count)]
        return widths, [rng.choice(self.depths) for _ in range(count)]

    def tokens(self, rng: random.Random, multiple: int = 16) -> tuple[int, int]:
        """Channels, a multiple of the given number, and blocks of a network without stages."""
        width = rng.choice(self.widths) + rng.choice(self.widths)
        return round(width / multiple) * multiple, 3 * rng.choice(self.depths) - rng.choice((0, 1))


TRAINED = Sizes((16, 24, 32, 40, 48, 64), (1, 2, 3), 192, 40e6, 3e6)
"""Sizes that hypernetworks are trained on."""

UNSEEN = Sizes((72, 80, 96), (4, 5), 384, 240e6, 20e6)
"""Wider and deeper than all of those."""

MODERATE = replace(UNSEEN, max_macs=4e9, max_params=1e7)
"""For networks that are wide, and have few layers."""


def set_stem(model: nn.Module, name: str, kernel: int, stride: int = 1) -> None:
    """Give a stem's convolution another kernel and stride, as small images need it.

    Arguments:
        model: changed in place.
        name: of the convolution in it.
        kernel: height and width. As large as the stride, it cuts patches, without padding.
        stride: of the outputs.
    """
    old = model.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    padding = 0 if kernel == stride else kernel // 2
    new = nn.Conv2d(
        old.in_channels, old.out_channels, kernel, stride, padding, bias=old.bias is not None
    )
    replace_module(model, name, new)


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """What `model.set_submodule` does, which torch 2.4 does not have."""
    parent, _, own_name = name.rpartition(".")
    setattr(model.get_submodule(parent), own_name, new)
