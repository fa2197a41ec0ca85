"""Top-1 accuracy, of whatever gives outputs for images."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ghn_init.images.batches import Images


def top1(
    outputs: Callable[[Tensor], Tensor],
    images: Images,
    batch_size: int,
    batches: int | None = None,
) -> tuple[float, bool]:
    """Top-1 accuracy in percent, without gradients; and whether all outputs are finite.

    Arguments:
        outputs: `(B, 3, H, W)` images, normalized -> `(B, classes)`, on any device.
        images: test images.
        batch_size: images in a batch, at most.
        batches: stop after so many; None: all.
    """
    right, finite, seen = torch.tensor(0), torch.tensor(True), 0
    with torch.no_grad():
        for x, labels in itertools.islice(images.test_batches(batch_size), batches):
            scores = outputs(x)  # no number is asked for, so that a GPU is not waited for
            right = (scores.argmax(dim=1) == labels.to(scores.device)).sum() + right
            finite = scores.isfinite().all() & finite
            seen += len(labels)
    return 100 * right.item() / seen, bool(finite)
