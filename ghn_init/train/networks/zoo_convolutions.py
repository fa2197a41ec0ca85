"""Convolutional families of the zoo: how their arguments are drawn, and how they are built.

Each family is a pair: `draw_<family>(rng, sizes)` gives arguments, `<family>(num_classes, ...)`
builds the library's own class from them. Stems of 224-pixel images would leave a single position
of 32 pixels to the last stages, so strides are drawn from 1 on, as in the papers' CIFAR networks.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import torch
from timm.layers.create_act import get_act_layer
from timm.layers.create_norm import get_norm_layer
from timm.layers.norm import GroupNorm
from timm.models import efficientnet as timm_efficientnet
from timm.models import mobilenetv3 as timm_mobilenetv3
from timm.models import regnet as timm_regnet
from timm.models import resnet as timm_resnet
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.densenet import DenseNet
from torch import nn
from torchvision.models.vgg import VGG, make_layers

from ghn_init.train.networks.zoo_sizes import (
    ACTIVATIONS,
    NORMS,
    Arguments,
    Sizes,
    replace_module,
    set_stem,
)

_named_norm_layer: Any = get_norm_layer
_decoded: Any = decode_arch_def  # timm has no types for these two


def _norm_layer(name: str) -> Any:
    """By name. Where an activation follows, timm 1.0.9 takes GroupNorm1 for one of 32 groups."""
    return partial(GroupNorm, num_groups=1) if name == "groupnorm1" else _named_norm_layer(name)


# -- ResNet, ResNeXt, wide and squeeze-and-excitation ResNets


def draw_resnet(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `resnet`."""
    widths, depths = sizes.stages(rng)
    bottleneck = rng.random() < 0.6
    groups = rng.choice((1, 1, 2, 4, 8)) if bottleneck else 1
    return {
        "bottleneck": bottleneck,
        "layers": depths,
        "channels": [max(8, width // 2) for width in widths] if bottleneck else widths,
        "groups": groups,
        "widen": rng.choice((1, 1, 2)) if bottleneck else 1,
        "attention": rng.choice(("", "", "se")),
        "stem": rng.choice(("small", "small", "strided", "imagenet")),
        "deep_stem": rng.random() < 0.2,
        "avg_down": rng.random() < 0.2,
        "norm": rng.choice(NORMS),
        "act": rng.choice(ACTIVATIONS),
    }


def resnet(
    num_classes: int,
    bottleneck: bool,
    layers: list[int],
    channels: list[int],
    groups: int,
    widen: int,
    attention: str,
    stem: str,
    deep_stem: bool,
    avg_down: bool,
    norm: str,
    act: str,
) -> nn.Module:
    """timm's ResNet; with `groups` a ResNeXt, with `widen` a wide one."""
    block: Any = timm_resnet.Bottleneck if bottleneck else timm_resnet.BasicBlock
    model = timm_resnet.ResNet(
        block,
        tuple(layers),
        num_classes,
        cardinality=groups,
        base_width=64 * widen // groups,
        stem_type="deep" if deep_stem else "",
        stem_width=32,
        avg_down=avg_down,
        channels=tuple(channels),
        act_layer=get_act_layer(act),
        norm_layer=_norm_layer(norm),
        block_args={"attn_layer": attention} if attention else None,
    )
    if stem != "imagenet":
        set_stem(model, "conv1.0" if deep_stem else "conv1", 3, 1 if stem == "small" else 2)
        replace_module(model, "maxpool", nn.Identity())
    return model


# -- RegNet X and Y


def draw_regnet(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `regnet`."""
    shape: Arguments = {}
    while not shape or len(set(timm_regnet.generate_regnet(**shape, group_size=8)[0])) != 4:
        widths, depths = sizes.stages(rng)
        shape = {
            "width_initial": widths[0],
            "width_slope": round(rng.uniform(8, 30), 1),
            "width_mult": round(rng.uniform(1.6, 2.6), 2),
            "depth": max(4, sum(depths)),
        }
    return {
        "depth": shape["depth"],
        "w0": shape["width_initial"],
        "wa": shape["width_slope"],
        "wm": shape["width_mult"],
        "group_size": rng.choice((8, 16, 24)),
        "se_ratio": rng.choice((0.0, 0.25)),
        "stem_width": rng.choice((16, 32)),
        "stride": rng.choice((1, 1, 2)),
        "norm": rng.choice(NORMS),
        "act": rng.choice(ACTIVATIONS),
    }


def regnet(
    num_classes: int,
    depth: int,
    w0: int,
    wa: float,
    wm: float,
    group_size: int,
    se_ratio: float,
    stem_width: int,
    stride: int,
    norm: str,
    act: str,
) -> nn.Module:
    """timm's RegNet; a Y one with `se_ratio`, else an X one."""
    cfg = timm_regnet.RegNetCfg(
        depth=depth,
        w0=w0,
        wa=wa,
        wm=wm,
        group_size=group_size,
        se_ratio=se_ratio,
        stem_width=stem_width,
        act_layer=act,
        norm_layer=norm,
    )
    model = timm_regnet.RegNet(cfg, num_classes=num_classes)
    set_stem(model, "stem.conv", 3, stride)
    return model


# -- DenseNet


def draw_densenet(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `densenet`."""
    blocks = rng.choice((3, 4))
    return {
        "growth": rng.choice(sizes.widths[:4]) // 2,
        "blocks": [2 * rng.choice(sizes.depths) + rng.choice((0, 1)) for _ in range(blocks)],
        "bottleneck": rng.choice((2, 4)),
        "stem": rng.choice(("small", "strided", "imagenet")),
        "act": rng.choice(ACTIVATIONS),
    }


def densenet(
    num_classes: int, growth: int, blocks: list[int], bottleneck: int, stem: str, act: str
) -> nn.Module:
    """timm's DenseNet."""
    model = DenseNet(growth, tuple(blocks), num_classes, bn_size=bottleneck, act_layer=act)
    if stem != "imagenet":
        set_stem(model, "features.conv0", 3, 1 if stem == "small" else 2)
        replace_module(model, "features.pool0", nn.Identity())
    return model


# -- VGG


def draw_vgg(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `vgg`."""
    widths, depths = sizes.stages(rng, rng.choice((3, 4, 5)))
    layers: list[int | str] = []
    for width, depth in zip(widths, depths, strict=True):
        layers += [*[width] * min(depth, 3), "M"]  # dense kernels at full size are costly
    return {
        "layers": layers,
        "norm": rng.random() < 0.6,
        "positions": rng.choice((1, 1, 2)),
        "hidden": rng.choice(([], [64], [128, 128])),
    }


def vgg(
    num_classes: int, layers: list[int | str], norm: bool, positions: int, hidden: list[int]
) -> nn.Module:
    """torchvision's VGG. Its classifier is smaller: the original one alone has 120 million weights.

    Arguments:
        num_classes: outputs.
        layers: channels of a convolution each, or `"M"` for pooling.
        norm: batch normalization behind every convolution.
        positions: height and width that are left to the classifier.
        hidden: widths of its hidden layers.
    """
    features = make_layers(layers, batch_norm=norm)
    with torch.device("meta"):
        model: nn.Module = VGG(features, num_classes, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(positions)
    width = [n for n in layers if isinstance(n, int)][-1] * positions**2
    classifier: list[nn.Module] = []
    for size in hidden:
        classifier += [nn.Linear(width, size), nn.ReLU(inplace=True)]
        width = size
    model.classifier = nn.Sequential(*classifier, nn.Linear(width, num_classes))
    return model


# -- MobileNet V2 and V3, EfficientNet: inverted residuals


def _draw_inverted(
    rng: random.Random, sizes: Sizes, kernels: tuple[int, ...], gates: tuple[str, ...]
) -> Arguments:
    """Blocks in timm's notation: `ir_r2_k3_s2_e4_c24_se0.25`."""
    count = rng.choice((3, 4, 5))
    widths, depths = sizes.stages(rng, count)
    first = max(8, widths[0] // 2)
    stages = [[f"ds_r1_k3_s1_c{first}{rng.choice(gates)}"]]
    strides = [rng.choice((1, 2)), 2, 2, rng.choice((1, 2)), 1]
    for width, depth, stride in zip(widths, depths, strides, strict=False):
        kernel, ratio = rng.choice(kernels), rng.choice((2, 3, 4, 6))
        stages.append([f"ir_r{depth}_k{kernel}_s{stride}_e{ratio}_c{width}{rng.choice(gates)}"])
    return {
        "stages": stages,
        "stem": rng.choice((16, 24, 32)),
        "stride": rng.choice((1, 1, 2)),
        "features": rng.choice((128, 256, 512)),
        "norm": rng.choice(NORMS),
    }


def draw_mobilenet_v2(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `inverted`."""
    return {**_draw_inverted(rng, sizes, (3,), ("",)), "act": "relu6"}


def draw_efficientnet(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `inverted`; in some, as in V2, the first stages are dense convolutions."""
    args = _draw_inverted(rng, sizes, (3, 5), ("_se0.25", "_se0.25", ""))
    if rng.random() < 0.3:
        args["stages"][1] = [args["stages"][1][0].replace("ir_", "er_").replace("_se0.25", "")]
    return {**args, "act": rng.choice(("silu", "silu", "gelu", "relu"))}


def inverted(
    num_classes: int,
    stages: list[list[str]],
    stem: int,
    stride: int,
    features: int,
    norm: str,
    act: str,
) -> nn.Module:
    """timm's EfficientNet, which MobileNet V2 is one of."""
    model = timm_efficientnet.EfficientNet(
        _decoded(stages),
        num_classes,
        num_features=features,
        stem_size=stem,
        act_layer=get_act_layer(act),
        norm_layer=_norm_layer(norm),
    )
    set_stem(model, "conv_stem", 3, stride)
    return model


def draw_mobilenet_v3(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `mobilenet_v3`; the first stages have ReLUs."""
    args = _draw_inverted(rng, sizes, (3, 5), ("_se0.25", ""))
    for i in range(rng.choice((1, 2, 3))):
        args["stages"][i] = [args["stages"][i][0] + "_nre"]
    return {**args, "act": rng.choice(("hard_swish", "hard_swish", "relu"))}


def mobilenet_v3(
    num_classes: int,
    stages: list[list[str]],
    stem: int,
    stride: int,
    features: int,
    norm: str,
    act: str,
) -> nn.Module:
    """timm's MobileNetV3: the classifier's hidden layer comes behind the pooling."""
    head = 4 * int(stages[-1][0].split("_c")[1].split("_")[0])
    gate = partial(
        SqueezeExcite,
        gate_layer="hard_sigmoid",
        force_act_layer=nn.ReLU,
        rd_round_fn=round_channels,
    )
    model = timm_mobilenetv3.MobileNetV3(
        _decoded([*stages, [f"cn_r1_k1_s1_c{head}"]]),
        num_classes,
        num_features=features,
        stem_size=stem,
        act_layer=get_act_layer(act),
        norm_layer=_norm_layer(norm),
        se_layer=gate,
    )
    set_stem(model, "conv_stem", 3, stride)
    return model
