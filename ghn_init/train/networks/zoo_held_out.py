"""Families that no hypernetwork here is trained on: they tell what it makes of a new idea.

Pairs of `draw_<family>(rng, sizes)` and `<family>(num_classes, ...)`, as in `zoo_convolutions`.
"""

from __future__ import annotations

import random

from timm.models import ghostnet as timm_ghostnet
from timm.models import levit as timm_levit
from timm.models import nfnet as timm_nfnet
from timm.models.convmixer import ConvMixer
from timm.models.edgenext import EdgeNeXt
from timm.models.fastvit import FastVit
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.xcit import Xcit
from torch import nn

from ghn_init.train.networks.zoo_sizes import Arguments, Sizes, set_stem


def draw_edgenext(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `edgenext`."""
    widths, depths = sizes.stages(rng)
    return {"dims": widths, "depths": depths, "patch": rng.choice((1, 2, 4)), "scale": 1.0}


def edgenext(
    num_classes: int, dims: list[int], depths: list[int], patch: int, scale: float
) -> nn.Module:
    """timm's EdgeNeXt: convolutions and transposed attention side by side."""
    model = EdgeNeXt(
        num_classes=num_classes,
        dims=tuple(dims),
        depths=tuple(depths),
        global_block_counts=(0, 1, 1, 1),
        kernel_sizes=(3, 3, 5, 5),
        heads=(4, 4, 4, 4),
        ls_init_value=scale,
    )
    set_stem(model, "stem.0", patch if patch > 1 else 3, patch)
    return model


def draw_xcit(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `xcit`."""
    width, depth = sizes.tokens(rng)
    return {"width": width, "depth": depth, "heads": rng.choice((2, 4)), "scale": 1.0}


def xcit(num_classes: int, width: int, depth: int, heads: int, scale: float) -> nn.Module:
    """timm's XCiT, attention between channels, on patches of 8."""
    return Xcit(
        img_size=32,
        patch_size=8,
        num_classes=num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        eta=scale,
        cls_attn_layers=1,
    )


def draw_fastvit(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `fastvit`."""
    widths, depths = sizes.stages(rng)
    widths = [widths[0] << i for i in range(len(widths))]  # grouped convolutions in between
    return {"dims": widths, "layers": depths, "ratio": rng.choice((2, 3)), "scale": 1.0}


def fastvit(
    num_classes: int, dims: list[int], layers: list[int], ratio: float, scale: float
) -> nn.Module:
    """timm's FastViT, with the branches that it is trained with."""
    model = FastVit(
        num_classes=num_classes,
        layers=tuple(layers),
        embed_dims=tuple(dims),
        mlp_ratios=(ratio,) * len(dims),
        layer_scale_init_value=scale,
        down_patch_size=3,
    )
    for module in model.stem[0].modules():  # all branches of the first block
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    return model


def draw_nfnet(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `nfnet`."""
    widths, depths = sizes.stages(rng)
    return {
        "depths": depths,
        "channels": [2 * width for width in widths],
        "attention": rng.choice((None, "se")),
        "act": rng.choice(("relu", "silu", "gelu")),
    }


def nfnet(
    num_classes: int, depths: list[int], channels: list[int], attention: str | None, act: str
) -> nn.Module:
    """timm's normalization-free ResNet, with standardized weights."""
    cfg = timm_nfnet.NfCfg(
        depths=(depths[0], depths[1], depths[2], depths[3]),
        channels=(channels[0], channels[1], channels[2], channels[3]),
        stem_type="3x3",
        stem_chs=max(16, channels[0] // 2),
        attn_layer=attention,
        attn_kwargs={},
        act_layer=act,
    )
    model = timm_nfnet.NormFreeNet(cfg, num_classes=num_classes)
    model.get_submodule("stem.conv").stride = (1, 1)  # type: ignore[assignment]
    return model


def draw_ghostnet(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `ghostnet`: kernel, inner channels, channels, gate and stride of each block."""
    widths, depths = sizes.stages(rng)
    blocks = []
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        kernel, gate = rng.choice((3, 5)), rng.choice((0.0, 0.25))
        strides = [1 if i == 0 else 2] + [1] * (depth - 1)
        blocks += [[[kernel, 3 * width, width, gate, stride]] for stride in strides]
    return {"blocks": blocks}


def ghostnet(num_classes: int, blocks: list[list[list[float]]]) -> nn.Module:
    """timm's GhostNet: half of the channels by cheap depthwise convolutions."""
    model = timm_ghostnet.GhostNet(blocks, num_classes, drop_rate=0.0)
    set_stem(model, "conv_stem", 3)
    return model


def draw_levit(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `levit`."""
    width, _ = sizes.tokens(rng)
    return {
        "dims": [width, round(width * 1.5 / 16) * 16],
        "depth": [rng.choice(sizes.depths), rng.choice(sizes.depths)],
        "heads": [rng.choice((2, 4)), 4],
        "key": rng.choice((8, 16)),
    }


def levit(
    num_classes: int, dims: list[int], depth: list[int], heads: list[int], key: int
) -> nn.Module:
    """timm's LeViT: attention with batch normalization, on 4x4 positions."""
    return timm_levit.Levit(
        img_size=32,
        num_classes=num_classes,
        embed_dim=tuple(dims),
        depth=tuple(depth),
        num_heads=tuple(heads),
        key_dim=key,
        stem_type="s8",
    )


def draw_convmixer(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `convmixer`."""
    width, depth = sizes.tokens(rng)
    return {"width": width, "depth": depth, "kernel": rng.choice((3, 5, 7)), "patch": 2}


def convmixer(num_classes: int, width: int, depth: int, kernel: int, patch: int) -> nn.Module:
    """timm's ConvMixer."""
    return ConvMixer(width, depth, kernel, patch, num_classes=num_classes)


def draw_pvt(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `pvt`."""
    widths, depths = sizes.stages(rng)
    return {"dims": [round(width / 16) * 16 for width in widths], "depths": depths}


def pvt(num_classes: int, dims: list[int], depths: list[int]) -> nn.Module:
    """timm's PVT V2: attention over reduced maps."""
    model = PyramidVisionTransformerV2(
        num_classes=num_classes,
        depths=tuple(depths),
        embed_dims=tuple(dims),
        num_heads=(1, 2, 4, 4),
        sr_ratios=(4, 2, 1, 1),
        mlp_ratios=(4.0, 4.0, 4.0, 4.0),
    )
    set_stem(model, "patch_embed.proj", 3, 2)
    return model
