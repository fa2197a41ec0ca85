"""Batches of images for measurements: random ones, or of a folder or data set."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import Graph
from ghn_init.graph.inputs import likely_inputs
from ghn_init.graph.tracing import check_traceable, trace
from ghn_init.images.batches import Batch as Batch
from ghn_init.images.batches import Images
from ghn_init.images.items import find_items
from ghn_init.images.split import open_items
from ghn_init.methods.running import image_inputs


def traced(model: nn.Module, shape: tuple[int, ...] | None = None) -> tuple[Graph, tuple[int, ...]]:
    """A model's graph, and the shape of one input, which is guessed as in `trace` unless given.

    Raises:
        GHNInitError: the model does not run on such inputs.
    """
    check_traceable(model)
    guessed = [next(iter(pytree.tree_leaves((i.args, i.kwargs)))) for i in likely_inputs(model)]
    first = None
    for tried in [shape] if shape is not None else [tuple(image.shape[1:]) for image in guessed]:
        try:
            return trace(model, image_inputs(model, torch.empty(2, *tried, device="meta"))), tried
        except GHNInitError as error:
            first = first or error
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
    source: str | os.PathLike[str], image_size: int, size: int = 8, seed: int = 0
) -> Batch:
    """Images drawn at random, without repetition.

    Arguments:
        source, image_size, seed: as in `some_images`.
        size: images, at most all there are.

    Raises:
        GHNInitError: as `some_images`.
    """
    images = some_images(source, image_size, size, seed)
    batch = next(images.test_batches(size))
    name = os.path.basename(os.path.normpath(source))
    return Batch(batch.images, batch.labels, f"{len(batch.labels)} images of {name}")


def some_images(
    source: str | os.PathLike[str], image_size: int, count: int, seed: int = 0, test: bool = False
) -> Images:
    """Images drawn at random from all training images, or all test images; only they are decoded.

    Arguments:
        source: as in `ghn_init.images.load_images`; or a folder with one subfolder a class.
        image_size: the shorter side is scaled to it and the middle cut out.
        count: images, at most all there are.
        seed: of the draw.
        test: of the test images.

    Raises:
        GHNInitError: no such folder or data set, no images in it, or damaged ones.
    """
    if count < 1:
        raise GHNInitError(f"{count} images are asked for: give 1 or more.")
    items = find_items(source, "test" if test else "train", bare=True)
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    return open_items(items.subset(order[:count]), image_size, workers=0)
