"""Table 6, Figures 6 and 8 of the GHN-3 paper: whole schedules, from each initialization.

    python examples/reproduce/schedules.py --data cifar10 --out runs/schedules
    python examples/reproduce/schedules.py --scale paper --data imagenet --train-script train.py \
        --nproc 4 --out runs/schedules

Each model is initialized, and written to a file; it is trained from the file, and its accuracy is
measured after every epoch. The variance of activations by depth (Figure 6, bottom) is measured on
what is in the files.

Training is that of timm: `--train-script` is the `train.py` of timm's repository, which takes the
file as `--initial-checkpoint`, goes on from its `last.pth.tar`, and writes the `summary.csv` that
is read here (it has no training accuracies, which Figure 8 shows too). Paper scale: ResNet-50,
ResNet-152 and Swin-T on ImageNet, 90 epochs. Small scale: ResNet-10-T on CIFAR-10, 3 epochs of 100
steps; without `--train-script` the steps are those of `ghn-init compare`.

Where a recipe has several learning rates, the first seed is trained with each, and the best at the
end on the validation images is taken: train.py knows no other images.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment import finish, hypernetworks, mean_std, parser
from training_runs import Protocol, Recipe, Runs, Start, Trained

from ghn_init.analysis import Result, new_figure, text_table
from ghn_init.compare import Point, load_split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RAND = "RandInit"

PAPER: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "resnet50": {
        RAND: (20.6, 67.3, 76.0), "GradInit": (21.1, 67.9, 76.2), "NIO": (21.0, 68.1, 76.1),
        "ghn2": (12.8, 66.5, 75.6), "ghn3xlm16": (35.0, 73.5, 76.2),
    },
    "resnet152": {
        RAND: (19.7, 70.5, 78.2), "GradInit": (22.5, 70.5, 78.2),
        "ghn2": (13.9, 69.2, 77.4), "ghn3xlm16": (34.3, 75.9, 78.1),
    },
    "swin_tiny_patch4_window7_224": {
        RAND: (18.4, 72.7, 75.6), "GradInit": (20.3, 72.1, 75.0),
        "ghn2": (15.8, 70.3, 75.8), "ghn3xlm16": (27.1, 73.7, 76.4),
    },
}  # fmt: skip
"""Table 6: accuracy on ImageNet in percent after 1, 45 and 90 epochs."""

SECONDS = {RAND: 0.2, "GradInit": 1700, "NIO": 85, "ghn2": 1.3, "ghn3xlm16": 1.2}
"""Table 6: of the initialization, on an A100, over the three models."""


def _points(rates: Sequence[float], decays: Sequence[float] = (1e-4,)) -> tuple[Point, ...]:
    return tuple(Point(rate, decay) for rate in rates for decay in decays)


_PLAIN = "--smoothing 0 --color-jitter 0"
_STEP = f"{_PLAIN} --opt momentum --sched step --decay-epochs 30 --decay-rate 0.1 --warmup-epochs 0"
_RESNET = Recipe("resnet50", 90, 128, _points([0.1]), _points([0.1, 0.025, 0.01]), _STEP)
_SWIN = _points([1e-3, 6e-4, 3e-4], [0.01, 0.05])

PROTOCOLS = {
    "small": Protocol(
        (Recipe("resnet10t", 3, 32, _points([0.02], [3e-5]), _points([0.02], [3e-5]),
                f"{_PLAIN} --opt momentum --sched cosine --warmup-epochs 0"),),
        32, (3200, 1000), 2,
        {"GradInit": "gradinit:steps=30,batch=32", "NIO": "nio:steps=10,batch=32"}, 512,
    ),
    "paper": Protocol(
        (_RESNET, replace(_RESNET, model="resnet152"),
         Recipe("swin_tiny_patch4_window7_224", 90, 512, _SWIN, _SWIN,
                f"{_PLAIN} --opt adamw --sched cosine --warmup-epochs 5 --clip-grad 5")),
        224, (0, 0), 3, {"GradInit": "gradinit:steps=2000", "NIO": "nio"}, 4096,
    ),
}  # fmt: skip
"""Paper: Section 5.2, which does not say the weight decay of the ResNets (here 1e-4) nor the warmup
of Swin-T, nor on how many images of ImageNet GradInit and NIO learned."""


@dataclass(frozen=True)
class Schedules(Result):
    """What came of everything.

    Arguments:
        found: by model, then by initialization.
        epochs: of the schedule of each model.
    """

    found: Mapping[str, Mapping[str, Trained]]
    epochs: Mapping[str, int]

    def stages(self, model: str) -> list[int]:
        """The first epoch, the middle and the end, as in Table 6."""
        last = self.epochs[model]
        return sorted({1, (last + 1) // 2, last})

    def table(self) -> str:
        """A table for each model, with the paper's figures."""
        parts = []
        for model, by_start in self.found.items():
            stages = self.stages(model)
            header = ["initialization", "init (s)", "lr", "decay"]
            header += [f"{epochs} epoch{'s' * (epochs > 1)}" for epochs in stages]
            header += ["paper, init (s)", "1 epoch", "45 epochs", "90 epochs"]
            paper = PAPER.get(model, PAPER["resnet50"])
            rows = [
                [name, sum(one.seconds) / len(one.seconds), one.point.lr, one.point.weight_decay,
                 *(mean_std(one.after(epochs)) for epochs in stages),
                 SECONDS.get(name), *paper.get(name, (None,) * 3)]
                for name, one in by_start.items()
            ]  # fmt: skip
            note = "" if model in PAPER else "; the paper's figures are ResNet-50's on ImageNet"
            parts += [f"{model}: accuracy, %{note}", text_table(header, rows)]
        return "\n".join(parts)

    def plot(self) -> Figure:
        """Accuracies by epoch (Figure 6, top), and the variance of activations (bottom)."""
        figure = new_figure(4.5 * len(self.found), 7)
        axes = figure.subplots(2, len(self.found), squeeze=False)
        for column, (model, by_start) in enumerate(self.found.items()):
            for name, one in by_start.items():
                reached = [one.after(epoch + 1) for epoch in range(self.epochs[model])]
                means = [sum(values) / len(values) for values in reached if values]
                axes[0, column].plot(range(1, len(means) + 1), means, label=name)
                axes[1, column].plot(range(1, len(one.variance) + 1), list(one.variance.values()))
            axes[0, column].set(title=model, xlabel="epoch", ylabel="accuracy, %")
            axes[1, column].set(xlabel="layer", ylabel="variance of its output", yscale="log")
            axes[0, column].legend(fontsize=8)
        return figure

    def content(self) -> dict[str, Any]:
        """Everything, and the paper's figures."""
        found = {m: {s: asdict(one) for s, one in by.items()} for m, by in self.found.items()}
        return {"found": found, "epochs": self.epochs, "paper": {"Table 6": PAPER}}


