"""The networks that direct.py and nas.py train, and how; with one `--out` they share their runs.

Small scale: networks of 32x32 images that no hypernetwork here was trained on (`zoo-test` of
`ghn-init train make-nets --space zoo`), two of each of thirteen families, and CIFAR-10. An "epoch"
is 100 steps of 32 images. Paper scale: the 74 models of PyTorch 1.13, ImageNet, and the settings of
Section 5.1 of the GHN-3 paper.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from experiment import parser
from torch import nn
from torchvision import models as torchvision_models

from ghn_init import GHN, create_model
from ghn_init.compare import FineTuning, Outcome, Point, Split, compare, load_split
from ghn_init.train import load_nets, make_nets

NEWER = ("maxvit_t", "regnet_y_128gf", "swin_v2_b", "swin_v2_s", "swin_v2_t", "vit_h_14")
"""Classifiers of torchvision that are not among the paper's 74."""

Builders = Mapping[str, Callable[[int], nn.Module]]
"""By name: what builds a network for a seed."""


@dataclass(frozen=True)
class Protocol:
    """How networks are trained.

    Arguments:
        image_size: of the images.
        images: to train on, to choose the learning rate on, and to test on; 0: all (of the second
            kind: none).
        steps: of an epoch; 0: as many as the images give.
        batch_size: images in a step.
        points: learning rates and weight decays; of several, the best on held-out images is taken.
    """

    image_size: int
    images: tuple[int, int, int]
    steps: int
    batch_size: int
    points: tuple[Point, ...]


PROTOCOLS = {
    "small": Protocol(32, (3200, 0, 1000), 100, 32, (Point(0.02, 3e-5),)),
    "paper": Protocol(
        224, (0, 10_000, 0), 0, 128, tuple(Point(lr, 3e-5) for lr in (0.4, 0.1, 0.04, 0.01, 0.001))
    ),
}
"""The paper trains with SGD, momentum 0.9 and these rates, and reports the best of them on the test
images. Here the rate is chosen on training images that are held out."""


@dataclass(frozen=True)
class LazyNetworks(Mapping[str, nn.Module]):
    """Networks by name, each built when it is asked for: one at a time in memory.

    Arguments:
        builders: of the networks.
    """

    builders: Builders

    def __getitem__(self, name: str) -> nn.Module:
        return self.builders[name](0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.builders)

    def __len__(self) -> int:
        return len(self.builders)


@dataclass(frozen=True)
class Networks(LazyNetworks):
    """Networks, and their accuracies after training.

    Arguments:
        data: images.
        protocol: see there.
        out: folder for the runs.
    """

    data: Split
    protocol: Protocol
    out: Path

    def accuracy(self, name: str, epochs: float, ghn: GHN | None = None) -> float:
        """Of a network that starts random or predicted and is trained, in percent.

        It is 0 where the training diverged.

        Arguments:
            name: of the network.
            epochs: 0.1 or 1.
            ghn: predicts the parameters; None: they start random.
        """
        outcome = self.train(name, epochs, ghn)
        return 0.0 if outcome.accuracy is None else outcome.accuracy

    def train(self, name: str, epochs: float, ghn: GHN | None = None) -> Outcome:
        """One run of `compare`, from its file if it was made before."""
        protocol, folder = self.protocol, self.out / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        epoch = protocol.steps or len(self.data.train.labels) // protocol.batch_size
        steps = max(1, round(epochs * epoch))
        how = FineTuning(
            steps, protocol.batch_size, optimizer="sgd", eval_every=steps, head="predict"
        )
        origin = "rand" if ghn is None else f"{Path(ghn.name).stem}"
        result = compare(
            self.builders[name],
            ["rand" if ghn is None else ghn.config.arch],
            self.data,
            how,
            protocol.points,
            seeds=1,
            ghn=ghn,
            results=folder / f"{name}-{origin}-{steps}.json",
            name=name,
            progress=True,
        )
        return result.rows[0].outcomes[0]


def networks_parser(about: str | None) -> argparse.ArgumentParser:
    """The arguments of every experiment, and those that make this one shorter."""
    found = parser(about, "small: CIFAR-10, as a folder of train/<class>/ and test/<class>/ or "
                   "torchvision:CIFAR10:PATH; paper: ImageNet, likewise")  # fmt: skip
    found.add_argument("--only", nargs="+", metavar="NAME", help="of the networks; default: all")
    found.add_argument("--steps", type=int, metavar="N", help="of an epoch")
    found.add_argument("--batch-size", type=int, metavar="B", help="images in a step")
    found.add_argument("--images", type=int, nargs=3, metavar=("TRAIN", "VAL", "TEST"),
                       help="numbers of images; 0: all")  # fmt: skip
    return found


def networks(options: argparse.Namespace) -> Networks:
    """The networks of a scale, and its protocol with what the options change."""
    protocol = PROTOCOLS[options.scale]
    protocol = replace(
        protocol,
        images=tuple(options.images or protocol.images),
        steps=options.steps or protocol.steps,
        batch_size=options.batch_size or protocol.batch_size,
    )
    train, validation, test = protocol.images
    data = load_split(
        options.data, protocol.image_size, train, validation, test,
        device=options.device, progress=True,
    )  # fmt: skip
    classes = len(data.train.classes)
    if options.scale == "small":
        found = small_networks(options.out / "nets", classes)
    else:
        found = {name: partial(_torchvision, name, classes) for name in pytorch_models()}
    unknown = set(options.only or ()) - set(found)
    if unknown:
        raise SystemExit(f"--only {min(unknown)}: choose among {', '.join(found)}.")
    wanted = {name: found[name] for name in options.only or found}
    return Networks(wanted, data, protocol, options.out)


def small_networks(folder: Path, classes: int, count: int = 26) -> Builders:
    """Small members of real families, such as `vit-8`: the family, and the number in the split."""
    make_nets("zoo-test", count, folder, workers=1)
    nets = enumerate(load_nets(folder, "zoo-test", count))
    return {f"{net.family}-{i}": partial(net.build, classes) for i, net in nets}  # type: ignore[union-attr]


def pytorch_models() -> list[str]:
    """The PyTorch split: torchvision's classifiers, as of PyTorch 1.13."""
    names = torchvision_models.list_models(module=torchvision_models)
    return [n for n in names if not n.startswith("quantized_") and n not in NEWER]


def _torchvision(name: str, classes: int, seed: int) -> nn.Module:
    return create_model(name, "torchvision", classes, seed)[0]
