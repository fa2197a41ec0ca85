"""Folders of images as they are found on disks, and images that are damaged or hostile."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import PIL.EpsImagePlugin
import pytest
import torch
from PIL import Image

from ghn_init import GHNInitError, progress
from ghn_init.images import SmallImages, disk, items, load_images, load_split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, `a` and `b`, with two images in each of `train` and `test`."""
    for part in ("train", "test"):
        for label, color in (("a", "red"), ("b", "blue")):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (20, 16), color).save(tmp_path / part / label / f"{i}.png")
    return tmp_path


def colors(images: Any) -> list[list[int]]:
    """The middle pixel of each image."""
    assert isinstance(images, SmallImages)
    return images.pixels[:, 8, 8].tolist()


def test_a_folder_is_named_with_or_without_its_kind(folder: Path) -> None:
    for source in (str(folder), f"{folder}/", f"imagefolder:{folder}"):
        images = load_images(source, image_size=16)
        assert images.classes == ("a", "b")
        assert colors(images) == [[255, 0, 0]] * 2 + [[0, 0, 255]] * 2


def test_hidden_files_and_folders_are_left_out(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part / ".ipynb_checkpoints").mkdir()
        (folder / part / ".ipynb_checkpoints" / "0.png").touch()
        (folder / part / "a" / "._0.png").touch()  # macOS leaves these on other disks
        (folder / part / "a" / "notes.txt").touch()
    images = load_images(str(folder), image_size=16)
    assert images.classes == ("a", "b")
    assert len(images.labels) == 4


def test_images_may_lie_deeper_and_classes_may_be_links(folder: Path) -> None:
    (folder / "train" / "b" / "more").mkdir()
    Image.new("RGB", (16, 16), "lime").save(folder / "train" / "b" / "more" / "x.JPG", "PNG")
    os.rename(folder / "train" / "a", folder / "elsewhere")
    (folder / "train" / "a").symlink_to(folder / "elsewhere")
    images = load_images(str(folder), image_size=16)
    assert images.labels.tolist() == [0, 0, 1, 1, 1]
    assert colors(images)[-1] == [0, 255, 0]


@pytest.mark.parametrize("place", ["train/loop", "train/a/loop"])
@pytest.mark.parametrize("target", ["train", ".", "train/a"])
def test_a_link_to_a_folder_that_it_lies_in(place: str, target: str, folder: Path) -> None:
    if (place, target) == ("train/loop", "train/a"):  # a class twice, and no loop
        (folder / "test" / "loop").mkdir()
        (folder / place).symlink_to(folder / target)
        assert len(load_images(str(folder), image_size=16).labels) == 6
        return
    (folder / place).symlink_to(folder / target)
    with pytest.raises(GHNInitError, match="loop is a link to a folder that it lies in: remove it"):
        load_images(str(folder), image_size=16)


def test_folders_that_link_to_each_other(folder: Path) -> None:
    (folder / "train" / "a" / "x").symlink_to(folder / "train" / "b")
    (folder / "train" / "b" / "y").symlink_to(folder / "train" / "a")
    with pytest.raises(GHNInitError, match="is a link to a folder that it lies in"):
        load_images(str(folder), image_size=16)


def test_what_is_no_file(folder: Path) -> None:
    os.mkfifo(folder / "train" / "a" / "2.png")  # opening it would wait for ever
    with pytest.raises(GHNInitError, match=r"2\.png is no file, but a pipe or broken link"):
        load_images(str(folder), image_size=16)
    os.remove(folder / "train" / "a" / "2.png")
    (folder / "train" / "a" / "2.png").symlink_to("nowhere.png")
    with pytest.raises(GHNInitError, match=r"2\.png is no file, but a pipe or broken link"):
        load_images(str(folder), image_size=16)


def test_a_folder_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir  # permissions do not stop root, who runs tests in containers

    def guarded(path: Any) -> Any:
        if os.fspath(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(GHNInitError, match=r"cannot read .*train/b: Permission denied\.$"):
        load_images(str(folder), image_size=16)


@pytest.mark.parametrize("split", ["train", "test"])
def test_splits_with_different_classes(split: str, folder: Path) -> None:
    """`test/b` under another name would be numbered as `b`, or its images as `a`."""
    os.rename(folder / "test" / "b", folder / "test" / "0b")
    with pytest.raises(GHNInitError, match=r"have different classes \(0b, b\)"):
        load_images(str(folder), split, image_size=16)
    with pytest.raises(GHNInitError, match=r"different classes \(0b, b\)"):
        load_split(str(folder), 16)


def test_a_data_set_that_only_has_a_test_folder(folder: Path) -> None:
    os.rename(folder / "train", folder / "val")
    assert len(load_images(str(folder), "test", 16).labels) == 4
    with pytest.raises(GHNInitError, match=r"there is no folder .*train: give one with"):
        load_images(str(folder), image_size=16)


# -- images


def test_photographs_are_upright(folder: Path) -> None:
    """A camera on its side stores what it saw, and how it was held."""
    image = Image.new("RGB", (32, 32), "red")
    image.paste("blue", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(folder / "train" / "a" / "0.jpg", exif=exif, quality=95)
    image.save(folder / "train" / "a" / "1.jpg", quality=95)
    found = items.find_items(str(folder), "train")
    turned, plain = (found.open(i) for i in (0, 2))  # between them is 0.png
    assert turned.getpixel((16, 28)) == plain.getpixel((16, 4)) == (0, 0, 254)
    assert turned.getpixel((16, 4)) == plain.getpixel((16, 28)) == (254, 0, 0)


def test_postscript_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a))
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n%%EOF\n"
    (folder / "train" / "a" / "0.jpg").write_text(text)
    with pytest.raises(GHNInitError, match=r"cannot decode .*0\.jpg: cannot identify"):
        load_images(str(folder), image_size=16)
    assert not started


