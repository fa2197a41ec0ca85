"""Images: splits, order, augmentation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ghn_init import GHNInitError
from ghn_init.images import SmallImages, count_images, load_images
from ghn_init.images.batches import steps_per_epoch
from ghn_init.images.split import first


@pytest.fixture
def images(image_folder: Path) -> SmallImages:
    found = load_images(f"imagefolder:{image_folder}")
    assert isinstance(found, SmallImages)
    return found


def test_an_image_folder_is_read_whole(images: SmallImages, image_folder: Path) -> None:
    assert images.classes == ("bright", "dark")
    assert images.pixels.shape == (48, 32, 32, 3)
    assert images.labels.bincount().tolist() == [24, 24]
    assert images.pixels[images.labels == 0].float().mean() > 150
    assert count_images(f"imagefolder:{image_folder}") == 48


def test_held_out_images_are_balanced_and_no_longer_trained_on(image_folder: Path) -> None:
    source = f"imagefolder:{image_folder}"
    kept = load_images(source, "train", holdout=10)
    held = load_images(source, "holdout", holdout=10)
    assert held.labels.bincount().tolist() == [5, 5]
    assert len(kept.labels) == 38
    assert isinstance(kept, SmallImages)
    assert isinstance(held, SmallImages)
    seen = {p.numpy().tobytes() for p in kept.pixels}
    assert not seen & {p.numpy().tobytes() for p in held.pixels}
    with pytest.raises(GHNInitError, match="multiple of 2"):
        load_images(source, "train", holdout=5)


def test_an_epoch_shows_every_image_once(images: SmallImages) -> None:
    steps = steps_per_epoch(48, 8)
    labels = torch.cat([y for _, y in images.train_batches(8, 0, 0, steps)])
    assert labels.bincount().tolist() == [24, 24]
    orders = [[y.tolist() for _, y in images.train_batches(8, 0, e, e + 6)] for e in (0, 6)]
    assert orders[0] != orders[1]


def test_batches_depend_on_seed_and_step_alone(images: SmallImages) -> None:
    whole = [x for x, _ in images.train_batches(8, 3, 0, 12)]
    late = [x for x, _ in images.train_batches(8, 3, 7, 12)]
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], late, strict=True))
    other = [x for x, _ in images.train_batches(8, 4, 0, 1)]
    assert not torch.equal(whole[0], other[0])


def test_augmented_images_are_shifted_and_mirrored_ones(images: SmallImages) -> None:
    (batch, _), *_ = images.train_batches(48, 0, 0, 1)
    assert batch.shape == (48, 3, 32, 32)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    plain = torch.cat([x for x, _ in images.test_batches(48)])
    padded = torch.nn.functional.pad(plain, (4, 4, 4, 4), value=torch.nan)
    variants = torch.stack([padded, padded.flip(3)])
    mirrored = 0
    for image in batch:
        inside = image[:, 12:20, 12:20]
        windows = variants.unfold(3, 8, 1).unfold(4, 8, 1)[:, :, :, 8:25, 8:25]
        hits = (windows - inside[None, None, :, None, None]).abs().amax((2, 5, 6)) < 1e-5
        assert hits.any()
        mirrored += bool(hits[1].any())
    assert 10 < mirrored < 38


def test_images_that_are_only_mirrored_or_left_as_they_are(images: SmallImages) -> None:
    plain = {image.numpy().tobytes() for x, _ in images.test_batches(48) for image in x}
    flipped = {i.flip(2).numpy().tobytes() for x, _ in images.test_batches(48) for i in x}
    (unchanged, _), *_ = images.train_batches(48, 0, 0, 1, "none")
    assert {image.numpy().tobytes() for image in unchanged} == plain
    (mirrored, _), *_ = images.train_batches(48, 0, 0, 1, "mirror")
    found = [image.numpy().tobytes() for image in mirrored]
    assert set(found) <= plain | flipped
    assert 10 < len(set(found) & flipped) < 38


def test_test_batches_mix_the_classes(images: SmallImages) -> None:
    labels = torch.cat([y for _, y in images.test_batches(8)])
    assert len(labels) == 48
    assert 0 < labels[:24].sum() < 24
    some = first(images, 20)
    assert torch.equal(some.labels, labels[:20])


def test_large_images_are_loaded_by_step(image_folder: Path) -> None:
    images = load_images(f"imagefolder:{image_folder}", image_size=96, workers=0)
    batches = [list(images.train_batches(8, 0, start, 3)) for start in (0, 2)]
    with pytest.raises(GHNInitError, match="--augment none is for images below"):
        images.train_batches(8, 0, 0, 1, "none")
    assert batches[0][0].images.shape == (8, 3, 96, 96)
    assert torch.equal(batches[0][2].images, batches[1][0].images)
    assert next(images.test_batches(4)).images.shape == (4, 3, 96, 96)


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    for source, message in (
        ("cifar10", "there is no folder cifar10: give one with train/<class>"),
        (f"imagefolder:{tmp_path}", "train/<class>"),
        ("torchvision:Nonsense:x", "no data set"),
    ):
        with pytest.raises(GHNInitError, match=message):
            load_images(source)
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(GHNInitError, match=r"cannot decode .*0\.png"):
        load_images(f"imagefolder:{tmp_path}")
    with pytest.raises(GHNInitError, match="do not fill a batch"):
        steps_per_epoch(3, 8)


@pytest.mark.parametrize("image_size", [32, 96])
def test_a_process_reads_its_own_share_of_a_batch(
    image_folder: Path, image_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images of a share are augmented as in the whole batch, and no others are opened."""
    images = load_images(f"imagefolder:{image_folder}", image_size=image_size, workers=0)
    whole = list(images.train_batches(8, 0, 1, 3))
    opened: list[int] = []
    if image_size > 64:
        items = type(images.items)  # type: ignore[attr-defined]
        read = items.open
        monkeypatch.setattr(items, "open", lambda self, i: opened.append(i) or read(self, i))
    shares = list(images.train_batches(8, 0, 1, 3, places=lambda step: torch.tensor([step, 6])))
    for k, (batch, share) in enumerate(zip(whole, shares, strict=True)):
        assert torch.equal(share.images, batch.images[[k + 1, 6]])
        assert torch.equal(share.labels, batch.labels[[k + 1, 6]])
    assert len(opened) == (4 if image_size > 64 else 0)
