"""Table 8 of the GHN-3 paper: does what is predicted for classification help to detect objects?

    apt-get install dataset-fashion-mnist
    python examples/reproduce/detection.py --out runs/reproduce
    python examples/reproduce/detection.py --scale paper --data PennFudanPed --out runs/detection

A ResNet is initialized as a classifier by each method, and becomes the backbone, with a feature
pyramid, of a Faster R-CNN, which is trained on few images. The figure is the average precision on
test images at an intersection over union (IoU) of 0.50.

Paper scale: Penn-Fudan's 170 photographs of pedestrians, 50 of them to test on, and the settings of
PyTorch's tutorial on detection, as in the paper. Small scale: shoes on a canvas of 128x128 pixels,
among other clothes and on noise, all of Fashion-MNIST; ResNet-18 and a narrow head.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from experiment import finish, hypernetworks, mean_std, parser, remember
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import box_iou, masks_to_boxes
from torchvision.transforms.v2.functional import pil_to_tensor, resize
from tqdm import tqdm

import ghn_init
from ghn_init import GHN
from ghn_init.analysis import Result, new_figure, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOES = ("sandal", "sneaker", "boot")

IOU, MOST, RECALLS = 0.5, 100, torch.from_numpy(np.linspace(0, 1, 101))
"""Of COCO's average precision: the overlap of a hit, detections an image, and recalls."""

RAND = "RandInit"

PAPER: Mapping[str, Mapping[str, str]] = {
    RAND: {"resnet50": "21.3 ± 4.9", "resnet101": "14.9 ± 1.1", "resnet152": "18.4 ± 1.9"},
    "ghn2": {"resnet50": "54.9 ± 1.4", "resnet101": "55.1 ± 3.2", "resnet152": "55.8 ± 5.7"},
    "ghn3xlm16": {"resnet50": "61.7 ± 3.8", "resnet101": "60.2 ± 7.6", "resnet152": "60.0 ± 5.2"},
}
"""Table 8, without pretraining on ImageNet: AP at an IoU of 0.50, in percent, over 3 runs."""


@dataclass(frozen=True)
class Picture:
    """An image and the objects in it.

    Arguments:
        image: `(3, H, W)`, from 0 to 1.
        boxes: `(objects, 4)`: left, top, right, bottom, in pixels.
    """

    image: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Protocol:
    """How a detector is built and trained.

    Arguments:
        backbones: names of torchvision's classifiers.
        classes: of the classifier, whose last layer is not used.
        seeds: runs of each initialization.
        epochs, batch_size, lr: of the training with SGD. The rate rises in the first epoch, and
            falls to a tenth after every `fall` epochs.
        sizes: shorter and longer side to which images are scaled, at most.
        anchors: sizes of the anchors, one a level of the pyramid.
        width: channels of the pyramid; the head that classifies has four times as many.
        proposals: boxes of an image that the head is trained on.
        pictures: of the small scale: to train on and to test on.
    """

    backbones: tuple[str, ...]
    classes: int
    seeds: int
    epochs: int
    batch_size: int
    lr: float
    fall: int
    sizes: tuple[int, int]
    anchors: tuple[int, ...]
    width: int
    proposals: int
    pictures: tuple[int, int] = (0, 50)


PROTOCOLS = {
    "small": Protocol(
        ("resnet18",), 10, 2, 6, 4, 0.02, 4, (128, 128), (16, 24, 32, 48, 64), 64, 64, (100, 40)
    ),
    "paper": Protocol(
        tuple(PAPER[RAND]), 1000, 3, 10, 2, 0.005, 3, (800, 1333), (32, 64, 128, 256, 512), 256, 512
    ),
}


