"""Few-shot transfer: Table 7 of the GHN-3 paper; Tables 1, 2, Figure 4 of the second paper.

    apt-get install dataset-fashion-mnist
    python examples/reproduce/fewshot.py --out runs/fewshot
    python examples/reproduce/fewshot.py --scale paper --data cifar10 --out runs/fewshot

A model is initialized by each method, its classification layer anew, and fine-tuned on 1,000
labeled images. The rows are the papers' initializations, and the second paper's ablations of its
two steps: without the noise, without the orthogonal step, and with another first layer L.

Each run is one of `ghn-init compare`: of a grid, each method gets what is best on training images
that are held out. Paper scale: ResNet-50, ConvNeXt-B and Swin-T on CIFAR-10 (or CIFAR-100), and the
grid of the second paper's Section 4, which the GHN-3 paper follows: 360 runs to choose, for each
method and model. Small scale: a small MobileNetV3 on Fashion-MNIST, two learning rates. `--grid
paper` takes the paper's grid there, too: its optimizers, epochs, rates and decays, at one size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment import finish, hypernetworks, mean_std, parser

from ghn_init import GHN, create_model
from ghn_init.analysis import Result, new_figure, text_table
from ghn_init.compare import FineTuning, Point, Row, Split, compare, load_split, split_images
from ghn_init.methods import parse_method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Text = tuple[str, str | None, str | None]

BASELINES: Mapping[str, Text] = {
    "rand": ("own initialization", "60.6 ± 0.5", "61.6"),
    "orth": ("orthogonal", "60.7 ± 0.3", "61.1"),
    "orth:orth_start=0.685": ("orthogonal from L on", "60.2 ± 0.8", None),
}
"""Methods, what they are, and their accuracies with ResNet-50 on CIFAR-10: in the second paper
(Table 1 and Section 5, with GHN-2), and in Table 7 of GHN-3's."""

PREDICTED: Mapping[str, Text] = {
    "{ghn}": ("predicted", "61.8 ± 0.3", "61.8 (ghn2), 72.9 (ghn3xlm16)"),
    "{ghn}-orth": ("and noise, and orthogonal step", "65.6 ± 0.2", None),
    "{ghn}-orth:noise=0": ("without the noise", "65.0 ± 0.4", None),
    "{ghn}:noise=3e-05": ("without the orthogonal step", "61.4 ± 0.2", None),
    "{ghn}-orth:orth_start=1": ("L: the first layer", None, None),
    "{ghn}-orth:orth_start=0.685": ("L: 68.5% of the depth, ResNet-50's 37", None, None),
}
"""The same of each hypernetwork, `ghn2` or `ghn3`."""


def predicted(arch: str) -> dict[str, Text]:
    """The rows of a hypernetwork."""
    return {name.format(ghn=arch): text for name, text in PREDICTED.items()}


ROWS = {**BASELINES, **predicted("ghn2"), **predicted("ghn3")}


@dataclass(frozen=True)
class Setting:
    """A part of the grid.

    Arguments:
        optimizer: adamw or sgd.
        epochs: of the fine-tuning.
        image_size: to which images are scaled.
        points: learning rates and weight decays.
    """

    optimizer: str
    epochs: int
    image_size: int
    points: tuple[Point, ...]


def _points(rates: Sequence[float], decays: Sequence[float]) -> tuple[Point, ...]:
    return tuple(Point(rate, decay) for rate, decay in product(rates, decays))


_DECAYS = (0.0001, 0.001, 0.01, 0.05, 0.1)
_RATES = {"sgd": (0.025, 0.01, 0.005, 0.0025, 0.001), "adamw": (0.004, 0.001, 0.0004, 0.0001)}

GRIDS = {
    "small": (Setting("adamw", 4, 32, _points((3e-3, 1e-3), (0.01,))),),
    "paper": tuple(
        Setting(optimizer, epochs, size, _points(rates, _DECAYS))
        for (optimizer, rates), epochs, size in product(
            _RATES.items(), (50, 100, 200, 300), (32, 224)
        )
    ),
}


@dataclass(frozen=True)
class Protocol:
    """What is done at a scale.

    Arguments:
        models: names, with the images in a step.
        library: where the models are from.
        images: labeled ones, ones to choose on, and ones to test on; 0: all.
        seeds: runs that are reported.
    """

    models: Mapping[str, int]
    library: str
    images: tuple[int, int, int]
    seeds: int


