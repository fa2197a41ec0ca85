"""Eight models of timm, of seven families, changed for images of 32 x 32.

    ghn-init compare examples/small_models.py:resnet50 --data cifar10 --steps 300

A ResNet-50 halves an image five times, and its last stage sees a single position of a small one. As
in the papers' experiments with CIFAR-10, the first convolution therefore is 3x3 with stride 1, and
nothing is pooled behind it. Where the first layer cuts patches, they are smaller.
"""

from __future__ import annotations

from typing import Any

import timm
from torch import nn


def resnet18(num_classes: int = 10) -> nn.Module:
    """11.2 million parameters."""
    return _without_reduction(_timm("resnet18", num_classes))


def resnet50(num_classes: int = 10) -> nn.Module:
    """23.5 million parameters."""
    return _without_reduction(_timm("resnet50", num_classes))


def regnety_002(num_classes: int = 10) -> nn.Module:
    """2.8 million parameters; stride 1 in the stem."""
    return _with_stride_1(_timm("regnety_002", num_classes), "stem.conv")


def mobilenetv3_small(num_classes: int = 10) -> nn.Module:
    """1.5 million parameters; stride 1 in the stem."""
    return _with_stride_1(_timm("mobilenetv3_small_100", num_classes), "conv_stem")


def efficientnet_b0(num_classes: int = 10) -> nn.Module:
    """4.0 million parameters; stride 1 in the stem."""
    return _with_stride_1(_timm("efficientnet_b0", num_classes), "conv_stem")


def convnext_atto(num_classes: int = 10) -> nn.Module:
    """3.4 million parameters; patches of 2."""
    return _timm("convnext_atto", num_classes, patch_size=2)


def vit_tiny(num_classes: int = 10) -> nn.Module:
    """5.4 million parameters; patches of 4."""
    return _timm("vit_tiny_patch16_224", num_classes, img_size=32, patch_size=4)


def edgenext_xx_small(num_classes: int = 10) -> nn.Module:
    """1.2 million parameters; patches of 2. The embedded checkpoint has seen no EdgeNeXt."""
    model = _timm("edgenext_xx_small", num_classes)
    stem = model.get_submodule("stem")
    assert isinstance(stem, nn.Sequential)
    stem[0] = nn.Conv2d(3, _convolution(model, "stem.0").out_channels, kernel_size=2, stride=2)
    return model


MODELS = (
    "resnet50",
    "resnet18",
    "regnety_002",
    "mobilenetv3_small",
    "efficientnet_b0",
    "convnext_atto",
    "vit_tiny",
    "edgenext_xx_small",
)


def _timm(name: str, num_classes: int, **changes: Any) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=num_classes, **changes)
    return model


def _convolution(model: nn.Module, name: str) -> nn.Conv2d:
    found = model.get_submodule(name)
    assert isinstance(found, nn.Conv2d)
    return found


def _without_reduction(model: nn.Module) -> nn.Module:
    """A ResNet whose stem keeps the size of an image."""
    first = nn.Conv2d(3, _convolution(model, "conv1").out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")  # as timm's
    model.conv1, model.maxpool = first, nn.Identity()
    return model


def _with_stride_1(model: nn.Module, first: str) -> nn.Module:
    _convolution(model, first).stride = (1, 1)
    return model