def test_a_long_image_takes_no_memory(folder: Path) -> None:
    """It is cut before it is scaled: 1 x 1,000,000 pixels would become 5 GB."""
    for name in ("0.png", "1.png"):
        Image.new("RGB", (1, 1_000_000), "red").save(folder / "train" / "a" / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in (32, 96):
        images = load_images(str(folder), image_size=size, workers=0)
        for batch in (*images.test_batches(4), *images.train_batches(4, 0, 0, 1)):
            assert batch.images.shape == (4, 3, size, size)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < 300e6


def test_an_image_with_too_many_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (200, 100)).save(folder / "train" / "a" / "0.png")
    for limit in (15_000, 9_000):  # Pillow only warns of the first, and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(GHNInitError, match=r"cannot decode .*a/0\.png: .*pixels"):
            load_images(str(folder), image_size=16)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_a_worker_cannot_decode_is_one_line(workers: int, folder: Path) -> None:
    (folder / "train" / "b" / "1.png").write_bytes(b"damaged")
    images = load_images(str(folder), image_size=96, workers=workers)
    for batches in (images.test_batches(2), images.train_batches(4, 0, 0, 1)):
        with pytest.raises(GHNInitError, match=r"^cannot decode .*b/1\.png.*\.$") as caught:
            list(batches)
        assert "\n" not in str(caught.value)


def test_a_worker_that_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "to_bytes", lambda image: os._exit(9))
    images = load_images(str(folder), image_size=96, workers=1)
    with pytest.raises(GHNInitError, match=r"^loading images failed: .*worker.* memory"):
        list(images.test_batches(2))


def test_loading_leaves_the_random_numbers_alone(folder: Path) -> None:
    images = load_images(str(folder), image_size=96, workers=0)
    state = torch.get_rng_state()
    list(images.train_batches(2, 0, 0, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_decoding_shows_progress(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "DELAY", 1e-9)
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    load_images(str(folder), image_size=16)
    assert not capsys.readouterr().err
    load_images(str(folder), image_size=16, progress=True)
    assert "4/4 images" in capsys.readouterr().err


def test_the_last_batch_is_as_large_as_the_others(folder: Path) -> None:
    """A single image, left over, would be refused by batch normalization."""
    images = load_images(str(folder), image_size=16)
    assert [len(batch.labels) for batch in images.test_batches(3)] == [2, 2]


# -- data sets of torchvision


class Pictures(torch.utils.data.Dataset[tuple[Image.Image, int]]):
    """As torchvision's ImageNet: the split that others call test is `val`, and it has `targets`."""

    classes = ("dark", "bright")

    def __init__(self, root: str, split: str = "train") -> None:
        if split not in ("train", "val"):
            raise ValueError(f"Unknown value {split!r} for argument split.")
        self.targets = [0, 1, 1] if split == "train" else [1, 0]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        label = self.targets[index]
        return Image.new("L", (16, 16), 255 * label), label

    def __len__(self) -> int:
        return len(self.targets)


def test_a_data_set_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.Pictures", Pictures, raising=False)
    split = load_split("torchvision:Pictures:somewhere", 16)
    assert split.train.classes == ("dark", "bright")
    assert colors(split.test) == [[255] * 3, [0] * 3]
    assert len(split.train.labels) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:Magic:x", "torchvision has no data set 'Magic'"),
        ("torchvision:CIFAR10", "torchvision has no data set 'CIFAR10': give torchvision:NAME"),
        ("torchvision:__name__:x", "has no data set"),
        ("torchvision:CIFAR10:nowhere", "cannot read the train split of CIFAR10 in nowhere"),
        ("torchvision:VisionDataset:x", "cannot read the train split"),
        ("", "there are no images|there is no folder"),
    ],
)
def test_sources_that_are_none(source: str, message: str) -> None:
    with pytest.raises(GHNInitError, match=message):
        load_images(source)


def test_sizes_that_are_none(folder: Path) -> None:
    with pytest.raises(GHNInitError, match="the image size is 0: give 1 or more"):
        load_images(str(folder), image_size=0)
    with pytest.raises(GHNInitError, match="4 images do not fill a batch of 0"):
        next(load_images(str(folder), image_size=16).train_batches(0, 0, 0, 1))