@dataclass(frozen=True)
class Precisions(Result):
    """Average precision of every run.

    Arguments:
        runs: by backbone, then by initialization, in percent.
    """

    runs: Mapping[str, Mapping[str, Sequence[float]]]

    def table(self) -> str:
        """Ours, and the paper's where it has the backbone and the initialization."""
        rows = [
            (backbone, start, mean_std(values), len(values), _paper(start, backbone))
            for backbone, by_start in self.runs.items()
            for start, values in by_start.items()
        ]
        return text_table(
            ("backbone", "initialization", "AP@50, %", "runs", "paper, Table 8"), rows
        )

    def plot(self) -> Figure:
        """Every run, and the means."""
        figure = new_figure(2 + 2.5 * len(self.runs), 3.5)
        panels = figure.subplots(1, len(self.runs), squeeze=False, sharey=True)[0]
        for axes, (backbone, by_start) in zip(panels, self.runs.items(), strict=True):
            names = list(by_start)
            axes.bar(names, [sum(v) / len(v) for v in by_start.values()], color="lightgray")
            for i, values in enumerate(by_start.values()):
                axes.plot([i] * len(values), values, "k.")
            axes.set_title(backbone, fontsize=9)
        panels[0].set_ylabel("AP@50, %")
        return figure

    def content(self) -> dict[str, Any]:
        """Runs, and the paper's figures."""
        return {"runs": self.runs, "paper": PAPER}


def main() -> None:
    options = arguments()
    protocol = PROTOCOLS[options.scale]
    protocol = replace(
        protocol, **{n: v for n in ("seeds", "epochs", "pictures") if (v := getattr(options, n))}
    )
    loaded: dict[str, GHN | None] = {RAND: None, **hypernetworks(options)}
    train, test = pictures(options, protocol)
    runs: dict[str, dict[str, list[float]]] = {}
    for backbone in options.backbones or protocol.backbones:
        for seed in range(protocol.seeds):
            for start, ghn in loaded.items():
                found = remember(
                    options.out / "detection" / f"{backbone}-{start}-{seed}.json",
                    {
                        "protocol": asdict(protocol),
                        "pictures": [float(sum(p.image.sum() for p in t)) for t in (train, test)],
                        "ghn": None if ghn is None else ghn.origin.sha256 or ghn.name,
                    },
                    partial(run, backbone, start, ghn, seed, train, test, protocol, options.device),
                )
                runs.setdefault(backbone, {}).setdefault(start, []).append(found)
    finish(Precisions(runs), options, "detection", last_line(runs))


def arguments() -> argparse.Namespace:
    found = parser(__doc__)
    found.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"),
                       metavar="DIR", help="small: folder of Fashion-MNIST's four idx files; "
                       "paper: PennFudanPed")  # fmt: skip
    found.add_argument("--backbones", nargs="+", metavar="NAME", help="ResNets of torchvision")
    found.add_argument("--seeds", type=int, help="runs of each initialization")
    found.add_argument("--epochs", type=int, help="of the training")
    found.add_argument("--pictures", type=int, nargs=2, metavar=("TRAIN", "TEST"),
                       help="how many; at paper scale 0 for all but those to test on")  # fmt: skip
    return found.parse_args()


# -- pictures


def pictures(
    options: argparse.Namespace, protocol: Protocol
) -> tuple[list[Picture], list[Picture]]:
    """Pictures to train on and to test on."""
    train, test = protocol.pictures
    if options.scale == "paper":
        found = penn_fudan(options.data)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
        return [found[i] for i in order[:-test]], [found[i] for i in order[-test:]]
    # None of the clothes on pictures to train on is on those to test on.
    return canvases(options.data, "train", train), canvases(options.data, "t10k", test)


def penn_fudan(folder: Path) -> list[Picture]:
    """The photographs, with a box around each pedestrian's mask."""
    names = sorted((folder / "PNGImages").glob("*.png"))
    if not names:
        raise SystemExit(f"there are no photographs in {folder / 'PNGImages'}: give PennFudanPed, "
                         "unpacked, as --data.")  # fmt: skip
    found = []
    for path in tqdm(names, unit="photograph"):
        with Image.open(path) as photograph:
            image = pil_to_tensor(photograph.convert("RGB")) / 255
        with Image.open(folder / "PedMasks" / f"{path.stem}_mask.png") as masks:
            mask = pil_to_tensor(masks)[0]
        ids = mask.unique()[1:]  # 0 is the background
        found.append(Picture(image, masks_to_boxes(mask == ids[:, None, None])))
    return found


