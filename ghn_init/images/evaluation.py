"""Top-1 accuracy, of whatever gives outputs for images."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ghn_init.images.batches import Images


@dataclass(frozen=True)
class Top1:
    """How many images were classified correctly.

    Arguments:
        percent: of those that were seen.
        finite: whether all outputs are.
    """

    percent: float
    finite: bool


def top1(
    outputs: Callable[[Tensor], Tensor],
    images: Images,
    batch_size: int,
    batches: int | None = None,
) -> Top1:
    """Top-1 accuracy, without gradients.

    Arguments:
        outputs: `(B, 3, H, W)` images, normalized -> `(B, classes)`, on any device.
        images: test images.
        batch_size: images in a batch, at most.
        batches: stop after so many; None: all.
    """
    found, seen = torch.zeros(2, dtype=torch.long), 0  # correct ones, batches that are not finite
    with torch.no_grad():
        for x, labels in itertools.islice(images.test_batches(batch_size), batches):
            scores = outputs(x)
            right = (scores.argmax(dim=1) == labels.to(scores.device)).sum()
            counts = torch.stack([right, (~scores.isfinite().all()).long()])
            found = found.to(counts.device) + counts  # the GPU is not waited for
            seen += len(labels)
    correct, infinite = found.tolist()
    return Top1(100 * correct / seen, not infinite)
