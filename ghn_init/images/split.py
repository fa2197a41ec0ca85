"""Images to train on, to choose on and to test on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ghn_init.errors import GHNInitError
from ghn_init.images.data import Images, LargeImages, SmallImages, open_items
from ghn_init.images.items import find_items
from ghn_init.seeds import torch_generator

_SAMPLE = 64
"""Images that stay on the disk are told apart by so many of them."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images of three kinds, none in two of them.

    Arguments:
        train: labelled images that runs are trained on.
        validation: training images that no run is trained on, to choose hyperparameters; or None.
        test: for the accuracies that are reported.
    """

    train: Images
    validation: Images | None
    test: Images

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        images = self.train
        return images.device if isinstance(images, LargeImages) else images.labels.device

    def digests(self) -> dict[str, str]:
        """Checksums of the images and labels of each kind that there is."""
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        return {f"{k} images": _digest(images) for k, images in parts.items() if images is not None}


def load_split(
    source: str,
    image_size: int = 32,
    labels: int = 0,
    validation: int = 0,
    test_images: int = 0,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Split:
    """The images of a data set that a comparison needs; only these are decoded.

    Arguments:
        source: as in `ghn_init.train.load_images`; or just the path of an image folder.
        image_size: height and width in a batch; smaller than 96, images are kept in memory, and
            are moved and mirrored by `SmallImages`.
        labels, validation, test_images, seed: as in `split_images`.
        device: where the batches are wanted.

    Raises:
        GHNInitError: the source cannot be read, its test images have other classes, or it has
            fewer images than are asked for.
    """
    if source.partition(":")[0] not in ("imagefolder", "torchvision"):
        source = f"imagefolder:{source}"
    train, classes = find_items(source, "train")
    test, test_classes = find_items(source, "test")
    _check_classes(classes, test_classes)
    found = torch.tensor([train.label(i) for i in range(len(train))])
    fit, held = _draw(found, labels, validation, seed)
    tested = _some(len(test), test_images).tolist()
    opened = [
        open_items(items.subset(rows), classes, image_size, device) if rows else None
        for items, rows in ((train, fit.tolist()), (train, held.tolist()), (test, tested))
    ]
    assert opened[0] is not None
    assert opened[2] is not None
    return Split(opened[0], opened[1], opened[2])


def split_images(
    train: Images,
    test: Images,
    labels: int = 0,
    validation: int = 0,
    test_images: int = 0,
    seed: int = 0,
) -> Split:
    """The images of a comparison, out of all training and test images.

    Arguments:
        train, test: all of them.
        labels: training images to train on, evenly over the classes; 0: all.
        validation: training images to choose on, evenly over the classes. They are taken from
            those that `labels` leaves; where that is none (0), the runs train on that many less.
        test_images: test images, a random subset that is always the same; 0: all.
        seed: of the choice of training images.

    Raises:
        GHNInitError: other classes in `test`, or fewer images than are asked for.
    """
    _check_classes(train.classes, test.classes)
    fit, held = _draw(train.labels.cpu(), labels, validation, seed)
    return Split(
        train.subset(fit),
        train.subset(held) if len(held) else None,
        test.subset(_some(len(test.labels), test_images)),
    )


def _check_classes(train: tuple[str, ...], test: tuple[str, ...]) -> None:
    if train != test:
        other = sorted(set(train) ^ set(test))[:5]
        raise GHNInitError(
            f"training and test images have different classes ({', '.join(other)}): give data "
            "with the same ones in both."
        )


def _draw(labels: Tensor, count: int, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on, and rows to choose on, as evenly over the classes as can be."""
    enough = validation < len(labels) if count == 0 else count + validation <= len(labels)
    if min(count, validation) < 0 or not enough:
        raise GHNInitError(
            f"{count or 'all'} labelled images and {validation} to choose on are asked for, of "
            f"{len(labels)} training images: give smaller numbers from 0 up."
        )
    order = _balanced_order(labels, seed)
    if count:
        return order[:count], order[count : count + validation]
    return order[validation:], order[:validation]


def _balanced_order(labels: Tensor, seed: int) -> Tensor:
    """A random order, every beginning of which has as many images of each class as can be."""
    generator = torch_generator(seed, "labelled images")
    shuffled = torch.randperm(len(labels), generator=generator)
    drawn = labels[shuffled]
    place = torch.empty_like(drawn)  # of an image among those of its class
    classes = drawn.unique()
    for label in classes:
        members = (drawn == label).nonzero()[:, 0]
        place[members] = torch.arange(len(members))
    return shuffled[torch.argsort(place * (1 + classes.max()) + drawn)]


def _some(total: int, count: int) -> Tensor:
    """Rows of a random subset, or all of them."""
    if not 0 <= count <= total:
        raise GHNInitError(f"{count} test images are asked for, and there are {total}.")
    if count in (0, total):
        return torch.arange(total)
    return torch.randperm(total, generator=torch_generator("tested images"))[:count]


def _digest(images: Images) -> str:
    """Sixteen hexadecimal digits."""
    found = hashlib.sha256(repr(images.classes).encode())
    found.update(images.labels.cpu().numpy().tobytes())
    if isinstance(images, SmallImages):
        found.update(images.pixels.cpu().numpy().tobytes())
    elif isinstance(images, LargeImages):
        for i in range(0, len(images.items), max(1, len(images.items) // _SAMPLE)):
            found.update(images.items.open(i).tobytes())
    return found.hexdigest()[:16]