def canvases(folder: Path, part: str, count: int, size: int = 128, seed: int = 0) -> list[Picture]:
    """Shoes among other clothes on noise; the same ones every time.

    Arguments:
        folder: of Fashion-MNIST's idx files.
        part: `"train"` or `"t10k"`: which clothes are taken.
        count: pictures.
        size: height and width.
        seed: of the choice of clothes, sizes, places and colors.
    """
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # the examples that are not here
    from transfer import fashion_mnist

    clothes = fashion_mnist(folder, part)
    gray = clothes.pixels[..., 0].float() / 255
    is_shoe = torch.tensor([name in SHOES for name in clothes.classes])[clothes.labels]
    kinds = [gray[~is_shoe], gray[is_shoe]]
    generator = torch.Generator().manual_seed(seed)
    return [_canvas(kinds, size, generator) for _ in range(count)]


def _canvas(kinds: Sequence[Tensor], size: int, generator: torch.Generator) -> Picture:
    """One picture with one to three shoes and two to four other pieces."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    image = 0.3 * torch.rand(3, size, size, generator=generator)
    taken, shoes = torch.empty(0, 4), []
    wanted = [1] * draw(1, 3) + [0] * draw(2, 4)
    for kind in wanted:
        side = draw(24, 44)
        piece = resize(kinds[kind][draw(0, len(kinds[kind]) - 1)][None], [side, side])[0]
        (box,) = masks_to_boxes((piece > 0.1)[None])
        for _ in range(20):  # until it hides nothing
            left, top = draw(0, size - side), draw(0, size - side)
            placed = box + torch.tensor([left, top, left + 1, top + 1])
            if not (box_iou(placed[None], taken) > 0.02).any():
                break
        else:
            continue
        color = 0.5 + 0.5 * torch.rand(3, 1, 1, generator=generator)
        part = image[:, top : top + side, left : left + side]
        part.copy_(torch.where(piece > 0.1, piece * color, part))
        taken = torch.cat([taken, placed[None]])
        shoes += [placed] if kind else []
    return Picture(image, torch.stack(shoes) if shoes else torch.empty(0, 4))


# -- the detector


def run(
    backbone: str,
    start: str,
    ghn: GHN | None,
    seed: int,
    train: Sequence[Picture],
    test: Sequence[Picture],
    protocol: Protocol,
    device: str,
) -> float:
    """Train a detector, and measure its average precision, in percent."""
    gpus = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(gpus):
        torch.manual_seed(seed)
        model = detector(backbone, ghn, seed, protocol).to(device)
        fit(model, train, seed, protocol, f"{backbone}, {start}, seed {seed}")
        return 100 * average_precision(detections(model, test), [p.boxes for p in test])


def detector(backbone: str, ghn: GHN | None, seed: int, protocol: Protocol) -> FasterRCNN:
    """A Faster R-CNN with two classes, the background and the object."""
    classifier, _ = ghn_init.create_model(backbone, "torchvision", protocol.classes, seed)
    if ghn is not None:
        ghn_init.apply(classifier, ghn.config.arch, ghn=ghn, seed=seed)
    levels = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    channels = [_channels(classifier.get_submodule(name)) for name in levels]
    pyramid = BackboneWithFPN(classifier, levels, channels, protocol.width)
    found = FasterRCNN(
        pyramid,
        min_size=protocol.sizes[0],
        max_size=protocol.sizes[1],
        rpn_anchor_generator=AnchorGenerator(
            tuple((size,) for size in protocol.anchors), ((0.5, 1.0, 2.0),) * len(protocol.anchors)
        ),
        box_head=TwoMLPHead(protocol.width * 49, 4 * protocol.width),
        box_predictor=FastRCNNPredictor(4 * protocol.width, 2),
        rpn_pre_nms_top_n_train=4 * protocol.proposals,
        rpn_post_nms_top_n_train=4 * protocol.proposals,
        box_batch_size_per_image=protocol.proposals,
        box_detections_per_img=MOST,
    )
    return found


def _channels(stage: nn.Module) -> int:
    """Behind a stage of a ResNet: what its last batch norm has."""
    return [m.num_features for m in stage.modules() if isinstance(m, nn.BatchNorm2d)][-1]


def fit(
    model: FasterRCNN, train: Sequence[Picture], seed: int, protocol: Protocol, about: str
) -> None:
    """Train a detector in place; every other picture is mirrored."""
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), protocol.lr, momentum=0.9, weight_decay=5e-4)
    an_epoch = len(train) // protocol.batch_size
    generator = torch.Generator().manual_seed(seed)
    batches = _batches(train, protocol, generator)
    model.train()
    with tqdm(batches, total=protocol.epochs * an_epoch, unit="step", desc=about) as steps:
        for step, batch in enumerate(steps):
            rate = protocol.lr * 0.1 ** (step // an_epoch // protocol.fall)
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / an_epoch)
            targets = [
                {
                    "boxes": p.boxes.to(device),
                    "labels": torch.ones(len(p.boxes), dtype=torch.long, device=device),
                }
                for p in batch
            ]
            losses = model([p.image.to(device) for p in batch], targets)
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            steps.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _batches(
    train: Sequence[Picture], protocol: Protocol, generator: torch.Generator
) -> Iterator[list[Picture]]:
    size = protocol.batch_size
    for _ in range(protocol.epochs):
        order = torch.randperm(len(train), generator=generator).tolist()
        mirror = (torch.rand(len(train), generator=generator) < 0.5).tolist()
        shown = [mirrored(train[i]) if mirror[i] else train[i] for i in order]
        yield from (shown[i : i + size] for i in range(0, len(shown) - size + 1, size))


def mirrored(picture: Picture) -> Picture:
    """Left and right exchanged."""
    boxes, width = picture.boxes.clone(), picture.image.shape[-1]
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return Picture(picture.image.flip(-1), boxes)


def detections(model: FasterRCNN, test: Sequence[Picture]) -> list[tuple[Tensor, Tensor]]:
    """Boxes `(N, 4)` and scores `(N,)` that are found in each picture."""
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        found = [model([picture.image.to(device)])[0] for picture in test]
    return [(one["boxes"].cpu(), one["scores"].cpu()) for one in found]


def average_precision(
    found: Sequence[tuple[Tensor, Tensor]], boxes: Sequence[Tensor], iou: float = IOU
) -> float:
    """Average precision of one class, as COCO has it.

    In each picture detections take, from the highest score down, the object that they overlap most
    among those that are left. The precision at a recall is the best at that recall or a higher
    one; it is averaged over 101 recalls, and is 0 at those that are not reached.

    Arguments:
        found: of each picture, boxes `(N, 4)` and scores `(N,)`; the best 100 count.
        boxes: of each picture, the objects, `(M, 4)`.
        iou: intersection over union of a hit, at least.

    Returns: from 0 to 1.
    """
    scores, hits = [], []
    for (candidates, score), objects in zip(found, boxes, strict=True):
        order = score.argsort(descending=True, stable=True)[:MOST]
        overlaps = box_iou(candidates[order], objects)
        for row in overlaps:
            best = int(row.argmax()) if len(row) else 0
            hits.append(len(row) > 0 and bool(row[best] >= iou))
            if hits[-1]:
                overlaps[:, best] = -1  # it is taken
        scores.append(score[order])
    total = sum(map(len, boxes))
    order = torch.cat(scores).argsort(descending=True, stable=True)
    right = torch.tensor(hits, dtype=torch.float64)[order].cumsum(0)
    recall = right / total
    precision = right / torch.arange(1, len(right) + 1)
    precision = precision.flip(0).cummax(0).values.flip(0) if len(right) else precision
    places = torch.searchsorted(recall, RECALLS)
    reached = places < len(recall)
    return float(precision[places[reached]].sum() / len(RECALLS))


# -- what came out


def _paper(start: str, backbone: str) -> str | None:
    return PAPER.get(start, {}).get(backbone)


def last_line(runs: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    backbone, by_start = next(iter(runs.items()))
    here = ", ".join(f"{start} {mean_std(values)}" for start, values in by_start.items())
    return (
        f"AP@50 of {backbone} here: {here}; paper (Table 8, ResNet-50): RandInit 21.3 ± 4.9, "
        "ghn2 54.9 ± 1.4, ghn3xlm16 61.7 ± 3.8"
    )


if __name__ == "__main__":
    main()
