"""Families of the zoo with tokens or layer norms: transformers, mixers, ConvNeXt, hybrids.

Pairs of `draw_<family>(rng, sizes)` and `<family>(num_classes, ...)`, as in `zoo_convolutions`.
Images are 32x32, so patches are small.
"""

from __future__ import annotations

import random
from typing import Any

from timm.layers.create_act import get_act_layer
from timm.layers.norm import GroupNorm1, LayerNorm2d
from timm.models import convnext as timm_convnext
from timm.models import maxxvit, metaformer, mlp_mixer
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ghn_init.train.networks.zoo_sizes import Arguments, Sizes, set_stem

_SCALES = (None, None, 1.0, 0.1, 1e-6)
"""First values of layer scale. It has no primitive, so a network keeps what it is built with."""


# -- ConvNeXt V1 and V2


def draw_convnext(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `convnext`."""
    widths, depths = sizes.stages(rng)
    v2 = rng.random() < 0.4
    return {
        "depths": depths,
        "dims": widths,
        "kernel": rng.choice((3, 5, 7, 7)),
        "patch": rng.choice((1, 2, 2, 4)),
        "v2": v2,
        "scale": None if v2 else rng.choice(_SCALES),
        "conv_mlp": rng.random() < 0.3,
        "act": rng.choice(("gelu", "gelu", "relu")),
    }


def convnext(
    num_classes: int,
    depths: list[int],
    dims: list[int],
    kernel: int,
    patch: int,
    v2: bool,
    scale: float | None,
    conv_mlp: bool,
    act: str,
) -> nn.Module:
    """timm's ConvNeXt; V2 with global response norms."""
    return timm_convnext.ConvNeXt(
        num_classes=num_classes,
        depths=tuple(depths),
        dims=tuple(dims),
        kernel_sizes=kernel,
        ls_init_value=scale,
        patch_size=patch,
        conv_mlp=conv_mlp,
        use_grn=v2,
        act_layer=act,
    )


# -- ViT and DeiT


def draw_vit(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `vit`."""
    width, depth = sizes.tokens(rng, 24)
    return {
        "width": width,
        "depth": depth,
        "heads": rng.choice([n for n in (1, 2, 3, 4, 6, 8) if width % n == 0]),
        "ratio": rng.choice((2.0, 3.0, 4.0)),
        "patch": rng.choice((4, 4, 8)),
        "pool": rng.choice(("token", "avg")),
        "distilled": rng.random() < 0.2,
        "scale": rng.choice((None, None, None, 0.1, 1e-5)),
        "qk_norm": rng.random() < 0.15,
    }


def vit(
    num_classes: int,
    width: int,
    depth: int,
    heads: int,
    ratio: float,
    patch: int,
    pool: str,
    distilled: bool,
    scale: float | None,
    qk_norm: bool,
) -> nn.Module:
    """timm's ViT, or the DeiT with a distillation token."""
    kind: Any = VisionTransformerDistilled if distilled else VisionTransformer
    model: nn.Module = kind(
        img_size=32,
        patch_size=patch,
        num_classes=num_classes,
        global_pool="token" if distilled else pool,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=ratio,
        init_values=scale,
        qk_norm=qk_norm,
        class_token=distilled or pool == "token",
    )
    return model


def draw_vits_1k(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `vit`, as in the ViTs-1K that LoGAH is trained on: the fewer layers, the wider.

    The sizes are those of ViTs-1K, whatever is asked for. The ratio, which is 4 there, is drawn
    too: there are only 160 such ViTs otherwise.
    """
    depth = rng.randint(3, 9)
    least, most = (128, 256) if depth > 5 else (256, 384) if depth > 3 else (384, 512)
    width = rng.randrange(least, most + 1, 32)
    return {
        "width": width,
        "depth": depth,
        "heads": rng.choice((3, 6, 12) if width % 3 == 0 else (4, 8)),
        "ratio": rng.choice((2.0, 3.0, 4.0)),
        "patch": rng.choice((2, 4)),
        "pool": "token",
        "distilled": False,
        "scale": None,
        "qk_norm": False,
    }


# -- Swin


def draw_swin(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `swin`: stages double the width, as patch merging does."""
    depth = rng.choice((2, 3))
    return {
        "width": min(rng.choice(sizes.widths), sizes.max_width >> depth - 1),
        "depths": [rng.choice((1, *sizes.depths[1:])) for _ in range(depth)],
        "head": rng.choice((8, 16)),
        "window": rng.choice((2, 4)),
        "patch": rng.choice((2, 2, 4)),
        "ratio": rng.choice((2.0, 4.0)),
    }


def swin(
    num_classes: int,
    width: int,
    depths: list[int],
    head: int,
    window: int,
    patch: int,
    ratio: float,
) -> nn.Module:
    """timm's Swin transformer, with heads of `head` channels."""
    widths = [width << i for i in range(len(depths))]
    return SwinTransformer(
        img_size=32,
        patch_size=patch,
        num_classes=num_classes,
        embed_dim=width,
        depths=tuple(depths),
        num_heads=tuple(max(1, w // head) for w in widths),
        window_size=window,
        mlp_ratio=ratio,
        drop_path_rate=0.0,
    )


# -- Mixer, ResMLP, gMLP

_MIXERS = {"mixer": mlp_mixer.MixerBlock, "resmlp": mlp_mixer.ResBlock}


def draw_mixer(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `mixer`."""
    width, depth = sizes.tokens(rng)
    return {
        "kind": rng.choice(("mixer", "mixer", "resmlp")),
        "width": width,
        "depth": depth,
        "patch": rng.choice((4, 4, 8)),
        "tokens": rng.choice((0.5, 1.0)),
        "ratio": rng.choice((2.0, 4.0)),
        "act": rng.choice(("gelu", "gelu", "relu")),
    }


def mixer(
    num_classes: int,
    kind: str,
    width: int,
    depth: int,
    patch: int,
    tokens: float,
    ratio: float,
    act: str,
) -> nn.Module:
    """timm's MLP-Mixer, with its own blocks or ResMLP's."""
    block = _MIXERS[kind]
    more: Any = {"norm_layer": mlp_mixer.Affine} if kind == "resmlp" else {}
    return mlp_mixer.MlpMixer(
        num_classes=num_classes,
        img_size=32,
        patch_size=patch,
        num_blocks=depth,
        embed_dim=width,
        mlp_ratio=ratio if kind == "resmlp" else (tokens, ratio),
        block_layer=block,
        act_layer=get_act_layer(act),
        **more,
    )


# -- PoolFormer

_TOKEN_MIXERS = {"pool": metaformer.Pooling, "conv": metaformer.SepConv}


def draw_poolformer(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `poolformer`."""
    widths, depths = sizes.stages(rng, rng.choice((3, 4)))
    return {
        "depths": depths,
        "dims": widths,
        "mixer": rng.choice(("pool", "pool", "conv")),
        "patch": rng.choice((1, 2, 2, 4)),
        "scale": rng.choice(_SCALES),
        "act": rng.choice(("gelu", "relu", "star_relu")),
        "norm": rng.choice(("group", "layer")),
    }


def poolformer(
    num_classes: int,
    depths: list[int],
    dims: list[int],
    mixer: str,
    patch: int,
    scale: float | None,
    act: str,
    norm: str,
) -> nn.Module:
    """timm's MetaFormer with pooling (PoolFormer) or separable convolutions between tokens."""
    norms = {"group": GroupNorm1, "layer": LayerNorm2d}
    model = metaformer.MetaFormer(
        num_classes=num_classes,
        depths=tuple(depths),
        dims=tuple(dims),
        token_mixers=_TOKEN_MIXERS[mixer],
        mlp_act=metaformer.StarReLU if act == "star_relu" else get_act_layer(act),
        mlp_bias=True,
        layer_scale_init_values=scale,
        res_scale_init_values=(None,) * len(depths),
        downsample_norm=None,
        norm_layers=norms[norm],
        use_mlp_head=False,
    )
    set_stem(model, "stem.conv", 3 if patch < 4 else 7, patch)
    return model


# -- CoAtNet and its kin


def draw_coatnet(rng: random.Random, sizes: Sizes) -> Arguments:
    """Arguments of `coatnet`: convolutions first, attention in the last stages."""
    stages = rng.choice((3, 4))
    widths, depths = sizes.stages(rng, stages)
    return {
        "depths": [min(depth, 2) if depth < 4 else depth for depth in depths],
        "dims": [round(width / 16) * 16 for width in widths],
        "blocks": "CCTT"[-stages:] if rng.random() < 0.7 else "CTTT"[:stages],
        "head": rng.choice((8, 16)),
        "ratio": rng.choice((2.0, 4.0)),
        "stem": rng.choice((16, 32)),
        "stride": rng.choice((1, 2)),
    }


def coatnet(
    num_classes: int,
    depths: list[int],
    dims: list[int],
    blocks: str,
    head: int,
    ratio: float,
    stem: int,
    stride: int,
) -> nn.Module:
    """timm's CoAtNet: inverted residuals, then attention."""
    cfg = maxxvit.MaxxVitCfg(
        embed_dim=tuple(dims),
        depths=tuple(depths),
        block_type=tuple(blocks),
        stem_width=stem,
        conv_cfg=maxxvit.MaxxVitConvCfg(expand_ratio=ratio),
        transformer_cfg=maxxvit.MaxxVitTransformerCfg(dim_head=head, expand_ratio=ratio),
    )
    # Tables of relative positions are for stems of stride 2: one of stride 1 is as an image twice
    # as large.
    model = maxxvit.MaxxVit(cfg, img_size=64 // stride, num_classes=num_classes)
    set_stem(model, "stem.conv1", 3, stride)
    return model
