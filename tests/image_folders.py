"""Small data sets that are learned at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def bright_and_dark(root: Path, size: int, bright: int, dark: int, spread: int) -> Path:
    """Two classes of noise around two levels, 24 training and 8 test images each, all different.

    Arguments:
        root: the folder to fill.
        size: height and width.
        bright, dark: mean of the pixels of each class.
        spread: how far from it they are drawn.
    """
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for label, level in (("bright", bright), ("dark", dark)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(
                    level - spread, level + spread, (size, size, 3), dtype=np.uint8
                )
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root
