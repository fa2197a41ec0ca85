"""Batches of images: random ones, or from a folder with one subfolder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import Graph
from ghn_init.graph.inputs import likely_inputs
from ghn_init.graph.tracing import check_traceable, trace

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, which the published hypernetworks were trained on."""

_TRAIN, _TEST = ("train",), ("test", "val", "valid", "validation")


@dataclass(frozen=True, eq=False)
class Batch:
    """A mini-batch.

    Arguments:
        images: `(B, C, H, W)`, or whatever the model takes, normalised.
        labels: `(B,)` class indices.
        source: where they come from, for tables.
    """

    images: Tensor
    labels: Tensor
    source: str = "a given batch"


def traced(model: nn.Module, shape: tuple[int, ...] | None = None) -> tuple[Graph, tuple[int, ...]]:
    """A model's graph, and the shape of one input, which is guessed as in `trace` unless given.

    Raises:
        GHNInitError: the model does not run on such inputs.
    """
    check_traceable(model)
    if shape is not None:
        return trace(model, torch.empty(2, *shape, device="meta")), shape
    first = None
    for inputs in likely_inputs(model):
        try:
            graph = trace(model, inputs.args[0])
        except GHNInitError as error:
            first = first or error
        else:
            return graph, tuple(inputs.args[0].shape[1:])
    assert first is not None
    raise first


def random_batch(shape: tuple[int, ...], classes: int, size: int = 8, seed: int = 0) -> Batch:
    """Standard normal images and uniform labels.

    Arguments:
        shape: of one image, `(C, H, W)`.
        classes: labels are below it.
        size: images.
        seed: the global RNG is neither read nor changed.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, *shape, generator=generator)
    labels = torch.randint(classes, (size,), generator=generator)
    return Batch(images, labels, f"{size} random images of {'x'.join(map(str, shape))}")


def folder_batch(
    folder: str | os.PathLike[str], image_size: int, size: int = 8, seed: int = 0
) -> Batch:
    """Images drawn at random, without repetition, from a folder of classes.

    Arguments:
        folder: with one subfolder a class; or with `train/` that has them.
        image_size: the shorter side is scaled to it and the middle cut out.
        size: images, at most all there are.
        seed: of the draw.

    Raises:
        GHNInitError: no such folder, or no images in it.
    """
    images = open_folder(folder, image_size)
    return next(iter_batches(images, size, size, seed))


def open_folder(folder: str | os.PathLike[str], image_size: int, test: bool = False) -> ImageFolder:
    """The images of a folder: of its `train/` (or `test/`, `val/`) where it has one, else its own.

    Raises:
        GHNInitError: no such folder, or no images in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise GHNInitError(
            f"there is no folder {os.fspath(folder)!r}: give one of images by class."
        )
    parts = [root / name for name in (_TEST if test else _TRAIN) if (root / name).is_dir()]
    steps: list[Any] = [
        transforms.Resize(image_size),
        transforms.CenterCrop(image_size),
        transforms.ToTensor(),
        transforms.Normalize(_MEAN, _STD),
    ]
    try:
        return ImageFolder(os.fspath(parts[0] if parts else root), transforms.Compose(steps))
    except (FileNotFoundError, OSError) as error:
        raise GHNInitError(f"no images in {os.fspath(folder)!r}: {error}") from error


def iter_batches(images: ImageFolder, count: int, size: int, seed: int) -> Iterator[Batch]:
    """`count` images in random order (all, if there are fewer), in even batches of at most `size`.

    Even, so that no single image is left over, which batch norm would refuse.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)[:count]
    for part in order.tensor_split(-(-len(order) // size)):
        chosen = [images[i] for i in part.tolist()]
        pixels = torch.stack([image for image, _ in chosen])
        labels = torch.tensor([label for _, label in chosen])
        yield Batch(pixels, labels, f"{len(chosen)} images of {Path(images.root).name}")