PROTOCOLS = {
    "small": Protocol({"mobilenetv3_small_050": 64}, "timm", (1000, 1000, 1000), 2),
    "paper": Protocol(
        {"resnet50": 96, "convnext_base": 48, "swin_t": 48}, "torchvision", (1000, 5000, 0), 5
    ),
}
"""Paper: the second one has 5 runs, GHN-3's 3, and no figure for Swin-T's batch."""


@dataclass(frozen=True)
class Found:
    """A method's best setting, and its runs.

    Arguments:
        setting: whose points are the one that was taken.
        row: of `compare`.
    """

    setting: Setting
    row: Row


@dataclass(frozen=True)
class FewShot(Result):
    """What came of each model and method.

    Arguments:
        found: by model, then by method.
        images: how many were trained on.
        batches: images in a step, by model.
    """

    found: Mapping[str, Mapping[str, Found]]
    images: int
    batches: Mapping[str, int]

    def table(self) -> str:
        """A table for each model, with both papers' figures for ResNet-50."""
        header = ["method", "", "optimizer", "epochs", "size", "lr", "decay", "accuracy"]
        header += ["second paper, Table 1", "GHN-3, Table 7"]
        parts = []
        for model, by_method in self.found.items():
            rows = []
            for method, one in by_method.items():
                about, *paper = ROWS[method]
                how, point = one.setting, one.row.point
                rows.append([method, about, how.optimizer, how.epochs, how.image_size, point.lr,
                             point.weight_decay, mean_std(one.row.accuracies), *paper])  # fmt: skip
            parts += [f"{model}, {self.images} labeled images: accuracy, % (the papers': ResNet-50 "
                      "on CIFAR-10)", text_table(header, rows)]  # fmt: skip
        return "\n".join(parts)

    def plot(self) -> Figure:
        """Test accuracies over the epochs, of the first seed (second paper, Figure 4)."""
        figure = new_figure(5 * len(self.found), 4)
        panels = figure.subplots(1, len(self.found), squeeze=False)[0]
        for axes, (model, by_method) in zip(panels, self.found.items(), strict=True):
            steps = self.images // self.batches[model]
            for method, one in by_method.items():
                curve = one.row.outcomes[0].curve
                axes.plot([s / steps for s, _ in curve], [a for _, a in curve], label=method)
            axes.set(title=model, xlabel="epoch", ylabel="test accuracy, %")
            axes.legend(fontsize=6)
        return figure

    def content(self) -> dict[str, Any]:
        """Settings and accuracies, and the papers' figures."""
        found = {
            model: {
                method: {**asdict(one.setting), "points": asdict(one.row.point),
                         "accuracies": one.row.accuracies,
                         "curves": [o.curve for o in one.row.outcomes]}
                for method, one in by_method.items()
            }
            for model, by_method in self.found.items()
        }  # fmt: skip
        return {"found": found, "images": self.images, "paper": ROWS}


def main() -> None:
    options = arguments()
    protocol = PROTOCOLS[options.scale]
    protocol = replace(
        protocol,
        images=tuple(options.images or protocol.images), seeds=options.seeds or protocol.seeds,
        models={m: options.batch_size or b for m, b in protocol.models.items()
                if m in (options.models or protocol.models)},
    )  # fmt: skip
    grid = GRIDS[options.grid or options.scale]
    if options.scale == "small":  # Fashion-MNIST has one size
        grid = tuple(setting for setting in grid if setting.image_size == 32)
    if options.epochs:  # each length once
        grid = tuple(dict.fromkeys(replace(setting, epochs=options.epochs) for setting in grid))
    loaded = list(hypernetworks(options).values())
    methods = list(BASELINES)
    for ghn in loaded:
        usual = f"{ghn.config.arch}-orth:orth_start={ghn.defaults.orth_start}"  # that row is there
        methods += [name for name in predicted(ghn.config.arch) if name != usual]
    options.out.mkdir(parents=True, exist_ok=True)
    runs = Runs(protocol, grid, {ghn.config.arch: ghn for ghn in loaded}, options)
    found = {
        model: {method: runs.best(model, method) for method in options.methods or methods}
        for model in protocol.models
    }
    result = FewShot(found, protocol.images[0], protocol.models)
    finish(result, options, "fewshot", last_line(result))


