"""What the scripts of this folder share: their arguments, and images of a folder."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2


def arguments(description: str | None) -> argparse.Namespace:
    """--data, --steps, --batch-size, --image-size and --ghn."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help="a folder with train/<class>/<image>")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--ghn", default="embedded", help="checkpoint; default: %(default)s")
    return parser.parse_args()


def image_folder(options: argparse.Namespace) -> ImageFolder:
    """The training images, as tensors of one size."""
    size = options.image_size
    to_tensor = v2.Compose(
        [v2.PILToTensor(), v2.Resize((size, size)), v2.ToDtype(torch.float32, scale=True)]
    )
    return ImageFolder(f"{options.data}/train", to_tensor)


def loader(
    options: argparse.Namespace, sampler: Sampler[int] | None = None
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches of images and labels."""
    data = image_folder(options)
    return DataLoader(data, options.batch_size, sampler=sampler, shuffle=sampler is None)


def for_steps(batches: DataLoader[tuple[Tensor, Tensor]], steps: int) -> Iterator[list[Tensor]]:
    """So many batches, over and over."""
    while steps > 0:
        for batch in batches:
            if steps == 0:
                return
            yield batch
            steps -= 1
