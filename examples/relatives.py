"""Does a trained relative help? Smaller models, initialized from larger ones trained on CIFAR-10.

    python examples/relatives.py --data cifar10/ --out runs/relatives

A ResNet-20 and a small vision transformer are trained on the training images (a folder with
`train/<class>/` and `test/<class>/`, at 32 x 32), and kept in `--out` as safetensors files. From
each, a smaller model of its family is initialized by `select` (weight selection) and by `front`
(FRONT), and trained on the same images beside `rand`, with the same budget, three seeds each. The
differences are paired by seed. What is finished is kept: the same command goes on where it was
stopped (a source that was not finished begins anew), and then prints the tables at once.

The classification layers start at random, and alike. The papers train the source on other, larger
data than the model; here both have the same images, as in DPIAT's experiments, where ResNet-14 from
ResNet-20 had 77.5% after one epoch against 32.5% (https://arxiv.org/abs/2212.13970).

It takes 20 to 30 minutes on two cores. `--quick` shows in a minute that everything works.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ghn_init import GHNInitError
from ghn_init.compare import Comparison, FineTuning, Point, compare, fine_tune, load_split
from ghn_init.images import Split

METHODS = ("rand", "select", "front")


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters (He et al., 2016, Section 4.2)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, width - channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self.padding)))


class ResNet(nn.Module):
    """The ResNet for CIFAR-10 of `6 n + 2` layers: ResNet-20 with n = 3 and width 16."""

    def __init__(self, n: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width]
        self.layers = nn.Sequential()
        for i in (1, 2, 3):
            first = Block(widths[i - 1], widths[i], 1 if i == 1 else 2)
            rest = [Block(widths[i], widths[i], 1) for _ in range(n - 1)]
            self.layers.append(nn.Sequential(first, *rest))
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(torch.relu(self.bn(self.conv(x))))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def vit(width: int, depth: int, classes: int) -> nn.Module:
    """timm's vision transformer on patches of 4 x 4 pixels, with heads of 16 channels."""
    return timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=width, depth=depth, num_heads=width // 16,
        num_classes=classes, class_token=False, global_pool="avg",
    )  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A larger model to train, and a smaller one to initialize from it.

    Arguments:
        source, model: builders, given the number of classes.
        lr: learning rate of both (AdamW).
        steps: of the source's training, and of the model's runs.
    """

    source: Callable[[int], nn.Module]
    model: Callable[[int], nn.Module]
    lr: float
    steps: tuple[int, int]


FAMILIES = {
    "ResNet-14 from ResNet-20": Family(
        lambda classes: ResNet(3, 16, classes), lambda classes: ResNet(2, 16, classes),
        3e-3, (1000, 100),
    ),
    "ResNet-14, half as wide, from ResNet-20": Family(
        lambda classes: ResNet(3, 16, classes), lambda classes: ResNet(2, 8, classes),
        3e-3, (1000, 150),
    ),
    "ViT of 4 blocks, half as wide, from ViT of 6 blocks": Family(
        lambda classes: vit(96, 6, classes), lambda classes: vit(48, 4, classes), 1e-3, (800, 200)
    ),
}  # fmt: skip
"""Those with one source stand behind each other: it is trained once."""


def main() -> None:
    options = arguments()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        labels, tested = (40, 16) if options.quick else (0, 2000)
        data = load_split(options.data, labels=labels, test_images=tested, progress=True)
        for name in FAMILIES:
            print(f"\n{compared(name, data, options).table()}")
    except (GHNInitError, OSError) as error:
        raise SystemExit(f"relatives.py: {error}") from error


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="cifar10/", help="folder of images; default: cifar10/")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method; default: 3")
    parser.add_argument("--quick", action="store_true", help="40 images, 4 steps, 2 seeds")
    return parser.parse_args()


def compared(name: str, data: Split, options: argparse.Namespace) -> Comparison:
    """The smaller model from each method, trained and tested."""
    family, classes = FAMILIES[name], len(data.train.classes)

    def build(seed: int) -> nn.Module:
        return seeded(lambda: family.model(classes), seed)

    return compare(
        build,
        METHODS,
        data,
        budget(family.steps[1], options),
        [Point(family.lr)],
        seeds=2 if options.quick else options.seeds,
        source=trained(name, data, options),
        reach=(40, 50, 60),
        results=options.out / f"{slug(name)}{'-quick' * options.quick}.json",
        name=name,
        progress=True,
    )


def trained(name: str, data: Split, options: argparse.Namespace) -> Path:
    """The file of the source's weights, which is trained if there is none."""
    family, classes = FAMILIES[name], len(data.train.classes)
    how = budget(family.steps[0], options)
    path: Path = options.out / f"{slug(name.rpartition(' from ')[2])}-{how.steps}.safetensors"
    if path.exists():
        return path
    model = seeded(lambda: family.source(classes), 0)

    def watch(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"source of {name}: step {step} of {how.steps}, loss {loss:.2f}", flush=True)

    outcome = fine_tune(
        model, data.train, data.test, how, Point(family.lr), 0, (how.steps,), watch,
        torch.channels_last,
    )  # fmt: skip
    print(f"source of {name}: {outcome.accuracy:.1f}% on the test images")
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    unfinished = path.with_suffix(".part")
    save_file(state, unfinished)
    return unfinished.replace(path)


def budget(steps: int, options: argparse.Namespace) -> FineTuning:
    return FineTuning(4, 8) if options.quick else FineTuning(steps, 128, eval_every=steps // 5)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


if __name__ == "__main__":
    main()
