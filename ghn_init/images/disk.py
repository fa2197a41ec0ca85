"""Large images, as ImageNet's: on the disk, and decoded by worker processes as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ghn_init.errors import GHNInitError
from ghn_init.images.batches import Batch, Images, normalize, test_rows, train_rows
from ghn_init.images.constants import LARGE_IMAGES
from ghn_init.images.items import Items, fitted, to_bytes
from ghn_init.seeds import torch_generator

_BORDER = 1 / 16
"""What evaluation leaves out at each side: of 256 pixels, 224 remain."""

_SAMPLE = 64
"""Sets of images are told apart by so many of them."""

_Key = tuple[int, tuple[int, int, int] | None]
"""Number of an image, and the seed of its augmentation; None: no augmentation."""


class LargeImages(Images):
    """Images on the disk, decoded by worker processes as they are needed.

    Arguments:
        items: where they are.
        image_size: H and W.
        device: where the batches are wanted.
        workers: processes; 0: this one decodes them.
    """

    def __init__(
        self, items: Items, image_size: int, device: str | torch.device, workers: int
    ) -> None:
        super().__init__(items.labels, items.classes, image_size, torch.device(device))
        self.items, self.workers = items, workers

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        augment: str = "crop",
        places: Callable[[int], Tensor] | None = None,
    ) -> Iterator[Batch]:
        if augment != "crop":
            raise GHNInitError(
                f"--augment {augment} is for images below {LARGE_IMAGES} pixels: larger ones do "
                "not have one size before they are cropped."
            )
        rows = ((i, train_rows(len(self.labels), batch_size, seed, i)) for i in range(start, stop))
        mine = ((i, found if places is None else found[places(i)]) for i, found in rows)
        return self._load([(r, (seed, step, r)) for r in chosen.tolist()] for step, chosen in mine)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        rows = test_rows(len(self.labels), batch_size)
        return self._load([(row, None) for row in chosen.tolist()] for chosen in rows)

    def subset(self, indices: Tensor) -> LargeImages:
        items = self.items.subset(indices.cpu())
        return LargeImages(items, self.image_size, self.device, self.workers)

    def _content(self) -> Iterator[bytes]:
        for i in range(0, len(self.items), max(1, len(self.items) // _SAMPLE)):
            yield self.items.open(i).tobytes()

    def _load(self, keys: Iterable[list[_Key]]) -> Iterator[Batch]:
        loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            _Decoded(self.items, self.image_size),
            batch_sampler=keys,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # the global one is left alone
        )
        for found in _unless_killed(loader):
            if isinstance(found, str):
                raise GHNInitError(found)
            pixels, labels = (part.to(self.device, non_blocking=True) for part in found)
            yield Batch(normalize(pixels, self.image_size), labels)


class _Decoded(Dataset[tuple[Tensor, Tensor]]):
    """Batches of decoded and cropped images by `(index, seed of the augmentation or None)`."""

    def __init__(self, items: Items, image_size: int) -> None:
        self.items, self.image_size = items, image_size

    def __getitems__(self, keys: list[_Key]) -> tuple[Tensor, Tensor] | str:
        """Pixels `(B, H, W, 3)` and labels; or what is wrong.

        An error that a worker process raises would reach the user with the worker's traceback.
        """
        try:
            pixels = torch.stack([self._image(*key) for key in keys])
        except GHNInitError as error:
            return str(error)
        return pixels, self.items.labels[[index for index, _ in keys]]

    def _image(self, index: int, seed: tuple[int, int, int] | None) -> Tensor:
        from PIL.Image import Resampling
        from torchvision.transforms import v2

        image = self.items.open(index)
        if seed is None:
            return to_bytes(fitted(image, self.image_size, Resampling.BILINEAR, _BORDER))
        jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.2)
        crop = v2.RandomResizedCrop(self.image_size)
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(torch_generator("crop", seed).initial_seed())
            return to_bytes(v2.Compose([crop, v2.RandomHorizontalFlip(), jitter])(image))


def _unless_killed(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        yield from loader
    except RuntimeError as error:  # torch's, of a worker process
        reason = str(error).partition("\n")[0]
        raise GHNInitError(
            f"loading images failed: {reason} Look whether memory, or shared memory (/dev/shm), "
            "is full."
        ) from error


def _as_it_is(batch: Any) -> Any:
    return batch