def arguments() -> argparse.Namespace:
    found = parser(__doc__)
    found.add_argument("--data", default="/usr/share/datasets/fashion-mnist", metavar="DIR",
                       help="small: folder of Fashion-MNIST's four idx files; paper: CIFAR-10 or "
                       "CIFAR-100, as a folder or torchvision:CIFAR100:PATH")  # fmt: skip
    found.add_argument("--grid", choices=GRIDS, help="default: that of the scale")
    found.add_argument("--models", nargs="+", metavar="NAME", help="of the scale; default: all")
    found.add_argument("--methods", nargs="+", metavar="NAME", help="rows; default: all")
    found.add_argument("--seeds", type=int, help="runs that are reported")
    found.add_argument("--epochs", type=int, help="in place of the grid's")
    found.add_argument("--batch-size", type=int, metavar="B", help="images in a step")
    found.add_argument("--images", type=int, nargs=3, metavar=("TRAIN", "VAL", "TEST"),
                       help="numbers of images; 0: all")  # fmt: skip
    return found.parse_args()


@dataclass(frozen=True)
class Runs:
    """All runs.

    Arguments:
        protocol: see there.
        grid: the settings to choose from.
        loaded: hypernetworks by architecture.
        options: of the command line.
    """

    protocol: Protocol
    grid: Sequence[Setting]
    loaded: Mapping[str, GHN]
    options: argparse.Namespace

    def best(self, model: str, method: str) -> Found:
        """The setting in which a method is best on the images to choose on, with all its runs."""
        rows = {setting: self.row(model, method, setting, 1) for setting in self.grid}
        setting = max(rows, key=lambda setting: chosen(rows[setting]))
        return Found(setting, self.row(model, method, setting, self.protocol.seeds))

    def row(self, model: str, method: str, setting: Setting, seeds: int) -> Row:
        """One comparison; runs that were made before are taken from its file."""
        images = data(self.options.data, self.options.scale, setting.image_size,
                      self.protocol.images, self.options.device)  # fmt: skip
        batch, classes = self.protocol.models[model], len(images.train.classes)
        steps = max(1, setting.epochs * (len(images.train.labels) // batch))
        arch = parse_method(method).method.hypernetwork
        about = f"{setting.optimizer}-{setting.epochs}-{setting.image_size}"
        return compare(
            lambda seed: create_model(model, self.protocol.library, classes, seed)[0],
            [method],
            images,
            FineTuning(steps, batch, setting.optimizer, eval_every=max(1, steps // 4)),
            setting.points,
            seeds=seeds,
            ghn=None if arch is None else self.loaded[arch],
            results=self.options.out / f"{model}-{method}-{about}.json",
            name=model,
            progress=True,
        ).rows[0]


def chosen(row: Row) -> float:
    """Accuracy on the images to choose on; -1 where nothing was chosen, or all runs diverged."""
    return max((accuracy for accuracy in row.choice.values() if accuracy is not None), default=-1.0)


@lru_cache(maxsize=2)
def data(source: str, scale: str, size: int, images: tuple[int, int, int], device: str) -> Split:
    """Images; of Fashion-MNIST, which are 28x28, padded to 32x32."""
    if scale == "paper":
        return load_split(source, size, *images, device=device, progress=True)
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # the examples that are not here
    from transfer import fashion_mnist, on_device

    train, test = (fashion_mnist(Path(source), part) for part in ("train", "t10k"))
    split = split_images(train, test, *images)
    parts = (split.train, split.validation, split.test)
    return Split(*(on_device(part, device) for part in parts))


def last_line(result: FewShot) -> str:
    model, by_method = next(iter(result.found.items()))
    here = ", ".join(f"{m} {mean_std(one.row.accuracies)}" for m, one in by_method.items())
    return (
        f"{model}, {result.images} labels here: {here}; papers (ResNet-50, CIFAR-10): rand 60.6 ± "
        "0.5, orth 60.7 ± 0.3, ghn2 61.8 ± 0.3, ghn2-orth 65.6 ± 0.2 (Table 1 of the second), "
        "ghn3 72.9 (Table 7 of GHN-3's)"
    )


if __name__ == "__main__":
    main()