def main() -> None:
    options = arguments()
    protocol = PROTOCOLS[options.scale]
    protocol = replace(protocol, **{n: v for n in ("seeds", "images") if (v := given(options, n))})
    changes = {n: v for n in ("epochs", "batch_size") if (v := given(options, n))}
    train, test = protocol.images if options.train_script is None else (0, 0)
    data = load_split(options.data, protocol.image_size, train, 0, test, device=options.device,
                      progress=True)  # fmt: skip
    starts = [Start(RAND, "rand")]
    starts += [Start(name, method) for name, method in protocol.learned.items()]
    starts += [Start(n, ghn.config.arch, ghn) for n, ghn in hypernetworks(options).items()]
    known = [start.name for start in starts]
    if unknown := set(options.starts or ()) - set(known):
        raise SystemExit(f"--starts {min(unknown)}: choose among {', '.join(known)}.")
    found: dict[str, dict[str, Trained]] = {}
    epochs = {}
    for recipe in (replace(recipe, **changes) for recipe in protocol.recipes):
        if recipe.model in (options.models or [recipe.model]):
            runs = Runs(recipe, protocol, data, options)
            wanted = [start for start in starts if start.name in (options.starts or known)]
            found[recipe.model] = {start.name: runs.all(start) for start in wanted}
            epochs[recipe.model] = recipe.epochs
    result = Schedules(found, epochs)
    finish(result, options, "schedules", last_line(result))


def given(options: argparse.Namespace, name: str) -> Any:
    value = getattr(options, name)
    return tuple(value) if isinstance(value, list) else value


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "images in train/<class>/, and test/<class>/ or val/<class>/")
    found.add_argument("--train-script", type=Path, metavar="FILE", help="timm's train.py; needed "
                       "at paper scale")  # fmt: skip
    found.add_argument("--train-args", default="", metavar="ARGS", help="more arguments for it, in "
                       "one string: '--amp --workers 8'")  # fmt: skip
    found.add_argument("--nproc", type=int, default=1, help="its processes; default: %(default)s")
    found.add_argument("--models", nargs="+", metavar="NAME", help="of the scale; default: all")
    found.add_argument("--starts", nargs="+", metavar="NAME", help="rows; default: all")
    found.add_argument("--seeds", type=int, help="runs of each initialization")
    found.add_argument("--epochs", type=int, help="of the schedule")
    found.add_argument("--batch-size", type=int, metavar="B", help="images in a step")
    found.add_argument("--images", type=int, nargs=2, metavar=("TRAIN", "TEST"),
                       help="numbers of images, without --train-script; 0: all")  # fmt: skip
    options = found.parse_args()
    if options.scale == "paper" and options.train_script is None:
        found.error("paper scale trains with timm's train.py, which is in timm's repository and "
                    "not in its package: give its path, --train-script.")  # fmt: skip
    if options.train_script is not None and not options.train_script.is_file():
        found.error(f"--train-script {options.train_script}: there is no such file.")
    return options


def last_line(result: Schedules) -> str:
    model, by_start = next(iter(result.found.items()))
    last = result.epochs[model]
    here = ", ".join(
        f"{name} {mean_std(one.after(1))} and {mean_std(one.after(last))}"
        for name, one in by_start.items()
    )
    return (
        f"{model} after 1 and {last} epochs here: {here}; paper (Table 6, ResNet-50, 1 and 90 "
        "epochs): RandInit 20.6 and 76.0, GradInit 21.1 and 76.2, NIO 21.0 and 76.1, ghn3xlm16 "
        "35.0 and 76.2"
    )


if __name__ == "__main__":
    main()
