"""Real models for slow checks: timm's families, torchvision's models, transformers' vision models.

Models are built from their classes alone (no downloads), small where a configuration can be made
small. `ZOO` has them by name; an entry builds the model, its inputs and, if it has one, its loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

CLASSES = 10


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Arguments:
        name: `"library/model"`, for example `"timm/resnet"`.
        build: makes the model with its own initialization, from the global random state.
        inputs: makes keyword arguments (a dict) or positional ones (a tuple) of its forward.
        targets: makes what the loss needs beside the inputs: keyword arguments for a
            transformers model, a list of targets for a detector, labels for a classifier. None
            for a model without a loss.
        training: whether the model runs on `inputs` alone in training mode.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    targets: Callable[[], Any] | None = None
    training: bool = True

    def outputs(self, model: nn.Module) -> Any:
        """What the model returns on its inputs, with seeded random numbers."""
        torch.manual_seed(0)
        args, kwargs = _arguments(self.inputs())
        torch.manual_seed(1)
        with torch.no_grad():
            return model(*args, **kwargs)

    def first_loss(self, model: nn.Module) -> float | None:
        """The loss of a batch in training mode; None if the model defines none."""
        if self.targets is None:
            return None
        model.train()
        torch.manual_seed(0)
        args, kwargs = _arguments(self.inputs())
        targets = self.targets()
        torch.manual_seed(1)
        with torch.no_grad():
            if isinstance(targets, Mapping):
                loss = model(*args, **kwargs, **targets).loss
            elif isinstance(targets, list):
                loss = sum(model(*args, targets, **kwargs).values())
            else:
                loss = _classification_loss(model(*args, **kwargs), targets)
        return float(loss)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in an output, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        yield from tensors(vars(value))


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), inputs) if isinstance(inputs, dict) else (inputs, {})


def _classification_loss(output: Any, labels: Tensor) -> Tensor:
    """Cross entropy of the main output: classes in the second dimension, or in the last one."""
    if isinstance(output, Mapping):
        output = output["out"]
    logits = next(tensors(output))
    if logits.dim() > 2:  # a map of classes
        labels = labels.reshape(-1, 1, 1).expand(-1, *logits.shape[2:])
    return F.cross_entropy(logits.float(), labels)


def _labels() -> Tensor:
    return torch.tensor([1, 3])


def _image(*size: int) -> tuple[Tensor, ...]:
    return (torch.rand(2, 3, *size),)


# -- timm: a small model of each family

_WIDE = {"embed_dim": 64, "depth": 2, "num_heads": 2}
_TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", _WIDE),
    "byoanet": ("eca_halonext26ts", {}),
    "byobnet": ("test_byobnet", {}),
    "cait": ("cait_xxs24_224", {"depth": 2}),
    "coat": ("coat_tiny", {}),
    "convit": ("convit_tiny", {"depth": 12}),
    "convmixer": ("convmixer_768_32", {}),
    "convnext": ("test_convnext", {}),
    "cpubone": ("cpubone_nano", {}),
    "crossvit": ("crossvit_tiny_240", {}),
    "csatv2": ("csatv2", {}),
    "cspnet": ("cs3darknet_focus_s", {}),
    "cspnext": ("cspnext_tiny", {}),
    "davit": ("davit_tiny", {"depths": (1, 1, 1, 1)}),
    "deepseek_vit": ("deepseek_vit_412m", {"depth": 2}),
    "deit": ("deit_tiny_distilled_patch16_224", {"depth": 2}),
    "densenet": ("densenet121", {}),
    "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {}),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l1", {}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientvim": ("efficientvim_m1", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {}),
    "eva": ("eva02_tiny_patch14_224", {"depth": 2}),
    "fasternet": ("fasternet_t0", {}),
    "fastvit": ("fastvit_t8", {}),
    "focalnet": ("focalnet_tiny_srf", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "gemma4_vit": ("gemma4_vit_167m", {"depth": 2}),
    "ghostnet": ("ghostnet_050", {}),
    "hardcorenas": ("hardcorenas_a", {}),
    "hgnet": ("hgnetv2_b0", {}),
    "hiera": ("hiera_tiny_224", {}),
    "hieradet_sam2": ("sam2_hiera_tiny", {}),
    "hrnet": ("hrnet_w18_small", {}),
    "iformer": ("iformer_t", {}),
    "inception_next": ("inception_next_atto", {}),
    "inception_resnet_v2": ("inception_resnet_v2", {}),
    "inception_v3": ("inception_v3", {"aux_logits": True}),
    "inception_v4": ("inception_v4", {}),
    "lcnetv2": ("lcnetv2_small", {}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("test_coatnet", {}),
    "metaformer": ("poolformer_s12", {}),
    "mlp_mixer": ("gmlp_ti16_224", {}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "mobilenetv5": ("mobilenetv5_base", {}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "naflexvit": ("naflexvit_base_patch16_siglip", {"depth": 1}),
    "nasnet": ("nasnetalarge", {}),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "nfnet": ("test_nfnet", {}),
    "pit": ("pit_ti_distilled_224", {}),
    "pnasnet": ("pnasnet5large", {}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("qwen3_vit_88m", {"depth": 2}),
    "rdnet": ("rdnet_tiny", {}),
    "regnet": ("regnetx_002", {}),
    "repghost": ("repghostnet_050", {}),
    "repvit": ("repvit_m1", {}),
    "res2net": ("res2net50_26w_4s", {}),
    "resnest": ("resnest14d", {}),
    "resnet": ("test_resnet", {}),
    "resnetv2": ("resnetv2_18", {}),
    "rexnet": ("rexnet_100", {}),
    "selecsls": ("selecsls42", {}),
    "senet": ("legacy_seresnet18", {}),
    "sequencer": ("sequencer2d_s", {"layers": (1, 1, 1, 1)}),
    "shvit": ("shvit_s1", {}),
    "sknet": ("skresnet18", {}),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {"depths": (1, 2, 1, 1)}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", {"depths": (1, 2, 1, 1)}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {"depths": (1, 2, 1, 1)}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_legacy_patch16_224", {"depth": 2}),
    "tresnet": ("tresnet_m", {}),
    "twins": ("twins_svt_small", {"depths": (1, 1, 1, 1)}),
    "vgg": ("vgg11", {"num_classes": 10}),
    "visformer": ("visformer_tiny", {}),
    "vision_transformer": ("test_vit", {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {"depth": 2}),
    "vision_transformer_relpos": ("test_vit_relpos", {}),
    "vision_transformer_sam": (
        "samvit_base_patch16",
        {**_WIDE, "img_size": 256, "global_attn_indexes": (1,)},
    ),
    "vitamin": ("vitamin_small_224", {}),
    "volo": ("volo_d1_224", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xception": ("legacy_xception", {}),
    "xception_aligned": ("xception41", {}),
    "xcit": ("xcit_nano_12_p8_224", {"depth": 2}),
}


def _timm(family: str) -> Entry:
    name, options = _TIMM[family]

    def build() -> nn.Module:
        import timm

        if not timm.is_model(name):
            pytest.skip(f"timm {timm.__version__} has no {name}")
        return timm.create_model(name, **options)

    def inputs() -> tuple[Tensor, ...]:
        import timm

        size = timm.get_pretrained_cfg(name).input_size[1:]
        return _image(*((256, 256) if "img_size" in options else size))

    features = family in ("hieradet_sam2",)
    return Entry(f"timm/{family}", build, inputs, None if features else _labels)


# -- torchvision: all of it


def _torchvision(module: Any) -> Iterator[str]:
    yield from torchvision.models.list_models(module=module)


def _classifier(name: str) -> Entry:
    size = 299 if name == "inception_v3" else 224
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    build = functools.partial(torchvision.models.get_model, name, weights=None, **options)
    return Entry(f"torchvision/{name}", build, functools.partial(_image, size, size), _labels)


def _video(name: str) -> Entry:
    build = functools.partial(torchvision.models.get_model, name, weights=None)
    size = (16, 224, 224) if name.startswith(("mvit", "s3d")) else (8, 64, 64)
    return Entry(f"torchvision/{name}", build, functools.partial(_image, *size), _labels)


def _segmenter(name: str) -> Entry:
    auxiliary = {} if "lraspp" in name else {"aux_loss": True}
    build = functools.partial(
        torchvision.models.get_model, name, weights=None, weights_backbone=None, num_classes=7,
        **auxiliary,
    )  # fmt: skip
    return Entry(f"torchvision/{name}", build, functools.partial(_image, 64, 64), _labels)


def _detector(name: str) -> Entry:
    size = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 160}
    build = functools.partial(
        torchvision.models.get_model, name, weights=None, weights_backbone=None, num_classes=7,
        **size,
    )  # fmt: skip

    def inputs() -> tuple[list[Tensor]]:
        return ([torch.rand(3, 128, 128), torch.rand(3, 128, 160)],)

    def targets() -> list[dict[str, Tensor]]:
        target = {
            "boxes": torch.tensor([[20.0, 20.0, 90.0, 100.0], [5.0, 8.0, 40.0, 60.0]]),
            "labels": torch.tensor([3, 1]),
        }
        if name.startswith("mask"):
            target["masks"] = torch.zeros(2, 128, 128, dtype=torch.uint8)
            target["masks"][:, 30:60, 30:60] = 1
        if name.startswith("keypoint"):
            target["keypoints"] = torch.ones(2, 17, 3) * 30
        if name.startswith(("mask", "keypoint")):
            target["labels"] = torch.tensor([1, 1])
        second = dict(target)
        if "masks" in second:
            second["masks"] = torch.zeros(2, 128, 160, dtype=torch.uint8)
            second["masks"][:, 30:60, 30:60] = 1
        return [target, second]

    return Entry(f"torchvision/{name}", build, inputs, targets, training=False)


# -- transformers: small configurations


@dataclass(frozen=True)
class _Small:
    """A transformers model: its class, its configuration, its inputs and what its loss needs."""

    model: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[], dict[str, Any]] = lambda: _pixels(32)
    targets: Callable[[], dict[str, Any]] | None = None
    parts: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)


def _pixels(size: int, width: int | None = None, channels: int = 3) -> dict[str, Any]:
    return {"pixel_values": torch.rand(2, channels, size, width or size)}


def _frames(size: int, count: int) -> dict[str, Any]:
    return {"pixel_values": torch.rand(2, count, 3, size, size)}


def _words_and_pixels(size: int) -> dict[str, Any]:
    words = {"input_ids": torch.arange(16).reshape(2, 8), "attention_mask": torch.ones(2, 8).long()}
    return {**_pixels(size), **words}


def _class_labels() -> dict[str, Any]:
    return {"labels": _labels()}


def _map_labels(size: int, classes: int = CLASSES) -> Callable[[], dict[str, Any]]:
    return lambda: {"labels": torch.arange(2 * size * size).reshape(2, size, size) % classes}


def _box_labels() -> dict[str, Any]:
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.4], [0.3, 0.2, 0.2, 0.2]])
    return {"labels": [{"class_labels": torch.tensor([1, 3]), "boxes": boxes} for _ in range(2)]}


def _mask_labels(size: int) -> Callable[[], dict[str, Any]]:
    def targets() -> dict[str, Any]:
        mask = torch.zeros(2, size, size)
        mask[0, : size // 2], mask[1, size // 2 :] = 1, 1
        return {"mask_labels": [mask, mask], "class_labels": [torch.tensor([1, 3])] * 2}

    return targets


_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": CLASSES,
}
_RESNET = ("ResNetConfig", {
    "embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1],
    "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
})  # fmt: skip
_DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 12,
    "num_labels": CLASSES,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}
_RT_DETR = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 16, 32],
    "encoder_ffn_dim": 64,
    "encoder_attention_heads": 2,
    "d_model": 32,
    "num_queries": 20,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 64,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
    "num_labels": CLASSES,
}
_RT_RESNET = ("RTDetrResNetConfig", {
    "embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1],
    "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
})  # fmt: skip
_SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 2, 1, 1],
    "num_heads": [2, 2, 2, 2],
    "window_size": 4,
    "num_labels": CLASSES,
}
_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
}
_VISION = {k: v for k, v in _VIT.items() if k != "num_labels"}
_TWO = {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 16}
_PYRAMID = {
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "num_labels": CLASSES,
}

_TRANSFORMERS = (
    _Small("ViTForImageClassification", "ViTConfig", _VIT, targets=_class_labels),
    _Small("ViTForMaskedImageModeling", "ViTConfig", {**_VIT, "encoder_stride": 8}),
    _Small("DeiTForImageClassificationWithTeacher", "DeiTConfig", _VIT),
    _Small("BeitForImageClassification", "BeitConfig",
           {**_VIT, "use_relative_position_bias": True}, targets=_class_labels),
    _Small("BeitForSemanticSegmentation", "BeitConfig",
           {**_VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4],
            "use_relative_position_bias": True}, targets=_map_labels(32)),
    _Small("Data2VecVisionForImageClassification", "Data2VecVisionConfig",
           {**_VIT, "use_shared_relative_position_bias": True}, targets=_class_labels),
    _Small("Dinov2ForImageClassification", "Dinov2Config", _VIT, targets=_class_labels),
    _Small("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", _VIT,
           targets=_class_labels),
    _Small("Dinov2Model", "Dinov2Config", {**_VIT, "use_swiglu_ffn": True}),
    _Small("DINOv3ViTModel", "DINOv3ViTConfig", _VIT),
    _Small("DINOv3ConvNextModel", "DINOv3ConvNextConfig",
           {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}, lambda: _pixels(64)),
    _Small("IJepaForImageClassification", "IJepaConfig", _VIT, targets=_class_labels),
    _Small("ViTMSNForImageClassification", "ViTMSNConfig", _VIT, targets=_class_labels),
    _Small("ViTMAEForPreTraining", "ViTMAEConfig",
           {**_VIT, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32},
           targets=dict),
    _Small("VitDetModel", "VitDetConfig",
           {**_VIT, "window_block_indices": [0], "window_size": 2,
            "use_relative_position_embeddings": True}),
    _Small("YolosForObjectDetection", "YolosConfig",
           {**_VIT, "image_size": [32, 48], "num_detection_tokens": 5}, lambda: _pixels(32, 48),
           targets=_box_labels),
    _Small("VideoMAEForVideoClassification", "VideoMAEConfig",
           {**_VIT, "num_frames": 4, "tubelet_size": 2}, lambda: _frames(32, 4), _class_labels),
    _Small("VivitForVideoClassification", "VivitConfig",
           {**_VIT, "num_frames": 4, "tubelet_size": [2, 8, 8]}, lambda: _frames(32, 4),
           _class_labels),
    _Small("TimesformerForVideoClassification", "TimesformerConfig",
           {**_VIT, "num_frames": 4}, lambda: _frames(32, 4), _class_labels),
    _Small("SwinForImageClassification", "SwinConfig", {**_SWIN, "depths": [2, 2]},
           lambda: _pixels(64), _class_labels),
    _Small("Swinv2ForImageClassification", "Swinv2Config", _SWIN, lambda: _pixels(64),
           _class_labels),
    _Small("Swin2SRForImageSuperResolution", "Swin2SRConfig",
           {"image_size": 32, "patch_size": 1, "embed_dim": 16, "depths": [1, 2],
            "num_heads": [2, 2], "window_size": 4}),
    _Small("ConvNextForImageClassification", "ConvNextConfig", _PYRAMID, targets=_class_labels),
    _Small("ConvNextV2ForImageClassification", "ConvNextV2Config", _PYRAMID,
           targets=_class_labels),
    _Small("ResNetForImageClassification", "ResNetConfig",
           {**_PYRAMID, "embedding_size": 8}, lambda: _pixels(64), _class_labels),
    _Small("RegNetForImageClassification", "RegNetConfig",
           {**_PYRAMID, "embedding_size": 8, "groups_width": 8}, lambda: _pixels(64),
           _class_labels),
    _Small("BitForImageClassification", "BitConfig",
           {**_PYRAMID, "embedding_size": 8, "num_groups": 4}, lambda: _pixels(64), _class_labels),
    _Small("MobileNetV1ForImageClassification", "MobileNetV1Config",
           {"depth_multiplier": 0.25, "num_labels": CLASSES}, lambda: _pixels(64), _class_labels),
    _Small("MobileNetV2ForSemanticSegmentation", "MobileNetV2Config",
           {"depth_multiplier": 0.25, "num_labels": CLASSES}, lambda: _pixels(64),
           _map_labels(64)),
    _Small("MobileViTForImageClassification", "MobileViTConfig",
           {"image_size": 64, "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32], "num_attention_heads": 2,
            "num_labels": CLASSES}, lambda: _pixels(64), _class_labels),
    _Small("MobileViTV2ForImageClassification", "MobileViTV2Config",
           {"image_size": 64, "width_multiplier": 0.25, "num_labels": CLASSES},
           lambda: _pixels(64), _class_labels),
    _Small("EfficientNetForImageClassification", "EfficientNetConfig",
           {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25,
            "hidden_dim": 320, "num_labels": CLASSES}, lambda: _pixels(64), _class_labels),
    _Small("PoolFormerForImageClassification", "PoolFormerConfig", _PYRAMID, lambda: _pixels(64),
           _class_labels),
    _Small("FocalNetForImageClassification", "FocalNetConfig",
           {"image_size": 64, "embed_dim": 16, "hidden_sizes": [16, 32, 32, 64],
            "depths": [1, 1, 1, 1], "num_labels": CLASSES}, lambda: _pixels(64), _class_labels),
    _Small("LevitForImageClassification", "LevitConfig",
           {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1], "key_dim": [8, 8, 8], "num_labels": CLASSES},
           lambda: _pixels(64), _class_labels),
    _Small("CvtForImageClassification", "CvtConfig",
           {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3],
            "num_labels": CLASSES}, lambda: _pixels(64), _class_labels),
    _Small("PvtForImageClassification", "PvtConfig",
           {**_PYRAMID, "image_size": 64, "hidden_sizes": [8, 16, 16, 32],
            "num_attention_heads": [1, 2, 2, 2]}, lambda: _pixels(64), _class_labels),
    _Small("PvtV2ForImageClassification", "PvtV2Config",
           {**_PYRAMID, "image_size": 64, "num_attention_heads": [1, 2, 2, 2]},
           lambda: _pixels(64), _class_labels),
    _Small("HieraForImageClassification", "HieraConfig",
           {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 2, 2], "num_labels": CLASSES}, lambda: _pixels(64),
           _class_labels),
    _Small("HGNetV2ForImageClassification", "HGNetV2Config",
           {"stem_channels": [3, 8, 8], "hidden_sizes": [8, 16, 16, 32],
            "stage_in_channels": [8, 8, 16, 16], "stage_mid_channels": [8, 8, 8, 8],
            "stage_out_channels": [8, 16, 16, 32], "stage_num_blocks": [1, 1, 1, 1],
            "embedding_size": 8, "depths": [1, 1, 1, 1], "num_labels": CLASSES},
           lambda: _pixels(64), _class_labels),
    _Small("TextNetForImageClassification", "TextNetConfig", {"num_labels": CLASSES},
           lambda: _pixels(64), _class_labels),
    _Small("SwiftFormerForImageClassification", "SwiftFormerConfig",
           {"depths": [1, 1, 1, 1], "embed_dims": [16, 16, 32, 32], "num_labels": CLASSES},
           lambda: _pixels(64), _class_labels),
    _Small("SegformerForSemanticSegmentation", "SegformerConfig",
           {**_PYRAMID, "num_attention_heads": [1, 2, 2, 2], "decoder_hidden_size": 16},
           lambda: _pixels(64), _map_labels(64)),
    _Small("UperNetForSemanticSegmentation", "UperNetConfig",
           {"hidden_size": 16, "auxiliary_in_channels": 16, "auxiliary_channels": 8,
            "num_labels": CLASSES, "backbone": None, "use_pretrained_backbone": False,
            "use_timm_backbone": False}, lambda: _pixels(64), _map_labels(64),
           {"backbone_config": ("ConvNextConfig", {**_PYRAMID, **_STAGES})}),
    _Small("DPTForDepthEstimation", "DPTConfig",
           {**_VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16,
            "is_hybrid": False}),
    _Small("DPTForSemanticSegmentation", "DPTConfig",
           {**_VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16,
            "is_hybrid": False}, targets=_map_labels(32)),
    _Small("DepthAnythingForDepthEstimation", "DepthAnythingConfig",
           {"patch_size": 8, "reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16, "head_hidden_size": 8,
            "backbone": None, "use_pretrained_backbone": False},
           parts={"backbone_config": ("Dinov2Config", {
               **_VISION, "num_hidden_layers": 4, "reshape_hidden_states": False,
               "out_features": ["stage1", "stage2", "stage3", "stage4"]})}),
    _Small("ZoeDepthForDepthEstimation", "ZoeDepthConfig",
           {"reassemble_factors": [4, 2, 1, 0.5], "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16, "bottleneck_features": 16,
            "num_patch_transformer_layers": 1, "patch_transformer_hidden_size": 16,
            "patch_transformer_intermediate_size": 32, "patch_transformer_num_attention_heads": 2,
            "bin_configurations": [{"n_bins": 8, "min_depth": 0.1, "max_depth": 10.0,
                                    "name": "nyu"}],
            "bin_embedding_dim": 16, "num_attractors": [4, 2, 1, 1],
            "backbone": None, "use_pretrained_backbone": False},
           parts={"backbone_config": ("BeitConfig", {
               **_VISION, "num_hidden_layers": 4, "reshape_hidden_states": False,
               "use_relative_position_bias": True,
               "out_features": ["stage1", "stage2", "stage3", "stage4"]})}),
    _Small("GLPNForDepthEstimation", "GLPNConfig",
           {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 2], "decoder_hidden_size": 16}, lambda: _pixels(64),
           targets=lambda: {"labels": torch.ones(2, 64, 64)}),
    _Small("DetrForObjectDetection", "DetrConfig", _DETR, lambda: _pixels(64), _box_labels,
           {"backbone_config": ("ResNetConfig", {**_RESNET[1], "out_features": ["stage4"]})}),
    _Small("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", _DETR,
           lambda: _pixels(64), _box_labels,
           {"backbone_config": ("ResNetConfig", {**_RESNET[1], "out_features": ["stage4"]})}),
    _Small("DeformableDetrForObjectDetection", "DeformableDetrConfig",
           {**_DETR, "num_feature_levels": 3}, lambda: _pixels(64), _box_labels,
           {"backbone_config": _RESNET}),
    _Small("TableTransformerForObjectDetection", "TableTransformerConfig", _DETR,
           lambda: _pixels(64), _box_labels,
           {"backbone_config": ("ResNetConfig", {**_RESNET[1], "out_features": ["stage4"]})}),
    _Small("DabDetrForObjectDetection", "DabDetrConfig",
           {**{k: v for k, v in _DETR.items() if "d_model" not in k}, "hidden_size": 32},
           lambda: _pixels(64), _box_labels,
           {"backbone_config": ("ResNetConfig", {**_RESNET[1], "out_features": ["stage4"]})}),
    _Small("RTDetrForObjectDetection", "RTDetrConfig", _RT_DETR, lambda: _pixels(64), _box_labels,
           {"backbone_config": _RT_RESNET}),
    _Small("RTDetrV2ForObjectDetection", "RTDetrV2Config", _RT_DETR, lambda: _pixels(64),
           _box_labels, {"backbone_config": _RT_RESNET}),
    _Small("MaskFormerForInstanceSegmentation", "MaskFormerConfig",
           {"fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": CLASSES},
           lambda: _pixels(64), _mask_labels(64),
           {"backbone_config": ("SwinConfig", {**_SWIN, **_STAGES}),
            "decoder_config": ("DetrConfig", {**_DETR, "d_model": 32, "decoder_layers": 1})}),
    _Small("Mask2FormerForUniversalSegmentation", "Mask2FormerConfig",
           {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_layers": 1,
            "encoder_feedforward_dim": 32, "num_attention_heads": 2, "dim_feedforward": 32,
            "decoder_layers": 2, "num_queries": 6, "num_labels": CLASSES,
            "train_num_points": 32, "backbone": None, "use_pretrained_backbone": False},
           lambda: _pixels(64), _mask_labels(64),
           {"backbone_config": ("SwinConfig", {**_SWIN, **_STAGES})}),
    _Small("EomtForUniversalSegmentation", "EomtConfig",
           {**_VIT, "num_blocks": 1, "num_queries": 6, "num_upscale_blocks": 1,
            "num_register_tokens": 1, "train_num_points": 32}, targets=_mask_labels(32)),
    _Small("SamModel", "SamConfig",
           {"vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                              "mlp_dim": 64, "image_size": 64, "patch_size": 8, "window_size": 4,
                              "num_pos_feats": 16, "output_channels": 32,
                              "global_attn_indexes": [1]},
            "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 8,
                                      "mask_input_channels": 8},
            "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 1,
                                    "num_attention_heads": 2, "iou_head_hidden_dim": 32}},
           lambda: {**_pixels(64), "input_points": torch.full((2, 1, 1, 2), 20.0)}),
    _Small("SamVisionModel", "SamVisionConfig",
           {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64,
            "image_size": 64, "patch_size": 8, "window_size": 4, "output_channels": 16,
            "global_attn_indexes": [1]}, lambda: _pixels(64)),
    _Small("CLIPModel", "CLIPConfig", _TWO, lambda: _words_and_pixels(32),
           lambda: {"return_loss": True}),
    _Small("CLIPVisionModelWithProjection", "CLIPVisionConfig",
           {**_VISION, "projection_dim": 16}),
    _Small("CLIPForImageClassification", "CLIPConfig", {**_TWO, "num_labels": CLASSES},
           targets=_class_labels),
    _Small("SiglipModel", "SiglipConfig",
           {"text_config": {**_TEXT, "max_position_embeddings": 8, "projection_size": 32},
            "vision_config": _VISION},
           lambda: _words_and_pixels(32), lambda: {"return_loss": True}),
    _Small("ChineseCLIPModel", "ChineseCLIPConfig", _TWO, lambda: _words_and_pixels(32),
           lambda: {"return_loss": True}),
    _Small("CLIPSegForImageSegmentation", "CLIPSegConfig",
           {**_TWO, "extract_layers": [0, 1], "reduce_dim": 16, "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
            "vision_config": {**_VISION, "num_hidden_layers": 3}},
           lambda: _words_and_pixels(32), lambda: {"labels": torch.ones(2, 32, 32)}),
    _Small("GroupViTModel", "GroupViTConfig",
           {"text_config": _TEXT, "projection_dim": 16, "projection_intermediate_dim": 32,
            "vision_config": {**_VISION, "depths": [1, 1, 1], "num_group_tokens": [4, 2, 0],
                              "num_output_groups": [4, 2, 0], "num_hidden_layers": 3}},
           lambda: _words_and_pixels(32), lambda: {"return_loss": True}),
    _Small("OwlViTForObjectDetection", "OwlViTConfig", {**_TWO, "projection_dim": 32},
           lambda: {**_pixels(32), "input_ids": torch.arange(16).reshape(2, 8),
                    "attention_mask": torch.ones(2, 8).long()}),
    _Small("Aimv2VisionModel", "Aimv2VisionConfig", _VISION),
    _Small("VitMatteForImageMatting", "VitMatteConfig",
           {"hidden_size": 32, "fusion_hidden_sizes": [16, 8, 8, 8],
            "convstream_hidden_sizes": [8, 8, 8], "batch_norm_eps": 1e-5,
            "backbone": None, "use_pretrained_backbone": False},
           lambda: _pixels(64, channels=4),
           parts={"backbone_config": ("VitDetConfig", {
               **_VISION, "image_size": 64, "patch_size": 16, "num_channels": 4,
               "out_features": ["stage2"], "residual_block_indices": [1],
               "window_block_indices": [0], "window_size": 2,
               "use_relative_position_embeddings": True})}),
    _Small("VitPoseForPoseEstimation", "VitPoseConfig", {
        "num_labels": 5, "use_simple_decoder": True, "backbone": None,
        "use_pretrained_backbone": False},
        lambda: _pixels(64, 48),
        parts={"backbone_config": ("VitPoseBackboneConfig", {
            "image_size": [64, 48], "patch_size": [16, 16], "hidden_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "out_features": ["stage2"],
            "out_indices": [2]})}),
    _Small("SuperPointForKeypointDetection", "SuperPointConfig",
           {"encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16,
            "keypoint_decoder_dim": 65, "descriptor_decoder_dim": 16}, lambda: _pixels(64)),
    _Small("PerceiverForImageClassificationLearned", "PerceiverConfig",
           {"num_latents": 8, "d_latents": 32, "num_blocks": 1, "num_self_attends_per_block": 1,
            "num_self_attention_heads": 2, "num_cross_attention_heads": 2, "image_size": 32,
            "num_labels": CLASSES}, lambda: {"inputs": torch.rand(2, 3, 32, 32)}),
)  # fmt: skip


def _transformers(small: _Small) -> Entry:
    def build() -> nn.Module:
        import transformers

        if not hasattr(transformers, small.model):
            pytest.skip(f"transformers {transformers.__version__} has no {small.model}")

        def config(name: str, options: Mapping[str, Any]) -> Any:
            return getattr(transformers, name)(**options)

        parts = {key: config(*part) for key, part in small.parts.items()}
        whole = config(small.config, {**small.options, **parts})
        return getattr(transformers, small.model)(whole)

    return Entry(f"transformers/{small.model}", build, small.inputs, small.targets)


def _entries() -> Iterator[Entry]:
    models = torchvision.models
    yield from (_timm(family) for family in _TIMM)
    yield from (_classifier(name) for name in _torchvision(models))
    yield from (_video(name) for name in _torchvision(models.video))
    yield from (_segmenter(name) for name in _torchvision(models.segmentation))
    yield from (_detector(name) for name in _torchvision(models.detection))
    for small in _TRANSFORMERS:
        yield _transformers(small)


ZOO = {entry.name: entry for entry in _entries()}
TIMM_FAMILIES = tuple(_TIMM)
