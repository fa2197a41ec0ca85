"""Images: decoded once into memory where they are small, from the disk with workers otherwise.

Small images (CIFAR-10) are kept as bytes, on the GPU where there is one, and a batch is cropped,
flipped and normalised in one go. Order and augmentation are functions of seed and step.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ghn_init.errors import GHNInitError
from ghn_init.images.constants import LARGE_IMAGES
from ghn_init.images.items import Items, find_items, require_torchvision
from ghn_init.seeds import torch_generator

if TYPE_CHECKING:
    from PIL.Image import Image

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_PAD = 4
"""Pixels by which a small image is moved at most."""

_HOLDOUT_SEED = 0
"""Which images are held out does not depend on the seed of a run."""

_Key = tuple[int, tuple[int, int, int] | None]
"""Number of an image, and the seed of its augmentation; None: no augmentation."""

Batch = tuple[Tensor, Tensor]
"""Images `(B, 3, H, W)`, normalised, channels last in memory, and labels `(B,)`."""


class Images(abc.ABC):
    """A data set of images, all of one size once they are in a batch.

    Arguments:
        labels: `(N,)`.
        classes: names.
        image_size: height and width in a batch.
    """

    def __init__(self, labels: Tensor, classes: tuple[str, ...], image_size: int) -> None:
        self.labels, self.classes, self.image_size = labels, classes, image_size

    @abc.abstractmethod
    def train_batches(
        self, batch_size: int, seed: int, start: int, stop: int, augment: str = "crop"
    ) -> Iterator[Batch]:
        """Batches of steps `start` to `stop`: shuffled in every epoch, augmented.

        Arguments:
            batch_size: images in a batch; those that do not fill one are left out of an epoch.
            seed: of order and augmentation.
            start, stop: numbers of steps.
            augment: `"crop"` for random crops, every other one mirrored; small images also
                `"mirror"` or `"none"`.

        Raises:
            GHNInitError: there are fewer images than a batch has, or large ones are not cropped.
        """

    @abc.abstractmethod
    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every image once, in a fixed random order (batch statistics need mixed classes)."""

    @abc.abstractmethod
    def subset(self, indices: Tensor) -> Images:
        """Only some of the images."""


def first(images: Images, count: int) -> Images:
    """The first so many images of the test order."""
    return images.subset(_test_order(len(images.labels))[:count])


def count_images(source: str) -> int:
    """How many training images there are, without decoding any."""
    return len(find_items(source, "train")[0])


def load_images(
    source: str,
    split: str = "train",
    image_size: int = 32,
    holdout: int = 0,
    device: str | torch.device = "cpu",
    workers: int | None = None,
) -> Images:
    """The images of one split.

    Arguments:
        source: `imagefolder:PATH`, with `PATH/train/<class>/<image>` and `PATH/test/...` (or
            `val`); or `torchvision:NAME:PATH` for a data set of torchvision, say `CIFAR10`.
        split: `"train"` without the images held out, `"holdout"` for these, or `"test"`.
        image_size: height and width in a batch; from `LARGE_IMAGES` on images stay on the disk.
        holdout: training images held out, evenly over the classes.
        device: where the batches are wanted.
        workers: processes that load large images; None: the cores, at most 16.

    Raises:
        GHNInitError: the source cannot be found or read, or has fewer images than are held out.
    """
    items, classes = find_items(source, split)
    images = open_items(items, classes, image_size, device, workers)
    if split == "test" or not holdout:
        return images
    kept, held = _hold_out(images.labels, len(classes), holdout)
    return images.subset(held if split == "holdout" else kept)


def open_items(
    items: Items,
    classes: tuple[str, ...],
    image_size: int,
    device: str | torch.device = "cpu",
    workers: int | None = None,
) -> Images:
    """Images that were found: small ones are decoded now, large ones when they are needed.

    Arguments:
        items: as `find_items` gives them, or a subset.
        classes: names.
        image_size, device, workers: as in `load_images`.
    """
    workers = min(16, os.cpu_count() or 1) if workers is None else workers
    if image_size < LARGE_IMAGES:
        return SmallImages.decode(items, classes, image_size, device)
    return LargeImages(items, classes, image_size, device, workers)


