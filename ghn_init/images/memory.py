"""Small images, as CIFAR-10's: decoded once into memory, where the batches are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from ghn_init.images.batches import Batch, Images, normalize, test_rows, train_rows
from ghn_init.images.items import Items, cores, fitted, to_bytes
from ghn_init.progress import Progress
from ghn_init.seeds import torch_generator

_PAD = 4
"""Pixels by which a small image is moved at most."""


class SmallImages(Images):
    """Images in memory.

    Arguments:
        pixels: `(N, H, W, 3)` bytes, H = W.
        labels: `(N,)`.
        classes: names.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
        super().__init__(labels, classes, pixels.shape[1], pixels.device)
        self.pixels = pixels

    @staticmethod
    def decode(
        items: Items, image_size: int, device: str | torch.device, progress: bool = False
    ) -> SmallImages:
        """Decode all images in threads, and bring them to one size."""
        pixels = torch.empty(len(items), image_size, image_size, 3, dtype=torch.uint8)

        def decode(index: int) -> None:
            pixels[index] = to_bytes(fitted(items.open(index), image_size))

        line = Progress(len(items), "image", silent=not progress)
        with line, ThreadPoolExecutor(cores()) as pool:
            for _ in pool.map(decode, range(len(items))):
                line.step()
        return SmallImages(pixels.to(device), items.labels.to(device), items.classes)

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        augment: str = "crop",
        places: Callable[[int], Tensor] | None = None,
    ) -> Iterator[Batch]:
        for step in range(start, stop):
            rows = train_rows(len(self.labels), batch_size, seed, step)
            wanted = torch.arange(len(rows)) if places is None else places(step)
            labels = self.labels[rows[wanted].to(self.device)]
            yield Batch(self._augmented(rows, wanted, seed, step, augment), labels)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        for rows in test_rows(len(self.labels), batch_size):
            rows = rows.to(self.device)
            yield Batch(normalize(self.pixels[rows], self.image_size), self.labels[rows])

    def subset(self, indices: Tensor) -> SmallImages:
        rows = indices.to(self.device)
        return SmallImages(self.pixels[rows], self.labels[rows], self.classes)

    def _content(self) -> Iterator[bytes]:
        yield self.pixels.cpu().numpy().tobytes()

    def _augmented(
        self, batch: Tensor, wanted: Tensor, seed: int, step: int, augment: str
    ) -> Tensor:
        """Random crops out of the image with a black margin, every other one mirrored.

        Arguments:
            batch: rows of the whole batch, for which random numbers are drawn.
            wanted: places in it of the images that are returned.
        """
        size, device = self.image_size, self.device
        pixels = self.pixels[batch[wanted].to(device)]
        if augment == "none":
            return normalize(pixels, size)
        pad = _PAD if augment == "crop" else 0
        generator = torch_generator(seed, "augment", step)
        offsets = torch.randint(2 * pad + 1, (2, len(batch), 1), generator=generator)[:, wanted]
        mirror = (torch.rand(len(batch), 1, generator=generator) < 0.5)[wanted]
        places = torch.arange(size)
        rows = offsets[0] + places
        columns = offsets[1] + torch.where(mirror, places.flip(0), places)
        rows, columns = rows.to(device), columns.to(device)
        padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
        which = torch.arange(len(pixels), device=device)[:, None, None]
        return normalize(padded[which, rows[:, :, None], columns[:, None, :]], size)
