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


def ten_levels(root: Path, size: int, train: int = 6, test: int = 3) -> Path:
    """Ten classes of noise, each around a level of its own.

    Arguments:
        root: the folder to fill.
        size: height and width.
        train, test: images of a class.
    """
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label in range(10):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 30, (size, size, 3), dtype=np.uint8) + 20 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root