class SmallImages(Images):
    """Images in memory.

    Arguments:
        pixels: `(N, H, W, 3)` bytes, H = W.
        labels: `(N,)`.
        classes: names.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
        super().__init__(labels, classes, pixels.shape[1])
        self.pixels = pixels

    @staticmethod
    def decode(
        items: Items, classes: tuple[str, ...], image_size: int, device: str | torch.device
    ) -> SmallImages:
        """Decode all images in threads, and bring them to one size."""
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            pixels = list(pool.map(lambda i: _decode(items, i, image_size), range(len(items))))
        stacked = torch.stack(pixels).to(device)
        labels = torch.tensor([items.label(i) for i in range(len(items))], device=device)
        return SmallImages(stacked, labels, classes)

    def train_batches(
        self, batch_size: int, seed: int, start: int, stop: int, augment: str = "crop"
    ) -> Iterator[Batch]:
        for step in range(start, stop):
            rows = _train_rows(len(self.labels), batch_size, seed, step).to(self.pixels.device)
            yield self._augment(self.pixels[rows], seed, step, augment), self.labels[rows]

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        for rows in _test_rows(len(self.labels), batch_size):
            rows = rows.to(self.pixels.device)
            yield _normalise(self.pixels[rows], self.image_size), self.labels[rows]

    def subset(self, indices: Tensor) -> SmallImages:
        rows = indices.to(self.pixels.device)
        return SmallImages(self.pixels[rows], self.labels[rows], self.classes)

    def _augment(self, pixels: Tensor, seed: int, step: int, augment: str) -> Tensor:
        """Random crops out of the image with a black margin, every other one mirrored."""
        batch, size, device = len(pixels), self.image_size, pixels.device
        if augment == "none":
            return _normalise(pixels, size)
        pad = _PAD if augment == "crop" else 0
        generator = torch_generator(seed, "augment", step)
        offsets = torch.randint(2 * pad + 1, (2, batch, 1), generator=generator)
        mirror = torch.rand(batch, 1, generator=generator) < 0.5
        places = torch.arange(size)
        rows = offsets[0] + places
        columns = offsets[1] + torch.where(mirror, places.flip(0), places)
        rows, columns = rows.to(device), columns.to(device)
        padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
        which = torch.arange(batch, device=device)[:, None, None]
        return _normalise(padded[which, rows[:, :, None], columns[:, None, :]], size)


class LargeImages(Images):
    """Images on the disk, decoded by worker processes as they are needed.

    Arguments:
        items: where they are.
        classes: names.
        image_size: H and W.
        device: where the batches are wanted.
        workers: processes.
    """

    def __init__(
        self,
        items: Items,
        classes: tuple[str, ...],
        image_size: int,
        device: str | torch.device,
        workers: int,
    ) -> None:
        require_torchvision()
        labels = torch.tensor([items.label(i) for i in range(len(items))])
        super().__init__(labels, classes, image_size)
        self.items, self.device, self.workers = items, torch.device(device), workers

    def train_batches(
        self, batch_size: int, seed: int, start: int, stop: int, augment: str = "crop"
    ) -> Iterator[Batch]:
        if augment != "crop":
            raise GHNInitError(
                f"--augment {augment} is for images below {LARGE_IMAGES} pixels: larger ones do "
                "not have one size before they are cropped."
            )
        return self._load(_TrainKeys(len(self.labels), batch_size, seed, start, stop))

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        rows = _test_rows(len(self.labels), batch_size)
        keys: list[list[_Key]] = [[(i, None) for i in r.tolist()] for r in rows]
        return self._load(keys)

    def subset(self, indices: Tensor) -> LargeImages:
        items = self.items.subset(indices.tolist())
        return LargeImages(items, self.classes, self.image_size, self.device, self.workers)

    def _load(self, keys: Iterable[list[_Key]]) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            _Decoded(self.items, self.image_size),
            batch_sampler=keys,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for pixels, labels in loader:
            pixels = pixels.to(self.device, non_blocking=True)
            yield _normalise(pixels, self.image_size), labels.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class _TrainKeys:
    """The keys of every training batch, made as they are needed."""

    count: int
    batch_size: int
    seed: int
    start: int
    stop: int

    def __iter__(self) -> Iterator[list[_Key]]:
        for step in range(self.start, self.stop):
            rows = _train_rows(self.count, self.batch_size, self.seed, step)
            yield [(i, (self.seed, step, i)) for i in rows.tolist()]


class _Decoded(Dataset[Batch]):
    """Decoded and cropped images by `(index, seed of the augmentation or None)`."""

    def __init__(self, items: Items, image_size: int) -> None:
        self.items, self.image_size = items, image_size

    def __getitem__(self, key: _Key) -> Batch:
        from torchvision.transforms import v2

        index, seed = key
        size = self.image_size
        if seed is None:
            steps = [v2.Resize(size * 256 // 224), v2.CenterCrop(size)]
        else:
            jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.2)
            steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), jitter]
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(torch_generator("crop", seed).initial_seed())
            image = v2.Compose(steps)(self.items.open(index))
        return _to_bytes(image), torch.tensor(self.items.label(index))


# -- order, size, normalisation


def _train_rows(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Which images a training step sees: whole batches of a new permutation in every epoch."""
    epoch, place = divmod(step, steps_per_epoch(count, batch_size))
    order = _permutation(count, seed, epoch)
    return order[place * batch_size : (place + 1) * batch_size]


