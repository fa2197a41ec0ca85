"""Which images runs are trained, chosen and tested on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ghn_init import GHNInitError
from ghn_init.compare import load_split, split_images
from ghn_init.images import Images, SmallImages, load_images
from ghn_init.images.disk import LargeImages


def pixels(images: Images | None) -> set[bytes]:
    """The images, each as its bytes."""
    assert isinstance(images, SmallImages)
    found = {image.numpy().tobytes() for image in images.pixels}
    assert len(found) == len(images.labels)
    return found


def test_the_parts_are_balanced_and_have_nothing_in_common(image_folder: Path) -> None:
    split = load_split(f"imagefolder:{image_folder}", 16, 20, 10, 6)
    assert split.validation is not None
    assert split.train.labels.bincount().tolist() == [10, 10]
    assert split.validation.labels.bincount().tolist() == [5, 5]
    assert len(split.test.labels) == 6
    assert not pixels(split.train) & pixels(split.validation)
    assert pixels(split.test) < pixels(load_images(f"imagefolder:{image_folder}", "test", 16))


def test_training_images_do_not_depend_on_how_many_are_held_out(image_folder: Path) -> None:
    alone, beside = (load_split(str(image_folder), 16, 20, count) for count in (0, 10))
    assert alone.validation is None
    assert pixels(alone.train) == pixels(beside.train)
    assert pixels(alone.train) < pixels(load_split(str(image_folder), 16, 30).train)
    assert pixels(alone.train) != pixels(load_split(str(image_folder), 16, 20, seed=1).train)


def test_all_labels(image_folder: Path) -> None:
    split = load_split(str(image_folder), 16, validation=8)
    assert len(split.train.labels) == 40
    assert not pixels(split.train) & pixels(split.validation)
    assert len(split.test.labels) == 16


def test_images_that_are_in_memory(image_folder: Path) -> None:
    train, test = (load_images(f"imagefolder:{image_folder}", s, 16) for s in ("train", "test"))
    split = split_images(train, test, 20, 10, 6)
    assert split.digests() == load_split(str(image_folder), 16, 20, 10, 6).digests()


def test_classes_of_different_sizes() -> None:
    """The rare class has all of its images in, the others share the rest."""
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 50)
    images = SmallImages(torch.zeros(103, 8, 8, 3, dtype=torch.uint8), labels, ("a", "b", "c"))
    split = split_images(images, images, 20, 6)
    assert split.train.labels.bincount(minlength=3).tolist() == [9, 3, 8]
    assert split.validation is not None
    assert split.validation.labels.bincount(minlength=3).tolist() == [3, 0, 3]


def test_checksums_tell_images_apart(image_folder: Path) -> None:
    one = load_split(str(image_folder), 16, 20, 10, 6).digests()
    other = load_split(str(image_folder), 16, 20, 12, 6).digests()
    assert list(one) == ["training images", "validation images", "test images"]
    assert [name for name in one if one[name] != other[name]] == ["validation images"]
    assert "validation images" not in load_split(str(image_folder), 16, 20).digests()
    large = load_split(str(image_folder), 96, 20)
    assert isinstance(large.train, LargeImages)
    again, moved = load_split(str(image_folder), 96, 20), load_split(str(image_folder), 96, 22)
    assert large.digests() == again.digests()
    assert large.digests() != moved.digests()


def test_only_what_is_needed_is_decoded(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(8):
                (tmp_path / part / label / f"{i}.png").write_bytes(b"damaged")
    found = load_split(str(tmp_path), 96, 4, 2, 2)
    assert isinstance(found.train, LargeImages)
    for items in (found.train.items, found.test.items):  # type: ignore[attr-defined]
        for row in items.rows.tolist():
            Image.new("RGB", (16, 16)).save(items.dataset.files[row])
    assert len(load_split(str(tmp_path), 16, 4, 0, 2).train.labels) == 4
    with pytest.raises(GHNInitError, match="cannot decode"):
        load_split(str(tmp_path), 16, 4, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((40, 10), "40 labeled images and 10 to choose on are asked for, of 48"),
        ((49,), "49 labeled images and 0 to choose on"),
        ((0, 48), "all labeled images and 48"),
        ((-1,), "from 0 up"),
        ((10, 0, 17), "17 test images are asked for, and there are 16"),
        ((10, 0, -1), "-1 test images"),
    ],
)
def test_too_many(arguments: tuple[int, ...], message: str, image_folder: Path) -> None:
    with pytest.raises(GHNInitError, match=message):
        load_split(str(image_folder), 16, *arguments)


def test_other_classes_in_the_test_images(tmp_path: Path) -> None:
    for folder in ("train/a", "train/b", "test/a", "test/c"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / folder / "0.png")
    with pytest.raises(GHNInitError, match=r"different classes \(b, c\)"):
        load_split(str(tmp_path), 16)
    with pytest.raises(GHNInitError, match="there is no folder"):
        load_split(str(tmp_path / "missing"))
