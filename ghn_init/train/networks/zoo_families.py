"""The families of the zoo: which are trained on, which are held out."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from ghn_init.train.networks import zoo_convolutions as conv
from ghn_init.train.networks import zoo_held_out as other
from ghn_init.train.networks import zoo_tokens as tokens
from ghn_init.train.networks.zoo_sizes import Arguments, Sizes


class Family(NamedTuple):
    """A family of networks.

    Arguments:
        draw: arguments of a member of some size.
        build: the member, from the number of classes and its arguments.
    """

    draw: Callable[[random.Random, Sizes], Arguments]
    build: Callable[..., nn.Module]


TRAINED = {
    "resnet": Family(conv.draw_resnet, conv.resnet),
    "regnet": Family(conv.draw_regnet, conv.regnet),
    "densenet": Family(conv.draw_densenet, conv.densenet),
    "vgg": Family(conv.draw_vgg, conv.vgg),
    "mobilenet_v2": Family(conv.draw_mobilenet_v2, conv.inverted),
    "mobilenet_v3": Family(conv.draw_mobilenet_v3, conv.mobilenet_v3),
    "efficientnet": Family(conv.draw_efficientnet, conv.inverted),
    "convnext": Family(tokens.draw_convnext, tokens.convnext),
    "vit": Family(tokens.draw_vit, tokens.vit),
    "swin": Family(tokens.draw_swin, tokens.swin),
    "mixer": Family(tokens.draw_mixer, tokens.mixer),
    "poolformer": Family(tokens.draw_poolformer, tokens.poolformer),
    "coatnet": Family(tokens.draw_coatnet, tokens.coatnet),
}
"""Families that hypernetworks are trained on."""

HELD_OUT = {
    "edgenext": Family(other.draw_edgenext, other.edgenext),
    "xcit": Family(other.draw_xcit, other.xcit),
    "fastvit": Family(other.draw_fastvit, other.fastvit),
    "nfnet": Family(other.draw_nfnet, other.nfnet),
    "ghostnet": Family(other.draw_ghostnet, other.ghostnet),
    "levit": Family(other.draw_levit, other.levit),
    "convmixer": Family(other.draw_convmixer, other.convmixer),
    "pvt": Family(other.draw_pvt, other.pvt),
}
"""Families that are only evaluated on."""

VITS = {"vits_1k": Family(tokens.draw_vits_1k, tokens.vit)}
"""The family of a space of its own."""

FAMILIES = TRAINED | HELD_OUT | VITS
