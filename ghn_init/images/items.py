"""Where images come from: folders, and data sets of torchvision."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch.utils.data import Dataset

from ghn_init.errors import GHNInitError

if TYPE_CHECKING:
    from PIL.Image import Image

_TEST_FOLDERS = ("test", "val", "valid", "validation")
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff"})


class Items(Protocol):
    """Images that can be opened by their number."""

    def __len__(self) -> int: ...
    def open(self, index: int) -> Image:
        """An RGB image."""

    def label(self, index: int) -> int:
        """Number of its class."""

    def subset(self, indices: Sequence[int]) -> Items:
        """Only some of them."""


@dataclass(frozen=True)
class _Files:
    """Image files with labels."""

    files: list[tuple[Path, int]]

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> Image:
        import PIL.Image

        path, _ = self.files[index]
        try:
            with PIL.Image.open(path) as image:
                rgb: Image = image.convert("RGB")
                return rgb
        except (OSError, ValueError) as error:
            raise GHNInitError(f"cannot decode {path}: {error}.") from error

    def label(self, index: int) -> int:
        return self.files[index][1]

    def subset(self, indices: Sequence[int]) -> _Files:
        return _Files([self.files[i] for i in indices])


@dataclass(frozen=True)
class _Torchvision:
    """A data set of torchvision, or part of it."""

    dataset: Dataset[tuple[Image, int]]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def open(self, index: int) -> Image:
        image: Image = self.dataset[self.indices[index]][0].convert("RGB")
        return image

    def label(self, index: int) -> int:
        targets = getattr(self.dataset, "targets", getattr(self.dataset, "labels", None))
        if targets is not None:
            return int(targets[self.indices[index]])
        return int(self.dataset[self.indices[index]][1])

    def subset(self, indices: Sequence[int]) -> _Torchvision:
        return _Torchvision(self.dataset, [self.indices[i] for i in indices])


def require_torchvision() -> None:
    """Refuse to go on without torchvision (GHNInitError)."""
    if importlib.util.find_spec("torchvision") is None:
        raise GHNInitError("this data needs torchvision: pip install 'ghn-init[train]'.")


def find_items(source: str, split: str) -> tuple[Items, tuple[str, ...]]:
    """The images of `"test"` or, for any other split, of `"train"`; and the names of the classes.

    Raises:
        GHNInitError: the source cannot be found or read.
    """
    split = "test" if split == "test" else "train"
    kind, _, place = source.partition(":")
    if kind == "imagefolder" and place:
        return _image_folder(Path(place), split)
    if kind == "torchvision" and place:
        return _torchvision(place, split)
    raise GHNInitError(f"unknown data {source!r}: give imagefolder:PATH or torchvision:NAME:PATH.")


def _image_folder(root: Path, split: str) -> tuple[_Files, tuple[str, ...]]:
    names = _TEST_FOLDERS if split == "test" else (split,)
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise GHNInitError(
            f"there is no folder {root / split}. An image folder has train/<class>/<image> and "
            "test/<class>/<image> in it."
        )
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise GHNInitError(f"there are no images in {folder}/<class>/.")
    return _Files(files), tuple(classes)


def _torchvision(place: str, split: str) -> tuple[_Torchvision, tuple[str, ...]]:
    require_torchvision()
    from torchvision import datasets

    name, _, root = place.partition(":")
    kind = getattr(datasets, name, None)
    if kind is None or not root:
        raise GHNInitError(f"torchvision has no data set {name!r}; give torchvision:NAME:PATH.")
    mismatch: TypeError | None = None
    for arguments in ({"train": split == "train"}, {"split": split}):
        try:
            dataset = kind(root, **arguments)
        except TypeError as error:
            mismatch = error
            continue
        except (RuntimeError, OSError, ValueError) as failure:
            raise GHNInitError(f"cannot read {name} in {root}: {failure}.") from failure
        items = _Torchvision(dataset, range(len(dataset)))
        count = 1 + max(items.label(i) for i in range(len(items)))
        return items, tuple(getattr(dataset, "classes", map(str, range(count))))
    raise GHNInitError(f"torchvision's {name} has no training and test split.") from mismatch
