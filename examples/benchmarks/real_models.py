"""Accuracy on CIFAR-10 of what a hypernetwork predicts for small models of real families.

    python examples/benchmarks/real_models.py --ghn embedded --data imagefolder:cifar10

Nothing is trained, and nothing is made orthogonal: classification layers are predicted too, batch
norms use the statistics of batches of 64, and what is left keeps the library's initialization.
Models are timm's and have their own stems; those of patches take small ones.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from timm.models.mlp_mixer import MlpMixer
from torch import nn

import ghn_init
from ghn_init.images import first, load_images, top1

IN_TIMM: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "resnet18": {},
    "resnet34": {},
    "resnet50": {},
    "resnext50_32x4d": {},
    "regnety_002": {},
    "mobilenetv3_small_100": {},
    "densenet121": {},
    "efficientnet_b0": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 4},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "patch_size": 2, "window_size": 4},
}


def models() -> Iterator[tuple[str, nn.Module]]:
    """Names and models, initialized by timm."""
    for name, changes in IN_TIMM.items():
        torch.manual_seed(0)
        yield name, timm.create_model(name, num_classes=10, **changes)
    torch.manual_seed(0)
    yield "mixer, 8 blocks of 256", MlpMixer(10, 32, patch_size=4, embed_dim=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ghn", required=True, help="checkpoint of ten classes, by name or path")
    parser.add_argument("--data", required=True, help="imagefolder:PATH or torchvision:NAME:PATH")
    parser.add_argument("--num-images", type=int, default=1024, help="default: %(default)s")
    options = parser.parse_args()
    ghn = ghn_init.load_ghn(options.ghn)
    images = first(load_images(options.data, "test"), options.num_images)
    found = []
    for name, model in models():
        for part in model.modules():
            if isinstance(part, DropPath):
                part.drop_prob = 0.0
        ghn_init.apply(
            model, "ghn3", ghn=ghn, head="predict", norms="predict", noise=0,
            example_inputs=torch.empty(2, 3, 32, 32),
        )  # fmt: skip
        accuracy, _ = top1(model.train(), images, 64)
        found.append(accuracy)
        print(f"{name:30}{accuracy:6.1f}", flush=True)
    print(f"{'mean':30}{statistics.mean(found):6.1f}")


if __name__ == "__main__":
    main()
