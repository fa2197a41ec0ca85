"""Which images of a data set there are for what: to train on, to choose on and to test on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ghn_init.errors import GHNInitError
from ghn_init.images.batches import Images, test_order
from ghn_init.images.constants import LARGE_IMAGES
from ghn_init.images.disk import LargeImages
from ghn_init.images.items import Items, cores, find_items
from ghn_init.images.memory import SmallImages
from ghn_init.seeds import torch_generator

_HOLDOUT_SEED = 0
"""Which images are held out does not depend on the seed of a run."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images of three kinds, none in two of them.

    Arguments:
        train: labeled images that runs are trained on.
        validation: training images that no run is trained on, to choose hyperparameters; or None.
        test: for the accuracies that are reported.
    """

    train: Images
    validation: Images | None
    test: Images

    def digests(self) -> dict[str, str]:
        """Checksums of the images and labels of each kind that there is."""
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        return {f"{kind} images": part.digest() for kind, part in parts.items() if part is not None}


def first(images: Images, count: int) -> Images:
    """The first so many images of the test order; `GHNInitError` if they are less than one."""
    if count < 1:
        raise GHNInitError(f"{count} images are none: give 1 or more.")
    return images.subset(test_order(len(images.labels))[:count])


def count_images(source: str) -> int:
    """How many training images there are, without decoding any."""
    return len(find_items(source, "train"))


def load_images(
    source: str,
    split: str = "train",
    image_size: int = 32,
    holdout: int = 0,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    progress: bool = False,
) -> Images:
    """The images of one split.

    Arguments:
        source: a folder with `train/<class>/<image>` and `test/<class>/<image>` (or `val/`),
            with or without `imagefolder:` before it; or `torchvision:NAME:PATH` for a data set of
            torchvision, say `CIFAR10`. Hidden files and folders are left out.
        split: `"train"` without the images held out, `"holdout"` for these, or `"test"`.
        image_size: height and width in a batch; from `LARGE_IMAGES` on images stay on the disk.
        holdout: training images held out, evenly over the classes.
        device: where the batches are wanted.
        workers: processes that load large images; None: the cores, at most 16.
        progress: show on stderr how many images are decoded.

    Raises:
        GHNInitError: the source cannot be found or read, or has fewer images than are held out.
    """
    items = find_items(source, "test" if split == "test" else "train")
    if split != "test" and holdout:
        kept, held = _hold_out(items.labels, len(items.classes), holdout)
        items = items.subset(held if split == "holdout" else kept)
    return open_items(items, image_size, device, workers, progress)


def open_items(
    items: Items,
    image_size: int,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    progress: bool = False,
) -> Images:
    """Images that were found: small ones are decoded now, large ones when they are needed.

    Arguments:
        items: as `find_items` gives them, or a subset.
        image_size, device, workers, progress: as in `load_images`.

    Raises:
        GHNInitError: an image cannot be decoded, or the size is not positive.
    """
    if image_size < 1:
        raise GHNInitError(f"the image size is {image_size}: give 1 or more pixels.")
    if image_size < LARGE_IMAGES:
        return SmallImages.decode(items, image_size, device, progress)
    return LargeImages(items, image_size, device, cores() if workers is None else workers)


def _hold_out(labels: Tensor, classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Indices to keep and to hold out, the latter evenly over the classes."""
    if count % classes or not 0 <= count < len(labels):
        raise GHNInitError(
            f"cannot hold out {count} of {len(labels)} images of {classes} classes: give a "
            f"multiple of {classes} that leaves some."
        )
    generator = torch_generator(_HOLDOUT_SEED, "holdout")
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(classes):
        members = (labels == label).nonzero()[:, 0]
        chosen = torch.randperm(len(members), generator=generator)[: count // classes]
        held[members[chosen]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def load_split(
    source: str,
    image_size: int = 32,
    labels: int = 0,
    validation: int = 0,
    test_images: int = 0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Split:
    """The images of a data set that a comparison needs; only these are decoded.

    Arguments:
        source, image_size, device, progress: as in `load_images`.
        labels, validation, test_images, seed: as in `split_images`.

    Raises:
        GHNInitError: the source cannot be read, its test images have other classes, or it has
            fewer images than are asked for.
    """
    train, test = find_items(source, "train"), find_items(source, "test")
    fit, held, tested = _parts(train, test, labels, validation, test_images, seed)
    return Split(
        open_items(fit, image_size, device, progress=progress),
        open_items(held, image_size, device, progress=progress) if held else None,
        open_items(tested, image_size, device, progress=progress),
    )


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
    return Split(*_parts(train, test, labels, validation, test_images, seed))


_Some = TypeVar("_Some", Images, Items)


def _parts(
    train: _Some, test: _Some, labels: int, validation: int, test_images: int, seed: int
) -> tuple[_Some, _Some | None, _Some]:
    """Images to train on, to choose on and to test on, as `split_images` has them."""
    if train.classes != test.classes:
        other = sorted(set(train.classes) ^ set(test.classes))[:5]
        raise GHNInitError(
            f"training and test images have different classes ({', '.join(other)}): give data "
            "with the same ones in both."
        )
    total, tests = len(train.labels), len(test.labels)
    enough = validation < total if labels == 0 else labels + validation <= total
    if min(labels, validation) < 0 or not enough:
        raise GHNInitError(
            f"{labels or 'all'} labeled images and {validation} to choose on are asked for, of "
            f"{total} training images: give smaller numbers from 0 up."
        )
    if not 0 <= test_images <= tests:
        raise GHNInitError(f"{test_images} test images are asked for, and there are {tests}.")
    order = _balanced_order(train.labels.cpu(), seed)
    held = order[labels : labels + validation] if labels else order[:validation]
    fit = order[:labels] if labels else order[validation:]
    if 0 < test_images < tests:
        chosen = torch.randperm(tests, generator=torch_generator("tested images"))[:test_images]
        test = test.subset(chosen)
    return train.subset(fit), train.subset(held) if len(held) else None, test


def _balanced_order(labels: Tensor, seed: int) -> Tensor:
    """A random order, every beginning of which has as many images of each class as can be."""
    shuffled = torch.randperm(len(labels), generator=torch_generator(seed, "labelled images"))
    drawn = labels[shuffled]
    place = torch.empty_like(drawn)  # of an image among those of its class
    classes = drawn.unique()
    for label in classes:
        members = (drawn == label).nonzero()[:, 0]
        place[members] = torch.arange(len(members))
    return shuffled[torch.argsort(place * (1 + classes.max()) + drawn)]