_last_permutation: tuple[tuple[int, int, int], Tensor] | None = None


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch; the last one is remembered."""
    global _last_permutation
    key = (count, seed, epoch)
    if _last_permutation is None or _last_permutation[0] != key:
        order = torch.randperm(count, generator=torch_generator(seed, "images", epoch))
        _last_permutation = (key, order)
    return _last_permutation[1]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Whole batches in an epoch.

    Raises:
        GHNInitError: there is not one.
    """
    if count < batch_size:
        raise GHNInitError(f"{count} images do not fill a batch of {batch_size}.")
    return count // batch_size


def _test_rows(count: int, batch_size: int) -> list[Tensor]:
    return list(_test_order(count).split(batch_size))


def _test_order(count: int) -> Tensor:
    return torch.randperm(count, generator=torch_generator("test order"))


def _hold_out(labels: Tensor, classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Indices to keep and to hold out, the latter evenly over the classes."""
    if count % classes or count >= len(labels):
        raise GHNInitError(
            f"cannot hold out {count} of {len(labels)} images of {classes} classes: give a "
            f"multiple of {classes} that leaves some."
        )
    generator = torch_generator(_HOLDOUT_SEED, "holdout")
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(classes):
        members = (labels.cpu() == label).nonzero()[:, 0]
        chosen = torch.randperm(len(members), generator=generator)[: count // classes]
        held[members[chosen]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def _decode(items: Items, index: int, size: int) -> Tensor:
    """`(size, size, 3)` bytes; an image of another size is scaled and cropped in the middle."""
    image = items.open(index)
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height)).crop((left, top, left + size, top + size))
    return _to_bytes(image)


def _to_bytes(image: Image) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(image))


def _normalise(pixels: Tensor, image_size: int) -> Tensor:
    """`(B, H, W, 3)` bytes -> `(B, 3, H, W)`, mean 0 and variance 1, channels last in memory."""
    large = image_size >= LARGE_IMAGES
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if large else (CIFAR_MEAN, CIFAR_STD)
    shift = torch.tensor(mean, device=pixels.device) * 255
    scale = 1 / (torch.tensor(std, device=pixels.device) * 255)
    return ((pixels - shift) * scale).permute(0, 3, 1, 2)
