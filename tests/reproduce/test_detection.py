"""examples/reproduce/detection.py: average precision, pictures, and runs on tiny data."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

Script = Callable[[str], ModuleType]
Start = Callable[..., str]


def box(left: float, top: float, side: float = 10) -> list[float]:
    return [left, top, left + side, top + side]


def test_average_precision_of_a_case_worked_by_hand(script: Script) -> None:
    """Two pictures with three objects and five detections.

    By falling score: a hit (1 of 1 right), a miss, a hit (2 of 3), a second one on an object that
    is taken, which is a miss, and one that overlaps by less than a half. A third of the recalls,
    0 to 0.33, has precision 1; those from 0.34 to 0.66 have 2/3; those above are never reached.
    """
    objects = [torch.tensor([box(0, 0), box(50, 50)]), torch.tensor([box(20, 20)])]
    first = torch.tensor([box(0, 1), box(80, 0), box(1, 1)])
    second = torch.tensor([box(20, 20), box(26, 20)])
    found = [(first, torch.tensor([0.9, 0.8, 0.6])), (second, torch.tensor([0.7, 0.5]))]
    expected = (34 * 1 + 33 * 2 / 3) / 101
    precision = script("detection").average_precision
    assert precision(found, objects) == pytest.approx(expected)
    nothing = (torch.empty(0, 4), torch.empty(0))
    assert precision([nothing, nothing], objects) == 0
    perfect = [(boxes, torch.ones(len(boxes))) for boxes in objects]
    assert precision(perfect, objects) == pytest.approx(1)
    assert precision([found[0], nothing], [objects[0], torch.empty(0, 4)]) == pytest.approx(
        51 / 101
    )


def random_case(seed: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Objects, and detections around them and elsewhere."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(count: int) -> Tensor:
        corner = 80 * torch.rand(count, 2, generator=generator)
        return torch.cat([corner, corner + 8 + 20 * torch.rand(count, 2, generator=generator)], 1)

    found, objects = [], []
    for count in (3, 0, 5, 1, 4):
        objects.append(boxes(count))
        near = objects[-1].repeat(3, 1)
        corners = (near + 4 * torch.randn(near.shape, generator=generator)).view(-1, 2, 2)
        near = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
        candidates = torch.cat([near, boxes(6)])
        found.append((candidates, torch.rand(len(candidates), generator=generator)))
    return found, objects


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_against_pycocotools(script: Script, seed: int) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    found, objects = random_case(seed)

    def entries(boxes: Tensor, image: int, **more: Any) -> list[dict[str, Any]]:
        return [
            {"image_id": image, "category_id": 1, "bbox": [a, b, c - a, d - b], "iscrowd": 0,
             "area": (c - a) * (d - b), **{k: float(v[i]) for k, v in more.items()}}
            for i, (a, b, c, d) in enumerate(boxes.double().tolist())
        ]  # fmt: skip

    truth = coco.COCO()
    annotations = [entry for i, boxes in enumerate(objects) for entry in entries(boxes, i)]
    truth.dataset = {
        "images": [{"id": i} for i in range(len(objects))],
        "categories": [{"id": 1}],
        "annotations": [{"id": i + 1, **entry} for i, entry in enumerate(annotations)],
    }
    detections = [e for i, (b, s) in enumerate(found) for e in entries(b, i, score=s)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = cocoeval.COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = script("detection").average_precision(found, objects)
    assert 0.1 < precision < 0.9
    assert precision == pytest.approx(evaluation.stats[1], abs=1e-6)


def clothes(folder: Path) -> Path:
    """Stand-ins for Fashion-MNIST: blocks of different sizes, ten of each kind."""
    folder.mkdir()
    labels = np.arange(100) % 10
    images = np.zeros((100, 28, 28), np.uint8)
    for i, image in enumerate(images):
        image[2 + i % 5 : 26 - i % 3, 4 + labels[i] : 24] = 200
    for part in ("train", "t10k"):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            content = gzip.compress(header + array.astype(np.uint8).tobytes())
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(content)
    return folder


def test_pictures(script: Script, tmp_path: Path) -> None:
    """Boxes lie around what differs from the noise; the same pictures come every time."""
    detection, folder = script("detection"), clothes(tmp_path / "clothes")
    pictures, again = (detection.canvases(folder, "train", 12) for _ in range(2))
    for picture, same in zip(pictures, again, strict=True):
        assert torch.equal(picture.image, same.image)
        assert 1 <= len(picture.boxes) <= 3
        assert picture.image.shape == (3, 128, 128)
        assert ((picture.image >= 0) & (picture.image <= 1)).all()
        for left, top, right, bottom in picture.boxes.int().tolist():
            inside = picture.image[:, top + 3 : bottom - 3, left + 3 : right - 3]
            assert (inside.amax(0) > 0.3).all()  # the noise is below, and edges are soft
    mirrored = detection.mirrored(pictures[0])
    for old, new in zip(
        pictures[0].boxes.int().tolist(), mirrored.boxes.int().tolist(), strict=True
    ):
        part = pictures[0].image[:, old[1] : old[3], old[0] : old[2]]
        assert torch.equal(mirrored.image[:, new[1] : new[3], new[0] : new[2]], part.flip(-1))


def test_small_scale(start: Start, tmp_path: Path, script: Script,
                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    command = ("detection", "--data", clothes(tmp_path / "clothes"), "--out", tmp_path / "out",
               "--seeds", 1, "--epochs", 1, "--pictures", 4, 2)  # fmt: skip
    first = start(*command)
    content = json.loads((tmp_path / "out" / "detection.json").read_text())
    assert list(content["runs"]["resnet18"]) == ["RandInit", "embedded"]
    assert "paper (Table 8, ResNet-50): RandInit 21.3 ± 4.9" in first.splitlines()[-1]
    monkeypatch.setattr(script("detection"), "fit", None)  # nothing is trained again
    assert start(*command) == first


def penn_fudan(folder: Path) -> Path:
    """Stand-ins: gray photographs with one or two bright pedestrians."""
    for name in ("PNGImages", "PedMasks"):
        (folder / name).mkdir(parents=True)
    for i in range(4):
        pixels, mask = np.full((90, 120, 3), 60, np.uint8), np.zeros((90, 120), np.uint8)
        for number in range(1 + i % 2):
            mask[20:80, 10 + 50 * number : 35 + 50 * number] = number + 1
        pixels[mask > 0] = 220
        Image.fromarray(pixels).save(folder / "PNGImages" / f"photo{i}.png")
        Image.fromarray(mask).save(folder / "PedMasks" / f"photo{i}_mask.png")
    return folder


def test_penn_fudan(script: Script, tmp_path: Path) -> None:
    found = script("detection").penn_fudan(penn_fudan(tmp_path / "PennFudanPed"))
    assert [picture.boxes.tolist() for picture in found[:2]] == [
        [[10, 20, 34, 79]], [[10, 20, 34, 79], [60, 20, 84, 79]],
    ]  # fmt: skip
    assert found[0].image.shape == (3, 90, 120)
    with pytest.raises(SystemExit, match="there are no photographs in"):
        script("detection").penn_fudan(tmp_path)


@pytest.mark.slow
def test_paper_scale(start: Start, published: None, tmp_path: Path) -> None:
    """The same code on four photographs, with checkpoints from a Hub on this machine."""
    data = penn_fudan(tmp_path / "PennFudanPed")
    printed = start("detection", "--scale", "paper", "--data", data,
                    "--out", tmp_path / "out", "--backbones", "resnet50", "--seeds", 1,
                    "--epochs", 1, "--pictures", 0, 2)  # fmt: skip
    line = next(line for line in printed.splitlines() if "RandInit" in line)
    assert line.split()[:2] == ["resnet50", "RandInit"]
    assert line.endswith("21.3 ± 4.9")
