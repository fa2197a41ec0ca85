"""What a data set of images gives: batches, whose order is a function of seed and step."""

from __future__ import annotations

import abc
import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ghn_init.errors import GHNInitError
from ghn_init.images.constants import LARGE_IMAGES
from ghn_init.seeds import torch_generator

_CIFAR = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Mean and standard deviation of each channel; timm and torchvision only have those of ImageNet."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A mini-batch; `images, labels = batch` takes it apart.

    Arguments:
        images: `(B, 3, H, W)`, or whatever the model takes, normalized.
        labels: `(B,)` class indices.
        source: where they come from, for tables.
    """

    images: Tensor
    labels: Tensor
    source: str = "a given batch"

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels))


class Images(abc.ABC):
    """A data set of images, all of one size once they are in a batch.

    Arguments:
        labels: `(N,)`.
        classes: names.
        image_size: height and width in a batch.
        device: where the batches are.
    """

    def __init__(
        self, labels: Tensor, classes: tuple[str, ...], image_size: int, device: torch.device
    ) -> None:
        self.labels, self.classes, self.image_size = labels, classes, image_size
        self.device = device

    @abc.abstractmethod
    def train_batches(
        self,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        augment: str = "crop",
        places: Callable[[int], Tensor] | None = None,
    ) -> Iterator[Batch]:
        """Batches of steps `start` to `stop`: shuffled in every epoch, augmented.

        Arguments:
            batch_size: images in a batch; those that do not fill one are left out of an epoch.
            seed: of order and augmentation.
            start, stop: numbers of steps.
            augment: `"crop"` for random crops, every other one mirrored; small images also
                `"mirror"` or `"none"`.
            places: for a step, which images of its batch are wanted, say by one process of
                several: the same as they are in the whole batch, and no others are read. By
                default all.

        Raises:
            GHNInitError: there are fewer images than a batch has, large ones are not cropped, or
                one cannot be decoded.
        """

    @abc.abstractmethod
    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every image once, in a fixed random order: statistics of a batch need mixed classes.

        The batches are even and have at most `batch_size` images: a single image, left over, is
        what batch normalization refuses.
        """

    @abc.abstractmethod
    def subset(self, indices: Tensor) -> Images:
        """Only some of the images."""

    @abc.abstractmethod
    def _content(self) -> Iterator[bytes]:
        """What tells the images apart from others."""

    def digest(self) -> str:
        """A checksum of classes, labels and images: sixteen hexadecimal digits."""
        found = hashlib.sha256(repr(self.classes).encode())
        found.update(self.labels.cpu().numpy().tobytes())
        for part in self._content():
            found.update(part)
        return found.hexdigest()[:16]


# -- order


def train_rows(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Which images a training step sees: whole batches of a new permutation in every epoch."""
    epoch, place = divmod(step, steps_per_epoch(count, batch_size))
    order = _permutation(count, seed, epoch)
    return order[place * batch_size : (place + 1) * batch_size]


@functools.lru_cache(1)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch."""
    return torch.randperm(count, generator=torch_generator(seed, "images", epoch))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Whole batches in an epoch.

    Raises:
        GHNInitError: there is not one.
    """
    if not 0 < batch_size <= count:
        raise GHNInitError(f"{count} images do not fill a batch of {batch_size}.")
    return count // batch_size


def test_rows(count: int, batch_size: int) -> tuple[Tensor, ...]:
    """Which images each batch of a test has."""
    return test_order(count).tensor_split(-(-count // batch_size))


def test_order(count: int) -> Tensor:
    """The same for all tests of so many images."""
    return torch.randperm(count, generator=torch_generator("test order"))


# -- normalization


def normalize(pixels: Tensor, image_size: int) -> Tensor:
    """`(B, H, W, 3)` bytes -> `(B, 3, H, W)`, mean 0 and variance 1, channels last in memory."""
    mean, std = _imagenet() if image_size >= LARGE_IMAGES else _CIFAR
    shift = torch.tensor(mean, device=pixels.device) * 255
    scale = 1 / (torch.tensor(std, device=pixels.device) * 255)
    return ((pixels - shift) * scale).permute(0, 3, 1, 2)


def _imagenet() -> tuple[tuple[float, ...], tuple[float, ...]]:
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
