"""Where images come from: folders, and data sets of torchvision.

Folders are scanned here and not by torchvision's `ImageFolder`, which takes hidden folders such as
`.ipynb_checkpoints` for classes, follows a link to a parent folder until the path is too long,
waits for a named pipe for ever, and numbers the classes of each split by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ghn_init.errors import GHNInitError

if TYPE_CHECKING:
    from PIL.Image import Image

_SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
"""Names of the folder of a split, the preferred one first."""

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff"})
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF")
"""Pillow opens nothing else, whatever the suffix says: its PostScript reader starts a program."""


@dataclass(frozen=True, eq=False)
class Items:
    """Images that were found and are not decoded yet.

    Arguments:
        dataset: gives images and labels by number.
        rows: `(N,)`, numbers of these images in it.
        labels: `(N,)`, numbers of their classes.
        classes: names.
    """

    dataset: Dataset[tuple[Image, int]]
    rows: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: Tensor) -> Items:
        """Only some of them."""
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def open(self, index: int) -> Image:
        """An RGB image.

        Raises:
            GHNInitError: it cannot be decoded.
        """
        row = int(self.rows[index])
        try:
            image = self.dataset[row][0]
            return image if image.mode == "RGB" else image.convert("RGB")
        except Exception as error:  # damaged files lead to many kinds
            name = self.dataset.files[row] if isinstance(self.dataset, _Files) else f"image {row}"
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise GHNInitError(f"cannot decode {name}: {reason}. Repair or remove it.") from error


def find_items(source: str | os.PathLike[str], split: str, bare: bool = False) -> Items:
    """The images of a split, by class.

    Arguments:
        source: a folder, with or without `imagefolder:` before it, that has `train/` and `test/`
            (or `val/`) in it; or `torchvision:NAME:PATH` for a data set of torchvision.
        split: `"train"` or `"test"`.
        bare: also take a folder that has no such folders, but one for each class.

    Raises:
        GHNInitError: the source cannot be found or read, or its splits have different classes.
    """
    source = os.fspath(source)
    if source.startswith("torchvision:"):
        return _torchvision(source.removeprefix("torchvision:"), split)
    root = Path(source.removeprefix("imagefolder:"))
    try:
        return _image_folder(root, split, bare)
    except OSError as error:
        where = error.filename or root
        raise GHNInitError(f"cannot read {where}: {error.strerror}.") from error


# -- folders


@dataclass(frozen=True)
class _Files(Dataset[tuple["Image", int]]):
    """Images in files, and the numbers of their classes."""

    files: list[str]
    labels: list[int]

    def __getitem__(self, index: int) -> tuple[Image, int]:
        import PIL.Image
        from PIL.ImageOps import exif_transpose

        with PIL.Image.open(self.files[index], formats=_FORMATS) as image:
            limit = PIL.Image.MAX_IMAGE_PIXELS  # Pillow itself only warns, up to twice as many
            if limit is not None and image.width * image.height > limit:
                raise GHNInitError(f"it has {image.width} x {image.height} pixels")
            exif_transpose(image, in_place=True)  # upright, as photographs are shown
            return image.convert("RGB"), self.labels[index]


def _image_folder(root: Path, split: str, bare: bool) -> Items:
    parts = {
        part: next((root / name for name in names if (root / name).is_dir()), None)
        for part, names in _SPLITS.items()
    }
    if bare and root.is_dir() and not any(parts.values()):
        parts[split] = root
    folder = parts[split]
    if folder is None:
        missing = root / split if root.is_dir() else root
        raise GHNInitError(
            f"there is no folder {missing}: give one with train/<class>/<image> and "
            "test/<class>/<image> in it, or torchvision:NAME:PATH."
        )
    classes = _classes(folder)
    real = folder.resolve()
    above = frozenset(map(_identity, (real, *real.parents)))
    found = [list(_scan(folder / name, above)) for name in classes]
    if not any(found):
        raise GHNInitError(f"there are no images in {folder}/<class>/.")
    for other in parts.values():
        different = set(classes) ^ set(classes if other is None else _classes(other))
        if different:  # their numbers would not mean the same
            names = ", ".join(sorted(different)[:5])
            raise GHNInitError(
                f"{folder} and {other} have different classes ({names}): give data with the same "
                "ones in both."
            )
    counts = torch.tensor([len(files) for files in found])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    files = [path for paths in found for path in paths]
    return Items(_Files(files, labels.tolist()), torch.arange(len(files)), labels, classes)


def _classes(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


def _scan(folder: str | os.PathLike[str], above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Paths of the images in a folder and the folders in it, by name; hidden ones are left out.

    Arguments:
        folder: where to look.
        above: identities of the folders that it lies in.
    """
    if _identity(folder) in above:
        raise GHNInitError(f"{folder} is a link to a folder that it lies in: remove it.")
    above |= {_identity(folder)}
    with os.scandir(folder) as entries:
        ordered = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in ordered:
        if entry.is_dir():
            yield from _scan(entry.path, above)
        elif os.path.splitext(entry.name)[1].lower() in _SUFFIXES:
            if not entry.is_file():
                raise GHNInitError(
                    f"{entry.path} is no file, but a pipe or broken link: remove it."
                )
            yield entry.path


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


# -- torchvision


def _torchvision(place: str, split: str) -> Items:
    from torchvision import datasets

    name, _, root = place.partition(":")
    kind = getattr(datasets, name, None)
    if not isinstance(kind, type) or not root:
        raise GHNInitError(f"torchvision has no data set {name!r}: give torchvision:NAME:PATH.")
    dataset = _opened(kind, root, split)
    try:
        targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
        if targets is None:
            targets = [dataset[i][1] for i in range(len(dataset))]
        labels = torch.as_tensor(targets).long()
        classes = tuple(getattr(dataset, "classes", map(str, range(1 + int(labels.max())))))
        return Items(dataset, torch.arange(len(dataset)), labels.reshape(len(dataset)), classes)
    except (RuntimeError, TypeError, ValueError) as error:
        raise GHNInitError(f"torchvision's {name} has no class for each image.") from error


def _opened(kind: Any, root: str, split: str) -> Any:
    """A data set of torchvision; its classes name the split in different ways."""
    options: list[dict[str, Any]] = [{"train": split == "train"}, {"split": split}]
    if split == "test":
        options.append({"split": "val"})
    failure: Exception | None = None
    for arguments in options:
        try:
            return kind(root, **arguments)
        except (TypeError, ValueError) as error:  # it does not have that argument, or that value
            failure = error
        except (RuntimeError, OSError) as error:
            failure = error
            break
    raise GHNInitError(
        f"cannot read the {split} split of {kind.__name__} in {root}: {failure}."
    ) from failure


# -- decoding


def cores() -> int:
    """Threads or processes that decode images."""
    return min(16, os.cpu_count() or 1)


def fitted(image: Image, size: int, method: Any = None, border: float = 0.0) -> Image:
    """The middle of an image at `(size, size)`.

    It is cut out before it is scaled, so that a very long image does not become a huge one.
    """
    from PIL.Image import Resampling
    from PIL.ImageOps import fit

    if image.size == (size, size) and not border:
        return image
    return fit(image, (size, size), method or Resampling.BICUBIC, border)


def to_bytes(image: Image) -> Tensor:
    """`(H, W, 3)` bytes."""
    import numpy as np

    return torch.from_numpy(np.array(image))
